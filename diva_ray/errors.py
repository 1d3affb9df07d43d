"""The one error that is a user's to mend."""

from __future__ import annotations

import socket

# In what Arrow says of a store that does not answer, or refuses: the file there may be as it was.
OF_STORAGE = ("AWS Error", "HTTP status", "curl", "google::cloud", "Azure", "onnection")


class InputError(ValueError):
    """Bad input, bad option or too small a machine: one line that says what must hold, what was found, what to change.

    Jobs print it without a traceback and exit with code 2.
    """


class FitError(InputError):
    """A fit that fails for these columns, this ridge and this precision; with others the same rows may do."""


class NotDefiniteError(FitError):
    """A matrix that is not positive definite, perhaps by rounding only; more digits may help."""


class LostLeverageError(FitError):
    """A leverage that products in this precision cannot tell from 1; more digits may."""


class EmptyFoldError(InputError):
    """An outer fold in which no row validates or outside which none does; `found` says which."""

    def __init__(self, message: str, found: str = "") -> None:
        super().__init__(message)
        self.found = found


def unreadable(option: str, error: Exception, where: str) -> InputError:
    """Return what to say of a Parquet file that was there when the run began and that a process cannot read."""
    if isinstance(error, FileNotFoundError):
        return InputError(
            f"{option}: every node must find every file, got none on {socket.gethostname()} at {where}. Use a URI, or "
            "a folder that is mounted on every node, and leave its files there while a run reads them."
        )
    if isinstance(error, OSError) and any(sign in str(error) for sign in OF_STORAGE):
        return InputError(
            f"{option}: storage must stay within reach, got {type(error).__name__} ({first_line(error)}) at {where}. "
            "Run it again, with `resume=true` if it had begun."
        )
    return InputError(
        f"{option}: every file must be readable Parquet, got {type(error).__name__} ({first_line(error)}) at {where}. "
        "Replace the file or leave it out."
    )


def first_line(error: object, most: int = 200) -> str:
    """Return the first line of what an error says, in at most so many characters."""
    return _cut(next(iter(str(error).strip().splitlines()), ""), most)


def one_line(error: object, most: int = 200) -> str:
    """Return all that an error says on one line, in at most so many characters: of what libraries of networks raise,
    the first line is often a heading."""
    return _cut(" ".join(str(error).split()), most)


def _cut(line: str, most: int) -> str:
    if len(line) <= most:
        return line or "no message"
    return f"{line[: most - 4].rpartition(' ')[0] or line[: most - 4]} ..."
