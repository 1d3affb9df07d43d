"""The sheet: safe against hostile words, self-contained, complete, and calm when numbers are missing."""

import math
import re

import numpy as np
import pytest

from diva_ray.report import charts
from diva_ray.report.sheet import (
    Bars,
    Columns,
    Facts,
    Gallery,
    Inform,
    Lines,
    Pulls,
    Sheet,
    Table,
    Terms,
    Tile,
    render_sheet,
)
from tests.pages import EVIL, Page, fetches, png

MINUS, PERCENT = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}%"
NOTHING = "There is nothing to show here."
GAPS = [None, math.nan, math.inf, "no number"]


def sheet_of(*parts, **more) -> Page:
    html = render_sheet(Sheet(**({"title": "t", "headline": [], "tiles": [], "parts": list(parts)} | more)))
    page = Page(html)
    assert not page.open
    assert not re.search(r"\b(nan|None|inf)\b", page.text)
    return page


def full_parts(word: str = "arm", picture=None) -> list:
    return [
        Bars(word, [{"label": word, "value": 2.34, "error": 0.3, "detail": word, "strong": True},
                    {"label": word, "value": -1.02, "error": 0.36}], word, word),
        Lines(word, [0.1, 0.5], [{"name": word, "y": [0.27, 0.1], "low": [0.2, 0.1], "high": [0.3, 0.1]}], word, word,
              word, percent_x=True, percent_y=True),
        Columns(word, [0, 1, 2], [7, 31], word, word),
        Pulls(word, [0, 1, 2], [7, 31], [0, 2], 1.2, 3, word, (word, word), word),
        Table(word, [("a", word, "label"), ("b", word, "text"), ("c", word, "z")], [{"a": word, "b": word, "c": 1}],
              word),
        Terms(word, [(word, "hurts", word)], word),
        Facts(word, [(word, word)], word, word),
        Gallery(word, [{"id": word, "label": word, "predicted_label": word, "why": word, "source": word,
                        "true_label": word, "text": word, "picture": picture, "z": 4.06, "weight": 0.25,
                        "is_label_issue": True, "is_detrimental": True}], word, "why", filters=True),
        Gallery(word, [{"id": word, "label": word, "why": word, "source": word}], word, "why"),
    ]  # fmt: skip


def test_hostile_words_stay_words():
    page = sheet_of(
        *full_parts(EVIL, png(np.eye(8) * 255)), title=EVIL, headline=[EVIL], tiles=[Tile(EVIL, EVIL, EVIL, EVIL)],
        run=[(EVIL, EVIL)], seconds={EVIL: 1.0}, notes=[EVIL], downloads=[EVIL], footer=EVIL,
    )  # fmt: skip
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 1
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert not [attrs for _, attrs in page.tags if "<" in attrs.get("class", "") + attrs.get("style", "")]
    assert page.text.count("<script>alert(1)</script>") > 20


def test_page_fetches_nothing():
    parts = full_parts(picture=png(np.eye(8) * 255))
    html = render_sheet(Sheet("t", ["a"], [], parts))
    page = Page(html)
    assert fetches(page)
    assert all(url.startswith("data:image/png;base64,") for url in fetches(page))
    assert not re.search(r"@import|url\(|https?://|<link|<iframe", html)
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")


def test_the_frame_is_on_the_page():
    page = sheet_of(
        headline=["Error fell.", "It is small."], tiles=[Tile("gain", "2.3", "± 0.3", "good")],
        run=[("data", "digits")], seconds={"fit_all": 1.4, "total": 71.0}, memory=412 * 2**20, notes=["a note"],
        downloads=["a.csv: rows"],
        footer="the end",
    )  # fmt: skip
    for shown in ("Error fell. It is small.", "gain 2.3 ± 0.3", "data digits", "fit all 1.4 s", "71 s", "412 MiB",
                  "a note", "a.csv: rows", "the end"):  # fmt: skip
        assert shown in page.text, shown
    assert {"class": "good"} in page.all("div")


def test_a_bare_sheet_has_no_empty_sections():
    page = sheet_of(memory=math.nan)
    assert not page.all("section")
    assert not page.all("footer")


def test_bars_say_value_and_error_with_the_same_decimals():
    rows = [{"label": "a", "value": 12.3, "error": 0.02}, {"label": "b", "value": -1.0}]
    text = sheet_of(Bars("t", rows, unit="pp")).text
    assert "a 12.30 pp ± 0.02" in text
    assert f"b {MINUS}1.00 pp" in text


def test_bars_of_shares_are_percentages():
    text = sheet_of(Bars("t", [{"label": "a", "value": 0.123, "error": 0.02}, {"label": "b"}], percent=True)).text
    assert "a 12.3 % ± 2.0" in text and "0.123" not in text


