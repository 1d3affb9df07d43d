"""How often a task does which work: what the time of a plan is made of."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod

from diva_ray.config import AggregateConfig, AugmentConfig, ExtendConfig, FitConfig, ReweightConfig, TuneConfig
from diva_ray.data.table import Table
from diva_ray.report.words import counted
from diva_ray.tasks.setup.cost import Cost, Other, pooled, tried
from diva_ray.tasks.setup.space import Space, parse_space
from diva_ray.tasks.setup.step_paths import RIDGES, Path, walk_path

JUDGED = 0.3  # seconds of a derivative of few rows with its verdicts on classes: passes and searches, not products

Work = list[tuple[float, Cost | Other]]  # how many times each


def work_of(
    config: FitConfig, costs: list[Cost], widths: list[int], features: tuple[str, ...], pool: Table | None
) -> tuple[Work, list[str]]:
    """Return how often a task does what, and what to say of it.

    Args:
        costs: of one derivative (of pairs, one for either direction).
        widths: columns of each band of the table, `features`.
        pool: the table that `extend` chooses from.
    """
    if isinstance(config, ReweightConfig | AugmentConfig):
        folds, steps = config.folds, config.steps
        count = steps * folds  # the folds together leave out every row once, and all rows are walked once more
        work: Work = [(float(count), one) for one in costs]
        if isinstance(config, ReweightConfig) and config.method != "paper" and config.level == "sample":
            work += [(count / 2, bare(one)) for one in costs if one.classes]  # two steps that change every weight
        if isinstance(config, ReweightConfig) and config.method != "paper":
            for one in costs:
                arms = arms_of(walk_path("classification" if one.classes else "", config.level), steps)
                work.append((1.0, tried(one.rows, one.p, one.outputs, arms, classes=one.classes)))
        return work, [
            f"about {count} derivatives: {steps} step(s) on {folds} folds, then on all rows; fewer if the answer is "
            "clear before"
        ]
    if isinstance(config, AggregateConfig):
        most = config.starts * config.evaluations
        if config.data.validation_weight or config.validation.path:
            most *= 2  # by the rows that validate, and by all
        full = [replace(one, auto=False) for one in costs]  # the descents find the ridge, too
        return [*((1.0, one) for one in full), *((most / 6, bare(one)) for one in full)], [
            f"about {most // 3} evaluations of the penalties, {most} at most ({config.starts} descents), half a "
            "derivative each"
        ]
    if isinstance(config, ExtendConfig) and pool is not None:
        every = [(1.0, pooled(pool.rows, one.p, one.outputs, config.rounds)) for one in costs]
        return [*((float(config.rounds), one) for one in costs), *every], [
            f"pool of {counted(pool.rows, 'row', 'rows')} ({pool.bytes / 2**30:.2f} GiB): read once to check it, and "
            f"once in each of at most {counted(config.rounds, 'round', 'rounds')}; never in memory as a whole"
        ]
    if isinstance(config, TuneConfig):
        return tuning_work(config, costs[0], widths, features)
    return [(1.0, one) for one in costs], []


def arms_of(path: Path, steps: int) -> int:
    """Return with how many weights and ridges a walk of so many steps can end."""
    return len(RIDGES) * (1 + steps * (1 + len(path.beside)))


def bare(cost: Cost) -> Cost:
    """Return the cost of a derivative at a given ridge, without standard errors or verdicts."""
    return replace(cost, auto=False, exact=False, vectors=0, columns=cost.outputs, classes=False, dual=False)


def tuning_work(config: TuneConfig, cost: Cost, widths: list[int], features: tuple[str, ...]) -> tuple[Work, list[str]]:
    """Return the passes and solves that a tuning run takes at most, and what to say of them."""
    space = parse_space(config)
    points = space.points(config.search, config.trials, config.seed)
    trials = config.trials if points is None else len(points)
    distinct = prod(len(space.values(name)) for name in ("bands", "intercept", "standardize", "projection"))
    fits = len(space.values("standardize"))
    grids = config.folds * min(distinct, trials) * ("auto" in space.values("ridge"))
    descents = folds_of_trial(config) * distinct * ("auto" in space.values("shares"))
    judged = trials * folds_of_trial(config)
    rules, steps = space.values("rule"), space.values("steps")
    share = sum(rule != "none" for rule in rules) / len(rules) * sum(steps) / len(steps)
    derivatives = round(judged * share)
    notes = [
        f"{counted(trials, 'trial', 'trials')} of {config.folds} folds, one after another on all "
        f"workers; search={config.search}, scheduler={config.scheduler}"
        + (": the fewer folds, the earlier a trial is stopped" if config.scheduler == "asha" else ""),
        f"shared by all trials: one load, {fits} pass(es) for the fit sums of every fold, at most {grids} passes for "
        f"ridges; about {derivatives} derivatives for weights; at most {descents:.0f} descents for shares; each fold "
        "of a trial reads its own rows once more",
        "Ray Tune needs Ray, some 10 s to start: with cluster=inline a small one on this machine for the trials' "
        "processes, while the data stay in this one; each trial takes another 0.1 s or so beside its passes",
    ]
    sizes = columns_of(space, widths, features)
    work: Work = [(fits / 4, bare(cost))]  # a fit is a quarter of the products
    work += [(float(derivatives), Other(0.0, JUDGED))] if cost.classes else []
    for p in sizes:
        given = replace(cost, p=p, auto=False, dual=False)
        work.append((derivatives / len(sizes), given))
        # A fold of a trial is a solve and a look at its rows; a descent some 40 evaluations, half a derivative each.
        work.append(((0.25 * judged + 20 * descents) / len(sizes), bare(given)))
        work.append((grids / 2 / len(sizes), replace(bare(given), auto=True)))
    return work, notes


def folds_of_trial(config: TuneConfig) -> float:
    """Return the folds on which a trial is judged; under asha on average, where all begin at the same time."""
    if config.scheduler != "asha":
        return float(config.folds)
    past, rung, found = 1.0, 1, 0.0
    for fold in range(1, config.folds + 1):
        found += past
        if fold == rung:
            past, rung = past / config.reduction, rung * config.reduction
    return found


def columns_of(space: Space, widths: list[int], features: tuple[str, ...]) -> list[int]:
    """Return the columns of every combination of bands and projection, the intercept's included."""
    known = dict(zip(features, widths, strict=True))
    found = []
    for bands, projection in product(space.values("bands"), space.values("projection")):
        most = projection if isinstance(projection, int) else max(widths)
        found.append(sum(min(known[name], most) for name in bands) + 1)
    return found
