"""Predictions without the latents that carry what misleads: a part of stage=steer."""

from __future__ import annotations

import numpy as np

from infoscope.analyses.suppression import (
    SuppressionResult,
    choose_suppressed,
    find_typical,
    measure_suppression,
    score_spurious,
)
from infoscope.data.images import Truth
from infoscope.data.scenes.scene_set import PlantedScenes
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Key, Needs, SeedStage, Work
from infoscope.runtime.errors import InputError
from infoscope.runtime.store import Workspace
from infoscope.sae.metrics import compute_row_norms
from infoscope.stages.backbone import hook_of
from infoscope.stages.image_codes import Codes
from infoscope.stages.images import advise_classes, find_known, fingerprint_images, knows, open_split
from infoscope.stages.predict.stage import (
    EmbeddedClasses,
    Predict,
    count_predicted,
    key_of_inputs,
    make_inputs,
    prompts_of,
)
from infoscope.stages.sae import count_latents, sae_of
from infoscope.stages.steer.numbers import Spurious
from infoscope.stages.tokens import Tokens, find_sizes


def spurious_of(ctx: Context) -> str | None:
    """Return the target that misleads: the one that is asked for, or the data's own; None: there is none.

    Raises:
        InputError: one is asked for that the data do not have, or that is what is predicted.
    """
    config, data = ctx.config, ctx.config.data
    asked = config.steer.spurious
    if not knows(ctx, Truth.labels, data):
        if asked is not None:
            raise InputError(
                f"steer.spurious={asked} is a target of labels, but data={data.kind.name} knows none here: give"
                f" {advise_classes(data)}, or drop it."
            )
        return None
    known = find_known(ctx, data)[0]
    name = asked or known.spurious_target
    if name is None or (asked is None and config.predict.target != "class"):
        return None
    known.n_target_classes(name)
    predicted = config.predict.target
    if name == predicted or {name, predicted} == {"class", known.class_attribute}:
        raise InputError(
            f"Expected steer.spurious to be another target than the one that is predicted ({predicted}), got {name}:"
            f" choose another of {', '.join(known.targets)}."
        )
    return name


def tell_none(ctx: Context) -> str | None:
    """Return a sentence on why nothing is removed where the class is one of many attributes; None: no such data."""
    known = find_known(ctx, ctx.config.data)[0]
    if spurious_of(ctx) is not None or ctx.config.predict.target != "class" or known.class_attribute is None:
        return None
    return (
        f"No features are removed: {known.class_attribute} is the class itself, and no other attribute is known to"
        " mislead. Give one with steer.spurious=ATTRIBUTE."
    )


def name_spurious(ctx: Context, found: SuppressionResult) -> Spurious:
    """Return how what misleads is spoken of: cards on scenes, an attribute of images, or another target."""
    known, name = find_known(ctx, ctx.config.data)[0], found.spurious
    if name == PlantedScenes.spurious_target and not found.typical.any():
        return Spurious("the cards", "no card", "a card", "Most scenes of each class have no card.")
    if name in known.attributes:
        values = "; ".join(
            f"{of}: {'with' if value else 'without'}"
            for of, value in zip(found.class_names, found.typical, strict=True)
        )
        typical, other = f"the typical value of {name}", f"the other value of {name}"
        explained = f"Typical of {name} is that of most training images of a class ({values})."
        return Spurious(f"the attribute {name}", typical, other, explained)
    typical = f"The typical {name} is that of most training images of a class."
    return Spurious(f"the {name}", f"the typical {name}", f"another {name}", typical)


class Suppress(SeedStage[SuppressionResult]):
    """What the zero-shot head predicts without latents that carry the target that misleads."""

    kind, holds = "suppression", SuppressionResult

    def needs(self, ctx: Context, seed: int) -> Needs:
        return Needs(
            head=EmbeddedClasses.at(ctx),
            sae=sae_of(ctx, seed),
            codes=Codes.at(ctx, seed, "train"),
            tokens=Tokens.at(ctx, "test"),
        )

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        config = ctx.config
        return {
            **key_of_inputs(ctx, up),
            "images": [fingerprint_images(ctx, split) for split in ("train", "test")],
            **{name: getattr(config.predict, name) for name in ("target", "n_images", "seed")},
            "spurious": spurious_of(ctx),
            "suppress": {name: getattr(config.steer, name) for name in ("n_suppressed", "n_draws", "seed")},
        }

    def check(self, ctx: Context, seed: int) -> None:
        Predict().check(ctx, seed)

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> SuppressionResult:
        config, spurious, codes, head = ctx.config, spurious_of(ctx), up.codes.load(), up.head.load()
        target, labels, inputs = config.predict.target, prompts_of(ctx).labels, make_inputs(ctx, up)
        assert spurious is not None, "only of data with such a target"
        assert labels is not None, "only of data with labels"
        train, test = (open_split(ctx, split) for split in ("train", "test"))
        of_rows, misleading = (train.labels(of)[codes.image_index] for of in (target, spurious))
        norms = compute_row_norms(inputs.sae.W_dec)
        order, chosen = choose_suppressed(
            score_spurious(codes, of_rows, misleading, norms),
            np.asarray(codes.matrix("means").sum(axis=0)).ravel() * norms,
            [n for n in config.steer.n_suppressed if n < len(norms)] or [len(norms)],
            config.steer.n_draws,
            config.steer.seed,
        )
        with ctx.display.bar(f"suppressing, seed {seed}") as advance:
            index, correct = measure_suppression(
                inputs,
                head,
                [removed for _, removed in chosen],
                labels,
                config.predict,
                lambda what, done, of: advance(done, of, what),
                work.progress,
            )
        typical = find_typical(of_rows, misleading, len(head.class_names))
        return SuppressionResult(
            spurious=spurious,
            class_names=head.class_names,
            typical=typical,
            order=order,
            image_index=index,
            classes=labels[index],
            is_typical=test.labels(spurious)[index] == typical[labels[index]],
            variants=tuple(one for one, _ in chosen),
            correct=correct,
        )

    def work(self, ctx: Context, seed: int) -> Work:
        config, d_sae, sizes = ctx.config, count_latents(ctx), find_sizes(ctx)
        n_variants = 1 + len(config.steer.n_suppressed) * (1 + config.steer.n_draws)
        known = find_known(ctx, config.data)[0]
        n_values = known.n_target_classes(str(spurious_of(ctx)))
        cells = 4 * 8 * d_sae * len(prompts_of(ctx).class_names) * n_values
        tokens = 4 * config.predict.batch_images * sizes.n_patches * sizes.d_in * 4
        return Work(
            count_predicted(ctx) * n_variants,
            [config.model.name, hook_of(ctx).layer, d_sae],
            disk_bytes=n_variants * count_predicted(ctx),
            memory_bytes=cells + tokens,
            is_bound=True,
        )
