"""What the README says works as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import diva_ray

ROOT = Path(__file__).resolve().parent.parent


def test_rows_without_a_label_are_left_out_of_what_embed_wrote(tmp_path):
    pictures = list(np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), dtype=np.uint8))
    label = [None if k == 3 else "ab"[k % 2] for k in range(12)]
    options = {"encoder": "edges", "quiet": True, "cluster": {"kind": "inline", "threads": 1}}
    diva_ray.embed({"image": pictures, "label": label}, **options, output=str(tmp_path / "embedded"))
    (tmp_path / "embedded/features").rename(tmp_path / "table")  # the folder inside, as the README says
    (command,) = re.findall(
        r"^\.venv/bin/python (-c .*write_dataset.*)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    subprocess.run([sys.executable, *shlex.split(command)], cwd=tmp_path, check=True)
    assert pq.read_table(tmp_path / "labelled").num_rows == 11
