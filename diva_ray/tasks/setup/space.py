"""The search space of a tuning run: names and values checked before anything is opened, and points of it as choices."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from math import prod
from typing import Any

from diva_ray.config import TuneConfig
from diva_ray.core.reweight import Step
from diva_ray.errors import InputError
from diva_ray.tasks.setup.options import chosen_shares

RULES = {
    "none": None,
    "shrink": Step("shrink", 1.0),
    "paper": Step("plain"),  # of the size `eta`
    "drop_label_issues": Step("issues"),
    "drop_detrimental": Step("detrimental"),
    "weigh_doubtful": Step("doubtful"),
    "weigh_uncertain": Step("uncertain", 0.5),
}
BARE = ("paper", "drop_label_issues", "weigh_doubtful", "weigh_uncertain")  # rules that look at no standard error
KINDS = ("choice", "uniform", "loguniform")
MOST_TRIALS = 100_000
MOST_BANDS = 8  # of which all 255 subsets may be asked for
CONTINUOUS = ("ridge", "eta")  # names whose values may be drawn between two numbers
LOOKED_AT = 100  # combinations a trial among which random search seeks ones that differ in effect


@dataclass(frozen=True)
class Choice:
    """One point: everything a trial's error depends on. Names as in the space."""

    bands: tuple[str, ...]
    shares: Any  # none | auto | {band: share}
    ridge: float | str
    loss: str
    intercept: bool
    standardize: str
    projection: int | None
    rule: str
    steps: int
    eta: float

    def canonical(self) -> Choice:
        """Return the choice without what has no effect, so that equal trials are known as such."""
        chosen = replace(self, shares="none") if self.shares == "auto" and len(self.bands) == 1 else self
        if self.rule == "none":
            return replace(chosen, steps=0, eta=0.0, loss="")
        return chosen if self.rule == "paper" else replace(chosen, eta=0.0)

    def key(self) -> str:
        """Return a name of the canonical choice for files."""
        return hashlib.sha256(json.dumps(asdict(self.canonical()), sort_keys=True).encode()).hexdigest()[:20]


NAMES = tuple(Choice.__dataclass_fields__)


@dataclass(frozen=True)
class Dimension:
    """The values of one name: a list to choose from, or the two ends of what is drawn."""

    kind: str
    values: list[Any]

    def labels(self) -> list[Any]:
        """Return the values as Tune and Optuna take them: strings, or the two numbers."""
        return [label(value) for value in self.values] if self.kind == "choice" else self.values

    def draw(self, generator: random.Random) -> Any:
        """Return a label, or a number between the two ends."""
        if self.kind == "choice":
            return generator.choice(self.labels())
        if self.kind == "uniform":
            return generator.uniform(*self.values)
        low, high = self.values
        return min(max(low, low * (high / low) ** generator.random()), high)


@dataclass(frozen=True)
class Space:
    """What varies, and what every trial starts from."""

    dimensions: dict[str, Dimension]
    base: Choice

    def choice(self, point: Mapping[str, Any]) -> Choice:
        """Return the choice of a point that was drawn, its labels turned into values."""
        found = {}
        for name, drawn in point.items():
            one = self.dimensions[name]
            found[name] = dict(zip(one.labels(), one.values, strict=True))[drawn] if one.kind == "choice" else drawn
        return replace(self.base, **found)

    def size(self) -> int:
        """Return the number of combinations of the choices."""
        return prod(len(one.values) for one in self.dimensions.values())

    @property
    def finite(self) -> bool:
        """Whether every name takes one of some values."""
        return all(one.kind == "choice" for one in self.dimensions.values())

    def points(self, search: str, trials: int, seed: int) -> list[dict[str, Any]] | None:
        """Return the points of a search in their order; None where they are drawn as the search goes on.

        Of those that differ only in what has no effect (a size of steps without steps) there is one. A grid's are all
        combinations; random ones of finitely many are drawn without replacement, fewer than `trials` if there are no
        more.
        """
        if search == "optuna":
            return None
        most, given = trials, self._drawn(trials, random.Random(seed))
        if search == "grid":
            labels = [one.labels() for one in self.dimensions.values()]
            most, given = self.size(), (dict(zip(self.dimensions, values, strict=True)) for values in product(*labels))
        found: dict[str, dict[str, Any]] = {}
        for point in given:
            found.setdefault(self.choice(point).key(), point)
            if len(found) == most:
                break
        return list(found.values())

    def _drawn(self, trials: int, generator: random.Random) -> Iterator[dict[str, Any]]:
        """Yield random points: all there are, in an order, or many times as many as are tried."""
        if not self.finite:
            for _ in range(LOOKED_AT * trials):
                yield {name: one.draw(generator) for name, one in self.dimensions.items()}
            return
        for place in generator.sample(range(self.size()), min(self.size(), LOOKED_AT * trials)):
            point, rest = {}, place
            for name, one in self.dimensions.items():
                rest, k = divmod(rest, len(one.values))
                point[name] = one.labels()[k]
            yield point

    def values(self, name: str) -> list[Any]:
        """Return the values that a name takes, as far as they can be listed."""
        one = self.dimensions.get(name)
        return [getattr(self.base, name)] if one is None else one.values


