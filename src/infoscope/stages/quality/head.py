"""The linear head that is asked what is left of images in reconstructions: trained on originals, for all SAEs."""

from __future__ import annotations

import numpy as np
import torch

from infoscope.analyses.quality import ImageHead, mean_of_images
from infoscope.data.images import Truth
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Key, Needs, SingleStage, Work
from infoscope.probes.config import LBFGSRecipe
from infoscope.probes.inputs import split_held_out
from infoscope.probes.lbfgs import count_regressions, search_strength
from infoscope.probes.vectors import TrainingImages
from infoscope.runtime.profile import Kind, spent_on
from infoscope.runtime.store import Workspace
from infoscope.scope.ablations import choose_rows
from infoscope.stages.images import count_images, find_known, fingerprint_images, knows, open_split
from infoscope.stages.sae import choose_tokens
from infoscope.stages.tokens import Tokens, find_sizes

RECIPE = LBFGSRecipe(classification_l2=[1e-2, 1.0, 1e2, 1e4], classification_l2_halvings=2, lbfgs_max_iterations=200)
"""How it is trained, whatever trains the probes: the strength of the L2 penalty is searched as that of CLIP's probes,
but more coarsely, and without strengths so small that they change nothing and take longest (ours)."""


class TrainedHead(SingleStage[ImageHead]):
    """A linear head on the mean of the original tokens of training images, by L-BFGS as probes are trained."""

    kind, holds = "image_head", ImageHead
    is_shared = False

    def describe(self, ctx: Context) -> str:
        return "linear head on original tokens"

    def needs(self, ctx: Context) -> Needs:
        return Needs(tokens=Tokens.at(ctx, "train"))

    def key(self, ctx: Context, up: Needs) -> Key:
        return {
            "tokens": up.tokens.hash,
            "reads": choose_tokens(ctx).name,
            "images": fingerprint_images(ctx, "train"),
            "drawn": [ctx.config.quality.n_probe_images, ctx.config.quality.seed],
            "l2": [RECIPE.classification_l2, RECIPE.classification_l2_halvings, RECIPE.lbfgs_max_iterations],
            **{name: getattr(ctx.config.probe, name) for name in ("target", "held_out_share", "seed")},
        }

    def check(self, ctx: Context) -> None:
        find_known(ctx, ctx.config.data)[0].n_target_classes(ctx.config.probe.target)

    def build(self, ctx: Context, up: Needs, work: Workspace) -> ImageHead:
        config, tokens, images = ctx.config.probe, up.tokens.load(), open_split(ctx, "train")
        rows = choose_rows(len(tokens), ctx.config.quality.n_probe_images, ctx.config.quality.seed)
        with ctx.display.bar("reading images for a linear head", len(rows), "images") as advance:
            vectors = mean_of_images(tokens, rows, choose_tokens(ctx), ctx.config.predict.batch_images, advance)
        labels = torch.from_numpy(np.asarray(images.labels(config.target))[tokens.image_index[rows]])
        fit, held_out = map(torch.from_numpy, split_held_out(np.arange(len(rows)), config.held_out_share, config.seed))
        split = TrainingImages(fit, held_out, labels, images.n_target_classes(config.target))
        n_all, n_solved = count_regressions(RECIPE), 0
        with ctx.display.bar("training a linear head", n_all) as advance, spent_on(Kind.training):

            def count() -> None:
                nonlocal n_solved
                n_solved += 1
                advance(n_solved, n_all)

            maps, record = search_strength("image_head", vectors, split, RECIPE, count)
        return ImageHead(maps.weight[0].numpy(), maps.bias[0].numpy(), float(record["best"]), len(rows))

    def work(self, ctx: Context) -> Work:
        n_all, sizes = count_images(ctx, "train"), find_sizes(ctx)
        n = min(n_all, ctx.config.quality.n_probe_images or n_all)
        is_stored = ctx.config.data.store_tokens
        like = [ctx.config.model.name, ctx.config.probe.target, is_stored]
        return Work(n, like, forwards=0 if is_stored else n, memory_bytes=3 * 4 * n * sizes.d_in)


def why_no_head(ctx: Context) -> str:
    """Return in a sentence why no head can be trained; empty: one can."""
    if knows(ctx, Truth.labels, ctx.config.data):
        return ""
    return f"data={ctx.config.data.kind.name} knows no classes."
