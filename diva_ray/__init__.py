"""What each training sample is worth: the dataset derivative (DIVA, ICLR 2022), exact and distributed on Ray."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diva_ray.threads import wait_briefly

if TYPE_CHECKING:
    __version__: str
    from diva_ray.bench.benchmark import benchmark as benchmark
    from diva_ray.data.transforms import augmented as augmented
    from diva_ray.errors import InputError as InputError
    from diva_ray.tasks.aggregate import aggregate as aggregate
    from diva_ray.tasks.augment import augment as augment
    from diva_ray.tasks.embed import embed as embed
    from diva_ray.tasks.extend import extend as extend
    from diva_ray.tasks.reweight import reweight as reweight
    from diva_ray.tasks.score import curate as curate
    from diva_ray.tasks.score import score as score
    from diva_ray.tasks.train import train as train
    from diva_ray.tasks.tune import tune as tune

HOMES = {
    "InputError": "diva_ray.errors",
    "aggregate": "diva_ray.tasks.aggregate",
    "augment": "diva_ray.tasks.augment",
    "augmented": "diva_ray.data.transforms",
    "benchmark": "diva_ray.bench.benchmark",
    "curate": "diva_ray.tasks.score",
    "embed": "diva_ray.tasks.embed",
    "extend": "diva_ray.tasks.extend",
    "reweight": "diva_ray.tasks.reweight",
    "score": "diva_ray.tasks.score",
    "train": "diva_ray.tasks.train",
    "tune": "diva_ray.tasks.tune",
}
__all__ = [
    "InputError",
    "aggregate",
    "augment",
    "augmented",
    "benchmark",
    "curate",
    "embed",
    "extend",
    "reweight",
    "score",
    "train",
    "tune",
]

wait_briefly()


def __dir__() -> list[str]:
    """Return the public names, before they are imported too."""
    return ["__version__", *__all__]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: `import diva_ray` is quick, and loads neither torch nor ray."""
    if name == "__version__":
        from importlib.metadata import version

        return version("diva_ray")
    if name not in HOMES:
        raise AttributeError(f"module 'diva_ray' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
