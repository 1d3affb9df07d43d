"""What a training run says of itself: the model's files, summary, and a few lines."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from diva_ray.config import TrainConfig
from diva_ray.core.compare import Interval, RowSums, mean_interval
from diva_ray.engine.course import Course
from diva_ray.engine.kernels.samples import SAME
from diva_ray.engine.reduce import Tally
from diva_ray.engine.training import EVALUATION, checkpoint
from diva_ray.report import words
from diva_ray.tasks.fit.closed import CLOSED, EVEN
from diva_ray.tasks.fit.course import ClosedForms
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.told.converged import error_text, settle
from diva_ray.tasks.told.measures import error_words
from diva_ray.tasks.told.summary import common_figures

WORDS = {
    "weighted": "SGD on the weighted rows",
    "uniform": "SGD, every row alike",
    "without_flagged": "SGD without the flagged rows",
    CLOSED: "ridge solution under the weights",
    EVEN: "ridge solution, every row alike",
}

COMPARED = {"weighted": "uniform", "without_flagged": "uniform", CLOSED: EVEN}  # like with like: nothing but weights


RULE = (
    "error: mean over seeds, with Student's 95 % interval over seeds. difference_to_uniform is paired, and to the arm "
    "that compared_to names, of which nothing differs but the weights: of closed_form the closed form with every row "
    "alike (the ridge of both chosen by one rule). low and high are over seeds, rows_low and rows_high over test "
    "rows; an arm is lower or higher when no interval that is known holds 0. difference_to_closed_form: SGD beside "
    "the closed form of its weights. learns_nothing: error of always predicting the mean, the commonest class or "
    "how common each is (several labels, whose error is the ranking error, 1 - label ranking average precision); with "
    "offsets of those alone"
)


def write_model(session: Session, config: TrainConfig, course: Course) -> None:
    """Write the first arm's first model: its arrays, how features enter, and what its outputs are."""
    folder, arm, seed = session.folder, course.arms[0], course.seeds[0]
    state = folder.read_arrays(checkpoint(arm, seed)) or {}
    folder.write_arrays(
        "model/model.npz", {name[6:]: value for name, value in state.items() if name.startswith("model.")}
    )
    mean, widths = torch.cat(course.scale.mean).numpy(), [len(band) for band in course.scale.mean]
    scale = np.repeat(course.scale.scale, widths)
    targets = {"target_mean": course.target_mean.numpy(), "target_scale": np.array(course.target_scale)}
    folder.write_arrays("model/scale.npz", {"mean": mean, "scale": scale, **targets})
    offset = course.columns.offset
    number = f"(target{' - offset' if offset else ''} - target_mean) / target_scale"
    meaning = {"classification": "logits of the classes", "multilabel": "logits of each class"}.get(course.task, number)
    added = f" All are corrections: `{offset}` of a row is to be added, to logits, or in units of the target."
    known = {
        "module": config.module or "linear", "arm": arm, "seed": seed, "task": course.task,
        "features": dict(zip(session.columns.features, widths, strict=True)), "n_features": int(sum(widths)),
        "n_outputs": course.outputs, "classes": None if course.classes is None else course.classes.to_pylist(),
        "offset": offset,
        "use": "x = (features - mean) * scale, bands side by side, 0 where one is missing (scale.npz); "
        f"module(x) with the arrays of model.npz; outputs are {meaning}. closed_form.npz (and, under uniform weights, "
        "closed_form_uniform.npz): x @ weight.T + bias, in units of the target." + (added if offset else ""),
    }  # fmt: skip
    folder.write_json("model/model.json", known)


