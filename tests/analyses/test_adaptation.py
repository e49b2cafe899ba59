"""A model and the adapted one by one SAE: planted remaps, new latents, and what chance alone changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from infoscope.analyses.adaptation import (
    ACROSS,
    ADAPTED,
    BASE,
    HALVES,
    MIXED,
    SAME,
    compare_codes,
    compute_divergence,
    compute_jaccard,
)
from infoscope.analyses.labels import rank_class_latents
from infoscope.analyses.top_sets import TopSets
from infoscope.runtime.errors import InputError
from tests.analyses.test_labels import make_codes

N_CLASSES, N_EACH, N_LATENTS = 4, 40, 12
LABELS = np.arange(N_CLASSES * N_EACH) % N_CLASSES


def draw_counts(own: dict[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return strong patches of 12 latents: those of `own` fire for one class, 6 to 9 for none in particular."""
    rates = np.zeros((N_CLASSES, N_LATENTS))
    for latent, label in own.items():
        rates[label, latent] = 4
    rates[:, 6:10] = 0.3
    return rng.poisson(rates[LABELS])


@pytest.fixture(scope="module")
def counts() -> tuple[np.ndarray, np.ndarray]:
    """Latents 0 to 3 are those of the classes; 2 and 3 swap, 5 is new, 4 is gone."""
    rng = np.random.default_rng(0)
    base = draw_counts({0: 0, 1: 1, 2: 2, 3: 3, 4: 0}, rng)
    return base, draw_counts({0: 0, 1: 1, 2: 3, 3: 2, 5: 1}, rng)


def test_planted_changes_are_found(counts: tuple[np.ndarray, np.ndarray]) -> None:
    found = compare_codes(*map(make_codes, counts), LABELS, N_CLASSES, 2)
    assert found.find_comparable(10)[:4].all()
    changes = found.find_changes(10, 2.0)
    assert [np.flatnonzero(of).tolist() for of in changes] == [[2, 3], [5], [4]]
    assert found.top_class[:, 2].tolist() == [2, 3]
    assert found.count_remapped_halves(10) < 0.5
    assert np.nan_to_num(found.settled[:, 6:10]).mean() < 0.9  # those of no class have none that is settled
    assert found.images_on[BASE].tolist() == (counts[BASE] > 0).sum(0).tolist()
    assert found.tokens_on[ADAPTED].tolist() == counts[ADAPTED].sum(0).tolist()
    assert found.token_rate[BASE, 0] == counts[BASE][:, 0].sum() / (160 * 16)
    assert found.rate_ratio[4] == 1 / (1 + counts[BASE][:, 4].sum())
    assert np.isnan(found.rate_ratio[10])
    # classes 0 to 3: one of two latents is lost, gained, swapped, swapped; halves of the model share its own
    assert found.jaccard[SAME, 2:].max() <= 1 / 3
    assert found.divergence[SAME, 2:].min() > 1 > found.divergence[HALVES].max()
    assert (found.jaccard[HALVES, :2] > found.jaccard[ACROSS, 2:].max()).all()


def test_the_same_codes_change_nothing(counts: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    codes = make_codes(counts[BASE])
    found = compare_codes(codes, codes, LABELS, N_CLASSES, 3)
    assert found.jaccard[SAME].tolist() == [1] * N_CLASSES
    assert found.divergence[SAME] == pytest.approx(np.zeros(N_CLASSES))
    assert not np.any(found.find_changes(1, 1.0))
    np.testing.assert_array_equal(found.jaccard[ACROSS], found.jaccard[HALVES])
    np.testing.assert_array_equal(found.divergence[ACROSS], found.divergence[HALVES])
    np.testing.assert_array_equal(found.class_latents[ADAPTED], rank_class_latents(codes, LABELS, N_CLASSES, 3))
    found.save(tmp_path)
    loaded = type(found).load(tmp_path)
    for name, value in vars(found).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)


def test_chance_alone_is_what_halves_say() -> None:
    """Latents that fire for no class: model and adapted one, drawn alike, differ as two halves of the model do."""
    rng = np.random.default_rng(1)
    base, adapted = (make_codes(rng.poisson(0.5, (160, 60))) for _ in range(2))
    found = compare_codes(base, adapted, LABELS, N_CLASSES, 5, n_draws=40)
    assert found.jaccard[ACROSS].mean() == pytest.approx(found.jaccard[HALVES].mean(), abs=0.03)
    assert found.divergence[ACROSS].mean() == pytest.approx(found.divergence[HALVES].mean(), rel=0.15)


def test_jaccard_and_divergence_are_those_of_the_formulas() -> None:
    one = TopSets(np.array([[0, 1, 2], [3, -1, -1], [-1, -1, -1]]), np.zeros((3, 3)))
    other = TopSets(np.array([[2, 5, 1], [3, 4, 6], [0, 1, 2]]), np.zeros((3, 3)))
    assert compute_jaccard(one, other, 7) == pytest.approx([0.5, 1 / 3, np.nan], nan_ok=True)
    counts, reference = np.array([[3.0, 1, 0], [0, 0, 0]]), np.array([[0.0, 2, 2], [1, 1, 1]])
    mean = np.array([0.25, 0.25, 0.5])
    q, p = (1 - MIXED) * counts[0] / 4 + MIXED * mean, (1 - MIXED) * reference[0] / 4 + MIXED * mean
    expected = [float((q * np.log(q / p)).sum()), np.nan]
    found = compute_divergence(csr_array(counts), csr_array(reference), mean)
    assert found == pytest.approx(expected, nan_ok=True)


def test_a_class_without_images_has_no_numbers(counts: tuple[np.ndarray, np.ndarray]) -> None:
    found = compare_codes(*map(make_codes, counts), LABELS, N_CLASSES + 1, 2)
    assert found.class_images.tolist() == [N_EACH] * N_CLASSES + [0]
    assert np.isnan(found.jaccard[:, -1]).all()
    assert np.isnan(found.divergence[:, -1]).all()
    assert np.isfinite(found.jaccard[:, :-1]).all()


def test_without_labels_there_are_rates(counts: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    found = compare_codes(*map(make_codes, counts), None, 0, 2)
    assert not found.has_labels
    assert not np.any(found.find_changes(1, 2.0))
    assert found.rate_ratio[5] > 100
    found.save(tmp_path)
    assert not type(found).load(tmp_path).has_labels


def test_other_images_are_refused(counts: tuple[np.ndarray, np.ndarray]) -> None:
    codes = make_codes(counts[BASE])
    with pytest.raises(InputError, match="tokens of the same images"):
        compare_codes(codes, replace(codes, image_index=codes.image_index + 1), LABELS, N_CLASSES, 2)
