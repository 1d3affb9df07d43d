"""Augmentation: probabilities of transforms of real pictures, ours and the paper's, and the test error they lead to."""

from __future__ import annotations

import numpy as np

import diva_ray
from diva_ray.bench.sets import RealSet, read_pictures
from diva_ray.bench.tables import Results, Table, told
from diva_ray.data.columns import to_matrix
from diva_ray.tasks.setup.result import Result

SETS = ("digits", "fashion-mnist")  # those that are pictures
TRANSFORMS = ("identity", "hflip", "vflip", "shift", "tilt")
ORIGINALS = 600
ERRORS = {
    "originals": "originals only", "alike": "all copies alike", "ours": "ours", "paper": "DIVA paper",
}  # fmt: skip
NOTE = (
    "A ridge head on pixels, the test pictures as they are; one ridge, chosen by leaving originals out with all their "
    "copies, for every fit. Ours and the paper's weigh a copy by the probability of its transform."
)


def measure(one: RealSet, noise: float, seed: int) -> dict[str, float]:
    """Return probability and z of every transform, and the test error in percent of fits to the copies."""
    pictures, labels, test, test_labels = read_pictures(one.name)
    some = np.random.default_rng(seed).permutation(len(pictures))[:ORIGINALS]
    table = diva_ray.augmented(list(pictures[some]), labels[some].tolist(), TRANSFORMS, seed=seed)
    named = {"source": "transform", "group": "original", "cluster": {"kind": "inline", "threads": 1}, "quiet": True}
    result = diva_ray.augment(table, seed=seed, **named)
    assert isinstance(result, Result)
    found = result.summary["augmentations"]
    copies = RealSet(
        one.name, {"features": np.asarray(to_matrix(table["features"], "features", "")[0])}, table["label"].to_numpy(),
        {"features": test.reshape(len(test), -1).astype(np.float32) / 255}, test_labels,
    )  # fmt: skip
    transform = table["transform"].to_numpy(zero_copy_only=False)
    weights = {
        "originals": (transform == "identity") * 1.0,
        "alike": np.ones(len(transform)),
        "ours": np.array([found[name]["probability"] for name in transform]) * len(TRANSFORMS),
        "paper": np.array([found[name]["probability_paper"] for name in transform]) * len(TRANSFORMS),
    }
    ridge, figures = result.summary["ridge"], {}
    for name, weight in weights.items():
        figures[name] = copies.test_error(copies.fit_sums(copies.truth, weight), ridge)
    for name, row in found.items():
        figures[f"p {name}"], figures[f"paper {name}"] = 100 * row["probability"], 100 * row["probability_paper"]
        figures[f"z {name}"], figures[f"loo {name}"] = row["z"], row["z_leave_one_out"]
    figures["lgo"] = 100 * result.summary["error_leave_group_out"]
    figures["loo"] = 100 * result.summary["error_leave_one_out"]
    return figures


def tables(results: Results) -> list[Table]:
    """Return the probabilities by transform, and the test errors."""
    head = ["set", "transform", "probability", "z", "paper's probability", "z, copies left in"]
    rows = []
    for key in results.values:
        for name in TRANSFORMS:
            cells = [results.cell(key, f"{what} {name}", 1) for what in ("p", "z", "paper", "loo")]
            rows.append([told(key).partition(",")[0], name, *cells])
    leak = [
        f"{told(key).partition(',')[0]}: {results.cell(key, 'loo', 1)} % error with copies left in, "
        f"{results.cell(key, 'lgo', 1)} % with all copies left out"
        for key in results.values
    ]
    note = "Probabilities in percent. Originals left out: " + "; ".join(leak) + "."
    errors = results.table("Test error in percent by how copies are weighted", ERRORS, 2, min, NOTE)
    return [Table("Probabilities of transforms", head, rows, note), errors]
