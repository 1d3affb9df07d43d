"""A run whose driver dies at any pass is resumed to the same bits, and takes no pass twice."""

import json

import numpy as np
import pytest

import diva_ray
from diva_ray.engine.inline import Inline
from diva_ray.tasks import done


def table(n=1300, seed=0):
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, 12)).astype(np.float32)
    y = (X[:, :4] + generator.standard_normal((n, 4))).argmax(1)
    return {"features": X, "label": y, "id": np.arange(n) + 10_000 * seed, "source": np.array(["a", "b"])[y % 2]}


def bands():
    rows = table()
    rows["first"], rows["second"] = rows["features"][:, :6], rows["features"][:, 6:]
    return {**rows, "features": None}


def copies():
    rows = table(600)
    turned = {**rows, "features": rows["features"] + 0.5}
    both = {name: np.concatenate([rows[name], turned[name]]) for name in ("features", "label")}
    return {**both, "group": np.tile(np.arange(600), 2), "source": np.repeat(["identity", "turned"], 600)}


RUNS = {
    "score": lambda **o: diva_ray.score(table(), source="source", **o),
    "groups": lambda **o: diva_ray.score(copies(), group="group", source="source", **o),
    "reweight": lambda **o: diva_ray.reweight(table(), folds=2, steps=2, **o),
    "paper": lambda **o: diva_ray.reweight(table(), method="paper", folds=2, steps=2, **o),
    "extend": lambda **o: diva_ray.extend(table(), table(1300, 1), rounds=3, budget=500, **o),
    "aggregate": lambda **o: diva_ray.aggregate(
        {k: v for k, v in bands().items() if v is not None}, features=["first", "second"], starts=2, weights="joint",
        evaluations=4, folds=2, steps=1, **o,
    ),
    "augment": lambda **o: diva_ray.augment(copies(), group="group", source="source", folds=2, steps=1, **o),
}  # fmt: skip


LOADING = ("scan", "places_of_key")  # kernels that load and check what is given: every attempt does that
OWN = ("seconds", "workers", "peak_memory_bytes", "driver_memory_bytes")  # figures of the attempt, not of the data


class DriverDied(BaseException):
    """What a test ends a driver with: nothing catches it."""


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumes_from_any_pass_to_the_same_bits_without_taking_one_twice(name, tmp_path, monkeypatch):
    run, whole = RUNS[name], Inline.each
    taken: list[str] = []
    dying: list[int] = []
    monkeypatch.setattr(done, "DEAR", 0.0)

    def each(self, kernel, *rest):
        if dying and len(taken) == dying[0]:
            raise DriverDied
        taken.append(getattr(kernel, "__name__", "") or kernel.func.__name__)
        return whole(self, kernel, *rest)

    monkeypatch.setattr(Inline, "each", each)
    undisturbed = run(cluster="inline", quiet=True, output=str(tmp_path / "whole"))
    assert not (tmp_path / "whole" / "steps").exists() and not (tmp_path / "whole" / "weights").exists()
    path = list(taken)
    first = next(k for k, kernel in enumerate(path) if kernel not in LOADING)
    output, at = str(tmp_path / "run"), first
    stops = sorted({*range(first + 1, len(path), max(1, (len(path) - first) // 2)), len(path) - 1})
    for k in stops:
        taken.clear()
        dying[:] = [first + k - at]
        with pytest.raises(DriverDied):
            run(cluster="inline", quiet=True, output=output, resume=at > first)
        assert taken == path[:first] + path[at:k]
        markers = sorted((tmp_path / "run" / "steps").glob("*.json"))
        told = json.loads(markers[-1].read_text())
        assert told["step"] == len(markers) - 1 == k - first - 1
        assert told["kernel"] == path[k - 1] and told["rows"] > 0 and told["seconds"] >= 0 and told["finished"]
        at = k
    dying.clear()
    taken.clear()
    result = run(cluster="inline", quiet=True, output=output, resume=True)
    assert taken == path[:first] + path[at:]
    if name != "augment":
        written = "selected" if name == "extend" else "samples"
        assert result.folder.read_table(written).equals(undisturbed.folder.read_table(written))
    for figure, value in undisturbed.summary.items():
        if figure not in OWN:
            assert json.dumps(result.summary[figure], default=str) == json.dumps(value, default=str), figure
