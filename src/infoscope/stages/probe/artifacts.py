"""What probing leaves: the probes of each variant of the tokens, and what classification reads of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from infoscope.data.config import DataConfig
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import ArtifactStage, Key, Needs, R, name_of_seed
from infoscope.probes.config import ProbeConfig
from infoscope.probes.results import AblationResult, load_result
from infoscope.scope.ablations import Ablation, Role
from infoscope.stages.backbone import fingerprint_model
from infoscope.stages.sae import sae_of
from infoscope.stages.tokens import Tokens


class ProbeGroup(NamedTuple):
    """The tasks that are probed on one data set, all in one loop; `probe.tasks` are these alone."""

    data: DataConfig
    probe: ProbeConfig


def _needs(ctx: Context, seed: int, data: DataConfig) -> Needs:
    return Needs(sae=sae_of(ctx, seed), train=Tokens.at(ctx, "train", data), test=Tokens.at(ctx, "test", data))


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
            **ctx.config.model.hook.key(),
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
            **ctx.config.model.hook.key(),
            "readouts": [readout.name for readout in probe.cls_readouts],
            "variant": variant.key(up.sae.hash),
        }
        return key | ({"dtype": probe.feature_dtype} if probe.cls_readouts else {})


class ImageMeans(ArtifactStage[Path]):
    """Means of images, from which the patch means of every variant follow; an item is (SAE seed, group of tasks)."""

    kind = "image_means"

    def name(self, ctx: Context, seed: int, group: ProbeGroup) -> str:
        return name_of_seed(ctx, seed)

    def needs(self, ctx: Context, seed: int, group: ProbeGroup) -> Needs:
        return _needs(ctx, seed, group.data)

    def key(self, ctx: Context, up: Needs, seed: int, group: ProbeGroup) -> Key:
        return {"tokens": [up.train.hash, up.test.hash], "images": group.probe.chosen_images, "sae": up.sae.hash}
