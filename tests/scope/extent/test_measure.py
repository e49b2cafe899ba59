"""Extents of planted backbones in closed form, and what donors, parts and batches change."""

from fractions import Fraction
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from PIL import Image

from infoscope.data.config import SKIP
from infoscope.data.images import ImageError
from infoscope.data.pictures import Pictures
from infoscope.runtime.errors import InputError
from infoscope.scope.config import Donor, ExtentConfig
from infoscope.scope.extent import measure as measuring
from infoscope.scope.extent.measure import measure_extent
from infoscope.scope.extent.windows import blur
from infoscope.scope.ranking import ImageTokens
from infoscope.vision.planted import LIGHT_ANCHORS, PlantedRegisters
from tests.support.closed_forms import LocalSum
from tests.support.scope_samples import make_noise, make_reading_sae, make_sae, rank

GRID, PATCH_PX = 12, 2
SIDE = GRID * PATCH_PX
DARK = np.full((8, SIDE, SIDE, 3), 1, np.uint8)


def make_spots(n, spot=200, ground=20, side=SIDE):
    """Even pictures of a ground with one bright patch each, where sums around it are largest."""
    pictures = np.full((n, side, side, 3), ground, np.uint8)
    for i, picture in enumerate(pictures):
        row, column = (PATCH_PX * (4 + i % 4), PATCH_PX * (5 + i % 3))
        picture[row : row + PATCH_PX, column : column + PATCH_PX] = spot
    return pictures


def measure(backbone, pictures, sae=None, k_max=4, batch_images=7, folder=None, **options):
    images = pictures if isinstance(pictures, Pictures) else Pictures(list(pictures))
    sae = make_sae(backbone.d_in) if sae is None else sae
    ranking = rank(sae, ImageTokens(backbone, images, -2), k_max)
    backbone.n_images_encoded = 0
    return measure_extent(
        backbone,
        sae,
        images,
        ranking,
        ExtentConfig(**options),
        layer=-2,
        batch_images=batch_images,
        progress_folder=folder,
    )


def assert_same(one, other):
    for name, values in vars(one).items():
        np.testing.assert_array_equal(values, vars(other)[name], name)


def test_a_context_free_feature_has_extent_and_context_effect_0():
    found = measure(LocalSum(GRID, PATCH_PX, reach=0), make_spots(9))
    np.testing.assert_allclose(found.response, 1, atol=1e-9)
    np.testing.assert_allclose(found.response_without, 0, atol=1e-9)
    np.testing.assert_allclose(found.extent, 0, atol=1e-9)
    np.testing.assert_allclose(found.context_effect, 0, atol=1e-9)
    assert found.n_measured.tolist() == [3, 3, 3]


@pytest.mark.parametrize("reach", [1, 2])
def test_sums_around_patches_are_those_of_numpy(reach):
    """Random pictures, half of them dark; in some a corner or a border is bright."""
    grid, radii, rng = 7, [0, 1, 2], np.random.default_rng(reach)
    levels = rng.integers(0, [[[[40]]]] * 8 + [[[[160]]]] * 8, (16, grid, grid, 3))
    levels[:3] = 0
    levels[0, 0, 0] = levels[1, -1, -1] = levels[2, 3, -1] = 250
    pictures = levels.repeat(PATCH_PX, 1).repeat(PATCH_PX, 2).astype(np.uint8)
    found = measure(LocalSum(grid, PATCH_PX, reach), pictures, k_max=16, n_images=16, n_donors=3, radii=radii)

    def sum_around(values, row, column, r=reach):
        rows, columns = (slice(max(0, at - r), at + r + 1) for at in (row, column))
        return PATCH_PX**2 * values[rows, columns].sum()

    assert 0 in found.patches
    for latent, rank_ in np.ndindex(found.images.shape):
        own = levels[found.images[latent, rank_], ..., latent]
        sums = [[sum_around(own, row, column) for column in range(grid)] for row in range(grid)]
        patch = found.patches[latent, rank_]
        assert (patch, found.whole[latent, rank_]) == (np.argmax(sums), np.max(sums))
        row, column = divmod(patch, grid)
        near = np.maximum(*np.abs(np.mgrid[:grid, :grid] - np.array([row, column])[:, None, None]))
        for donor in range(3):
            excited = found.donor[latent, rank_, donor]
            others = [i for i in range(16) if sum_around(levels[i, ..., latent], row, column) == excited]
            assert others
            assert found.images[latent, rank_] not in others
            other = levels[others[0], ..., latent]
            for place, r in enumerate(radii):
                kept, replaced = np.where(near <= r, own, other), np.where(near <= r, other, own)
                index = place, latent, rank_, donor
                assert len(others) > 1 or found.kept[index] == sum_around(kept, row, column)
                assert len(others) > 1 or found.replaced[index] == sum_around(replaced, row, column)
    known = np.isfinite(found.extent)  # else donors excite it as much
    assert known.sum() >= 2
    np.testing.assert_allclose(found.response[reach:, known], 1, atol=1e-9)  # the window holds all that the patch sees
    assert (found.extent[known] <= 2 * reach / (grid - 1)).all()