def test_points_that_are_apart_have_whiskers_and_no_line():
    series = [{"name": "a", "y": [0.3, 0.1, 0.2], "low": [0.2, 0.05, 0.1], "high": [0.4, 0.2, None], "apart": True}]
    (drawn,) = charts.lines([3, 1, 2], series)["series"]
    spots = [[tuple(map(float, spot.split(","))) for spot in line.split()] for line in drawn["lines"]]
    assert [line[0][0] == line[1][0] and line[0][1] > line[1][1] for line in spots] == [True, True]
    assert not drawn["bands"] and all(drawn["dots"])
    sheet_of(Lines("t", [3, 1, 2], series))


@pytest.mark.parametrize("gap", GAPS)
def test_missing_numbers_in_bars(gap):
    page = sheet_of(Bars("t", [{"label": "a", "value": gap, "error": gap}, {"label": "b", "value": 1, "error": gap}]))
    assert "a \N{EN DASH} b 1.00" in page.text
    assert "±" not in page.text


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-12, 1e200, -1e12, 5e-324])
def test_bars_of_any_size_stay_in_their_frame(value):
    drawn = charts.bars([{"value": value, "error": value}])
    assert all(0 <= at <= 100.001 for at, _ in drawn["ticks"])
    assert 0 <= drawn["zero"] <= 100
    sheet_of(Bars("t", [{"label": "a", "value": value, "error": abs(value)}]))


def test_many_bars_are_cut_and_counted():
    text = sheet_of(Bars("t", [{"label": f"arm {k}", "value": k} for k in range(75)])).text
    assert "15 more rows are left out." in text
    assert "arm 60" not in text


@pytest.mark.parametrize("gap", GAPS)
def test_a_line_breaks_where_a_number_is_missing(gap):
    y = [1.0, 2.0, gap, 3.0, gap, 4.0, 5.0]
    drawn = charts.lines(list(range(7)), [{"name": "a", "y": y, "low": y, "high": y}])
    (curve,) = drawn["series"]
    assert [len(points.split()) for points in curve["lines"]] == [2, 2]
    assert [len(points.split()) for points in curve["bands"]] == [4, 4]
    assert [dot is not None for dot in curve["dots"]] == [True, True, False, True, False, True, True]
    sheet_of(Lines("t", list(range(7)), [{"name": "a", "y": y, "low": y, "high": y}]))


@pytest.mark.parametrize(
    ("x", "y"), [([1], [5.0]), ([1, 2], [0, 0]), ([2, 2], [-3, -3]), ([1, 2], [1e-300, 1e160]),
                 ([1e9, 1e9 + 1], [7, 8]), ([0, 1e-20], [1e-20, 2e-20]), ([1, 2, 3], [1])]
)  # fmt: skip
def test_lines_of_any_size(x, y):
    drawn = charts.lines(x, [{"name": "a", "y": y}])
    assert all(-0.001 <= at <= 100.001 for key in ("x_ticks", "y_ticks") for at, _ in drawn[key])
    assert len({text for _, text in drawn["y_ticks"]}) == len(drawn["y_ticks"]) > 1
    sheet_of(Lines("t", x, [{"name": "a", "y": y}], percent_x=True, percent_y=True))


def test_figures_of_lines_are_in_the_table():
    series = [{"name": "ours", "y": [0.21, 0.0992], "low": [0.2, None], "high": [0.22, 0.1], "strong": True},
              {"name": "uniform", "y": [None, 0.123]}]  # fmt: skip
    text = sheet_of(Lines("t", [0.05, 1.0], series, x_name="budget", percent_x=True, percent_y=True)).text
    dash = "\N{EN DASH}"
    assert "budget ours uniform" in text
    assert f"5 % 21.0 % (20.0 % to 22.0 %) {dash}" in text
    assert f"100 % 9.9 % ({dash} to 10.0 %) 12.3 %" in text


def test_the_strong_line_has_the_first_colour():
    series = [{"name": "a", "y": [1, 2]}, {"name": "b", "y": [2, 3], "strong": True}]
    groups = sheet_of(Lines("t", [1, 2], series)).all("g")
    assert [group["class"] for group in groups] == ["c1", "c0 strong"]


def test_columns_have_their_counts_in_the_table():
    page = sheet_of(Columns("t", [0, 0.5, 1.0, 1.5], [190, 0, 1607], x_name="weight"))
    assert "0 0.5 190" in page.text
    assert "1 1.5 1,607" in page.text
    assert len(page.all("rect")) == 2


def test_pulls_show_the_threshold_and_what_looks_wrong():
    part = Pulls("t", [-2, 0, 2, 4], [190, 7, 3], [0, 1, 3], 1.5, 3, things=("pair", "pairs"), looks="looks mismatched")
    page = sheet_of(part)
    assert "threshold 1.5" in page.text
    assert "of either: looks mismatched" in page.text
    assert "0 2 7 1" in page.text
    assert [rect["class"] for rect in page.all("rect")] == ["helps", "helps", "issue", "hurts", "issue"]


