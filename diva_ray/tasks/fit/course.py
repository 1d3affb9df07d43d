"""From a session to what the workers of a training run are told: test rows checked, weights taken, the closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from diva_ray.config import TrainConfig
from diva_ray.data.given import Given
from diva_ray.data.shards import Columns
from diva_ray.engine.course import Course
from diva_ray.engine.kernels.given import STEP, adopt
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup
from diva_ray.engine.training import MODULE, refusal_of_single_rows
from diva_ray.errors import InputError
from diva_ray.tasks.fit.closed import CLOSED, EVEN, Closed, rate_of, solve_both
from diva_ray.tasks.fit.dual import double_if_few
from diva_ray.tasks.setup.session import Session, look_beside
from diva_ray.tasks.setup.weights import check_scanned_classes


@dataclass(frozen=True)
class ClosedForms:
    """What is known before training: the closed forms, what a run's weights add up to, and the factor of all."""

    closed: Closed
    even: Closed | None
    adopted: Tally | None
    factor: float


def prepare_course(
    session: Session, config: TrainConfig, given: Given | None, build: Callable, *, own: bool
) -> tuple[Course, ClosedForms]:
    """Check the test rows, give every row its weight, solve the closed forms; return what the workers are told.

    `own`: the module is not the linear head.
    """
    setup = double_if_few(session.setup, session.runner.rows)
    check_scanned_classes(session.scan.labels, look_beside(session, "test").labels, session.beside_table)
    adopted = None if given is None else take_weights(session, config, given)
    closed, even = solve_both(session, config, setup, given=given is not None)
    session.folder.drop("weights")
    rate = rate_of(config, session.task, [one for one in (closed, even) if one], own_module=own)
    arms = ("weighted", "uniform", "without_flagged") if given is not None and given.flags else ("weighted", "uniform")
    arms = arms if given is not None or session.columns.weight else ("uniform",)
    course = course_of(session, config, closed.setup, given, arms, build, rate)
    course = replace(course, closed=(CLOSED,) if even is None else (CLOSED, EVEN))
    workers = 1 if session.plan.kind == "inline" else workers_of(session, course)
    course = check_module(course, workers)
    return course, ClosedForms(closed, even, adopted, 1.0 if given is None else given.factor)


def take_weights(session: Session, config: TrainConfig, given: Given) -> Tally:
    """Give every row the weight of the run; return what they add up to."""
    runner = session.runner
    runner.engine.tell(given=given, store=session.folder if session.plan.kind != "inline" else None)
    adopted: Tally = runner.run(adopt, "weights", session.scored())
    if not adopted["weight"] > 0:
        raise InputError(f"weights: some weight must be > 0, got all zero in {config.weights}. Change `weights`.")
    if given.flags and adopted["n_flagged"] == adopted["n"]:
        raise InputError(f"flag: some row must be left, got every row flagged in {config.weights}. Change `flag`.")
    runner.engine.tell(step=STEP, factor=1.0)
    return adopted


def course_of(
    session: Session, config: TrainConfig, setup: Setup, given: Given | None, arms: tuple[str, ...], build: Callable,
    rate: float,
) -> Course:  # fmt: skip
    """Return what the workers are told; rows are read in the table's own order, whatever their groups."""
    mean, spread = torch.zeros(setup.outputs, dtype=torch.float64), 1.0
    if setup.classes is None:
        found = session.scan.reach if session.columns.offset else session.scan.target
        mean, squares = (x.view(-1, setup.outputs)[-1] for x in found[1:].chunk(2))  # of what offsets leave
        variance = float(squares.sum() / found[0]) / setup.outputs
        size = float(mean.square().mean())
        if not (config.intercept or config.module):  # the linear head then has none, as the closed form has not
            mean, variance = torch.zeros_like(mean), variance + size
        spread = variance**0.5 if variance > 1e-24 * size else 1.0
    known = session.columns
    return Course(
        table=session.given,
        test=session.beside_table,
        columns=Columns(known.features, known.label, weight=known.weight, offset=known.offset),
        given=given,
        folder=session.folder,
        task=session.task,
        scale=replace(setup.scale, intercept=False),
        classes=setup.classes,
        outputs=setup.outputs,
        target_mean=mean,
        target_scale=spread,
        arms=arms,
        seeds=tuple(range(config.seed, config.seed + config.seeds)),
        build=build,
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        window=config.window,
        threads=config.cluster.threads or (torch.get_num_threads() if session.plan.kind == "inline" else 1),
    )


def workers_of(session: Session, course: Course) -> int:
    """Return how many workers train on Ray: each has a row at least."""
    return min(session.config.cluster.workers or session.engine.workers, course.table.rows)


def check_module(course: Course, workers: int) -> Course:
    """Return the course, which knows whether all parameters are used.

    Raises:
        InputError: the module cannot be built, has no parameters to train, does not take (rows, features) to (rows,
            outputs), takes no rows as few as a worker has in a step, or is another one than the run was begun with.
    """
    p, c = course.scale.width, course.outputs
    try:
        with torch.random.fork_rng(devices=[]):
            model, again = course.build(p, c), course.build(p, c)
            shared = _changing(model) & _changing(again)
            model = model.float().eval()
            found = model(torch.zeros(2, p, dtype=torch.float32))
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            if trained:
                found.sum().backward()
    except Exception as error:  # the user's code
        raise InputError(
            f"module: must be built and run for {p} features and {c} outputs, got {type(error).__name__} ({error}). "
            "Change `module`."
        ) from error
    if shared:  # the next arm would go on from where the last has ended
        raise InputError(
            f"module: must build new parameters every time, got {len(shared)} of the same in two. Build the module "
            "inside the function, or return `copy.deepcopy(net)`."
        )
    if tuple(found.shape) != (2, c) or not trained:
        raise InputError(
            f"module: must have parameters to train and take (2, {p}) to (2, {c}), got {len(trained)} parameters and "
            f"{tuple(found.shape)}. Change `module`."
        )
    check_few_rows(course, model, workers)
    told = {"module": str(model), "parameters": {name: list(v.shape) for name, v in model.state_dict().items()}}
    begun = course.folder.read_json(MODULE)
    if begun not in (None, told):
        raise InputError(
            f"resume: the run in {course.folder.path} must train the module that it was begun with, got other layers "
            "or parameters. Use the same `module`, or a new `output`."
        )
    course.folder.write_json(MODULE, told)
    return replace(course, unused=any(parameter.grad is None for parameter in trained))


def _changing(model: torch.nn.Module) -> set[int]:
    """Return which parameters and buffers training changes."""
    trained = [one for one in model.parameters() if one.requires_grad]
    return {id(one) for one in trained + [one for one in model.buffers() if one.is_floating_point()]}


def check_few_rows(course: Course, model: torch.nn.Module, workers: int) -> None:
    """Raise if a worker has single rows in a step and the module, as with batch normalisation, takes none."""
    steps = -(-course.table.rows // course.batch_size)
    if course.table.rows // workers // steps > 1:
        return
    error = refusal_of_single_rows(model, course.scale.width)
    if error is not None:
        raise InputError(
            f"batch_size: must give every worker 2 rows of a step at least, as the module takes no single row "
            f"({type(error).__name__}: {error}), got {course.batch_size} rows a step for {workers} worker"
            f"{'s' * (workers > 1)}. Raise `batch_size`."
        ) from error
