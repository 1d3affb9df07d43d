"""What a training run says of itself: the model's files, summary, a few lines, and the page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from diva_ray.config import TrainConfig
from diva_ray.core.compare import Interval, RowSums, mean_interval
from diva_ray.engine.course import Course
from diva_ray.engine.given import SAME
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup
from diva_ray.engine.training import EVALUATION, checkpoint
from diva_ray.report import words
from diva_ray.report.sheet import Bars, Lines, Sheet, Table, Tile
from diva_ray.tasks.alike import shared_in_words
from diva_ray.tasks.chance import TONES
from diva_ray.tasks.page import run_facts
from diva_ray.tasks.reweighted import error_words, loss_words
from diva_ray.tasks.session import Session
from diva_ray.tasks.summary import common_figures

CLOSED = "closed_form"  # the arm that has no seed
WORDS = {
    "weighted": "SGD on the weighted rows",
    "uniform": "SGD, every row alike",
    "without_flagged": "SGD without the flagged rows",
    CLOSED: "ridge solution under the weights",
}

CALLED = (
    "Below 0: better. One standard error over test rows, row against row. Called lower or higher where no "
    "95\N{NO-BREAK SPACE}% interval that is known holds 0: over test rows (1.96 standard errors), nor, of several "
    "seeds, over seeds (Student's)."
)


@dataclass(frozen=True)
class Trained:
    """What is known before training: the passes' setup, the ridge, and what the weights add up to."""

    setup: Setup
    ridge: float
    adopted: Tally | None
    rows: int


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
        f"module(x) with the arrays of model.npz; outputs are {meaning}. closed_form.npz: x @ weight.T + bias, in "
        "units of the target." + (added if offset else ""),
    }  # fmt: skip
    folder.write_json("model/model.json", known)


def figures(session: Session, config: TrainConfig, course: Course, trained: Trained) -> dict[str, Any]:
    """Return the figures of summary.json."""
    losses = {"classification": "cross_entropy", "multilabel": "logistic"}  # as `training.row_losses` takes them
    found = session.folder.read_arrays(EVALUATION) or {}
    n, total, products = (torch.from_numpy(np.asarray(found[name])) for name in ("n", "total", "products"))
    sums = RowSums(float(n), total, products)
    per_seed = {arm: _per_seed(course, sums, arm) for arm in (*course.arms, CLOSED)}
    arms = [_arm(course, sums, per_seed, name) for name in per_seed]
    common = common_figures(session, trained.setup, trained.ridge)
    common["loss_function"] = losses.get(course.task, "squared")
    common["validation"] = "separate table" if config.validation.given else "leave-one-out"
    return {
        **common,
        "n_test": course.test.rows,
        "weights": config.weights,
        "n_flagged": None if trained.adopted is None else int(trained.adopted["n_flagged"]),
        "n_zero": None if trained.adopted is None else int(trained.adopted["n_zero"]),
        "n_changed": None if trained.adopted is None else int(trained.adopted["n_changed"]),
        "weights_alike": None if trained.adopted is None else alike(trained.adopted),
        "module": config.module or "linear",
        "n_seeds": len(course.seeds),
        "epochs": course.epochs,
        "arms": arms,
        "rule": "error: mean over seeds, with Student's 95 % interval over seeds. difference_to_uniform is paired: low "
        "and high over seeds, rows_low and rows_high over test rows; an arm is lower or higher when no interval that "
        "is known holds 0.",
    }


def alike(adopted: Tally) -> bool:
    """Return whether every row has the same weight, so that the weighted arm is that of uniform weights."""
    least, most = -adopted["max_minus"], adopted["max_weight"]
    return most - least <= SAME * most


def same_in_words(summary: dict[str, Any]) -> list[str]:
    """Return which arms are the same training as uniform weights; nothing where all differ or no run gave weights."""
    said = []
    if summary["weights_alike"]:
        said.append(
            "Every row has the same weight, so `weighted` and `uniform` are the same rows with the same weights: their "
            "errors say nothing of weights."
        )
    if summary["n_flagged"] == 0 and any(arm["name"] == "without_flagged" for arm in summary["arms"]):
        said.append("No row is flagged, so `without_flagged` and `uniform` are the same rows.")
    return said


def given_in_words(summary: dict[str, Any]) -> str:
    """Return how many weights the run changed, and how many rows it flagged."""
    s = summary
    return (
        f"{s['n_changed']:,} of {words.counted(s['n_samples'], 'weight', 'weights')} changed, {s['n_zero']:,} zero; "
        f"{words.counted(s['n_flagged'], 'row', 'rows')} flagged"
    )


