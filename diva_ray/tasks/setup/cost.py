"""How much a run computes and holds, from the sizes of its table: what a plan says."""

from __future__ import annotations

from dataclasses import dataclass

from diva_ray.core.grid import GRID_RIDGES
from diva_ray.core.labellers import MOST_LEVERAGE
from diva_ray.core.noise import MOST_CLASSES
from diva_ray.core.reduction import WIDTH, takes_tiles
from diva_ray.engine.device import MOST_BLOCK_ROWS
from diva_ray.engine.setup import BUCKETS, default_block, keeps_outputs, rows_of_block
from diva_ray.tasks.setup.forms import SAMPLED, SEARCHED, errors_in_words, sign_vectors, takes_exact

EIGEN = 9.0  # p^3 operations of an eigendecomposition, which run at a third of the rate of products
TILES = 8 / 3  # p^3 operations of a reduction to tiles, which run at three quarters of it
SOLVED = 4.0 * WIDTH  # operations of a row, column and ridge under tiles, which run at half of it
# Seconds a number, of one thread of a processor of 2024 (Zen 5), measured:
ROW = 5e-6  # of the rows, in all passes together, beside what is below
CALIBRATE = 1e-7  # of the left-out outputs, under every calibration
FLIPS = 5e-6  # of the sample's outputs: the search for classes that flip into each other, where there are none
OUTPUTS = 2e-8  # of the left-out outputs: loss, gradient, verdicts
NEAR = 5e-9  # of the cosines in the search for neighbours, beside their products
DRAWN = 2.5e-9  # of the outputs under every sign vector
PASSED = 2e-9  # of the features, each time that a pass prepares them
DECODED = 4e-9  # of the features, read from storage and checked
TRIED = 1e-7  # of the outputs of rows set apart, under one arm: their losses after every fold,
CALIBRATED = 6e-7  # and of classes the calibration
POOLED, CHOSEN = 1e-7, 5e-6  # of a pool's outputs, and of its rows, in every round: odds, and the choice


@dataclass(frozen=True)
class Other:
    """Work that is no derivative: operations of products, and seconds of what is none, both shared by workers."""

    products: float
    rest: float

    def operations(self) -> float:
        """Return the operations of the products."""
        return self.products

    def seconds(self, rate: float) -> tuple[float, float]:
        """Return the seconds in one process at a float32 product rate, and those on the driver."""
        return self.products / (0.7 * rate) + self.rest, 0.0


def pooled(rows: int, p: int, outputs: int, rounds: int) -> Other:
    """Return the work of scoring a pool in rounds, after one read that checks it."""
    numbers = float(rows) * p
    each = numbers * (DECODED + 2 * PASSED) + rows * (outputs * POOLED + CHOSEN)
    return Other(rounds * numbers * (p + 4 * outputs), numbers * DECODED + rounds * each)


def tried(rows: int, p: int, outputs: int, arms: int, *, classes: bool) -> Other:
    """Return the work of trying so many arms on rows set apart."""
    tried = float(rows) * outputs * arms
    return Other(4.0 * p * tried, (TRIED + CALIBRATED * classes) * tried)


