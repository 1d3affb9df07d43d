"""The page of a scoring run: complete, worst first, calm where nothing was found, and safe against hostile names."""

import pyarrow as pa
import pytest

from diva_ray.report.sheet import Sheet, render_sheet
from diva_ray.tasks.told import scored
from diva_ray.tasks.told.by_source import sources_table
from diva_ray.tasks.told.page import in_order
from tests.pages import EVIL, Page

SUMMARY = {
    "task": "classification", "n_samples": 1797, "n_features": 64, "n_outputs": 10, "n_validation": 1797,
    "validation": "leave-one-out",
    "loss": 0.51, "error": 0.123, "threshold": 2.31, "n_detrimental": 203, "detrimental_precision": 0.94,
    "n_label_issues": 178, "label_issue_precision": 0.953, "label_issue_recall": 0.91, "noise_estimate": 0.196,
}  # fmt: skip
PLANTED = {"n_planted": 359, "n_found": 341, "precision": 0.97, "recall": 0.95, "f1": 0.96, "auc_label_score": 0.996,
           "precision_detrimental": 0.5, "by": None}  # fmt: skip
NOTHING = {"n_detrimental": 0, "detrimental_precision": None, "n_label_issues": 0, "label_issue_precision": None,
           "label_issue_recall": None, "noise_estimate": 0.0}  # fmt: skip
SAMPLE = {"id": 7, "label": 3, "predicted_label": 8, "derivative": 0.0123, "standard_error": 0.003, "z": 4.1,
          "margin": -0.72, "loss": 2.5, "label_score": 0.04, "is_detrimental": True,
          "is_label_issue": True}  # fmt: skip
CLASSES = [
    {"label": "zero", "n": 178, "error": 0.05, "loss": 0.2, "n_detrimental": 9, "n_label_issues": 6},
    {"label": "eight", "n": 174, "error": 0.31, "loss": 0.9, "n_detrimental": 42, "n_label_issues": 35},
]
PAIRS = [{"given": "eight", "predicted": "one", "n": 13, "n_label_issues": 9}]
SOURCES = [{"source": name, "n": 900, "derivative": 0.4, "standard_error": 0.1, "z": z, "n_detrimental": 150,
            "n_label_issues": 3} for name, z in (("crowd", -4.0), ("robot", 4.0))]  # fmt: skip


def page_of(*, suspects=(), worst=(SAMPLE,), best=(), classes=CLASSES, pairs=PAIRS, sources=SOURCES, **changes) -> Page:
    s = {**SUMMARY, **changes}
    parts = [
        scored.reading(s), *scored.against_truth(s), *scored.galleries(s, list(suspects), list(worst), list(best)),
        *scored.classes_table(classes), *scored.confused_table(pairs),
        *sources_table(pa.Table.from_pylist(sources) if sources else None, "Samples", "Look wrong"),
    ]  # fmt: skip
    page = Page(render_sheet(Sheet("t", scored.headline(s), scored.tiles(s), parts)))
    assert not page.open and "None" not in page.text and "nan" not in page.text
    return page


def test_numbers_are_on_the_page():
    best = {**SAMPLE, "id": "good", "z": -5.5, "is_detrimental": False, "is_label_issue": False}
    page = page_of(worst=[SAMPLE, {**SAMPLE, "id": "b-8", "text": "a text", "true_label": 8}], best=[best],
                   planted=PLANTED)  # fmt: skip
    for shown in ("1,797 samples, leave-one-out error 12.3 %. 178 labels look wrong (estimated precision 0.95), 203 "
                  "samples hurt.", "64 features, 10 outputs", "19.6 %",
                  "when z is above 2.31, the cut that finds most", "31.0 %", "0.900",
                  "eight one 13 9", "About 95 in 100", "359 labels in this table were made wrong on purpose. The rule "
                  "found 341 of them, and 97.0 % of all labels it flagged were planted.", "AUC label score 0.996",
                  "z 4.1", "\N{MINUS SIGN}5.50", "robot 900 4.0 0.4 0.1", "truth: 8"):  # fmt: skip
        assert shown in page.text, shown
    assert page.text.index("eight 174") < page.text.index("zero 178"), "surely wrong first"
    assert page.text.index("robot") < page.text.index("crowd"), "largest z first"
    assert {"class": "hurts"} in page.all("b") and {"class": "helps"} in page.all("b")


