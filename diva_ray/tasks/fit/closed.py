"""The closed forms that training is held against, under the weights and with every row alike, and what the step of SGD
follows from: sums of both."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import torch

from diva_ray.config import TrainConfig
from diva_ray.core.curvature import largest_eigenvalue, stable_rate
from diva_ray.core.ridge import FitSums, Solution
from diva_ray.data.folder import Folder
from diva_ray.engine.kernels.given import row_sizes
from diva_ray.engine.kernels.samples import SAME
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup
from diva_ray.tasks.fit.derive import fit_ridge, sum_all
from diva_ray.tasks.setup.options import chosen_shares
from diva_ray.tasks.setup.runner import Runner
from diva_ray.tasks.setup.session import Session

log = logging.getLogger("diva_ray")

CLOSED, EVEN = "closed_form", "closed_form_uniform"  # the arms that have no seed, and their files in model/
REWEIGHTED = "reweight"  # folder of the run that weights=auto makes
OF_FEATURES = ("standardize", "intercept", "shares", "projection")  # what a ridge is relative to, beside the columns
BEND = {"classification": 0.5, "multilabel": 0.25}  # most that a loss bends; half a squared error bends by 1
MOST = {
    "classification": 1.0,
    "multilabel": 1.0,
}  # rate of cross-entropy, whose curvature is mostly far below its bound
MOST_OF_A_MODULE = 0.1  # of a module of the user's own, of which nothing is known


@dataclass(frozen=True)
class Closed:
    """A closed form, and what the rows look like under its weights.

    Attributes:
        sizes: what `engine.kernels.given.row_sizes` adds up.
        largest: largest eigenvalue of the weighted mean of z z'.
    """

    setup: Setup
    ridge: float
    sizes: Tally
    largest: float

    @property
    def alike(self) -> bool:
        """Whether every row has the same weight."""
        return self.sizes["max_weight"] + self.sizes["max_minus"] <= SAME * self.sizes["max_weight"]


def solve_closed(session: Session, setup: Setup, ridge: float | str, name: str) -> Closed:
    """Solve and save the closed form under the weights that are known to the passes; one read more than a fit."""
    runner, fits = session.runner, []

    def fit(runner: Runner, setup: Setup) -> FitSums:
        fits[:] = [sum_all(runner, setup)]  # the last: products may be taken again in float64
        return fits[0]

    setup, ridge, solution, _ = fit_ridge(runner, setup, ridge, fit)
    save_closed_form(session.folder, name, setup, solution)
    sizes: Tally = runner.run(row_sizes, "sizes", session.scored())
    largest = runner.timed("solve", largest_eigenvalue, fits[0].gram) / sizes["weight"]
    return Closed(setup, ridge, sizes, largest)


def solve_both(session: Session, config: TrainConfig, setup: Setup, *, given: bool) -> tuple[Closed, Closed | None]:
    """Return the closed form under the weights, and with every row alike where the weights are not alike: under the
    same rule for the ridge, so that nothing but the weights differs."""
    ridge = even = config.ridge
    if ridge == "auto" and given:
        ridge, even = ridges_of(config, session)
    closed = solve_closed(session, setup, ridge, CLOSED)
    if closed.alike:
        return closed, None
    session.engine.tell(even=True)
    return closed, solve_closed(session, closed.setup, even, EVEN)


def ridges_of(config: TrainConfig, session: Session) -> tuple[float | str, float | str]:
    """Return the ridge of the weights' run, and the one under which it compared the weights as they were, if it says
    so and was of the same features."""
    named = session.folder.location(REWEIGHTED) if config.weights == "auto" else str(config.weights)
    folder = Folder(named, "weights")
    if "config.yaml" in folder.names(""):
        theirs, ours = folder.read_config(), asdict(config)
        if found := folder.read_object("bands.json"):  # of an aggregation, which finds them
            theirs["shares"] = {band: figures["share"] for band, figures in found.items()}
        if not isinstance(theirs.get("shares"), str):
            shares = chosen_shares(config, session.columns.features)
            ours["shares"] = shares and dict(zip(session.columns.features, shares, strict=True))
        pairs = [(name, theirs.get(name), ours[name]) for name in OF_FEATURES]
        data = theirs.get("data")
        named = (data.get("features") if isinstance(data, dict) else None) or []
        pairs.append(("data.features", listed(named), listed(ours["data"]["features"])))
        differ = [name for name, their, our in pairs if their != our]
        if differ:
            log.info("weights: that run had another %s, so that the ridge is chosen anew", ", ".join(differ))
            return "auto", "auto"
    ridge = folder.read_figure("ridge", "auto")
    return ridge, folder.read_figure("ridge_compared", ridge)


def listed(names: Any) -> list[str]:
    """Return one name as a list of one."""
    return [names] if isinstance(names, str) else list(names)


def save_closed_form(folder: Folder, name: str, setup: Setup, solution: Solution) -> None:
    """Write the ridge solution as weight (c, p) and bias (c,)."""
    W, first = solution.W.double(), int(setup.scale.intercept)
    bias = W[0] if first else torch.zeros(W.shape[1], dtype=torch.float64)
    folder.write_arrays(f"model/{name}.npz", {"weight": W[first:].T.contiguous().numpy(), "bias": bias.numpy()})


def rate_of(config: TrainConfig, task: str, closed: list[Closed], *, own_module: bool) -> float:
    """Return the learning rate: as given, or (`auto`) one that is stable under the weights and with every row alike.

    The linear head's is `stable_rate`, at most 1 for classes. Of a module of the user's own nothing is known: it takes
    0.1, or the linear head's where that is less. Two digits, so that a run that is resumed elsewhere takes the same.
    """
    if config.learning_rate != "auto":
        return float(config.learning_rate)
    found = MOST_OF_A_MODULE if own_module else MOST.get(task, float("inf"))
    for one in closed:
        total, squares = one.sizes["sizes"].tolist()
        taken, mean = one.sizes["taken"], one.sizes["weight"] / one.sizes["taken"]
        batch = taken / -(-taken // config.batch_size)  # as `engine.training` cuts them
        size = squares / (mean * total) if total else 0.0
        found = min(
            found, stable_rate(one.largest, size, batch, config.momentum, BEND.get(task, 1.0), config.weight_decay)
        )
    return float(f"{found:.2g}")
