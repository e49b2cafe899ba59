import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog
from scipy.sparse import kron, vstack

from infoscope.runtime.errors import InputError
from infoscope.scope import emd as emd_module
from infoscope.scope.emd import compute_emd, patch_distances
from infoscope.scope.sinkhorn import compute_emd_sinkhorn

KINDS = ("sparse", "dense", "one_point", "one_to_many", "identical", "scaled", "nearly_identical", "degenerate")


def make_maps(kind, side, n, rng):
    """Pairs of maps of one kind, never all zero."""
    shape = (n, side * side)
    first, second = rng.gamma(0.5, size=shape) + 1e-3, rng.gamma(0.5, size=shape) + 1e-3
    keep = np.zeros(shape, bool)
    keep[:, 0] = True
    few = rng.permuted(keep | (rng.random(shape) < 0.1), axis=1)
    if kind == "sparse":
        first, second = first * few, second * rng.permuted(few, axis=1)
    elif kind == "one_point":
        first, second = rng.permuted(keep, axis=1) * 3.0, rng.permuted(keep, axis=1) * 0.2
    elif kind == "one_to_many":
        first = first * few
        second = rng.permuted(keep, axis=1) * 1.0
    elif kind == "identical":
        second = first.copy()
    elif kind == "scaled":
        second = first * rng.uniform(0.1, 10, (n, 1))
    elif kind == "nearly_identical":
        second = first * (1 + 1e-7 * rng.standard_normal(shape))
    elif kind == "degenerate":  # equal masses everywhere: many ties for the simplex
        first, second = few * 1.0, rng.permuted(few, axis=1) * 1.0
    maps = np.stack([first, second]).reshape(2, n, side, side).astype(np.float32)
    return maps[:, :: rng.choice([-1, 1])]


def dense_emd(first, second):
    """POT on the whole grid, nothing cancelled: another road to the same number."""
    a, b = (m.ravel().astype(np.float64) for m in (first, second))
    return ot.emd2(a / a.sum(), b / b.sum(), np.array(patch_distances(first.shape[-1])))


