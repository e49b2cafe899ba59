"""A planted latent that misleads: it is found on training images, and without it the worst group is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from infoscope.analyses.image_codes import ImageCodes
from infoscope.analyses.suppression import (
    CHOSEN,
    CONTROL,
    SuppressionResult,
    choose_suppressed,
    explain_within,
    find_typical,
    measure_suppression,
    score_spurious,
)
from infoscope.predictions.config import PredictConfig
from infoscope.predictions.inputs import PredictInputs
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.vision.backbone import Tokens
from tests.support.memory_tokens import PrefixedTokens
from tests.support.prediction_samples import LinearClip
from tests.support.probe_samples import GRID, D, make_identity_sae

BIRD, PLACE, OTHERS = 3, 4, range(6, D)
"""Channels: which class, where, and noise. The head takes both of the first for the class."""


def make_birds(n: int, seed: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tokens [n, patches, D], classes and places: a share of the birds is where one expects them."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(2, size=n)
    places = np.where(rng.random(n) < share, classes, 1 - classes)
    tokens = np.zeros((n, GRID**2, D), np.float32)
    tokens[..., BIRD] = (0.5 * classes)[:, None] + 0.25
    tokens[..., PLACE] = (1.2 * places)[:, None] + 0.4
    tokens[..., list(OTHERS)] = rng.uniform(0.1, 0.9, (n, GRID**2, len(OTHERS)))
    return tokens, classes, places


def make_head() -> ZeroShotHead:
    """Class 1 where bird and place together are large: the place alone outweighs the bird."""
    weights = torch.zeros(2, D)
    weights[1, BIRD], weights[1, PLACE] = 1, 1
    weights[0, BIRD], weights[0, PLACE] = -1, -1
    return ZeroShotHead(("land", "water"), weights, 10.0)


class ShiftedClip(LinearClip):
    """Its embedding is 0 between the classes where the place is removed."""

    def embed_tokens(self, tokens, layer: int, with_gradient: bool = False) -> torch.Tensor:
        found = tokens.patches.mean(1).clone()
        found[:, BIRD] -= 0.5
        found[:, PLACE] -= torch.where(found[:, PLACE] > 0.1, 1.0, 0.0)
        return found


def make_codes(tokens: np.ndarray) -> ImageCodes:
    means = 2 * tokens.mean(axis=1)  # in the SAE's units
    rows, latents = means.nonzero()
    starts, values = np.searchsorted(rows, np.arange(len(means) + 1)), means[rows, latents].astype(np.float32)
    counts = np.ones(len(rows), dtype=np.uint16)
    return ImageCodes(
        starts, latents.astype(np.int32), values, values, counts, counts, np.arange(len(means)), D, GRID**2, 0.2
    )


def suppress(sizes: list[int], n_draws: int = 3) -> SuppressionResult:
    tokens, classes, places = make_birds(400, 1, 0.9)
    codes = make_codes(tokens)
    scores = score_spurious(codes, classes, places, np.ones(D))
    mass = np.asarray(codes.matrix("means").sum(axis=0)).ravel()
    order, chosen = choose_suppressed(scores, mass, sizes, n_draws, 0)
    tested, of_tested, where = make_birds(200, 2, 0.5)
    cache = PrefixedTokens(Tokens(torch.zeros(200, 1, D), torch.from_numpy(tested)))
    inputs = PredictInputs(make_identity_sae(k=D), cache, ShiftedClip(), check_origin=False)  # pyright: ignore[reportArgumentType]
    config = PredictConfig(batch_images=64)
    labels = np.zeros(200, dtype=np.int64)
    labels[cache.image_index] = of_tested
    index, correct = measure_suppression(inputs, make_head(), [of for _, of in chosen], labels, config)
    places_of = np.zeros(200, dtype=np.int64)
    places_of[cache.image_index] = where
    typical = find_typical(classes, places, 2)
    return SuppressionResult(
        "place",
        ("land", "water"),
        typical,
        order,
        index,
        labels[index],
        places_of[index] == typical[labels[index]],
        tuple(one for one, _ in chosen),
        correct,
    )


def test_without_the_latent_that_misleads_the_worst_group_is_right_and_random_removal_does_not_help() -> None:
    found = suppress([1])
    assert found.order.tolist() == [PLACE]
    assert found.typical.tolist() == [0, 1]
    kinds = [one.kind for one in found.variants]
    assert kinds == ["", CHOSEN, CONTROL, CONTROL, CONTROL]
    worst = found.worst_group(5)
    assert worst[0] == 0
    assert worst[1] == 1
    assert found.accuracy(True)[0] == 1
    assert found.accuracy(False)[0] == 0
    assert found.accuracy()[1] == 1
    assert (worst[2:] == 0).all()
    assert all(abs(one.mass - found.variants[1].mass) < 0.1 for one in found.variants[2:])


def test_groups_are_class_and_whether_the_value_is_typical() -> None:
    found = suppress([1])
    sizes = found.group_sizes()
    assert sizes.sum() == 200
    for of_class in range(2):
        for atypical in (False, True):
            members = (found.classes == of_class) & (found.is_typical != atypical)
            assert sizes[2 * of_class + atypical] == members.sum()
            np.testing.assert_allclose(
                found.by_group()[:, 2 * of_class + atypical], found.correct[:, members].mean(axis=1)
            )
    assert np.isnan(found.worst_group(201)).all()


def test_the_score_is_the_variance_that_a_target_explains_within_classes() -> None:
    rng = np.random.default_rng(3)
    tokens, (classes, other) = rng.uniform(0, 1, (300, GRID**2, D)).astype(np.float32), rng.integers(3, size=(2, 300))
    tokens[..., 2] += other[:, None]
    tokens[..., 5] += classes[:, None]
    codes = make_codes(tokens)
    means = codes.matrix("means").toarray()
    found = explain_within(codes, classes, other)
    for latent in (2, 5, 7):
        z, between, within = means[:, latent], 0.0, 0.0
        for c in range(3):
            of_class = z[classes == c]
            for t in range(3):
                cell = z[(classes == c) & (other == t)]
                between += len(cell) * (cell.mean() - of_class.mean()) ** 2
                within += ((cell - cell.mean()) ** 2).sum()
        np.testing.assert_allclose(found[latent], (between - 6 * within / (300 - 9)) / 300, rtol=1e-6, atol=1e-10)
    assert abs(found[7]) < 0.01 * found[2]
    scores = score_spurious(codes, classes, other, np.arange(D))
    assert scores.argmax() == 2
    assert scores[5] < 0
    np.testing.assert_allclose(scores[2], 4 * (found[2] - explain_within(codes, other, classes)[2]))


def test_sets_hold_only_what_carries_the_target_and_controls_none_of_it() -> None:
    scores, mass = np.array([3.0, -1, 2, 0, -2, -3]), np.array([1.0, 1, 1, 1, 0, 5])
    order, chosen = choose_suppressed(scores, mass, [1, 4], 2, 0)
    assert order.tolist() == [0, 2]
    names = [(one.kind, one.size, one.n_latents) for one, _ in chosen]
    assert names[:2] == [("", 0, 0), (CHOSEN, 1, 1)]
    assert (CHOSEN, 4, 2) in names
    for one, removed in chosen:
        if one.kind == CONTROL:
            assert not removed[[0, 4]].any()
            assert one.draw in (0, 1)


def test_files_give_back_what_was_found(tmp_path: Path) -> None:
    found = suppress([1, 2], n_draws=1)
    found.save(tmp_path)
    read = SuppressionResult.load(tmp_path)
    assert read.variants == found.variants
    for name in ("correct", "is_typical", "classes", "order", "typical", "image_index"):
        np.testing.assert_array_equal(getattr(read, name), getattr(found, name))
