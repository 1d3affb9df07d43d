"""The benchmark's structure, its figures of accuracy and its tables of quality; nothing here is timed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diva_ray.bench import benchmark, extend, quality, reweight, sets
from diva_ray.bench.tables import Results
from diva_ray.config import BenchmarkConfig
from diva_ray.errors import InputError
from tests.forks import run_job

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[benchmark.Report, Path]:
    folder = tmp_path_factory.mktemp("benchmark") / "out"
    config = BenchmarkConfig(size="small", only=["derivative", "memory"], output=str(folder))
    return benchmark.run(config), folder


def test_every_mode_is_as_accurate_as_promised() -> None:
    figures = list(benchmark.ENTRIES["accuracy"](benchmark.SMALL))
    assert len(figures) == 4
    assert [figure.what for figure in figures if figure.verdict() != "met"] == []


def test_files_hold_every_figure_with_its_goal_and_verdict(report: tuple[benchmark.Report, Path]) -> None:
    found, folder = report
    assert {file.name for file in folder.iterdir()} == {
        "benchmark.json", "config.yaml", "manifest.json", "summary.json",
    }  # fmt: skip
    written = json.loads((folder / "benchmark.json").read_text())
    assert list(written["entries"]) == ["derivative", "memory"]
    share = next(f for f in written["entries"]["derivative"] if f["goal"] is not None)
    assert share["verdict"] == ("met" if share["value"] >= 0.75 else "not met")
    assert len(written["sgemm_rates"]["derivative"]) == 2
    assert not any(figure.what == "FAILED" for figures in found.entries.values() for figure in figures)


@pytest.mark.parametrize("name", ["machine", "pool", "weight_steps", "autograd"])
def test_entries_measure_something(name: str) -> None:
    figures = list(benchmark.ENTRIES[name](benchmark.SMALL))
    assert figures and all(figure.value is not None and figure.value >= 0 for figure in figures)


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
    done = run_job("jobs/benchmark.py", "size=small", "only=[scaling]", f"output={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert "exponent of n" in done.stdout


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits of 300 rows."""
    whole = sets.read_set("digits", None)
    fewer = replace(whole, bands={"features": whole.bands["features"][:300]}, truth=whole.truth[:300])
    monkeypatch.setattr("diva_ray.bench.quality.read_set", lambda name, folder, seed: fewer)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("task", "noise", "heads"),
    [
        ("detect", 0.2, ["AUC label_score", "AUC cleanlab", "AUC Data-OOB", "F1 KNN-Shapley", "F1 derivative > 0"]),
        pytest.param(
            "reweight",
            0.4,
            ["uniform", "ours", "paper", "dropped", "chang", "ren", "ridge", "cleaned"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            "extend",
            0.4,
            ["core", "ours 10%", "paper 80%", "uniform 40%", "whole", "stop"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            "augment",
            0.0,
            ["originals", "alike", "ours", "paper", "p identity", "paper vflip", "loo", "lgo"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            "pairs",
            0.2,
            ["AUC label_score", "AUC cosine", "F1 is_label_issue", "F1 forward", "precision", "share"],
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_task_is_measured_on_a_set(task: str, noise: float, heads: list[str], tmp_path: Path) -> None:
    options = {"sets": ["digits"], "noise": [noise], "seeds": 1, "output": f"{tmp_path}/out"}
    report = benchmark.run(BenchmarkConfig(task=task, **options))
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "benchmark.json", "benchmark.md", "config.yaml", "manifest.json", "summary.json",
    }  # fmt: skip
    written = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    by_name = {row["what"]: row for row in written["results"]}
    assert set(heads) <= set(by_name)
    for name in heads:
        assert len(by_name[name]["values"]) == 1
        assert 0 <= by_name[name]["mean"] <= (1 if task in ("detect", "pairs") else 100)
        assert (by_name[name]["set"], by_name[name]["noise"]) == ("digits", noise)
    if task == "detect":
        assert by_name["AUC label_score"]["mean"] > 0.95
    if task == "pairs":
        assert by_name["AUC label_score"]["mean"] > max(
            0.9, by_name["AUC forward"]["mean"], by_name["AUC cosine"]["mean"]
        )
    markdown = (tmp_path / "out" / "benchmark.md").read_text()
    assert f"| digits, {noise:.0%} |" in markdown
    if task == "augment":
        assert by_name["p vflip"]["mean"] < by_name["p identity"]["mean"]
        assert by_name["ours"]["mean"] < by_name["alike"]["mean"]
    assert any(line.startswith("digits") for line in report.lines())
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


@pytest.mark.long
def test_a_few_shot_set_is_extended_by_another_modality(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    means, folder = 3 * draw.standard_normal((4, 6)), tmp_path / "sets" / "caltech101"
    folder.mkdir(parents=True)
    for name, n, shift in (("train", 40, 0.0), ("val", 40, 0.0), ("test", 80, 0.0), ("label_text", 8, 0.5)):
        y = np.arange(n) % 4
        X = (means[y] + draw.standard_normal((n, 6)) + shift).astype(np.float32)
        pq.write_table(pa.table({"features": list(X), "label": y}), folder / f"{name}.parquet")
    options = {"sets": ["caltech101"], "noise": [0.0], "seeds": 1, "output": f"{tmp_path}/out"}
    benchmark.run(BenchmarkConfig(task="multimodal", data_folder=str(tmp_path / "sets"), **options))
    written = json.loads((tmp_path / "out" / "benchmark.json").read_text())["results"]
    found = {row["what"]: row["mean"] for row in written}
    assert found["2 shot ours selected"] <= found["2 shot none"]
    assert (
        found["1 shot ours 100%"] == found["1 shot paper 100%"] == found["1 shot uniform 100%"] == found["1 shot all"]
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert "A few-shot set extended by another modality" in page and "2 pictures a class" in page


def test_tables_tell_mean_and_spread_and_mark_the_best() -> None:
    results = Results()
    for ours, truth in ((1.0, 0.5), (3.0, 0.7)):
        results.add("digits", 0.2, {"ours": ours, "other": 4.0, "truth": truth})
    table = results.table("Errors", {"ours": "ours", "other": "other", "truth": "truth*"}, 1, min)
    assert table.rows == [["digits, 20%", "**2.0 ± 1.4**", "4.0 ± 0.0", "0.6 ± 0.1"]]
    assert table.markdown().splitlines()[2:] == [
        "| set | ours | other | truth* |", "| --- | ---: | ---: | ---: |",
        "| digits, 20% | **2.0 ± 1.4** | 4.0 ± 0.0 | 0.6 ± 0.1 |",
    ]  # fmt: skip
    assert "**" not in "".join(table.lines())


def test_share_of_the_gap_counts_only_pairs_that_have_one() -> None:
    results = Results()
    same = dict.fromkeys(("paper", "dropped", "chang", "ren", "ridge"), 10.0)
    results.add("digits", 0.4, {"uniform": 10.0, "ours": 7.0, "cleaned": 6.0, **same})
    results.add("digits", 0.0, {"uniform": 10.0, "ours": 10.5, "cleaned": 9.5, **same})
    errors, table = reweight.tables(results)
    assert len(errors.rows) == 2
    assert "looked at" in table.title
    (ours, *others) = table.rows
    assert ours == ["ours (safe)", "75%", "+1.25", "0.50", "0.50"]
    assert all(row[1:] == ["0%", "+0.00", "0.00", "0.00"] for row in others)


def test_untouched_sets_are_told_apart_and_single_runs_do_not_hide_in_means() -> None:
    results, same = Results(), dict.fromkeys(("paper", "dropped", "chang", "ren", "ridge"), 10.0)
    for ours in (10.7, 9.0):
        results.add("wine", 0.2, {"uniform": 10.0, "ours": ours, "cleaned": 9.0, **same})
    results.add("digits", 0.2, {"uniform": 10.0, "ours": 9.5, "cleaned": 9.0, **same})
    _, seen, untouched = reweight.tables(results)
    assert seen.rows[0] == ["ours (safe)", "50%", "+0.50", "0.00", "0.00"]
    assert untouched.title.endswith("untouched sets")
    assert untouched.rows[0] == ["ours (safe)", "15%", "+0.15", "0.00", "0.70"]


@pytest.mark.usefixtures("tiny")
def test_seeds_begin_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    def measure(one: sets.RealSet, noise: float, seed: int) -> dict[str, float]:
        asked.append((seed, noise))
        return dict.fromkeys(reweight.COLUMNS, 1.0)

    monkeypatch.setitem(quality.TASKS, "reweight", quality.Task(measure, reweight.tables, (0.0, 0.4)))
    options = {"sets": ["digits"], "seeds": 2, "first_seed": 10, "output": f"{tmp_path}/out"}
    report = benchmark.run(BenchmarkConfig(task="reweight", **options))
    assert asked == [(10, 0.0), (10, 0.4), (11, 0.0), (11, 0.4)]
    assert "2 seeds, 10 to 11" in report.lines()[-1]
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text())["first_seed"] == 10


@pytest.mark.parametrize("name", ["wine", "breast_cancer", "iris", "digits_resplit"])
def test_a_seed_draws_another_split_of_the_same_rows(name: str) -> None:
    one, again, other = (sets.read_set(name, None, seed) for seed in (1, 1, 2))
    assert (one.features == again.features).all()
    assert (one.truth.tolist(), one.test_label.tolist()) != (other.truth.tolist(), other.test_label.tolist())
    rows = [np.sort(np.concatenate([each.truth, each.test_label])) for each in (one, other)]
    assert (rows[0] == rows[1]).all()
    assert one.features.shape[1] == one.test_features.shape[1]
    if name != "digits_resplit":
        assert np.abs(one.bands["features"].mean(0)).max() < 1e-5
        assert one.bands["features"].std(0) == pytest.approx(1, abs=1e-5)


def test_digits_stay_split_as_they_were() -> None:
    assert (sets.read_set("digits", None, 3).features == sets.read_set("digits", None).features).all()


@pytest.mark.skipif(not sets.FASHION.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_other_pictures_of_fashion_are_other_pictures() -> None:
    used, other = (sets.read_set(name, None) for name in ("fashion-mnist", "fashion_other"))
    assert other.bands["features"].shape == used.bands["features"].shape == (6_000, 500)
    assert len(other.test_label) == 10_000
    labels = sets._idx("train-labels-idx1-ubyte.gz", 8)
    assert (other.truth == labels[6_000:12_000]).all()
    assert (other.test_label == labels[12_000:22_000]).all()


def test_groups_are_never_cut() -> None:
    whole = sets.read_set("digits", None)
    twins = replace(whole, group=np.repeat(np.arange(450), 2), truth=np.repeat(whole.truth[:450], 2))
    core, pool = extend.split(twins, 0)
    assert set(twins.groups[core]).isdisjoint(twins.groups[pool])
    assert sorted([*core, *pool]) == list(range(900))
    assert np.bincount(twins.truth[core], minlength=10) == pytest.approx(
        0.3 * np.bincount(twins.truth, minlength=10), abs=2
    )
    held = twins.held_out(0.2, 0)
    assert (held[::2] == held[1::2]).all()
    assert held.mean() == pytest.approx(0.2, abs=0.01)


def test_sets_that_are_not_there_are_named() -> None:
    names, notes = sets.found_sets(None, [])
    assert "digits" in names
    assert "dtd left out: `data_folder` is not set" in notes


def test_emoji_leave_by_name_and_human_errors_stay(tmp_path: Path) -> None:
    for part, rows in (("train", 6), ("test", 3)):
        for name, bands in (("emoji", ("image", "text")), ("agnews", ("features",))):
            (tmp_path / name).mkdir(exist_ok=True)
            features = {band: [[float(k), 1.0] for k in range(rows)] for band in bands}
            labels = {"label": ["a", "b", "c"] * (rows // 3), "name": ["x", "y", "z"] * (rows // 3)}
            labels["subgroup"] = [f"s{k % 2}" for k in range(rows)]
            gold = {"gold_label": ["b"] * rows} if (name, part) == ("agnews", "train") else {}
            pq.write_table(pa.table({**features, **labels, **gold}), tmp_path / name / f"{part}.parquet")
    emoji, news = (sets.read_set(name, str(tmp_path)) for name in ("emoji", "agnews"))
    assert emoji.groups.tolist() == [0, 1, 2, 0, 1, 2]
    assert emoji.columns["group"] == "group"
    assert emoji.features.shape == (6, 5)
    assert news.labels(0.4, 0).tolist() == [0, 1, 2, 0, 1, 2]
    assert news.truth.tolist() == [1] * 6
    text, fine, gold = (sets.read_set(k, str(tmp_path)) for k in ("emoji_text", "emoji_subgroup", "agnews_gold"))
    assert list(text.bands) == ["text"]
    assert text.truth.tolist() == emoji.truth.tolist()
    assert fine.truth.tolist() == [0, 1] * 3
    assert (fine.test_label.tolist(), fine.groups.tolist()) == ([0, 1, 0], emoji.groups.tolist())
    assert (gold.given, gold.truth.tolist()) == (None, [1] * 6)
    assert sets.found_sets(str(tmp_path), ["agnews"])[0] == ["agnews"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "win"}, "task: must be speed, detect, .*aggregate.*pairs, got win"),
        ({"task": "detect", "seeds": 0}, "seeds: must be at least 1, got 0"),
        ({"task": "detect", "first_seed": -1}, "first_seed: must be at least 0, got -1"),
        ({"task": "reweight", "noise": [1.0]}, "noise: must be at least 0 and below 1, got 1.0"),
        ({"task": "detect", "noise": [0.0]}, "noise: must be above 0 with task=detect"),
        ({"task": "extend", "sets": ["mnist"]}, "sets: must be among digits, .*, got mnist"),
        ({"task": "extend", "sets": ["dtd"]}, "sets: dtd must be there, got none: `data_folder` is not set"),
        ({"task": "extend", "data_folder": "/none"}, "data_folder: must be a folder of sets, got /none"),
        ({"task": "detect", "only": ["ridges"]}, "only: must be empty with task=detect, got ridges"),
    ],
)
def test_task_options_that_cannot_be_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        benchmark.run(BenchmarkConfig(**options, output=f"{tmp_path}/out"))
    assert list(tmp_path.iterdir()) == []