def figures(session: Session, config: TrainConfig, course: Course, trained: ClosedForms) -> dict[str, Any]:
    """Return the figures of summary.json."""
    losses = {"classification": "cross_entropy", "multilabel": "logistic"}  # as `training.row_losses` takes them
    found = session.folder.read_arrays(EVALUATION) or {}
    n, total, products = (torch.from_numpy(np.asarray(found[name])) for name in ("n", "total", "products"))
    sums = RowSums(float(n), total, products)
    per_seed = {arm: _per_seed(course, sums, arm) for arm in (*course.arms, *course.closed)}
    common = common_figures(session, trained.closed.setup, trained.closed.ridge)
    common["loss_function"] = losses.get(course.task, "squared")
    adopted = trained.adopted
    summary = {
        **common,
        "ridge_uniform": None if trained.even is None else trained.even.ridge,
        "n_test": course.test.rows,
        "weights": config.weights,
        **dict.fromkeys(("n_flagged", "n_zero", "n_lowered", "n_raised", "n_changed", "weight_factor")),
        **({} if adopted is None else weight_figures(adopted, trained.factor)),
        "weights_alike": trained.closed.alike if "weighted" in course.arms else None,
        "module": config.module or "linear",
        "offset": course.columns.offset,
        "n_seeds": len(course.seeds),
        "epochs": course.epochs,
        "learning_rate": course.learning_rate,
        "learns_nothing": float(found["idle"]),
        "rule": RULE,
    }
    summary["arms"] = [_arm(course, sums, per_seed, name, summary) for name in per_seed]
    settle(summary)
    return summary


def weight_figures(adopted: Tally, factor: float) -> dict[str, Any]:
    """Return what a run's weights are beside the table's own, but for the factor that keeps their mean."""
    names = ("n_flagged", "n_zero", "n_lowered", "n_raised")
    found = {name: int(adopted[name]) for name in names}
    return {**found, "n_weights": int(adopted["n"]), "n_changed": found["n_lowered"] + found["n_raised"],
            "weight_factor": factor}  # fmt: skip


def same_in_words(summary: dict[str, Any]) -> list[str]:
    """Return which arms are the same training as uniform weights; nothing where all differ or no run gave weights."""
    said = []
    if summary["weights_alike"]:
        said.append(
            "Every row has the same weight, so `weighted` and `uniform` are the same rows with the same weights, and "
            "`closed_form` is that of uniform weights: nothing is compared."
        )
    if summary["n_flagged"] == 0 and any(arm["name"] == "without_flagged" for arm in summary["arms"]):
        said.append("No row is flagged, so `without_flagged` and `uniform` are the same rows.")
    return said


def given_in_words(s: dict[str, Any]) -> str:
    """Return how many weights the run lowered, and how many rows it flagged."""
    raised = f", {s['n_raised']:,} raised" if s["n_raised"] else ""
    kept = abs(s["weight_factor"] - 1) > SAME
    factor = f"; each times {s['weight_factor']:.4g}, which keeps their mean" if kept else ""
    return (
        f"{s['n_lowered']:,} of {words.counted(s['n_weights'], 'weight', 'weights')} lowered, {s['n_zero']:,} to zero"
        f"{raised}{factor}; {words.counted(s['n_flagged'], 'row', 'rows')} flagged"
    )


def _columns(course: Course, arm: str) -> list[int]:
    """Return which models of the evaluation are an arm's."""
    if arm in course.closed:
        return [len(course.models) + course.closed.index(arm)]
    return [k for k, (name, _) in enumerate(course.models) if name == arm]


def _per_seed(course: Course, sums: RowSums, arm: str) -> list[float]:
    return [float(sums.total[k]) / sums.n for k in _columns(course, arm)]


def _contrast(course: Course, sums: RowSums, arm: str, other: str | None) -> Interval:
    weights = torch.zeros(len(sums.total), dtype=torch.float64)
    for name, sign in ((arm, 1.0), (other, -1.0)):
        mine = _columns(course, name) if name else []
        weights[mine] += sign / max(len(mine), 1)
    return sums.contrast(weights)


