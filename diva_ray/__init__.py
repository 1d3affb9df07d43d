"""What each training sample is worth: the dataset derivative (DIVA, ICLR 2022), exact and distributed on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diva_ray.errors import InputError as InputError
    from diva_ray.tasks.score import score as score

__all__ = ["InputError", "score"]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: `import diva_ray` is quick, and loads neither torch nor ray."""
    if name == "score":
        from diva_ray.tasks.score import score

        return score
    if name == "InputError":
        from diva_ray.errors import InputError

        return InputError
    raise AttributeError(f"module 'diva_ray' has no attribute {name!r}")