@pytest.mark.parametrize("is_corner", [False, True])
@pytest.mark.parametrize(
    ("k", "in_middle", "in_corner"), [(3, Fraction(7, 16), Fraction(1, 3)), (5, Fraction(39, 32), Fraction(11, 10))]
)
def test_a_sum_of_k_by_k_patches_has_the_extent_of_its_share(k, in_middle, in_corner, is_corner):
    """Of an even picture, or of one whose corner alone is bright, which the first patch sees as well as any.

    3 x 3: 1/9, then all, so half at 7/16 between. 5 x 5: 1/25, 9/25, then all: 1 + 7/32. In the corner 1/4, then all;
    1/9, 4/9, then all: 1 + 1/10.
    """
    reach = k // 2
    picture = np.full((1, SIDE, SIDE, 3), 0 if is_corner else 100, np.uint8)
    side = reach + 1 if is_corner else GRID
    picture[:, : side * PATCH_PX, : side * PATCH_PX] = 100
    found = measure(LocalSum(GRID, PATCH_PX, reach), np.concatenate([picture, DARK]), n_images=1)
    assert found.patches.tolist() == [[0 if is_corner else reach * (GRID + 1)]] * 3
    seen = np.minimum(found.radii + 1, reach + 1) if is_corner else np.minimum(2 * found.radii + 1, k)
    n = int(seen[-1]) ** 2
    np.testing.assert_allclose(found.response, np.repeat(seen[:, None] ** 2 / n, 3, 1), atol=1e-9)
    np.testing.assert_allclose(found.response_without, 1 - found.response, atol=1e-9)
    radius = in_corner if is_corner else in_middle
    np.testing.assert_allclose(found.extent, float(2 * radius / (GRID - 1)), atol=1e-9)
    np.testing.assert_allclose(found.context_effect, float(Fraction((n - 1) ** 2, (n - 1) ** 2 + 1)), atol=1e-9)


