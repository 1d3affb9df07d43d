"""What the page of a scoring run shows: which samples hurt, which labels look wrong."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from diva_ray.core.compare import wilson
from diva_ray.core.verdict import MOST_DETRIMENTAL
from diva_ray.engine.reduce import Tally
from diva_ray.report import words
from diva_ray.report.sheet import Facts, Gallery, Pulls, Sheet, Table, Terms, Tile
from diva_ray.tasks.fit.derived import Derived
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.told.by_source import sources_table
from diva_ray.tasks.told.measures import figure_words
from diva_ray.tasks.told.page import downloads, histogram, notes_of, run_facts, shown
from diva_ray.tasks.told.summary_words import estimates, hurt_by_loss_alone, tells_nothing, validating

SUSPECTS, BEST = 30, 12  # labels that look most wrong, and samples that help most (or are doubtful), on the page
CLASSES, CONFUSED = 30, 25  # rows of their tables
ARROW = "Given label → prediction without the sample."
FIGURES = [("precision", "precision"), ("recall", "recall"), ("f1", "F1"), ("auc_label_score", "AUC label score"),
           ("auc_z", "AUC z"), ("auc_margin", "AUC margin")]  # fmt: skip


def sheet_of(
    session: Session, derived: Derived, summary: dict[str, Any], written: Tally, sources: pa.Table | None
) -> Sheet:
    """Return the contents of report.html."""
    s, (edges, counts, issues) = summary, histogram(written)
    doubtful = written["suspects"].worst
    suspects = [row for row in doubtful if row["is_label_issue"]][:SUSPECTS]
    if not suspects and not tells_nothing(s):
        suspects = doubtful[:BEST]
    worst, best = written["examples"].worst, written["examples"].best[:BEST]
    parts: list[Any] = [
        reading(s),
        *against_truth(s),
        Pulls("Which way the samples pull", edges, counts, issues, s["threshold"], s["n_detrimental"], "Samples by z."),
        *galleries(s, shown(session, suspects), shown(session, worst), shown(session, best)),
        *classes_table(classes_of(session, derived, written)),
        *confused_table(confused(session, derived.setup, written)),
        *sources_table(sources, "Samples", "Look wrong"),
    ]  # fmt: skip
    facts = [*run_facts(session, s), ("Standard errors", s["standard_errors"]), ("Precision", s["precision"])]
    return Sheet(
        "What each sample is worth", headline(s), tiles(s), parts, facts, session.runner.seconds,
        notes=notes_of(session, derived, s), downloads=downloads(sources is not None, "curated" in s),
        footer=f"Each number is a derivative of the {left_out(s)} loss with respect to the weight of one sample (DIVA, "
        "ICLR 2022). Made by diva_ray.",
    )  # fmt: skip


def left_out(summary: dict[str, Any]) -> str:
    """Return the word before `loss` and `error`."""
    return "leave-one-out" if summary["validation"] == "leave-one-out" else "validation"


def error_in_words(summary: dict[str, Any]) -> tuple[str, str]:
    """Return name and value of `error`, which is a share of errors or, of numbers, R²."""
    name, shape = figure_words(summary)
    return name.replace("R2", "R²"), shape(summary["error"])


def headline(summary: dict[str, Any]) -> list[str]:
    """Return what came out, in two plain sentences."""
    s, (name, error) = summary, error_in_words(summary)
    n, hurt = s["n_label_issues"], s["n_detrimental"]
    wrong = words.plural(n, "label looks", "labels look").capitalize() + " wrong"
    wrong += f" (estimated precision {words.fixed(s['label_issue_precision'])})" if n else ""
    mostly = ", most of them by the loss alone: they are predicted right" if hurt_by_loss_alone(s) else ""
    return [
        f"{words.plural(s['n_samples'], 'sample', 'samples')}, {left_out(s)} {name} {error}{validating(s)}.",
        f"{wrong}, {words.plural(hurt, 'sample hurts', 'samples hurt')}{mostly}.",
    ]


def tiles(summary: dict[str, Any]) -> list[Tile]:
    """Return the figures at the top."""
    s, (name, error) = summary, error_in_words(summary)
    features, outputs = (words.plural(s[f"n_{one}s"], one, f"{one}s") for one in ("feature", "output"))
    noise = "estimated" if s["noise_estimate"] else "none that could be told from hard samples"
    return [
        Tile("samples", words.count(s["n_samples"]), f"{features}, {outputs}"),
        Tile(f"{left_out(s)} {name}", error, f"mean loss {words.number(s['loss'])}"),
        Tile("samples hurt", words.count(s["n_detrimental"]), hurting_in_words(s),
             "" if hurt_by_loss_alone(s) else "hurts"),
        Tile("labels look wrong", words.count(s["n_label_issues"]), estimates(s) if s["n_label_issues"] else "",
             "issue"),
        Tile("of all labels wrong", words.percent(s["noise_estimate"]), noise),
    ]  # fmt: skip


def hurting_in_words(summary: dict[str, Any]) -> str:
    """Return how large a share of the samples hurts, from which z on, and how many of their labels are wrong."""
    s = summary
    told = f"{words.percent(s['n_detrimental'] / s['n_samples'])}, z > {words.number(s['threshold'])}"
    precision = s["detrimental_precision"]  # an estimate, unless the truth is known
    if not s["n_detrimental"] or precision is None:
        return told
    true = s.get("planted", {}).get("precision_detrimental")
    share = f"an estimated {words.percent(precision)}" if true is None else words.percent(true)
    return f"{told}, {share} of them wrong labels"


def reading(summary: dict[str, Any]) -> Terms:
    """Return what the figures mean, and what to do before anything is deleted."""
    s, precision = summary, summary["label_issue_precision"]
    cut = ", the cut that finds most of the wrong labels for the fewest right ones"
    if not s["noise_estimate"]:
        cut = ", which at most 5 in 100 pass, since no wrong labels show"
    elif (s["detrimental_precision"] or 0) < 0.5 and s["n_detrimental"] <= MOST_DETRIMENTAL * s["n_samples"]:
        cut = ", which at most 5 in 100 pass: z tells few of the wrong labels here"
    right = f" About {100 * precision:.0f} in 100 of the flagged labels should really be wrong." if precision else ""
    return Terms("How to read this", [
        ("Derivative, in loss per unit of weight", "",
         f"How the {left_out(s)} loss changes as one sample gets more weight. [hurts: Above\N{NO-BREAK SPACE}0 it "
         "rises: the sample hurts.] [helps: Below\N{NO-BREAK SPACE}0 it falls: the sample helps.]"),
        ("z, without unit", "hurts",
         "The derivative divided by its standard error: how sure its sign is. A sample counts as [hurts: hurting] when "
         f"z is above {words.number(s['threshold'])}{cut}."),
        ("Label looks wrong", "issue",
         "The prediction made without the sample contradicts its label. The label score runs from 0, probably "
         f"[issue: wrong], to 1.{right}"),
        ("Before you delete", "",
         "A sample that hurts can still be right: rare, hard, or one of many copies. Look at it first, correct its "
         "label, or lower its weight."),
    ])  # fmt: skip


def against_truth(summary: dict[str, Any]) -> list[Facts]:
    """Return what was found of what is known to be wrong, where it is known."""
    if "planted" not in summary:
        return []
    p, n, by = summary["planted"], summary["planted"]["n_planted"], summary["planted"]["by"]
    title, wrong = "What was planted, what was found", "planted"
    known = f"{'was' if n == 1 else 'were'} made wrong on purpose"
    if by:
        title, wrong = "What is wrong, what was found", "wrong"
        known = f"{'differs' if n == 1 else 'differ'} from `{words.clip(by, 200)}`"
    precision = words.percent(p["precision"])
    share = "" if p["precision"] is None else f", and [strong: {precision}] of all labels it flagged were {wrong}"
    return [Facts(
        title,
        [(name, words.fixed(p[key], 3)) for key, name in FIGURES if p.get(key) is not None],
        f"{words.plural(n, 'label', 'labels').capitalize()} in this table {known}. The rule found "
        f"[strong: {p['n_found']:,}] of them{share}. The scores did not see the truth.",
        "AUC: chance that a wrong label ranks before a right one; 0.5 is guessing, 1 is perfect.",
    )]  # fmt: skip


def galleries(summary: dict[str, Any], suspects: list, worst: list, best: list) -> list[Gallery]:
    """Return the samples whose labels look most wrong, those that hurt most and those that help most."""
    bare = not any("picture" in row or "text" in row for row in worst)
    hint = " The table had no column of pictures or texts to show; `data.show` names one." if bare else ""
    worst_title = words.hurting("The samples that hurt most", summary["n_detrimental"])
    found = [
        Gallery(
            "The labels that look most wrong"
            if summary["n_label_issues"]
            else "Most doubtful labels (none is called wrong)",
            suspects,
            f"Least label score first. {ARROW}",
        ),
        Gallery(worst_title, worst, ARROW + hint, filters=True),
        Gallery("The samples that help most", best),
    ]
    return [part for part in found if part.rows]


def classes_of(session: Session, derived: Derived, written: Tally) -> list[dict[str, Any]]:
    """Return every class with its left-out error and counts."""
    if session.task != "classification":
        return []
    t, classes = derived.tally, derived.setup.classes
    assert classes is not None
    return [
        {
            "label": str(session.named(label)), "n": int(t["class_n"][k]),
            "error": float(t["class_wrong"][k] / max(t["class_n"][k], 1)),
            "loss": float(t["class_loss"][k] / max(t["class_n"][k], 1)),
            "n_detrimental": int(written["class_detrimental"][k]), "n_label_issues": int(written["class_issues"][k]),
        }
        for k, label in enumerate(classes.to_pylist())
    ]  # fmt: skip


def cautious_error(error: float, n: int) -> float:
    """Return the lower end of Wilson's interval (one standard error): small classes are not called worst by chance."""
    return wilson(error, float(n), 1.0)[0] if n else 0.0


