"""The masking curve: planted classes go with their latents, and every mask is what brute force edits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from infoscope.analyses.image_codes import ImageCodes, measure_image_codes
from infoscope.analyses.masking import CLASS, RANDOM, Curve, MaskingInputs, MaskingResult, make_curves, measure_masking
from infoscope.predictions.config import PredictConfig
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.runtime.errors import InputError
from infoscope.sae.edit import EditMode, GroupEditor
from infoscope.sae.passes import measure_one
from infoscope.stages.masking.section import make_masking_section
from tests.support.prediction_samples import make_planted_inputs
from tests.support.probe_samples import CLASS_LATENTS, N_CLASSES, D, SampleCache, make_identity_sae

NUMBERS, CONFIG = [1, 2, 5, 99], PredictConfig(batch_images=7)
CARRIES = np.isin(np.arange(D), CLASS_LATENTS)
GROUPS = {"low": CARRIES, "high": ~CARRIES}
"""Latent c alone says that an image is of class c."""


@pytest.fixture(scope="module")
def codes() -> tuple[ImageCodes, np.ndarray]:
    """What fires in 60 training images, and their labels."""
    cache = SampleCache(60, 1)
    found = measure_one(cache, measure_image_codes(make_identity_sae(), 0.2)).compute()  # pyright: ignore[reportArgumentType]
    return found, cache.classes


@pytest.fixture(scope="module")
def masking(codes: tuple[ImageCodes, np.ndarray]) -> MaskingInputs:
    planted = make_planted_inputs()
    curves = make_curves(*codes, N_CLASSES, NUMBERS, GROUPS, n_draws=3, seed=0)
    by_position = planted.classes[::-1]  # rows of the cache are not positions
    return MaskingInputs(planted.inputs, planted.head, curves, NUMBERS, by_position)


@pytest.fixture(scope="module")
def result(masking: MaskingInputs) -> MaskingResult:
    return measure_masking(masking, CONFIG)


def read_top1(result: MaskingResult, curve: str, n: int, keeps: bool) -> set[float]:
    """Top-1 of both ways to treat the error, which this SAE has none of."""
    places = [i for i, mask in enumerate(result.masks) if (mask.curve, mask.n_latents, mask.keeps) == (curve, n, keeps)]
    return {result.top1(place) for place in places}


def test_a_class_is_found_with_its_latent_alone_and_lost_without_it(result: MaskingResult) -> None:
    guessed = {result.n_images[0] / result.n_images.sum()}  # of equal logits the first is taken
    for curve in (CLASS, "low"):
        for n in (1, 2, 5, D):
            assert read_top1(result, curve, n, True) == {1.0}
            assert read_top1(result, curve, n, False) == guessed
    for n in (1, 2, 5, D):
        assert read_top1(result, "high", n, True) == guessed
        assert read_top1(result, "high", n, False) == {1.0}
    one = next(i for i, mask in enumerate(result.masks) if mask.curve == CLASS and not mask.keeps)
    assert result.true_prob(one) == pytest.approx(1 / N_CLASSES)
    np.testing.assert_allclose(result.class_top1(one), [1, 0, 0])


def test_all_kept_are_the_original_tokens_bit_for_bit_and_all_dropped_are_none(masking: MaskingInputs) -> None:
    rough = replace(masking, inputs=replace(masking.inputs, sae=make_identity_sae(k=2)))
    tokens, everything = rough.inputs.load(np.arange(6)), torch.ones(D, dtype=torch.bool)
    group = GroupEditor(rough.inputs.sae, tokens.patches)
    assert not torch.equal(group.x_hat, group.x)
    edited = dict(zip(rough.list_masks(labels := np.arange(6) % 3), rough.edit(tokens, labels), strict=True))
    expected = {
        (True, True): tokens.patches,
        (True, False): group.x_hat,
        (False, True): group.edit(everything, EditMode.error_preserving),
        (False, False): group.edit(everything, EditMode.reconstruct),
    }
    found = {
        (mask.keeps, mask.error_kept): of.patches
        for mask, of in edited.items()
        if mask.curve == CLASS and mask.n_latents == D
    }
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(("patches", "prefix"), [(True, False), (True, True)])
def test_every_mask_is_what_its_class_alone_would_be_edited_to(
    masking: MaskingInputs, patches: bool, prefix: bool
) -> None:
    inputs = replace(masking.inputs, sae=make_identity_sae(k=3), edits_patches=patches, edits_prefix=prefix)
    some, labels = replace(masking, inputs=inputs, sae_bias=0.1), np.array([2, 0, 2, 1])
    tokens = inputs.load(np.arange(4))
    curves = {(curve.name, curve.draw): curve for curve in some.curves}
    masks = some.list_masks(labels)
    for mask, edited in zip(masks, some.edit(tokens, labels), strict=True):
        curve = curves[mask.curve, mask.draw]
        for image, label in enumerate(labels):
            chosen = torch.zeros(D, dtype=torch.bool)
            if mask.n_latents == D:
                chosen |= torch.from_numpy(curve.members)
            else:
                order = curve.order[label, : mask.n_latents]
                chosen[order[order >= 0]] = True
            mode = EditMode.error_preserving if mask.error_kept else EditMode.reconstruct
            for name in ("patches",) + ("prefix",) * prefix:
                raw = getattr(tokens, name)[image]
                expected = GroupEditor(inputs.sae, raw).edit(~chosen if mask.keeps else chosen, mode)
                expected = expected if mask.error_kept else expected + 0.1
                torch.testing.assert_close(getattr(edited, name)[image], expected)
        assert prefix or torch.equal(edited.prefix, tokens.prefix)


def test_random_latents_are_as_many_as_the_classs_and_fire(codes: tuple[ImageCodes, np.ndarray]) -> None:
    found, labels = codes
    living = np.unique(found.latents)
    curves = make_curves(found, labels, N_CLASSES + 1, [1, 8, 15], {}, n_draws=4, seed=0)
    assert [curve.draw for curve in curves] == [None, 0, 1, 2, 3]
    own = curves[0].order >= 0
    assert own[:N_CLASSES].any(axis=1).all()
    assert not own[N_CLASSES].any()  # a class of which there is no image
    assert not own.all()  # and no class has as many as 15
    for curve in curves[1:]:
        np.testing.assert_array_equal(curve.order >= 0, own)
        assert np.isin(curve.order[own], living).all()
        for of_class, n in zip(curve.order, own.sum(1), strict=True):
            assert len(set(of_class[:n])) == n
    again = make_curves(found, labels, N_CLASSES + 1, [1, 8, 15], {}, n_draws=4, seed=0)
    assert all(np.array_equal(one.order, other.order) for one, other in zip(curves, again, strict=True))
    assert len({curve.order.tobytes() for curve in curves[1:]}) == 4


def test_groups_keep_the_order_of_the_class(codes: tuple[ImageCodes, np.ndarray]) -> None:
    whole, low, high = make_curves(*codes, N_CLASSES, [15], GROUPS, n_draws=0, seed=0)
    for of_class, *of_groups in zip(whole.order, low.order, high.order, strict=True):
        for members, of_group in zip((CARRIES, ~CARRIES), of_groups, strict=True):
            ranked = of_class[of_class >= 0]
            assert of_group[of_group >= 0].tolist() == ranked[members[ranked]].tolist()


def test_a_class_with_fewer_latents_uses_those_it_has_and_is_counted(masking: MaskingInputs) -> None:
    order = np.array([[4, 9], [3, -1], [-1, -1]])
    curve = Curve(CLASS, order, np.ones(D, dtype=bool))
    places = curve.find_places(np.array([0, 1, 2]), D)
    assert (places < 2).nonzero().tolist() == [[0, 4], [0, 9], [1, 3]]
    assert (places < 1).nonzero().tolist() == [[0, 4], [1, 3]]
    assert (places < D).all()
    few = replace(masking, curves=[curve], n_latents=[1, 2])
    masks = few.list_masks(np.array([0, 0, 1]))  # no image of class 2
    told = {mask.n_latents: (mask.n_chosen, mask.n_short, mask.n_distinct) for mask in masks}
    assert told == {1: (1.0, 0, 2), 2: (pytest.approx(5 / 3), 1, 3), D: (D, 0, D)}
    shared = replace(curve, order=np.array([[4, 9], [9, 4], [1, 2]]))
    assert [shared.count_distinct(n, np.array([0, 1])) for n in (1, 2)] == [2, 2]


def test_parts_batches_and_the_disk_change_nothing(
    masking: MaskingInputs, result: MaskingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infoscope.analyses.masking.PART_IMAGES", 6)
    seen: list[tuple[int, int]] = []
    again = measure_masking(
        masking, PredictConfig(batch_images=4), lambda _, done, of: seen.append((done, of)), tmp_path
    )
    assert seen[-1] == (25, 25)
    again.save(tmp_path)
    loaded = MaskingResult.load(tmp_path)
    assert (loaded.masks, loaded.class_names, loaded.ranked_on) == (result.masks, result.class_names, "train")
    np.testing.assert_array_equal(loaded.n_right, result.n_right)
    np.testing.assert_allclose(loaded.prob_sums, result.prob_sums, rtol=1e-5)
    assert loaded.n_images.sum() == 25


def test_drawn_images_take_part_and_a_class_without_any_counts_nowhere(masking: MaskingInputs) -> None:
    few = measure_masking(masking, PredictConfig(n_images=2, seed=3))
    assert few.n_images.sum() == 2
    empty = few.n_images == 0
    assert empty.any()
    assert few.top1(0) == 1.0
    np.testing.assert_array_equal(np.isnan(few.class_top1(0)), empty)


def test_nothing_to_predict_and_numbers_that_are_none_are_refused(masking: MaskingInputs) -> None:
    class Empty(SampleCache):
        def __len__(self) -> int:
            return 0

    inputs = replace(masking.inputs, tokens=Empty(3, 0))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="Expected test images to predict, got none"):
        measure_masking(replace(masking, inputs=inputs), CONFIG)
    broken = ZeroShotHead(masking.head.class_names, torch.full((N_CLASSES, D), torch.nan), 10.0)
    with pytest.raises(InputError, match="masked tokens hold NaN"):
        measure_masking(replace(masking, head=broken), CONFIG)


def test_one_way_of_treating_the_error_is_enough(masking: MaskingInputs) -> None:
    few = measure_masking(replace(masking, modes=[EditMode.error_preserving]), CONFIG)
    assert {mask.error_kept for mask in few.masks} == {True}
    assert len(few.masks) == len(few.n_right) == 2 * (4 + 3 * 3 + 4 + 4)
    assert {mask.draw for mask in few.masks if mask.curve == RANDOM} == {0, 1, 2}


def test_numbers_of_as_many_latents_as_there_are_leave_all_of_them(codes: tuple[ImageCodes, np.ndarray]) -> None:
    planted, numbers = make_planted_inputs(), [D, 500]
    curves = make_curves(*codes, N_CLASSES, numbers, GROUPS, n_draws=2, seed=0)
    result = measure_masking(
        MaskingInputs(planted.inputs, planted.head, curves, numbers, planted.classes[::-1]), CONFIG
    )
    assert {(mask.curve, mask.n_latents) for mask in result.masks} == {(CLASS, D), ("low", D), ("high", D)}
    assert read_top1(result, CLASS, D, True) == {1.0}
    section = make_masking_section({0: result}, numbers)
    assert [record["latents"] for record in section.tables["masking"].records()] == ["all"] * 4
    assert any(f"the SAE has {D} latents: {D}, 500;" in note for note in section.tables["masking"].notes)
    assert section.findings[0].startswith("Zero-shot top-1 is 100.0% on the original tokens")
    assert section.figures["masking"].draw().axes
    assert not any("Left out" in note for note in make_masking_section({0: result}, [1]).tables["masking"].notes)
