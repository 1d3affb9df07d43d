"""The page of a scoring run: which samples hurt, which labels look wrong."""

from dataclasses import dataclass, field, replace

from diva_ray.report import charts, frame, words

MAX_CLASSES = 30
MAX_PAIRS = 25


@dataclass(frozen=True)
class ScoreReport:
    """Everything the page of a scoring run shows, as plain Python values; lists may be empty."""

    title: str
    task: str = "classification"  # or regression, multilabel, vector
    run: list[tuple[str, str]] = field(default_factory=list)  # what was run: (name, value)
    summary: dict = field(default_factory=dict)  # keys of summary.json; any may be missing
    z_edges: list[float] = field(default_factory=list)
    z_counts: list[int] = field(default_factory=list)
    z_issue_counts: list[int] = field(default_factory=list)  # same bins, rows whose label looks wrong
    classes: list[dict] = field(default_factory=list)  # label, n, error, loss, n_detrimental, n_label_issues
    confused: list[dict] = field(default_factory=list)  # given, predicted, n, n_label_issues
    worst: list[dict] = field(default_factory=list)  # samples, shown in this order
    best: list[dict] = field(default_factory=list)
    suspects: list[dict] = field(default_factory=list)  # samples whose label looks wrong, least label_score first
    sources: list[dict] = field(default_factory=list)  # source, n, derivative, standard_error, z, n_detrimental
    planted: dict | None = None  # n_planted, n_found, precision, recall, f1, auc_label_score, auc_z, auc_margin
    notes: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)  # relative path, then what it holds
    validation: str = "leave-one-out"  # word before `error` and `loss`; `validation` for a separate table


def render_score_page(report: ScoreReport) -> str:
    """One self-contained HTML page: no network, readable without scripts.

    Ids, labels, texts and pictures are taken as hostile: texts are escaped, pictures decoded, shrunk and
    encoded again (`diva_ray.report.pictures`), and the page's own policy allows only its own script.
    Cost: proportional to the samples shown, at most 60 cards or 200 rows per gallery and 30 classes.
    """
    report = replace(report, summary=frame.known(report.summary), planted=frame.known(report.planted or {}))
    return frame.template("score.html.j2").render(
        report=report,
        summary=report.summary,
        validation=words.clip(report.validation, 40),
        headline=headline(report),
        tiles=_tiles(report),
        histogram=charts.histogram(
            report.z_edges, report.z_counts, report.z_issue_counts, report.summary.get("threshold")
        ),
        classes=_classes(report.classes),
        confused=_confused(report.confused),
        worst=_gallery(report.worst, report.task),
        worst_title=words.hurting("The samples that hurt most", report.summary.get("n_detrimental")),
        best=_gallery(report.best, report.task),
        suspects=_gallery(report.suspects, report.task),
        phases=frame.phases(report.summary.get("seconds")),
        **frame.frame("page.css"),
    )


def headline(report: ScoreReport) -> list[str]:
    """What came out, in at most two plain sentences; what the summary lacks is left out."""
    known = report.summary
    first, second = [], []
    if "n_samples" in known:
        first.append(words.plural(known["n_samples"], "sample", "samples"))
    if words.finite(known.get("error")) is not None:
        name, text = _error(report)
        heard = words.finite(known.get("n_validation"))
        rows = "" if heard in (None, known.get("n_samples")) else f" of the {words.count(heard)} that validate"
        first.append(f"{report.validation} {name} {text}{rows}")
    if "n_label_issues" in known:
        n = known["n_label_issues"]
        precision = words.finite(known.get("label_issue_precision"))
        estimate = f" (estimated precision {words.fixed(precision)})" if n and precision is not None else ""
        second.append(words.plural(n, "label looks", "labels look") + " wrong" + estimate)
    if "n_detrimental" in known:
        n = known["n_detrimental"]
        second.append(words.plural(n, "sample hurts", "samples hurt"))
    sentences = (", ".join(part) for part in (first, second) if part)
    return [sentence[0].upper() + sentence[1:] + "." for sentence in sentences]


def _error(report: ScoreReport) -> tuple[str, str]:
    """Name and value of `summary.error`, which is a share of errors or, for numbers, R²."""
    value = report.summary.get("error")
    if report.task in ("regression", "vector"):
        return "R²", words.fixed(value, 3)
    return "error", words.percent(value)


