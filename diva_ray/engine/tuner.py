"""Ray Tune around an evaluation that stays where the data are: trials are light processes that ask for one fold after
another and report; nothing is loaded or copied for them.

Every trial asks a desk, an actor without CPUs, and one thread of this process answers. So trials run one after another
on all workers, and a trial that its scheduler stops is simply not asked about again.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.exceptions

from diva_ray.engine.connect import connect
from diva_ray.engine.progress import quieted
from diva_ray.errors import InputError
from diva_ray.threads import environment

Evaluate = Callable[[str, dict[str, Any], int], dict[str, Any]]
# The run writes its own table, and Ctrl-C ends it instead of looking like the end of the search.
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_SIGINT_HANDLER": "1",
}  # fmt: skip
AGAIN = 0.1  # seconds between questions to a desk that is being started again
MOST_SEARCHES = 8  # that ask again for trials whose process died before it asked
CHATTY = (  # what is said there is mended here, raised, or (of files that QUIET leaves out) no loss
    "ray.tune.analysis.experiment_analysis", "ray.tune.execution.tune_controller", "ray.tune.tune",
)  # fmt: skip
SMALL = 100 << 20  # bytes of object store where only trials talk
ROOM = {
    "memory": 1.0
}  # what Tune asks for a trial: a byte. Workers may hold every CPU, and Tune refuses to ask nothing


@dataclass(frozen=True)
class Search:
    """How points of the space are drawn, and which trials are stopped early.

    Attributes:
        space: of every name, (kind, values): `choice` of labels, `uniform` or `loguniform` between two numbers.
        method: `random`, `grid` (every combination of the choices) or `optuna` (TPE).
        scheduler: `none` or `asha`: after 1, r, r^2, ... folds only the best 1 / r of the trials go on.
        trials: how many.
        points: the value of every name, trial by trial; None where the method draws them.
        folds: reports that a whole trial makes.
    """

    space: Mapping[str, tuple[str, list[Any]]]
    method: str
    scheduler: str
    trials: int
    points: list[dict[str, Any]] | None
    folds: int
    reduction: int
    seed: int


class Desk:
    """Actor between trials and the process that evaluates: questions wait in a queue, answers go to who asked."""

    def __init__(self) -> None:
        self.questions: asyncio.Queue = asyncio.Queue()
        self.asked: dict[str, asyncio.Future] = {}

    async def ask(self, trial: str, config: dict[str, Any], fold: int) -> dict[str, Any]:
        """Return what one fold says of a trial, once it has been evaluated."""
        ticket = uuid.uuid4().hex  # no number: a desk that was started again would count anew
        answer = self.asked[ticket] = asyncio.get_running_loop().create_future()
        await self.questions.put((ticket, trial, config, fold))
        return await answer

    async def next(self) -> tuple[str, str, dict[str, Any], int] | None:
        """Return the next question; None when the desk closes."""
        return await self.questions.get()

    async def answer(self, ticket: str, found: dict[str, Any]) -> None:
        """Answer a question; one that was asked at a desk before this one is asked again."""
        if ticket in self.asked:
            self.asked.pop(ticket).set_result(found)

    async def close(self) -> None:
        """Send the evaluating thread home."""
        await self.questions.put(None)


def trial(config: dict[str, Any], desk: Any, folds: int) -> None:
    """Ask for one fold after another and report the running error: all that a trial's process does."""
    from ray import tune

    name = tune.get_context().get_trial_id()
    for fold in range(folds):
        found = ray.get(desk.ask.remote(name, config, fold))
        tune.report(found)
        if found["failed"]:  # type: ignore[index]  # a dict, which pyright takes for a list
            return


class Server(threading.Thread):
    """Answers the desk's questions, one after another, until it closes; keeps the first mistake, and what points were
    asked about."""

    def __init__(self, desk: Any, evaluate: Evaluate) -> None:
        super().__init__(daemon=True)
        self.desk, self.evaluate = desk, evaluate
        self.points: list[dict[str, Any]] = []
        self.fault: BaseException | None = None

    def run(self) -> None:
        """Serve; after a mistake that is not a trial's own, every further answer is that the run has failed."""
        while True:
            try:
                if (question := ray.get(self.desk.next.remote())) is None:
                    return
                ticket, *asked = question
                if asked[1] not in self.points:
                    self.points.append(asked[1])
                ray.get(self.desk.answer.remote(ticket, self._found(*asked)))
            except ray.exceptions.ActorUnavailableError:  # it died, and is started again: trials ask once more
                time.sleep(AGAIN)
            except ray.exceptions.RayActorError:  # the desk was taken away: the search has ended
                return

    def _found(self, name: str, config: dict[str, Any], fold: int) -> dict[str, Any]:
        if self.fault is None:
            try:
                return self.evaluate(name, config, fold)
            except BaseException as fault:
                self.fault = fault  # raised in the main thread, when Tune has returned
        return {"error": float("inf"), "failed": True}