def test_a_sum_over_the_grid_in_even_pictures_has_the_share_of_patches():
    pictures = np.concatenate([np.full((1, SIDE, SIDE, 3), 100, np.uint8), DARK])
    options = {"n_images": 1, "radii": [0, 1, 2, 3, 5]}
    found = measure(LocalSum(GRID, PATCH_PX, reach=GRID // 2), pictures, **options)
    assert found.patches.tolist() == [[5 * GRID + 5]] * 3  # the first one that sees all
    share = np.array([float(Fraction((2 * r + 1) ** 2, GRID**2)) for r in found.radii])
    np.testing.assert_allclose(found.response, np.repeat(share[:, None], 3, 1), atol=1e-9)
    np.testing.assert_allclose(found.response_without, 1 - found.response, atol=1e-9)
    half = 3 + (5 - 3) * Fraction(72 - 49, 121 - 49)  # between 49 and 121 of 144 patches
    np.testing.assert_allclose(found.extent, float(2 * half / (GRID - 1)), atol=1e-9)
    of_context = Fraction(143**2 + 143**2, 2) / (Fraction(143**2 + 143**2, 2) + Fraction(2**2, 4))
    np.testing.assert_allclose(found.context_effect, float(of_context), atol=1e-9)
    corner = measure(LocalSum(GRID, PATCH_PX, reach=GRID - 1), pictures, **options)
    assert corner.patches.tolist() == [[0]] * 3  # all patches see all
    np.testing.assert_allclose(corner.response, np.square(corner.radii + 1)[:, None] / 144 * np.ones(3), atol=1e-9)
    assert corner.extent.tolist() == [1, 1, 1]


def test_a_sum_over_the_grid_above_a_threshold_has_extent_1():
    """It fires only where almost the whole picture speaks, so that no window smaller than the grid is enough."""
    pictures = np.concatenate([np.full((1, SIDE, SIDE, 3), 100, np.uint8), 0 * DARK])
    sae = make_sae(3)
    with torch.no_grad():
        sae.b_enc.fill_(-0.875 * SIDE**2 * 100)  # 126 of 144 patches, more than a window of 11 x 11
    found = measure(LocalSum(GRID, PATCH_PX, reach=GRID // 2), pictures, sae, n_images=1)
    np.testing.assert_allclose(found.response, 0, atol=1e-9)
    np.testing.assert_allclose(found.extent, 1, atol=1e-9)
    # 18 patches above the threshold, 17 without its own one, and nothing in the donor's context
    within = Fraction(18**2 + 17**2, 2)
    np.testing.assert_allclose(found.context_effect, float(within / (within + Fraction(1, 4))), atol=1e-9)


def test_a_planted_register_has_extent_1_and_its_context_effect():
    """Whatever window is replaced, the register leaps: of the four cells one alone fires."""
    backbone = PlantedRegisters(grid=GRID, patch_px=PATCH_PX)
    pictures = make_noise(12, SIDE, seed=3)
    for i, picture in enumerate(pictures):
        picture[:PATCH_PX] = np.array(list(LIGHT_ANCHORS.values()))[i % 4, 0]
    found = measure(backbone, pictures, make_reading_sae(backbone.directions), n_images=2, n_donors=1, radii=[0, 5])
    registers = slice(backbone.n_local, None)
    np.testing.assert_allclose(found.response[:, registers], 0, atol=1e-9)
    np.testing.assert_allclose(found.extent[registers], 1, atol=1e-9)
    np.testing.assert_allclose(found.context_effect[registers], 2 / 3, atol=1e-9)


def test_few_latents_are_drawn_and_measured_as_among_all():
    pictures, options = make_spots(9, ground=5), {"n_images": 2, "radii": [0, 2], "seed": 5}
    everything = measure(LocalSum(GRID, PATCH_PX, reach=1), pictures, **options)
    drawn = measure(LocalSum(GRID, PATCH_PX, reach=1), pictures, n_latents=2, **options)
    measured = ~np.isnan(drawn.extent)
    assert measured.sum() == 2
    np.testing.assert_array_equal(drawn.extent[measured], everything.extent[measured])
    assert (drawn.images[~measured] == -1).all()


def test_a_tiny_budget_draws_latents_by_its_seed_from_those_that_fire():
    pictures, one = np.concatenate([make_spots(4), DARK]), 1 + 2 * 6  # of six radii, one donor
    pictures[..., 2] = 0
    chosen = set()
    for seed in range(6):
        found = measure(LocalSum(GRID, PATCH_PX), pictures, budget_images=32 + one, seed=seed, radii=[0, 1, 2, 3, 4, 5])
        (latent,) = np.flatnonzero((found.images >= 0).any(axis=1))
        chosen.add(int(latent))
        assert np.isnan(np.delete(found.extent, latent)).all()
    assert chosen == {0, 1}


def test_dead_latents_have_no_extent():
    pictures = np.concatenate([make_spots(4), DARK])
    pictures[..., 1] = 0
    found = measure(LocalSum(GRID, PATCH_PX), pictures)
    assert np.isnan(found.extent).tolist() == np.isnan(found.context_effect).tolist() == [False, True, False]
    assert found.n_measured.tolist() == [3, 0, 3]
    nothing = measure(LocalSum(GRID, PATCH_PX), 0 * pictures)
    assert np.isnan(nothing.extent).all()


@pytest.mark.parametrize("seed", [0, 3])
def test_donors_follow_from_the_seed_as_documented(seed):
    levels = np.arange(10, 50)
    pictures = np.full((40, SIDE, SIDE, 3), levels[:, None, None, None], np.uint8)
    found = measure(LocalSum(GRID, PATCH_PX, 0), pictures, n_images=4, n_donors=4, seed=seed)
    pool = np.sort(np.random.default_rng([seed, 1]).permutation(40)[:32])
    for place, image in enumerate(found.images[0]):
        patch = found.patches[0, place]
        order = pool[np.random.default_rng([seed, image, patch]).permutation(32)]
        expected = [one for one in order if one != image][:4]
        np.testing.assert_array_equal(found.donor[:, place], [levels[expected] * PATCH_PX**2] * 3)


def test_no_image_is_its_own_donor():
    pictures = np.stack([np.full((SIDE, SIDE, 3), 10 + i, np.uint8) for i in range(6)])
    found = measure(LocalSum(GRID, PATCH_PX, 0), pictures, n_donors=5)
    level = found.donor / PATCH_PX**2 - 10
    for latent, rank_ in np.ndindex(found.images.shape):
        assert sorted(level[latent, rank_]) == sorted({*range(6)} - {found.images[latent, rank_]})
    with pytest.raises(InputError, match=r"more images than scope.extent.n_donors=6, .* got 6: lower it"):
        measure(LocalSum(GRID, PATCH_PX, 0), pictures, n_donors=6)


def test_the_mean_colour_is_a_donor():
    pictures = np.concatenate([make_spots(3), DARK])
    found = measure(LocalSum(GRID, PATCH_PX, 0), pictures, donor=Donor.mean, n_images=2)
    assert found.donor.shape == (3, 2, 1)
    np.testing.assert_array_equal(found.donor, PATCH_PX**2 * np.round(pictures.mean()))
    np.testing.assert_array_equal(found.extent, 0)


def test_the_image_itself_is_a_donor_blurred():
    pictures = np.concatenate([make_spots(3, ground=0), DARK])
    backbone = LocalSum(GRID, PATCH_PX, 0)
    found = measure(backbone, pictures, donor=Donor.blur, blur_patches=1.5, n_images=2)
    assert backbone.n_images_encoded == found.n_encoded
    tokens = backbone.tokens(blur(torch.from_numpy(pictures).permute(0, 3, 1, 2), 1.5 * PATCH_PX), -2).patches.numpy()
    np.testing.assert_array_equal(found.donor[..., 0], tokens[found.images, found.patches, 0])
    np.testing.assert_allclose(found.response, 1, atol=1e-9)


def test_a_blurred_edge_is_a_normal_distribution_of_that_deviation():
    picture = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    picture[..., 20:] = 255
    expected = [255 * NormalDist(20, 3.0).cdf(column + 0.5) for column in range(10, 30)]
    np.testing.assert_allclose(blur(picture, 3.0)[0, 0, 20, 10:30], expected, atol=1.5)


def test_pictures_are_counted_and_bounded():
    backbone, pictures = LocalSum(GRID, PATCH_PX), make_noise(12, SIDE)
    for options in ({}, {"donor": Donor.mean}, {"donor": Donor.blur}, {"n_donors": 3, "radii": [0, 4]}):
        found = measure(backbone, pictures, n_images=4, **options)
        assert backbone.n_images_encoded == found.n_encoded
        design = measuring.choose_design(3, GRID, 4, ExtentConfig(n_images=4, **options))
        assert found.n_encoded <= design.n_forwards
        held = sum(of.nbytes for name, of in vars(found).items() if isinstance(of, np.ndarray) and name != "radii")
        assert held == design.n_bytes * found.images.size
    shared = measure(backbone, pictures[:, :, :, :1].repeat(3, 3), n_images=4)
    assert shared.n_encoded == 12 + 4 * (1 + 2 * 2 * len(shared.radii))  # all three latents share their windows


def test_batches_change_nothing_and_interrupted_parts_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "N_PARTS", 3)
    backbone, pictures = LocalSum(GRID, PATCH_PX, 2), make_noise(14, SIDE)
    whole, other = measure(backbone, pictures), measure(backbone, pictures, batch_images=64)
    np.testing.assert_allclose(other.response, whole.response, atol=1e-6)
    np.testing.assert_array_equal(other.patches, whole.patches)
    assert_same(measure(backbone, pictures, folder=tmp_path), whole)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 3
    parts[1].unlink()
    assert_same(measure(backbone, pictures, folder=tmp_path), whole)
    assert 14 < backbone.n_images_encoded < whole.n_encoded
    measure(backbone, pictures, folder=tmp_path)
    assert backbone.n_images_encoded == 0  # not even the donors


def test_a_grid_of_3_has_the_patch_alone():
    pictures = np.concatenate([np.full((4, 6, 6, 3), 90, np.uint8), DARK[:, :6, :6]])
    for reach, extent in ((0, 0), (1, 1)):
        found = measure(LocalSum(3, PATCH_PX, reach), pictures)
        assert found.radii.tolist() == [0]
        assert found.extent.tolist() == [extent] * 3


def test_images_that_cannot_be_read_are_no_donors(tmp_path: Path):
    pictures = np.concatenate([make_spots(4), DARK])
    files = [tmp_path / f"{i:02d}.png" for i in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file)
    images = Pictures(files, on_error=SKIP)
    found = measure(LocalSum(GRID, PATCH_PX, 0), images)
    for file in files[7:]:
        file.write_bytes(b"no picture")
    again = measure_extent(
        LocalSum(GRID, PATCH_PX, 0),
        make_sae(3),
        images,
        rank(make_sae(3), ImageTokens(LocalSum(GRID, PATCH_PX, 0), Pictures(list(pictures)), -2), 4),
        ExtentConfig(),
        layer=-2,
    )
    np.testing.assert_array_equal(again.extent, found.extent)
    for file in files[1:]:
        file.unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"n_donors=2, of which none is its own donor, got 1"):
        measuring.read_pool(images, SIDE, ExtentConfig())


def test_a_donor_that_breaks_ends_a_run_that_skips_no_images(tmp_path: Path):
    """Else other donors would take its place, and the same settings find them again when it is mended."""
    files = [tmp_path / f"{i:02d}.png" for i in range(6)]
    for file, picture in zip(files, make_spots(6), strict=True):
        Image.fromarray(picture).save(file)
    images = Pictures(files)
    files[5].write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"05\.png.*mend or remove the file"):
        measuring.read_pool(images, SIDE, ExtentConfig())
