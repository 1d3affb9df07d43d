"""Losses of the left-out prediction: value and gradient per row.

Every loss is a function (F, Y) -> (values (n,), gradient (n, c)) of outputs F (n, c) and targets Y: class codes (n,) of
int64, or values (n, c). Cross-entropy reads the raw outputs at temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diva_ray.errors import one_line

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

COMPARED = 4_000_000  # outputs at a time, of several labels


def subtract_from_targets(Y: Tensor, F: Float[Tensor, "n *fits c"]) -> Float[Tensor, "n *fits c"]:
    """Return Y - F for the outputs of one fit or some side by side, class codes standing for one-hot rows that are
    never formed; a code of -1 is a row of zeros."""
    fits = F.shape[1:-1]
    of_fits = (slice(None), *[None] * len(fits))
    if Y.ndim == 2:
        return Y[of_fits] - F
    # One entry a row and fit, so in any order; and without waiting for a device, as an index of known rows would.
    place, known = (x[of_fits].unsqueeze(-1).expand(-1, *fits, 1) for x in (Y.clamp_min(0), (Y >= 0).to(F)))
    return (-F).scatter_add_(-1, place, known)


def errors(F: Float[Tensor, "n c"], Y: Tensor, *, several: bool = False, threshold: float = 0.5) -> Float[Tensor, " n"]:
    """Return what a person counts: 1 for a wrong class, how badly several labels are ranked (`ranking_errors`), else
    the squared error."""
    if Y.ndim == 1:
        return (F.argmax(1) != Y).double()
    if several:
        return ranking_errors(F, Y, threshold)
    return (F - Y).double().square().sum(1)


def ranking_errors(F: Float[Tensor, "n c"], Y: Float[Tensor, "n c"], threshold: float = 0.5) -> Float[Tensor, " n"]:
    """Return 1 - the average precision of a row's own classes in the order of its outputs, float64 in [0, 1].

    The mean is 1 - label ranking average precision (Schapire and Singer 2000; Tsoumakas et al. 2010, Mining
    Multi-label Data, section 6), of equal outputs the last place. It asks no output to pass a threshold, which those of
    rare classes never do: counted by 1/2, every model of them has the share of their labels for its error. A row with
    none of the classes, or all, has nothing to rank: there it is the share of outputs on the wrong side of `threshold`.
    2 n m c comparisons of rows with m classes.
    """
    own, c = Y > 0.5, Y.shape[1]
    count = own.sum(1)
    ranked = (count > 0) & (count < c)
    precision = torch.zeros(Y.shape, dtype=torch.float64, device=F.device)
    row, column = torch.nonzero(own & ranked[:, None], as_tuple=True)
    for some, at in zip(row.split(max(1, COMPARED // c)), column.split(max(1, COMPARED // c)), strict=True):
        above = F[some] >= F[some, at][:, None]
        precision[some, at] = (above & own[some]).sum(1).double() / above.sum(1)
    plain = ((threshold < F) != own).double().mean(1)
    return torch.where(ranked, 1 - precision.sum(1) / count.clamp_min(1), plain)


def cross_entropy(F: Float[Tensor, "n c"], Y: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log softmax(f)_y and softmax(f) - onehot(y)."""
    log_p = F.log_softmax(1)
    values = -log_p.gather(1, Y[:, None]).squeeze(1)
    return values, -subtract_from_targets(Y, log_p.exp())


def squares(F: Float[Tensor, "n c"], Y: Tensor) -> Float[Tensor, " n"]:
    """Return |f - y|^2, summed over outputs."""
    return subtract_from_targets(Y, F).square().sum(1)


def squared(F: Float[Tensor, "n c"], Y: Tensor) -> tuple[Tensor, Tensor]:
    """Return |f - y|^2, summed over outputs, and 2 (f - y)."""
    residual = subtract_from_targets(Y, F)
    return residual.square().sum(1), residual.mul_(-2)