def run_trials(search: Search, evaluate: Evaluate) -> int:
    """Run every trial of a search and return how many there were; Ray must be connected.

    Args:
        search: see `Search`.
        evaluate: (trial, point, fold) -> {"error": the trial's error so far, "failed": whether it must end}; called in
            a thread of this process, one call at a time, the folds of a trial in order.

    Raises:
        InputError, or whatever `evaluate` raised.
    """
    desk = ray.remote(Desk).options(num_cpus=0, max_restarts=-1).remote()
    server = Server(desk, evaluate)
    server.start()
    try:
        found = _run(search, desk)
        lost = _lost(found, search, server.points)
        for _ in range(MOST_SEARCHES if search.points is not None else 0):
            if not lost or server.fault is not None:
                break
            again = replace(search, trials=len(lost), points=lost)
            lost = _lost(_run(again, desk), again, server.points)
        ray.get(desk.close.remote())
        server.join()
    finally:
        ray.kill(desk)  # type: ignore[arg-type]  # a typed proxy is a handle
    if server.fault is not None:
        raise server.fault
    if lost:
        raise InputError(
            f"tune: processes of trials must stay alive, got {len(lost)} trials whose process died before they began. "
            "Look for what ends them (memory, the cluster's logs), and run again with `resume=true`."
        )
    return len(found)


def _lost(found: Any, search: Search, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the points of trials whose process died before it asked; of points that the method draws, what is known.

    Tune starts a trial again whose process dies while it runs; one that was about to take over a living process
    (`reuse_actors`) it gives up at once.

    Raises:
        what ended a trial that did ask: its process died more often than Tune starts one again.
    """
    if not found.errors or search.points is None:
        return [{} for _ in found.errors]
    lost = [point for point in search.points if point not in asked]
    if len(lost) < len(found.errors):
        raise found.errors[0]
    return lost


def _run(search: Search, desk: Any) -> Any:
    """Return what Tune reports of a search whose trials ask at a desk."""
    from ray import tune

    with tempfile.TemporaryDirectory() as scratch, environment(QUIET):
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trial, desk=desk, folds=search.folds), ROOM),
            param_space={name: _domain(*one) for name, one in search.space.items()},
            tune_config=tune.TuneConfig(
                metric="error", mode="min", num_samples=search.trials,
                max_concurrent_trials=None if search.method != "optuna" else 1, reuse_actors=True,
                search_alg=_algorithm(search), scheduler=_scheduler(search),
            ),
            run_config=tune.RunConfig(
                name="trials", storage_path=scratch, verbose=0, failure_config=tune.FailureConfig(max_failures=8)
            ),
        )  # fmt: skip
        with quieted(logging.CRITICAL, *CHATTY):
            return tuner.fit()


@contextmanager
def connected(kind: str) -> Iterator[None]:
    """Connect to Ray for a while: to the engine's, or (inline) to one for the trials alone, which ends with them."""
    ours = not ray.is_initialized()
    if ours:
        connect("local" if kind == "inline" else kind, cpus=1, object_store_memory=SMALL)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _domain(kind: str, values: list[Any]) -> Any:
    """Return the domain of one name as Tune writes it."""
    from ray import tune

    return tune.choice(values) if kind == "choice" else getattr(tune, kind)(*values)


def _algorithm(search: Search) -> Any:
    """Return the search algorithm; one trial at a time, so that its course depends on the seed alone."""
    if search.method == "optuna":
        import optuna  # pyright: ignore[reportMissingImports]  # an extra
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return OptunaSearch(sampler=optuna.samplers.TPESampler(seed=search.seed), metric="error", mode="min")
    from ray.tune.search.basic_variant import BasicVariantGenerator

    return BasicVariantGenerator(points_to_evaluate=search.points, max_concurrent=1, random_state=search.seed)


def _scheduler(search: Search) -> Any:
    """Return the scheduler: first in, first out, or asynchronous successive halving (Li et al. 2020)."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if search.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(max_t=search.folds, grace_period=1, reduction_factor=search.reduction)


def check_search(method: str) -> None:
    """Raise if the search needs a package that is not there."""
    if method == "optuna" and importlib.util.find_spec("optuna") is None:
        raise InputError(
            "search: optuna must be installed, got no package of that name. Run `pip install diva_ray[optuna]`, or "
            "use search=random."
        )
