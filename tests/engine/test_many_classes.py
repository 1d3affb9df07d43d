"""Many classes: outputs that are computed again say what kept ones say, and nothing of rows x classes is held."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import diva_ray
from diva_ray.tasks.setup import session, settle
from tests.data.tables import INLINE

GENERATOR = np.random.default_rng(4)
N, C = 6000, 5
X = GENERATOR.standard_normal((N, 12)).astype(np.float32)
LOGITS = X[:, :C] + GENERATOR.standard_normal((N, C))
LABEL = np.array([f"class {k}" for k in LOGITS.argmax(1)])
MORE = {
    "group": GENERATOR.integers(0, N // 2, N), "weight": GENERATOR.random(N), "source": LABEL,
    "offset": list(GENERATOR.standard_normal((N, C)) / 3),
    "id": np.array([f"row {k}" for k in GENERATOR.permutation(N)]),
}  # fmt: skip
SEVERAL = [[f"class {k}" for k in np.flatnonzero(row > 0.5)] for row in LOGITS]
CASES = {
    "alone": ({"label": LABEL}, {}),
    "groups": ({"label": LABEL, **MORE}, {k: k for k in ("group", "weight", "source", "offset")}),
    "several": ({"label": SEVERAL, **MORE}, {"task": "multilabel", "group": "group"}),
    "estimates": ({"label": LABEL}, {"standard_errors": "estimate"}),
}


@pytest.mark.parametrize(
    "case", [pytest.param("several", marks=pytest.mark.long), *(c for c in CASES if c != "several")]
)
def test_outputs_that_are_computed_again_say_what_kept_ones_say(case, monkeypatch):
    columns, options = CASES[case]
    data, options = {"features": X, **columns}, {"quiet": True, "cluster": INLINE, "outputs": True, **options}
    kept = diva_ray.score(data, **options)
    monkeypatch.setattr(settle, "keeps_outputs", lambda *sizes: False)
    again = diva_ray.score(data, **options)
    one, other = kept.samples, again.samples
    assert one.schema.equals(other.schema)
    for name in one.column_names:
        if one[name].type in ("float", "double") or name == "loo_output":
            first, second = (np.array(table[name].to_pylist(), float) for table in (one, other))
            np.testing.assert_allclose(second, first, rtol=2e-4, atol=2e-5, err_msg=name)
        else:
            assert sum(a != b for a, b in zip(one[name].to_pylist(), other[name].to_pylist(), strict=True)) <= 2, name


def test_fewer_buckets_than_classes_make_standard_errors_larger_and_say_so(monkeypatch):
    data = {"features": X, "label": LABEL}
    options = {"quiet": True, "cluster": INLINE}
    exact, plain = (diva_ray.score(data, standard_errors=kind, **options) for kind in ("exact", "estimate"))
    whole = session.make_setup
    monkeypatch.setattr(session, "make_setup", lambda *found: replace(whole(*found), buckets=2))
    folded = diva_ray.score(data, standard_errors="estimate", **options)
    errors = [result.samples["standard_error"].to_numpy() for result in (exact, plain, folded)]
    np.testing.assert_allclose(*(r.samples["derivative"].to_numpy() for r in (plain, folded)), rtol=2e-4, atol=1e-5)
    medians = [np.median(error / errors[0]) for error in errors[1:]]
    assert 0.9 < medians[0] < medians[1] < 2
    assert folded.summary["standard_errors"] == "32 sign vectors, classes folded onto 2 buckets"
    assert "2 buckets" in (folded.folder.read("report.html")).decode()


MEMORY = """
import numpy as np
import diva_ray

def peak():  # ru_maxrss would hold the memory of the process that started this one
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

n, p, c = 16_000, 64, 2_500
generator = np.random.default_rng(0)
y = generator.integers(0, c, n)
X = (generator.standard_normal((c, p))[y] + generator.standard_normal((n, p))).astype(np.float32)
data = {"features": X, "label": np.char.add("class ", y.astype(str))}
options = {"cluster": {"kind": "inline", "threads": 1}, "ridge": 300.0, "block_rows": 128, "quiet": True}
diva_ray.score({"features": X[:99], "label": y[:99] % 3}, **options)  # libraries are loaded now
before = peak()
plan, result = diva_ray.score(data, plan=True, **options), diva_ray.score(data, **options)
after = peak()
print(before * 1024, after * 1024, plan.sizes.need("memory", 1), result.summary["error"])
"""


@pytest.mark.long
def test_memory_does_not_grow_with_rows_times_classes():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    before, after, planned, error = map(float, done.stdout.split())
    assert error < 0.9  # of classes that are learnt from six others like them each
    assert after - before < 0.5 * (2 * 16_000 * 2_500 * 4)  # of what outputs and residuals of all rows would take
    assert after < 1.3 * planned