def logistic(F: Float[Tensor, "n c"], Y: Float[Tensor, "n c"]) -> tuple[Tensor, Tensor]:
    """Return sum_k log(1 + exp(-(2 y_k - 1)(2 f_k - 1))), labels y in {0, 1}, and its gradient.

    The fit aims at 0 and 1, so the decision lies at f = 1/2: 2 f - 1 is the logit.
    """
    sign = 2 * Y - 1
    logit = sign * (2 * F - 1)
    return torch.nn.functional.softplus(-logit).sum(1), -2 * sign * torch.sigmoid(-logit)


def cosine(center: Float[Tensor, " c"], near: float = 0.0) -> Loss:
    """Return the loss 1 - cos(f - center, y - center); a row at the center has loss 1 and gradient 0.

    `near`: distance from the center within which a target's direction is but rounding.
    """

    def loss(F: Float[Tensor, "n c"], Y: Float[Tensor, "n c"]) -> tuple[Tensor, Tensor]:
        shift = center.to(F)
        f, y = F - shift, Y - shift
        tiny = torch.finfo(F.dtype).tiny
        f_norm = f.norm(dim=1, keepdim=True).clamp_min(tiny)
        y_norm = y.norm(dim=1, keepdim=True)
        f, y = f / f_norm, (y / y_norm.clamp_min(tiny)).masked_fill(y_norm <= near, 0)
        cos = (f * y).sum(1, keepdim=True)
        gradient = (f * cos - y) / f_norm
        at_center = f_norm <= tiny
        return 1 - cos.squeeze(1), gradient.masked_fill(at_center, 0)

    return loss


def from_torch(function: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """Return the loss of a callable (F, Y) -> values (n,), differentiated by autograd.

    Raises:
        ValueError: the callable does not return one finite value per row with a finite gradient, or raises: what it
            raised is the cause.
    """

    def loss(F: Float[Tensor, "n c"], Y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            outputs = F.detach().clone().requires_grad_()
            values = _told(lambda: function(outputs, Y.clone()))
            if not isinstance(values, Tensor):
                raise ValueError(
                    "loss: the callable must return a tensor of one value per row, got "
                    f"{type(values).__name__}. Change `loss`."
                )
            if values.shape != (len(F),):
                instead = "Add them up over outputs." if values.shape[:1] == F.shape[:1] else "Use `reduction='none'`."
                raise ValueError(
                    f"loss: the callable must return one value per row, got shape {tuple(values.shape)} "
                    f"for {len(F)} rows. {instead}"
                )
            if not bool(torch.isfinite(values).all()):
                raise ValueError(
                    f"loss: the callable must return finite values, got {values[~torch.isfinite(values)][0].item()} "
                    f"at output {outputs[~torch.isfinite(values)][0].tolist()}. Change `loss`."
                )
            if not values.requires_grad:
                raise ValueError(
                    "loss: the callable must be differentiable by autograd, got values that do not depend on the "
                    "outputs. Use torch operations in `loss`."
                )
            (gradient,) = _told(lambda: torch.autograd.grad(values.sum(), outputs))
            if not bool(torch.isfinite(gradient).all()):
                row = ~torch.isfinite(gradient).all(1)
                raise ValueError(
                    f"loss: the callable must have finite slopes, got {gradient[row][0].tolist()} at output "
                    f"{outputs[row][0].tolist()}. Change `loss` (a branch of `torch.where` that is not taken has "
                    "slopes too)."
                )
        return values.detach(), gradient

    return loss


def _told(call: Callable[[], Any]) -> Any:
    """Return what the user's code does; say of what it raises that it is theirs."""
    try:
        return call()
    except Exception as error:  # the user's code raises what it likes
        raise ValueError(
            f"loss: the callable must work on outputs and targets, got {type(error).__name__} ({one_line(error)}). "
            "Change `loss`."
        ) from error
