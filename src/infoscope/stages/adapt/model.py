"""The adapted model: the experiment's own with other weights, and what the same SAE reads of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace

from infoscope.config.tree import Config
from infoscope.data.config import DataConfig
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Handle, Key, Needs, NotBuiltYet
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.runtime.errors import InputError
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import Measurement
from infoscope.stages.backbone import find_told_facts, fingerprint_model, say_model
from infoscope.stages.describe.fidelity import Fidelity, why_no_predictions
from infoscope.stages.image_codes import Codes
from infoscope.stages.predict.stage import EmbeddedClasses
from infoscope.stages.sae import sae_of
from infoscope.stages.tokens import Tokens, find_sizes
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.tokens.source import TokenSource
from infoscope.vision.weights.local import find_local_file

_SIZES = {"d_in": "width", "grid": "patches per side", "patch_px": "pixels per patch", "n_prefix": "prefix tokens"}
_BRINGS_CONFIG = ("shipped", "train_clip", "random")


def adapted_of(ctx: Context) -> Context:
    """Return the context of the same experiment with the adapted model; of the adapted model's own, itself.

    Raises:
        InputError: no weights are given, or the model is none of weights.
    """
    model = make_adapted_model(ctx.config)
    return ctx if model == ctx.config.model else ctx.beside(replace(ctx.config, model=model))


def make_adapted_model(config: Config) -> ModelConfig:
    """Return the adapted model: the experiment's own in all but its weights.

    Raises:
        InputError: as `adapted_of`.
    """
    given, model = config.adapt, config.model
    if given.pretrained is None:
        raise InputError(
            "stage=adapt compares the model with other weights of its architecture: give these as"
            " adapt.pretrained=FILE."
        )
    if model.kind not in (ModelKind.open_clip, ModelKind.timm):
        raise InputError(
            f"stage=adapt compares two sets of weights, and {model.name} is a formula without any: choose another"
            " model."
        )
    origin = given.origin or model.origin
    is_clip, pretrained = model.kind is ModelKind.open_clip, str(model.pretrained)
    is_tag = model.arch is not None and pretrained not in _BRINGS_CONFIG and ":" not in pretrained
    with naming_settings():
        if origin is None and is_clip and is_tag and find_local_file(pretrained) is None:
            origin = pretrained  # what was adapted has the activation, mean and std of what it was made from
        adapted = replace(model, pretrained=given.pretrained, origin=origin, weights_key=given.weights_key)
    if given.origin is not None and (words := adapted.unread.get("origin")):
        raise InputError(f"adapt.origin is read {words}.")
    return adapted


@contextmanager
def naming_settings() -> Iterator[None]:
    """State errors in the adapted model's weights in terms of `adapt`.

    Raises:
        InputError: what was raised inside.
    """
    try:
        yield
    except InputError as error:
        if type(error) is not InputError:
            raise
        raise InputError(re.sub(r"\bmodel\.(pretrained|origin|weights_key)\b", r"adapt.\1", str(error))) from error


def check_adapted(ctx: Context) -> None:
    """Refuse weights that are the model's own, or of another size; say how they are run, if otherwise than the model.

    Raises:
        InputError: such weights, or as `load_backbone`.
    """
    adapted = adapted_of(ctx)
    with suppress(NotBuiltYet):  # a CLIP that has yet to be trained is another one
        if fingerprint_model(ctx) == fingerprint_model(adapted):
            raise InputError(
                f"Expected adapt.pretrained to be other weights than the model's, got the same ones:"
                f" {ctx.config.adapt.pretrained}."
            )
    if (facts := find_told_facts(adapted)) is not None and facts != find_told_facts(ctx):
        say_model(adapted, replace(adapted.config.model, name=f"the adapted {ctx.config.model.name}"), "adapt")
    own, other = (asdict(find_sizes(one)) for one in (ctx, adapted))
    different = [f"{words} {other[name]} for {own[name]}" for name, words in _SIZES.items() if own[name] != other[name]]
    if different:
        raise InputError(
            f"Expected adapt.pretrained to be weights of the model's own architecture, got {', '.join(different)}: the"
            " SAE reads tokens of one width and grid."
        )


class AdaptedTokens(Tokens):
    """The adapted model's tokens, at the same block: those of a run with that model."""

    @classmethod
    def at(
        cls, ctx: Context, split: str, data: DataConfig | None = None, layer: int | None = None
    ) -> Handle[TokenSource]:
        return super().at(adapted_of(ctx), split, data, layer)

    def name(self, ctx: Context, split: str, data: DataConfig, layer: int) -> str:
        return f"{ctx.config.model.name}-adapted-{split}"

    def describe(self, ctx: Context, split: str, data: DataConfig, layer: int) -> str:
        return f"{super().describe(ctx, split, data, layer)}, adapted"

    def key(self, ctx: Context, up: Needs, split: str, data: DataConfig, layer: int) -> Key:
        with naming_settings():
            return super().key(ctx, up, split, data, layer)

    def say_how(self, ctx: Context) -> None:
        """Say nothing: `check_adapted` does, where it is not as of the model."""

    def check(self, ctx: Context, split: str, data: DataConfig, layer: int) -> None:
        with naming_settings():
            super().check(ctx, split, data, layer)


class AdaptedCodes(Codes):
    """What fires in each image where the SAE of the model reads the adapted model's tokens."""

    def name(self, ctx: Context, seed: int, split: str) -> str:
        return f"{super().name(ctx, seed, split)}-adapted"

    def describe(self, ctx: Context, seed: int, split: str) -> str:
        return f"{super().describe(ctx, seed, split)}, adapted"

    def needs(self, ctx: Context, seed: int, split: str) -> Needs:
        return Needs(sae=sae_of(ctx, seed), tokens=AdaptedTokens.at(ctx, split))

    def measure(
        self, ctx: Context, up: Needs, sae: SparseAutoencoder, tokens: TokenSource, seed: int, split: str
    ) -> Measurement:
        return replace(super().measure(ctx, up, sae, tokens, seed, split), other_weights=True)


class AdaptedClasses(EmbeddedClasses):
    """The class names as the adapted model's text tower embeds them."""

    @classmethod
    def at(cls, ctx: Context) -> Handle[ZeroShotHead]:
        return super().at(adapted_of(ctx))

    def name(self, ctx: Context) -> str:
        return f"{super().name(ctx)}-adapted"

    def describe(self, ctx: Context) -> str:
        return f"{super().describe(ctx)}, adapted"


class AdaptedFidelity(Fidelity):
    """How faithfully the SAE of the model gives back the adapted model's tokens of the test split."""

    def name(self, ctx: Context, seed: int) -> str:
        return f"{super().name(ctx, seed)}-adapted"

    def describe(self, ctx: Context, seed: int) -> str:
        return f"{super().describe(ctx, seed)}, adapted"

    def needs(self, ctx: Context, seed: int) -> Needs:
        with naming_settings():
            head = {} if why_no_predictions(adapted_of(ctx)) else {"head": AdaptedClasses.at(ctx)}
        return Needs(sae=sae_of(ctx, seed), tokens=AdaptedTokens.at(ctx, "test"), **head)
