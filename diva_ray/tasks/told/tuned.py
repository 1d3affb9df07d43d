"""What a search says of itself: summary, a few lines, the winner's config, and the page."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from typing import Any

import yaml

from diva_ray.config import DataConfig, TuneConfig
from diva_ray.report import words
from diva_ray.report.sheet import Inform, Sheet, Tile
from diva_ray.tasks.fit.study import Study
from diva_ray.tasks.fit.trials import Record, Trials, error_of_choosing
from diva_ray.tasks.setup.alike import shared_in_words
from diva_ray.tasks.setup.saved_config import literal
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.setup.space import NAMES, Choice, Space, short
from diva_ray.tasks.told.measures import error_words
from diva_ray.tasks.told.page import run_facts
from diva_ray.tasks.told.summary import common_figures
from diva_ray.tasks.told.tuned_plots import parts_of

RULE = (
    "error: mean over the rows of all outer folds, each judged by a model whose ridge, weights and fit never saw it; "
    "standard_error over rows (groups), low and high: 95 %, of other rows, not of other training rows. The best trial "
    "is chosen by this error among n_trials: it is too good. error_of_choosing chooses without the fold that judges; "
    "test_error is of rows that took no part in the choice"
)
SAME = ("task", "precision", "block_rows", "standard_errors", "trust_code")
JOINT = ("shrink", "weigh_doubtful")  # rules that are tried beside shares, each row keeping some weight
SAFE = (*JOINT, "weigh_uncertain")  # and by method=safe
FIT = ("intercept", "standardize", "projection", "ridge")


def figures(
    study: Study, space: Space, trials: Trials, records: list[Record], best: Record, test: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the figures of summary.json."""
    session, config, row = study.session, study.config, best.row()
    return {
        **common_figures(session, study.setup(best.choice), test["ridge"] if test else row["ridge_used"]),
        **of_winner(session, best.choice),
        "n_trials": len(records),
        "n_complete": sum(record.complete for record in records),
        "n_stopped": sum(record.stopped for record in records),
        "n_failed": sum(record.failed is not None for record in records),
        "search": config.search,
        "scheduler": config.scheduler,
        "folds": config.folds,
        "varied": list(space.dimensions),
        "best": {name: getattr(best.choice, name) for name in NAMES} | {"trial": best.number},
        "not_in_best": lost_of(best.choice),
        "error": row["error"],
        "standard_error": row["standard_error"],
        "low": row["low"],
        "high": row["high"],
        "error_of_choosing": error_of_choosing(records),
        "test_error": test and {name: test[name] for name in ("error", "standard_error", "low", "high", "rows")},
        "rule": RULE,
        "target": target_of(best.choice)[0],
        "shared": {
            "loads": 1, "passes": dict(study.passes), "fit_sums": len(study.sums), "ridges": len(study.ridges),
            "folds_judged": study.passes.get("judge", 0) - (test is not None), "folds_known_before": trials.kept,
            **session.shared,
        },
        "seconds_judging": round(trials.spent, 4),
    }  # fmt: skip


def of_winner(session: Session, choice: Choice) -> dict[str, Any]:
    """Return width and loss of the winner, which need not be the run's own."""
    widths = dict(zip(session.columns.features, session.scan.widths, strict=True))
    return {
        "n_features": sum(min(widths[name], choice.projection or widths[name]) for name in choice.bands),
        "loss_function": choice.loss,
    }


def lost_of(choice: Choice) -> list[str]:
    """Return what of a choice no options of its target job say."""
    lost = []
    if choice.loss == "callable":
        lost.append("loss: a function is given from Python, as it was to the search")
    if target_of(choice)[0] == "aggregate":
        if choice.ridge != "auto":
            lost.append(f"ridge={choice.ridge:g}: jobs/aggregate.py finds the ridge itself")
        if choice.rule not in ("none", *JOINT):
            lost.append(f"rule={choice.rule}: jobs/aggregate.py takes the steps of method=safe (weights=joint)")
            return lost
    if choice.rule == "drop_detrimental":
        times = "" if choice.steps == 1 else f", {choice.steps} times (steps={choice.steps})"
        lost.append(
            f"rule=drop_detrimental: drop the rows of samples/ in which `is_detrimental` is true, and fit again{times}"
        )
    if choice.rule == "drop_label_issues" and choice.steps > 1:
        lost.append(f"steps={choice.steps}: curate=drop drops what looks wrong once")
    if choice.rule in ("drop_detrimental", "drop_label_issues"):
        if choice.steps > 1:
            lost.append(
                "steps: rows that one step dropped, with a weight of 0 in the fit, still validated the next and shaped "
                "its verdicts, which they do not once they are gone"
            )
        lost.append(
            "ridge: it was judged with the mean weight kept, so a fit to the rows that are left takes it times their "
            "share of all rows"
        )
    if choice.rule in SAFE:
        lost.append(
            f"rule={choice.rule}: method=safe tries other steps too, and takes none that does not pay on its folds"
        )
    return lost


