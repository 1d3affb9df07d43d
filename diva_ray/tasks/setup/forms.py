"""Which form and which standard errors a table takes by its sizes, and how many rows samples have, or a round keeps."""

from __future__ import annotations

from diva_ray.core import choose
from diva_ray.engine.setup import BUCKETS

EXACT_ROWS = 10_000  # validation rows up to which standard errors are exact by default
EXACT_PAIRS = 2_000_000_000  # of them and all rows, where they are more than columns: beyond, most of a run is theirs
EXACT_BYTES = 256 << 20  # and the memory of their whitened features, and of what they have of every output
CHEAP = 1024  # columns
LEAST_VECTORS, MOST_VECTORS = 8, 32  # random sign vectors beyond that: a spread of 25 to 12 % of a standard error
SEARCHED = 65_536  # rows among which their nearest are sought: all, or as many drawn at random
SAMPLED = 8192  # rows that tell noise that is not drawn at random: with half of them doubt changed by seed
NEAR = 1.25 / (1 - choose.LEAN)  # batches: of a class of which the fit is sure as many are in reach, too
NEAR_BYTES = 256 << 20  # features that are kept from one read because their rows will probably be chosen


def takes_dual(rows: int, width: int, ridge: float | str) -> bool:
    """Return whether the n x n form is the smaller one and can be had."""
    return rows < width and (ridge == "auto" or float(ridge) > 0)


def takes_exact(rows: int, validating: int, width: int, outputs: int, itemsize: int, sources: int = 0) -> bool:
    """Return whether standard errors are exact by default: every validation row is then known to every worker, with
    what each adds to every source, and meets every row."""
    size = validating * max(width, 2 * outputs) * itemsize
    few = validating <= EXACT_ROWS and (validating <= width or rows * validating <= EXACT_PAIRS)
    return few and size <= EXACT_BYTES and validating * sources * 8 <= EXACT_BYTES


def sign_vectors(width: int, outputs: int) -> int:
    """Return how many sign vectors draw standard errors, 4 n p c operations each: as many as cost half of a derivative,
    or what is half of one at a width where reading the rows costs as much."""
    return max(LEAST_VECTORS, min(MOST_VECTORS, max(width, CHEAP) // max(1, 2 * min(outputs, BUCKETS))))


def errors_in_words(vectors: int, outputs: int, buckets: int) -> str:
    """Return how standard errors are estimated."""
    return f"{vectors} sign vectors" + (f", classes folded onto {buckets:,} buckets" if outputs > buckets else "")