@dataclass(frozen=True)
class Cost:
    """One derivative of a table of so many rows, p columns (intercept included) and outputs.

    Attributes:
        vectors: sign vectors; `columns`: of M, theirs too.
        validating: rows that validate; `exact`: whether standard errors are exact, over all of them.
        kept: whether left-out outputs stay with the rows.
        itemsize: bytes of a number in the products.
        auto: whether the ridge is chosen; `gpus`: whether products are on GPUs.
        dual: whether the driver solves the n x n form.
        doubt: whether the labellers' doubt is asked for, which takes a search for neighbours.
    """

    rows: int
    validating: int
    p: int
    outputs: int
    vectors: int
    columns: int
    exact: bool
    kept: bool
    itemsize: int
    auto: bool
    classes: bool
    gpus: bool
    dual: bool = False
    doubt: bool = False

    def operations(self) -> float:
        """Return the operations of the products of all passes."""
        if self.dual:
            return 0.0
        n, p, c = float(self.rows), self.p, self.outputs
        each = 2.0 * n * p * c + (2 * SOLVED * n * p if self.tiles() else 0.0) if self.kept else n * p * p
        ridges = GRID_RIDGES * each + 2 * n * p * p if self.auto else 0.0
        again = 0.0 if self.kept else 4 * 2 * n * p * c  # score, calibrate, judge, write
        once = 2 * n * p * p + 2 * n * p * c + (0.0 if self.classes else 2 * n * p * c)
        errors = 2.0 * n * self.validating * (p + c) if self.exact else 0.0
        near = 2.0 * p * self.cosines()
        return once + ridges + again + errors + near + 2 * n * p * p + 4 * n * p * self.columns

    def tiles(self) -> bool:
        """Return whether the ridge is chosen under tiles, not eigenvalues."""
        return self.auto and not self.gpus and self.kept and takes_tiles(self.p, self.rows)

    def cosines(self) -> float:
        """Return the cosines of the search for neighbours."""
        sought = self.doubt and self.classes and self.outputs <= MOST_CLASSES and self.rows >= self.p / MOST_LEVERAGE
        return float(min(self.rows, SEARCHED) * min(self.rows, SAMPLED)) if sought else 0.0

    def touched(self) -> float:
        """Return the seconds of what is no product: rows times outputs, and rows times columns."""
        n, p, c = float(self.rows), self.p, self.outputs
        if self.dual:
            return n * p * (DECODED + PASSED)
        passes = 4 + (1 if self.auto else 0) + (0 if self.kept else 3)
        outputs = c * (OUTPUTS + (CALIBRATE if self.classes else 0.0)) + 3 * DRAWN * (self.columns - c)
        flips = FLIPS * min(n, SAMPLED) * c if self.classes and c <= MOST_CLASSES else 0.0
        return NEAR * self.cosines() + flips + n * (ROW + outputs) + n * p * (DECODED + PASSED * passes)

    def driver(self) -> float:
        """Return the float64 operations between the passes, on the driver: p^3 and p^2 times outputs; or of the rows'
        kernel matrix, which is made and decomposed for the grid, and made and inverted for the fit."""
        p, n = float(self.p), float(self.rows)
        if self.dual:
            grid = 2 * n * n * p + 2 * EIGEN * n**3 + 2 * GRID_RIDGES * n * n * self.outputs if self.auto else 0.0
            return grid + 2 * n * n * p + 2 * n**3 + 4 * n * n * self.outputs
        reduced = 4 / 3 * TILES if self.tiles() else 3 * EIGEN
        grid = reduced * p**3 + 2 * p * p * self.outputs if self.auto else 0.0
        return grid + 5 / 3 * p**3 + 4 * p * p * self.outputs + 2 * p * p * self.columns

    def seconds(self, rate: float) -> tuple[float, float]:
        """Return the seconds of what workers share, in one process, and of the driver between the passes, at a float32
        product rate.

        Products reach 0.7 of the rate, and half of that in float64.
        """
        double = 0.35 * rate
        products = self.operations() / (0.7 * rate * 4 / self.itemsize)
        return products + self.touched(), self.driver() / double

    def state(self, steps: int = 0) -> int:
        """Return the bytes that a process holds besides rows: the largest of what the stages hold at once.

        In units of p^2: an eigendecomposition has the sums, the matrix, and twice as much of its own; a reduction to
        tiles works in the matrix, and no more is held than by the solve; the leave-out pass has two totals in float64
        and two shards' sums in the dtype of products, beside the solution; weight steps that are proposed in one pass
        have each of them that, beside the sums so far and the solution.
        """
        p, c, b, n = self.p, self.outputs, self.itemsize, self.rows
        sample = 3 * 8 * min(n, SAMPLED) * c if self.classes and c <= MOST_CLASSES else 0
        sample += 2 * 4 * min(n, SAMPLED) * p if self.cosines() else 0  # whose nearest are sought: as they come, joined
        if self.dual:
            return n * p * (8 + b) + 40 * n * n + sample
        square = max(40 if self.auto and not self.tiles() else 24, 32 + 3 * b, steps and 16 + steps * (16 + 2 * b))
        block = default_block(p) if self.kept else rows_of_block(c, p)
        of_rows = block * b * (4 * p + 3 * self.columns + 14 * c)
        met = MOST_BLOCK_ROWS if self.gpus else block  # rows whose outputs under all ridges are held
        grid = b * min(GRID_RIDGES * c, max(8192, c)) * (p + 2 * met) if self.auto and self.kept else b * p * c
        grid = b * p * (2 * c + GRID_RIDGES * 2 * WIDTH) if self.tiles() else grid
        # Validation rows: as they come, joined, and their kernel's.
        pairs = 3 * b * self.validating * (p + c) if self.exact else 0
        return p * p * square + p * (8 * 3 * c + 28 * self.columns) + of_rows + max(grid, sample) + pairs

    def errors(self) -> str:
        """Return how standard errors are estimated."""
        return errors_in_words(self.vectors, self.outputs, BUCKETS)

    def per_row(self) -> int:
        """Return the bytes of a row's results."""
        own = 1
        if self.vectors:
            own += 2 + (self.vectors if self.outputs > BUCKETS else 1)
        return (2 * self.outputs * self.itemsize if self.kept else 0) + (5 + own) * self.itemsize + 6 * 8


def cost_of(
    rows: int, p: int, outputs: int, task: str,
    *, errors: str, double: bool, auto: bool, gpus: bool, dual: bool = False, doubt: bool = False,
    validating: int | None = None, sources: int = 0,
) -> Cost:  # fmt: skip
    """Return the cost of a derivative; `errors`: as the option `standard_errors`; `validating`: rows that validate,
    all where that is not known; `sources`: whose derivatives are added up."""
    itemsize, validating = 8 if double else 4, rows if validating is None else validating
    exact = (
        dual or errors == "exact" or (errors == "auto" and takes_exact(rows, validating, p, outputs, itemsize, sources))
    )
    vectors = 0 if exact or errors == "none" else sign_vectors(p, outputs)
    columns = outputs + vectors * min(outputs, BUCKETS)
    kept, classes = keeps_outputs(task, outputs, p), task == "classification"
    return Cost(rows, validating, p, outputs, vectors, columns, exact, kept, itemsize, auto, classes, gpus, dual, doubt)
