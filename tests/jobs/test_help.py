"""`--help` of every job: each option explained, in a moment."""

import subprocess
import sys
import time
from dataclasses import fields, is_dataclass

import pytest

from diva_ray.config import SCHEMAS, FitConfig
from diva_ray.help import GENERAL, explained, job_help


def options(section, before=""):
    """Every option of a section: its name, and the schema and field that it is."""
    for one in fields(section):
        value = getattr(section, one.name)
        if is_dataclass(value):
            yield from options(value, f"{before}{one.name}.")
        else:
            yield before + one.name, type(section), one.name


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_option_is_there_with_its_default_and_explained(name):
    lines = job_help(name).splitlines()
    for option, schema, field in options(SCHEMAS[name]()):
        (at,) = [k for k, line in enumerate(lines) if line.startswith(f"  {option}=")]
        words = explained(schema)[field]
        assert words and lines[at + 1].split() == words.split()[: len(lines[at + 1].split())], option
    assert max(map(len, lines)) <= 120


def test_defaults_are_those_of_the_jobs_own_config():
    pages = {name: job_help(name) for name in SCHEMAS}
    assert "  weights=auto  " in pages["train"] and "  space=small  " in pages["tune"]
    assert "  data.builtin=digits  " in pages["score"] and "  data.builtin=digits_bands  " in pages["aggregate"]
    assert "it runs on a built-in table" in pages["score"] and "data.path" not in pages["benchmark"]
    assert "built-in pictures" in pages["embed"] and "data=table" not in "".join(pages.values())


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_jobs_own_options_come_first_then_data_then_general_ones(name):
    found = [line.strip().partition("=")[0] for line in job_help(name).splitlines() if line.startswith("  ")]
    found = [one for one in found if one in dict((key, 0) for key, _, _ in options(SCHEMAS[name]()))]
    common = {one.name for one in fields(FitConfig)} if name != "benchmark" else set()

    def rank(option):
        first = option.partition(".")[0]
        return {"data": 1, "validation": 2, "cluster": 4}.get(first, 3 if first in common else 0)

    assert list(map(rank, found)) == sorted(map(rank, found))
    assert name != "extend" or found[0] == "budget"
    assert (GENERAL in job_help(name)) == (name != "benchmark")


def test_help_is_printed_at_once_and_nothing_runs(tmp_path):
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "jobs/reweight.py", "--help", f"output={tmp_path}/out"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.rstrip() == job_help("reweight").rstrip()
    assert not any(line.endswith(" torch") for line in done.stderr.splitlines()) and not list(tmp_path.iterdir())
    assert time.perf_counter() - start < 20


def test_words_are_those_of_the_config():
    found = job_help("score")
    assert "  ridge=auto  (a name, number or list)\n    auto: chosen by leave-one-out | a number >= 0\n" in found
    assert "cluster: Where the passes run." in found and "  cluster.workers=null  (int)\n" in found
    assert "null: what the machine has" in found and "None" not in found
