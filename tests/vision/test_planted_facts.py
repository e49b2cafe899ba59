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
from infoscope.data.scenes.render import Scene, render_split_part
from infoscope.data.scenes.scene_set import MarkedScenes, save_scenes
from infoscope.sae.passes import measure_one
from infoscope.scope.config import ExtentConfig
from infoscope.scope.confounds import ConfoundResult, measure_confounds
from infoscope.scope.extent.measure import measure_extent
from infoscope.scope.extent.result import ExtentResult
from infoscope.scope.ranking import ImageTokens
from infoscope.scope.scoring import ScopeConfig, score_latents
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.load import load_backbone
from infoscope.vision.planted import LIGHT_ANCHORS
from infoscope.vision.planted_facts import CODES, FACT_VALUES, FACTS, FACTS_VERSION, LEVELS, N_LEVELS, PlantedFacts
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


def test_the_other_directions_are_levels_of_single_patches_and_the_light(pictures: np.ndarray) -> None:
    backbone = PlantedFacts()
    codes = read_codes(backbone, view(pictures, "whole"))
    assert codes.shape[-1] == len(CODES) == len(set(CODES))
    assert set(codes.unique().tolist()) == {0, 1, 8}
    local = codes[..., : sum(code.startswith("local") for code in CODES)].unflatten(-1, (len(LEVELS), N_LEVELS + 1))
    level, upper = local[..., :N_LEVELS], local[..., N_LEVELS]
    assert (level.sum(-1) == 1).all()
    assert torch.equal(level[..., N_LEVELS // 2 :].sum(-1), upper)
    light = codes[..., -len(LIGHT_ANCHORS) :]
    assert (light.sum(-1) == 1).all()
    assert (light == light[:, :1]).all()


def test_levels_are_those_of_numpy(pictures: np.ndarray) -> None:
    shown = view(pictures, "whole")
    codes = read_codes(PlantedFacts(), shown)
    for index, row, column in ((0, 3, 4), (7, 0, 11), (17, 11, 0)):
        patch = shown[index, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].astype(np.float64)
        grey = patch.mean(2)
        across, down = (np.abs(np.diff(grey, axis=axis)).mean() for axis in (1, 0))
        red, _, blue = patch.mean((0, 1))
        for (of, ends), value in zip(
            LEVELS.items(), (grey.mean(), red - blue, (across + down) / 2, across - down), strict=True
        ):
            wanted = f"local, {of}, level {sum(value > end for end in ends) + 1}"
            assert codes[index, row * GRID + column, CODES.index(wanted)] == 1, wanted


def test_levels_are_the_same_in_any_context(pictures: np.ndarray) -> None:
    backbone, n_local = PlantedFacts(), sum(code.startswith("local") for code in CODES)
    one, other = (
        read_codes(backbone, view(pictures, name))[..., :n_local].unflatten(1, (GRID, GRID))
        for name in ("crop 1", "crop 2")
    )
    assert torch.equal(one[:, 1:, 1:], other[:, :-1, :-1])


def measure_extents(scenes: list[Scene], codes: list[int], n_donors: int, radii: list[int]) -> ExtentResult:
    """Return the extents of some codes, of one picture each."""
    backbone, images = PlantedFacts(), Pictures([scene.image for scene in scenes])
    sae = make_reading_sae(backbone.directions[codes])
    ranking = rank(sae, ImageTokens(backbone, images, -2), 1)
    return measure_extent(
        backbone, sae, images, ranking, ExtentConfig(n_images=1, n_donors=n_donors, radii=radii), layer=-2
    )


def test_single_patches_have_extent_and_context_effect_0() -> None:
    scenes = render_split_part(2, "train", 16, 21, CROP_PX)
    found = measure_extents(scenes, [i for i, code in enumerate(CODES) if code.startswith("local")], 2, [0, 1])
    there = np.isfinite(found.extent)  # elsewhere the donors show the same
    assert there.sum() > 20
    assert (found.response[:, there] == 1).all()
    assert (found.extent[there] == 0).all()
    assert (found.context_effect[there] == 0).all()


def test_extents_of_facts_are_those_that_marks_give() -> None:
    """Pictures of one scene with its marks in every state: each is shown in the context of all others.

    A fact on all patches peaks on the first, and windows of 5 x 5 and 11 x 11 patches around that hold the first mark.
    One on one patch lies near the middle, since swapping red and blue leaves the sum of all pixels: there windows of up
    to 5 x 5 hold no mark, and of 11 x 11 all.
    """
    scene, radii = render_split_part(2, "train", 14, 15, CROP_PX)[0], [0, 2, 5]
    codes = [i for i, code in enumerate(CODES) if code.endswith((", yes", ", no"))]
    found = measure_extents([marks.draw_marks(scene, state) for state in STATES], codes, 15, radii)
    for latent, (form, name, value) in enumerate(CODES[code].split(", ") for code in codes):
        fact, own = marks.FACTS[name], STATES[found.images[latent, 0]]
        assert fact(own) is (value == "yes")
        n_held = [0, 1, 1] if form == "diffuse" else [0, 0, 4]
        chance, *shown = (np.mean([fact(own[:n] + state[n:]) is fact(own) for state in STATES]) for n in (0, *n_held))
        kept = [(share - chance) / (1 - chance) for share in shown]
        assert max(kept[: n_held.index(4) if 4 in n_held else 3]) == 0  # one mark tells nothing
        assert found.response[:, latent].tolist() == pytest.approx(kept), CODES[codes[latent]]
        radius = next((np.interp(0.5, kept[i : i + 2], radii[i : i + 2]) for i in (0, 1) if kept[i + 1] >= 0.5), np.inf)
        assert found.extent[latent] == pytest.approx(min(1, 2 * radius / (GRID - 1)))
        assert found.context_effect[latent] == pytest.approx(1)


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
        assert of[f"diffuse, {fact}, yes"] == 0
    local = [of[code] for code in CODES if code.startswith("local") and np.isfinite(of[code])]
    assert len(local) > 20
    assert set(local) == {0}


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
    local = np.array([code.startswith("local") for code in CODES])
    assert not found.known_broad[local].any()
    assert (found.image_effect[local] > 0.14).sum() > 20  # what is free of context knows the light, the place, ...
    assert (found.compact[local].sum(), found.diffuse[local].sum()) == (31, 5)


def test_a_configuration_makes_it() -> None:
    first, second = (load_backbone(ModelConfig(kind=ModelKind.planted_facts, seed=seed)) for seed in (0, 1))
    assert isinstance(first, PlantedFacts)
    assert first.fingerprint == {"kind": "planted_facts", "seed": 0, "version": FACTS_VERSION} != second.fingerprint