@pytest.mark.parametrize(
    "part",
    [Bars("t", []), Lines("t", [], []), Lines("t", [1, 2], []), Lines("t", [1], [{"name": "a", "y": [None]}]),
     Lines("t", [None], [{"name": "a", "y": [1]}]), Columns("t", [], []), Columns("t", [0, None], [3]),
     Columns("t", [0, 1], [0]), Columns("t", [0, 1], [math.nan]), Columns("t", [0, 1], [-3]),
     Pulls("t", [], [], [], None), Table("t", [], [{"a": 1}]), Table("t", [("a", "A", "text")], []), Terms("t", []),
     Facts("t", []), Gallery("t", [])],
)  # fmt: skip
def test_nothing_to_show_says_so(part):
    assert NOTHING in sheet_of(part).text


def test_cells_of_every_kind():
    kinds = ["text", "label", "number", "fixed", "fixed3", "count", "percent", "z", "bar", "wrong", "most"]
    row = {"text": "a text", "label": 3, "number": 0.01234, "fixed": 2, "fixed3": 2, "count": 1797, "percent": 0.123,
           "z": -4.06, "bar": 0.5, "wrong": 0.25, "most": 30}  # fmt: skip
    page = sheet_of(Table("t", [(kind, kind, kind) for kind in kinds], [row, dict.fromkeys(kinds), {"most": 40}]))
    assert f"a text 3 0.0123 2.00 2.000 1,797 12.3 % {MINUS}4.1 50.0 % 25.0 % 30" in page.text
    assert {"class": "helps"} in page.all("b")
    assert [cell["data-v"] for cell in page.all("td") if "data-v" in cell][:9] == [
        "0.01234", "2", "2", "1797", "0.123", "-4.06", "0.5", "0.25", "30"]  # fmt: skip
    bars = [(bar["class"], bar["style"]) for bar in page.all("i")]
    assert bars[:3] == [("", "width:50.0%"), ("hurts", "width:25.0%"), ("", "width:75.0%")]
    assert {"class": "sortable"} in page.all("table")


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("kind", ["number", "fixed", "fixed3", "count", "percent", "z", "bar", "wrong", "most"])
def test_missing_cells_are_dashes(kind, gap):
    cells = [cell for cell in sheet_of(Table("t", [("a", "A", kind)], [{"a": gap}])).all("td") if "data-v" in cell]
    assert [cell["data-v"] for cell in cells] == [""]


def test_rows_left_out_are_counted():
    text = sheet_of(Table("t", [("a", "A", "label")], [{"a": f"row {k}"} for k in range(1500)], most=50)).text
    assert "1,450 more rows are left out." in text
    assert "row 50" not in text


def test_an_unknown_kind_or_part_is_named():
    with pytest.raises(ValueError, match="kind must be one of text, label"):
        sheet_of(Table("t", [("a", "A", "colour")], []))
    with pytest.raises(TypeError, match="must be Bars, Lines"):
        sheet_of("a string")


def test_gallery_shows_what_rows_have():
    rows = [{"id": "b-8", "label": 3, "predicted_label": 8, "z": 4.06, "weight": 0.25, "rank": 2, "text": "words",
             "is_label_issue": True}]  # fmt: skip
    text = sheet_of(Gallery("t", rows, caption="rank")).text
    assert "words 3 → 8 label? rank 2 weight 0.25 z 4.1 id b-8" in text
    assert "loss" not in text


def test_gallery_without_pictures_is_a_table_of_what_is_known():
    page = sheet_of(Gallery("t", [{"id": k, "label": k, "z": math.nan, "weight": 0.5, "why": "rare"} for k in range(3)],
                            caption="why"))  # fmt: skip
    assert "Sample Given → predicted Note Weight 0 0 rare 0.5" in page.text


@pytest.mark.parametrize("row", [{}, {"id": None, "picture": b"junk"}, {"id": math.nan, "text": math.nan},
                                 {"picture": {"path": "x"}, "caption": 5, "figures": 5,
                                  "thumbnail": EVIL}])  # fmt: skip
def test_odd_samples(row):
    sheet_of(Gallery("t", [row], caption="nowhere"))


def test_the_last_column_may_be_open_and_counts_have_a_name():
    page = sheet_of(Columns("t", [0, 0.5, 1.0, math.inf], [190, 0, 233], x_name="weight"))
    assert "1 or more 233" in page.text
    assert {"class": "y-name"} in page.all("div") and page.text.count("samples") == 2
    assert "Samples" in sheet_of(Pulls("t", [-2, 0, 2], [7, 3], [0, 1], 1.5)).text


