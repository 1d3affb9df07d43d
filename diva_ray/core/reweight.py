"""Weight steps from a derivative and its standard error, and the criterion by which a step is accepted.

1. `Step`: one row's next weight, a function of that row (and its source) alone.
2. `trial_losses`, `TrialSums`: a step is judged on rows that took no part in it, row against row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core import links
from diva_ray.core.compare import ratio_error
from diva_ray.core.histogram import Histogram
from diva_ray.core.links import Link
from diva_ray.core.losses import Loss, errors

CAUTION = 0.5  # standard errors by which a gain must be above 0


@dataclass(frozen=True)
class Step:
    """A rule for the next weight of a row.

    Attributes:
        kind: `plain`: alpha - value d, not below 0 (Dukler et al. 2022, eq. 14);
            `shrink`: alpha min(1, value se / d), d > 0: a harmful weight is lowered to what lies within `value`
            standard errors of harmless, a helpful one is left alone;
            `issues`: 0 where the label looks wrong, else alpha; `detrimental`: 0 where the row is judged so;
            `doubtful`: alpha min(1, 2 score): of classes, a label that is likelier wrong than right weighs by how
            likely it is right; of other targets, one whose loss is above the median with another row's label weighs
            less;
            `uncertain`: as `doubtful`, times 1 - value + value u, u how unsure the row's class is, of mean 1: a squared
            loss heeds rows near the boundaries between classes too little (after Chang et al. 2017, who weigh by
            p (1 - p) plus its mean, p that of the given label);
            `sources`: alpha times the factor of the row's source.
        value: as above.
    """

    kind: str
    value: float = 0.0

    def __call__(
        self,
        alpha: Tensor,
        d: Tensor,
        error: Tensor,
        *,
        issue: Tensor | None = None,
        score: Tensor | None = None,
        factor: Tensor | None = None,
        unsure: Tensor | None = None,
    ) -> Tensor:
        """Return the next weights of some rows, all (n,); what a kind does not need may be None."""
        if self.kind == "plain":
            return (alpha - self.value * d).clamp_min(0)
        if self.kind == "shrink":
            allowed = self.value * error / d.clamp_min(torch.finfo(d.dtype).tiny)
            return torch.where(d > 0, alpha * allowed.clamp_max(1), alpha)
        if self.kind in ("issues", "detrimental") and issue is not None:
            return torch.where(issue, torch.zeros_like(alpha), alpha)
        if self.kind == "doubtful" and score is not None:
            return alpha * (2 * score).clamp_max(1).to(alpha)
        if self.kind == "uncertain" and score is not None and unsure is not None:
            return alpha * ((2 * score).clamp_max(1) * (1 - self.value + self.value * unsure)).to(alpha)
        if self.kind == "sources" and factor is not None:
            return alpha * factor
        raise ValueError(
            "Step: kind must be plain, shrink, issues, detrimental, doubtful, uncertain or sources, with what it "
            f"needs, got {self.kind!r}."
        )

    @property
    def name(self) -> str:
        """The step in words."""
        return {
            "plain": f"plain step of {self.value:g}",
            "shrink": f"harm beyond {self.value:g} standard error{'s' if self.value != 1 else ''} removed",
            "issues": "labels that look wrong dropped",
            "detrimental": "detrimental samples dropped",
            "doubtful": "labels of a score below 1/2 weighed down",
            "uncertain": f"{self.value:.0%} of the weight by uncertainty",
            "sources": f"sources moved by {self.value:g}",
        }[self.kind]


def source_factors(
    d: Float[Tensor, " sources"], error: Float[Tensor, " sources"], rate: float
) -> Float[Tensor, " sources"]:
    """Return the factor of every source's weight, exp(-rate z), z = d / error within +-3; 1 where z is undefined.

    An exponentiated-gradient step (Kivinen and Warmuth 1997) in units of the standard error: weights stay positive, and
    a source whose derivative is lost in noise hardly moves.
    """
    z = torch.where(error > 0, d / error.clamp_min(torch.finfo(d.dtype).tiny), torch.zeros_like(d))
    return torch.exp(-rate * z.clamp(-3, 3))


@dataclass(frozen=True)
class Calibration:
    """How the outputs of one model become probabilities of given labels: a link, and the share of wrong labels."""

    link: Link
    noise_rate: float


def fit_calibration(sums: Histogram, classes: int) -> Calibration:
    """Return the link and the share of wrong labels under which the given labels are most likely; `links.fit_link`
    says how."""
    link = links.fit_link(sums, classes)
    return Calibration(link, links.noise_rate_at(sums, link, classes))


def label_losses(F: Float[Tensor, "n c"], y: Int[Tensor, " n"], calibration: Calibration) -> Float[Tensor, " n"]:
    """Return -log((1 - e) p_y + e (1 - p_y) / (c - 1)) of every given label, p by the calibration's link.

    The likelihood of a label that is replaced by another with chance e: a wrong label costs every model about the same,
    so that two models differ by what they say of right ones.
    """
    p = torch.sigmoid(links.log_odds(F, y, calibration.link).double())
    e = min(max(calibration.noise_rate, 1e-4), 0.999)
    return -torch.log((1 - e) * p + e * (1 - p) / max(F.shape[1] - 1, 1))


def trial_losses(
    F: Tensor,
    Y: Tensor,
    calibration: Calibration | None,
    loss: Loss,
    *,
    several: bool = False,
    most: Tensor | float = math.inf,
) -> tuple[Tensor, Tensor]:
    """Return the loss and the error (`losses.errors`) of outputs on rows set apart.

    Classes: `label_losses` under the model's own calibration, which forgives it its scale. Other targets: `loss`, of
    which no row has more than `most` (one for all, or its own): one that looks wrong costs every model the same.
    """
    found = loss(F, Y)[0].double().clamp(max=most) if calibration is None else label_losses(F, Y, calibration)
    return found, errors(F, Y, several=several)


@dataclass(frozen=True)
class TrialSums:
    """Sums over units (rows, or groups that leave together) from which models are compared pair by pair.

    The first models are bases: with each of them every model is compared.

    Attributes:
        rows: number of rows.
        weight, squares: sum of v and of v^2 over units.
        loss, error: v times the loss and the error of every model, (models,).
        gain_v: v^2 times the loss of each base less that of each model, (bases, models).
        gain_squares: v^2 times the square of that, (bases, models).
    """

    rows: int
    weight: float
    squares: float
    loss: Tensor
    error: Tensor
    gain_v: Tensor
    gain_squares: Tensor

    def __add__(self, other: TrialSums) -> TrialSums:
        return TrialSums(
            self.rows + other.rows, self.weight + other.weight, self.squares + other.squares,
            self.loss + other.loss, self.error + other.error,
            self.gain_v + other.gain_v, self.gain_squares + other.gain_squares,
        )  # fmt: skip

    @property
    def gain(self) -> Tensor:
        """Mean loss of each base less that of each model, (bases, models)."""
        return (self.loss[: len(self.gain_v), None] - self.loss) / self.weight

    @property
    def gain_error(self) -> Tensor:
        """Standard error of the gain over units, (bases, models)."""
        return ratio_error(self.gain, self.gain_squares, self.gain_v, float(self.squares), float(self.weight))


def trial_sums(
    losses: Float[Tensor, "n models"],
    wrong: Float[Tensor, "n models"],
    v: Float[Tensor, " n"],
    unit: Int[Tensor, " n"],
    bases: int,
) -> TrialSums:
    """Return the sums of some rows set apart; `unit` numbers the groups that leave together, from 0."""
    count = int(unit.max()) + 1 if len(unit) else 0
    per_unit = torch.zeros(count, dtype=torch.float64).index_add_(0, unit, v)
    by_unit = torch.zeros(count, losses.shape[1], dtype=torch.float64).index_add_(0, unit, losses * v[:, None])
    gains = by_unit[:, :bases, None] - by_unit[:, None]
    return TrialSums(
        len(v), float(v.sum()), float(per_unit.square().sum()), v @ losses, v @ wrong,
        torch.einsum("u,ubm->bm", per_unit, gains), gains.square().sum(0),
    )  # fmt: skip


def best_trial(sums: TrialSums) -> int:
    """Return the model that gains most over every base, less half a standard error of the gain; 0, the first base, if
    none gains more than that.

    A rule like that of one standard error (Breiman et al. 1984) on paired, smooth losses: cautious among many, and
    never a step for its own sake. With a whole standard error a few hundred rows cannot prove gains that are there.
    """
    bound = (sums.gain - CAUTION * sums.gain_error).amin(0)
    bound[: len(sums.gain_v)] = 0.0
    best = int(bound.argmax())
    return best if float(bound[best]) > 0 else 0


def least_base(sums: TrialSums) -> int:
    """Return the base with the least loss: what a model is to beat."""
    return int(sums.loss[: len(sums.gain_v)].argmin())


def best_base(sums: TrialSums) -> int:
    """Return the base to go on with where no model is taken: 0, the first, unless another's loss is lower by more than
    three standard errors; then the nearest to the first of those within one standard error of the best."""
    best = least_base(sums)
    if not float(sums.gain[0, best]) > 3 * float(sums.gain_error[0, best]):
        return 0
    within = sums.gain[:, best] <= sums.gain_error[:, best]
    return int(within.nonzero()[0])