def label(value: Any) -> str:
    """Return a value as text that tells it from all others: `image+text`, `none`, `0.1`."""
    if isinstance(value, Mapping):
        return "+".join(f"{name}={share}" for name, share in value.items())
    if isinstance(value, (list, tuple)):
        return "+".join(f'"{one}"' if "+" in str(one) else str(one) for one in value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def short(value: Any) -> str:
    """Return a value as a person reads it: numbers to four digits."""
    if isinstance(value, Mapping):
        return "+".join(f"{name}={share:.4g}" for name, share in value.items())
    return f"{value:.4g}" if isinstance(value, float) else label(value)


def features_of(config: TuneConfig) -> tuple[str, ...]:
    """Return the bands of the table that the run reads."""
    named = config.data.features
    return tuple(map(str, named if isinstance(named, (list, tuple)) else [named]))


def parse_space(config: TuneConfig) -> Space:
    """Return the space of a config.

    Raises:
        InputError: an unknown name or kind, or a value that its name cannot take; with its place.
    """
    features = features_of(config)
    if not isinstance(config.space, Mapping) or not config.space:
        raise InputError(
            f"space: must name what varies, among {', '.join(NAMES)}, got {config.space!r}. Set `space`, such as "
            "space=none +space.ridge.loguniform=[0.001,10]."
        )
    unknown = [name for name in config.space if name not in NAMES]
    if unknown:
        raise InputError(
            f"space: names must be among {', '.join(NAMES)}, got {unknown[0]!r} at space.{unknown[0]}. Change `space`."
        )
    given = chosen_shares(config, features)
    shares = "none" if given is None else dict(zip(features, given, strict=True))
    base = Choice(
        features, shares, config.ridge, config.loss, config.intercept, config.standardize, config.projection,
        config.rule, config.steps, config.eta,
    )  # fmt: skip
    for name in ("rule", "steps", "eta"):
        _check_value(name, getattr(base, name), name, features)
    dimensions = {name: _dimension(name, given, features) for name, given in config.space.items()}
    space = Space(dimensions, base)
    if config.search == "grid" and not space.finite:
        name = next(name for name, one in dimensions.items() if one.kind != "choice")
        raise InputError(
            f"space: a grid must have choices only, got {dimensions[name].kind} at space.{name}. "
            "List values in `choice`, or use search=random."
        )
    if config.search == "grid" and space.size() > MOST_TRIALS:
        raise InputError(
            f"space: a grid must have at most {MOST_TRIALS:,} combinations, got {space.size():,} at space. List fewer "
            "values, or use search=random, which draws `trials` of them."
        )
    return space


def _dimension(name: str, given: Any, features: tuple[str, ...]) -> Dimension:
    place = f"space.{name}"
    varied = isinstance(given, Mapping) and not (name == "shares" and set(given) & set(features))
    if not varied:
        return Dimension("choice", [_check_value(name, given, place, features)])
    if len(given) != 1 or next(iter(given)) not in KINDS:
        raise InputError(
            f"space: values must be one of {', '.join(KINDS)}, or a single value, got {_listed(given)} at {place}. "
            "Change `space`."
        )
    ((kind, values),) = given.items()
    place = f"{place}.{kind}"
    if name == "bands" and kind == "choice" and values == "subsets":
        return Dimension(kind, _subsets(features, place))
    if not isinstance(values, (list, tuple)) or not values:
        raise InputError(f"space: values must be listed, got {values!r} at {place}. Write [...] there.")
    if kind == "choice":
        found = [_check_value(name, value, place, features) for value in values]
        labels = [label(value) for value in found]
        twice = [one for one in labels if labels.count(one) > 1]
        if twice:
            raise InputError(f"space: choices must differ, got {twice[0]} twice at {place}. Change `space`.")
        return Dimension(kind, found)
    if name not in CONTINUOUS:
        raise InputError(
            f"space: only {' and '.join(CONTINUOUS)} may be drawn between two numbers, got {kind} at {place}. Use "
            "`choice`."
        )
    if not (len(values) == 2 and all(map(_is_number, values)) and 0 < values[0] < values[1] < float("inf")):
        raise InputError(f"space: must be two numbers, 0 < low < high, got {list(values)} at {place}. Change `space`.")
    return Dimension(kind, [float(value) for value in values])


def _subsets(features: tuple[str, ...], place: str) -> list[tuple[str, ...]]:
    """Return every subset of the bands but the empty one."""
    if len(features) > MOST_BANDS:
        raise InputError(
            f"space: subsets are those of at most {MOST_BANDS} bands, got {len(features)} at {place}. List the ones to "
            "try, or name fewer columns in `data.features`."
        )
    return [one for count in range(len(features), 0, -1) for one in combinations(features, count)]


def _listed(given: Mapping[str, Any]) -> str:
    return ", ".join(map(str, given)) or "nothing"


def _is_number(value: Any) -> bool:
    """Return whether a value is a number that a float can hold, or inf."""
    whole = _is_whole(value) and abs(value) <= sys.float_info.max
    return whole or isinstance(value, float)


def _check_value(name: str, value: Any, place: str, features: tuple[str, ...]) -> Any:
    """Return a value in the form of `Choice`, or raise."""
    if name == "bands":
        return _bands([value] if isinstance(value, str) else value, place, features)
    if name == "shares":
        return _shares(value, place, features)
    value = None if name == "projection" and value == "none" else value
    must, holds = CHECKS[name]
    if not holds(value):
        raise InputError(f"{name}: must be {must}, got {value!r} at {place}. Change `{place}`.")
    return float(value) if name in CONTINUOUS and _is_number(value) else value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "ridge": ("auto or a number >= 0", lambda x: x == "auto" or (_is_number(x) and 0 <= x < float("inf"))),
    "loss": ("the name of a loss", lambda x: isinstance(x, str)),
    "intercept": ("true or false", lambda x: isinstance(x, bool)),
    "standardize": ("auto or none", lambda x: x in ("auto", "none")),
    "projection": ("none or a whole number >= 1", lambda x: x is None or (_is_whole(x) and x >= 1)),
    "rule": (", ".join(RULES), lambda x: isinstance(x, str) and x in RULES),
    "steps": ("a whole number, 1 to 10", lambda x: _is_whole(x) and 1 <= x <= 10),
    "eta": ("a number > 0", lambda x: _is_number(x) and 0 < x < float("inf")),
}


def _bands(value: Any, place: str, features: tuple[str, ...]) -> tuple[str, ...]:
    """Return a subset of the table's bands in the table's order."""
    chosen = list(map(str, value)) if isinstance(value, (list, tuple)) else []
    unknown = [name for name in chosen if name not in features]
    if not chosen or unknown or len(set(chosen)) < len(chosen):
        raise InputError(
            f"bands: must be a list of different columns among {', '.join(features)} (`data.features`), got {value!r} "
            f"at {place}. Change `{place}` or `data.features`."
        )
    return tuple(name for name in features if name in chosen)


def _shares(value: Any, place: str, features: tuple[str, ...]) -> Any:
    """Return `none`, `auto`, or the share of every band."""
    if value in (None, "none"):
        return "none"
    if value == "auto":
        return value
    whole = isinstance(value, Mapping) and set(value) == set(features)
    if whole and all(_is_number(share) and 0 < share < float("inf") for share in value.values()):
        return {name: float(value[name]) for name in features}
    raise InputError(
        f"shares: must be none, auto, or a number > 0 for each of {', '.join(features)}, got {value!r} at {place}. "
        f"Change `{place}`."
    )
