"""What probing leaves: the probes of each variant of the tokens, and what classification reads of it."""

from __future__ import annotations

from pathlib import Path

from infoscope.data.config import DataConfig
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import ArtifactStage, Key, Needs, name_of_seed
from infoscope.probes.config import ProbeConfig
from infoscope.probes.results import AblationResult, load_result
from infoscope.scope.ablations import Ablation, Role
from infoscope.stages.backbone import fingerprint_model
from infoscope.stages.sae import sae_of
from infoscope.stages.tokens import Tokens


def _name(ctx: Context, seed: int, variant: Ablation) -> str:
    name = variant.name if variant.role is Role.original else f"{variant.name}-seed{seed}"
    return f"{ctx.config.model.name}-{name}"


def _needs(ctx: Context, seed: int, data: DataConfig) -> Needs:
    return Needs(sae=sae_of(ctx, seed), train=Tokens.at(ctx, "train", data), test=Tokens.at(ctx, "test", data))


class AblationProbes(ArtifactStage[AblationResult]):
    """The probes of one variant of the tokens of one data set; equal tokens have one.

    An item is (seed, variant, data, the probes of the tasks on that data). Many are trained in one loop, by `Probe`.
    """

    kind = "probe"
    is_shared, is_one_of_many = False, True

    def name(self, ctx: Context, seed: int, variant: Ablation, data: DataConfig, probe: ProbeConfig) -> str:
        return _name(ctx, seed, variant)

    def identify(self, seed: int, variant: Ablation, data: DataConfig, probe: ProbeConfig) -> str:
        return repr((seed, variant.name, variant.key(), data, probe))

    def needs(self, ctx: Context, seed: int, variant: Ablation, data: DataConfig, probe: ProbeConfig) -> Needs:
        return _needs(ctx, seed, data)

    def key(self, ctx: Context, up: Needs, seed: int, variant: Ablation, data: DataConfig, probe: ProbeConfig) -> Key:
        return {
            "probe": probe.cache_key_fields(),
            "tokens": [up.train.hash, up.test.hash],
            "model": fingerprint_model(ctx),
            **ctx.config.model.hook.key(),
            "variant": variant.key(up.sae.hash),
        }

    def load(
        self, ctx: Context, folder: Path, seed: int, variant: Ablation, data: DataConfig, probe: ProbeConfig
    ) -> AblationResult:
        return load_result(folder)


class Features(ArtifactStage[Path]):
    """What classification reads of one variant: CLS behind the edit, and the shares removed; items as above."""

    kind = "features"
    is_one_of_many = True

    def name(self, ctx: Context, seed: int, variant: Ablation, data: DataConfig, probe: ProbeConfig) -> str:
        return _name(ctx, seed, variant)

    def identify(self, seed: int, variant: Ablation, data: DataConfig, probe: ProbeConfig) -> str:
        return repr((seed, variant.name, variant.key(), data, probe))

    def needs(self, ctx: Context, seed: int, variant: Ablation, data: DataConfig, probe: ProbeConfig) -> Needs:
        return _needs(ctx, seed, data)

    def key(self, ctx: Context, up: Needs, seed: int, variant: Ablation, data: DataConfig, probe: ProbeConfig) -> Key:
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
    """Means of images, from which the patch means of every variant follow; an item is (seed, data, probes)."""

    kind = "image_means"

    def name(self, ctx: Context, seed: int, data: DataConfig, probe: ProbeConfig) -> str:
        return name_of_seed(ctx, seed)

    def needs(self, ctx: Context, seed: int, data: DataConfig, probe: ProbeConfig) -> Needs:
        return _needs(ctx, seed, data)

    def key(self, ctx: Context, up: Needs, seed: int, data: DataConfig, probe: ProbeConfig) -> Key:
        return {"tokens": [up.train.hash, up.test.hash], "images": probe.chosen_images, "sae": up.sae.hash}
