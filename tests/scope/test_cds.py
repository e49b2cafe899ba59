import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from infoscope.runtime.errors import InputError
from infoscope.scope import cds

NAN = np.nan


def test_d_grid_joins_opposite_patch_centres():
    assert cds.compute_d_grid(14, 1) == pytest.approx(np.hypot(12, 12))
    assert cds.compute_d_grid(3, 1) == pytest.approx(np.sqrt(2))
    with pytest.raises(InputError, match="shift_patches"):
        cds.compute_d_grid(7, 6)


def test_position_locked_landmarks():
    assert cds.position_locked_score(7, 1) == pytest.approx(0.20)
    assert cds.position_locked_score(14, 1) == pytest.approx(0.083, abs=5e-4)
    assert cds.position_locked_score(16, 1) == pytest.approx(0.071, abs=5e-4)


def test_uniform_chance_landmarks():
    assert cds.uniform_chance_score(13) == pytest.approx(0.398, abs=5e-4)
    assert cds.uniform_chance_score(11) == pytest.approx(0.404, abs=5e-4)


@pytest.mark.parametrize("side", [2, 3, 7])
def test_uniform_chance_equals_the_mean_over_all_pairs_of_patches(side):
    places = np.stack(np.divmod(np.arange(side * side), side), axis=1)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    assert cds.uniform_chance_score(side) == pytest.approx(apart.mean() / apart.max(), abs=1e-12)


def test_cds_averages_valid_pairs_and_needs_half_of_them():
    emd = np.array(
        [
            [0.2, 0.4, 0.0, 1.0],
            [NAN, 0.4, 0.2, NAN],
            [NAN, NAN, NAN, 0.5],
            [0.1, NAN, NAN, NAN],
        ]
    )
    values, n_valid = cds.compute_cds(emd, 3)
    np.testing.assert_allclose(values, [0.2, 0.3, NAN, NAN], atol=1e-15)  # ceil(3/2) = 2 pairs are needed
    assert n_valid.tolist() == [3, 2, 0, 1]
    np.testing.assert_allclose(cds.compute_cds(emd, 2).values, [0.3, 0.4, NAN, 0.1], atol=1e-15)


@given(emd=arrays(np.float64, (3, 5), elements=st.one_of(st.just(np.nan), st.floats(0, 1))), k=st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_cds_is_a_mean_in_0_to_1(emd, k):
    values, n_valid = cds.compute_cds(emd, k)
    for row, value, n in zip(emd[:, :k], values, n_valid, strict=True):
        assert n == np.isfinite(row).sum()
        assert np.isnan(value) == (2 * n < k)
        if not np.isnan(value):
            assert 0 <= value <= 1 + 1e-12
            assert value == pytest.approx(np.nanmean(row), abs=1e-12)


def test_zeros_are_counted_apart():
    mass1 = np.array([[1.0, 0.0, 0.0, NAN], [2.0, 2.0, 2.0, 0.0]])
    mass2 = np.array([[1.0, 3.0, 0.0, NAN], [0.0, 2.0, 0.0, 0.0]])
    emd = np.array([[0.25, NAN, NAN, NAN], [NAN, 0.5, NAN, NAN]])
    one_sided, two_sided = cds.count_zero_maps(mass1, mass2, 4)
    assert one_sided.tolist() == [1, 2]
    assert two_sided.tolist() == [1, 1]  # a rank without an image is neither
    assert cds.count_zero_maps(mass1, mass2, 1).one_sided.tolist() == [0, 1]
    assert np.isnan(cds.compute_cds(emd, 4).values).all()
    np.testing.assert_allclose(cds.compute_cds_with_zeros(emd, mass1, mass2, 4).values, [1.25 / 2, 2.5 / 3])


def test_ratio_to_a_chance_of_nothing_is_nan():
    ratio = cds.compute_chance_ratio(np.array([0.2, 0.2, NAN, 0.2]), np.array([0.4, 9e-7, 0.4, NAN]))
    np.testing.assert_allclose(ratio, [0.5, NAN, NAN, NAN])


@pytest.mark.parametrize("k", [0, 5, -1])
def test_k_beyond_what_was_scored_is_refused(k):
    with pytest.raises(InputError, match=r"k_cds in 1\.\.4"):
        cds.compute_cds(np.zeros((2, 4)), k)


def test_means_are_of_what_is_known():
    values = np.array([[0.2, NAN, 1], [0.4, NAN, NAN]])
    np.testing.assert_allclose(cds.mean_of_known(values, axis=0), [0.3, NAN, 1])
    np.testing.assert_allclose(cds.mean_of_known(values, axis=1), [0.6, 0.4])