def target_of(choice: Choice) -> tuple[str, dict[str, Any]]:
    """Return the job that does what a choice says, and the options that make it."""
    if choice.shares == "auto" and len(choice.bands) > 1:  # which finds the ridge too
        joint = {"weights": "joint", "steps": choice.steps} if choice.rule != "none" else {}
        return "aggregate", {"ridge": "auto", **joint}
    given = {"shares": {name: choice.shares[name] for name in choice.bands}} if isinstance(choice.shares, dict) else {}
    if choice.rule in SAFE:
        return "reweight", {"method": "safe", "steps": choice.steps, **given}
    if choice.rule == "paper":
        return "reweight", {"method": "paper", "steps": choice.steps, "eta": choice.eta, **given}
    return "score", ({"curate": "drop", "labeller_doubt": "off"} if choice.rule == "drop_label_issues" else {}) | given


def best_options(config: TuneConfig, choice: Choice) -> dict[str, Any]:
    """Return the choice as options of the Python calls."""
    known = {name: getattr(choice, name) for name in FIT}
    loss = {} if choice.loss == "callable" else {"loss": choice.loss}
    same = {"task": config.task, "precision": config.precision}
    return {"features": list(choice.bands), **same, **known, **loss, "seed": config.seed, **target_of(choice)[1]}


def best_yaml(session: Session, config: TuneConfig, choice: Choice) -> str:
    """Return a config of the target job: `python jobs/JOB.py --config-dir=OUTPUT --config-name=best`."""
    job, more = target_of(choice)
    options = best_options(config, choice)
    data = {name: value for name, value in asdict(config.data).items() if value != getattr(DataConfig(), name)}
    data["features"] = options.pop("features")
    if config.data.path:
        data["path"] = _absolute(str(config.data.path))
    elif not config.data.builtin:
        data["path"] = "???"
    same = {name: getattr(config, name) for name in SAME}
    chosen = {
        "data": data,
        **({"validation": {"path": _absolute(config.validation.path or "")}} if config.validation.given else {}),
        "cluster": asdict(config.cluster),
        **{name: value for name, value in options.items() if name not in more},
        **more,
        **same,
    }
    where = {"optional cluster": config.cluster.kind}  # a group, so that cluster=local takes its place
    output = f"outputs/{job}/${{now:%Y-%m-%d_%H-%M-%S-%f}}"
    body = yaml.safe_dump(
        {"defaults": [f"{job}_schema", "_self_", where], **literal(chosen), "output": output},
        sort_keys=False, allow_unicode=True,
    )  # fmt: skip
    lost = "".join(f"# not in it: {words}\n" for words in lost_of(choice))
    place = shlex.quote(f"--config-dir={session.folder.path}")
    return f"# python jobs/{job}.py {place} --config-name=best output=FOLDER\n{lost}{body}"


def _absolute(path: str) -> str:
    """Return a path from anywhere; OmegaConf's mark of what must be given for rows that had none."""
    if not path:
        return "???"
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def told(summary: dict[str, Any]) -> list[str]:
    """Return a search in a few lines, for a terminal."""
    s = summary
    kind = error_words(s)[0]
    choice = ", ".join(f"{name} {short(s['best'][name])}" for name in s["varied"])
    lines = [
        f"{words.counted(s['n_trials'], 'trial', 'trials')} "
        f"({s['n_complete']} whole, {s['n_stopped']} stopped, {s['n_failed']} failed) of "
        f"{s['folds']} folds on {s['n_validation']:,} rows; {s['seconds_judging']:.1f} s of judging",
        f"best: {choice}",
        f"{kind} {s['error']:.4f} +- {s['standard_error']:.4f} ({s['low']:.4f} to {s['high']:.4f}): "
        + (f"the least of {s['n_trials']}, so a little too good" if s["n_trials"] > 1 else "of the only trial"),
    ]
    if s["error_of_choosing"] is not None:
        lines.append(f"chosen without the fold that judges: {kind} {s['error_of_choosing']:.4f}")
    if s["test_error"]:
        t = s["test_error"]
        lines.append(f"on {t['rows']:,} test rows: {kind} {t['error']:.4f} ({t['low']:.4f} to {t['high']:.4f})")
    passes = ", ".join(f"{count} {name}" for name, count in s["shared"]["passes"].items())
    lost = [f"note: not in best.yaml: {words}" for words in s["not_in_best"]]
    return [*lines, f"one load for all trials; passes: {passes or 'none, all was judged before'}", *lost]


