"""What only all rows together can tell of a table: what is refused, and what products of float32 cannot hold."""

from __future__ import annotations

import logging
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diva_ray.data.shards import Columns
from diva_ray.engine.kernels.identity import places_of_key
from diva_ray.engine.kernels.scan import CONSTANT, Scan
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup
from diva_ray.errors import InputError
from diva_ray.tasks.setup.column_checks import check_known_classes
from diva_ray.tasks.setup.runner import Runner

if TYPE_CHECKING:
    from diva_ray.tasks.setup.session import Session

log = logging.getLogger("diva_ray")

MOST_DEVIATIONS = 30.0  # between 0 and the mean of number targets, or of a column, beyond which products are float64
LOST_DEVIATIONS = 1e5  # beyond which, of a column, float64 loses what varies
LARGEST_NORM = 1e30  # of standardised rows; of rows as given, which are multiplied as they are, its root
CLASS_VARIANCE = 0.25  # at most, of zeros and ones
LARGEST_WEIGHT = 1e12  # beyond it, or below its inverse, squares of a derivative's parts leave float32
LEAST_SPREAD = 1e-6  # standard deviation of number targets below which, or above its inverse, they are, too
VANISHING = 1e-150  # numbers whose squares float64 takes for 0, or nearly
TOO_SPREAD = 1e15  # beyond it, or below its inverse, derivatives (of squares) leave float32, in which they are written


def check_scan(runner: Runner, columns: Columns, setup: Setup, found: Scan, *, standardized: bool) -> None:
    """Raise for what only all rows together can tell."""
    counts = found.counts
    for name, rows in zip(columns.features, found.rows, strict=True):
        if not rows:
            raise InputError(
                f"data.features: some row must have the band `{name}`, got null in every row. Change `data.features`."
            )
    check_columns_held(columns, found, standardized=standardized, intercept=setup.scale.intercept)
    if found.offset_width not in (0, setup.outputs):
        raise InputError(
            f"data.offset: column `{columns.offset}` must hold {setup.outputs} numbers, one for each output, got "
            f"{found.offset_width} at {found.place}. Change `data.offset`."
        )
    if columns.group and counts["groups"] < 2:
        raise InputError(
            f"data.group: there must be at least two groups, got one in `{columns.group}`. Change `data.group`."
        )
    check_weights(columns, counts)
    names = setup.source_names().to_pylist() if columns.validation_source is not None else []
    if counts["validating"] == 0 and columns.validation_source not in (None, *names):
        raise InputError(
            f"identity: some row's transform must be `{columns.validation_source}`, got {', '.join(names[:10])} in "
            f"`{columns.source}`. Change `identity`, or add the originals."
        )
    if counts["validating"] == 0:
        raise InputError(
            "data.validation_weight: some validation weight must be > 0, got all zero. Fix `data.validation_weight`."
        )
    check_labels(columns, setup, found)
    check_validation(columns, setup, found)
    check_ids(runner, columns)


def check_weights(columns: Columns, counts: Tally) -> None:
    """Raise for weights that are all zero, or whose derivatives could not be written."""
    if counts["positive"] == 0:
        raise InputError("data.weight: some weight must be > 0, got all zero. Fix the table or `data.weight`.")
    mean = counts["weight"] / counts["positive"]
    if not 1 / LARGEST_WEIGHT <= mean <= LARGEST_WEIGHT:
        raise InputError(
            f"data.weight: weights above 0 must have a mean of {1 / LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}, got "
            f"{mean:.3g} in `{columns.weight}`. Scale the column, or change `data.weight`."
        )


def check_validation(columns: Columns, setup: Setup, found: Scan) -> None:
    """Raise for validation weights with which derivatives could not be written: they grow as those do, and as the
    inverse of the weights and (numbers) the square of the spread."""
    v, weight = (found.counts[a] / found.counts[b] for a, b in (("validation", "validating"), ("weight", "positive")))
    spread = (spread_of(found.target) or 1.0) if setup.task in ("regression", "vector") else 1.0
    if not 1 / LARGEST_WEIGHT <= v / weight <= LARGEST_WEIGHT:
        raise InputError(
            f"data.validation_weight: weights above 0 must have a mean of {1 / LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g} "
            f"times that of the weights in the fit, got {v:.3g} and {weight:.3g}. Scale the column."
        )
    if not 1 / TOO_SPREAD**2 <= v * spread**2 / weight <= TOO_SPREAD**2:
        raise InputError(
            f"data.label: validation weight times variance of the numbers over weight must be {1 / TOO_SPREAD**2:g} to "
            f"{TOO_SPREAD**2:g}, got {v:.3g}, {spread**2:.3g} and {weight:.3g}. Scale one of these columns."
        )


