"""The training loop, the same in this process and on every worker of Ray Train: every arm under every seed.

A model is trained on the rows of all workers together: a step takes about `batch_size` rows, each worker's share of
them from its own rows, and every worker makes the same number of steps, so none waits for one that has finished.
"""

from __future__ import annotations

import copy
import math
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from diva_ray.core import losses
from diva_ray.engine.course import Course, Share, TrainRows, cut
from diva_ray.errors import InputError

CHECKPOINTS = "checkpoints"  # one file for every arm and seed, written at the end of every epoch
EVALUATION = f"{CHECKPOINTS}/evaluation.npz"
PROGRESS = f"{CHECKPOINTS}/progress.json"
MODULE = f"{CHECKPOINTS}/module.json"  # layers and parameters of what is trained
BLOCK = 4096  # test rows at a time
_GENERATOR = threading.Lock()  # torch's own is the process's: threads that train would draw from each other's


class AgreedError(InputError):
    """What no further epoch can do, and what every worker finds at the same time."""


class Crew(Protocol):
    """The workers of a run, as one of them sees them."""

    rank: int
    world: int

    def wrap(self, model: torch.nn.Module, *, unused: bool) -> torch.nn.Module:
        """Return the model with gradients that are averaged over all workers; `unused`: some may have none."""
        ...

    def add(self, values: Tensor) -> Tensor:
        """Return the sum over all workers."""
        ...

    def tell(self, told: dict[str, Any], /) -> None:
        """Say how far the run is."""
        ...


class SingleProcess:
    """A crew of this process; `told` hears of every epoch."""

    rank, world = 0, 1

    def __init__(self, told: Callable[[dict[str, Any]], Any]) -> None:
        self.tell = told

    def wrap(self, model: torch.nn.Module, *, unused: bool) -> torch.nn.Module:
        """Return the model."""
        return model

    def add(self, values: Tensor) -> Tensor:
        """Return the values."""
        return values


def train_all(course: Course, crew: Crew) -> None:
    """Train every arm under every seed, then compare all of them on the test rows; checkpoints say what is done."""
    share = Share(course, crew.rank, crew.world)
    with _GENERATOR, torch.random.fork_rng(devices=[]):
        for k, (arm, seed) in enumerate(course.models):
            train_one(course, share, crew, arm, seed, before=k * course.epochs)
        found = evaluate(course, crew)
    if crew.rank == 0:
        course.folder.write_arrays(EVALUATION, {name: value.numpy() for name, value in found.items()})


def train_one(course: Course, share: Share, crew: Crew, arm: str, seed: int, before: int) -> None:
    """Train one model from its last checkpoint on; after every epoch there is a new one."""
    model, history, momentum = restore(course, arm, seed)
    agreed = crew.add(torch.tensor([float(len(history))]))
    if float(agreed) != crew.world * len(history):
        raise RuntimeError(f"workers found different checkpoints of {arm}, seed {seed}")  # Ray starts them again
    if len(history) == course.epochs:
        return
    alpha = share.weights(arm)
    own = int((alpha > 0).sum())
    kept, weight = crew.add(torch.stack([torch.tensor(float(own)).double(), alpha.sum()])).tolist()
    steps = max(1, math.ceil(kept / course.batch_size))
    single = own // steps < 2 and refusal_of_single_rows(model, course.scale.width) is not None
    if float(crew.add(torch.tensor([float(single)]))):
        raise AgreedError(
            f"batch_size: must give every worker 2 rows of a step at least, as the module takes no single row, got "
            f"{course.batch_size} rows a step, one at most of a worker's, in arm {arm}: rows of weight 0 take no part. "
            "Raise `batch_size`, or shuffle the table."
        )
    wrapped = crew.wrap(model, unused=course.unused)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=course.learning_rate, momentum=course.momentum, weight_decay=course.weight_decay
    )
    for parameter, buffer in zip(model.parameters(), momentum, strict=bool(momentum)):
        optimizer.state[parameter]["momentum_buffer"] = buffer
    for epoch in range(len(history), course.epochs):
        generator = seeded(seed, epoch, crew.rank)
        loss = 0.0
        wrapped.train()
        for step, rows in enumerate(share.batches(alpha, steps, generator)):
            optimizer.param_groups[0]["lr"] = rate(course, epoch + step / steps)
            found = (rows.weight.float() * row_losses(course, wrapped, rows)).sum()
            optimizer.zero_grad()
            (found * (crew.world * steps / weight)).backward()
            optimizer.step()
            loss += float(found.detach())
        history.append(float(crew.add(torch.tensor([loss], dtype=torch.float64))) / weight)
        if not math.isfinite(history[-1]):
            raise AgreedError(
                f"learning_rate: the training loss must stay finite, got {history[-1]} in epoch {epoch + 1} of arm "
                f"{arm}, seed {seed}. Lower `learning_rate` ({course.learning_rate:g} now), with a new `output`."
            )
        if crew.rank == 0:
            save(course, arm, seed, model, history, optimizer, crew.world)
        done = before + epoch + 1
        crew.tell({"done": done, "arm": arm, "seed": seed, "epoch": epoch + 1, "loss": history[-1]})


