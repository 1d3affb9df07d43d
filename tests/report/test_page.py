"""The score page: safe against hostile tables, self-contained, complete, and calm when parts are missing."""

import base64
import io
import json
import re
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from diva_ray.report import ScoreReport, charts, pictures, render_score_page, words

EVIL = """</script></style><script>alert(1)</script><img src=x onerror=alert(1)>"' onload='x"""
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Every tag with its attributes, the visible text, and whether tags nest."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.parts = [], [], []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style", "title"):
            self.parts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def png(pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.asarray(pixels, "uint8")).save(out, "png")
    return out.getvalue()


def sample(**changes) -> dict:
    row = {"id": 7, "label": 3, "predicted_label": 8, "derivative": 0.0123, "standard_error": 0.003, "z": 4.1,
           "margin": -0.72, "loss": 2.5, "label_score": 0.04, "is_detrimental": True, "is_label_issue": True,
           "picture": None, "text": None}  # fmt: skip
    return row | changes


def full_report(**changes) -> ScoreReport:
    known = dict(
        title="digits",
        run=[("data", "digits"), ("ridge", "0.01")],
        summary={"n_samples": 1797, "n_features": 64, "n_outputs": 10, "ridge": 0.01, "loss": 0.51, "error": 0.123,
                 "threshold": 2.31, "n_detrimental": 203, "n_label_issues": 178, "label_issue_precision": 0.953,
                 "label_issue_recall": 0.91, "noise_estimate": 0.196, "seconds": {"read": 0.12, "total": 71.0},
                 "peak_memory_bytes": 412 * 2**20},
        z_edges=[-4.0, -2.0, 0.0, 2.0, 4.0],
        z_counts=[300, 1100, 194, 203],
        z_issue_counts=[0, 1, 20, 157],
        classes=[{"label": "zero", "n": 178, "error": 0.05, "loss": 0.2, "n_detrimental": 9, "n_label_issues": 6},
                 {"label": "eight", "n": 174, "error": 0.31, "loss": 0.9, "n_detrimental": 42, "n_label_issues": 35}],
        confused=[{"given": "eight", "predicted": "one", "n": 13, "n_label_issues": 9}],
        worst=[sample(), sample(id="b-8", text="a text", true_label=8, source="crowd")],
        suspects=[sample(id="wrong-9", label_score=0.01, z=1.25)],
        best=[sample(id="good", z=-5.5, is_detrimental=False, is_label_issue=False, predicted_label=3)],
        sources=[{"source": "crowd", "n": 900, "derivative": 0.4, "standard_error": 0.1, "z": 4.0,
                  "n_detrimental": 150}],
        planted={"n_planted": 359, "n_found": 341, "precision": 0.97, "recall": 0.95, "f1": 0.96,
                 "auc_label_score": 0.996, "auc_z": 0.991, "auc_margin": 0.997},
        notes=["standard errors estimated from 8 sign vectors"],
        downloads=["samples/*.parquet: one row per sample"],
    )  # fmt: skip
    return ScoreReport(**(known | changes))


def fetches(page: Page) -> list[str]:
    """Whatever a browser would go and get."""
    names = ("src", "href", "srcset", "action", "data", "poster", "xlink:href")
    return [attrs[name] for _, attrs in page.tags for name in names if name in attrs]


def test_numbers_are_on_the_page():
    text = Page(render_score_page(full_report())).text
    for shown in ("1,797 samples, leave-one-out error 12.3 %.", "178 labels look wrong (estimated precision 0.95)",
                  "203 samples hurt", "2.31", "19.6 %", "412 MiB", "120 ms", "71 s", "31.0 %", "eight", "0.996", "341",
                  "z 4.1", "\N{MINUS SIGN}5.50", "0.4 ± 0.1", "8 sign vectors", "truth: 8",
                  "samples/*.parquet"):  # fmt: skip
        assert shown in text, shown


