"""The training loop on Ray Train: workers in one torch process group, started again when one of them dies."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
import ray.exceptions
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from torch import Tensor

from diva_ray.engine.course import Course
from diva_ray.engine.training import CHECKPOINTS, PROGRESS, AgreedError, train_all
from diva_ray.errors import InputError

log = logging.getLogger("diva_ray")
FAILURES = 8  # times that the workers, or their controller, are started again from their last checkpoint
ABORT = 10.0  # seconds that workers have to end
POLL = 1.0  # seconds between looks at how far they are
STORAGE = "ray_train"  # folder of Ray Train's own notes; dropped at the end
DIVERGED = f"{CHECKPOINTS}/diverged.json"


class Trainer(TorchTrainer):
    """Ray's, which leaves Ctrl-C to this process: with Ray's own handler it would end without a word and with code 1,
    and hear none ever after."""

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller

    def abort(self) -> None:
        """End the workers, as far as they are there."""
        if self.controller is not None:
            with suppress(ray.exceptions.RayError):  # it ends itself, too
                ray.get(self.controller.abort.remote(), timeout=ABORT)


class Together:
    """A crew of Ray Train's workers, which add up by gloo."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()

    def wrap(self, model: torch.nn.Module, *, unused: bool) -> torch.nn.Module:
        """Return the model with gradients that are averaged over all workers; `unused`: some may have none."""
        return prepare_model(model, move_to_device=False, parallel_strategy_kwargs={"find_unused_parameters": unused})

    def add(self, values: Tensor) -> Tensor:
        """Return the sum over all workers."""
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values

    def tell(self, told: dict[str, Any]) -> None:
        """Do nothing: the driver reads how far the run is, because a report to Ray Train takes two seconds."""


def loop(config: dict[str, Any]) -> None:
    """Train on one worker; checkpoints are the run's own files, so that a run in one process reads the same."""
    course: Course = config["course"]
    torch.set_num_threads(course.threads)
    crew = Together()
    try:
        train_all(course, crew)
    except AgreedError as error:  # not raised: Ray would start the workers again
        if crew.rank == 0:
            course.folder.write_json(DIVERGED, str(error))
    ray.train.report({"models": len(course.models)})


def run_on_ray(course: Course, workers: int, environment: dict[str, str], told: Callable[[dict], Any]) -> None:
    """Train on Ray workers; `told` hears of progress.

    Raises:
        InputError: a worker met a user's mistake, or the controller died again and again.
    """
    course.folder.remove(DIVERGED)
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(course, told, over), daemon=True)
    watcher.start()
    try:
        for deaths in range(1, FAILURES + 1):
            if _fitted(course, workers, environment):
                break
            log.warning(
                "train: Ray Train's controller died; checkpoints stay (%d of at most %d times)", deaths, FAILURES
            )
        else:
            raise InputError(
                f"cluster: the controller of Ray Train must live, got {FAILURES} that died. See `ray logs`; run it "
                "again with `resume=true`."
            )
    finally:
        over.set()
        watcher.join()
    course.folder.drop(STORAGE)
    diverged = course.folder.read_json(DIVERGED)
    if diverged is not None:
        raise AgreedError(diverged)


def _fitted(course: Course, workers: int, environment: dict[str, str]) -> bool:
    """Train once; return False if the controller, an actor that nobody starts again, has died."""
    course.folder.drop(STORAGE)  # checkpoints are the run's own
    trainer = Trainer(
        loop,
        train_loop_config={"course": course},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=workers, resources_per_worker={"CPU": course.threads}),
        run_config=ray.train.RunConfig(
            name="train", storage_path=course.folder.location(STORAGE),
            failure_config=ray.train.FailureConfig(max_failures=FAILURES),
            worker_runtime_env={"env_vars": environment} if environment else None,
        ),
    )  # fmt: skip
    try:
        trainer.fit()
    except ray.exceptions.RayActorError:
        return False
    except ray.train.TrainingFailedError as error:
        raise _mistake(error) or error from None
    except KeyboardInterrupt:
        trainer.abort()
        raise
    return True


def _watch(course: Course, told: Callable[[dict], Any], over: threading.Event) -> None:
    """Tell how far the workers are, by what they write, until they are done."""
    while not over.wait(POLL):
        found = course.folder.read_json(PROGRESS)
        if found:
            told(found)


def _mistake(error: BaseException) -> InputError | None:
    """Return a user's mistake among the reasons why training failed."""
    for failure in getattr(error, "worker_failures", {}).values():
        reason = getattr(failure, "_base_exc", failure)
        if isinstance(reason, InputError):
            return reason
    return None
