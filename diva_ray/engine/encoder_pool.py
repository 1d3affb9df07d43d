"""Units of raw samples on an actor pool of Ray Data: every row of the dataset is a unit, every actor has the encoders.

Ray Data starts the actors, feeds them, and starts them again when they die; a unit that was cut off runs again, to
the same file.
"""

from __future__ import annotations

import copy
import json
import logging
import queue
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
import torch
from ray.data import ActorPoolStrategy, DataContext

from diva_ray.data.encoders.build import build
from diva_ray.data.raw.units import Unit
from diva_ray.engine.batch_size import find_batch
from diva_ray.engine.cluster import fetch
from diva_ray.engine.device import CPU, given_device
from diva_ray.engine.embedding import Job, UnitEncoder
from diva_ray.engine.progress import quieted
from diva_ray.errors import InputError

IN_FLIGHT = 2  # units at an actor, so that it never waits for the driver


class PoolEncoder:
    """Actor that holds the encoders and encodes one unit a call."""

    def __init__(self, ref: Any) -> None:
        job, units, given = ray.get(ref)
        torch.set_num_threads(job.threads)
        self.units: dict[int, Unit] = units
        self.fault: InputError | None = None  # told by the first unit: Ray would start a failing actor again
        try:
            job.folder.check_reached()
            device = device_of_worker(job.device)
            encoders = [build(band.config, device, job.precision, given.get(band.name)) for band in job.bands]
            self.encoder = UnitEncoder(job, encoders)
        except InputError as error:
            self.fault = error

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        """Return how each unit went; a user's mistake as a value, so that it is told as itself."""
        done, mistakes = [], []
        for index in batch["unit"].to_pylist():
            try:
                if self.fault is not None:
                    raise self.fault
                done.append(self.encoder.encode(self.units[index]))
                mistakes.append("")
            except InputError as error:
                done.append({"unit": index})
                mistakes.append(str(error))
        return {"done": [json.dumps(one) for one in done], "mistake": mistakes}


def device_of_worker(asked: str) -> str:
    """Return cpu or cuda, the GPU that Ray gave this process made torch's own; raise in one line if torch has none."""
    gpus = ray.get_gpu_ids() if asked != "cpu" else []
    place = given_device(float(bool(gpus)), gpus, f"an encoder on {socket.gethostname()}")
    if place != CPU:
        torch.cuda.set_device(place)
    return place.type


def there(modules: Iterable[Any]) -> list[Any]:
    """Return the user's modules on the CPU, where every worker can unpickle them."""
    return [copy.deepcopy(one).cpu() if isinstance(one, torch.nn.Module) else one for one in modules]


def encode_on_ray(
    job: Job,
    units: list[Unit],
    given: dict[str, Any],
    *,
    workers: int,
    gpus: float,
    start_timeout: float,
    unit_timeout: float,
) -> Iterator[dict[str, Any]]:
    """Yield how every unit went, in any order.

    Args:
        given: modules of the user's by band; they go through the object store, from where a restarted actor gets them.
        gpus: of a worker; a fraction shares one.
        start_timeout: seconds until the first actor must be there.
        unit_timeout: seconds in which at least one unit must be finished.

    Raises:
        InputError: a user's mistake that a worker found, or no progress in time.
    """
    context = DataContext.get_current()
    kept = context.enable_progress_bars, context.wait_for_min_actors_s
    context.enable_progress_bars, context.wait_for_min_actors_s = False, int(max(1, start_timeout))
    try:
        with quieted(logging.ERROR, "ray.data"):
            given = dict(zip(given, there(given.values()), strict=True))
            ref = ray.put((job, {unit.index: unit for unit in units}, given))
            rows = [{"unit": unit.index} for unit in units]
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows))  # a block a unit; here, without tasks
            pool = ActorPoolStrategy(size=min(workers, len(units)), max_tasks_in_flight_per_actor=IN_FLIGHT)
            results = dataset.map_batches(
                PoolEncoder, fn_constructor_args=(ref,), batch_size=1, batch_format="pyarrow", compute=pool,
                num_cpus=job.threads, num_gpus=gpus or None,
            )  # fmt: skip
            yield from _watched(results.iter_rows, start_timeout + unit_timeout, unit_timeout)
    finally:
        context.enable_progress_bars, context.wait_for_min_actors_s = kept


def _watched(rows: Callable[[], Any], first: float, later: float) -> Iterator[dict[str, Any]]:
    """Yield results as they come; raise when none comes in time: Ray Data itself would wait for ever."""
    found: queue.Queue[Any] = queue.Queue()
    stopped = threading.Event()

    def run() -> None:
        try:
            for row in rows():
                if stopped.is_set():
                    return
                found.put(row)
            found.put(None)
        except BaseException as error:  # raised where results are taken
            found.put(error)

    threading.Thread(target=run, daemon=True).start()
    timeout = first
    try:
        while True:
            try:
                row = found.get(timeout=timeout)
            except queue.Empty as error:
                raise _stuck(f"a unit must be finished every {timeout:g} s") from error
            if row is None:
                return
            if isinstance(row, ray.exceptions.GetTimeoutError):  # no actor in `start_timeout`
                raise _stuck("the workers must have started in time") from row
            if isinstance(row, BaseException):
                raise row
            if row["mistake"]:
                raise InputError(row["mistake"])
            timeout = later
            yield json.loads(row["done"])
    finally:
        stopped.set()


def _stuck(what: str) -> InputError:
    have = ray.cluster_resources()
    return InputError(
        f"cluster: {what}, got none; the cluster has {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs, "
        "perhaps held by others. Free them, or raise `cluster.start_timeout` and `cluster.pass_timeout`."
    )


def batch_on_gpu(
    configs: list[Any], given: list[Any], precision: str, gpus: float, start_timeout: float, pass_timeout: float
) -> list[int]:
    """Return the batch sizes that fit a worker's share of a GPU, tried on one; raise if none is free in time."""
    given = there(given)

    @ray.remote(num_gpus=gpus, num_cpus=1)
    def tried() -> list[int]:
        device, found = device_of_worker("auto"), []
        for config, module in zip(configs, given, strict=True):
            encoder = build(config, device, precision, module)
            fits = find_batch(encoder, 0, gpus) if encoder.device == "cuda" else encoder.batch
            found.append(config.batch or fits)
        return found

    @ray.remote(num_gpus=gpus, num_cpus=1)
    def free() -> bool:
        return True

    asked = free.remote()
    try:
        ray.get(asked, timeout=start_timeout)
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(asked, force=True)
        raise _stuck(f"{gpus:g} of a GPU must be free in {start_timeout:g} s, to try batch sizes on") from error
    return fetch(tried.remote(), pass_timeout)  # if another run takes the GPU meanwhile
