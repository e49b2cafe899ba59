"""Names of latents: planted directions, random ones, synonyms, ties, and the arithmetic against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import hypergeom

from infoscope.analyses.concepts import (
    MIN_COMPARED,
    Edit,
    associate,
    choose_levels,
    find_near_codes,
    find_nearest,
    fit_slopes,
    measure_gaps,
    predict_classes,
    search_concept,
    sweep_concept,
)
from infoscope.analyses.named_latents import Named
from infoscope.analyses.naming import (
    LEVEL,
    Rule,
    average_top,
    count_by_chance,
    draw_alike,
    judge_at_random,
    judge_names,
    measure_excess,
    name_directions,
)
from infoscope.analyses.top_sets import find_top

RULE = Rule(0.42, 2.0)
N_WORDS, WIDTH = 40, 256


@pytest.fixture
def texts() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N_WORDS, WIDTH)) * np.linspace(0.5, 2, N_WORDS)[:, None]


def test_rows_that_are_texts_are_named_by_them_and_random_ones_have_no_valid_name(texts: np.ndarray) -> None:
    rng, of = np.random.default_rng(1), np.arange(N_WORDS)
    planted = name_directions(3 * texts + 0.1 * rng.standard_normal(texts.shape), texts, of)
    np.testing.assert_array_equal(planted.concepts[:, 0], of)
    assert planted.find_valid(RULE).all()
    random = name_directions(rng.standard_normal((200, WIDTH)), texts, of)
    assert not random.find_valid(RULE).any()
    counts = count_by_chance(texts, texts, of, RULE, draw_alike(texts, 0.0), 3, seed=0)
    assert counts.shape == (2, 3)
    assert (counts == 0).all()
    drawn = draw_alike(texts, 1.0)(rng) - 1.0
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), np.linalg.norm(texts, axis=1))


def test_names_equal_a_loop(texts: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    directions, concept_of = rng.standard_normal((30, WIDTH)), np.sort(np.arange(N_WORDS) % 11)
    directions[7] = 0
    whole = name_directions(directions, texts, concept_of)
    monkeypatch.setattr("infoscope.analyses.naming.MAX_COSINES", 3 * N_WORDS)
    for names in (whole, name_directions(directions, texts, concept_of)):
        for row, direction in enumerate(directions):
            if row == 7:
                assert (names.concepts[row] == -1).all()
                assert np.isnan(names.cosines[row]).all()
                assert math.isnan(names.ratio[row])
                continue
            best = [-1.0] * 11
            for word, text in enumerate(texts):
                cosine = float(direction @ text / np.linalg.norm(direction) / np.linalg.norm(text))
                best[concept_of[word]] = max(best[concept_of[word]], cosine)
            order = sorted(range(11), key=lambda one, of=best: -of[one])
            assert names.concepts[row].tolist() == order[:3]
            np.testing.assert_allclose(names.cosines[row], [best[one] for one in order[:3]], atol=1e-6)
            np.testing.assert_allclose(names.ratio[row], best[order[0]] / best[order[1]], rtol=1e-6)


def test_synonyms_are_one_concept_and_other_equal_words_leave_none_valid() -> None:
    texts = np.array([[1.0, 0, 0], [1.0, 0.01, 0], [0, 1.0, 0]])
    merged = name_directions(texts[:1], texts, np.array([0, 0, 1]), 5)
    assert merged.concepts.tolist() == [[0, 1]]
    assert merged.ratio[0] == np.inf
    assert merged.find_valid(RULE).all()
    tied = name_directions(texts[:1], texts[[0, 0, 2]], np.arange(3))
    assert tied.concepts[0].tolist() == [0, 1, 2]  # the lower of equal ones
    assert tied.ratio[0] == 1
    assert not tied.find_valid(RULE).any()
    away = name_directions(np.array([[0.0, -1.0, -1.0]]), texts[[1, 2]], np.arange(2))
    assert math.isnan(away.ratio[0])
    assert not away.find_valid(RULE).any()


def test_over_represented_values_and_right_names() -> None:
    rng, n_images, n_top = np.random.default_rng(3), 60, 8
    values = rng.random((n_images, 5)) < [0.5, 0.2, 0.3, 1.0, 0.4]
    acts = rng.random((4, n_images)) * (rng.random((4, n_images)) < 0.6)
    acts[0] = values[:, 1] * (1 + rng.random(n_images))  # latent 0 is value 1
    acts[3] = 0
    acts[3, :3] = 1  # too few images
    top = find_top(csr_array(acts), n_top)
    found = measure_excess(top, values)
    for latent in range(3):
        for value in range(5):
            share, count = values[:, value].mean(), values[top.columns[latent], value].sum()
            variance = n_top * share * (1 - share) * (n_images - n_top) / (n_images - 1)
            expected = (count - n_top * share) / math.sqrt(variance) if variance else math.nan
            np.testing.assert_allclose(found.z[latent, value], expected, rtol=1e-6)
            by_chance = sum(
                hypergeom.pmf(more, n_images, values[:, value].sum(), n_top) for more in range(int(count), n_top + 1)
            )
            assert found.is_beyond[latent, value] == (by_chance < LEVEL / 5)
    assert np.isnan(found.z[3]).all()
    value_of = np.array([2, 1, -1])  # of three concepts
    right = judge_names(np.array([1, 0, 2, 1]), found, value_of)
    assert right.is_best[0] == right.is_beyond[0] == 1
    assert np.isnan(right.is_best[2:]).all()  # a name that is no value, and a latent with too few images
    assert right.is_best[1] == (found.z[1, 2] >= np.nanmax(found.z[1]))
    assert judge_names(np.array([0]), found.take(np.array([True, False, False, False])), value_of).is_best[0] == 0
    shares = judge_at_random(np.array([1, 0, 0, -1]), found, value_of, 40, seed=0)
    assert 0 < shares[0].mean() < 1
    vectors = rng.standard_normal((n_images, 6))
    means = average_top(top, vectors, vectors.mean(axis=0))
    np.testing.assert_allclose(means[1], vectors[top.columns[1]].mean(axis=0) - vectors.mean(axis=0))
    assert (means[3] == 0).all()


def make_edit(n_images: int, rows: np.ndarray, seed: int) -> Edit:
    rng = np.random.default_rng(seed)
    acts = rng.random((n_images, len(rows))) * (rng.random((n_images, len(rows))) < 0.5)
    return Edit(acts, rows, rng.uniform(0.5, 2, n_images))


def test_a_sweep_equals_a_loop_over_images() -> None:
    rng = np.random.default_rng(4)
    x, edit = rng.standard_normal((9, 5)), make_edit(9, rng.standard_normal((2, 5)), 5)
    weight, bias, levels = rng.standard_normal((5, 3)), rng.standard_normal(3), choose_levels(edit.acts)
    assert (levels[0] == 0).all()
    assert (np.diff(levels, axis=0) >= 0).all()
    curve = sweep_concept(x, edit, levels, weight, bias)
    for place, values in enumerate(levels):
        probs = []
        for image in range(9):
            moved = x[image].copy()
            for latent in range(2):
                moved += edit.factor[image] * (values[latent] - edit.acts[image, latent]) * edit.rows[latent]
            logits = np.exp(moved @ weight + bias)
            probs.append(logits / logits.sum())
        np.testing.assert_allclose(curve[place], np.mean(probs, axis=0), atol=1e-6)
    slopes = fit_slopes(curve, levels)
    height = levels.sum(axis=1) / levels.sum(axis=1)[-1]
    np.testing.assert_allclose(slopes, np.polyfit(height, curve, 1)[0], atol=1e-9)
    assert slopes.sum() == pytest.approx(0, abs=1e-9)  # probabilities sum to 1 at each level
    assert np.isnan(fit_slopes(curve, np.zeros(levels.shape))).all()


def test_a_search_by_a_planted_concept_finds_it() -> None:
    rng = np.random.default_rng(6)
    has = rng.random(80) < 0.25
    row = np.eye(12)[:1]
    acts = (has * rng.uniform(4, 5, 80))[:, None]
    x = rng.standard_normal((80, 12)) * [0.1, *[3.0] * 11] + acts @ row
    edit = Edit(acts, row, np.ones(80))
    found = search_concept(x, edit, np.array([40.0]), has, 5, np.random.default_rng(0))
    assert found.restricted == 1
    assert found.base == has.mean()
    assert found.plain > found.zeroed
    assert found.raised > 0.9 > found.plain_without
    bare = search_concept(x, edit, None, has, 5, np.random.default_rng(0))
    assert math.isnan(bare.zeroed)
    assert math.isnan(bare.raised)
    own = np.array([3, 8])
    near = find_nearest(x[own], x, own, 79)
    assert sorted(near[0]) == [i for i in range(80) if i != 3]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert near[1, 0] == max((i for i in range(80) if i != 8), key=lambda i: unit[i] @ unit[8])
    assert find_near_codes(acts[own], acts, own, 3).shape == (2, 3)
    assert find_nearest(x[:1], x, np.array([-1]), 1).tolist() == [[0]]


def test_as_many_others_are_drawn_or_none() -> None:
    named = Named({0: np.array([1, 2])}, np.arange(5), np.zeros((6, 2)), True, np.ones(3))
    drawn = named.draw_others(np.array([1, 2]), np.random.default_rng(0))
    assert drawn is not None
    assert set(drawn.tolist()) < {0, 3, 4}
    assert len(drawn) == 2
    assert named.draw_others(np.array([0, 1, 2]), np.random.default_rng(0)) is None


def test_couplings_of_the_data_are_shares_beyond_the_share_in_all() -> None:
    has, labels = np.array([[1, 0], [1, 0], [0, 0], [0, 0]], dtype=bool), np.array([2, 2, 0, 1])
    found = associate(has, labels, 3)
    np.testing.assert_allclose(found[0], [-0.25, -0.25, 0.5])
    assert np.isnan(found[1]).all()


def test_gaps_are_of_images_of_other_classes() -> None:
    rng = np.random.default_rng(8)
    probs = predict_classes(rng.standard_normal((60, 4)), rng.standard_normal((4, 3)), rng.standard_normal(3))
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    labels, has = rng.integers(0, 3, 60), rng.random((60, 3)) < [0.5, 0.3, 0.02]
    found = measure_gaps(probs, labels, has)
    for concept, label in np.ndindex(2, 3):
        other = labels != label
        own, without = probs[other & has[:, concept], label], probs[other & ~has[:, concept], label]
        assert min(len(own), len(without)) >= MIN_COMPARED
        assert found[concept, label] == pytest.approx(own.mean() - without.mean())
    assert np.isnan(found[2]).all()  # too few have it
    probs[:, 1] = np.nan
    assert np.isnan(measure_gaps(probs, labels, has)).any(axis=0).tolist() == [True, True, True]
    assert np.isfinite(measure_gaps(probs, labels, has)[:2]).tolist() == [[True, False, True]] * 2
