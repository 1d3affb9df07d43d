"""What a run over pairs says of itself: summary, a few lines, and the page."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from diva_ray.core.partners import CLEAR
from diva_ray.engine.reduce import Tally
from diva_ray.report import words
from diva_ray.report.sheet import Bars, Gallery, Inform, Pulls, Sheet, Terms, Tile, render_sheet
from diva_ray.tasks.fit.derived import Derived, precision_of
from diva_ray.tasks.fit.pairing import Judged
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.told.by_source import sources_table
from diva_ray.tasks.told.page import downloads, histogram, run_facts, seen, shown
from diva_ray.tasks.told.planted import found_in_words, planted_figures
from diva_ray.tasks.told.summary import common_figures, errors_of, verdict_figures
from diva_ray.tasks.told.summary_words import curated_in_words, estimates

SHOWN = 30  # pairs on the page, in either direction
NAMES = {"tag": "mismatch?", "score_name": "probability"}  # on the cards
RULES = {
    "is_label_issue": "label_score < label_threshold: the cut with the best expected F1; label_score is the "
    "probability that both sides belong together, against a few hundred other partners of either side; which pairs are "
    "right is not told",
    "is_detrimental": "z > threshold: more weight on this pair raises the summed loss of both directions, beyond "
    "chance",
    "aligned": "whether one's own partner has a larger cosine than other pairs' partners, by four standard errors: "
    "then the cosine takes part, and each side, times a slope, is the pretrained output that the fit to the other "
    "corrects",
    "slope": "of aligned towers in either direction, by a sample of 1,024 pairs: the side predicted from, centred and "
    "scaled, times it is the offset of the fit",
}


def summarise(session: Session, derived: dict[str, Derived], judged: Judged, written: Tally) -> dict[str, Any]:
    """Return the figures of summary.json."""
    counts, rule, first = session.scan.counts, judged.rule, derived["forward"]
    names = ("forward", "backward", "cosine")
    summary = {
        **common_figures(session, session.setup, first.ridge),
        "ridge": {name: one.ridge for name, one in derived.items()},
        "loss": sum(one.tally["loss"] for one in derived.values()) / counts["validation"],
        "error": {name: one.tally["wrong"] / counts["validation"] for name, one in derived.items()},
        "informed": judged.partners.informed,
        "clear": judged.partners.clear,
        "information": judged.partners.information,
        "aligned": judged.aligned,
        "alignment": judged.alignment,
        "slope": judged.slopes,
        "similarities": {
            name: {"sharpness": one.sharpness, "gain": one.gain, "weight": one.weight}
            for name, one in zip(names, judged.partners.similarities, strict=False)
        },
        **verdict_figures(rule, written),
        "rules": RULES,
        "standard_errors": errors_of(first),
        "form": first.form,
        "precision": precision_of(first),
    }
    if first.accuracy is not None:
        summary["derivative_check"] = {name: one.accuracy for name, one in derived.items()}
    return summary | planted_figures(written, session.config.data.truth)


def told(summary: dict[str, Any]) -> list[str]:
    """Return a run over pairs in a few lines, for a terminal."""
    s = summary
    expected = (
        f" ({estimates(s)}; about {s['noise_estimate']:.1%} of all pairs are such)" if s["n_label_issues"] else ""
    )
    towers = "aligned towers" if s["aligned"] else "towers that are not aligned"
    lines = [
        f"{s['n_samples']:,} pairs, {towers}; left-out squared error {s['error']['forward']:.3f} forward, "
        f"{s['error']['backward']:.3f} backward",
        f"{words.counted(s['n_label_issues'], 'pair probably does', 'pairs probably do')} not belong together"
        f"{expected}; "
        f"{words.counted(s['n_detrimental'], 'pair hurts', 'pairs hurt')} (z > {s['threshold']:.2f})",
    ]
    if s["informed"] and not s["clear"]:
        lines.append(
            f"sides tell their partners too weakly to flag any ({s['information']:.2f} nats a pair, {CLEAR:.2f} needed)"
        )
    if "exported" in s:
        lines.append(f"exported {s['exported']['rows']:,} uids to {s['exported']['file']}")
    if "curated" in s:
        lines.append(curated_in_words(s))
    return [*lines, *planted_in_words(s)]


def headline(summary: dict[str, Any]) -> list[str]:
    """Return the verdict in whole sentences, and then what it rests on."""
    s, pairs = summary, words.counted(summary["n_samples"], "pair", "pairs")
    n, hurt = s["n_label_issues"], s["n_detrimental"]
    first = f"None of {pairs} is flagged as mismatched"
    if n:
        first = f"{n:,} of {pairs} probably {'does' if n == 1 else 'do'} not belong together ({estimates(s)})"
    second = f"{hurt:,} {'hurts' if hurt == 1 else 'hurt'}" if hurt else "none hurts"
    clearly = "tells" if s["aligned"] else "does not tell"
    return [
        f"{first}; {second} (z > {s['threshold']:.2f}).",
        *map(words.sentence, planted_in_words(s)),
        f"The cosine of the two sides {clearly} partners from others; left-out squared error "
        f"{s['error']['forward']:.3f} forward, {s['error']['backward']:.3f} backward.",
    ]


def planted_in_words(summary: dict[str, Any]) -> list[str]:
    """Return what was found of what is known to be wrong, if it is known."""
    if "planted" not in summary:
        return []
    p = summary["planted"]
    known = words.counted(p["n_planted"], "pair does", "pairs do")
    return [f"{known} not belong together by `{p['by']}`, found {p['n_found']:,}: {found_in_words(p)}"]


def page_of(session: Session, summary: dict[str, Any], written: Tally, sources: pa.Table | None) -> str:
    """Return report.html."""
    s, (first, second) = summary, session.columns.features
    worst, hurting = written["examples"].worst[:SHOWN], shown(session, written["hurting"].worst[:SHOWN])
    edges, counts, issues = histogram(written)
    gains = [
        {"label": name, "value": one["gain"], "detail": f"weight {one['weight']:.2f}", "strong": one["weight"] > 0.3}
        for name, one in s["similarities"].items()
    ]
    title = "Probably mismatched" if s["n_label_issues"] else "Least probable pairs (none is flagged)"
    called, turned = closer(session, worst), swapped(session, worst)
    parts: list[Any] = [
        Gallery(f"{title}: what {first} calls for", called,
                f"Each pair as it is, least probable first; below it, what suits {first} better among sampled pairs.",
                "closer"),
        Gallery(f"The same pairs: what {second} calls for", turned, swapped_in_words(turned, first, second), "closer"),
        Gallery(words.hurting("Pairs that hurt most", s["n_detrimental"]), [{**row, **NAMES} for row in hurting],
                "By z, of the summed loss of predicting either side from the other."),
        Bars("What each similarity tells", gains,
             "Mean log likelihood of a pair above chance, in nats; the weights add them up.", " nats"),
        Pulls("Which way the pairs pull", edges, counts, issues, s["threshold"], s["n_detrimental"], "Pairs by z.",
              ("pair", "pairs"), "looks mismatched"),
    ]  # fmt: skip
    parts += sources_table(sources, "Pairs", "Mismatched")
    parts.append(reading(s, first, second))
    rule = estimates(s)
    tiles = [
        Tile("pairs", f"{s['n_samples']:,}", f"{s['n_outputs']:,} numbers each"),
        Tile("probably mismatched", f"{s['n_label_issues']:,}", rule, "issue"),
        Tile("of all pairs mismatched", words.percent(s["noise_estimate"]), "estimated", "issue"),
        Tile("pairs hurt", f"{s['n_detrimental']:,}", f"z > {s['threshold']:.2f}", "hurts"),
        Tile("towers", "aligned" if s["aligned"] else "not aligned", f"z {s['alignment']:.1f} of their cosine"),
    ]
    sheet = Sheet(
        "Which pairs belong together", headline(s), tiles, parts, run_facts_of(session, s),
        session.runner.seconds,
        notes=notes_of(s), downloads=[*downloads(sources is not None, "curated" in s), *exported(s)],
        footer="Each derivative is of the left-out loss of predicting either side from the other (DIVA, ICLR 2022).",
    )  # fmt: skip
    return render_sheet(sheet)


def reading(summary: dict[str, Any], first: str, second: str) -> Terms:
    """Return what the figures mean, and what to do before anything is dropped."""
    precision = summary["label_issue_precision"]
    right = (
        f" About {100 * precision:.0f} in 100 of the flagged pairs should really be mismatched." if precision else ""
    )
    cosine = ", and their cosine where that tells partners from others" if summary["aligned"] else ""
    return Terms("How to read this", [
        ("Mismatched", "",
         f"What is predicted of {second} from {first}, and the other way round, without the pair itself{cosine}, suits "
         "other partners better than its own. The label score runs from 0, probably [issue: mismatched], to 1, both "
         f"belong together.{right}"),
        ("Derivative, in loss per unit of weight", "",
         "How the left-out loss of predicting either side from the other changes as one pair gets more weight. [hurts: "
         "Above\N{NO-BREAK SPACE}0 it rises: the pair hurts.] [helps: Below\N{NO-BREAK SPACE}0 it falls: the pair "
         "helps.]"),
        ("z, without unit", "hurts",
         "The derivative divided by its standard error: how sure its sign is. A pair counts as [hurts: hurting] when z "
         f"is above {words.number(summary['threshold'])}."),
        ("Before you drop", "",
         "Two texts that are nearly synonyms, or two pictures of one thing, look like swapped partners. Look at a few "
         "pairs near the cut first: rank by the label score, not by the derivative, to find mismatches."),
    ])  # fmt: skip


def run_facts_of(session: Session, summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was run."""
    ridges = ", ".join(f"{words.number(value, 4)} {name}" for name, value in summary["ridge"].items())
    chosen = " (chosen by leave-one-out)" if session.config.ridge == "auto" else ""
    facts = run_facts(session, {**summary, "ridge": 0.0})
    return [("Ridge", ridges + chosen) if name == "Ridge" else (name, value) for name, value in facts]


