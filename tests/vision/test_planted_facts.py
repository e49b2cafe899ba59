"""The backbone that knows broad facts says them of every crop, in the directions that it declares."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from infoscope.data.config import Planted
from infoscope.data.images import resize_image
from infoscope.data.pictures import Pictures
from infoscope.data.scenes import marks
from infoscope.data.scenes.render import render_split_part
from infoscope.data.scenes.scene_set import MarkedScenes, save_scenes
from infoscope.sae.passes import measure_one
from infoscope.scope.confounds import ConfoundResult, measure_confounds
from infoscope.scope.ranking import ImageTokens
from infoscope.scope.scoring import ScopeConfig, score_latents
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.load import load_backbone
from infoscope.vision.planted import LIGHT_ANCHORS, LOCAL_MEASURES
from infoscope.vision.planted_facts import CODES, FACT_VALUES, FACTS, PlantedFacts
from tests.support.scope_samples import make_reading_sae, rank

GRID, PATCH_PX = 12, 8
CROP_PX = GRID * PATCH_PX
STATES = [(a, b, c, d) for a, b, c, d in product((False, True), repeat=4)]


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Sixteen scenes with marks in each state, and two without, one patch larger than a crop."""
    scenes = render_split_part(2, "train", 0, 18, CROP_PX + PATCH_PX)
    marked = [marks.draw_marks(scene, state) for scene, state in zip(scenes[:16], STATES, strict=True)]
    return np.stack([scene.image for scene in (*marked, *scenes[16:])])


def to_tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)


def read_codes(backbone: PlantedFacts, pictures: np.ndarray) -> Tensor:
    """Return what stands along each direction: [n, n_patches, n_codes]."""
    return backbone.tokens(to_tensor(pictures), -2).patches @ backbone.directions.T


def view(pictures: np.ndarray, name: str) -> np.ndarray:
    """Return a crop, or whole pictures squashed to its size."""
    if name == "whole":
        return np.stack([resize_image(picture, CROP_PX) for picture in pictures])
    top, left = {"crop 1": (0, 0), "crop 2": (8, 8), "other diagonal": (0, 8)}[name]
    return pictures[:, top : top + CROP_PX, left : left + CROP_PX]


@pytest.mark.parametrize("name", ["whole", "crop 1", "crop 2", "other diagonal"])
def test_every_view_says_every_fact(pictures: np.ndarray, name: str) -> None:
    assert tuple(marks.FACTS) == FACTS
    codes = read_codes(PlantedFacts(), view(pictures, name))
    expected = [[int(fact(state)) for fact in marks.FACTS.values()] for state in STATES]
    expected += [[FACT_VALUES.index("none")] * len(FACTS)] * 2
    first = {form: CODES.index(f"{form}, alike, no") for form in ("compact", "diffuse")}
    n = len(FACTS) * len(FACT_VALUES)
    diffuse = codes[..., first["diffuse"] : first["diffuse"] + n].unflatten(-1, (len(FACTS), len(FACT_VALUES)))
    assert (diffuse.argmax(-1) == torch.tensor(expected)[:, None]).all()
    torch.testing.assert_close(diffuse.sum(-1), torch.ones(18, GRID**2, len(FACTS)))
    compact = codes[..., first["compact"] : first["compact"] + n]
    torch.testing.assert_close(compact.amax(1), 8 * diffuse[:, 0].flatten(1), atol=1e-5, rtol=0)
    assert ((compact > 4).any(-1).sum(1) == 1).all()


def test_the_other_directions_are_local_codes_and_the_light(pictures: np.ndarray) -> None:
    codes = read_codes(PlantedFacts(), view(pictures, "whole"))
    assert codes.shape[-1] == len(CODES) == len(set(CODES))
    local, light = codes[..., : 4 * len(LOCAL_MEASURES)], codes[..., -len(LIGHT_ANCHORS) :]
    torch.testing.assert_close(local.mean(1), torch.full_like(local[:, 0], 0.25))
    torch.testing.assert_close(light.sum(-1), torch.ones(18, GRID**2))
    assert (light - light[:, :1]).abs().max() < 1e-5


