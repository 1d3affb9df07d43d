"""What is coloured as a gain is beyond chance, and what wins among equals says why."""

import pytest

from diva_ray.tasks.told import reweighted, tuned
from diva_ray.tasks.told.chance import clear

DIFFERENCES = [(-1.97, "lower"), (-1.95, ""), (0.0, ""), (1.95, ""), (1.97, "higher")]


@pytest.mark.parametrize(("difference", "seen"), DIFFERENCES)
def test_a_difference_is_told_beyond_two_standard_errors(difference, seen):
    assert clear(difference, 1.0) == seen
    assert clear(difference, float("inf")) == "" and clear(0.0, 0.0) == ""


@pytest.mark.parametrize("method", ["safe", "paper"])
def test_an_error_is_coloured_only_where_the_loss_went_its_way_beyond_chance(method):
    def tone(error, gain):
        s = {"method": method, "error_uniform": 0.25, "error_reweighted": error, "gain": gain}
        return reweighted.tone_of({**s, "gain_standard_error": 0.01})

    assert tone(0.24, 0.03) == "good" and tone(0.26, -0.03) == "hurts"
    assert tone(0.24, 0.015) == tone(0.26, -0.015) == tone(0.26, 0.03) == tone(0.24, -0.03) == tone(0.25, 0.03) == ""
    words = reweighted.gain_words({"gain": 0.015, "gain_standard_error": 0.01})
    assert words.startswith("loss gain 0.015") and words.endswith("within chance")


def test_the_trial_that_wins_among_equals_says_why():
    s = {"task": "classification", "error": 0.2587, "best": {"trial": 7}}
    rows = [{"trial": 7, "error": 0.2587}, {"trial": 3, "error": 0.25874}, {"trial": 4, "error": 0.3}]
    (further,) = tuned.level_in_words(s, rows)
    assert "25.9" in further and "of trial 3 too: its error is less in further digits" in further
    (same,) = tuned.level_in_words(s, [*rows, {"trial": 9, "error": 0.2587}])
    assert "of trial 9, 3 too: of the same error a trial that changes no weights" in same
    assert tuned.level_in_words(s, rows[::2]) == []


@pytest.mark.parametrize(("n", "told"), [(1, "of the only trial"), (7, "the least of 7, so a little too good")])
def test_an_error_is_too_good_only_where_it_was_chosen_among_several(n, told):
    s = {"task": "classification", "n_trials": n, "n_complete": n, "n_stopped": 0, "n_failed": 0, "folds": 3,
         "best": {}, "n_validation": 100, "seconds_judging": 0.1, "varied": [], "error": 0.2, "standard_error": 0.01,
         "low": 0.18, "high": 0.22, "error_of_choosing": None, "test_error": None, "shared": {"passes": {}},
         "not_in_best": []}  # fmt: skip
    lines = tuned.told(s)
    assert lines[2].endswith(f"(0.1800 to 0.2200): {told}") and lines[0].startswith(f"{n} trial{'s' * (n > 1)} (")
