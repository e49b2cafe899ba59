import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infoscope.runtime.errors import InputError
from infoscope.scope import crops
from infoscope.scope.config import Diagonal


def cut_patches(images, patch_px):
    """[b, 3, side, side] -> [b, grid, grid, 3 * patch_px**2]: what each patch shows."""
    grid = images.shape[-1] // patch_px
    parts = images.reshape(len(images), 3, grid, patch_px, grid, patch_px).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(len(images), grid, grid, -1)


def test_shared_region_holds_the_same_pixels():
    generator = torch.Generator().manual_seed(0)
    for grid, patch_px, shift in ((4, 3, 1), (7, 2, 2), (12, 8, 1), (5, 1, 3)):
        size_px = crops.scc_size_px(grid, patch_px, shift)
        images = torch.randint(0, 256, (2, 3, size_px, size_px), dtype=torch.uint8, generator=generator)
        shown = []
        for number, crop in enumerate(crops.shifted_crops(images, patch_px, grid, shift), start=1):
            assert crop.shape == (2, 3, grid * patch_px, grid * patch_px)
            content = cut_patches(crop, patch_px).permute(0, 3, 1, 2)
            shown.append(crops.shared_region(content, shift, number))
        assert shown[0].shape[-2:] == (grid - shift, grid - shift)
        assert torch.equal(shown[0], shown[1])


def test_crops_on_the_other_diagonal_share_the_same_pixels():
    generator = torch.Generator().manual_seed(0)
    for grid, patch_px, shift in ((4, 3, 1), (7, 2, 2), (12, 8, 1), (5, 1, 3)):
        size_px, start = crops.scc_size_px(grid, patch_px, shift), shift * patch_px
        images = torch.randint(0, 256, (2, 3, size_px, size_px), dtype=torch.uint8, generator=generator)
        first, second = crops.shifted_crops(images, patch_px, grid, shift, Diagonal.anti)
        assert torch.equal(first, images[..., : grid * patch_px, start:])
        assert torch.equal(second, images[..., start:, : grid * patch_px])
        shown = [
            crops.shared_region(cut_patches(crop, patch_px).permute(0, 3, 1, 2), shift, number, Diagonal.anti)
            for number, crop in enumerate((first, second), start=1)
        ]
        assert shown[0].shape[-2:] == (grid - shift, grid - shift)
        assert torch.equal(shown[0], shown[1])


@given(grid=st.integers(3, 20), data=st.data())
@settings(max_examples=50, deadline=None)
def test_shared_region_of_the_other_diagonal_is_where_its_definition_says(grid, data):
    shift = data.draw(st.integers(1, grid - 2))
    places, last = np.stack(np.mgrid[:grid, :grid]), grid - shift - 1
    first, second = (crops.shared_region(places, shift, crop, Diagonal.anti) for crop in (1, 2))
    assert (first[:, 0, 0].tolist(), first[:, -1, -1].tolist()) == ([shift, 0], [grid - 1, last])
    assert (second[:, 0, 0].tolist(), second[:, -1, -1].tolist()) == ([0, shift], [last, grid - 1])


@given(grid=st.integers(3, 20), data=st.data())
@settings(max_examples=50, deadline=None)
def test_shared_region_is_where_the_definition_says(grid, data):
    shift = data.draw(st.integers(1, grid - 2))
    row, column = np.mgrid[:grid, :grid]
    places = np.stack([row, column])
    assert crops.shared_region(places, shift, 1)[:, 0, 0].tolist() == [shift, shift]
    assert crops.shared_region(places, shift, 1)[:, -1, -1].tolist() == [grid - 1, grid - 1]
    assert crops.shared_region(places, shift, 2)[:, 0, 0].tolist() == [0, 0]
    assert crops.shared_region(places, shift, 2)[:, -1, -1].tolist() == [grid - shift - 1] * 2


@pytest.mark.parametrize(("grid", "shift"), [(7, 0), (7, -1), (7, 6), (3, 2), (2, 1)])
def test_shifts_that_leave_nothing_to_compare_are_refused(grid, shift):
    with pytest.raises(InputError, match="shift_patches"):
        crops.scc_size_px(grid, 8, shift)
    with pytest.raises(InputError, match="shift_patches"):
        crops.shared_region(np.zeros((grid, grid)), shift, 1)


@pytest.mark.parametrize(("grid", "advice"), [(3, "use at most 1"), (2, "too few for any"), (1, "too few for any")])
def test_no_shift_is_advised_that_is_refused(grid, advice):
    with pytest.raises(InputError, match=advice):
        crops.check_shift(grid, 2)


def test_images_of_another_size_are_refused():
    with pytest.raises(InputError, match="40 x 40 px"):
        crops.shifted_crops(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), patch_px=8, grid=4, shift_patches=1)