def test_parts_with_one_mark_change_nothing_on_average_over_the_others() -> None:
    backbone, scene = PlantedFacts(), render_split_part(2, "train", 16, 17, CROP_PX + PATCH_PX)[0]

    def compose(kept: tuple[bool, ...], state: marks.Marks) -> Tensor:
        """The mean codes of pictures whose kept marks are those of a state, the others' those of every state."""
        mixed = [tuple(s if k else o for k, s, o in zip(kept, state, other, strict=True)) for other in STATES]
        shown = np.stack([marks.draw_marks(scene, (a, b, c, d)).image for a, b, c, d in mixed])
        return read_codes(backbone, view(shown, "crop 1"))[:, 0].mean(0)

    broad = [i for i, code in enumerate(CODES) if code.startswith("diffuse") and "light" not in code]
    chance = compose((False,) * 4, STATES[0])[broad]
    for mark, state in product(range(4), (STATES[0], STATES[6])):
        one = compose((mark == 0, mark == 1, mark == 2, mark == 3), state)[broad]
        torch.testing.assert_close(one, chance, atol=1e-5, rtol=0)
    upper = compose((True, True, False, False), (True, True, False, True))
    assert upper[CODES.index("diffuse, alike, yes")] == pytest.approx(1, abs=1e-5)
    assert upper[CODES.index("diffuse, even, yes")] == pytest.approx(0.5, abs=1e-5)


def test_compact_facts_leap_and_diffuse_ones_stay(pictures: np.ndarray) -> None:
    backbone, images = PlantedFacts(), Pictures(list(pictures[:16]))
    sae = make_reading_sae(backbone.directions)
    ranking = rank(sae, ImageTokens(backbone, images, -2), 6)
    config = ScopeConfig(k_cds=6, k_max=6, batch_images=8, n_workers=1)
    cds = score_latents(backbone, sae, images, ranking, config, layer=-2).cds(6).values
    of = {code: cds[i] for i, code in enumerate(CODES)}
    for fact in FACTS:
        assert of[f"compact, {fact}, yes"] > 0.2
        assert of[f"diffuse, {fact}, yes"] == pytest.approx(0, abs=1e-6)
    assert of["local, brightness, quarter 4"] < 0.15


def test_who_knows_a_broad_fact_is_declared_broad(tmp_path: Path) -> None:
    save_scenes(tmp_path, 4, "train", 160, CROP_PX + PATCH_PX, planted=Planted.marks)
    images, backbone = MarkedScenes(tmp_path), PlantedFacts()
    wanted = measure_confounds(make_reading_sae(backbone.directions), images, 2)
    measure_one(ImageTokens(backbone, images, -2), wanted).compute().save(tmp_path)
    found = ConfoundResult.load(tmp_path)
    broad = [code for code, is_broad in zip(CODES, found.known_broad, strict=True) if is_broad]
    assert broad == [code for code in CODES if code.endswith((", yes", ", no"))]
    index = CODES.index("compact, even, no")
    assert found.fact_effects["even"][index] == pytest.approx(1)
    assert abs(found.fact_effects["alike"][index]) < 0.06
    assert found.known_global[CODES.index("diffuse, light, night")]
    assert not found.known_global[found.known_broad].any()
    assert found.known_local.sum() >= 4
    assert all(CODES[i].startswith("local") for i in np.flatnonzero(found.known_local))


def test_a_configuration_makes_it() -> None:
    first, second = (load_backbone(ModelConfig(kind=ModelKind.planted_facts, seed=seed)) for seed in (0, 1))
    assert isinstance(first, PlantedFacts)
    assert first.fingerprint == {"kind": "planted_facts", "seed": 0} != second.fingerprint