def test_the_share_of_wrong_labels_among_what_hurts_is_counted_or_called_an_estimate():
    assert "z > 2.31, an estimated 94.0 % of them wrong labels" in page_of().text
    assert "z > 2.31, 50.0 % of them wrong labels" in page_of(planted=PLANTED).text


def test_truth_of_the_table_is_named():
    text = page_of(planted={**PLANTED, "n_planted": 1, "by": "real"}).text
    assert "1 label in this table differs from real ." in text and "it flagged were wrong." in text
    assert "it flagged" not in page_of(planted={**PLANTED, "precision": None}, **NOTHING).text


def test_labels_that_look_most_wrong_come_first():
    text = page_of(suspects=[{**SAMPLE, "id": "wrong-9"}]).text
    assert text.index("The labels that look most wrong") < text.index("wrong-9") < text.index("samples that hurt most")
    assert "look most wrong" not in page_of().text


def test_what_to_show_is_named_where_nothing_is_shown():
    assert "data.show" in page_of().text and "data.show" not in page_of(worst=[{**SAMPLE, "text": "a"}]).text


@pytest.mark.parametrize("n,title", [(0, "Largest z (none beyond the threshold)"), (1, "The samples that hurt most")])
def test_the_title_over_the_largest_z_says_whether_any_hurts(n, title):
    text = page_of(n_detrimental=n).text
    assert title in text and ("hurt most" in text) == (n > 0)


def test_numbers_speak_of_r2_and_of_no_precision_of_nothing():
    numbers = {"task": "regression", "n_samples": 1, "n_validation": 1, "error": 0.8312, "r2": 0.8312, **NOTHING}
    text = page_of(worst=[], classes=[], pairs=[], sources=[], **numbers).text
    assert "precision" not in text and "of the flagged" not in text
    assert "1 sample, leave-one-out R² 0.831. No labels look wrong, no samples hurt." in text
    assert "which at most 5 in 100 pass, since no wrong labels show" in text
    for title in ("Classes", "Most often confused", "Sources", "hurt most", "help most"):
        assert title not in text


def test_rows_that_validate_are_named():
    text = page_of(validation="table", n_validation=200).text
    assert "validation error 12.3 % of the 200 that validate" in text and "How the validation loss changes" in text


def test_many_classes_are_cut_and_counted():
    classes = [{**CLASSES[0], "label": f"c{k}", "error": k / 20_000} for k in range(20_000)]
    text = page_of(classes=classes, pairs=PAIRS * 500).text
    assert "19,970 more rows are left out." in text and "475 more rows are left out." in text and "c19999" in text


def test_a_single_wrong_sample_does_not_make_the_worst_class():
    assert scored.cautious_error(1.0, 1) < scored.cautious_error(0.9, 100) < 0.9


def test_hostile_names_stay_words():
    row = {**SAMPLE, "id": EVIL, "label": EVIL, "predicted_label": [EVIL], "true_label": EVIL, "source": EVIL}
    page = page_of(worst=[row], classes=[{**CLASSES[0], "label": EVIL}], planted={**PLANTED, "by": EVIL},
                   pairs=[{"given": EVIL, "predicted": EVIL, "n": 2, "n_label_issues": 0}],
                   sources=[{**SOURCES[0], "source": EVIL}])  # fmt: skip
    assert len(page.all("script")) == 1 and not page.all("img")
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 5


def test_the_order_of_several_classes_means_nothing():
    row = {"label": ["b", "a"], "predicted_label": ["x"], "corrected_label": ["c", "a"]}
    assert in_order(row) == {**row, "label": ["a", "b"], "predicted_label": ["a", "c"]}
    assert in_order({"label": ["b", "a"], "predicted_label": None})["label"] == ["a", "b"]
