"""Response, extent and context effect as arithmetic on activations."""

import numpy as np
import pytest

from infoscope.scope.extent.result import ExtentResult


def make_result(kept, replaced=None, donor=0.0, whole=1.0, radii=(0, 1, 2), grid=9):
    """One latent; kept [n_radii, n_images, n_donors]."""
    kept = np.array(kept, np.float32)[:, None]
    n_images, n_donors = kept.shape[2:]
    return ExtentResult(
        grid=grid,
        radii=np.array(radii),
        images=np.arange(n_images)[None],
        patches=np.full((1, n_images), 4),
        whole=np.full((1, n_images), whole, np.float32) * np.ones(n_images, np.float32),
        donor=np.broadcast_to(np.array(donor, np.float32), (1, n_images, n_donors)),
        kept=kept,
        replaced=0 * kept if replaced is None else np.array(replaced, np.float32)[:, None],
        n_encoded=0,
    )


def curve(*responses, **options):
    return make_result([[[response]] for response in responses], **options)


@pytest.mark.parametrize(
    ("responses", "radius"),
    [
        ((0.5, 0.75, 1), 0),
        ((0.25, 0.75, 1), 0.5),
        ((0, 0.125, 0.625), 1.75),
        ((0, 0.5, 1), 1),
        ((0.25, 0.75, 0), 0.5),  # where it is first reached
        ((-1, 1, 1), 0.75),
        ((3, 0, 0), 0),
    ],
)
def test_the_extent_is_interpolated(responses, radius):
    assert curve(*responses).extent == [2 * radius / 8]


def test_radii_may_skip():
    assert curve(0, 1, radii=(0, 4)).extent == [2 * 2 / 8]
    assert curve(0.5, radii=(0,)).extent == [0]
    assert curve(0.4, radii=(0,)).extent == [1]


def test_what_is_never_kept_has_extent_1():
    assert curve(0, 0.25, 0.4375).extent == [1]
    assert curve(0, 0, 0).extent == [1]  # silent in every window


def test_responses_below_0_and_above_1_stay():
    found = curve(0.0, 1.5, 0.25, donor=0.25)
    np.testing.assert_allclose(found.response[:, 0], [-1 / 3, 5 / 3, 0])


def test_images_and_donors_are_summed():
    kept = [[[0.5, 0.75], [1.0, 0.0]]]
    found = make_result(kept, donor=[[0.25, 0.0], [0.0, 0.0]], whole=[1.0, 2.0], radii=(0,))
    np.testing.assert_allclose(found.response, [[(0.25 + 0.75 + 1) / (0.75 + 1 + 2 + 2)]])


def test_without_the_window_is_a_measurement_of_its_own():
    """Both may be enough, as where two patches say the same, or neither, as where both are needed."""
    for kept, replaced in ((1.0, 0.75), (0.25, 0.5)):
        found = make_result([[[kept]]], [[[replaced]]], donor=0.25, radii=(0,))
        np.testing.assert_allclose(found.response, [[(kept - 0.25) / 0.75]])
        np.testing.assert_allclose(found.response_without, [[(replaced - 0.25) / 0.75]])


def test_donors_that_fire_themselves_count_like_others():
    kept = [[[0.5, 1.0], [0.25, 0.25]]]
    found = make_result(kept, donor=[[0.0, 1.0], [0.5, 0.75]], radii=(0,))
    np.testing.assert_allclose(found.response, [[(0.5 - 0.25 - 0.5) / 1.75]])
    assert found.n_measured.tolist() == [2]


def test_a_fact_that_windows_do_not_tell_has_response_0():
    """Two marks alike: a window holds one of them, the other one is the donor's, which shows the fact or not."""

    own = np.array([1.0 if first == second else 0.0 for first in (0, 1) for second in (0, 1)])
    kept = np.array([0.0, 1.0, 0.0, 1.0])  # of mark 1 the window shows a 1, of mark 2 donors show 0, 1, 0, 1
    found = make_result([[kept]], donor=[own], radii=(0,))
    assert found.response.tolist() == [[0.0]]
    assert found.extent.tolist() == [1.0]


