"""What classification reads, made for all SAE seeds in one reading of each split."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from infoscope.data.config import DataConfig
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Handle
from infoscope.probes.config import Readout, Task
from infoscope.probes.feature_files import WantedFeatures, write_features
from infoscope.probes.features import MEANS
from infoscope.probes.inputs import ProbeData, ProbeInputs
from infoscope.runtime import processes
from infoscope.runtime.manifests import compute_hash
from infoscope.runtime.store import Workspace
from infoscope.sae.config import TokenChoice
from infoscope.scope.ablations import Ablation
from infoscope.stages.backbone import hook_of, load_backbone, load_backbone_at
from infoscope.stages.images import open_sets
from infoscope.stages.probe.artifacts import AblationProbes, Features, ImageMeans, ProbeGroup
from infoscope.stages.sae import choose_tokens, sae_of
from infoscope.stages.tokens import Tokens


def make_probe_inputs(ctx: Context, seed: int, data: DataConfig) -> ProbeInputs:
    """Return what the probes of an SAE seed are run on."""
    splits = []
    for split, images in zip(("train", "test"), open_sets(ctx, data), strict=True):
        splits.append(ProbeData(Tokens.at(ctx, split, data).load(), images))
    train, test = splits
    return ProbeInputs(
        sae_of(ctx, seed).load(),
        train,
        test,
        load_backbone(ctx),
        hook_of(ctx).layer,
        edits_prefix=choose_tokens(ctx) is TokenChoice.all,
        backbone_at=partial(load_backbone_at, ctx),
        n_workers=data.n_workers,
    )


def features_of(ctx: Context, seed: int, group: ProbeGroup, variants: Sequence[Ablation]) -> dict[str, Handle[Path]]:
    """Return what classification reads of some variants by variant key, and means of images, if it does, as `MEANS`."""
    handles: dict[str, Handle[Path]] = {}
    if Readout.patch_mean in group.probe.readouts:
        handles[MEANS] = ImageMeans.at(ctx, seed, group)
    for variant in variants:
        handles.setdefault(variant.key(sae_of(ctx, seed).hash), Features.at(ctx, seed, group, variant))
    return handles


def list_features(ctx: Context, seed: int, group: ProbeGroup, variants: Sequence[Ablation]) -> dict[str, Handle[Path]]:
    """Return what `features_of` does, of those variants whose probes are missing."""
    unprobed = [variant for variant in variants if AblationProbes.at(ctx, seed, group, variant).find() is None]
    return features_of(ctx, seed, group, unprobed) if unprobed else {}


def make_features(ctx: Context, group: ProbeGroup, variants: Mapping[int, Sequence[Ablation]]) -> None:
    """Make what is missing of all that classification reads of some variants whose probes are missing.

    Args:
        variants: by SAE seed.
    """
    if Task.classification not in group.probe.tasks:
        return
    handles: dict[str, tuple[int, str, Handle[Path]]] = {}
    for seed, of in variants.items():
        for name, handle in list_features(ctx, seed, group, of).items():
            handles.setdefault(handle.hash, (seed, name, handle))
    wanted = processes.broadcast(list(handles))  # another job may finish some meanwhile: the main process has looked
    if wanted:
        _fill(ctx, group, variants, {name: handles[name] for name in wanted})


def note_features(works: Mapping[Handle[Path], Workspace], seconds: float) -> None:
    """Put into the manifests what was done together in so many seconds: each gets its share."""
    for handle, work in works.items():
        handle.note(work, seconds / len(works))


def _fill(
    ctx: Context,
    group: ProbeGroup,
    variants: Mapping[int, Sequence[Ablation]],
    handles: Mapping[str, tuple[int, str, Handle[Path]]],
) -> None:
    """Make some features by hash, each of (SAE seed, variant key or `MEANS`, handle)."""
    probe = group.probe
    upstream = {name: {role: node.make() for role, node in of.needs} for name, (_, _, of) in handles.items()}

    def build(works: dict[str, Workspace]) -> None:
        start = time.perf_counter()
        wanted: list[WantedFeatures] = []
        for seed in dict.fromkeys(handles[name][0] for name in works):
            own = {handles[name][1]: work for name, work in works.items() if handles[name][0] == seed}
            folder = min(own.items())[1].progress / compute_hash(sorted(own))
            folder.mkdir(exist_ok=True)
            by_key = {variant.key(sae_of(ctx, seed).hash): variant for variant in reversed(variants[seed])}
            folders = {key: work.folder for key, work in own.items()}
            wanted.append(WantedFeatures(make_probe_inputs(ctx, seed, group.data), by_key, folders, folder))
        with ctx.display.bar("reading tokens for the probes' features") as advance:
            rows = wanted[0].inputs.choose_rows(probe.n_train_images, probe.n_test_images, probe.seed)
            write_features(wanted, probe, rows, ctx.check_disk, lambda what, done, of: advance(done, of, what))
        note_features({handles[name][2]: work for name, work in works.items()}, time.perf_counter() - start)

    specs = {name: handle.spec for name, (_, _, handle) in handles.items()}
    ctx.store.get_together(specs, build, shared=True, upstream=upstream)
