"""One run at a time in an output folder."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress

from filelock import FileLock, Timeout

from diva_ray.data.folder import Folder
from diva_ray.data.store import LOCK
from diva_ray.errors import InputError

# By `Folder.path` and thread: a run that is refused must not give away what another of this process has.
_held: dict[tuple[str, int], FileLock] = {}


def keep_others_out(folder: Folder) -> None:
    """Take a local folder for this run, until `let_others_in`, or until the process ends in whatever way.

    Other nodes that have the folder mounted are kept out as well, where their file system passes locks on. Nothing
    keeps a second run out of a URI.

    Raises:
        InputError: another run has it.
    """
    if not folder.local:
        return
    path = folder.within(LOCK)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
        with open(path, "w") as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
    except Timeout:
        raise InputError(
            f"output: no other run may be writing there, got {_holder(path)} at {folder.path}. Wait until it has "
            "ended, or change `output`."
        ) from None
    except OSError as error:  # the disk may be full, too
        lock.release()
        raise InputError(
            f"output: the folder must be writable, got {error} at {folder.path}. Change `output`."
        ) from error
    _held[folder.path, threading.get_ident()] = lock


def check_free(folder: Folder) -> None:
    """Raise if another run is writing in a folder."""
    if folder.local and os.path.exists(folder.within(LOCK)):
        keep_others_out(folder)
        let_others_in(folder.path)


def is_kept(folder: str) -> bool:
    """Return whether this thread's run keeps others out of a folder."""
    return (folder, threading.get_ident()) in _held


def let_others_in(folder: str) -> None:
    """Give a folder free again, if this thread's run has it."""
    lock = _held.pop((folder, threading.get_ident()), None)
    if lock is not None:
        # While it is held: who has opened the file meanwhile finds that it has no name any more.
        with suppress(FileNotFoundError):  # the folder may be gone
            os.unlink(lock.lock_file)
        lock.release()


def _holder(path: str) -> str:
    try:
        with open(path) as file:
            return file.read(200) or "one"
    except OSError:  # it has just ended
        return "one"