def test_nothing_is_said_where_donors_excite_a_latent_as_its_own_images_do():
    kept = [[[0.5, 1.0], [0.25, 0.25]]]
    nearly, nothing = (make_result(kept, donor=donor, radii=(0,)) for donor in (57 / 64, 58 / 64))  # about 9/10
    assert np.isfinite([nearly.extent, nearly.mean_extent]).all()
    assert np.isnan([nothing.extent, nothing.mean_extent, nothing.response[0], nothing.response_without[0]]).all()
    unmeasured = make_result(kept, donor=np.nan, radii=(0,))
    assert np.isnan([unmeasured.extent, unmeasured.mean_extent, unmeasured.context_effect]).all()
    assert unmeasured.n_measured.tolist() == [0]


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        ((1, 1, 1), 0),
        ((0, 0, 0), 1 - 1 / 4),  # sides 0, 1/4, 1/2; from there to the whole picture on a straight line
        ((0.5, 0.5, 0.5), (1 - 1 / 4) / 2),
        ((0, 1, 1), 1 / 8),
        ((-1, 2, 1), 1 / 8),  # cut at 0 and 1
    ],
)
def test_the_mean_extent_is_the_area_above_the_response(responses, expected):
    found = curve(*responses)
    np.testing.assert_allclose(found.mean_extent, [expected], atol=1e-12)
    shares = (np.arange(1000) + 0.5) / 1000  # and so the mean, over shares, of the side at which each is reached
    sides, reached = np.array([0, 0.25, 0.5, 1]), np.append(np.clip(responses, 0, 1), 1)
    at = [np.interp(share, reached, sides) if share > reached[0] else 0.0 for share in shares]
    np.testing.assert_allclose(np.mean(at), expected, atol=1e-3)


def test_what_is_lost_in_wider_windows_counts_in_the_mean_extent():
    found = curve(1, 0, 0)
    assert found.extent.tolist() == [0]
    np.testing.assert_allclose(found.mean_extent, [(1 / 4 + 2 / 4 + 2 / 4) / 2])


def test_the_context_effect_is_that_of_a_two_way_analysis_of_variance():
    rng = np.random.default_rng(3)
    for _ in range(20):
        cells = rng.random((2, 2))  # own or donor's patch x own or donor's context
        mean = cells.mean()
        of_patch = cells.mean(axis=1, keepdims=True) - mean
        of_context = cells.mean(axis=0, keepdims=True) - mean
        both = cells - mean - of_patch - of_context
        expected = 1 - 2 * (of_patch**2).sum() / ((cells - mean) ** 2).sum()
        assert np.isclose(expected, (2 * (of_context**2).sum() + (both**2).sum()) / ((cells - mean) ** 2).sum())
        one = {"whole": cells[0, 0], "donor": cells[1, 1], "radii": (0,)}
        found = make_result([[[cells[0, 1]]]], [[[cells[1, 0]]]], **one)
        np.testing.assert_allclose(found.context_effect, [expected], atol=1e-6)


def test_context_effects_of_images_and_donors_are_pooled():
    of_patch = make_result([[[1.0]]], [[[0.0]]], radii=(0,))
    of_context = make_result([[[0.0]]], [[[1.0]]], radii=(0,))
    assert of_patch.context_effect.tolist() == [0]
    assert of_context.context_effect.tolist() == [1]
    assert make_result([[[1.0, 0.0]]], [[[0.0, 1.0]]], radii=(0,)).context_effect.tolist() == [0.5]
    pooled = make_result([[[1.0], [0.0]]], [[[0.0], [3.0]]], whole=[1.0, 3.0], radii=(0,))
    assert pooled.context_effect.tolist() == [9 / 10]  # stronger images count for more


def test_some_images_and_donors_alone(tmp_path):
    rng = np.random.default_rng(1)
    whole = make_result(rng.random((3, 4, 2)), rng.random((3, 4, 2)), donor=rng.random((4, 2)) / 3)
    for donors in (slice(1), slice(1, None)):
        some = whole.take(slice(None, None, 2), donors)
        assert (some.kept.shape, some.donor.shape, some.images.tolist()) == ((3, 1, 2, 1), (1, 2, 1), [[0, 2]])
        kept, replaced, donor = (
            whole.kept[:, 0, ::2, donors],
            whole.replaced[:, 0, ::2, donors],
            whole.donor[0, ::2, donors],
        )
        same = make_result(kept, replaced, donor=donor)
        np.testing.assert_array_equal(some.extent, same.extent)
        np.testing.assert_array_equal(some.context_effect, same.context_effect)
    whole.save(tmp_path)
    again = ExtentResult.load(tmp_path)
    assert vars(again).keys() == vars(whole).keys()
    for name, values in vars(whole).items():
        np.testing.assert_array_equal(getattr(again, name), values)


def test_rounding_gives_features_without_context_no_order():
    rng = np.random.default_rng(4)
    noise = [1e-6 * rng.uniform(-1, 1, (3, 4, 2)) for _ in range(2)]
    found = make_result(1 + noise[0], noise[1])
    assert np.ptp(found.response) > 0
    assert [found.extent.item(), found.mean_extent.item(), found.context_effect.item()] == [0, 0, 0]
    some = make_result(np.full((3, 4, 2), 0.999), np.full((3, 4, 2), 0.001))
    assert some.mean_extent > 0 < some.context_effect
