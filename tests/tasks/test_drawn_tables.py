"""`diva_ray.score` from a table to its files, on drawn tables with drawn options, against refits of the whole table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import diva_ray
from tests import oracles

INLINE = {"kind": "inline", "threads": 1}
KINDS = {"classification": "cross_entropy", "regression": "squared", "vector": "squared", "multilabel": "logistic"}


@dataclass
class Drawn:
    """A table as a user has it, the options of a call, and the same in the letters of method.md."""

    table: dict[str, Any]
    options: dict[str, Any]
    bands: list[np.ndarray]  # NaN where a row has none
    shares: list[float]
    Y: torch.Tensor
    kind: str
    weight: np.ndarray
    validation: np.ndarray
    groups: np.ndarray
    offset: np.ndarray
    held_out: Drawn | None = field(default=None)

    def problem(self, ridge: float, like: Drawn | None = None) -> oracles.Problem:
        """Return the problem at a ridge; `like`: of the table whose rows scale the bands."""
        parts, penalties = [], []
        for own, seen, share in zip(self.bands, (like or self).bands, self.shares, strict=True):
            some = seen[~np.isnan(seen[:, 0])]
            mean, scale = np.zeros(own.shape[1]), 1.0
            if self.options["standardize"] == "auto":
                mean = some.mean(0)
                scale = np.sqrt(((some - mean) ** 2).sum(1).mean())
            parts.append(np.nan_to_num((own - mean) / scale))
            penalties.append(np.full(own.shape[1], ridge / share))
        if self.options["intercept"]:
            parts.append(np.ones((len(self.weight), 1)))
            penalties.append(np.zeros(1))
        tensors = (np.concatenate(parts, 1), self.weight, self.validation, np.concatenate(penalties), self.offset)
        Z, alpha, v, Lambda, offset = map(torch.from_numpy, tensors)
        return oracles.Problem(Z, self.Y, alpha, v, Lambda, offset, torch.from_numpy(self.groups), self.kind)


def labels(generator: np.random.Generator, task: str, n: int, c: int) -> tuple[list, torch.Tensor]:
    """Return n labels of a task as a table has them, and as targets."""
    if task == "classification":
        code = np.concatenate([np.arange(c), np.arange(c), generator.integers(0, c, n - 2 * c)])
        return [f"c{k}" for k in code], torch.from_numpy(code)
    if task == "multilabel":
        hot = generator.random((n, c)) < 0.4
        hot[np.arange(c), np.arange(c)] = True
        return [[f"t{k}" for k in np.flatnonzero(row)] for row in hot], torch.from_numpy(hot).double()
    y = 3 * generator.standard_normal((n, c))
    return (y[:, 0].tolist() if task == "regression" else list(y)), torch.from_numpy(y)


def draw(seed: int) -> Drawn:
    """Return a table with options: bands with missing rows, weights of 0, groups, offsets, sources, a table apart."""
    generator = np.random.default_rng(seed)
    chance = generator.random

    def rows(n: int, c: int, task: str, bands: list[tuple[int, float, float, bool]], roles: dict[str, bool]):
        label, Y = labels(generator, task, n, c)
        X = [10**size * generator.standard_normal((n, width)) + mean for width, size, mean, _ in bands]
        for own, (*_, gaps) in zip(X, bands, strict=True):
            own[4:][chance(n - 4) < 0.2 * gaps] = np.nan
        weight, validation, offset, groups = np.ones(n), np.ones(n), np.zeros((n, c)), np.arange(n)
        table = {"id": np.arange(n), "label": label}
        for k, own in enumerate(X):
            lists = [None if np.isnan(row[0]) else row for row in own]
            table[f"b{k}"] = pa.array(lists, pa.list_(pa.float64()))
        if roles["weight"]:
            weight = table["weight"] = generator.exponential(size=n) * (np.arange(n) < 2 * c) + (chance(n) > 0.2)
        if roles["validation_weight"]:
            validation = table["validation_weight"] = generator.exponential(size=n) * (chance(n) > 0.3) + 0.01
        if roles["offset"]:
            offset = 0.5 * generator.standard_normal((n, c))
            table["offset"] = offset[:, 0] if c == 1 else list(offset)
        if roles["group"]:
            groups = np.concatenate([[0, 1, 2], generator.integers(0, max(3, n // 3), n - 3)])
            table["group"] = [f"g{k}" for k in groups]
        if roles["source"]:
            table["source"] = generator.choice(list("xyz"), n)
        return Drawn(table, {}, X, [], Y, KINDS[task], weight, validation, groups, offset)

    task, c = generator.choice(list(KINDS)), int(generator.integers(2, 5))
    c = 1 if task == "regression" else c
    many = int(generator.integers(1, 4))
    widths = [int(generator.integers(1, 30 if chance() < 0.3 else 6)) for _ in range(many)]
    bands = [(w, generator.uniform(-2, 2), generator.normal(), many > 1 and chance() < 0.5) for w in widths]
    often = {"weight": 0.6, "validation_weight": 0.5, "offset": 0.4, "group": 0.4, "source": 0.4}
    roles = {name: bool(chance() < share) for name, share in often.items()}
    apart = bool(chance() < 0.25)
    roles["group"] &= not apart
    drawn = rows(int(generator.integers(10, 50)), c, task, bands, roles)
    drawn.shares = [float(x) for x in generator.uniform(0.2, 2, many)] if many > 1 and chance() < 0.5 else [1.0] * many
    drawn.options = {
        "features": [f"b{k}" for k in range(many)],
        "task": str(task),
        "intercept": bool(chance() < 0.7),
        "standardize": str(generator.choice(["auto", "none"])),
        "ridge": "auto" if chance() < 0.3 else float(10 ** generator.uniform(-3, 3)),
        "block_rows": int(generator.integers(2, 40)),
        **{name: name for name, there in roles.items() if there},
    }
    if drawn.shares != [1.0] * many:
        drawn.options["shares"] = {f"b{k}": share for k, share in enumerate(drawn.shares)}
    if task == "vector" or chance() < 0.3:
        drawn.kind = drawn.options["loss"] = "squared"
    if apart:
        held_out = rows(int(generator.integers(8, 20)), c, task, bands, roles)
        held_out.kind, held_out.shares, held_out.options = drawn.kind, drawn.shares, drawn.options
        drawn.held_out, drawn.options["validation"] = held_out, held_out.table
    return drawn


def check(drawn: Drawn, cluster: dict[str, Any], precision: str, rtol: float) -> None:
    """Score a table and compare what is written with refits."""
    result = diva_ray.score(
        drawn.table, standard_errors="exact", precision=precision, outputs=True, cluster=cluster, quiet=True,
        **drawn.options,
    )  # fmt: skip
    found = result.samples.to_pandas().sort_values("id")
    problem, summary = drawn.problem(result.summary["ridge"]), result.summary
    if drawn.held_out is None:
        d, penalties = oracles.gradients(problem)
        errors, F = oracles.standard_errors(problem), oracles.left_out_outputs(problem)
        loss = float(oracles.refit_loss(problem))
        if drawn.kind == "squared":  # of classes they are calibrated
            written = np.stack([np.atleast_1d(row) for row in found["loo_output"]])
            oracles.assert_close(torch.from_numpy(written), F, rtol, "outputs")
        bands = np.cumsum([band.shape[1] for band in drawn.bands])[:-1]
        parts = torch.tensor_split(penalties[: sum(band.shape[1] for band in drawn.bands)], bands.tolist())
        told = torch.tensor(list(summary["band_penalty_derivative"].values()), dtype=torch.float64)
        oracles.assert_close(told, torch.stack([part.sum() for part in parts]), rtol, "derivatives of penalties")
        oracles.assert_close(torch.from_numpy(found["standard_error"].to_numpy()), errors, rtol, "standard errors")
    else:
        apart = drawn.held_out.problem(summary["ridge"], drawn)
        d, loss = oracles.held_out_gradient(problem, apart), float(oracles.held_out_loss(problem, apart))
    oracles.assert_close(torch.from_numpy(found["derivative"].to_numpy()), d, rtol, "derivatives")
    v = (drawn if drawn.held_out is None else drawn.held_out).validation
    assert summary["loss"] == pytest.approx(loss / v.sum(), rel=rtol)
    if "source" in drawn.options:
        sources = pq.read_table(f"{result.path}/sources.parquet").to_pandas().set_index("source")["derivative"]
        for name, sum_ in sources.items():
            there = torch.from_numpy(drawn.table["source"] == name)
            assert sum_ == pytest.approx(float(d[there].sum()), abs=rtol * float(d.abs().sum()))


@pytest.mark.parametrize("seed", range(24))
def test_drawn_tables_in_float64(seed):
    check(draw(seed), INLINE, "float64", 1e-6)


@pytest.mark.parametrize("seed", range(24, 30))
def test_drawn_tables_in_the_precision_that_is_chosen(seed):
    check(draw(seed), INLINE, "auto", 5e-3)
