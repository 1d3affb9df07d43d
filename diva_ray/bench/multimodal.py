"""A few-shot image set extended by a pool of another kind (the paper's Figure 5, right)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

import diva_ray
from diva_ray.bench import peers
from diva_ray.bench.tables import Results, Table, told
from diva_ray.core.grid import default_ridges, rotate
from diva_ray.core.ridge import FitAccumulator, solve
from diva_ray.data.columns import to_matrix
from diva_ray.report.sheet import Lines, Sheet
from diva_ray.tasks.setup.result import Result

POOLS = {"caltech101": ("features", "label_text.parquet"), "grocery": ("image", "icons.parquet")}
SETS = tuple(POOLS)
SHOTS = (1, 2, 5)
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the pool, by rank; the rest of a method's ranking is forced
DRAWS = 3  # of uniform choice
ROUNDS = 5
METHODS = {"ours": "ours", "paper": "DIVA paper (top-k)", "uniform": "uniform"}
WHAT = {"caltech101": "CLIP text embeddings of 62 of 100 class names", "grocery": "81 iconic pictures of the products"}
NOTE = (
    "k training pictures of every class are the table (a draw for every seed), all of the other kind the pool: "
    + "; ".join(f"{name}: {what}" for name, what in WHAT.items())
    + f". The share is that of the pool's labels made another class. At random: mean of {DRAWS} draws. Every final fit "
    "takes the ridge with the least error on the set's validation pictures. Selected: what the method takes without a "
    "budget."
)


@dataclass(frozen=True)
class PoolSet:
    """Pictures to draw shots from, to choose the ridge on, and to test on, and the pool; features float32, codes."""

    name: str
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    pool: tuple[np.ndarray, np.ndarray]
    given: None = None


def read_pool(name: str, folder: str | None) -> PoolSet:
    """Return a set with its pool."""
    column, file = POOLS[name]
    parts = []
    for part in ("train.parquet", "val.parquet", "test.parquet", file):
        table = pq.read_table(Path(folder or "") / name / part)
        features = np.asarray(to_matrix(table[column], column, part)[0], np.float32)
        parts.append((features, np.asarray(table["label"].to_numpy())))
    classes = np.unique(np.concatenate([label for _, label in parts[:1]]))
    codes = [(X[np.isin(y, classes)], np.searchsorted(classes, y[np.isin(y, classes)])) for X, y in parts]
    return PoolSet(name, train=codes[0], validation=codes[1], test=codes[2], pool=codes[3])


def measure(one: PoolSet, noise: float, seed: int) -> dict[str, float]:
    """Return the test error in percent by shots, method and share of the pool."""
    found = {}
    wrong = peers.plant(one.pool[1], noise, seed)
    for shots in SHOTS:
        core = few(one.train[1], shots, seed)
        head = f"{shots} shot"
        table = {"id": core, "features": one.train[0][core], "label": one.train[1][core]}
        pool = {"id": 10**7 + np.arange(len(wrong)), "features": one.pool[0], "label": wrong}
        found[f"{head} none"] = _error(one, core, wrong, np.empty(0, np.int64))
        found[f"{head} all"] = _error(one, core, wrong, np.arange(len(wrong)))
        orders = {"uniform": [np.random.default_rng(1000 * seed + k).permutation(len(wrong)) for k in range(DRAWS)]}
        for method, option in (("ours", "balanced"), ("paper", "paper")):
            free = _chosen(table, pool, option, seed, None)
            found[f"{head} {method} selected"] = _error(one, core, wrong, free)
            found[f"{head} {method} share"] = 100 * len(free) / len(wrong)
            orders[method] = [_chosen(table, pool, option, seed, len(wrong))]
            if method == "ours":
                draws = [_error(one, core, wrong, order[: len(free)]) for order in orders["uniform"]]
                found[f"{head} uniform selected"] = float(np.mean(draws))
        for method, share in ((m, s) for m in METHODS for s in SHARES):
            errors = [_error(one, core, wrong, order[: round(share * len(wrong))]) for order in orders[method]]
            found[f"{head} {method} {share:.0%}"] = float(np.mean(errors))
    return found


def few(label: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Return the rows of k shots of every class, or all there are."""
    draw = np.random.default_rng(seed)
    return np.sort(np.concatenate([draw.permutation(np.flatnonzero(label == c))[:shots] for c in np.unique(label)]))


