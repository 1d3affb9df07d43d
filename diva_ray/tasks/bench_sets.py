"""The sets of the task benchmarks: features and labels in memory, and how a fit to them is tested."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from diva_ray.core.grid import default_ridges, grid_losses, rotate
from diva_ray.core.leave_out import rows_by_group_size
from diva_ray.core.losses import squared
from diva_ray.core.ridge import FitAccumulator, FitSums, solve
from diva_ray.data.columns import to_matrix
from diva_ray.errors import InputError
from diva_ray.tasks import peers

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist lies
PICTURES, COMPONENTS, COSINES = 6_000, 60, 500  # of Fashion-MNIST: training pictures, and features made of them
FOLDERS: dict[str, tuple[str, ...]] = {
    "flowers": ("features",), "caltech101": ("features",), "dtd": ("features",), "agnews": ("features",),
    "grocery": ("image",), "emoji": ("image", "text"),
}  # fmt: skip
NAMES = ("digits", "flowers", "caltech101", "dtd", "fashion-mnist", "agnews", "grocery", "emoji")


@dataclass(frozen=True)
class RealSet:
    """Training rows and test rows.

    Attributes:
        bands, test_bands: features by band, (n, d) and (m, d) float32.
        truth, test_label: class codes (n,) and (m,).
        given: class codes with human errors; None where wrong labels are to be planted.
        group: rows that leave together, as codes (n,); None: each row alone.
    """

    name: str
    bands: dict[str, np.ndarray]
    truth: np.ndarray
    test_bands: dict[str, np.ndarray]
    test_label: np.ndarray
    given: np.ndarray | None = None
    group: np.ndarray | None = None

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(max(self.truth.max(), self.test_label.max())) + 1

    @cached_property
    def features(self) -> Tensor:
        """Features with an intercept, every band standardised as `standardize=auto` does, float64."""
        return self._standardised(self.bands)

    @cached_property
    def test_features(self) -> Tensor:
        """The same of the test rows."""
        return self._standardised(self.test_bands)

    @property
    def groups(self) -> np.ndarray:
        """Which rows leave together; every row its own number where each leaves alone."""
        return np.arange(len(self.truth)) if self.group is None else self.group

    def _standardised(self, bands: dict[str, np.ndarray]) -> Tensor:
        parts = [np.ones((len(next(iter(bands.values()))), 1))]
        for name, band in self.bands.items():
            centred = band - band.mean(0, dtype=np.float64)
            norm = np.sqrt(np.square(centred).sum(1).mean())
            parts.append((bands[name] - band.mean(0, dtype=np.float64)) / norm)
        return torch.from_numpy(np.concatenate(parts, 1))

    def labels(self, noise: float, seed: int) -> np.ndarray:
        """Return the given labels: with human errors, or a seeded share replaced by another class."""
        return self.given if self.given is not None else peers.plant(self.truth, noise, seed)

    def held_out(self, share: float, seed: int) -> np.ndarray:
        """Return which rows are held out (n,): about a share of them, groups whole."""
        draw = np.random.default_rng(seed)
        return (draw.permutation(int(self.groups.max()) + 1) < share * (self.groups.max() + 1))[self.groups]

    def table(self, label: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, Any]:
        """Return some rows as the tasks take them."""
        grouped = {} if self.group is None else {"group": self.group[rows]}
        return {**{k: band[rows] for k, band in self.bands.items()}, "label": label[rows], **grouped}

    @property
    def columns(self) -> dict[str, Any]:
        """The options of a task that name the columns of `table`, run in this process on one thread."""
        grouped = {} if self.group is None else {"group": "group"}
        return {"features": list(self.bands), **grouped, "cluster": {"kind": "inline", "threads": 1}, "quiet": True}

    def fit_sums(self, y: np.ndarray, weight: np.ndarray, rows: np.ndarray | slice = slice(None)) -> FitSums:
        """Return the fit sums of some rows."""
        sums = FitAccumulator(self.features.shape[1], self.classes, torch.float64)
        sums.add(self.features[rows], torch.from_numpy(y[rows]), torch.from_numpy(weight[rows].astype(np.float64)))
        return sums.sums()

    def test_error(self, sums: FitSums, ridge: float) -> float:
        """Return the test error of a fit, in percent."""
        return self.error_of(solve(sums, ridge * self._pattern).W)

    def error_of(self, W: Tensor) -> float:
        """Return the test error of a linear model on standardised features, in percent."""
        return 100 * float(((self.test_features @ W).argmax(1) != torch.from_numpy(self.test_label)).double().mean())

    @property
    def _pattern(self) -> Tensor:
        pattern = torch.ones(self.features.shape[1], dtype=torch.float64)
        pattern[0] = 0
        return pattern

    def tuned_ridge(self, sums: FitSums, y: np.ndarray, weight: np.ndarray, heard: np.ndarray) -> float:
        """Return the ridge with the least left-out squared error on the rows `heard`, for a fit with these weights."""
        rotation = rotate(sums, self._pattern)
        ridges = default_ridges(rotation)
        at = torch.from_numpy(heard)
        alpha, v = torch.from_numpy(weight.astype(np.float64))[at], torch.ones(len(heard), dtype=torch.float64)
        together = rows_by_group_size(torch.from_numpy(self.groups)[at])
        labels = torch.from_numpy(y)[at]
        losses = grid_losses(self.features[at], labels, alpha, v, None, together, rotation, ridges, squared)
        return float(ridges[int(losses.argmin())])

    def tuned_error(self, y: np.ndarray, weight: np.ndarray) -> float:
        """Return the test error of a weighted fit with its own tuned ridge, in percent; rows of weight 0 are not
        heard."""
        sums = self.fit_sums(y, weight)
        return self.test_error(sums, self.tuned_ridge(sums, y, weight, np.flatnonzero(weight > 0)))


def found_sets(folder: str | None, asked: list[str], among: tuple[str, ...] = NAMES) -> tuple[list[str], list[str]]:
    """Return the sets to use, and a note for every other; raise for one that was asked for and is not there."""
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"data_folder: must be a folder of sets, got {folder}. Change `data_folder`.")
    unknown = [name for name in asked if name not in among]
    if unknown:
        raise InputError(f"sets: must be among {', '.join(among)}, got {unknown[0]}. Change `sets`.")
    missing = {name: why for name in among if (why := _missing(name, folder))}
    for name in asked:
        if name in missing:
            raise InputError(f"sets: {name} must be there, got none: {missing[name]}. Change `sets` or `data_folder`.")
    return asked or [name for name in among if name not in missing], [f"{k} left out: {v}" for k, v in missing.items()]


def _missing(name: str, folder: str | None) -> str:
    if name == "fashion-mnist":
        there = (FASHION / "train-images-idx3-ubyte.gz").is_file()
        return "" if there else f"no files at {FASHION} (Debian: dataset-fashion-mnist)"
    file = "pairs.parquet" if name == "flickr8k" else "train.parquet"
    if name == "digits" or (folder and (Path(folder) / name / file).is_file()):
        return ""
    return f"no {name}/{file} in `data_folder`" if folder else "`data_folder` is not set"


def read_set(name: str, folder: str | None) -> RealSet:
    """Return a set by its name."""
    readers: dict[str, Callable[[], RealSet]] = {"digits": _digits, "fashion-mnist": _fashion}
    return readers[name]() if name in readers else _parquet(name, Path(folder or ""))


def read_pictures(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return pictures (n, height, width) uint8 and labels to train with, and the same to test with."""
    if name == "digits":
        one = _digits()
        pixels = [np.uint8(15 * bands["features"]).reshape(-1, 8, 8) for bands in (one.bands, one.test_bands)]
        return pixels[0], one.truth, pixels[1], one.test_label
    pixels = [_idx(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28) for part in ("train", "t10k")]
    labels = [_idx(f"{part}-labels-idx1-ubyte.gz", 8).astype(np.int64) for part in ("train", "t10k")]
    return pixels[0][:PICTURES], labels[0][:PICTURES], pixels[1], labels[1]


