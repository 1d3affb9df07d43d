"""Gradients of whole networks against loops of plain autograd; the sketch against a dense matrix of signs."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from diva_ray.core.linearize import (
    count_sketch,
    gradient_features,
    gradient_features_singly,
    output_gradients,
    output_gradients_singly,
    sketched,
)


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)), (6,)


def cnn():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip
    net[1].running_mean.uniform_(-1, 1)
    net[1].running_var.uniform_(0.5, 2)
    return net, (2, 7, 7)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.out = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.mix(x, x, x, need_weights=False)[0].mean(1))


NETS = {"mlp": mlp, "cnn": cnn, "attention": lambda: (Attention(), (5, 6))}


def made(kind, n=7):
    """Return (f, weights, samples, network), all in float64."""
    torch.manual_seed(0)
    net, shape = NETS[kind]()
    net = net.double().eval()
    w = {name: value.detach() for name, value in net.named_parameters()}
    return (lambda w, x: functional_call(net, w, (x,))), w, torch.randn(n, *shape, dtype=torch.float64), net


def by_loop(net, X):
    """Return the gradient of each single output of each sample by autograd, averaged as the formula says."""
    rows = []
    for x in X:
        outputs = net(x[None])[0]
        each = [torch.autograd.grad(one, list(net.parameters()), retain_graph=True) for one in outputs]
        flat = torch.stack([torch.cat([part.reshape(-1) for part in one]) for one in each])
        rows.append(flat.sum(0) / len(outputs) ** 0.5)
    return torch.stack(rows)


def splitmix(seed, stream, number):
    """Return SplitMix64 in Python's own whole numbers."""
    bits = 2**64 - 1
    x = (number * 0x9E3779B97F4A7C15 + seed * 0xD1342543DE82EF95 + stream * 0xA0761D6478BD642F) & bits
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & bits
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & bits
    return x ^ (x >> 31)