def refusal_of_single_rows(model: torch.nn.Module, width: int) -> Exception | None:
    """Return why a module takes no step of one row, as with batch normalisation; None where it does."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            copy.deepcopy(model).train()(torch.zeros(1, width, dtype=torch.float32))
    except Exception as error:  # the user's code
        return error
    return None


def seeded(seed: int, epoch: int, rank: int) -> torch.Generator:
    """Return the generator of one epoch of one worker, and seed the module's own randomness alike."""
    number = int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(number)
    return torch.Generator().manual_seed(number)


def rate(course: Course, epoch: float) -> float:
    """Return the learning rate at a time, in epochs: half a cosine from the first to 0."""
    return course.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / course.epochs))


def linear(n_features: int, n_outputs: int, *, bias: bool = True) -> torch.nn.Module:
    """Return the default module: a linear head."""
    return torch.nn.Linear(n_features, n_outputs, bias=bias)


def outputs(model: torch.nn.Module, rows: TrainRows) -> Tensor:
    """Return the model's outputs, which correct the rows' own if they have any."""
    found = model(rows.Z)
    return found if rows.offset is None else found + rows.offset


def row_losses(course: Course, model: torch.nn.Module, rows: TrainRows) -> Tensor:
    """Return the loss of every row: cross-entropy; binary cross-entropy summed over classes; half the squared error."""
    found = outputs(model, rows)
    if course.task == "classification":
        return functional.cross_entropy(found, rows.Y, reduction="none")
    if course.task == "multilabel":
        return functional.binary_cross_entropy_with_logits(found, rows.Y, reduction="none").sum(1)
    return 0.5 * (found - rows.Y).square().sum(1)


def row_errors(course: Course, found: Tensor, Y: Tensor, threshold: float) -> Tensor:
    """Return `losses.errors` of every row, of numbers in their own units."""
    unit = 1.0 if course.classes is not None else course.target_scale**2
    return losses.errors(found, Y, several=course.task == "multilabel", threshold=threshold) * unit


def checkpoint(arm: str, seed: int) -> str:
    """Return the name of a model's file."""
    return f"{CHECKPOINTS}/{arm}-{seed}.npz"


def save(
    course: Course,
    arm: str,
    seed: int,
    model: torch.nn.Module,
    history: list[float],
    optimizer: torch.optim.Optimizer,
    workers: int,
) -> None:
    """Write a model's file, whole or not at all, without the optimizer's state once it is trained; and how far the
    workers are."""
    arrays = {f"model.{name}": value.numpy() for name, value in model.state_dict().items()}
    if len(history) < course.epochs:
        for k, parameter in enumerate(model.parameters()):
            buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
            arrays[f"momentum.{k:05d}"] = (torch.zeros_like(parameter) if buffer is None else buffer).detach().numpy()
    course.folder.write_arrays(checkpoint(arm, seed), {**arrays, "loss": np.array(history)})
    told = {"arm": arm, "seed": seed, "epoch": len(history), "loss": history[-1], "process": os.getpid()}
    told["workers"] = workers
    done = course.models.index((arm, seed)) * course.epochs + len(history)
    course.folder.write_json(PROGRESS, {"done": done, **told})