def _columns(course: Course, arm: str) -> list[int]:
    """Return which models of the evaluation are an arm's."""
    if arm == CLOSED:
        return [len(course.models)]
    return [k for k, (name, _) in enumerate(course.models) if name == arm]


def _per_seed(course: Course, sums: RowSums, arm: str) -> list[float]:
    return [float(sums.total[k]) / sums.n for k in _columns(course, arm)]


def _contrast(course: Course, sums: RowSums, arm: str, other: str | None) -> Interval:
    weights = torch.zeros(len(sums.total), dtype=torch.float64)
    for name, sign in ((arm, 1.0), (other, -1.0)):
        mine = _columns(course, name) if name else []
        weights[mine] += sign / max(len(mine), 1)
    return sums.contrast(weights)


def _arm(course: Course, sums: RowSums, per_seed: dict[str, list[float]], name: str) -> dict[str, Any]:
    """Return an arm's error, its differences to uniform, and the training loss of every epoch."""
    mine, uniform = per_seed[name], per_seed["uniform"]
    over_seeds = mean_interval(mine)
    known: dict[str, Any] = {
        "name": name, "words": WORDS[name], "error": over_seeds.mean, "standard_error": over_seeds.standard_error,
        "low": over_seeds.low, "high": over_seeds.high, "per_seed": mine,
        "rows_standard_error": _contrast(course, sums, name, None).standard_error,
        "difference_to_uniform": None, "verdict": None,
    }  # fmt: skip
    if name != CLOSED:
        losses = [(course.folder.read_arrays(checkpoint(name, seed)) or {"loss": []})["loss"] for seed in course.seeds]
        known["training_loss"] = np.mean(losses, axis=0).tolist()
    if name != "uniform":
        paired = mine if len(mine) == len(uniform) else mine * len(uniform)
        seeds = mean_interval([a - b for a, b in zip(paired, uniform, strict=True)])
        rows = _contrast(course, sums, name, "uniform")
        ends = {"rows_standard_error": rows.standard_error, "rows_low": rows.low, "rows_high": rows.high}
        known["difference_to_uniform"] = {**asdict(seeds), **ends}
        known["verdict"] = _verdict(seeds, rows)
    return known


def _verdict(*intervals: Interval) -> str:
    """Return whether a difference is beyond chance, by every interval that is known."""
    ends = [(one.low, one.high) for one in intervals if one.low is not None and one.high is not None]
    if ends and all(high < 0 for _, high in ends):
        return "lower"
    return "higher" if ends and all(low > 0 for low, _ in ends) else "no clear difference"


def told(summary: dict[str, Any]) -> list[str]:
    """Return a training run in a few lines, for a terminal."""
    s = summary
    kind = error_words(s)[0]
    lines = [
        f"{s['n_samples']:,} samples, {s['n_test']:,} test rows, {s['n_seeds']} seed(s) of {s['epochs']} epochs, "
        f"module {s['module']}"
    ]
    if s["n_changed"] is not None:
        lines.append(f"weights: {given_in_words(s)}")
    for arm in s["arms"]:
        spread = "" if arm["standard_error"] is None else f" +- {arm['standard_error']:.4f}"
        line = f"{arm['name']:<16} test {kind} {arm['error']:.4f}{spread}"
        gap = arm["difference_to_uniform"]
        lines.append(line if gap is None else f"{line}; to uniform {gap['mean']:+.4f}, {arm['verdict']}")
    return lines + [f"note: {said}" for said in same_in_words(s)]