def check_labels(columns: Columns, setup: Setup, found: Scan) -> None:
    """Raise for classes, lists of classes or numbers from which nothing can be learnt."""
    counts = found.counts
    if setup.task == "classification" and found.labels is not None and len(found.labels) < 2:
        raise InputError(
            f"data.label: there must be at least two classes, got the label {found.labels[0].as_py()!r} "
            f"in every row of `{columns.label}`. Change `data.label`, or use task=regression for numbers."
        )
    if setup.task == "multilabel" and found.labels is not None:
        check_several(columns, found.labels.to_pylist(), int(counts["max_labels"]), int(-counts["max_less_labels"]))
    if setup.classes is None and setup.task != "pairs":
        check_spread(columns, found.target)
        check_variety(columns, found.reach, setup.outputs)
    if found.labels is not None and found.validation_labels is not None:
        cure = "Fix the validation table or `validation.path`."
        check_known_classes("validation.path", found.labels, found.validation_labels, cure)


def check_columns_vary(found: Scan) -> None:
    """Raise where every row has the same features: the eigenvalues from which a grid of ridges is made are rounding."""
    alike = all(spread == 0 for spread, _ in found.spreads())
    if alike and all(rows == found.counts["rows"] for rows in found.rows):
        raise InputError(
            "data.features: some column must vary from row to row, got the same values in every row, or what "
            "float64 takes for the same (as far from 0 as 1e15 times their spread; squares beyond its range). Change "
            "`data.features`."
        )


def check_variety(columns: Columns, reach: Tensor, outputs: int) -> None:
    """Raise for numbers to predict that are the same in every row."""
    mean, squares = (x.view(-1, outputs)[-1] for x in reach[1:].chunk(2))
    if reach[0] > 1 and bool((squares <= CONSTANT * (squares + reach[0] * mean.square())).all()):
        if bool((mean != 0).any()) and float(mean.abs().max()) < VANISHING:
            raise InputError(
                f"data.label: numbers must have a standard deviation of {1 / TOO_SPREAD:g} to {TOO_SPREAD:g}, got "
                f"numbers as small as {float(mean[0]):g} in `{columns.label}`, whose squares are 0. Scale the column."
            )
        raise InputError(
            f"data.label: numbers must differ from row to row, got {float(mean[0]):g} in every row of "
            f"`{columns.label}`. Change `data.label`."
        )


def check_columns_held(columns: Columns, found: Scan, *, standardized: bool, intercept: bool) -> None:
    """Raise for features that the products of a fit would not hold."""
    check_norms(columns, found, standardized=standardized)
    if intercept and not standardized:
        check_means(columns, found)


def check_norms(columns: Columns, found: Scan, *, standardized: bool) -> None:
    """Raise for features that float32 cannot hold."""
    most = LARGEST_NORM if standardized else LARGEST_NORM**0.5
    for name, (_, whole) in zip(columns.features, found.spreads(), strict=True):
        norm = whole**0.5
        if norm and not 1 / most <= norm <= most:
            raise InputError(
                f"data.features: rows of a band must have a root mean square norm of {1 / most:g} to {most:g}, got "
                f"{norm:.3g} in `{name}`. Scale the column, or leave it out of `data.features`."
            )


def check_means(columns: Columns, found: Scan) -> None:
    """Raise for columns taken as they are of which float64 products would hold little but the mean."""
    for name, far in zip(columns.features, deviations(found), strict=True):
        if len(far) and float(far.max()) > LOST_DEVIATIONS:
            at = int(far.argmax())
            raise InputError(
                f"data.features: with standardize=none a column's mean must be at most {LOST_DEVIATIONS:g} of its "
                f"standard deviations from 0, got {float(far[at]):.1e} in column {at} of `{name}`. Subtract it, or use "
                "`standardize=auto`."
            )


def deviations(found: Scan) -> list[Tensor]:
    """Return per band how many of its standard deviations every column's mean is from 0; 0 of a constant one."""
    ratios = []
    for rows, total, square in zip(found.rows, found.sums, found.squares, strict=True):
        mean, variance = (total / max(rows, 1)).abs(), square / max(rows, 1)
        varies = variance > CONSTANT * mean.square()
        ratios.append(torch.where(varies, mean / variance.sqrt(), torch.zeros_like(mean)))
    return ratios


def check_several(columns: Columns, classes: list, most: int, fewest: int) -> None:
    """Raise for lists that name no class at all, or that are the rows of a matrix of zeros and ones."""
    if not classes:
        raise InputError(
            f"data.label: some row must have a class, got empty lists in every row of `{columns.label}`. Change "
            "`data.label`."
        )
    if fewest == most > 1 and set(classes) <= {0, 1}:  # False and True are 0 and 1
        raise InputError(
            f"data.label: lists must name the classes of a row, got {most} zeros and ones in every row of "
            f"`{columns.label}`. Give the positions of the ones, such as [0, 2] for [1, 0, 1], or the index of the one "
            "(`y.argmax(1)`)."
        )


