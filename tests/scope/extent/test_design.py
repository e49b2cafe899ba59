"""What is measured under a budget, and what is refused."""

import numpy as np
import pytest

from infoscope.runtime.errors import InputError
from infoscope.scope.config import Donor, ExtentConfig
from infoscope.scope.extent.design import choose_design, choose_radii, key_of_design, say_design, wish_design


@pytest.mark.parametrize(
    ("grid", "radii"),
    [
        (2, (0,)),
        (3, (0,)),
        (4, (0, 1)),
        (5, (0, 1)),
        (12, (0, 1, 2, 3, 5)),
        (16, (0, 1, 2, 3, 5, 7)),
        (37, (0, 1, 2, 3, 5, 8, 13, 17)),
    ],
)
def test_radii_go_up_to_the_widest_window_smaller_than_the_grid(grid, radii):
    assert choose_radii(grid) == radii


def test_radii_of_ones_own():
    assert choose_radii(12, [0, 4]) == (0, 4)
    with pytest.raises(InputError, match=r"at most 5, so that no window covers the grid of 12 x 12 patches, got 6"):
        choose_radii(12, [0, 6])
    with pytest.raises(InputError, match=r"begin with 0, the patch alone, got \[1, 2\]"):
        ExtentConfig(radii=[1, 2])


def test_the_budget_takes_one_thing_after_the_other():
    steps = []
    for budget in (10**6, 48_000, 40_000, 30_000, 20_000, 15_000, 10_000, 4_000, 2_000, 100):
        design = choose_design(512, 12, 16, ExtentConfig(n_images=3, n_donors=4, budget_images=budget))
        assert design.n_forwards <= budget
        steps.append((design.n_donors, design.n_images, design.radii, design.n_latents))
    wide, thin = (0, 1, 2, 3, 5), (0, 2, 5)
    assert steps == [
        (4, 3, wide, 512),
        (3, 3, wide, 512),
        (2, 3, wide, 512),
        (2, 2, wide, 512),
        (2, 2, thin, 512),
        (2, 2, thin, 512),
        (1, 2, thin, 512),
        (1, 1, thin, 512),
        (1, 1, thin, 281),
        (1, 1, thin, 9),
    ]


def test_a_budget_too_small_for_one_latent_is_refused():
    assert choose_design(512, 12, 16, ExtentConfig(budget_images=39)).n_latents == 1
    with pytest.raises(InputError, match=r"budget_images to be at least 39, which the windows of one latent take"):
        choose_design(512, 12, 16, ExtentConfig(budget_images=38))


@pytest.mark.parametrize("donor", Donor)
def test_the_latents_that_fit_are_as_many_as_the_budget_allows(donor):
    rng = np.random.default_rng(0)
    for budget in rng.integers(50, 5000, 50).tolist():
        design = choose_design(4096, 16, 16, ExtentConfig(donor=donor, budget_images=budget, n_donors=3))
        each = design.n_forwards - design.n_pool
        assert design.n_forwards <= budget < design.n_forwards + each // design.n_latents


def test_what_was_left_out_is_said():
    config = ExtentConfig(budget_images=1000)
    wanted, design = wish_design(512, 12, 16, config), choose_design(512, 12, 16, config)
    text = say_design(512, wanted, design, config)
    assert text == (
        "1 image, 1 donor (other images), radii 0, 2, 5; 138 of 512 latents: at most 998 pictures per SAE seed. Wanted"
        " were 3 images, 2 donors (other images), radii 0, 1, 2, 3, 5 of 512 latents (32,288 pictures), more than"
        " scope.extent.budget_images=1,000 allows."
    )
    assert say_design(512, wanted, wanted, config) == (
        "3 images, 2 donors (other images), radii 0, 1, 2, 3, 5; all 512 latents: at most 32,288 pictures per SAE seed."
    )
    few, blurred = wish_design(512, 12, 2, config), ExtentConfig(donor=Donor.blur)
    assert "No more images are ranked than 2, which scope.k_max sets (3 wanted)." in say_design(512, few, few, config)
    assert "1 donor (the image itself, blurred)" in wish_design(512, 12, 16, blurred).words


@pytest.mark.parametrize(
    ("donor", "unread"),
    [(Donor.images, {"blur_patches"}), (Donor.mean, {"n_donors", "blur_patches"}), (Donor.blur, {"n_donors"})],
)
def test_settings_that_a_donor_does_not_read(donor, unread):
    assert ExtentConfig(donor=donor).unread.keys() == unread
    config = ExtentConfig(donor=donor)
    key = key_of_design(512, choose_design(512, 12, 16, config), config)
    assert ("blur_patches" in key) == (donor is Donor.blur)
    assert key["n_donors"] == (2 if donor is Donor.images else 1)
    more = ExtentConfig(donor=donor, n_donors=5)
    assert (key_of_design(512, choose_design(512, 12, 16, more), more) == key) == (donor is not Donor.images)