def test_the_share_of_wrong_labels_among_what_hurts_is_counted_or_called_an_estimate():
    s = full_report().summary | {"detrimental_precision": 0.94}
    assert "an estimated 94.0 % of them wrong labels" in Page(render_score_page(full_report(summary=s))).text
    known = s | {"planted": {"precision_detrimental": 0.5}}
    assert "z > 2.31, 50.0 % of them wrong labels" in Page(render_score_page(full_report(summary=known))).text


def test_the_order_of_several_classes_means_nothing():
    same = sample(id="same", label=["b", "a", "c"], predicted_label=["a", "b", "c"])
    other = sample(id="other", label=["b", "a"], predicted_label=["c", "a"])
    text = Page(render_score_page(full_report(task="multilabel", worst=[same, other], best=[], suspects=[]))).text
    assert "a, b, c \N{RIGHTWARDS ARROW}" not in text and "a, b \N{RIGHTWARDS ARROW} a, c" in text


def test_labels_that_look_most_wrong_come_first():
    text = Page(render_score_page(full_report())).text
    assert text.index("The labels that look most wrong") < text.index("wrong-9") < text.index("samples that hurt most")
    assert "look most wrong" not in Page(render_score_page(full_report(suspects=[]))).text


def test_hostile_words_stay_words():
    rows = [sample(id=EVIL, label=EVIL, predicted_label=[EVIL], true_label=EVIL, source=EVIL, text=EVIL)] * 2
    report = full_report(
        title=EVIL, notes=[EVIL], downloads=[EVIL], run=[(EVIL, EVIL)], worst=rows, suspects=rows,
        best=[row | {"text": None} for row in rows], classes=[{"label": EVIL, "n": 3, "error": 0.5}],
        confused=[{"given": EVIL, "predicted": EVIL, "n": 2}], sources=[{"source": EVIL, "n": 2}], validation=EVIL,
        summary={"n_samples": 3, "error": 0.5, "seconds": {EVIL: 1.0}},
    )  # fmt: skip
    page = Page(render_score_page(report))
    assert not page.open
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text


@pytest.mark.parametrize("kind", ["worst", "best"])
def test_hostile_words_stay_out_of_attributes(kind):
    rows = [sample(id=EVIL, label=EVIL, predicted_label=EVIL, picture=png(np.zeros((8, 8))))]
    page = Page(render_score_page(ScoreReport(title="t", **{kind: rows})))
    (image,) = page.all("img")
    assert set(image) == {"class", "src", "alt"}
    assert "<script>alert(1)</script>" in image["alt"]


@pytest.mark.parametrize("report", [full_report(), full_report(worst=[sample(picture=png(np.eye(8) * 255))])])
def test_page_fetches_nothing(report):
    html = render_score_page(report)
    page = Page(html)
    assert all(url.startswith("data:image/") for url in fetches(page))
    assert not re.search(r"@import|url\(|https?://|<link|<iframe", html)
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy


@pytest.mark.parametrize("missing", ["run", "summary", "z_edges", "z_counts", "z_issue_counts", "classes", "confused",
                                     "worst", "best", "suspects", "sources", "planted", "notes",
                                     "downloads"])  # fmt: skip
def test_any_part_may_be_missing(missing):
    empty = {"summary": {}, "planted": None}.get(missing, [])
    assert not Page(render_score_page(full_report(**{missing: empty}))).open


@pytest.mark.parametrize("task", ["classification", "regression", "multilabel", "vector"])
def test_an_empty_run_says_so(task):
    page = Page(render_score_page(ScoreReport(title="empty", task=task)))
    assert "distribution of z was not recorded" in page.text
    assert "No sample stood out" in page.text
    assert "None" not in page.text


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_missing_number_is_a_dash(value):
    row = dict.fromkeys(sample(), value) | {"id": 1, "label": 2, "picture": None, "text": None}
    summary = dict.fromkeys(full_report().summary, value)
    text = Page(render_score_page(full_report(worst=[row], classes=[row | {"error": value}], summary=summary))).text
    assert not re.search(r"\b(nan|None)\b", text)


