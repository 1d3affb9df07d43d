"""Features of a batch on their way back from a network: fetched while the next batch is on its way there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from diva_ray.data.encoders.encoder import Encoder
from diva_ray.engine.batch_size import own_gpu
from diva_ray.engine.device import roomy
from diva_ray.errors import InputError


def told_room(encoder: Encoder) -> AbstractContextManager[Any]:
    """Return the context in which too little memory of a GPU is told in one line."""
    if encoder.device != "cuda":
        return nullcontext()
    cure = "set a smaller `encoder.batch`, or let fewer workers share it"
    return roomy(own_gpu(), "encoder.batch: a batch of samples", cure)


def sent_home(found: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Return features on the CPU, and what to wait for until they are there: not for what a GPU is given after them."""
    found = found.detach()
    if not found.is_cuda:
        return found, None
    there = torch.empty(found.shape, dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True)
    sent = torch.cuda.Event()
    sent.record(torch.cuda.current_stream(found.device))
    return there, sent


def store(values: np.ndarray, rows: np.ndarray, found: torch.Tensor, sent: torch.cuda.Event | None) -> None:
    """Put the features of a batch where its rows are; what a network gives must be one vector a sample."""
    if found.shape != (len(rows), values.shape[1]):  # what has one row or one column would fill all others
        raise InputError(
            f"encoder.layer: must give every batch one vector a sample, all of {values.shape[1]} numbers, got "
            f"{tuple(found.shape)} for {len(rows)} samples. Change `encoder.layer` or `encoder.pool`."
        )
    if sent is not None:
        sent.synchronize()
    with np.errstate(over="ignore"):  # what float16 cannot hold is told by row
        values[rows] = found.cpu().numpy()
