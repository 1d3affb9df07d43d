"""Numbers and labels as a reader wants to see them, and the charts' ticks."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from diva_ray.report import words

MINUS, PERCENT = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}%"


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


@pytest.mark.parametrize(("made", "wanted"), [
    (words.aligned([12.3, 0.5, None]), ["12.3", "0.5", "\N{EN DASH}"]),
    (words.aligned([0.912, 0.0004], finest=0.0004), ["0.9120", "0.0004"]),
    (words.aligned([0.0345], percent=True), [f"3.45{PERCENT}"]),
    (words.aligned([0.0, math.nan]), ["0", "\N{EN DASH}"]),
    (words.ticks([0.998, 0.9985, 0.999]), ["0.9980", "0.9985", "0.9990"]),
    (words.ticks([0.0, 0.1, 0.2], percent=True), [f"0{PERCENT}", f"10{PERCENT}", f"20{PERCENT}"]),
    (words.ticks([0.0, 20_000.0, 40_000.0]), ["0", "20k", "40k"]),
    (words.ticks([]), []),
])  # fmt: skip
def test_words_of_columns_and_ticks(made, wanted):
    assert made == wanted


def test_report_does_not_load_ray():
    code = "import json, sys, diva_ray.report; print(json.dumps([m for m in sys.modules if m.split('.')[0] == 'ray']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_tiny_ticks_are_powers_of_ten():
    assert words.ticks([-1e-7, -5e-8, 0.0]) == [f"{MINUS}1e{MINUS}7", f"{MINUS}5e{MINUS}8", "0"]


def test_a_line_does_not_break_within_a_number():
    assert words.number(1.56e-5) == "1.56e\N{MINUS SIGN}05"
    assert words.number(-1.56e-5) == "\N{MINUS SIGN}1.56e\N{MINUS SIGN}05"
