from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from infoscope.analyses import neighbours
from infoscope.analyses.alignment import MIN_IMAGES
from infoscope.analyses.image_codes import ImageCodes
from infoscope.analyses.neighbours import (
    Matchable,
    compute_class_shares,
    find_coactive,
    find_decoder_neighbours,
    find_matches,
)
from infoscope.analyses.top_sets import TopSets

N_IMAGES, D_SAE, D_IN, DEAD = 60, 23, 6, 4


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK_VALUES", 100)  # blocks of few rows, the last one shorter


def make_codes(means: np.ndarray, index: np.ndarray | None = None) -> ImageCodes:
    """Codes of images in which latents have these mean activations [n_images, d_sae]."""
    rows, latents = np.nonzero(means)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(means)))])
    values, ones = means[rows, latents].astype(np.float32), np.ones(len(rows), np.uint16)
    index = np.arange(len(means)) if index is None else index
    return ImageCodes(starts, latents.astype(np.int32), values, values, ones, ones, index, means.shape[1], 4, 0.0)


def draw_means(seed: int = 0, n_images: int = N_IMAGES, d_sae: int = D_SAE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.05, 0.9, d_sae)
    found = rng.random((n_images, d_sae)) * (rng.random((n_images, d_sae)) < rates)
    found[:, DEAD] = 0
    return found.astype(np.float32).astype(np.float64)


def draw_rows(seed: int = 0) -> torch.Tensor:
    rows = torch.randn(D_SAE, D_IN, generator=torch.Generator().manual_seed(seed))
    return rows * torch.linspace(0.1, 9, D_SAE)[:, None]


def correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlations of the columns that count, 0 of others."""
    counts = [((of > 0).sum(0) >= MIN_IMAGES) & (of.std(0) > 1e-9) for of in (a, b)]
    units = [(of - of.mean(0)) / np.where(of.std(0) > 1e-9, of.std(0), 1) / np.sqrt(len(of)) for of in (a, b)]
    return units[0].T @ units[1] * counts[0][:, None] * counts[1]


def compare(found: TopSets, alike: np.ndarray, n: int, decimals: int) -> None:
    """Hold what was found against a table [n_a, n_b] in which all is told."""
    for row, (columns, values) in enumerate(zip(found.columns, found.values, strict=True)):
        order = [j for j in np.argsort(-alike[row].round(decimals), kind="stable") if alike[row, j] > 10.0**-decimals]
        assert columns[columns >= 0].tolist() == order[:n]
        np.testing.assert_allclose(values[: len(order[:n])], alike[row, order[:n]], atol=10.0**-decimals)
        assert (values[len(order) :] == 0).all()


@pytest.mark.parametrize("n", [1, 5, D_SAE + 2])
def test_decoder_neighbours_are_what_brute_force_finds(n: int) -> None:
    rows, alive = draw_rows(), np.arange(D_SAE) != DEAD
    rows[7] = 0
    found = find_decoder_neighbours(rows, alive, n)
    unit = rows.double().numpy()
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-30) * alive[:, None]
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, 0)
    compare(found, cosines, n, decimals=5)
    for excluded in (DEAD, 7):
        assert (found.columns[excluded] == -1).all()
        assert excluded not in found.columns


def test_cosines_in_closed_form_with_ties() -> None:
    rows = torch.tensor([[2.0, 0], [1, 0], [0, 3], [3, 3], [-1, 0], [5, 0]])
    found = find_decoder_neighbours(rows, np.ones(6, dtype=bool), 2)
    assert found.columns.tolist() == [[1, 5], [0, 5], [3, -1], [0, 1], [-1, -1], [0, 1]]
    half = 0.5**0.5
    expected = [[1, 1], [1, 1], [half, 0], [half, half], [0, 0], [1, 1]]
    np.testing.assert_allclose(found.values, expected, atol=1e-6)


@pytest.mark.parametrize("n", [1, 5, D_SAE + 2])
def test_coactive_latents_are_what_brute_force_finds(n: int) -> None:
    means = draw_means()
    means[:, 9] = 0.5  # the same in all images
    means[: MIN_IMAGES - 1, 10] = means[: MIN_IMAGES - 1, 11] = 1.0  # alike, and in too few images
    means[MIN_IMAGES - 1 :, [10, 11]] = 0
    found = find_coactive(make_codes(means), n)
    alike = correlate(means, means)
    np.fill_diagonal(alike, 0)
    compare(found, alike, n, decimals=6)
    for excluded in (DEAD, 9, 10, 11):
        assert (found.columns[excluded] == -1).all()
        assert excluded not in found.columns


def test_correlations_in_closed_form_with_ties() -> None:
    half = np.repeat([1.0, 0], MIN_IMAGES)
    means = np.stack([half, 3 * half, 1 - half, 2 * half, half + 1], axis=1)
    found = find_coactive(make_codes(means), 3)
    assert found.columns.tolist() == [[1, 3, 4], [0, 3, 4], [-1, -1, -1], [0, 1, 4], [0, 1, 3]]
    np.testing.assert_allclose(found.values, (found.columns >= 0).astype(float), atol=1e-9)


def test_of_one_image_nothing_is_correlated() -> None:
    found = find_coactive(make_codes(np.ones((1, 5))), 2)
    assert (found.columns == -1).all()
    assert (found.values == 0).all()


def test_class_shares_are_what_brute_force_finds() -> None:
    means, labels = draw_means(3), np.random.default_rng(5).integers(0, 7, N_IMAGES)
    means[:, 2] = (labels == 3) + (labels == 6)
    found = compute_class_shares(make_codes(means), labels, 9, 5)  # classes 7 and 8 have no image
    sums = np.stack([means[labels == of].sum(0) for of in range(9)], axis=1)
    shares = sums / np.maximum(sums.sum(1, keepdims=True), 1e-30)
    compare(found, shares, 5, decimals=9)
    assert found.columns[DEAD].tolist() == [-1] * 5
    assert sorted(found.columns[2, :2]) == [3, 6]
    assert found.columns[2, 2] == -1


def make_matchable(seed: int, codes_seed: int, **changes: object) -> Matchable:
    alive = np.arange(D_SAE) != DEAD
    made = Matchable(f"sae{seed}", "tokens", "images", draw_rows(seed), alive, make_codes(draw_means(codes_seed)))
    return replace(made, **changes)


def test_an_sae_is_matched_with_itself() -> None:
    found = find_matches(make_matchable(0, 0), make_matchable(0, 1, images="others", reads="elsewhere"))
    assert found.latents.tolist() == list(range(D_SAE))
    assert (found.values == 1).all()
    assert found.how == "the same SAE: each latent is itself"


def test_saes_of_the_same_tokens_are_matched_by_their_decoders() -> None:
    one, order = make_matchable(0, 0), np.random.default_rng(0).permutation(D_SAE)
    other = replace(one, sae="other", W_dec=3 * one.W_dec[order], is_alive=one.is_alive[order], images="others")
    found = find_matches(one, other)
    expected = np.argsort(order)
    expected[DEAD] = -1
    assert found.latents.tolist() == expected.tolist()
    np.testing.assert_allclose(found.values[found.latents >= 0], 1, atol=1e-6)
    assert np.isnan(found.values[DEAD])
    assert found.how.startswith("largest cosine of decoder rows")
    unit = [torch.nn.functional.normalize(of.double(), dim=1).numpy() for of in (one.W_dec, draw_rows(8))]
    again = find_matches(one, make_matchable(8, 0))
    cosines = unit[0] @ unit[1].T * one.is_alive[:, None] * one.is_alive
    compare(TopSets(again.latents[:, None], np.nan_to_num(again.values)[:, None]), cosines, 1, decimals=5)


def test_saes_of_other_tokens_are_matched_over_the_images_that_both_were_shown() -> None:
    one = make_matchable(0, 0)
    index = np.random.default_rng(1).permutation(90)[:50]  # of which some are images of the other
    means = draw_means(2, 50, 31)
    common = np.flatnonzero(index < N_IMAGES)
    means[common, 17] = draw_means(0)[index[common], 12]
    other = make_matchable(
        1,
        0,
        reads="another block",
        W_dec=torch.randn(31, 4),
        is_alive=np.ones(31, bool),
        codes=make_codes(means, index),
    )
    found = find_matches(one, other)
    alike = correlate(draw_means(0)[index[common]], means[common])
    compare(TopSets(found.latents[:, None], np.nan_to_num(found.values)[:, None]), alike, 1, decimals=6)
    assert found.latents[12] == 17
    assert found.values[12] == pytest.approx(1)
    assert np.isnan(found.values[DEAD])
    assert found.how == f"largest correlation of mean activation over {len(common)} images that both were shown"
    assert 20 < len(common) < 50


@pytest.mark.parametrize("n_shared", [None, 0, MIN_IMAGES - 1])
def test_what_cannot_be_matched_is_said(n_shared: int | None) -> None:
    one, codes = make_matchable(0, 0), make_codes(draw_means(), np.arange(N_IMAGES) + N_IMAGES - (n_shared or 0))
    images = "others" if n_shared is None else "images"
    found = find_matches(one, make_matchable(1, 0, reads="another block", images=images, codes=codes))
    assert isinstance(found, str)
    said = "each was shown different images" if n_shared is None else f"only {n_shared} images were shown to both"
    assert found.startswith("They read different tokens, and ")
    assert said in found
    assert find_matches("gone", one) == find_matches(one, "gone") == "gone"
