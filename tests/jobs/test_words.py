"""Words of the command line: any path may be given as it is."""

import os
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from diva_ray.jobs import CONFIGS, quoted, register

PATHS = [
    "~/table", "/data/k=1/year=2024", "part-[0-9].parquet", "straße/学", "it's", 'a "b"', "(1)", "#1", "{a}", "a b",
    "100%", "s3://bucket/a-b_c.parquet", "a\\b", "/data/*.parquet", "[a", "'",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_path_reaches_its_option_as_it_is(path):
    register()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        words = [quoted(word) for word in (f"data.path={path}", f"output={path}", "ridge=0.5", "data.features=[a,b]")]
        config = OmegaConf.to_object(hydra.compose("score", overrides=words))
    assert (config.data.path, config.output) == (path, path)
    assert (config.ridge, config.data.features) == (0.5, ["a", "b"])


@pytest.mark.parametrize(
    "word", ["--cfg", "--config-dir=a=b", "ridge=1", "+space.ridge.choice=[1,2]", "~data", "plan=true"]
)
def test_other_words_stay(word):
    assert quoted(word) == word


def test_a_job_reads_and_writes_under_any_name(tmp_path):
    folder = tmp_path / "größe=1 [é]"
    folder.mkdir()
    X = np.random.default_rng(0).standard_normal((40, 3))
    pq.write_table(pa.table({"features": list(X), "label": np.arange(40) % 2}), folder / "a.parquet")
    job = Path(__file__).parents[2] / "jobs/score.py"
    words = [f"data.path={folder}", f"output={folder}/out", "cluster=inline", "cluster.threads=1"]
    subprocess.run([sys.executable, job, *words], check=True, env=os.environ, timeout=100)
    assert (folder / "out/report.html").exists()