def spread_of(target: Tensor) -> float:
    """Return the standard deviation of number targets, 0 where it is but rounding; `target` is the scan's."""
    mean, squares = target[1:].chunk(2)
    spread = float((squares.sum() / target[0]).sqrt())
    return 0.0 if spread <= 1e-12 * float(mean.norm()) else spread


def check_spread(columns: Columns, target: Tensor) -> None:
    """Raise for numbers whose derivatives could not be written."""
    spread = spread_of(target)
    if spread and not 1 / TOO_SPREAD <= spread <= TOO_SPREAD:
        raise InputError(
            f"data.label: numbers must have a standard deviation of {1 / TOO_SPREAD:g} to {TOO_SPREAD:g}, got "
            f"{spread:.3g} in `{columns.label}`. Scale the column, or change `data.label`."
        )


def check_bands_vary(session: Session) -> None:
    """Raise for a band that is the same in every row."""
    scan = session.scan
    for name, rows, (spread, _) in zip(session.columns.features, scan.rows, scan.spreads(), strict=True):
        if rows and not spread:
            raise InputError(
                f"data.features: every band must vary from row to row, got one value in all {int(rows):,} rows of "
                f"`{name}`. Fix the column, or leave it out of `data.features`."
            )


def check_ids(runner: Runner, columns: Columns, *, pool: bool = False) -> None:
    """Raise if an id occurs twice, in one table or in two."""
    if columns.id is not None:
        key = runner.engine.duplicate("keys", pool=pool)
        if key is not None:
            asked = [extent for extent in runner.engine.extents if pool or not extent.pool]
            everywhere = runner.engine.each(partial(places_of_key, key), asked, int, False)
            places: dict[object, list[str]] = {}
            for one, place in chain.from_iterable(everywhere):
                places.setdefault(one, []).append(place)
            for one, twice in places.items():  # else different ids have one key, by chance
                if len(twice) > 1:
                    raise InputError(
                        f"data.id: ids must be unique, got {one!r} twice at {' and '.join(twice[:2])}. "
                        "Fix the table, choose another `data.id`, or use row positions (`data.id=none`)."
                    )


def features_take_double(found: Scan, *, standardized: bool, intercept: bool) -> bool:
    """Return whether float32 products of columns taken as they are hold too little but their means, which the intercept
    takes away."""
    far = max((float(band.max()) for band in deviations(found) if len(band)), default=0.0)
    return intercept and not standardized and far > MOST_DEVIATIONS


def reach_takes_double(task: str, reach: Tensor, outputs: int) -> bool:
    """Return whether float32 holds too little of what is fitted, numbers or classes, or of its offsets."""
    if not reach[0]:  # classes without offsets, pairs
        return False
    return takes_double(reach, outputs) if task in ("regression", "vector") else offsets_take_double(reach)


def takes_double(reach: Tensor, outputs: int) -> bool:
    """Return whether float32 cannot hold what numbers to predict differ by, with or without their offsets, or squares
    of their losses; `reach` is the scan's.

    Their size, in standard deviations of what is fitted, costs a derivative about 1e-6 of itself for each.
    """
    mean, squares = (x.view(-1, outputs) for x in reach[1:].chunk(2))
    variance = squares / reach[0]
    size, spread = (mean.square() + variance).sqrt().amax(0), variance[-1].sqrt()
    varies = spread > 1e-12 * size
    far = size > MOST_DEVIATIONS * torch.where(varies, spread, spread.max())  # what is constant beside the others
    found = spread[varies]
    double = bool(far.any()) or bool(((found < LEAST_SPREAD) | (found > 1 / LEAST_SPREAD)).any())
    if double:
        log.info("numbers to predict lie far from 0, or close to each other, or wide apart: products in float64")
    return double


def offsets_take_double(reach: Tensor) -> bool:
    """Return whether float32 cannot hold what is left of classes' zeros and ones beside their offsets; `reach` is the
    scan's."""
    mean, squares = reach[1:].chunk(2)
    variance = squares / reach[0].clamp_min(1.0)
    double = bool(((mean.square() + variance) > MOST_DEVIATIONS**2 * (variance + CLASS_VARIANCE)).any())
    if double:
        log.info("offsets lie far from 0: products in float64")
    return double


def check_sources(session: Session, what: str) -> None:
    """Raise unless there are sources to weigh against each other: of one alone the mean weight is kept."""
    names = session.setup.source_names().to_pylist()
    if len(names) < 2:
        raise InputError(
            f"data.source: at least two {what} must be there to weigh them against each other, got {len(names)} "
            f"({', '.join(names)}) in column `{session.columns.source}`. Change `data.source`."
        )