def _tiles(report: ScoreReport) -> list[dict]:
    """The figures at the top; a figure that the summary lacks has no tile."""
    known = report.summary
    name, error = _error(report)
    precision, recall = known.get("label_issue_precision"), known.get("label_issue_recall")
    rule = [f"{word} {words.fixed(value)}" for word, value in (("precision", precision), ("recall", recall))
            if words.finite(value) is not None]  # fmt: skip
    tiles = [
        ("n_samples", "samples", words.count(known.get("n_samples")), _shape(known), ""),
        ("error", f"{report.validation} {name}", error, f"mean loss {words.number(known.get('loss'))}", ""),
        ("n_detrimental", "samples hurt", words.count(known.get("n_detrimental")), _share_of(known), "hurts"),
        ("n_label_issues", "labels look wrong", words.count(known.get("n_label_issues")),
         "estimated " + ", ".join(rule) if rule and known.get("n_label_issues") else "", "issue"),
        ("noise_estimate", "of all labels wrong", words.percent(known.get("noise_estimate")),
         "estimated" if known.get("noise_estimate") else "none that could be told from hard samples", ""),
    ]  # fmt: skip
    keys = ("key", "name", "value", "detail", "tone")
    found = [dict(zip(keys, tile, strict=True)) for tile in tiles if words.finite(known.get(tile[0])) is not None]
    return [tile | {"tone": tile["tone"] if known[tile["key"]] else ""} for tile in found]  # none has no colour


def _shape(known: dict) -> str:
    """`64 features, 10 outputs`."""
    parts = [words.plural(known[key], one, one + "s")
             for key, one in (("n_features", "feature"), ("n_outputs", "output")) if key in known]  # fmt: skip
    return ", ".join(parts)


def _share_of(known: dict) -> str:
    """How large a share of the samples hurts, and from which z on."""
    n, hurt = words.finite(known.get("n_samples")), words.finite(known.get("n_detrimental"))
    parts = [words.percent(hurt / n)] if n and hurt is not None else []
    if words.finite(known.get("threshold")) is not None:
        parts.append(f"z > {words.number(known['threshold'])}")
    if hurt and words.finite(known.get("detrimental_precision")) is not None:
        true = (known.get("planted") or {}).get("precision_detrimental")
        share = f"an estimated {words.percent(known['detrimental_precision'])}" if true is None else words.percent(true)
        parts.append(f"{share} of them wrong labels")
    return ", ".join(parts)


def _classes(classes: list[dict]) -> dict:
    """The classes most surely predicted wrongly, worst first, and how many more there are."""

    def surely_wrong(row: dict) -> float:
        return charts.cautious_error(words.finite(row.get("error")) or 0.0, row.get("n") or 0)

    rows = sorted(classes, key=surely_wrong, reverse=True)
    return {"rows": rows[:MAX_CLASSES], "left_out": max(len(rows) - MAX_CLASSES, 0), "n": len(rows)}


def _confused(pairs: list[dict]) -> dict:
    """The pairs most often confused, each with its bar."""
    rows = sorted(pairs, key=lambda row: row.get("n") or 0, reverse=True)
    top = max((row.get("n") or 0 for row in rows), default=0) or 1
    shown = [row | {"bar": (row.get("n") or 0) / top} for row in rows[:MAX_PAIRS]]
    return {"rows": shown, "left_out": max(len(rows) - MAX_PAIRS, 0)}


def _gallery(samples: list[dict], task: str) -> dict:
    """Samples with z and loss on each card, and a table's columns as far as the task has them."""
    columns = {"labels", "found", "z", "derivative", "loss", "label_score"}
    columns |= {"margin"} if task == "classification" else set()
    if task == "multilabel":  # the order of a row's classes means nothing
        samples = [row if row.get("corrected_label") is None else row | {"predicted_label": row["corrected_label"]}
                   for row in samples]  # fmt: skip
        lists = [{key: row[key] for key in ("label", "predicted_label") if isinstance(row.get(key), list)}
                 for row in samples]  # fmt: skip
        samples = [row | {key: sorted(found[key], key=str) for key in found}
                   for row, found in zip(samples, lists, strict=True)]  # fmt: skip
    figures = lambda row: [f"z {words.fixed(row.get('z'), 1)}", f"loss {words.fixed(row.get('loss'))}"]  # noqa: E731
    return frame.gallery([row | {"figures": figures(row)} for row in samples], columns)
