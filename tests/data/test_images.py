import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infoscope.data.config import RAISE, SKIP, OnError, Resize
from infoscope.data.image_folder import ImageFolder
from infoscope.data.images import ImageError, ImageSet, iterate_images, resize_image
from infoscope.data.sample import draw_images
from infoscope.runtime.errors import InputError


class Numbered(ImageSet):
    """Image i is filled with i; some cannot be read."""

    def __init__(self, n: int, broken: tuple[int, ...] = ()) -> None:
        super().__init__("train", [f"image-{i:03d}" for i in range(n)])
        self.broken = broken

    @property
    def fingerprint(self):
        return {"n": len(self)}

    def load(self, index, size_px):
        if index in self.broken:
            raise ImageError(self.image_ids[index], "it is broken")
        return np.full((size_px, size_px, 3), index, np.uint8)


def indices(batches) -> list[list[int]]:
    return [batch.index.tolist() for batch in batches]


def test_the_last_incomplete_batch_is_kept():
    batches = list(iterate_images(Numbered(10), 8, 4))
    assert indices(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all(batch.images.shape == (len(batch.index), 3, 8, 8) for batch in batches)
    assert all(batch.images.dtype == torch.uint8 and batch.index.dtype == torch.int64 for batch in batches)
    assert all((batch.images == batch.index.view(-1, 1, 1, 1)).all() for batch in batches)


def test_images_come_in_the_order_asked_for():
    assert indices(iterate_images(Numbered(10), 8, 2, indices=[7, 3, 3])) == [[7, 3], [3]]
    assert indices(iterate_images(Numbered(10), 8, 2, indices=np.array([9, 0]))) == [[9, 0]]


def test_nothing_asked_for_gives_nothing():
    assert indices(iterate_images(Numbered(10), 8, 2, indices=[])) == []
    assert indices(iterate_images(Numbered(0), 8, 2)) == []


def test_reading_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    list(iterate_images(Numbered(4), 8, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_index_out_of_range_is_a_broken_invariant():
    with pytest.raises(AssertionError):
        next(iterate_images(Numbered(3), 8, 2, indices=[3]))


@pytest.mark.parametrize("n_workers", [0, min(2, os.cpu_count() or 1)])
class TestUnreadableImages:
    def test_skip_leaves_them_out_and_lists_them(self, n_workers):
        image_set = Numbered(11, broken=(0, 4, 5, 6, 7, 9))
        batches = iterate_images(image_set, 8, 4, on_error=SKIP, n_workers=n_workers)
        assert indices(batches) == [[1, 2, 3], [8, 10]]  # the second batch of four is empty: it is not given
        assert list(image_set.skipped) == [f"image-{i:03d}" for i in image_set.broken]
        assert set(image_set.skipped.values()) == {"it is broken"}

    def test_raise_names_the_first(self, n_workers):
        batches = iterate_images(Numbered(11, broken=(5, 6)), 8, 4, on_error=RAISE, n_workers=n_workers)
        assert next(batches).index.tolist() == [0, 1, 2, 3]
        with pytest.raises(ImageError, match=r"image-005 \(it is broken\): .*data.on_error=skip") as caught:
            next(batches)
        assert caught.value.reason == "it is broken"

    def test_no_readable_image_at_all_is_an_error(self, n_workers):
        image_set = Numbered(3, broken=(0, 1, 2))
        with pytest.raises(InputError, match=r"none of the 3 .* \(the first, image-000: it is broken\)"):
            list(iterate_images(image_set, 8, 2, on_error=SKIP, n_workers=n_workers))


def test_on_error_has_the_names_that_are_typed():
    assert [member.name for member in OnError] == ["raise", "skip"]
    assert OnError["raise"] is RAISE
    assert pickle.loads(pickle.dumps(RAISE)) is RAISE


def test_an_image_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ImageError("a.jpg", "it is broken")))
    assert (error.file, error.reason) == ("a.jpg", "it is broken")
    assert str(error) == str(ImageError("a.jpg", "it is broken"))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("resize", list(Resize))
def test_an_image_of_the_right_size_is_left_alone(resize):
    image = picture(20, 20)
    resized = resize_image(image, 20, resize)
    assert np.array_equal(resized, image)
    assert resized is not image


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size_px=st.integers(1, 64),
    resize=st.sampled_from(list(Resize)),
)
def test_resizing_agrees_with_torchvision(height, width, size_px, resize):
    from torchvision.transforms import InterpolationMode, v2

    image = picture(height, width)
    shape = [size_px, size_px] if resize is Resize.squash else [size_px]
    oracle = v2.Compose([v2.Resize(shape, InterpolationMode.BICUBIC), v2.CenterCrop(size_px)])
    expected = np.array(oracle(Image.fromarray(image)))
    resized = resize_image(image, size_px, resize)
    assert resized.shape == (size_px, size_px, 3)
    if resize is Resize.squash:
        assert np.array_equal(resized, expected)
    else:  # Pillow keeps the corners of a box in single precision: a pixel in a hundred moves by more than one level
        difference = np.abs(resized.astype(int) - expected)
        assert difference.max() <= 8
        assert (difference > 1).mean() < 0.03


def test_a_very_long_image_costs_no_more_than_its_crop():
    image = np.zeros((2, 60_000, 3), np.uint8)
    image[:, 29_990:30_010] = 255
    assert resize_image(image, 64, Resize.crop).min() == 255


def test_a_photograph_is_what_load_resizes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate([(40, 30), (21, 57), (16, 16)]):
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    for resize in Resize:
        images = ImageFolder(tmp_path, test_share=0.0, resize=resize)
        for i, size in enumerate([(30, 40), (57, 21), (16, 16)]):
            photograph = images.photograph(i)
            assert photograph.shape == (*size, 3)
            assert np.array_equal(images.load(i, 16), resize_image(photograph, 16, resize))
    drawn = draw_images(images, 2, seed=0)
    for i, name in enumerate(drawn.image_ids):
        assert np.array_equal(drawn.photograph(i), images.photograph(images.image_ids.index(name)))


def test_a_set_without_photographs_says_so() -> None:
    with pytest.raises(InputError, match="Numbered does not give: probe whole images"):
        Numbered(3).photograph(0)
