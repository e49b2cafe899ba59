"""Which extents are the same: those that measure the same, however they were asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infoscope.config.tree import compose
from infoscope.pipeline.context import Context
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import Artifact, Spec
from infoscope.runtime.progress import Display
from infoscope.scope.extent.design import choose_design
from infoscope.stages.backbone import load_backbone
from infoscope.stages.extent.stage import Extent
from infoscope.vision import load as loading
from tests.support.recorded_keys import FixedStore

GRID, D_SAE = 8, 32
ALL = tuple(f"scope.extent.{one}" for one in ("n_latents=null", "n_images=3", "n_donors=2", "radii=null"))


class WideStore(FixedStore):
    """A store of tokens of 8 x 8 patches, and of an SAE of 32 latents; or of none of it."""

    has_tokens = True

    def find(self, spec: Spec) -> Artifact | None:
        return None if spec.stage == "tokens" and not self.has_tokens else super().find(spec)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> WideStore:
    store = WideStore(tmp_path_factory.mktemp("extents"))
    sizes = {"d_in": D_SAE // 2, "grid": GRID, "n_prefix": 1, "patch_px": 8}
    (store.root / "tokens" / "tokens.json").write_text(json.dumps(sizes))
    return store


def open_tiny(store: FixedStore, *overrides: str) -> Context:
    settings = [f"scope.extent.{one}" for one in overrides]
    few = ("debug=tiny", "sae.expansion_factor=2", "scope.k_cds=3", "scope.k_max=5", "trainer.precision=32")
    ctx = Context(compose([*few, f"output_dir={store.root}/out", *ALL, *settings]), Display.silent())
    ctx.store = store
    return ctx


SAME = [
    ("budget_images=2000000",),
    ("budget_images=1664",),
    ("n_latents=32",),
    ("n_latents=1000",),
    ("radii=[0,1,2,3]",),
]
OTHERS = [
    ("budget_images=1119",),
    ("n_latents=31",),
    ("n_latents=31", "seed=1"),
    ("radii=[0,1,2]",),
    ("n_images=2",),
    ("n_images=4",),
    ("n_donors=1",),
    ("n_donors=3",),
    ("seed=1",),
    ("donor=mean",),
    ("donor=mean", "seed=1"),
    ("donor=blur",),
    ("donor=blur", "blur_patches=1"),
    ("donor=blur", "n_latents=31"),
    ("donor=blur", "n_latents=31", "seed=1"),
]


def test_settings_that_measure_the_same_share_an_artifact(store: WideStore) -> None:
    hashes = {overrides: Extent.at(open_tiny(store, *overrides), 0).hash for overrides in [(), *SAME, *OTHERS]}
    assert {hashes[overrides] for overrides in SAME} == {hashes[()]}
    assert len({hashes[overrides] for overrides in [(), *OTHERS]}) == 1 + len(OTHERS)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("n_images=5",), ("n_images=9",)),  # as many as are ranked
        (("donor=blur",), ("donor=blur", "seed=1")),  # draws nothing
        (("budget_images=1120",), ("n_donors=2", "n_images=2")),
    ],
)
def test_they_do_so_in_other_ways_too(store: WideStore, first: tuple[str, ...], second: tuple[str, ...]) -> None:
    one, other = (open_tiny(store, *overrides) for overrides in (first, second))
    assert Extent.at(one, 0).hash == Extent.at(other, 0).hash


def test_what_a_report_tells_of_the_budget_is_its_own(store: WideStore) -> None:
    cut, wanted = open_tiny(store, "budget_images=1120"), open_tiny(store, "n_images=2")
    assert Extent.at(cut, 0).hash == Extent.at(wanted, 0).hash
    assert Extent().hashes(cut) != Extent().hashes(wanted)
    assert Extent().report_key(cut) != Extent().report_key(wanted)


def test_extents_have_a_name_before_there_are_tokens(store: WideStore) -> None:
    ctx = open_tiny(store)
    ctx.known[(load_backbone.__module__, "_load", repr(((ctx.config.model,), {})))] = loading.load_backbone(
        "scenes_clip"
    )
    store.has_tokens = False
    try:
        key = Extent.at(ctx, 0).spec.key["extent"]
    finally:
        store.has_tokens = True
    assert (key["radii"], key["n_latents"], key["seed"]) == ([0, 1, 2, 3, 5], 256, 0)  # of scenes_clip itself


@pytest.mark.parametrize(
    ("overrides", "message"), [(("budget_images=20",), "budget_images to be at least"), (("radii=[0,7]",), "radii")]
)
def test_extents_that_cannot_be_are_not_there(store: WideStore, overrides: tuple[str, ...], message: str) -> None:
    handle = Extent.at(open_tiny(store, *overrides), 0)
    assert handle.find() is None
    with pytest.raises(InputError, match=message):
        handle.stage.check(handle.ctx, 0)


def test_a_model_that_cannot_be_loaded_is_not_refused_by_who_asks_for_extents(
    store: WideStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise InputError("no such model")

    monkeypatch.setattr("infoscope.stages.tokens.load_backbone", refuse)
    monkeypatch.setattr(store, "has_tokens", False)
    assert Extent.at(open_tiny(store), 0).find() is None


def test_tiny_runs_encode_few_pictures_however_large_the_sae_is() -> None:
    config = compose(["debug=tiny"]).scope
    design = choose_design(65_536, 37, config.n_ranks, config.extent)
    assert design.n_forwards < 1500
