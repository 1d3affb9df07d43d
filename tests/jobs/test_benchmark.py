"""The benchmark's structure and its figures of accuracy; nothing here is timed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from diva_ray.config import BenchmarkConfig
from diva_ray.errors import InputError
from diva_ray.tasks import benchmark

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[benchmark.Report, Path]:
    folder = tmp_path_factory.mktemp("benchmark") / "out"
    config = BenchmarkConfig(size="small", only=["derivative", "memory", "accuracy", "autograd"], output=str(folder))
    return benchmark.run(config), folder


def test_every_mode_is_as_accurate_as_promised(report: tuple[benchmark.Report, Path]) -> None:
    figures = report[0].entries["accuracy"]
    assert len(figures) == 4
    assert [figure.what for figure in figures if figure.verdict() != "met"] == []


def test_files_hold_every_figure_with_its_goal_and_verdict(report: tuple[benchmark.Report, Path]) -> None:
    found, folder = report
    assert {file.name for file in folder.iterdir()} == {
        "benchmark.json", "config.yaml", "manifest.json", "summary.json",
    }  # fmt: skip
    written = json.loads((folder / "benchmark.json").read_text())
    assert list(written["entries"]) == ["derivative", "memory", "accuracy", "autograd"]
    share = next(f for f in written["entries"]["derivative"] if f["goal"] is not None)
    assert share["verdict"] == ("met" if share["value"] >= 0.75 else "not met")
    assert len(written["sgemm_rates"]["derivative"]) == 2
    assert not any(figure.what == "FAILED" for figures in found.entries.values() for figure in figures)


def test_table_has_one_aligned_line_for_every_figure(report: tuple[benchmark.Report, Path]) -> None:
    found, _ = report
    lines = found.lines()
    at = lines[0].index("value")
    rows = lines[2 : 2 + sum(map(len, found.entries.values()))]
    assert all(line[at - 1] == " " and line[at] != " " for line in rows)
    assert any("<= 0.25" in line and line.split()[0] == "memory" for line in rows)


def test_entries_that_ran_on_a_busy_machine_are_named() -> None:
    calm, busy = [100e9, 99e9], [100e9, 70e9]
    (line,) = benchmark.Report(benchmark.SMALL, rates={"ridges": calm, "dual": busy, "accuracy": []}).drift()
    assert "100 GF/s at best; the machine was slower (busy?) around: dual 70." in line
    assert benchmark.Report(benchmark.SMALL, rates={"accuracy": []}).drift() == []


def test_a_goal_is_met_from_the_right_side() -> None:
    assert benchmark.Figure("a", 2.0, goal=1.0, least=True).verdict() == "met"
    assert benchmark.Figure("a", 2.0, goal=1.0).verdict() == "not met"
    assert benchmark.Figure("a", None, goal=1.0).verdict() == benchmark.Figure("a", 2.0).verdict() == ""


def test_a_peer_that_is_not_installed_is_said_and_a_crash_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cleanlab.py").write_text("raise ModuleNotFoundError('gone', name='cleanlab')")
    (tmp_path / "sklearn.py").write_text("raise ValueError('broken peer')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (missing,), _ = benchmark.measured_apart("cleanlab", benchmark.SMALL)
    (broken,), _ = benchmark.measured_apart("ridge_cv", benchmark.SMALL)
    assert missing.note == "not installed: pip install cleanlab"
    assert (broken.what, broken.value) == ("FAILED", None)
    assert "broken peer" in broken.note


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["speed"]}, "only: entries must be among machine, .*, got speed"),
        ({"size": "huge"}, "size: must be full or small, got huge"),
        ({"peers": "none"}, "peers: must be sample or full, got none"),
        ({"n": 100, "p": 200}, "n: rows must outnumber columns"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        benchmark.sizes_of(BenchmarkConfig(**options))


@pytest.mark.jobs
def test_job_prints_the_table(tmp_path: Path) -> None:
    command = [sys.executable, "jobs/benchmark.py", "size=small", "only=[machine,scaling]", f"output={tmp_path}/out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "exponent of n" in done.stdout