def classes_table(classes: list[dict[str, Any]]) -> list[Table]:
    """Return the classes most surely predicted wrongly."""
    columns = [("label", "Class", "label"), ("n", "Samples", "count"), ("error", "Wrongly predicted", "wrong"),
               ("loss", "Loss", "fixed3"), ("n_detrimental", "Hurt", "count"),
               ("n_label_issues", "Looks wrong", "count")]  # fmt: skip
    rows = sorted(classes, key=lambda row: cautious_error(row["error"], row["n"]), reverse=True)
    intro = (
        "Predictions made without the sample, against the given label. Worst first; a few samples are weak evidence."
    )
    return [Table("Classes", columns, rows, intro, CLASSES)] if rows else []


def confused(session: Session, setup: Any, written: Tally) -> list[dict[str, Any]]:
    """Return pairs of classes by how often one was predicted for the other."""
    if "pairs" not in written:
        return []
    names = [session.named(label) for label in setup.classes.to_pylist()]
    return [
        {"given": str(names[code // len(names)]), "predicted": str(names[code % len(names)]), "n": n,
         "n_label_issues": issues}
        for code, (n, issues) in sorted(written["pairs"].items(), key=lambda item: -item[1][0])
    ]  # fmt: skip


def confused_table(pairs: list[dict[str, Any]]) -> list[Table]:
    """Return the pairs of classes that are most often confused."""
    columns = [("given", "Given", "label"), ("predicted", "Predicted", "label"), ("n", "Samples", "most"),
               ("n_label_issues", "Looks wrong", "count")]  # fmt: skip
    return [Table("Most often confused", columns, pairs, most=CONFUSED)] if pairs else []