def restore(course: Course, arm: str, seed: int) -> tuple[torch.nn.Module, list[float], list[Tensor]]:
    """Return a model, the losses of its epochs so far and the optimizer's momenta: a new one without a checkpoint."""
    torch.default_generator.manual_seed(seed)
    model = course.build(course.scale.width, course.outputs).float()
    found = course.folder.read_arrays(checkpoint(arm, seed))
    if found is None:
        return model, [], []
    model.load_state_dict({name[6:]: torch.from_numpy(found[name]) for name in found if name.startswith("model.")})
    momentum = [torch.from_numpy(found[name]) for name in sorted(found) if name.startswith("momentum.")]
    return model, found["loss"].tolist(), momentum


def evaluate(course: Course, crew: Crew) -> dict[str, Tensor]:
    """Return over all test rows n, `total` sum e and `products` sum e e' of the errors e of every model, the closed
    forms last, and the error of a model that `learns_nothing`; one read, of several labels two."""
    crew.add(torch.zeros(1))  # every checkpoint is written
    models = [restore(course, arm, seed)[0].eval() for arm, seed in course.models]
    closed = [_closed(course, name) for name in course.closed]
    K = len(models) + len(closed)
    sums = torch.zeros(1 + K + K * K + course.outputs, dtype=torch.float64)
    with torch.no_grad():
        for rows in _test_rows(course, crew):
            errors = [row_errors(course, outputs(model, rows), rows.Y, 0.0) for model in models]
            errors += [row_errors(course, predict(rows), rows.Y, 0.5) for predict in closed]
            E = torch.stack(errors, 1)
            sums += torch.cat([torch.tensor([float(len(E))]), E.sum(0), (E.T @ E).reshape(-1), _idle(course, rows)])
    n, total, products, idle = crew.add(sums).split([1, K, K * K, course.outputs])
    idle = learns_nothing(course, crew, float(n), idle)
    return {"n": n[0], "total": total, "products": products.reshape(K, K), "idle": idle}


def _test_rows(course: Course, crew: Crew) -> Iterator[TrainRows]:
    """Yield this worker's test rows, block by block."""
    pieces, reader = cut(0, course.test.rows, BLOCK), course.test.reader()
    for a, b in pieces[len(pieces) * crew.rank // crew.world : len(pieces) * (crew.rank + 1) // crew.world]:
        yield course.read(course.test, reader, a, b)


def _closed(course: Course, name: str) -> Callable[[TrainRows], Tensor]:
    """Return the outputs of a closed form for rows, in the units of their targets."""
    found = course.folder.read_arrays(f"model/{name}.npz") or {}
    weight, bias = (torch.from_numpy(found[key]) for key in ("weight", "bias"))

    def predict(rows: TrainRows) -> Tensor:
        F = rows.Z.double() @ weight.T + bias
        if course.classes is None:
            return (F - course.target_mean) / course.target_scale
        return F if rows.offset is None else F + rows.offset

    return predict


def _idle(course: Course, rows: TrainRows) -> Tensor:
    """Return what `learns_nothing` follows from (c,): rows of every class, or (numbers, offsets) errors."""
    found = torch.zeros(course.outputs, dtype=torch.float64)
    if course.classes is None or rows.offset is not None:
        still = torch.zeros(len(rows.Z), course.outputs) if rows.offset is None else rows.offset
        found[0] = row_errors(course, still, rows.Y, 0.0).sum()
        return found
    return torch.bincount(rows.Y, minlength=course.outputs).double() if rows.Y.ndim == 1 else rows.Y.double().sum(0)


def learns_nothing(course: Course, crew: Crew, n: float, idle: Tensor) -> Tensor:
    """Return the test error of always predicting the table's mean, or the class that is commonest in the test rows (of
    several: how common each is); with offsets, of those alone."""
    if course.classes is None or course.columns.offset:
        return idle[0] / n
    if course.task == "classification":
        return 1 - idle.max() / n
    found = (
        row_errors(course, (idle / n).expand(rows.Y.shape), rows.Y, 0.5).sum() for rows in _test_rows(course, crew)
    )
    return crew.add(sum(found, torch.zeros(1, dtype=torch.float64)))[0] / n
