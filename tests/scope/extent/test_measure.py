"""Extents of planted backbones in closed form."""

from fractions import Fraction

import numpy as np

from infoscope.data.pictures import Pictures
from infoscope.scope.config import ExtentConfig
from infoscope.scope.extent.measure import measure_extent
from infoscope.scope.ranking import ImageTokens
from infoscope.vision.planted import LocalSum
from tests.support.scope_samples import make_sae, rank

GRID, PATCH_PX = 12, 2


def make_spots(n, spot=200, ground=20, side=GRID * PATCH_PX):
    """Even pictures of a ground with one bright patch each, where sums around it are largest."""
    pictures = np.full((n, side, side, 3), ground, np.uint8)
    for i, picture in enumerate(pictures):
        row, column = (PATCH_PX * (4 + i % 4), PATCH_PX * (5 + i % 3))
        picture[row : row + PATCH_PX, column : column + PATCH_PX] = spot
    return pictures


def measure(backbone, pictures, **options):
    images, sae = Pictures(list(pictures)), make_sae(backbone.d_in)
    ranking = rank(sae, ImageTokens(backbone, images, -2), 4)
    return measure_extent(backbone, sae, images, ranking, ExtentConfig(**options), layer=-2, batch_images=7)


def test_a_context_free_feature_has_extent_and_context_effect_0():
    found = measure(LocalSum(GRID, PATCH_PX, reach=0), make_spots(9))
    np.testing.assert_allclose(found.response, 1, atol=1e-9)
    np.testing.assert_allclose(found.response_without, 0, atol=1e-9)
    np.testing.assert_allclose(found.extent, 0, atol=1e-9)
    np.testing.assert_allclose(found.context_effect, 0, atol=1e-9)
    assert found.n_valid.tolist() == [3, 3, 3]


def test_a_sum_over_the_grid_in_even_pictures_has_the_share_of_patches():
    side = GRID * PATCH_PX
    pictures = np.zeros((9, side, side, 3), np.uint8)
    pictures[0] = 100  # the best image of each latent; donors are dark
    pictures[1:] = 1
    found = measure(LocalSum(GRID, PATCH_PX, reach=GRID - 1), pictures, n_images=1, radii=[0, 1, 2, 3, 5])
    row, column = np.divmod(found.patches[0, 0], GRID)
    sides = [[min(at + r, GRID - 1) - max(at - r, 0) + 1 for at in (row, column)] for r in found.radii]
    share = np.array([float(Fraction(int(h * w), GRID**2)) for h, w in sides])
    np.testing.assert_allclose(found.response, np.repeat(share[:, None], 3, 1), atol=1e-9)
    np.testing.assert_allclose(found.response_without, 1 - found.response, atol=1e-9)


def test_few_latents_are_drawn_and_measured_as_among_all():
    pictures, options = make_spots(9, ground=5), {"n_images": 2, "radii": [0, 2], "seed": 5}
    everything = measure(LocalSum(GRID, PATCH_PX, reach=1), pictures, **options)
    drawn = measure(LocalSum(GRID, PATCH_PX, reach=1), pictures, n_latents=2, **options)
    measured = ~np.isnan(drawn.extent)
    assert measured.sum() == 2
    np.testing.assert_array_equal(drawn.extent[measured], everything.extent[measured])
    assert (drawn.images[~measured] == -1).all()