def _arm(
    course: Course, sums: RowSums, per_seed: dict[str, list[float]], name: str, summary: dict[str, Any]
) -> dict[str, Any]:
    """Return an arm's error, its difference to what it is compared with, and the training loss of every epoch."""
    mine = per_seed[name]
    over_seeds, other = mean_interval(mine), COMPARED.get(name)
    same = {"weighted": summary["weights_alike"], "without_flagged": summary["n_flagged"] == 0}
    other = None if same.get(name) or other not in per_seed else other
    known: dict[str, Any] = {
        "name": name, "words": WORDS[EVEN if name == CLOSED and course.arms == ("uniform",) else name],
        "error": over_seeds.mean, "standard_error": over_seeds.standard_error,
        "low": over_seeds.low, "high": over_seeds.high, "per_seed": mine,
        "rows_standard_error": _contrast(course, sums, name, None).standard_error,
        "compared_to": other, "difference_to_uniform": None, "verdict": None,
    }  # fmt: skip
    if other is not None:
        gap = _difference(course, sums, per_seed, name, other)
        known["verdict"] = gap.pop("verdict")
        known["difference_to_uniform"] = gap
    if name in course.closed:
        return known
    losses = [(course.folder.read_arrays(checkpoint(name, seed)) or {"loss": []})["loss"] for seed in course.seeds]
    known["training_loss"] = np.mean(losses, axis=0).tolist()
    closed = {"weighted": CLOSED, "uniform": course.closed[-1]}.get(name)
    known["difference_to_closed_form"] = closed and _difference(course, sums, per_seed, name, closed)
    return known


def _difference(
    course: Course, sums: RowSums, per_seed: dict[str, list[float]], name: str, other: str
) -> dict[str, Any]:
    """Return the difference of two arms with its intervals over seeds and over test rows, and whether it is clear."""
    most = max(len(per_seed[name]), len(per_seed[other]))
    pairs = zip(*(one * (most // len(one)) for one in (per_seed[name], per_seed[other])), strict=True)
    seeds, rows = mean_interval([a - b for a, b in pairs]), _contrast(course, sums, name, other)
    ends = {"rows_standard_error": rows.standard_error, "rows_low": rows.low, "rows_high": rows.high}
    return {**asdict(seeds), **ends, "verdict": _verdict(seeds, rows)}


def _verdict(*intervals: Interval) -> str:
    """Return whether a difference is beyond chance, by every interval that is known."""
    ends = [(one.low, one.high) for one in intervals if one.low is not None and one.high is not None]
    if ends and all(high < 0 for _, high in ends):
        return "lower"
    return "higher" if ends and all(low > 0 for low, _ in ends) else "no clear difference"


def told(summary: dict[str, Any]) -> list[str]:
    """Return a training run in a few lines, for a terminal."""
    s = summary
    kind, several = error_words(s)[0], s["n_seeds"] > 1
    lines = [
        f"{s['n_samples']:,} samples, {words.counted(s['n_test'], 'test row', 'test rows')}, "
        f"{words.counted(s['n_seeds'], 'seed', 'seeds')} of {words.counted(s['epochs'], 'epoch', 'epochs')}, "
        f"module {s['module']}, learning_rate {s['learning_rate']:g}"
    ]
    if s["n_changed"] is not None:
        lines.append(f"weights: {given_in_words(s)}")
    for arm in s["arms"]:
        spread = "" if arm["standard_error"] is None else f" +- {arm['standard_error']:.2g}"
        line = f"{arm['name']:<19} test {kind} {error_text(s, arm['error'])}{spread}"
        gap = arm["difference_to_uniform"]
        compared = "" if gap is None else f"; to {arm['compared_to']} {error_text(s, gap['mean'], sign=True)}"
        lines.append(f"{line}{compared}{', ' * (gap is not None)}{arm['verdict'] or ''}")
    error = s["arms"][0]["rows_standard_error"]
    rows = "" if error is None else f"one standard error over the {s['n_test']:,} test rows is {error:.2g}"
    parts = ["+- is one standard error over seeds"] * several + [rows] * bool(rows)
    lines += ["; ".join(parts)] * bool(parts)
    lines += [f"warning: {said}" for said in s["warnings"]]
    return lines + [f"note: {said}" for said in (*s["notes"], *same_in_words(s))]