@pytest.mark.parametrize("task", ["regression", "vector"])
def test_numbers_speak_of_r2_and_of_no_precision_of_nothing(task):
    nothing = {"n_label_issues": 0, "label_issue_precision": 0.0, "label_issue_recall": 0.0}
    report = ScoreReport(title="t", task=task, summary={"n_samples": 1, "error": 0.8312, **nothing})
    text = Page(render_score_page(report)).text
    assert "precision" not in text and "in 100" not in text
    assert "1 sample, leave-one-out R² 0.831. No labels look wrong." in text


def test_digits_pictures_are_encoded_again():
    digits = load_digits()
    pictures_in = [png(255 - digits.images[i] * 15) for i in range(6)]
    rows = [sample(id=i, label=int(digits.target[i]), picture=p) for i, p in enumerate(pictures_in)]
    images = Page(render_score_page(full_report(worst=rows, best=[]))).all("img")
    assert len(images) == 6
    assert images[3]["alt"] == "sample 3: given 3, predicted 8"
    assert all(image["src"].startswith("data:image/png;base64,") and image["class"] == "small" for image in images)


def test_nothing_hidden_in_a_picture_reaches_the_page():
    out = io.BytesIO()
    info = Image.Exif()
    info[0x010E] = "secret place"
    Image.new("RGB", (600, 400), "red").save(out, "jpeg", exif=info, comment=b"<script>")
    shown = pictures.thumbnail(out.getvalue() + b"trailing secret")
    again = Image.open(io.BytesIO(_decoded(shown.uri)))
    assert max(again.size) == 256
    assert not again.getexif()
    assert b"secret" not in _decoded(shown.uri)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_kind_of_picture(mode):
    picture = Image.new(mode, (40, 20)) if mode != "P" else Image.new("RGB", (40, 20)).convert("P")
    out = io.BytesIO()
    picture.save(out, "tiff" if mode in ("CMYK", "I", "F") else "png")
    shown = pictures.thumbnail(out.getvalue())
    assert Image.open(io.BytesIO(_decoded(shown.uri))).size == (40, 20)


def test_sixteen_bit_picture_keeps_its_contrast():
    out = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 64).reshape(8, 8).astype("uint16")).save(out, "png")
    grey = np.asarray(Image.open(io.BytesIO(_decoded(pictures.thumbnail(out.getvalue()).uri))))
    assert grey.min() == 0
    assert grey.max() >= 254


@pytest.mark.parametrize(
    "data", [b"", b"junk", png(np.zeros((9, 9)))[:40], b"%!PS-Adobe-3.0 EPSF-3.0\n", {"path": "x"}]
)
def test_a_broken_picture_is_named(data):
    page = Page(render_score_page(full_report(worst=[sample(picture=data)], best=[])))
    assert "picture could not be read" in page.text
    assert not page.all("img")


@pytest.mark.parametrize("side", [6_000, 12_000, 60_000])
def test_a_huge_picture_is_refused_before_it_is_decoded(side, monkeypatch):
    monkeypatch.setattr(pictures, "_opaque", lambda *_: pytest.fail("decoded"))
    assert pictures.thumbnail(_bomb(side)).uri is None


def test_many_samples_and_classes_are_cut_and_counted():
    classes = [{"label": f"c{k}", "n": 50, "error": k / 20_000, "loss": 1.0} for k in range(20_000)]
    html = render_score_page(full_report(classes=classes, worst=[sample(text="t" * 5_000)] * 100, best=[]))
    text = Page(html).text
    assert "The 30 worst of 20,000 classes; 19,970 are left out." in text
    assert "c19999" in text
    assert "40 more are in the table of samples" in text
    assert len(html) < 300_000


def test_a_single_wrong_sample_does_not_make_the_worst_class():
    assert charts.cautious_error(1.0, 1) < charts.cautious_error(0.9, 100) < 0.9


