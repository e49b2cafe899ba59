"""Cards in scenes: which scenes have one, what it changes, and what is known of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infoscope.data.config import Planted
from infoscope.data.scenes.factors import KINDS
from infoscope.data.scenes.planting import NOTHING, PLANTED_SHARE, choose_planted
from infoscope.data.scenes.render import IGNORE_LABEL
from infoscope.data.scenes.scene_set import PlantedScenes, SceneSet, make_scenes_fingerprint, save_scenes
from infoscope.runtime.errors import InputError

N, SIDE = 40, 64


def save(folder: Path, planted: Planted) -> Path:
    folder.mkdir()
    save_scenes(folder, 3, "test", N, SIDE, planted=planted)
    return folder


@pytest.mark.parametrize("planted", [Planted.text, Planted.picture])
def test_cards_change_a_corner_of_some_scenes_and_nothing_else(tmp_path: Path, planted: Planted) -> None:
    plain = SceneSet(save(tmp_path / "plain", Planted.nothing))
    cards = PlantedScenes(save(tmp_path / "cards", planted))
    has_card = cards.labels("planted") > 0
    assert 3 <= has_card.sum() <= 20
    for target in ("class", "texture", "place"):
        np.testing.assert_array_equal(cards.labels(target), plain.labels(target))
    for i in range(N):
        changed = (cards.images[i] != plain.images[i]).any(-1)
        assert changed.any() == has_card[i]
        if has_card[i]:
            rows, columns = changed.any(1).nonzero()[0], changed.any(0).nonzero()[0]
            assert rows[0] == 0 or rows[-1] == SIDE - 1
            assert columns[0] == 0 or columns[-1] == SIDE - 1
            assert (cards.label_maps[i][changed] == IGNORE_LABEL).all()
            assert (cards.depth_mm[i][changed] == 0).all()
        else:
            np.testing.assert_array_equal(cards.label_maps[i], plain.label_maps[i])
    shown = cards.labels("planted")[has_card] - 1
    assert (shown != cards.labels("class")[has_card]).all()
    assert cards.n_target_classes("planted") == 1 + len(KINDS)
    assert (SceneSet.spurious_target, PlantedScenes.spurious_target) == ("texture", "planted")
    with pytest.raises(InputError, match="got 'planted'"):
        plain.labels("planted")


def test_a_quarter_of_the_scenes_has_a_card_of_any_other_kind() -> None:
    words = [choose_planted(0, "train", i, "ring") for i in range(2000)]
    assert np.mean([word != NOTHING for word in words]) == pytest.approx(PLANTED_SHARE, abs=0.03)
    assert set(words) == {NOTHING, *KINDS} - {"ring"}


def test_the_fingerprint_knows_of_cards_where_there_are_any() -> None:
    plain, text, picture, marks = (make_scenes_fingerprint(0, "test", 9, 64, one) for one in Planted)
    assert "planted" not in plain
    assert plain == make_scenes_fingerprint(0, "test", 9, 64)
    assert [of["planted"] for of in (text, picture, marks)] == ["text", "picture", "marks"]