def notes_of(summary: dict[str, Any]) -> list[str]:
    """Return what a reader should know."""
    notes = []
    if not summary["informed"]:
        notes.append(
            "Neither side tells its partner from others' beyond chance: nothing is said of who belongs together."
        )
    elif not summary["clear"]:
        notes.append(
            f"Sides tell their partners too weakly ({summary['information']:.2f} nats a pair that belongs, {CLEAR:.2f} "
            "needed) to say which share is mismatched: nothing is flagged. label_score and log_odds still rank pairs."
        )
    elif not summary["n_label_issues"]:
        notes.append(Inform("The share of mismatched pairs could not be told from none."))
    if summary["standard_errors"] != "exact":
        notes.append(Inform(f"Standard errors are estimated from {summary['standard_errors']}."))
    return notes


def exported(summary: dict[str, Any]) -> list[str]:
    """Return the export, for the list of files."""
    return ["subset.npy: sorted uids of the pairs to keep, in DataComp's format"] if "exported" in summary else []


def place(row: dict[str, Any]) -> int:
    """Return where a row lies in the table as it was given."""
    return row.get("__row__", row["row"])


def closer(session: Session, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return pairs as they are, each with the text (or id) of the sampled pair that suits its first side."""
    key, found = "better_second", []
    known = seen(session, [row[key] for row in rows] + [place(row) for row in rows])
    for row in rows:
        other = known[row[key]].get("text")
        found.append({**as_card(row), **known[place(row)],
                      "closer": f"closer: {other}" if other else f"closer: row {row[key]}"})  # fmt: skip
    return found


def swapped(session: Session, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each pair's text beside the picture of the sampled pair that suits its second side."""
    found, known = [], seen(session, [row["better_first"] for row in rows] + [place(row) for row in rows])
    for row in rows:
        own, other = known[place(row)], known[row["better_first"]]
        pictured = {"picture": other["picture"]} if "picture" in other else {}
        text = {"text": own["text"]} if "text" in own else {}
        told = f"row {row['better_first']}" if pictured or "text" not in other else other["text"]
        found.append(
            {**as_card(row), **pictured, **text, "closer": f"picture of {told}" if pictured else f"suits {told}"}
        )
    return found


def swapped_in_words(rows: list[dict[str, Any]], first: str, second: str) -> str:
    """Return what `swapped` could show: a picture, else the text, else the row of the pair that suits best."""
    best = f"the sampled pair whose {first} suits this {second} best"
    if any("picture" in row for row in rows):
        return f"The {second} of each, beside the picture of {best}."
    if any("text" in row for row in rows):
        return f"The text of each; below it, the text of {best}. No picture was given to show (`data.show`)."
    return f"Each pair with the row of {best}. Nothing was given to show (`data.show`)."


def as_card(row: dict[str, Any]) -> dict[str, Any]:
    """Return what a card shows of a pair."""
    kept = ("id", "z", "loss", "label_score", "is_label_issue", "is_detrimental", "source", "weight")
    card = {name: row[name] for name in kept if name in row}
    return {**card, **NAMES}
