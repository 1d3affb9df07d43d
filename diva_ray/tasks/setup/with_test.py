"""A table and the test rows that models are judged by."""

from __future__ import annotations

from typing import Any

import numpy as np

from diva_ray.config import TrainConfig, TuneConfig
from diva_ray.data.folder import Folder
from diva_ray.data.sources import digits, is_ray_dataset, open_data
from diva_ray.data.table import Table, from_arrow
from diva_ray.errors import InputError
from diva_ray.tasks.setup.begin import open_folder
from diva_ray.tasks.setup.datasets import from_dataset
from diva_ray.tasks.setup.opened import open_own

TEST_SHARE = 0.2  # of the built-in digits


def is_digits(config: TrainConfig | TuneConfig, data: Any) -> bool:
    """Return whether the table is the built-in one that is split by itself."""
    return data is None and config.data.path is None and config.data.builtin == "digits"


def open_both(config: TrainConfig | TuneConfig, data: Any, test: Any) -> tuple[Any, Table, Folder | None]:
    """Return the table (a Ray Dataset as it is) and the test table, and the output folder where a Ray Dataset of test
    rows was written there; the built-in digits are split by themselves."""
    named, folder = config.test.path if test is None else test, None
    if named is None and is_digits(config, data):
        rows = digits(config.data.noise, config.seed)
        order = np.random.default_rng([config.seed, 1]).permutation(rows.num_rows)
        count = round(TEST_SHARE * len(order))
        apart, rest = rows.take(np.sort(order[:count])), rows.take(np.sort(order[count:]))
        label = apart.column_names.index("label")
        apart = apart.set_column(label, "label", apart["true_label"])
        config.data.truth = config.data.truth or "true_label"
        name = f"scikit-learn's digits, {config.data.noise:.0%} of the labels flipped"
        return from_arrow(rest, name), from_arrow(apart, "a fifth of scikit-learn's digits", "test.path"), None
    if named is None:
        raise InputError("test.path: a table of test rows must be named, got none. Set `test.path`.")
    table = open_own(config, data)
    if is_ray_dataset(named):
        folder = open_folder(config)
        named = from_dataset(named, folder, "test", plan=config.plan)
    return table, open_data(named, None, 0.0, 0, "test.path"), folder
