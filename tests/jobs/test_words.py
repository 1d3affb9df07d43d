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

from diva_ray.command_line import CONFIGS, check_flags, compose, quoted, register
from diva_ray.errors import InputError

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


DASHES = "score: options must be written as KEY=VALUE, without dashes, got "


@pytest.mark.parametrize(
    "words,told",
    [
        (["--output=foo"], f"{DASHES}--output=foo. Write `output=foo`."),
        (["--output", "foo"], f"{DASHES}--output. Write `output=foo`."),
        (["--output", "seed=1"], f"{DASHES}--output. Write `output=VALUE`."),
        (["seed=1", "--data.path=x"], f"{DASHES}--data.path=x. Write `data.path=x`."),
        (["--block-rows=9"], f"{DASHES}--block-rows=9. Write `block_rows=9`."),
        (["--cluster=inline"], f"{DASHES}--cluster=inline. Write `cluster=inline`."),
        (["--ouput=x"], f"{DASHES}--ouput=x. Write `output=x`."),
        (["--help=x"], f"{DASHES}--help=x. Write `--help`."),
        (["--nothing-like-it"], f"{DASHES}--nothing-like-it. Write `--help`."),
    ],
)
def test_an_option_with_dashes_is_told_how_it_is_written(words, told):
    with pytest.raises(InputError) as caught:
        check_flags("score", words)
    assert str(caught.value) == told


def test_hydras_own_flags_pass():
    check_flags("score", ["--cfg", "job", "--config-dir=a", "--config-name", "b", "-m", "--multirun", "ridge=1,2"])


@pytest.mark.parametrize(
    "name,word,told",
    [
        ("embed", "encoder=dino", "Did you mean `encoder=dinov2_small`"),
        ("embed", "encoder=edge", "Did you mean `encoder=edges`"),
        ("tune", "space=band", "Did you mean `space=bands`?"),
        ("score", "cluster=lokal", "Did you mean `cluster=local`?"),
        ("tune", "experiment=weights", "Write `+experiment=weights`."),
        ("benchmark", "cluster=inline", "got cluster=inline, which it does not have. Leave `cluster` out."),
    ],
)
def test_a_name_that_is_nearly_right_is_told(name, word, told):
    register()
    with pytest.raises(InputError) as caught:
        compose(name, name, None, [word])
    assert told in str(caught.value) and "Could not override" not in str(caught.value)


def test_a_job_reads_and_writes_under_any_name(tmp_path):
    folder = tmp_path / "größe=1 [é]"
    folder.mkdir()
    X = np.random.default_rng(0).standard_normal((40, 3))
    pq.write_table(pa.table({"features": list(X), "label": np.arange(40) % 2}), folder / "a.parquet")
    job = Path(__file__).parents[2] / "jobs/score.py"
    words = [f"data.path={folder}", f"output={folder}/out", "cluster=inline", "cluster.threads=1"]
    subprocess.run([sys.executable, job, *words], check=True, env=os.environ, timeout=100)
    assert (folder / "out/report.html").exists()
