"""Pairs: joint derivatives and standard errors against refits, and which pairs belong together."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

import diva_ray
from diva_ray.tasks.told.pairs_page import headline, swapped_in_words, told
from tests.pages import Page

INLINE = {"kind": "inline", "threads": 1}


def made(n, widths, *, seed=0, aligned=False, noise=1.0, per_group=1, latent=4):
    """Return two bands that share a latent cause, and groups of consecutive rows."""
    draw = np.random.default_rng(seed)
    cause = draw.standard_normal((n, latent))
    mix = [draw.standard_normal((latent, d)) for d in widths]
    mix = [mix[0], mix[0]] if aligned else mix
    bands = [cause @ m + noise * draw.standard_normal((n, m.shape[1])) + draw.standard_normal(m.shape[1]) for m in mix]
    return {"image": bands[0], "text": bands[1], "group": np.arange(n) // per_group}


def shuffled(data, share, seed=0):
    """Return the pairs with a share of their texts passed on in a circle, and which still belong together."""
    rows = np.random.default_rng(seed).permutation(len(data["text"]))[: round(share * len(data["text"]))]
    text = data["text"].copy()
    text[rows] = data["text"][np.roll(rows, 1)]
    belongs = np.ones(len(text), bool)
    belongs[rows] = False
    return {**data, "text": text, "belongs": belongs}


def score(data, **options):
    wanted = {"task": "pairs", "features": ["image", "text"], "group": "group", "quiet": True, "cluster": INLINE}
    return diva_ray.score(data, **{**wanted, **options})


def unit_band(x):
    x = x - x.mean(0)
    return x / np.sqrt((x**2).sum(1).mean())


def group_losses(x, y, groups, alpha, ridge, slope, loss):
    """Return the left-out loss of every group, each from a fit of its own."""
    Z, T = np.c_[np.ones(len(x)), x], y - slope * x if slope else y
    penalty = np.diag(np.r_[0.0, np.full(x.shape[1], ridge)])
    found = []
    for g in np.unique(groups):
        a = np.where(groups == g, 0.0, alpha)
        W = np.linalg.solve((Z.T * a) @ Z + penalty, (Z.T * a) @ T)
        f, own = (Z @ W + (slope * x if slope else 0.0))[groups == g], y[groups == g]
        cosines = (f * own).sum(1) / np.linalg.norm(f, axis=1) / np.linalg.norm(own, axis=1)
        found.append(((f - own) ** 2).sum() if loss == "squared" else (1 - cosines).sum())
    return np.array(found)


def naive_derivatives(data, ridge, *, slopes=(0.0, 0.0), loss="cosine"):
    """Return per direction the derivative of every group's loss with respect to every weight, (rows, groups)."""
    x, y = unit_band(data["image"]), unit_band(data["text"])
    n, groups, step = len(x), data["group"], 1e-5
    tables = []
    for source, target, slope in ((x, y, slopes[0]), (y, x, slopes[1])):
        rows = []
        for j in range(n):
            up, down = np.ones(n), np.ones(n)
            up[j], down[j] = 1 + step, 1 - step
            ends = [group_losses(source, target, groups, a, ridge, slope, loss) for a in (up, down)]
            rows.append((ends[0] - ends[1]) / (2 * step))
        tables.append(np.array(rows))
    return tables


