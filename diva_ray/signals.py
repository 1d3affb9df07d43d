"""SIGTERM as Ctrl-C: batch systems, `timeout` and `ray job stop` send it, and a run that ends by it says the same."""

from __future__ import annotations

import signal
from types import FrameType


class TerminatedError(KeyboardInterrupt):
    """Somebody asked this process to end."""


_jobs: list[bool] = []  # whether this process is a job's
_came: list[int] = []  # signals that it was sent


def hear_term() -> None:
    """Raise `TerminatedError` in this process, which is a job's, when SIGTERM comes."""
    _jobs.append(True)
    hear_again()


def hear_again() -> None:
    """Do so again where a library has taken the signal over, as Ray does; only in a job's process."""
    if _jobs:
        signal.signal(signal.SIGTERM, _raise)


def interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the interrupt that led to an error: what comes while a class is made, as where torch is imported, Python
    3.11 raises as a RuntimeError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def was_terminated(error: KeyboardInterrupt) -> bool:
    """Return whether SIGTERM is behind an interrupt: Ray makes its own of any that comes while it waits."""
    return isinstance(error, TerminatedError) or bool(_came)


def _raise(number: int, frame: FrameType | None) -> None:
    _came.append(number)
    raise TerminatedError