def test_a_weight_has_a_line_of_its_own_on_every_card():
    rows = [
        {"id": k, "label": 3, "text": "a", "weight": weight, "z": 4.0, "loss": 1.0}
        for k, weight in enumerate((0, 0.0053))
    ]
    spans = sheet_of(Gallery("t", rows)).all("span")
    assert [span.get("class") for span in spans if span.get("class") in ("line", "soft")].count("line") == 2


def test_weights_that_are_all_1_are_not_shown():
    rows = [{"id": k, "label": "a", "text": "t", "weight": weight} for k, weight in enumerate([1.0, 1.0])]
    assert "weight" not in sheet_of(Gallery("t", rows)).text
    assert "weight 1" in sheet_of(Gallery("t", [*rows, {**rows[0], "weight": 0.5}])).text


def test_nothing_found_has_no_colour():
    tiles = [Tile("a", value, "", tone) for value in ("0", f"0.0{PERCENT}") for tone in ("hurts", "issue")]
    assert {"class": "hurts"} not in sheet_of(tiles=tiles).all("div")
    assert {"class": "issue"} not in sheet_of(tiles=tiles).all("div")
    assert {"class": "hurts"} in sheet_of(tiles=[Tile("a", "10", "", "hurts")]).all("div")
    assert {"class": "good"} in sheet_of(tiles=[Tile("error", f"0.0{PERCENT}", "", "good")]).all("div")


def test_notes_that_inform_are_quieter_than_warnings():
    boxes = sheet_of(notes=["take care", Inform("it was so")]).all("aside")
    assert [box["class"] for box in boxes] == ["box warn", "box inform"]
    assert [box["class"] for box in sheet_of(notes=[Inform(EVIL)]).all("aside")] == ["box inform"]


def test_what_stands_between_backticks_is_code_and_escaped():
    html = render_sheet(Sheet("t", [f"set `{EVIL}` now"], [], [], notes=["`ridge` and ` alone"]))
    assert "<code>ridge</code> and ` alone" in html and "<code>&lt;" in html and html.count("<script>") == 1


def test_what_hurts_or_helps_is_set_in_its_colour_and_escaped():
    html = render_sheet(Sheet("t", [], [], [Terms("t", [("z", "", "[hurts: it <rises>] [other: x] [helps: `a] b`]")])]))
    assert '<b class="hurts">it &lt;rises&gt;</b> [other: x] [helps: <code>a] b</code>]' in html
    assert not Page(html).open


@pytest.mark.parametrize("hurts", [True, False])
def test_a_gallery_is_filtered_where_it_holds_both(hurts):
    rows = [{"id": 0, "is_label_issue": True}, {"id": 1, "is_detrimental": hurts}]
    assert len(sheet_of(Gallery("t", rows, filters=True)).all("button")) == 3 * hurts
    assert not sheet_of(Gallery("t", rows)).all("button")


def test_names_break_after_underscores():
    html = render_sheet(Sheet("t", [], [], [Table("t", [("a", "A", "label")], [{"a": "drop_label_<issues"}])]))
    assert "drop_<wbr>label_<wbr>&lt;issues" in html


@pytest.mark.parametrize("phases", [8, 9])
def test_many_times_are_folded(phases):
    page = sheet_of(run=[("data", "digits")], seconds={f"pass {k}": 1.0 for k in range(phases - 1)} | {"total": 9.0})
    assert len(page.all("details")) == (phases > 8) and "pass 3 1 s" in page.text
    assert ("9 times, 9 s in total" in page.text) == (phases > 8)


def test_narrow_pages_keep_the_ends_of_an_axis_on_one_line_and_show_that_tables_scroll():
    html = render_sheet(Sheet("t", [], [], []))
    assert re.search(r"@media \(max-width: 560px\) \{[^@]*\.ends span \{ order: -1; flex-basis: 100%", html)
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto;[^}]*no-repeat local[^}]*no-repeat scroll", html)


def test_short_words_of_tables_stay_whole():
    name = "a-name-of-many-words-without-any-room"
    html = render_sheet(Sheet("t", [], [], [Gallery("t", [{"id": "train_0012"}])], [("Features", "x"), (name, "x")]))
    wide = html.split("@media (max-width")[0].replace("}", "}\n")
    rules = {rule.split("{")[0].strip(): rule for rule in wide.splitlines()}
    assert "overflow-wrap: break-word" in rules["tbody th"] and "inherit" in rules["tbody th code"]
    assert "overflow-wrap: anywhere" in rules["tbody .long"], "more exact than `tbody th`, so that it wins"
    assert '<th scope="row">Features</th>' in html and f'<th scope="row" class="long">{name}</th>' in html
    assert '<th scope="row"><code><bdi>train_0012<' in html
