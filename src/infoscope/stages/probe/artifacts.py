"""What probing leaves: the probes of each variant of the tokens, and what classification reads of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from infoscope.data.config import DataConfig
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import ArtifactStage, Key, Needs, R, Work, name_of_seed
from infoscope.probes.config import ProbeConfig
from infoscope.probes.results import AblationResult, load_result
from infoscope.scope.ablations import Ablation, Role
from infoscope.stages.backbone import fingerprint_model, hook_of
from infoscope.stages.images import count_images
from infoscope.stages.sae import count_latents, sae_of
from infoscope.stages.tokens import Tokens, find_sizes


class ProbeGroup(NamedTuple):
    """The tasks that are probed on one data set, all in one loop; `probe.tasks` are these alone."""

    data: DataConfig
    probe: ProbeConfig


def _needs(ctx: Context, seed: int, data: DataConfig) -> Needs:
    return Needs(sae=sae_of(ctx, seed), train=Tokens.at(ctx, "train", data), test=Tokens.at(ctx, "test", data))


def count_features(ctx: Context, group: ProbeGroup) -> int:
    """Return how many images of both splits classification reads."""
    wanted = {"train": group.probe.n_train_images, "test": group.probe.n_test_images}
    counts = {split: count_images(ctx, split, group.data) for split in wanted}
    return sum(min(counts[split], n or counts[split]) for split, n in wanted.items())


class _OfVariant(ArtifactStage[R]):
    """What is made of one variant of the tokens of one data set; equal tokens have one artifact."""

    is_one_of_many = True

    def name(self, ctx: Context, seed: int, group: ProbeGroup, variant: Ablation) -> str:
        name = variant.name if variant.role is Role.original else f"{variant.name}-seed{seed}"
        return f"{ctx.config.model.name}-{name}"

    def identify(self, seed: int, group: ProbeGroup, variant: Ablation) -> str:
        return repr((seed, group, variant.name, variant.key()))

    def needs(self, ctx: Context, seed: int, group: ProbeGroup, variant: Ablation) -> Needs:
        return _needs(ctx, seed, group.data)


class AblationProbes(_OfVariant[AblationResult]):
    """The probes of one variant. Many are trained in one loop, by `probe_variants`."""

    kind = "probe"
    is_shared = False

    def key(self, ctx: Context, up: Needs, seed: int, group: ProbeGroup, variant: Ablation) -> Key:
        return {
            "probe": group.probe.cache_key_fields(),
            "tokens": [up.train.hash, up.test.hash],
            "model": fingerprint_model(ctx),
            **hook_of(ctx).key(),
            "variant": variant.key(up.sae.hash),
        }

    def load(self, ctx: Context, folder: Path, seed: int, group: ProbeGroup, variant: Ablation) -> AblationResult:
        return load_result(folder)


class Features(_OfVariant[Path]):
    """What classification reads of one variant: CLS behind the edit, and the shares removed."""

    kind = "features"

    def key(self, ctx: Context, up: Needs, seed: int, group: ProbeGroup, variant: Ablation) -> Key:
        probe = group.probe
        key = {
            "tokens": [up.train.hash, up.test.hash],
            "images": probe.chosen_images,
            "model": fingerprint_model(ctx),
            **hook_of(ctx).key(),
            "readouts": [readout.name for readout in probe.cls_readouts],
            "variant": variant.key(up.sae.hash),
        }
        return key | ({"dtype": probe.feature_dtype} if probe.cls_readouts else {})

    def work(self, ctx: Context, seed: int, group: ProbeGroup, variant: Ablation | None) -> Work:
        """Return what one variant costs, whichever it is."""
        probe, n_images = group.probe, count_features(ctx, group)
        vector_bytes = find_sizes(ctx).d_in * np.dtype(probe.feature_dtype).itemsize * len(probe.cls_readouts)
        like = [ctx.config.model.name, count_latents(ctx), [readout.name for readout in probe.readouts]]
        return Work(n_images, like, disk_bytes=n_images * vector_bytes)


class ImageMeans(ArtifactStage[Path]):
    """Means of images, from which the patch means of every variant follow; an item is (SAE seed, group of tasks)."""

    kind = "image_means"

    def name(self, ctx: Context, seed: int, group: ProbeGroup) -> str:
        return name_of_seed(ctx, seed)

    def needs(self, ctx: Context, seed: int, group: ProbeGroup) -> Needs:
        return _needs(ctx, seed, group.data)

    def key(self, ctx: Context, up: Needs, seed: int, group: ProbeGroup) -> Key:
        return {"tokens": [up.train.hash, up.test.hash], "images": group.probe.chosen_images, "sae": up.sae.hash}
