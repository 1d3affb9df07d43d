"""What an aggregation says of itself: summary, bands.json, a few lines, and the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from diva_ray.core.bands import share_derivatives, shares_of
from diva_ray.engine.reduce import Tally
from diva_ray.report import words
from diva_ray.report.sheet import Bars, Gallery, Inform, Lines, Pulls, Sheet, Table, Tile
from diva_ray.tasks.fit.derived import Derived
from diva_ray.tasks.fit.few_validate import NOTE
from diva_ray.tasks.fit.shares import Aggregated
from diva_ray.tasks.setup.options import UNDER
from diva_ray.tasks.setup.session import Session, error_kind
from diva_ray.tasks.told.by_source import table_by_z
from diva_ray.tasks.told.chance import CLEAR
from diva_ray.tasks.told.joint import Joint, moved, tiles_of, verdict_in_words, weights_of
from diva_ray.tasks.told.measures import SHARES, error_words, figure_words
from diva_ray.tasks.told.page import histogram, notes_of, run_facts, shown
from diva_ray.tasks.told.reweighted import LOSS
from diva_ray.tasks.told.summary import error_of
from diva_ray.tasks.told.summary_words import warnings_of

MEANING = {
    "penalty": "ridge on the band's columns, standardised as `standardize` says: common ridge / share",
    "share": "ridge / penalty; shares add up to 1. How freely the band is used beside the others, not what it adds to "
    "them: with a share near 0 it may be well in use beside one of hardly any penalty",
    "error_together": "left-out error of a fit to all bands under their penalties: what error_alone, error_without and "
    "error_concatenated stand beside; a band adds what error_without is worse by",
    "error_alone": "left-out error of a fit to this band only, under its own best ridge",
    "error_without": "left-out error of a fit to all other bands, under their shares and a ridge of their own",
    "share_derivative": "dL/dshare at a fixed ridge, L the summed left-out squared error, where that is least: "
    "near 0 but for a band that the search has driven out of use; < 0: a larger share would lower L",
    "ridge_multiple": "penalties over those with the least left-out squared error (squared_error): the multiple "
    "nearest to 1 under which classes are wrong no more often than under the best, but for one standard error",
    "toward_all_rows": "how far the penalties lie, in logarithms, from those that the rows that validate ask for (0, "
    "also where all do) to those of all rows (1): as far as the former lose no more than chance allows; then "
    "squared_error and share_derivative are not at their least",
    "weights": "errors and squared errors of bands, together, alone, without and concatenated, and what follows from "
    "them, are those under the weights as given and the penalties first found; penalties and shares were found once "
    "more under the weights accepted, rows validating as much less as they weigh. `error` and `loss` are under "
    "those, on the rows that chose them: too good. error_uniform and error_reweighted, on folds that took no part, "
    "are errors like `error`, of numbers mean squared errors. gain = loss_uniform - loss_reweighted decides: weights "
    "are accepted where it is above half a standard error over those given under any of three ridges; "
    f"{LOSS}. chosen names the ridge of its trial too. The best of all that was tried is chosen on these folds: its "
    "figures are a little too good",
}
SHOWN = 12  # samples of a band on the page
AGAINST = (
    "The given label suits another band, which alone predicts better than guessing, but not this one: this side of the "
    "sample may be bad or belong elsewhere. By how much better the other band's own fit predicts the label (columns "
    "margin_... or loss_... of samples/)."
)


def figures(session: Session, found: Aggregated, joint: Joint | None, error: float) -> dict[str, Any]:
    """Return what summary.json says beyond a scoring run, in which all bands together have `error`."""
    total, names = session.scan.counts["validation"], session.columns.features
    penalties = found.multiple * found.penalties if joint is None else joint.penalties
    ridge, shares = shares_of(penalties)
    _, derivatives = share_derivatives(total * found.gradient, found.penalties)
    under = {name: getattr(session.config, name) for name in UNDER}
    if session.config.projection is None:
        del under["seed"]
    bands = {
        name: {
            "penalty": float(penalties[m]),
            "share": float(shares[m]),
            "share_derivative": float(derivatives[m]),
            "columns": min(session.scan.widths[m], session.config.projection or session.scan.widths[m]),
            "rows": int(session.scan.rows[m]),
            **under,
            "ridge_alone": found.alone[m].ridge,
            "error_alone": error_of(session, found.alone[m].wrong),
            "error_without": error_of(session, found.without[m].wrong),
            "squared_error_alone": found.alone[m].loss,
            "squared_error_without": found.without[m].loss,
        }
        for m, name in enumerate(names)
    }
    kept = joint is None or not joint.taken
    word = error_kind(session.validation)
    result: dict[str, Any] = {
        "ridge": ridge,
        "bands": bands,
        "error_together": error if kept else error_of(session, found.wrong),
        "squared_error": found.loss,
        "ridge_multiple": found.multiple if joint is None else joint.multiple,
        "squared_error_concatenated": found.together.loss,
        "error_concatenated": error_of(session, found.together.wrong),
        "ridge_concatenated": found.together.ridge,
        "toward_all_rows": found.toward,
        "evaluations": found.evaluations,
        "starts": [
            {"start": one.start, "squared_error": one.loss, "evaluations": len(one.losses),
             "penalties": dict(zip(names, one.penalties.tolist(), strict=True))}
            for one in found.descents
        ],
        "meaning": {name: said.replace("left-out", word) for name, said in MEANING.items()},
    }  # fmt: skip
    if joint is not None:
        result["weights"] = weights_of(joint)
    return result


def told(summary: dict[str, Any], where: str) -> list[str]:
    """Return an aggregation in a few lines, for a terminal; `where` is its bands.json."""
    s, word = summary, figure_words(summary)[0]
    gain = (s["error_concatenated"] - s["error_together"]) * (1 if s["task"] in SHARES else -1)  # of R2 more is better
    joined = ", to a table with the weights of samples/, joined by id, in a column (data.weight=NAME)"
    use, given = (f"use them{joined}", ", weights as given") if moved(s) else ("use them", "")
    alone, first = best_alone(summary), next(iter(summary["bands"].values()))
    verdict = verdict_in_words(s, "{:.4f}".format)
    without = ", ".join(f"{name} {band['error_without']:.4f}" for name, band in s["bands"].items())
    lines = [
        f"{s['n_samples']:,} samples, {len(s['bands'])} bands{given}: {error_kind(s['validation'])} {word} "
        f"{s['error_together']:.4f}; all under one ridge {s['error_concatenated']:.4f}, best alone "
        f"{s['bands'][alone]['error_alone']:.4f} ({alone})",
        "shares (ridge / penalty): "
        + ", ".join(f"{name} {band['share']:.3g}" for name, band in s["bands"].items())
        + f"; what a band adds shows in the {word} without it: {without}",
        f"{use}: jobs/score.py ridge={s['ridge']:.6g} shares={where}"
        + "".join(f" {name}={first[name]}" for name in ("projection", "seed") if first.get(name) is not None),
        *(["note: one ridge for all bands does as well"] if gain <= 0 else []),
        *map(words.plain, ["; ".join(verdict)] if verdict else []),
    ]
    return lines + [f"warning: {warning}" for warning in warnings_of(s)]


def best_alone(summary: dict[str, Any]) -> str:
    """Return the band with the least left-out squared error alone."""
    return min(summary["bands"], key=lambda name: summary["bands"][name]["squared_error_alone"])


def telling(session: Session, alone: list[Any], rows: Tensor | None) -> list[bool]:
    """Return which bands alone predict better than guessing, by the rows of every class: the most frequent class,
    beyond chance; of numbers their mean. Of several labels all are taken to."""
    errors = [error_of(session, fit.wrong) for fit in alone]
    if session.task == "classification" and rows is not None:
        guessing, validating = 1 - float(rows.max() / rows.sum()), _rows_validating(session)
        return [error + CLEAR * _spread(error, validating) < guessing for error in errors]
    return [session.task == "multilabel" or error > 0 for error in errors]


def _rows_validating(session: Session) -> float:
    """Return how many rows of one weight would tell as much as those that validate (Kish 1965)."""
    return session.scan.counts["validation"] ** 2 / session.scan.counts["validation_squares"]


def _spread(error: float, rows: float) -> float:
    return float(np.sqrt(max(error * (1 - error), 0) / rows))


def by_chance(session: Session, summary: dict[str, Any]) -> str:
    """Return why a band that tells nothing may err more than guessing would, where one does."""
    guessing = 1 - 1 / session.setup.outputs
    left_out = summary["task"] == "classification" and summary["validation"] == "leave-one-out"
    if not left_out or max(b["error_alone"] for b in summary["bands"].values()) <= guessing:
        return ""
    return " A band that tells nothing errs more than guessing: leaving a row out makes its own class the rarer one."


def sheet_of(
    session: Session,
    derived: Derived,
    found: Aggregated,
    summary: dict[str, Any],
    written: Tally,
    sources: pa.Table | None,
) -> Sheet:
    """Return the contents of report.html."""
    s, alone, (word, show) = summary, best_alone(summary), figure_words(summary)
    which = error_kind(s["validation"])
    given, under = _weights_in_words(s)
    headline = [
        f"{len(s['bands'])} bands together{given}: {which} {word} {show(s['error_together'])}, against "
        f"{show(s['error_concatenated'])} under one ridge and {show(s['bands'][alone]['error_alone'])} with {alone} "
        "alone.",
        *map(words.sentence, verdict_in_words(s, error_words(s)[1])[:1]),  # a tile says more
    ]
    tiles = [
        Tile(f"{which} {word}", show(s["error_together"]), f"shares found{given}; not compared row by row, so not "
             "known to be beyond chance"),
        *tiles_of(s),
        Tile("one ridge for all", show(s["error_concatenated"]), f"ridge {s['ridge_concatenated']:.3g}"),
        Tile("best band alone", show(s["bands"][alone]["error_alone"]), alone),
        Tile("samples hurt", words.count(s["n_detrimental"]), f"z > {s['threshold']:.2f}", "hurts"),
        Tile("labels look wrong", words.count(s["n_label_issues"]), f"under {under}", "issue"),
    ]  # fmt: skip
    edges, counts, issues = histogram(written)
    parts: list[Any] = [
        _bars_of(session, s), _table_of(s), _search_of(found, s),
        Pulls("Which way the samples pull", edges, counts, issues, s["threshold"], s["n_detrimental"],
              f"Samples by z, under {under}."),
        Gallery(words.hurting("Samples that hurt most", s["n_detrimental"]),
                shown(session, written["examples"].worst), f"By z, under {under}."),
    ]  # fmt: skip
    for name in s["bands"]:
        against = [row for row in written[f"against_{name}"].worst if row["gap"] > 0][:SHOWN]
        if against:
            parts.append(Gallery(f"Where {name} stands alone", shown(session, against), AGAINST))
    parts += table_by_z(sources, [("source", "Source", "label"), ("n", "Samples", "count"), ("z", "z", "z")])
    files = [
        "bands.json: penalty, share and errors of every band; other jobs take it as `shares=`",
        f"samples/: derivative, z and verdicts of every sample under {under}",
        "summary.json: every figure of this page, and what it means",
    ]
    leaning = [Inform(NOTE.format(words.percent(found.toward)))] if found.toward else []
    return Sheet(
        "Which modalities count", headline, tiles, parts, run_facts(session, s), session.runner.seconds,
        notes=notes_of(session, derived, s) + leaning, downloads=files,
        footer=f"Shares are found by the exact gradient of the {which} error (DIVA, ICLR 2022, section 3.4).",
    )  # fmt: skip


def _weights_in_words(summary: dict[str, Any]) -> tuple[str, str]:
    """Return under which weights errors are compared, and under which samples are judged."""
    return (", weights as given", "the shares and weights found") if moved(summary) else ("", "the shares found")


def _bars_of(session: Session, summary: dict[str, Any]) -> Bars:
    """Return the errors of all bands, of each alone and without each, side by side."""
    s, word, which = summary, figure_words(summary)[0], error_kind(summary["validation"])
    validating = _rows_validating(session)
    how = "Leave-one-out" if which == "left-out" else f"On {s['n_validation']:,} rows of the validation table"
    bars = [
        ("all bands, shares found", s["error_together"], True),
        ("all bands, one ridge", s["error_concatenated"], False),
        *((f"{name} alone", band["error_alone"], False) for name, band in s["bands"].items()),
    ]
    if len(s["bands"]) > 2:
        bars += [(f"without {name}", band["error_without"], False) for name, band in s["bands"].items()]
    one_label = s["task"] == "classification"  # of several labels, none says how much a row tells
    drawn = [
        {"label": name, "value": value, "error": _spread(value, validating) if one_label else None, "strong": strong}
        for name, value, strong in bars
    ]
    text = f"{how}, every fit under its own best ridge{_weights_in_words(s)[0]}." + by_chance(session, s)
    return Bars(f"{which.capitalize()} {word}", drawn, text, percent=s["task"] in SHARES)


def _table_of(summary: dict[str, Any]) -> Table:
    """Return share, penalty and errors of every band."""
    s, (word, show) = summary, figure_words(summary)
    kind = "percent" if s["task"] in SHARES else "fixed3"
    told = (
        "A share is ridge / penalty: how freely a band is used beside the others, not what it adds to them. That is "
        f"how much worse than {show(s['error_together'])}, with all bands, the {word} without it is: a band "
        "whose absence costs nothing can be left out, whatever its share."
    )
    if moved(s):
        told += " Errors are under the weights as given, shares and penalties those found under the weights accepted."
    columns = [
        ("band", "Band", "label"), ("share", "Share", "percent"), ("penalty", "Penalty", "number"),
        ("columns", "Columns", "count"), ("rows", "Rows that have it", "count"),
        ("error_alone", f"{word} alone", kind), ("error_without", f"{word} without", kind),
    ]  # fmt: skip
    return Table("Bands", columns, [{"band": name, **band} for name, band in s["bands"].items()], told)


def _search_of(found: Aggregated, summary: dict[str, Any]) -> Lines:
    """Return how the squared error fell, start by start."""
    longest = max(len(one.losses) for one in found.descents)
    lines = [
        {
            "name": f"from {one.start}",
            "y": [*one.losses, *[None] * (longest - len(one.losses))],
            "strong": bool((one.penalties == found.penalties).all()),
        }
        for one in found.descents
    ]
    return Lines(
        "The search", [float(k + 1) for k in range(longest)], lines,
        f"Mean {error_kind(summary['validation'])} squared error, evaluation by evaluation; starts that end alike "
        "found the same shares.", "evaluation", "squared error",
    )  # fmt: skip
