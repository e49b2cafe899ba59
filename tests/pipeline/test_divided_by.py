"""Groups by another measure than the CDS: what they follow from is in every key, and no group is a stale one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infoscope.config.tree import StageName, compose
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import find_stage, set_goals
from infoscope.pipeline.stage import list_needed
from infoscope.runtime.manifests import Artifact, Spec
from infoscope.runtime.progress import Display
from infoscope.scope.extent.result import ExtentResult
from infoscope.scope.partition import make_partition
from infoscope.stages.backbone import load_backbone
from infoscope.stages.extent.stage import Extent
from infoscope.stages.latents import load_sources
from infoscope.stages.rank import mass_of
from infoscope.stages.score.stage import Score, key_of_groups, needs_of_groups, partition_of, scope_of
from infoscope.vision import load as loading
from tests.support.recorded_keys import D_SAE, FixedStore, record_keys

KEYED = (StageName.probe, StageName.predict, StageName.latents, StageName.masking, StageName.explore, StageName.report)
FEW = ("debug=tiny", "probe.n_draws=0", "trainer.precision=32")


def make_extent(shift: int) -> ExtentResult:
    """Extents of a grid of 5 x 5 that a shift deals out otherwise; half of the latents have 0, and the first none.

    Context effects are dealt out in another order.
    """
    order = (np.arange(D_SAE) + shift) % D_SAE
    whole, donor = np.ones((D_SAE, 1)), np.zeros((D_SAE, 1, 1))
    donor[0] = np.nan
    kept = np.stack([np.where(order < D_SAE // 2, 1.0, 0.4 - order / 50), np.ones(D_SAE)])[:, :, None, None]
    places = np.zeros((D_SAE, 1), dtype=np.int64)
    replaced = np.stack([7 * order % D_SAE / D_SAE, np.zeros(D_SAE)])[:, :, None, None]
    return ExtentResult(5, np.array([0, 2]), places, places, whole, donor, kept, replaced, 99)


class StoreOfExtents(FixedStore):
    """A store whose extents follow from the seed of their donors, and are there where somebody needs them."""

    has_extents = True

    def find(self, spec: Spec) -> Artifact | None:
        found = super().find(spec)
        if spec.stage != Extent.kind:
            return found
        if not self.has_extents:
            return None
        folder = self.root / f"extent-{spec.hash}"
        if not folder.exists():
            folder.mkdir()
            make_extent(spec.key["extent"]["seed"]).save(folder)
        return Artifact(folder, spec.hash, {}, built=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreOfExtents:
    store = StoreOfExtents(tmp_path_factory.mktemp("divided"))
    (store.root / "train_sae" / "metrics.json").write_text("{}")
    return store


def make_context(store: FixedStore, *overrides: str) -> Context:
    ctx = Context(compose([*FEW, f"output_dir={store.root}/out", *overrides]), Display.silent())
    ctx.store = store
    return ctx


def record(store: StoreOfExtents, end: StageName, *overrides: str) -> set[str]:
    """Return the hashes of all that a stage makes itself, and of the report."""
    config = compose([*FEW, f"output_dir={store.root}/out", *overrides])
    store.specs, store.has_extents = [], end is StageName.report or "partition.by" in "".join(overrides)
    record_keys(config, [end], store, loading.load_backbone("scenes_clip"))
    own = {find_stage(Context(replace(config, stage=end), Display.silent())).kind, "report"}
    return {spec.hash for spec in store.specs if spec.stage in own}


@pytest.mark.parametrize("end", KEYED)
def test_other_donors_are_other_groups_where_they_divide_and_the_same_where_the_cds_does(
    store: StoreOfExtents, end: StageName
) -> None:
    donors = "scope.extent.seed=3"
    of_cds = record(store, end)
    if end is not StageName.report:  # which has a section on extents
        assert record(store, end, donors) == of_cds
    by_extent = record(store, end, "partition.by=extent")
    assert len(of_cds) > 0
    assert by_extent != of_cds
    assert record(store, end, "partition.by=extent", donors) != by_extent
    assert record(store, end, "partition.by=context_effect") != by_extent


def test_groups_are_those_of_the_measure(store: StoreOfExtents) -> None:
    store.has_extents = True
    mass = mass_of(make_context(store), 0)
    for name in ("extent", "mean_extent", "context_effect"):
        for seed in (0, 3):
            ctx = make_context(store, f"partition.by={name}", f"scope.extent.seed={seed}")
            values = getattr(make_extent(seed), name)
            expected = make_partition(values, mass, ctx.config.partition)
            found, scope = partition_of(ctx, 0), scope_of(ctx, 0)
            np.testing.assert_array_equal(found.high, expected.high)
            np.testing.assert_array_equal(found.low, expected.low)
            assert (found.gamma, found.unscored.tolist()) == (expected.gamma, [True] + [False] * (D_SAE - 1))
            np.testing.assert_array_equal(scope.measure, values)
            np.testing.assert_array_equal(scope.cds, Score.at(ctx, 0).load().cds(ctx.config.scope.k_cds).values)
            assert not scope.undecided.any()
    cds = scope_of(make_context(store), 0)
    np.testing.assert_array_equal(cds.measure, cds.cds)


def test_what_divides_is_needed_and_counted(store: StoreOfExtents) -> None:
    store.has_extents = False
    ctx = make_context(store, "partition.by=extent", "stage=latents", "seeds=[0,2]")
    ctx.known[(load_backbone.__module__, "_load", repr(((ctx.config.model,), {})))] = loading.load_backbone(
        "scenes_clip"
    )
    assert {node.stage.kind for _, node in needs_of_groups(ctx, 0)} >= {"extent", "score"}
    assert Extent in load_sources(ctx, 0)
    assert [node.item for node in list_needed(set_goals(ctx)) if node.stage.kind == "extent"] == [(0,), (2,)]
    assert key_of_groups(ctx)["measured"] == [Extent.at(ctx, seed).hash for seed in (0, 2)]
    assert "measured" not in key_of_groups(make_context(store))
