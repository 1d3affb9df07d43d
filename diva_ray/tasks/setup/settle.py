"""What every pass needs to know of a run, from its options and one scan: scale of bands, targets, precision."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from diva_ray.config import FitConfig
from diva_ray.core.subspace import projections
from diva_ray.data.scale import Scale
from diva_ray.engine.kernels.scan import Scan
from diva_ray.engine.setup import FEW_OUTPUTS, Setup, default_block, keeps_outputs, rows_of_block
from diva_ray.errors import InputError
from diva_ray.tasks.setup.checks import features_take_double, reach_takes_double
from diva_ray.tasks.setup.opened import Opened
from diva_ray.tasks.setup.options import chosen_shares

log = logging.getLogger("diva_ray")


def check_many(config: FitConfig, outputs: int, inputs: str) -> None:
    """Raise for what does not go with more classes than outputs are kept of."""
    if inputs != "full":
        raise InputError(
            f"precision: must be auto, float32 or float64 with more classes than features (and than {FEW_OUTPUTS}), "
            f"got {inputs} with {outputs:,} classes. Change `precision`."
        )
    if config.cluster.gpus_per_worker:
        raise InputError(
            f"cluster.gpus_per_worker: must be 0 with more classes than features (and than {FEW_OUTPUTS}), got "
            f"{config.cluster.gpus_per_worker:g} with {outputs:,} classes. Leave `cluster.gpus_per_worker` out."
        )


def make_setup(config: FitConfig, opened: Opened, found: Scan) -> Setup:
    """Return the setup of the passes: how bands are scaled, what the targets are, which precision."""
    classes = found.labels
    outputs = len(classes) if classes is not None else found.target_width
    outputs = sum(found.widths) if opened.task == "pairs" else outputs
    cosine = opened.loss == "cosine" and opened.task == "vector"
    center, near = found.center() if cosine else (None, 0.0)
    double = config.precision == "float64"
    double |= reach_takes_double(opened.task, found.reach, outputs)
    if features_take_double(
        found, standardized=config.standardize == "auto", intercept=config.intercept and opened.task != "pairs"
    ):
        log.info("features lie far from 0: products in float64; standardize=auto is faster")
        double = True
    dtype = torch.float64 if double else torch.float32
    scale = make_scale(config, found, opened.columns.features)
    keeps = keeps_outputs(opened.task, outputs, scale.width)
    block_rows = config.block_rows or default_block(scale.width)
    inputs = config.precision if config.precision in ("tf32", "bf16") else "full"
    if not keeps:
        check_many(config, outputs, inputs)
        block_rows = min(block_rows, rows_of_block(outputs, scale.width))
    return Setup(
        opened.task, scale, classes, outputs, opened.loss, center, opened.columns.label, dtype,
        block_rows, config.seed, sources=found.sources, keeps_outputs=keeps, inputs=inputs, near=near,
    )  # fmt: skip


def standard_scales(found: Scan) -> tuple[list[Tensor], list[float]]:
    """Return the mean of every band, (p,), and the factor under which its rows' mean squared norm about it is 1."""
    means = [total / max(rows, 1) for rows, total in zip(found.rows, found.sums, strict=True)]
    return means, [spread**-0.5 if spread else 1.0 for spread, _ in found.spreads()]  # a constant band stays at 0


def make_scale(config: FitConfig, found: Scan, names: tuple[str, ...]) -> Scale:
    """Return how every band enters the fit, from the moments of one scan."""
    means, scales = standard_scales(found)
    if config.standardize != "auto":
        means, scales = [torch.zeros_like(mean) for mean in means], [1.0] * len(scales)
    project = projections(names, list(found.widths), config.projection, config.seed)
    scale = Scale(tuple(means), tuple(scales), config.intercept, project=project)
    shares = chosen_shares(config, names)
    return scale if shares is None else scale.shared(shares)
