"""Samples of rows from which rules for verdicts are fitted: the same rows whatever their order, of fixed size."""

import numpy as np
import pytest

import diva_ray
from diva_ray.core import noise, partners
from diva_ray.tasks import pairs
from diva_ray.tasks.fit import calibrate
from tests.tasks.test_pairs import made, shuffled


def by_id(data, order, **options):
    result = diva_ray.score(
        {name: values[order] for name, values in data.items()},
        id="id", precision="float64", quiet=True, cluster={"kind": "inline", "threads": 1}, **options,
    )  # fmt: skip
    back = np.argsort(result.samples["id"].to_numpy())
    return result.summary, {name: result.samples[name].to_numpy()[back] for name in ("label_score", "is_label_issue")}


def flipped():
    """Return 3,000 rows of four classes, of each of which a fifth is called the next."""
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 4, 3000)
    X = 1.2 * np.eye(4)[truth] + 0.5 * draw.standard_normal((3000, 4))
    return {"features": X, "label": np.where(draw.random(3000) < 0.2, (truth + 1) % 4, truth), "id": np.arange(3000)}


def swapped():
    data = shuffled(made(900, (12, 10), noise=0.6), 0.2)
    return {"image": data["image"], "text": data["text"], "id": np.arange(900)}


@pytest.mark.parametrize("kind", ["classes", "pairs"])
def test_which_rows_are_sampled_does_not_depend_on_their_order(kind, monkeypatch):
    data, options, room, fit, at = {
        "classes": (flipped(), {"features": "features", "label": "label"}, noise, "fit_flips", 1),
        "pairs": (swapped(), {"features": ["image", "text"], "task": "pairs"}, partners, "fit_sharpness", 0),
    }[kind]
    monkeypatch.setattr(calibrate, "SAMPLED", 300)
    monkeypatch.setattr(pairs, "SAMPLED_PAIRS", 300)
    sizes, real = [], getattr(room, fit)
    monkeypatch.setattr(room, fit, lambda *given: (sizes.append(len(given[at])), real(*given))[1])
    rows = np.arange(len(data["id"]))
    (told, as_given), (again, moved) = by_id(data, rows, **options), by_id(data, rows[::-1], **options)
    assert set(sizes) == {300} and told["n_label_issues"] > 20
    np.testing.assert_allclose(moved["label_score"], as_given["label_score"], atol=2e-5)
    np.testing.assert_array_equal(moved["is_label_issue"], as_given["is_label_issue"])
    assert again["noise_estimate"] == pytest.approx(told["noise_estimate"], abs=1e-4)
