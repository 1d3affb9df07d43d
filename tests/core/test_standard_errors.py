import itertools

import pytest
import torch
from sklearn.datasets import load_digits, load_wine

from diva_ray.core import derivative as dd
from diva_ray.core import ridge
from diva_ray.core.adjoint import AdjointSums, solve_adjoint
from diva_ray.core.second_order import BendSums
from tests.core.problems import fit, make_problem, primal
from tests.oracles import Problem, assert_close, contributions, drawn_contributions, standard_errors

F64 = torch.float64


def group_signs(problem, patterns):
    """Signs (n, patterns) of rows from signs (patterns, groups)."""
    code = torch.unique(problem.groups, return_inverse=True)[1]
    return patterns.T[code]


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("shape", ["tall", "wide", "crowded"])
@pytest.mark.parametrize("kind", ["cross_entropy", "squared"])
def test_draws_are_signed_sums_of_what_groups_add_and_their_mean_square_is_of_all_patterns(kind, shape, grouped):
    problem = make_problem(shape, kind=kind, grouped=grouped)
    problem = problem if grouped else problem.rows(torch.arange(8))
    groups = len(problem.groups.unique())
    patterns = torch.tensor(list(itertools.product([1.0, -1.0], repeat=groups - 1)), dtype=F64)
    patterns = torch.cat([torch.ones(len(patterns), 1, dtype=F64), patterns], 1)  # -xi gives the same square as xi
    patterns = patterns[:: max(1, len(patterns) // 1024)] if grouped else patterns
    found = primal(problem, blocks=2, signs=group_signs(problem, patterns))
    seen, rest = drawn_contributions(problem)
    assert_close(found.derivative[:, 0], contributions(problem).sum(1), 1e-10, "derivative")
    assert_close(found.draws, seen @ patterns.T, 1e-10, "draw of every pattern")
    assert_close(found.rest, rest, 1e-10, "variance of the second order")
    if len(patterns) == 2 ** (groups - 1):
        assert_close(found.draws.square().mean(1), seen.square().sum(1), 1e-10, "mean square")
    assert_close(found.C.norm(dim=1), standard_errors(problem), 1e-12, "exact")


@pytest.mark.parametrize(("p", "most"), [(30, 1.05), (150, 1.05), (450, 1.15)])
def test_rows_with_small_residuals_do_not_look_certain(p, most):
    """To first order they add nothing: a fitted number has a standard error all the same. Rows of other lengths, mean
    leverage 0.05 to 0.75."""
    generator = torch.Generator().manual_seed(3)
    n = 600
    X = torch.randn(n, p, generator=generator, dtype=F64)
    y = X @ torch.randn(p, 1, generator=generator, dtype=F64) / p**0.5
    y += 0.5 * torch.randn(n, 1, generator=generator, dtype=F64)
    X *= (0.5 * torch.randn(n, 1, generator=generator, dtype=F64)).exp()
    Z, ones = torch.cat([torch.ones(n, 1, dtype=F64), X], 1), torch.ones(n, dtype=F64)
    Lambda = torch.cat([torch.zeros(1, dtype=F64), torch.ones(p, dtype=F64)])
    problem = Problem(Z, y, ones, ones, Lambda, torch.zeros(n, 1, dtype=F64), torch.arange(n), "squared")
    found = primal(problem, signs=dd.random_signs(torch.arange(n), 64, 0))
    exact, first = found.C.norm(dim=1), found.draws.square().mean(1)
    ratio, without = (first + found.rest).sqrt() / exact, first.sqrt() / exact
    assert 0.95 < float(ratio.median()) < most
    assert float(ratio.quantile(0.01)) > 0.65
    assert float(without.quantile(0.01)) < 0.6, "or the test shows nothing"


@pytest.mark.parametrize("grouped", [True, False])
def test_contributions_of_some_validation_rows_to_some_rows_are_a_part_of_the_whole(grouped):
    """Rows j of no validation group have the code -1."""
    generator = torch.Generator().manual_seed(0)
    n, c, m = 6, 3, 7
    K, r, t, moved = (torch.randn(*s, generator=generator, dtype=F64) for s in ((n, m), (n, c), (m, c), (m, c)))
    group = torch.tensor([0, 1, 1, 2, 2, 2, 3]) if grouped else torch.arange(m)
    own = torch.tensor([-1, 0, 2, 2, 3, -1])
    expected = torch.zeros(n, int(group[-1]) + 1, dtype=F64)
    for j in range(n):
        for g in range(expected.shape[1]):
            G = group == g
            if g != own[j]:
                expected[j, g] = (K[j, G] @ t[G]) @ (r[j] + K[j, G] @ moved[G])
    found = dd.pairwise_contributions(K.clone(), r, own, dd.Validation(t, moved, group))
    assert_close(found, expected, 1e-14)
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    found = dd.pairwise_contributions(
        K[:, order].contiguous(), r, own, dd.Validation(t[order], moved[order], group[order])
    )
    assert_close(found, expected if grouped else expected[:, order], 1e-14, "rows of groups in any order")


def test_without_validation_rows_there_are_no_contributions():
    none = dd.Validation(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    own = torch.tensor([-1, -1, -1])
    assert dd.pairwise_contributions(torch.zeros(3, 0), torch.ones(3, 2), own, none).shape == (3, 0)


def test_signs_are_plus_or_minus_one():
    signs = dd.random_signs(torch.arange(1000), 8, 0)
    assert signs.shape == (1000, 8) and signs.dtype == F64 and bool((signs.abs() == 1).all())
    assert dd.random_signs(torch.arange(5), 0, 0).shape == (5, 0)
    assert dd.random_signs(torch.arange(0), 3, 0).shape == (0, 3)


@pytest.mark.parametrize("keys", ["counts", "multiples", "hashes"])
def test_signs_are_balanced_and_independent_between_columns_rows_and_seeds(keys):
    n = 20_000
    keys = {
        "counts": torch.arange(n),
        "multiples": torch.arange(n) << 40,
        "hashes": torch.randint(-(2**63), 2**63 - 1, (n,), generator=torch.Generator().manual_seed(1)),
    }[keys]
    signs = torch.cat([dd.random_signs(keys, 64, seed) for seed in (0, 1, 2)], 1)
    correlation = (signs.T @ signs / n).fill_diagonal_(0)
    neighbours = signs[1:].T @ signs[:-1] / n
    for values in (signs.mean(0), correlation, neighbours):
        assert float(values.abs().max()) < 5 / n**0.5, values


def test_signs_are_a_pure_function_of_key_column_and_seed():
    keys = torch.randperm(500, generator=torch.Generator().manual_seed(0)) - 250
    whole = dd.random_signs(keys, 8, 7)
    assert bool((torch.cat([dd.random_signs(part, 8, 7) for part in keys.split(33)]) == whole).all())
    assert bool((dd.random_signs(keys, 3, 7) == whole[:, :3]).all())
    order = torch.argsort(keys)
    assert bool((dd.random_signs(keys[order], 8, 7) == whole[order]).all())


def test_signs_are_those_of_splitmix64():
    """Against the published algorithm in Python's integers of any size."""

    def mix(x):
        x = (x + 0) * 0x9E3779B97F4A7C15 % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    keys, seed = [0, 1, -5, 2**62, -(2**63)], 3
    bits = [[mix(key + mix(1_000_003 * (seed + 1))) >> k & 1 for k in range(64)] for key in keys]
    assert_close(dd.random_signs(torch.tensor(keys), 64, seed), 1 - 2 * torch.tensor(bits), 1e-15)


def real_problem(name):
    X, y = {"digits": load_digits, "wine": load_wine}[name](return_X_y=True)
    X = torch.from_numpy(X[::3] if name == "digits" else X)
    y = torch.from_numpy(y[::3] if name == "digits" else y)
    X = (X - X.mean(0)) / X.std(0).clamp_min(1e-3) / X.shape[1] ** 0.5
    Z, n, c = torch.cat([torch.ones(len(X), 1), X], 1), len(X), int(y.max()) + 1
    Lambda = torch.cat([torch.zeros(1), torch.full((X.shape[1],), 0.3)]).double()
    ones = torch.ones(n, dtype=F64)
    return Problem(Z, y.long(), ones, ones, Lambda, torch.zeros(n, c, dtype=F64), torch.arange(n), "cross_entropy")


@pytest.mark.parametrize("vectors", [8, 32, 64])
@pytest.mark.parametrize("name", ["digits", "wine"])
def test_estimated_standard_errors_spread_as_documented(name, vectors):
    problem = real_problem(name)
    signs = dd.random_signs(torch.arange(len(problem.Z)), vectors, 0)
    found = primal(problem, blocks=3, signs=signs)
    assert_close(found.derivative[:, 0], found.C.sum(1), 1e-11, "derivative")
    ratio = (found.draws.square().mean(1) + found.rest).sqrt() / found.C.norm(dim=1)
    least, low, median, high, most = ratio.quantile(torch.tensor([0.01, 0.16, 0.5, 0.84, 0.98], dtype=F64)).tolist()
    spread = (2 / vectors) ** 0.5 / 2
    assert abs(median - 1) < 0.03 + 0.25 * spread, "biased"
    assert 0.6 < (high - low) / 2 / spread < 1.4
    assert least > 1 - 3 * spread and most < 1.3 + 3 * spread
    squares = float((found.draws.square().mean(1) + found.rest).mean() / found.C.square().sum(1).mean())
    assert vectors < 64 or abs(squares - 1) < 0.1, "biased: rows share their vectors, so that few tell nothing"


def test_the_same_rows_in_other_blocks_draw_the_same_estimate():
    problem = make_problem("tall")
    keys = problem.groups * 7919 + 13
    signs = dd.random_signs(keys, 8, 5)
    one, many = primal(problem, signs=signs), primal(problem, blocks=5, signs=signs)
    assert_close(many.draws, one.draws, 1e-12)
    assert_close(many.rest, one.rest, 1e-12)
    for group in problem.groups.unique().tolist():
        assert len(signs[problem.groups == group].unique(dim=0)) == 1


def test_merging_into_adjoint_sums_adds_what_plus_adds():
    generator = torch.Generator().manual_seed(2)
    parts = [[torch.randn(4, k, generator=generator, dtype=F64) for k in (3, 4)] for _ in range(3)]
    moments = [BendSums(*torch.randn(2, generator=generator, dtype=F64), torch.ones(5, dtype=F64)) for _ in range(3)]
    one, other, third = (AdjointSums(M, S, m) for (M, S), m in zip(parts, moments, strict=True))
    expected = one + other + third
    merged = AdjointSums(one.M.clone(), one.S.clone(), one.moments)
    merged += other
    merged += third
    assert_close(merged.M, expected.M, 1e-15)
    assert_close(merged.S, expected.S, 1e-15)
    assert_close(merged.S.triu(), sum(S for _, S in parts).triu(), 1e-15)
    for name in ("reach", "square", "bends"):
        assert_close(getattr(merged.moments, name), sum(getattr(m, name) for m in moments), 1e-15, name)


def test_scratch_memory_changes_nothing_and_the_features_stay_as_they_were():
    problem = make_problem("tall")
    solution = ridge.solve(fit(problem, [torch.arange(len(problem.Z))]), problem.Lambda)
    sums = AdjointSums(torch.ones(7, 3, dtype=F64), torch.eye(7, dtype=F64))
    adjoint, _ = solve_adjoint(solution, sums)
    Z, r, own = problem.Z.clone(), problem.offset, dd.OwnTerms(problem.alpha)
    signs = torch.ones(len(Z), 0, dtype=F64)
    plain = dd.derivative(Z, r, own, signs, adjoint)[0]
    scratch = torch.full((len(Z) + 5, 7), torch.nan, dtype=F64)
    assert_close(dd.derivative(Z, r, own, signs, adjoint, scratch)[0], plain, 1e-15)
    assert bool((Z == problem.Z).all())