CASES = {
    "primal": ({"n": 40, "widths": (4, 6)}, {}),
    "primal, groups of three": ({"n": 39, "widths": (4, 6), "per_group": 3}, {}),
    "dual": ({"n": 14, "widths": (20, 5)}, {}),
    "dual, groups of two": ({"n": 14, "widths": (20, 5), "per_group": 2}, {}),
    "squared": ({"n": 30, "widths": (4, 6)}, {"loss": "squared"}),
    "blocks of seven": ({"n": 40, "widths": (4, 6), "per_group": 2}, {"block_rows": 7}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_joint_derivative_and_its_standard_error_are_those_of_refits(name):
    shape, options = CASES[name]
    data = made(**shape)
    result = score(data, ridge=0.7, precision="float64", **options)
    forward, backward = naive_derivatives(data, 0.7, loss=options.get("loss", "cosine"))
    found = result.samples
    assert result.summary["form"] == ("dual" if "dual" in name else "primal")
    for column, true in (("derivative_forward", forward.sum(1)), ("derivative_backward", backward.sum(1))):
        np.testing.assert_allclose(found[column], true, rtol=2e-4, atol=1e-7)
    np.testing.assert_allclose(found["derivative"], (forward + backward).sum(1), rtol=2e-4, atol=1e-7)
    error = np.sqrt(((forward + backward) ** 2).sum(1))
    np.testing.assert_allclose(found["standard_error"], error, rtol=2e-4)
    apart = np.sqrt((forward**2).sum(1)) + np.sqrt((backward**2).sum(1))
    assert (error < 0.999 * apart).any(), "adding the errors of both directions must not be the same"
    np.testing.assert_allclose(
        found["z"], found["derivative"].to_numpy() / found["standard_error"].to_numpy(), rtol=1e-5
    )


@pytest.mark.parametrize("shape", [{"n": 60, "widths": (6, 6)}, {"n": 20, "widths": (24, 24), "latent": 6}])
def test_aligned_towers_are_each_others_pretrained_output(shape):
    data = made(aligned=True, noise=0.5, **shape)
    result = score(data, ridge=0.7, precision="float64")
    assert result.summary["aligned"]
    x, y = unit_band(data["image"]), unit_band(data["text"])
    slopes = [(x * y).sum() / (side**2).sum() for side in (x, y)]
    forward, backward = naive_derivatives(data, 0.7, slopes=slopes)
    np.testing.assert_allclose(result.samples["derivative"], (forward + backward).sum(1), rtol=1e-3, atol=1e-6)
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(result.samples["cosine"], cosines, rtol=1e-5, atol=1e-6)


def test_sign_vectors_estimate_the_joint_standard_error():
    data = made(600, (5, 7), per_group=2, seed=3)
    exact = score(data, ridge=1.0, standard_errors="exact").samples
    drawn = score(data, ridge=1.0, standard_errors="estimate").samples
    np.testing.assert_allclose(drawn["derivative"], exact["derivative"], rtol=1e-3, atol=1e-4)
    ratio = drawn["standard_error"].to_numpy() / exact["standard_error"].to_numpy()
    assert 0.9 < np.median(ratio) < 1.05  # the root of a mean square of eight draws is 3 % low on average
    assert ratio.std() < 0.4


def test_both_directions_take_the_same_sign_vectors_however_unlike_their_widths():
    options = {"task": "pairs", "features": ["a", "b"], "ridge": 10.0, "cluster": "inline", "quiet": True}
    generator = np.random.default_rng(0)
    A = generator.standard_normal((500, 60))
    data = {"a": A, "b": A[:, :2] + 0.1 * generator.standard_normal((500, 2))}
    plan = diva_ray.score(data, standard_errors="estimate", plan=True, **options)
    assert "standard errors are estimated from 8 sign vectors" in plan.notes
    exact, estimate = (diva_ray.score(data, standard_errors=kind, **options) for kind in ("exact", "estimate"))
    assert estimate.summary["standard_errors"] == "8 sign vectors"
    ratio = estimate.samples["standard_error"].to_numpy() / exact.samples["standard_error"].to_numpy()
    assert 0.85 < np.median(ratio) < 1.15


def test_sources_add_up_the_joint_contributions_whichever_way_errors_are_found():
    for errors, tolerance in (("exact", 1e-4), ("estimate", 1e-3)):
        data = {**made(120, (5, 7), per_group=2), "source": np.array(["a", "b", "c"])[np.arange(120) // 2 % 3]}
        result = score(data, source="source", ridge=1.0, standard_errors=errors, precision="float64")
        sums = result.samples.group_by("source").aggregate([("derivative", "sum")]).sort_by("source")
        import pyarrow.parquet as pq

        found = pq.read_table(f"{result.path}/sources.parquet")
        np.testing.assert_allclose(found["derivative"], sums["derivative_sum"], rtol=tolerance)
        if errors == "exact":
            forward, backward = naive_derivatives(data, 1.0)
            rows = [(forward + backward)[data["source"] == name].sum(0) for name in "abc"]
            np.testing.assert_allclose(found["standard_error"], np.linalg.norm(rows, axis=1), rtol=1e-4)


def test_widely_different_towers_find_the_mismatched_and_say_how_well():
    data = shuffled(made(3000, (24, 40), noise=1.0, latent=10), 0.2)
    result = score(data, truth="belongs")
    found = result.summary["planted"]
    assert not result.summary["aligned"]
    assert found["auc_label_score"] > 0.97
    cosine = result.samples["cosine_forward"].to_numpy()
    assert found["auc_label_score"] > roc_auc_score(~data["belongs"], -cosine)
    assert abs(result.summary["noise_estimate"] - 0.2) < 0.05
    assert abs(result.summary["label_issue_precision"] - found["precision"]) < 0.12
    assert abs(result.summary["label_issue_recall"] - found["recall"]) < 0.12
    page = result.folder.read("report.html").decode()
    assert "pairs do not belong together by <code>belongs</code>, found" in page


def test_the_share_of_mismatched_pairs_may_be_the_larger_part():
    data = shuffled(made(3000, (24, 24), aligned=True, noise=0.4, latent=10), 0.7)
    result = score(data, truth="belongs")
    assert result.summary["aligned"]
    assert abs(result.summary["noise_estimate"] - 0.7) < 0.05
    assert result.summary["planted"]["f1"] > 0.95


def test_right_pairs_are_left_alone_and_unrelated_towers_accuse_no_one():
    assert score(made(1500, (24, 40), latent=10)).summary["n_label_issues"] < 15
    draw = np.random.default_rng(0)
    noise = {"image": draw.standard_normal((500, 6)), "text": draw.standard_normal((500, 6)), "group": np.arange(500)}
    summary = score(noise).summary
    assert not summary["aligned"]
    assert summary["n_label_issues"] == 0


def test_rows_of_weight_zero_and_held_out_rows_shape_nothing(tmp_path):
    data = made(200, (5, 7))
    import pyarrow.parquet as pq

    lists = {k: pa.array(list(v)) if v.ndim == 2 else pa.array(v) for k, v in data.items()}
    pq.write_table(pa.table(lists).slice(150), tmp_path / "held.parquet")
    held = score({k: v[:150] for k, v in data.items()}, validation=str(tmp_path / "held.parquet"))
    assert held.summary["n_validation"] == 50
    assert len(held.samples) == 150


def test_duplicates_constant_captions_and_zero_rows_are_no_harm():
    data = made(60, (5, 7))
    data["text"][10:30] = data["text"][10]
    data["image"][5] = 0.0
    data["text"][6] = data["text"].mean(0)
    assert np.isfinite(score(data).samples["derivative"].to_numpy()).all()
    constant = {**data, "text": np.ones((60, 7))}
    found = score(constant, ridge=1.0).samples
    assert np.isfinite(found["derivative"].to_numpy()).all() and not found["is_label_issue"].to_numpy().any()


def test_scattered_groups_come_back_in_order():
    data = made(2400, (5, 7), per_group=2)
    order = np.random.default_rng(0).permutation(2400)
    kept, mixed = score(data, ridge=1.0), score({k: v[order] for k, v in data.items()}, ridge=1.0)
    np.testing.assert_allclose(
        mixed.samples["derivative"], kept.samples["derivative"].to_numpy()[order], rtol=1e-2, atol=1e-3
    )


def test_a_curated_copy_and_left_out_predictions():
    data = shuffled(made(400, (10, 12), noise=0.3), 0.2)
    result = score(data, truth="belongs", curate="drop", outputs=True)
    assert result.summary["curated"]["rows"] == 400 - result.summary["n_label_issues"]
    assert len(result.samples["loo_second"][0]) == 12 and len(result.samples["loo_first"][0]) == 10
    page = result.folder.read("report.html").decode()
    assert "Which pairs belong together" in page


@pytest.mark.parametrize("share", [0.0, 0.2])
@pytest.mark.parametrize("case", ["weak", "one column"])
def test_nothing_is_flagged_where_sides_say_too_little_of_each_other(case, share):
    data = made(1500, (48, 40), noise=9.0, latent=10) if case == "weak" else made(600, (1, 1), noise=0.4)
    data = shuffled(data, share)
    result = score(data, truth="belongs")
    assert result.summary["informed"] and not result.summary["clear"]  # ranking is still better than chance
    assert not any(result.samples["is_label_issue"].to_pylist()) and result.summary["noise_estimate"] == 0
    assert "too weakly to flag any" in " ".join(result.lines())
    assert "nothing is flagged" in (result.folder.read("report.html")).decode()
    if share:
        assert roc_auc_score(data["belongs"], result.samples["log_odds"].to_numpy()) > 0.6
        by_odds = result.samples["label_score"].to_numpy()[np.argsort(result.samples["log_odds"].to_numpy())]
        assert (np.diff(by_odds) > -1e-6).all() and by_odds[0] < by_odds[-1]  # probabilities are in the same order


def test_one_pair_is_told_as_one():
    known = {"n_samples": 9, "aligned": True, "error": {"forward": 0.1, "backward": 0.2}, "n_label_issues": 1,
             "label_issue_precision": 0.9, "label_issue_recall": 0.8, "noise_estimate": 0.1, "n_detrimental": 1,
             "threshold": 2.0, "informed": False}  # fmt: skip
    one = told(known)[1]
    assert one.startswith("1 pair probably does not belong together (") and one.endswith("; 1 pair hurts (z > 2.00)")
    none = told({**known, "n_label_issues": 0, "n_detrimental": 0})[1]
    assert none == "0 pairs probably do not belong together; 0 pairs hurt (z > 2.00)"


@pytest.mark.parametrize("noise", [0.3, 9.0])
def test_the_page_promises_what_it_shows(noise):
    data = shuffled(made(400, (10, 12), noise=noise), 0.2)
    data["caption"] = [f"caption {k}" for k in range(400)]
    result = score(data, show="caption")
    page = Page(result.folder.read("report.html").decode()).text
    flagged = noise < 1
    assert bool(result.summary["n_label_issues"]) == flagged
    assert ("Probably mismatched: what image calls for" in page) == flagged
    assert ("Least probable pairs (none is flagged): what image calls for" in page) != flagged
    assert "How to read this" in page and ("of the flagged pairs should really be mismatched" in page) == flagged
    assert "the text of the sampled pair whose image suits this text best. No picture" in page
    assert "weight 1" not in page


def test_the_second_gallery_names_what_there_is_to_show():
    words = swapped_in_words([{"picture": b"", "text": "a"}], "image", "text")
    assert words == "The text of each, beside the picture of the sampled pair whose image suits this text best."
    assert "Nothing was given to show" in swapped_in_words([{"id": 1}], "image", "text")


def test_the_verdict_comes_first_in_whole_sentences():
    known = {"n_samples": 900, "aligned": True, "error": {"forward": 0.1, "backward": 0.2}, "n_label_issues": 1,
             "label_issue_precision": 0.9, "label_issue_recall": 0.8, "n_detrimental": 1, "threshold": 2.0,
             "planted": {"n_planted": 1, "by": "belongs", "n_found": 1, "precision": 1.0, "recall": 1.0, "f1": 1.0},
             }  # fmt: skip
    found, nothing = headline(known), headline({**known, "n_label_issues": 0, "n_detrimental": 0})
    assert found[0].startswith("1 of 900 pairs probably does not belong together (") and "; 1 hurts (z" in found[0]
    assert nothing[0] == "None of 900 pairs is flagged as mismatched; none hurts (z > 2.00)."
    assert found[1].startswith("1 pair does not belong together by `belongs`") and "squared error" in found[-1]
    assert all(sentence.endswith(".") for sentence in found)