def _chosen(table: dict, pool: dict, method: str, seed: int, budget: int | None) -> np.ndarray:
    where = {"cluster": {"kind": "inline", "threads": 1}, "quiet": True}
    result = diva_ray.extend(table, pool, method=method, seed=seed, budget=budget, rounds=ROUNDS, **where)
    assert isinstance(result, Result)
    return result.samples.sort_by("rank")["id"].to_numpy() - 10**7


def _error(one: PoolSet, core: np.ndarray, pool_label: np.ndarray, added: np.ndarray) -> float:
    """Return the test error of a fit to the shots and some of the pool, under the ridge best on the validation rows."""
    X = one.train[0][core].astype(np.float64)
    mean = X.mean(0)
    scale = 1 / np.sqrt(np.square(X - mean).sum(1).mean())

    def view(features: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([np.ones((len(features), 1)), (features - mean) * scale], 1))

    Z = view(np.concatenate([X, one.pool[0][added]]))
    y = torch.from_numpy(np.concatenate([one.train[1][core], pool_label[added]]))
    classes = int(one.train[1].max()) + 1
    sums = FitAccumulator(Z.shape[1], classes, torch.float64)
    sums.add(Z, y, torch.ones(len(Z), dtype=torch.float64))
    pattern = torch.ones(Z.shape[1], dtype=torch.float64)
    pattern[0] = 0
    ridges = default_ridges(rotate(sums.sums(), pattern), len(Z))
    fits = [solve(sums.sums(), ridge * pattern).W for ridge in ridges.tolist()[::2]]
    held, label = view(one.validation[0]), torch.from_numpy(one.validation[1])
    W = min(fits, key=lambda W: float(((held @ W).argmax(1) != label).double().mean()))
    return 100 * float(((view(one.test[0]) @ W).argmax(1) != torch.from_numpy(one.test[1])).double().mean())


def tables(results: Results) -> list[Table]:
    """Return the test error by set, noise, shots and method."""
    rows = []
    for key in results.values:
        for shots in SHOTS:
            head = f"{shots} shot"
            cells = {
                name: f"{head} {name}"
                for name in ("none", "ours selected", "paper selected", "uniform selected", "all")
            }
            least = min(round(results.mean(key, what), 2) for what in cells.values())
            shown = [results.cell(key, what, 2) for what in cells.values()]
            shown = [f"**{cell}**" if round(results.mean(key, what), 2) == least else cell
                     for cell, what in zip(shown, cells.values(), strict=True)]  # fmt: skip
            taken = [f"{results.mean(key, f'{head} {m} share'):.0f} %" for m in ("ours", "paper")]
            rows.append([told(key), str(shots), *shown, *taken])
    head = ["set, pool labels wrong", "shots", "nothing added", "ours selected", "paper selected", "as many at random",
            "all forced", "ours took", "paper took"]  # fmt: skip
    return [Table("Test error in percent of a few-shot set extended by another modality", head, rows, NOTE)]


def sheet_of(results: Results, seeds: int) -> Sheet:
    """Return the page: test error by what is added, like the paper's Figure 5 (right)."""
    parts = []
    for key in results.values:
        for shots in SHOTS:
            head = f"{shots} shot"
            series = []
            for method, name in METHODS.items():
                values = [results.values[key][f"{head} none"]] + [
                    results.values[key][f"{head} {method} {s:.0%}"] for s in SHARES
                ]
                middle, spread = np.mean(values, 1) / 100, np.std(values, 1) / 100
                series.append({"name": name, "y": middle.tolist(), "low": (middle - spread).tolist(),
                               "high": (middle + spread).tolist(), "strong": method == "ours"})  # fmt: skip
            parts.append(Lines(
                f"{told(key)} of the pool's labels wrong, {shots} {'picture' if shots == 1 else 'pictures'} a class",
                [0.0, *SHARES], series, f"Added: {WHAT[key[0]]}. Bands are one standard deviation.",
                "share of the pool that is added", "test error", percent_x=True, percent_y=True,
            ))  # fmt: skip
    return Sheet("A few-shot set extended by another modality", [f"Mean of {seeds} seeds."], [], parts, notes=[NOTE])
