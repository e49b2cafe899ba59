import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infoscope.data.config import RAISE, SKIP, OnError, Resize
from infoscope.data.image_folder import ImageFolder
from infoscope.data.images import ImageError, ImageSet, resize_image
from infoscope.data.sample import draw_images
from infoscope.runtime.errors import InputError


class Numbered(ImageSet):
    """A set that knows its images at a size that is asked for alone."""

    @property
    def fingerprint(self):
        return {}


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
    images.on_error = SKIP
    drawn = draw_images(images, 2, seed=0)
    assert drawn.on_error is SKIP
    for i, name in enumerate(drawn.image_ids):
        assert np.array_equal(drawn.photograph(i), images.photograph(images.image_ids.index(name)))


def test_a_set_without_photographs_says_so() -> None:
    with pytest.raises(InputError, match="Numbered does not give: probe whole images"):
        Numbered("train", ["a"]).photograph(0)
