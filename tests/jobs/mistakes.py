"""Small good tables to spoil, and what a refusal must look like."""

import numpy as np
import pyarrow as pa
import pytest

import diva_ray
from diva_ray.errors import InputError

INLINE = {"kind": "inline", "threads": 1}
N = 60
X = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)
Y = np.arange(N) % 3
BIG = {"features": np.random.default_rng(0).standard_normal((2600, 3)).astype(np.float32), "label": np.arange(2600) % 3}


def score(data, **options):
    return diva_ray.score(data, **{"quiet": True, "cluster": INLINE, "ridge": 0.1, **options})


def refuses(told, data, **options):
    """Expect one line: what must hold, `got`, where, and an option to change."""
    with pytest.raises(InputError, match=told) as caught:
        score(data, **options)
    line = str(caught.value)
    assert "\n" not in line and ", got " in line
    assert line.rstrip().endswith("."), line


def base(**columns):
    return {"features": X, "label": Y, **columns}


def table(**columns):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 4)
    return pa.table({"features": lists, "label": Y, **columns})


def spoilt(values, row, value):
    """Return a copy with one entry changed."""
    result = np.array(values, dtype=object if value is None else None)
    result[row] = value
    return result.tolist() if value is None else result
