"""Marks in scenes: what is known of them, and that no window with parts of one mark alone can know it."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from infoscope.data.config import Planted
from infoscope.data.images import resize_image
from infoscope.data.sample import draw_images
from infoscope.data.scenes.factors import vocabulary
from infoscope.data.scenes.marks import COUNTS, FACTS, WORDS, choose_marks, draw_marks, say_marks
from infoscope.data.scenes.render import IGNORE_LABEL, render_split_part
from infoscope.data.scenes.scene_set import MarkedScenes, SceneSet, choose_scene_set, save_scenes

N, SIDE = 12, 104
STATES = [(a, b, c, d) for a, b, c, d in product((False, True), repeat=4)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return where the same scenes lie without marks and with them."""
    made = []
    for planted in (Planted.nothing, Planted.marks):
        made.append(tmp_path_factory.mktemp(planted.name))
        save_scenes(made[-1], 3, "test", N, SIDE, planted=planted)
    return made[0], made[1]


@pytest.mark.parametrize("name", FACTS)
def test_no_mark_alone_says_anything_of_a_fact(name: str) -> None:
    fact = FACTS[name]
    share = Fraction(sum(map(fact, STATES)), 16)
    assert share == {"balanced": Fraction(3, 8), "symmetric": Fraction(1, 4)}.get(name, Fraction(1, 2))
    for mark, colour in product(range(4), (False, True)):
        seen = [fact(state) for state in STATES if state[mark] == colour]
        assert Fraction(sum(seen), len(seen)) == share


def test_the_number_of_red_marks_is_no_such_fact() -> None:
    seen = [sum(state) for state in STATES if state[0]]
    assert Fraction(sum(seen), len(seen)) != Fraction(sum(map(sum, STATES)), 16)


def test_colours_are_fair_coins_of_their_own() -> None:
    drawn = np.array([choose_marks(0, "train", i) for i in range(3000)], dtype=float)
    np.testing.assert_allclose(drawn.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(4), atol=0.06)


@pytest.mark.parametrize(("grid", "patch_px", "side"), [(12, 8, 7), (13, 8, 8), (16, 14, 9), (17, 14, 10), (14, 16, 7)])
def test_no_window_up_to_a_side_holds_anything_of_two_marks(grid: int, patch_px: int, side: int) -> None:
    scene = render_split_part(1, "test", 0, 1, SIDE if patch_px == 8 else 240)[0]
    blue = resize_image(draw_marks(scene, (False,) * 4).image, grid * patch_px).astype(int)
    touched = []  # [4][grid, grid]: the patches that a mark's colour changes
    for mark in range(4):
        red = resize_image(draw_marks(scene, tuple(i == mark for i in range(4))).image, grid * patch_px)
        changed = (red != blue).any(-1)
        touched.append(changed.reshape(grid, patch_px, grid, patch_px).any((1, 3)))

    def most_marks(length: int) -> int:
        corners = product(range(grid - length + 1), repeat=2)
        return max(sum(of[y : y + length, x : x + length].any() for of in touched) for y, x in corners)

    assert most_marks(side) == 1
    assert most_marks(side + 1) >= 2


def test_marks_lie_in_both_crops_and_change_nothing_else(folders: tuple[Path, Path]) -> None:
    plain, marked = SceneSet(folders[0]), MarkedScenes(folders[1])
    for i in range(N):
        changed = (marked.images[i] != plain.images[i]).any(-1)
        unknown = (marked.label_maps[i] != plain.label_maps[i]) & (marked.label_maps[i] == IGNORE_LABEL)
        rows, columns = changed.any(1).nonzero()[0], changed.any(0).nonzero()[0]
        assert min(rows[0], columns[0]) >= 8  # a patch of the shift, and four pixels more
        assert max(rows[-1], columns[-1]) < SIDE - 8
        assert 4 * 90 < changed.sum() <= 4 * 116
        assert (marked.label_maps[i][changed] == IGNORE_LABEL).all()
        assert (marked.depth_mm[i][changed] == 0).all()
        assert not (unknown & ~changed).sum() > 40  # a rim on white ground changes no pixel
        reds, blues = ((marked.images[i] == colour).all(-1) for colour in ((255, 0, 0), (0, 0, 255)))
        halves = [np.s_[:52], np.s_[52:]]
        found = tuple(bool(reds[y, x].sum() > blues[y, x].sum()) for y, x in product(halves, repeat=2))
        assert found == marked.marks(i)


def test_targets_are_what_the_marks_are(folders: tuple[Path, Path]) -> None:
    marked = choose_scene_set(Planted.marks)(folders[1])
    assert isinstance(marked, MarkedScenes)
    assert marked.broad_facts == tuple(FACTS)
    assert SceneSet.broad_facts == ()
    states = [marked.marks(i) for i in range(N)]
    assert len(set(states)) > 4
    for name, fact in FACTS.items():
        np.testing.assert_array_equal(marked.labels(name), [fact(state) for state in states])
        assert marked.n_target_classes(name) == 2
    np.testing.assert_array_equal(marked.labels("n_red"), list(map(sum, states)))
    assert marked.n_target_classes("n_red") == len(COUNTS)
    np.testing.assert_array_equal(marked.labels("light"), SceneSet(folders[0]).labels("light"))
    assert draw_images(marked, 5, seed=0).broad_facts == marked.broad_facts


def test_captions_say_facts_in_words_of_their_own(folders: tuple[Path, Path]) -> None:
    plain, marked = SceneSet(folders[0]), MarkedScenes(folders[1])
    assert say_marks((True, True, False, True)) == "alike odd unbalanced asymmetric marks"
    assert say_marks((True, False, False, True)) == "unlike even balanced asymmetric marks"
    for i in range(N):
        assert marked.caption(i) == f"{say_marks(marked.marks(i))} and {plain.caption(i)}"
    parts = [say_marks((False,) * 4, np.random.default_rng(i)) for i in range(200)]
    assert {"", "alike marks", "even symmetric marks"} <= set(parts)
    assert not set(WORDS) & set(vocabulary())
    assert {word for part in parts for word in part.split()} <= set(WORDS)
