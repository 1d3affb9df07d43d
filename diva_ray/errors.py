"""The one error that is a user's to mend."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input, bad option or too small a machine: one line that says what must hold, what was found, what to change.

    Jobs print it without a traceback and exit with code 2.
    """


class NotDefiniteError(InputError):
    """A matrix that is not positive definite, perhaps by rounding only; more digits may help."""


class LostLeverageError(InputError):
    """A leverage that products in this precision cannot tell from 1; more digits may."""


def first_line(error: object, most: int = 200) -> str:
    """Return the first line of what an error says, in at most so many characters."""
    return next(iter(str(error).strip().splitlines()), "no message")[:most]
