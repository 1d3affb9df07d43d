"""What is remarked of a table that is scored all the same: gaps, units, numbers that stand for none."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from diva_ray.data.shards import Columns
from diva_ray.engine.kernels.scan import Scan
from diva_ray.report.words import counted

log = logging.getLogger("diva_ray")

ONE_DIRECTION = 0.95  # of the variance of vectors in one of their numbers
LEAST_VARIANCE = 1e-3  # of a column in the middle, in units of the mean over columns, below which units differ
TOLD = 5  # columns with gaps that are told one by one


def missing_of(columns: Columns, found: Scan) -> dict[str, int]:
    """Return in how many of the rows that train a band is missing, for those bands that are missing in some."""
    rows = int(found.counts["rows"])
    return {name: rows - there for name, there in zip(columns.features, found.rows, strict=True) if there < rows}


def tell_missing(columns: Columns, found: Scan, whose: str = "") -> None:
    """Log which bands are missing in some rows: a modality may be, but a null number is more often an oversight."""
    missing, widths = missing_of(columns, found), dict(zip(columns.features, found.widths, strict=True))
    for name in list(missing)[:TOLD]:
        level = logging.WARNING if widths[name] == 1 else logging.INFO
        counts = f"{missing[name]:,}", f"{int(found.counts['rows']):,}"
        log.log(level, "%scolumn `%s`: %s of %s missing", whose, name, *counts)
    if len(missing) > TOLD:
        more = counted(len(missing) - TOLD, "more column has", "more columns have")
        log.warning("%s missing rows (`missing` in summary.json)", more)


def tell_units(columns: Columns, found: Scan) -> None:
    """Warn of bands whose columns are of different units."""
    for name, rows, squares in zip(columns.features, found.rows, found.squares, strict=True):
        if of_different_units(squares):
            deviations = (squares[squares > 0] / rows).sqrt()
            log.warning(
                "standard deviations of columns of `%s` go from %.2g to %.2g: a band is scaled as a whole, so those "
                "that vary most decide. Divide columns of different units by theirs, or make each a band "
                "(`data.features`)", name, float(deviations.min()), float(deviations.max()),
            )  # fmt: skip


def of_different_units(squares: Tensor) -> bool:
    """Return whether half of the columns that vary have less than a thousandth of the mean variance.

    Of measurements of different units (scikit-learn's wine, breast cancer) it is 1e-4 and less;
    of activations of networks, pixels, counts of words and their principal components 8e-2 and more.
    """
    varies = squares[squares > 0]
    return len(varies) > 1 and float(varies.median()) < LEAST_VARIANCE * float(varies.mean())


def tell_hot(columns: Columns, target: Tensor) -> None:
    """Warn of vectors of zeros and ones: rows of a 0/1 matrix stand for classes, and are judged better as such.

    By their moments: the variance of every number is m (1 - m), m its mean.
    """
    mean, squares = target[1:].chunk(2)
    hot = target[0] * mean * (1 - mean)
    if len(mean) > 1 and bool((hot > 0).any()) and torch.allclose(squares, hot, rtol=1e-9, atol=1e-12):
        log.warning(
            "column `%s` holds vectors of %d zeros and ones, which are fitted as numbers. If they stand for classes, "
            "give the class of a row (the place of its 1), or the list of its classes", columns.label, len(mean),
        )  # fmt: skip


def tell_one_direction(columns: Columns, target: Tensor) -> None:
    """Warn of vectors of which one number varies far more than all others: their directions are but its sign."""
    squares = target[1:].chunk(2)[1]
    share = float(squares.max() / squares.sum()) if len(squares) > 1 and float(squares.sum()) > 0 else 0.0
    if share > ONE_DIRECTION:
        log.warning(
            "number %d of `%s` has %.1f %% of the variance: by loss=cosine a label is its sign, and many look wrong. "
            "Divide the numbers by their standard deviations, or use loss=squared",
            int(squares.argmax()), columns.label, 100 * share,
        )  # fmt: skip


def tell_placeholder(columns: Columns, found: Scan) -> None:
    """Warn of a number that several rows have and that lies far from all others, such as -999 for none."""
    placeholder = found.extremes.placeholder() if found.extremes is not None else None
    if placeholder is not None:
        log.warning(
            "column `%s` is %g in %s rows, further from all other numbers than those lie apart. If it stands for a "
            "missing one, leave these rows out (README, Your own table)", columns.label, placeholder[0],
            f"{placeholder[1]:,}",
        )  # fmt: skip
