"""Extension: test error by budget, ours next to the paper's rule and uniform choice (the paper's Figure 4)."""

from __future__ import annotations

import numpy as np

import diva_ray
from diva_ray.bench import peers
from diva_ray.bench.sets import RealSet
from diva_ray.bench.tables import Results, Table, told
from diva_ray.tasks.setup.result import Result

BUDGETS = (0.1, 0.2, 0.4, 0.6, 0.8)  # shares of the pool
CORE = 0.3  # share of the rows that are the table; the others are the pool
DRAWS = 3  # of uniform choice
METHODS = {"ours": "ours", "paper": "DIVA paper (top-k)", "uniform": "uniform"}
NOTE = (
    "A stratified 30 % of the rows is the table, its labels are right; the pool is the rest. Ours runs once for every "
    f"budget, the paper's rule once in rounds of a tenth of the pool; uniform is the mean of {DRAWS} draws. The ridge "
    "of every final fit is chosen by leave-one-out on the table's rows. The last column: without a budget ours stops "
    "by itself after that share of the pool, with that error."
)


def measure(one: RealSet, noise: float, seed: int) -> dict[str, float]:
    """Return the test error in percent by method and budget on one split and planting."""
    core, pool = split(one, seed)
    y = one.truth.copy()
    y[pool] = peers.plant(one.truth[pool], noise, seed) if one.given is None else one.given[pool]
    wanted = {share: round(share * len(pool)) for share in BUDGETS}
    found = {"core": _error(one, y, core, core[:0]), "whole": _error(one, y, core, pool)}
    tables = [{"id": rows, **one.table(y, rows)} for rows in (core, pool)]
    ranked, _ = _chosen(one, tables, seed, method="paper", budget=wanted[0.8], rounds=8)
    drawn = [np.random.default_rng(1000 * seed + k).permutation(pool) for k in range(DRAWS)]
    for share, budget in wanted.items():
        ours = _chosen(one, tables, seed, budget=budget)
        found[f"ours {share:.0%}"] = _error(one, y, core, *ours)
        found[f"paper {share:.0%}"] = _error(one, y, core, ranked[:budget])
        found[f"uniform {share:.0%}"] = float(np.mean([_error(one, y, core, order[:budget]) for order in drawn]))
    stopped = _chosen(one, tables, seed)
    found["stop share"] = 100 * len(stopped[0]) / len(pool)
    found["stop"] = _error(one, y, core, *stopped)
    return found


def split(one: RealSet, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the table and of the pool: stratified by class, groups whole and side by side, one of every
    class at least."""
    draw, in_core = np.random.default_rng(seed), np.zeros(int(one.groups.max()) + 1, bool)
    names, first = np.unique(one.groups, return_index=True)
    for label in np.unique(one.truth):
        members = draw.permutation(names[one.truth[first] == label])
        in_core[members[: max(1, round(CORE * len(members)))]] = True
    order = np.argsort(one.groups, kind="stable")
    rows = in_core[one.groups[order]]
    return order[rows], order[~rows]


def _chosen(one: RealSet, tables: list[dict], seed: int, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows chosen, first first, and what each weighs."""
    result = diva_ray.extend(*tables, seed=seed, **options, **one.columns)
    assert isinstance(result, Result)
    rows = result.samples.sort_by("rank")
    return rows["id"].to_numpy(), rows["weight"].to_numpy()


def _error(
    one: RealSet, y: np.ndarray, core: np.ndarray, added: np.ndarray, weights: np.ndarray | float = 1.0
) -> float:
    weight = np.ones(len(y))
    weight[added] = weights
    sums = one.fit_sums(y, weight, np.concatenate([core, added]))
    return one.test_error(sums, one.tuned_ridge(sums, y, weight, core))


def tables(results: Results) -> list[Table]:
    """Return the test error by budget: a row for every set, share of wrong labels and method."""
    rows = []
    for key in results.values:
        for name, head in METHODS.items():
            cells = []
            for share in BUDGETS:
                others = [round(results.mean(key, f"{other} {share:.0%}"), 2) for other in METHODS]
                cell = results.cell(key, f"{name} {share:.0%}", 2)
                least = round(results.mean(key, f"{name} {share:.0%}"), 2) == min(others)
                cells.append(f"**{cell}**" if least else cell)
            ends = [results.cell(key, "core", 2), *cells, results.cell(key, "whole", 2)]
            stop = f"{results.cell(key, 'stop', 2)} at {results.mean(key, 'stop share'):.0f} %"
            rows.append([told(key), head, *ends, stop if name == "ours" else ""])
    head = ["set", "choice", "0 %", *(f"{share:.0%}" for share in BUDGETS), "whole pool", "ours stops"]
    return [Table("Test error in percent by share of the pool that is added", head, rows, NOTE)]