def _digits() -> RealSet:
    from sklearn.datasets import load_digits

    pixels, label = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(label))
    X, y = pixels[order].astype(np.float32), label[order]
    return RealSet("digits", {"features": X[:900]}, y[:900], {"features": X[900:]}, y[900:])


def _fashion() -> RealSet:
    """Random cosine features of the leading principal components of Fashion-MNIST: a fixed, stronger linear model."""
    images = [_idx(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 784) / 255.0 for part in ("train", "t10k")]
    labels = [_idx(f"{part}-labels-idx1-ubyte.gz", 8).astype(np.int64) for part in ("train", "t10k")]
    images[0], labels[0] = images[0][:PICTURES], labels[0][:PICTURES]
    mean = images[0].mean(0)
    axes = np.linalg.eigh((images[0] - mean).T @ (images[0] - mean))[1][:, : -COMPONENTS - 1 : -1]
    axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(COMPONENTS)])  # the sign of an eigenvector is arbitrary
    train, test = ((part - mean) @ axes for part in images)
    draw = np.random.default_rng(0)
    near = np.median(np.linalg.norm(train[:500, None] - train[None, :500], axis=2))
    turn, phase = draw.normal(size=(COMPONENTS, COSINES)) / near, draw.uniform(0, 2 * np.pi, COSINES)
    bands = [{"features": np.cos(part @ turn + phase).astype(np.float32)} for part in (train, test)]
    return RealSet("fashion-mnist", bands[0], labels[0], bands[1], labels[1])


def _idx(name: str, header: int) -> np.ndarray:
    with gzip.open(FASHION / name) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def _parquet(name: str, folder: Path) -> RealSet:
    train, test = (pq.read_table(folder / name / f"{part}.parquet") for part in ("train", "test"))
    bands = [{k: np.asarray(to_matrix(t[k], k, "")[0], np.float32) for k in FOLDERS[name]} for t in (train, test)]
    human = "gold_label" in train.column_names
    labels = [np.asarray(t.to_numpy()) for t in (train["gold_label" if human else "label"], test["label"])]
    classes = np.unique(np.concatenate(labels))
    truth, test_label = (np.searchsorted(classes, one) for one in labels)
    given = np.searchsorted(classes, np.asarray(train["label"].to_numpy())) if human else None
    group = np.unique(train["name"].to_numpy(), return_inverse=True)[1] if name == "emoji" else None
    return RealSet(name, bands[0], truth, bands[1], test_label, given, group)