def sheet_of(session: Session, space: Space, summary: dict[str, Any], rows: list[dict[str, Any]]) -> Sheet:
    """Return the contents of report.html."""
    s, (error, shape) = summary, error_words(summary)
    choice = ", ".join(f"{name} {short(s['best'][name])}" for name in s["varied"])
    headline = [
        f"Best of {s['n_trials']} trials: {choice}." if s["n_trials"] > 1 else f"The only trial: {choice}.",
        f"Its {error} on rows that took no part in it is {shape(s['error'])} ({shape(s['low'])} to "
        f"{shape(s['high'])})" + ("; the least of many is a little too good." if s["n_trials"] > 1 else "."),
    ]
    tiles = [
        Tile(
            f"{error} of the best",
            shape(s["error"]),
            f"{shape(s['low'])} to {shape(s['high'])}, over rows; trials "
            "are not compared row by row, so not known to be beyond chance",
        ),
        Tile("trials", str(s["n_trials"]), f"{s['n_stopped']} stopped, {s['n_failed']} failed"),
    ]
    if s["error_of_choosing"] is not None:
        detail = "every fold judged by the trial that is best on the others"
        tiles.append(Tile(f"{error} of choosing", shape(s["error_of_choosing"]), detail))
    if s["test_error"]:
        t = s["test_error"]
        tiles.append(Tile(f"test {error}", shape(t["error"]), f"{shape(t['low'])} to {shape(t['high'])}"))
    best = s["best"]
    chosen = ", chosen by leave-one-out without each fold (mean)" if best["ridge"] == "auto" else ""
    of_best = {
        "Features": f"{', '.join(session.columns.features)}; of the best {', '.join(best['bands'])} "
        f"({words.plural(s['n_features'], 'column', 'columns')})",
        "Loss": f"{s['loss_function']} (of the best), on {s['folds']} outer folds",
        "Ridge": words.number(s["ridge"], 4) + f" (of the best{chosen})",
    }
    facts = [
        *((name, of_best.get(name, told)) for name, told in run_facts(session, s)),
        ("Search", f"{s['search']}, scheduler {s['scheduler']}, {s['folds']} outer folds"),
        ("Space", "; ".join(f"{name}: {_values(one)}" for name, one in space.dimensions.items())),
    ]  # fmt: skip
    files = [
        "trials.parquet: every trial, its choice, error, interval and seconds",
        f"best.yaml: a config: python jobs/{s['target']}.py --config-dir=FOLDER --config-name=best",
        "folds/: what every fold said of every choice, from which a killed run goes on",
        "summary.json: every figure of this page",
    ]
    return Sheet(
        "Which options do best", headline, tiles, parts_of(space, s, rows), facts, session.runner.seconds,
        notes=[*shared_in_words(session.shared, s["n_samples"]), *map(Inform, _notes(s, rows))], downloads=files,
        footer="Each row is judged by a model for which ridge, weights and fit never saw its fold.",
    )  # fmt: skip


def _values(one: Any) -> str:
    shown = ", ".join(map(short, one.values))
    return shown if one.kind == "choice" else f"{one.kind} {shown.replace(', ', ' to ')}"


def _notes(s: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    whole = [row for row in rows if row["failed"] is None and not row["stopped"]]
    close = sum(row["error"] <= s["error"] + s["standard_error"] for row in whole) - 1
    notes = []
    notes += [f"Not in best.yaml: {words}." for words in s["not_in_best"]]
    if close:
        others = words.counted(close, "other whole trial is", "other whole trials are")
        notes.append(f"{others} within a standard error of the best.")
    notes += level_in_words(s, whole)
    if s["test_error"] and not s["test_error"]["low"] <= s["error"] <= s["test_error"]["high"]:
        notes.append(
            "The search judges by the table's own labels, wrong ones included, and the test table by its own: their "
            "errors differ where one has more wrong labels, or other samples."
        )
    if not s["test_error"]:
        notes.append("No test table was given: `test.path` would judge the best trial on rows that chose nothing.")
    return notes


def level_in_words(s: dict[str, Any], whole: list[dict[str, Any]]) -> list[str]:
    """Return why the best trial won, where others have the same error as it is written."""
    shape, best = error_words(s)[1], s["best"]["trial"]
    alike = [row for row in whole if row["trial"] != best and shape(row["error"]) == shape(s["error"])]
    if not alike:
        return []
    same = [row for row in alike if row["error"] == s["error"]]
    named = ", ".join(str(row["trial"]) for row in sorted(alike, key=lambda row: (row["error"], row["trial"]))[:5])
    why = "its error is less in further digits, which says nothing of another sample of rows"
    if same:
        why = (
            "of the same error a trial that changes no weights is taken, of those one with fewest bands, then the first"
        )
    most = " among them" if len(alike) > 5 else ""
    return [f"Trial {best} was taken, though {shape(s['error'])} is the error of trial {named} too{most}: {why}."]