def linear_program_emd(first, second):
    a, b = (m.ravel().astype(np.float64) for m in (first, second))
    n = len(a)
    marginals = [kron(np.eye(n), np.ones((1, n))), kron(np.ones((1, n)), np.eye(n))]
    masses = np.concatenate([a / a.sum(), b / b.sum()])
    found = linprog(
        patch_distances(first.shape[-1]).ravel(),
        A_eq=vstack(marginals, format="csr")[:-1],
        b_eq=masses[:-1],
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert found.success, found.message
    return found.fun


@pytest.mark.parametrize("kind", KINDS)
def test_exact_emd_equals_the_dense_solve(kind):
    rng = np.random.default_rng([1, KINDS.index(kind)])
    for side, n in ((3, 100), (6, 100), (11, 40), (13, 10)):  # 8 kinds x 250 = 2,000 pairs
        first, second = make_maps(kind, side, n, rng)
        expected = [dense_emd(a, b) for a, b in zip(first, second, strict=True)]
        np.testing.assert_allclose(compute_emd(first, second), expected, rtol=0, atol=1e-9)


def test_pots_public_function_gives_the_same_bits(monkeypatch):
    assert emd_module._find_kernel() is not None
    rng = np.random.default_rng(3)
    pairs = [make_maps(kind, 7, 20, rng) for kind in KINDS]
    found = [compute_emd(*maps) for maps in pairs]
    monkeypatch.setattr(emd_module, "_find_kernel", lambda: None)
    for maps, one in zip(pairs, found, strict=True):
        np.testing.assert_array_equal(compute_emd(*maps), one)


def solve_in_three_parts(a, b, cost, max_iterations, n_threads):
    return np.zeros((2, 2)), 1.5, 1


@pytest.mark.parametrize("other", [None, lambda a, b, cost: 0, solve_in_three_parts])
def test_another_pot_is_asked_by_its_public_function(monkeypatch, other):
    monkeypatch.setattr(ot.lp.emd_wrap, "emd_c", other)
    emd_module._find_kernel.cache_clear()
    try:
        assert emd_module._find_kernel() is None
    finally:
        emd_module._find_kernel.cache_clear()


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_exact_emd_equals_a_linear_program(kind):
    rng = np.random.default_rng([2, KINDS.index(kind)])
    for side, n in ((2, 5), (3, 8), (6, 6)):  # 8 kinds x 19 = 152 pairs
        first, second = make_maps(kind, side, n, rng)
        expected = [linear_program_emd(a, b) for a, b in zip(first, second, strict=True)]
        np.testing.assert_allclose(compute_emd(first, second), expected, rtol=0, atol=1e-9)


def test_maps_are_normalised_before_emd():
    rng = np.random.default_rng(3)
    first, second = make_maps("sparse", 5, 20, rng)
    expected = [dense_emd(a, b) for a, b in zip(first, second, strict=True)]
    for factor1, factor2 in ((1, 1), (7.0, 0.25), (1e-6, 1e6)):
        np.testing.assert_allclose(compute_emd(first * factor1, second * factor2), expected, rtol=0, atol=1e-6)


maps = arrays(np.float64, (4, 4), elements=st.integers(0, 9).map(float)).filter(lambda m: m.sum() > 0)


def one_emd(first, second):
    return compute_emd(first[None], second[None])[0]


@given(first=maps, second=maps, third=maps, scale=st.floats(1e-3, 1e3))
@settings(max_examples=100, deadline=None)
def test_emd_is_a_metric_blind_to_scale(first, second, third, scale):
    there = one_emd(first, second)
    assert 0 <= there <= np.sqrt(18) + 1e-12
    assert one_emd(first, first) == 0
    assert there == pytest.approx(one_emd(second, first), abs=1e-12)
    assert there <= one_emd(first, third) + one_emd(third, second) + 1e-12
    assert one_emd(first * scale, second) == pytest.approx(there, abs=1e-12)
    if there < 1e-12:
        np.testing.assert_allclose(first / first.sum(), second / second.sum(), atol=1e-9)


@given(first=maps, down=st.integers(0, 3), right=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_moving_everything_costs_the_distance(first, down, right):
    wide1, wide2 = np.zeros((7, 7)), np.zeros((7, 7))
    wide1[:4, :4] = first
    wide2[down : down + 4, right : right + 4] = first
    assert one_emd(wide1, wide2) == pytest.approx(np.hypot(down, right), abs=1e-9)


def test_moving_one_patch_costs_one_patch():
    first, second = np.zeros((9, 9)), np.zeros((9, 9))
    first[2, 3] = second[2, 4] = 0.7
    assert one_emd(first, second) == 1
    first[6, 6] = second[6, 6] = 0.7  # half of the mass stays
    assert one_emd(first, second) == pytest.approx(0.5, abs=1e-15)


def test_a_map_of_zeros_has_no_distance():
    some, none = np.eye(4)[None], np.zeros((1, 4, 4))
    stacked1, stacked2 = np.concatenate([some, none, none, some]), np.concatenate([none, some, none, some])
    assert np.isnan(compute_emd(stacked1, stacked2)).tolist() == [True, True, True, False]
    assert np.isnan(compute_emd_sinkhorn(stacked1, stacked2)).tolist() == [True, True, True, False]
    assert compute_emd(np.zeros((0, 4, 4)), np.zeros((0, 4, 4))).shape == (0,)


def test_neither_chunks_nor_workers_change_the_result(monkeypatch):
    first, second = make_maps("sparse", 6, 30, np.random.default_rng(4))
    expected = compute_emd(first, second)
    seen = []
    monkeypatch.setattr(emd_module, "CHUNK_PAIRS", 7)
    assert np.array_equal(compute_emd(first, second, progress=seen.append), expected)
    assert seen == [7, 14, 21, 28, 30]
    monkeypatch.setattr(emd_module, "MIN_PAIRS_PER_WORKER", 1)
    assert np.array_equal(compute_emd(first, second, n_workers=2), expected)


@pytest.mark.parametrize(("n_pairs", "n_workers", "expected"), [(10, 4, 1), (10_000, 4, 2), (10**7, 4, 4), (0, 0, 1)])
def test_few_pairs_start_no_workers(n_pairs, n_workers, expected):
    assert emd_module.count_workers(n_pairs, n_workers) == expected


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_maps_that_are_no_activations_are_refused(bad):
    broken = np.ones((1, 3, 3))
    broken[0, 1, 1] = bad
    with pytest.raises(InputError, match="at least 0"):
        compute_emd(broken, np.ones((1, 3, 3)))


@pytest.mark.parametrize("shapes", [((2, 3, 3), (1, 3, 3)), ((1, 3, 4), (1, 3, 4)), ((3, 3), (3, 3))])
def test_maps_of_other_shapes_are_refused(shapes):
    for compute in (compute_emd, compute_emd_sinkhorn):
        with pytest.raises(InputError, match="one shape"):
            compute(*(np.ones(shape) for shape in shapes))


@pytest.mark.long
def test_sinkhorn_is_close_and_its_bias_is_what_its_docstring_says():
    rng = np.random.default_rng(5)
    pairs = [make_maps(kind, 11, 5, rng) for kind in ("sparse", "dense", "one_point", "one_to_many")]
    first, second = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    error = (compute_emd_sinkhorn(first, second) - compute_emd(first, second)) / (np.sqrt(2) * 10)
    assert 0 < error.mean() < 0.015
    assert np.abs(error).max() < 0.04
    with pytest.raises(InputError, match="sinkhorn_blur"):
        compute_emd_sinkhorn(first, second, blur=0)
