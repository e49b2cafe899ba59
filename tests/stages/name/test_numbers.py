"""What sweeping named concepts says, of results made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from infoscope.analyses.name_result import NameResult
from infoscope.stages.name.findings import say_share
from infoscope.stages.name.numbers import Found, compare_signs, find_coupled, measure_bias, measure_misled


def make_result(**values: object) -> NameResult:
    """Two classes of which the first two concepts are, and two that go with one class each."""
    shape = (4, 2)
    found: dict[str, Any] = {
        "is_own": np.array([True, True, False, False]),
        "class_names": ["a", "b"],
        "class_shares": np.array([0.25, 0.75]),
        "association": np.array([[0.7, -0.7], [-0.2, 0.2], [0.5, -0.5], [-0.2, 0.2]]),
        "slopes": np.full(shape, 0.1),
        "slopes_random": np.zeros(shape),
        "misled": np.zeros((3, *shape)),
    }
    return cast("NameResult", SimpleNamespace(**{**found, **values}))


def test_what_goes_with_a_class_is_compared_with_what_does_not() -> None:
    coupled = find_coupled(make_result())
    assert np.argwhere(coupled).tolist() == [[2, 0]]  # the other class has not twice its share, and own concepts none
    misled = np.zeros((3, 4, 2))
    misled[:, 2, 0], misled[0, 3] = [0.5, 0.125, 0.4375], [0.0625, 0.1875]
    found = measure_misled(make_result(misled=misled))
    assert found[:-1] == (1, 0.5, 0.125, 0.4375, 1.0)
    assert found.others == pytest.approx((0 + 0.0625 + 0.1875) / 3)
    misled[:, :, 0] = np.nan  # no class is a valid name
    assert measure_misled(make_result(misled=misled)).n_pairs == 0


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.05, 0.01, 0.05, 0.0), "what misleads goes mostly through the former"),
        ((0.05, 0.03, 0.05, 0.0), "what misleads goes in part through the former"),
        ((0.02, 0.005, 0.004, 0.0), "what misleads goes hardly through the former"),  # random ones take as much
        ((-0.02, 0.01, 0.0, -0.03), "no more than other concepts do"),
        ((0.02, 0.0, 0.02, 0.03), "no more than other concepts do"),
    ],
)
def test_what_misleads_is_said_beyond_random_features(numbers: tuple[float, ...], words: str) -> None:
    assert say_share(dict(zip(("whole", "without", "without_random", "others"), numbers, strict=True))) == words
    slopes = np.array([[1, 2], [1, 2], [0.4, -0.4], [0.1, -0.1]])
    bias = measure_bias(make_result(slopes=slopes, slopes_random=slopes / 2))
    assert (bias.n_concepts, bias.n_coupled, bias.top) == (2, 1, 1.0)
    assert (bias.slope_coupled, bias.slope_random) == (0.4, 0.2)


def test_signs_are_compared_over_seeds_without_concepts_that_are_classes() -> None:
    slopes = [np.array([[1, 1], [1, 1], [1, -1], [1, np.nan]]), np.array([[-1, 1], [1, 1], [1, 1], [1, 1]])]
    found = [Found(make_result(slopes=of), {}, (), "class") for of in slopes]
    assert compare_signs(found) == (pytest.approx(2 / 3), 3)
