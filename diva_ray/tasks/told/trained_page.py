"""The page of a training run."""

from __future__ import annotations

from typing import Any

from diva_ray.config import TrainConfig
from diva_ray.engine.course import Course
from diva_ray.report import words
from diva_ray.report.sheet import Bars, Inform, Lines, Sheet, Table, Tile
from diva_ray.tasks.fit.closed import EVEN
from diva_ray.tasks.setup.alike import shared_in_words
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.told.chance import TONES
from diva_ray.tasks.told.converged import places
from diva_ray.tasks.told.measures import error_words, loss_words
from diva_ray.tasks.told.page import run_facts
from diva_ray.tasks.told.trained import given_in_words

CALLED = (
    "Below 0: better. One standard error over test rows, row against row. Called lower or higher where no "
    "95\N{NO-BREAK SPACE}% interval that is known holds 0: over test rows (1.96 standard errors), nor, of several "
    "seeds, over seeds (Student's). The closed form is held against the closed form with every row alike."
)


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
        with_all = f"the {shape(uniform['error'])} of training with every row alike"
        lost = f"Training did not converge, so that {with_all} tells nothing beside it."
        headline.append(lost if first["verdict"] == "did not converge" else f"That is {seen} {with_all}.")
    if s["n_changed"] is not None:
        headline.append(f"By the run that gave them, {given_in_words(s)}.")
    tiles = [
        Tile(arm["name"].replace("_", " "), shape(arm["error"]), _seen(arm, s), TONES.get(arm["verdict"], ""))
        for arm in s["arms"]
    ]
    facts = [
        *run_facts(session, s), ("Test rows", f"{course.test.name} ({s['n_test']:,})"),
        ("Weights", str(s["weights"] or session.columns.weight or "none")),
        ("Module", s["module"]),
        ("Training", f"SGD, {s['n_seeds']} seed(s), {s['epochs']} epochs, batches of {course.batch_size}, rate "
         f"{course.learning_rate:g}{' (auto)' * (config.learning_rate == 'auto')}, momentum {course.momentum:g}, "
         f"weight decay {course.weight_decay:g}"),
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
    if same.get(arm["name"]):
        return "the same training as uniform"
    beside = ", beside the closed form with every row alike" if arm["compared_to"] == EVEN else ""
    return f"{arm['verdict']}{beside}" if arm["verdict"] else ""


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
    decimals = places(s)
    most = None if decimals is None else max(decimals - 2, 0)  # of percentages
    over_rows = first_rows_in_words(s)
    return [
        Bars(f"Test {error} by arm", bars, f"Mean over seeds, with one standard error over seeds.{over_rows}",
             "" if percent else error, percent=percent, most=most),
        Bars("Difference to uniform", gaps, CALLED,
             "" if percent else error, points=percent, most=most),
        Table("By seed", [("seed", "Seed", "label"), *((arm["name"], name, kind) for arm, name in named)], rows),
        Lines("Training loss", [float(k + 1) for k in range(s["epochs"])], losses,
              "Of each arm on its own rows under its own weights, so the curves are not to be compared.", "epoch",
              loss_words(s["loss_function"])),
    ]  # fmt: skip


def first_rows_in_words(s: dict[str, Any]) -> str:
    """Return how much an error depends on the draw of the test rows, which seeds do not tell."""
    error = s["arms"][0]["rows_standard_error"]
    if error is None:
        return ""
    text = words.points(error).lstrip("+") if error_words(s)[1] is words.percent else words.number(error, 2)
    return f" Over the {s['n_test']:,} test rows one standard error is {text}, of {s['arms'][0]['name']}."


def notes_of(session: Session, config: TrainConfig, summary: dict[str, Any]) -> list[str]:
    """Return what a reader should know before trusting the figures."""
    notes = [*summary["warnings"], *shared_in_words(summary["shared"], summary["n_samples"])]
    notes += [Inform(said) for said in summary["notes"]]
    if summary["n_seeds"] == 1:
        notes.append("One seed: nothing tells how much the errors depend on chance in training.")
    if summary["weights"] is None and session.columns.weight is None:
        notes.append(Inform("No weights were given: `weights` names the run whose weights are to be tried, or `auto`."))
    if config.data.builtin and config.data.path is None and config.test.path is None:
        notes.append(Inform("Test labels are the true ones; a share of the training labels was flipped."))
    return notes