@pytest.mark.parametrize("edges", [[-np.inf, -1, 0, 1], [-1, 0, 1, np.inf], [-1, 0, 1, 2]])
def test_histogram_stays_in_its_frame(edges):
    drawn = charts.histogram(edges, [5, 10_000, 1], [0, 2, 1], threshold=30.0)
    assert all(bar["x"] >= 0 and bar["x"] + bar["width"] <= 100.001 for bar in drawn["bars"])
    assert all(0 <= bar["issue_height"] <= bar["height"] <= 100 for bar in drawn["bars"])
    assert drawn["threshold"] == pytest.approx(100)
    assert drawn["scale"] == "logarithm"


@pytest.mark.parametrize(
    ("edges", "counts"), [([], []), ([0, 1], [0]), ([0, 1], [3, 4]), ([1, 0], [3]), ([0, np.nan], [1])]
)
def test_no_histogram_without_a_distribution(edges, counts):
    assert charts.histogram(edges, counts, [], 2.0) is None


@pytest.mark.parametrize(("made", "wanted"), [
    (words.number(-0.01234), "\N{MINUS SIGN}0.0123"), (words.number(1234567.0), "1,234,567"), (words.number(-0.0), "0"),
    (words.fixed(-0.001), "0.00"), (words.count(np.int64(1797)), "1,797"), (words.duration(192), "3 min 12 s"),
    (words.duration(7260), "2 h 1 min"), (words.compact(20_000), "20k"), (words.label([1, 2.5, "x"]), "1, 2.5, x"),
    (words.counted(1, "row", "rows"), "1 row"), (words.counted(0, "row", "rows"), "0 rows"),
    (words.label([]), "none"), (words.label(b"cat"), "cat"), (words.clip("a\x00b\u202ec\ud800", 20), "a b c?"),
    (words.clip("one two three four", 14), "one two three…"), (words.percent(0.5), "50.0\u00a0%"),
])  # fmt: skip
def test_words(made, wanted):
    assert made == wanted


def test_report_does_not_load_ray():
    code = "import json, sys, diva_ray.report; print(json.dumps([m for m in sys.modules if m.split('.')[0] == 'ray']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def _decoded(uri: str) -> bytes:
    return base64.b64decode(uri.split(",", 1)[1])


def _bomb(side: int) -> bytes:
    """A PNG of side x side pixels in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("n,title", [(0, "Largest z (none beyond the threshold)"), (1, "The samples that hurt most")])
def test_the_title_over_the_largest_z_says_whether_any_hurts(n, title):
    report = full_report(summary=full_report().summary | {"n_detrimental": n})
    text = Page(render_score_page(report)).text
    assert title in text and ("hurt most" in text) == (n > 0)


def test_short_words_of_tables_stay_whole():
    name = "a-name-of-many-words-without-any-room"
    html = render_score_page(full_report(run=[("Features", "x"), (name, "x")], worst=[sample(id="train_0012")]))
    wide = html.split("@media (max-width")[0].replace("}", "}\n")
    rules = {rule.split("{")[0].strip(): rule for rule in wide.splitlines()}
    assert "overflow-wrap: break-word" in rules["tbody th"] and "inherit" in rules["tbody th code"]
    assert "overflow-wrap: anywhere" in rules["tbody .long"], "more exact than `tbody th`, so that it wins"
    assert '<th scope="row">Features</th>' in html and f'<th scope="row" class="long">{name}</th>' in html
    assert '<th scope="row"><code><bdi>train_0012<' in html
    assert words.number(1.56e-5) == "1.56e\N{MINUS SIGN}05", "no hyphen, after which a line may break"
    assert words.number(-1.56e-5) == "\N{MINUS SIGN}1.56e\N{MINUS SIGN}05"


def test_no_sample_that_hurts_has_no_colour():
    summary = {"n_samples": 9, "n_detrimental": 0, "n_label_issues": 1, "label_issue_precision": 1.0}
    page = Page(render_score_page(ScoreReport("t", summary=summary)))
    assert {"class": "hurts"} not in page.all("div") and {"class": "issue"} in page.all("div")
