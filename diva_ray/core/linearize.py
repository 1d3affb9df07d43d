"""Features of a whole linearised network: per-sample gradients with respect to its parameters, sketched as they come.

A network f(w, x) near its pretrained weights w_0 is f(w_0, x) + J(x) (w - w_0) (paper eq. 2): a fit that is linear in
the rows of J is the network fine-tuned as a whole, where one in its last activations is a new last layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

# Weights by name and a batch of samples -> outputs (n, o).
Network = Callable[[dict[str, Tensor], Any], Tensor]


def output_gradients(f: Network, w: dict[str, Tensor], X: Any) -> Float[Tensor, "n p"]:
    r"""Return J, for each sample the gradient of its summed outputs with respect to all weights.

    $$J_i = \frac{1}{\sqrt o} \sum_{m=1}^{o} \frac{\partial f_m(w, x_i)}{\partial w}$$

    Exact. J J' is the pseudo-NTK: one backward a sample instead of o, and at large width close to the tangent kernel of
    a freshly drawn network (relative difference 1 / sqrt(width)). One forward and one backward for all samples together
    (vmap over samples), and n p numbers of memory.

    Args:
        f: the network; it must treat the samples of a batch apart (batch norm in eval mode).
        w: the weights, by name; J has their entries in this order.
        X: samples: a tensor whose first dimension is n, or a dict, list or tuple of such.

    References:
        Mohamadi, Bae, Sutherland 2023 (pNTK, arXiv:2206.12543); Dukler et al. 2022, eq. 2.
    """

    def output(w: dict[str, Tensor], x: Any) -> Tensor:
        return _scaled_sum(f(w, tree_map(lambda one: one[None], x)))

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no form that vmap could use
        found = vmap(grad(output), in_dims=(None, 0))(w, X)
    return torch.cat([one.flatten(1) for one in found.values()], 1)


def output_gradients_singly(f: Network, w: dict[str, Tensor], X: Iterable[Any]) -> Iterator[Float[Tensor, "1 p"]]:
    """Yield the rows of `output_gradients` by plain autograd, one at a time: for networks that vmap cannot take.

    A forward and a backward a sample. A weight on which the outputs do not depend has gradient 0.

    Args:
        X: samples, each as a batch of one.
    """
    leaves = {name: value.detach().clone().requires_grad_() for name, value in w.items()}
    for x in X:
        with torch.enable_grad():
            value = _scaled_sum(f(leaves, x))
        found = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        yield torch.cat([one.flatten() for one in found])[None]


def _scaled_sum(outputs: Tensor) -> Tensor:
    return outputs.sum() / outputs.numel() ** 0.5


@dataclass(frozen=True)
class Sketch:
    """The p x k matrix R of `count_sketch`, kept as p numbers: one entry, a sign, in each row.

    Attributes:
        order: for position (b, c) of a grid of ceil(p / k) x k, which entry of a gradient column c takes from block b.
        signs: theirs; 0 where the last block has none.
    """

    order: Int[Tensor, "b k"]
    signs: Float[Tensor, "b k"]

    def to(self, device: str) -> Sketch:
        """Return the same on a device."""
        return Sketch(self.order.to(device), self.signs.to(device))


def count_sketch(p: int, k: int, seed: int, dtype: torch.dtype = torch.float32) -> Sketch:
    r"""Return R with one random sign in a random column of every row: E[<R'a, R'b>] = <a, b>.

    $$\operatorname{var} \langle R'a, R'b \rangle \le (\|a\|^2 \|b\|^2 + \langle a, b \rangle^2) / k$$

    Entries are dealt to columns in blocks of k, each turned by a random number of places: entry i goes to column
    (i + turn_{i // k}) mod k. Two entries of a block never meet, two of different blocks with probability 1 / k, which
    is all that the variance needs; and memory is read in order, where a free choice of columns would jump. For k >= p
    none meet: inner products are exact. Turns and signs are hashes of their positions: pure functions of (seed,
    position, k) on any machine. p numbers of memory and time.

    Args:
        p: entries of a gradient.
        k: columns, >= 1.

    Raises:
        ValueError: p of 2^31 or more.

    References:
        Charikar, Chen, Farach-Colton 2002; Weinberger et al. 2009. For gradients: Park et al. 2023 (TRAK).
    """
    blocks = -(-p // k)
    if blocks * k >= 2**31:
        raise ValueError(
            f"count_sketch: a gradient must have fewer than 2^31 entries, got {p}. Choose fewer parameters."
        )
    order, signs = np.empty((blocks, k), np.int32), np.empty((blocks, k), np.int8)
    step = -(-(1 << 20) // k)
    for start in range(0, blocks, step):
        rows = np.arange(start, min(start + step, blocks))
        turns = (_hashed(seed, 1, rows) % np.uint64(k)).astype(np.int64)
        places = rows[:, None] * k + np.arange(k)
        found = rows[:, None] * k + (np.arange(k) - turns[:, None]) % k
        sign = 1 - 2 * (_hashed(seed, 2, places) >> np.uint64(63)).astype(np.int8)
        order[rows], signs[rows] = np.where(found < p, found, 0), np.where(found < p, sign, 0)
    return Sketch(torch.from_numpy(order), torch.from_numpy(signs).to(dtype))


def _hashed(seed: int, stream: int, numbers: np.ndarray) -> np.ndarray:
    """Return 64 bits for every number: SplitMix64 (Steele, Lea, Flood 2014), from a start by seed and stream."""
    start = (seed * 0xD1342543DE82EF95 + stream * 0xA0761D6478BD642F) % 2**64
    x = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sketched(J: Float[Tensor, "n p"], sketch: Sketch) -> Float[Tensor, "n k"]:
    """Return J R: 2 n p operations, and a copy of J. Sums run in a fixed order, so bits repeat on any device."""
    blocks, k = sketch.order.shape
    taken = J.index_select(1, sketch.order.flatten())
    return taken.view(len(J), blocks, k).mul_(sketch.signs).sum(1)


def gradient_features(f: Network, w: dict[str, Tensor], X: Any, sketch: Sketch, chunk: int) -> Float[Tensor, "n k"]:
    """Return Z = J R, sketched gradients of all samples, with the gradients of `chunk` samples in memory at a time.

    Unbiased: E[Z Z'] = J J'; the relative error of the kernel is about 1 / sqrt(k). See `output_gradients` and
    `count_sketch`.

    Args:
        X: samples: a tensor whose first dimension is n, or a dict, list or tuple of such.
        chunk: samples at a time, >= 1; three times chunk x p numbers are held.
    """
    n = len(tree_leaves(X)[0])
    parts = [tree_map(lambda one, at=at: one[at : at + chunk], X) for at in range(0, n, chunk)]
    return torch.cat([sketched(output_gradients(f, w, part), sketch) for part in parts])


def gradient_features_singly(
    f: Network, w: dict[str, Tensor], X: Iterable[Any], sketch: Sketch
) -> Float[Tensor, "n k"]:
    """Return `gradient_features` by plain autograd, one sample at a time; X as in `output_gradients_singly`."""
    return torch.cat([sketched(row, sketch) for row in output_gradients_singly(f, w, X)])