def sheet_of(session: Session, config: TrainConfig, course: Course, summary: dict[str, Any]) -> Sheet:
    """Return the contents of report.html."""
    s, (error, shape) = summary, error_words(summary)
    first, uniform = s["arms"][0], next(arm for arm in s["arms"] if arm["name"] == "uniform")
    headline = [f"Test {error} {shape(first['error'])} with {first['words']}."]
    if first is not uniform and s["weights_alike"]:
        headline.append(
            f"{'No weight was changed' if not s['n_changed'] else 'Every row has the same weight'}: this is the same "
            "training as with every row alike, and nothing is compared."
        )
    elif first is not uniform:
        seen = {"lower": "lower than", "higher": "higher than"}.get(first["verdict"], "not clearly different from")
        headline.append(f"That is {seen} the {shape(uniform['error'])} of training with every row alike.")
    if s["n_changed"] is not None:
        headline.append(f"By the run that gave them, {given_in_words(s)}.")
    tiles = [Tile(arm["name"].replace("_", " "), shape(arm["error"]), _seen(arm, s), _tone(arm)) for arm in s["arms"]]
    facts = [
        *run_facts(session, s), ("Test rows", f"{course.test.name} ({s['n_test']:,})"),
        ("Weights", str(s["weights"] or session.columns.weight or "none")),
        ("Module", s["module"]),
        ("Training", f"SGD, {s['n_seeds']} seed(s), {s['epochs']} epochs, batches of {course.batch_size}, rate "
         f"{course.learning_rate:g}, momentum {course.momentum:g}, weight decay {course.weight_decay:g}"),
    ]  # fmt: skip
    files = [
        f"model/: {course.arms[0]}, seed {course.seeds[0]}; model.json says how to use it",
        "checkpoints/: every arm and seed, with its training loss",
        "errors/: test error of every arm and seed", "summary.json: every figure of this page",
    ]  # fmt: skip
    if s["weights"] == "auto":
        files.append("reweight/: the run that found the weights; reweight/report.html shows what it tried")
    return Sheet(
        "What the weights are worth to a trained model", headline, tiles, _parts(course, s), facts,
        session.runner.seconds, notes=notes_of(session, config, s), downloads=files,
        footer="Test rows take no part in training; nor in the weights, unless the run that made them saw these rows.",
    )  # fmt: skip


def _seen(arm: dict[str, Any], summary: dict[str, Any]) -> str:
    """Return how an arm compares with uniform weights, in words."""
    same = {"weighted": summary["weights_alike"], "without_flagged": summary["n_flagged"] == 0}
    return "the same training as uniform" if same.get(arm["name"]) else arm["verdict"] or ""


def _tone(arm: dict[str, Any]) -> str:
    return TONES.get(arm["verdict"], "")


def _parts(course: Course, s: dict[str, Any]) -> list[Any]:
    error, shape = error_words(s)
    named = [(arm, arm["name"].replace("_", " ")) for arm in s["arms"]]
    bars = [
        {"label": name, "value": arm["error"], "error": arm["standard_error"], "detail": arm["words"],
         "strong": arm is s["arms"][0]} for arm, name in named
    ]  # fmt: skip
    gaps = [
        {"label": name, "value": arm["difference_to_uniform"]["mean"],
         "error": arm["difference_to_uniform"]["rows_standard_error"], "detail": _seen(arm, s),
         "strong": arm is s["arms"][0]} for arm, name in named if arm["difference_to_uniform"]
    ]  # fmt: skip
    rows = [
        {"seed": str(seed), **{arm["name"]: arm["per_seed"][k % len(arm["per_seed"])] for arm, _ in named}}
        for k, seed in enumerate(course.seeds)
    ]
    percent = shape is words.percent
    kind = "percent" if percent else "number"
    losses = [
        {"name": name, "y": arm["training_loss"], "strong": arm is s["arms"][0]}
        for arm, name in named if "training_loss" in arm
    ]  # fmt: skip
    return [
        Bars(f"Test {error} by arm", bars, "Mean over seeds, with one standard error over seeds.",
             "" if percent else error, percent=percent),
        Bars("Difference to uniform", gaps, CALLED,
             "" if percent else error, points=percent),
        Table("By seed", [("seed", "Seed", "label"), *((arm["name"], name, kind) for arm, name in named)], rows),
        Lines("Training loss", [float(k + 1) for k in range(s["epochs"])], losses,
              "Of each arm on its own rows under its own weights, so the curves are not to be compared.", "epoch",
              loss_words(s["loss_function"])),
    ]  # fmt: skip


def notes_of(session: Session, config: TrainConfig, summary: dict[str, Any]) -> list[str]:
    """Return what a reader should know before trusting the figures."""
    notes = shared_in_words(summary["shared"], summary["n_samples"])
    if summary["n_seeds"] == 1:
        notes.append("One seed: nothing tells how much the errors depend on chance in training.")
    if summary["weights"] is None and session.columns.weight is None:
        notes.append("No weights were given: `weights` names the run whose weights are to be tried, or `auto`.")
    if config.data.builtin and config.data.path is None and config.test.path is None:
        notes.append("Test labels are the true ones; a share of the training labels was flipped.")
    return notes
