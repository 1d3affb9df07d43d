"""Random projections as an option of the jobs: the same as features that were projected before."""

import numpy as np
import pytest

import diva_ray
from diva_ray.core.subspace import gaussian_projection
from tests.jobs.mistakes import INLINE


def draw(n=400):
    generator = np.random.default_rng(0)
    image, text = generator.standard_normal((n, 30)), generator.standard_normal((n, 6))
    missing = [None if k % 7 == 0 else row.tolist() for k, row in enumerate(text)]
    return {"image": image, "text": missing, "label": (image[:, 0] + 0.3 * text[:, 0] > 0).astype(int)}


@pytest.mark.parametrize("n", [400, 25])  # the dual form too
@pytest.mark.parametrize("columns", [8, 4])
def test_scores_are_those_of_projected_features(n, columns):
    table = {name: values[:n] for name, values in draw().items()}
    R, S = gaussian_projection(30, columns, "image", 3).numpy(), gaussian_projection(6, columns, "text", 3).numpy()
    text = (
        table["text"]
        if columns >= 6
        else [None if row is None else (np.array(row) @ S).tolist() for row in table["text"]]
    )
    before = {**table, "image": table["image"] @ R, "text": text}
    options = {"features": ["image", "text"], "standardize": "none", "ridge": 1.0, "precision": "float64", "seed": 3}
    found = diva_ray.score(table, projection=columns, cluster=INLINE, quiet=True, **options)
    expected = diva_ray.score(before, cluster=INLINE, quiet=True, **options)
    assert found.summary["n_features"] == columns + min(columns, 6)
    for name in ("derivative", "standard_error", "leverage", "loss"):
        np.testing.assert_allclose(found.samples[name], expected.samples[name], rtol=2e-5, atol=1e-7)
    assert found.summary["band_penalty_derivative"] == pytest.approx(expected.summary["band_penalty_derivative"])


def test_a_projection_of_every_job_that_fits():
    """Steps, extension and aggregation see projected columns as well; widths that are narrow enough stay."""
    table = {**draw(), "text": draw()["image"][:, 5:11]}
    options = {"features": ["image", "text"], "projection": 10, "cluster": INLINE, "quiet": True}
    assert diva_ray.reweight(table, steps=1, folds=2, **options).summary["n_features"] == 16
    assert diva_ray.aggregate(table, starts=1, evaluations=5, **options).summary["n_features"] == 16
    pool = {name: values[:100] for name, values in table.items()}
    assert diva_ray.extend(table, pool=pool, budget=10, rounds=1, **options).summary["n_selected"] == 10