def dense(p, k, seed):
    """Return the p x k matrix of the sketch, entry by entry."""
    R = torch.zeros(p, k, dtype=torch.float64)
    for i in range(p):
        column = (i + splitmix(seed, 1, i // k) % k) % k
        R[i, column] = -1.0 if splitmix(seed, 2, i // k * k + column) >> 63 else 1.0
    return R


@pytest.mark.parametrize("kind", NETS)
def test_gradients_equal_a_loop_over_samples_and_outputs(kind):
    f, w, X, net = made(kind)
    expected = by_loop(net, X)
    torch.testing.assert_close(output_gradients(f, w, X), expected, rtol=1e-10, atol=1e-13)
    singly = torch.cat(list(output_gradients_singly(f, w, [x[None] for x in X])))
    torch.testing.assert_close(singly, expected, rtol=1e-10, atol=1e-13)


def test_a_linear_networks_rows_are_its_inputs_and_one():
    net = nn.Linear(4, 3).double()
    w = {name: value.detach() for name, value in net.named_parameters()}
    Z = torch.randn(5, 4, dtype=torch.float64)
    J = output_gradients(lambda w, x: functional_call(net, w, (x,)), w, Z)
    expected = torch.cat([torch.kron(torch.ones(1, 3, dtype=Z.dtype), Z), torch.ones(5, 3, dtype=Z.dtype)], 1) / 3**0.5
    torch.testing.assert_close(J, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(J @ J.T, Z @ Z.T + 1, rtol=1e-12, atol=1e-14)


def test_some_parameters_only_and_those_without_part_have_gradient_zero():
    f, w, X, net = made("mlp")
    full = by_loop(net, X)
    some = {name: w[name] for name in ("3.weight", "3.bias")}
    torch.testing.assert_close(output_gradients(f, some, X), full[:, -27:], rtol=1e-10, atol=0)
    with_idle = {**some, "idle": torch.ones(4, dtype=torch.float64)}
    g = lambda w, x: f({name: value for name, value in w.items() if name != "idle"}, x)  # noqa: E731
    for J in (
        output_gradients(g, with_idle, X),
        torch.cat(list(output_gradients_singly(g, with_idle, [x[None] for x in X]))),
    ):
        torch.testing.assert_close(J[:, :27], full[:, -27:], rtol=1e-10, atol=0)
        assert not J[:, 27:].any() and J.shape[1] == 31


@pytest.mark.parametrize("p,k", [(1, 1), (5, 8), (64, 8), (67, 8), (300, 7)])
@pytest.mark.parametrize("seed", [0, 3])
def test_the_sketch_is_a_dense_matrix_of_signs(p, k, seed):
    R = dense(p, k, seed)
    assert (R.abs().sum(1) == 1).all()
    J = torch.randn(4, p, dtype=torch.float64)
    before = J.clone()
    torch.testing.assert_close(sketched(J, count_sketch(p, k, seed, torch.float64)), J @ R, rtol=1e-12, atol=1e-13)
    assert torch.equal(J, before)


def test_the_sketch_of_many_entries_is_the_same_matrix():
    """It is made piece by piece: entries of a late piece."""
    p, k, seed = 2_500_001, 1000, 5
    sketch = count_sketch(p, k, seed, torch.float64)
    for i in (0, 1_048_575, 1_048_576, 2_000_123, 2_500_000):
        J = torch.zeros(1, p, dtype=torch.float64)
        J[0, i] = 2.0
        column = (i + splitmix(seed, 1, i // k) % k) % k
        (at,) = sketched(J, sketch)[0].nonzero()
        assert at.item() == column
        assert sketched(J, sketch)[0, column] == (-2.0 if splitmix(seed, 2, i // k * k + column) >> 63 else 2.0)


def test_with_a_column_for_every_entry_inner_products_are_exact():
    J = torch.randn(6, 40, dtype=torch.float64)
    Z = sketched(J, count_sketch(40, 50, 1, torch.float64))
    assert Z.shape == (6, 50)
    torch.testing.assert_close(Z @ Z.T, J @ J.T, rtol=1e-12, atol=1e-12)


def test_inner_products_are_unbiased_and_spread_as_the_docstring_says():
    """Gradients of one layer: alike from row to row, the worst case for columns that repeat."""
    p, k, draws = 512, 16, 4000
    a = torch.arange(1.0, p + 1, dtype=torch.float64).remainder(16) + 0.5
    b = a.flip(0) + torch.linspace(-3, 3, p, dtype=torch.float64)
    both = torch.stack([a, b])
    found = []
    for seed in range(draws):
        Z = sketched(both, count_sketch(p, k, seed, torch.float64))
        found.append((Z[0] @ Z[1]).item())
    truth = (a @ b).item()
    bound = ((a @ a) * (b @ b) + truth**2).item() / k
    assert abs(np.mean(found) - truth) < 4 * np.std(found) / draws**0.5
    assert 0.5 * bound < np.var(found) < 1.1 * bound


def test_the_kernels_error_falls_with_the_square_root_of_the_columns():
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).double()
    X = torch.randn(24, 6, dtype=torch.float64)
    J = by_loop(wide, X)
    K, p = J @ J.T, J.shape[1]
    errors = {}
    for k in (64, 1024):
        found = [sketched(J, count_sketch(p, k, seed, torch.float64)) for seed in range(20)]
        errors[k] = np.mean([((Z @ Z.T - K).norm() / K.norm()).item() for Z in found])
    assert errors[64] < 2 / 64**0.5 and 3 < errors[64] / errors[1024] < 5.5, errors


@pytest.mark.parametrize("kind", NETS)
def test_features_do_not_depend_on_how_many_samples_go_together(kind):
    f, w, X, net = made(kind)
    J = by_loop(net, X)
    sketch = count_sketch(J.shape[1], 16, 0, torch.float64)
    expected = J @ dense(J.shape[1], 16, 0)
    for chunk in (1, 3, 100):
        torch.testing.assert_close(gradient_features(f, w, X, sketch, chunk), expected, rtol=1e-9, atol=1e-12)
    singly = gradient_features_singly(f, w, [x[None] for x in X], sketch)
    torch.testing.assert_close(singly, expected, rtol=1e-9, atol=1e-12)
    named = gradient_features(lambda w, x: f(w, x["a"] + x["b"]), w, {"a": X / 2, "b": X / 2}, sketch, 2)
    torch.testing.assert_close(named, expected, rtol=1e-9, atol=1e-12)


def test_only_a_chunk_of_gradients_is_held():
    f, w, X, _ = made("mlp")
    calls = []
    counted = lambda w, x: calls.append(1) or f(w, x)  # noqa: E731
    gradient_features(counted, w, X, count_sketch(sum(v.numel() for v in w.values()), 4, 0, torch.float64), 3)
    assert len(calls) == 3  # of 7 samples


def test_more_entries_than_positions_can_count():
    with pytest.raises(ValueError, match=r"a gradient must have fewer than 2\^31 entries, got 2147483648"):
        count_sketch(2**31, 512, 0)
