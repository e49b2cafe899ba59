"""Images to look through: what fires in each, whole and in both crops, and its prediction without some latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from infoscope.analyses.browsed_images import count_forwards, encode_image, list_latents, predict_image
from infoscope.data.images import CHECK_PX, ImageError, ImageSet, Truth
from infoscope.data.reader import iterate_images
from infoscope.explorer.format import BYTES_PER_PATCH, make_picture_url, pack, pack_maps, put
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Key, Needs
from infoscope.predictions.inputs import PredictInputs
from infoscope.runtime import processes
from infoscope.sae.config import TokenChoice
from infoscope.scope.config import Rule
from infoscope.stages.attribute.stage import Attribute
from infoscope.stages.backbone import hook_of, load_backbone
from infoscope.stages.images import SPLITS, count_images, fingerprint_images, open_split
from infoscope.stages.predict.stage import EmbeddedClasses, Predict, has_prompts
from infoscope.stages.prediction_latents import OneImage
from infoscope.stages.rank import Rank
from infoscope.stages.sae import choose_tokens, sae_of
from infoscope.stages.score.stage import partition_of
from infoscope.stages.tokens import find_sizes
from infoscope.vision.backbone import Tokens

PICTURE_PX = 640
"""Side of a browsed image's picture, at most: it is shown large, in a page that has two beside each other."""

USUAL_K = 32
"""Latents that fire on a patch, about, where the settings do not say."""


def find_square_px(ctx: Context) -> int:
    """Return the side of the square that both crops are cut from; a shift that is none is refused by others."""
    sizes = find_sizes(ctx)
    return (sizes.grid + ctx.config.scope.shift_patches) * sizes.patch_px


def count_browsed(ctx: Context) -> dict[str, int]:
    """Return how many images of each split are browsed: half of them of the test set, where there is one."""
    n = ctx.config.explore.n_browsed
    n_test = min(n // 2, count_images(ctx, "test"))
    counts = {"train": min(n - n_test, count_images(ctx, "train")), "test": n_test}
    return {split: count for split, count in counts.items() if count}


@once
def list_browsed(ctx: Context) -> dict[str, Int64[np.ndarray, " n"]]:
    """Return the images of each split that are browsed, ascending positions, drawn by `explore.seed`.

    Half of those of the training set are the first images of latents of the first SAE seed, so that something is seen
    in them. Images that cannot be read (any more) are left out.
    """
    counts, found = count_browsed(ctx), {}
    for place, split in enumerate(SPLITS):
        if split not in counts:
            continue
        images, draw = open_split(ctx, split), np.random.default_rng([ctx.config.explore.seed, place])
        chosen: list[int] = []
        if split == "train":
            firsts = np.unique(Rank.at(ctx, ctx.config.seeds[0]).load().top_images[:, 0])
            chosen += _take(images, draw.permutation(firsts[firsts >= 0]), counts[split] // 2)
        others = np.setdiff1d(np.arange(len(images)), chosen)
        chosen += _take(images, draw.permutation(others), counts[split] - len(chosen))
        found[split] = np.sort(np.array(chosen, dtype=np.int64))
    return found


def _take(images: ImageSet, positions: Int64[np.ndarray, " n"], n: int) -> list[int]:
    """Return the first positions whose images can be read."""
    taken = []
    for position in positions.tolist():
        if len(taken) == n:
            break
        with suppress(ImageError):
            images.load(position, CHECK_PX)
            taken.append(position)
    return taken


@once
def has_predictions(ctx: Context, seed: int) -> bool:
    """Whether predictions were made, or are made by the same command, so that browsed images are predicted too."""
    if not has_prompts(ctx):
        return False
    stages = (Predict, Attribute)
    with processes.alone():  # each process of several looks for itself: their keys read scores
        return any(stage.is_goal(ctx) or stage.at(ctx.reading(), seed).find() is not None for stage in stages)


def say_predictions(ctx: Context, seed: int) -> str | None:
    """Return of what predictions of browsed images are, in a sentence; None where they have none."""
    if not has_predictions(ctx, seed):
        return None
    n_classes = len(EmbeddedClasses.at(ctx).load().class_names)
    return f"The model's own zero-shot prediction of the whole image among {n_classes:,} classes."


def needs_of_browsed(ctx: Context, seed: int) -> Needs:
    """Return what `write_browsed_images` reads besides `needs_of_groups`."""
    return Needs(head=EmbeddedClasses.at(ctx)) if has_predictions(ctx, seed) else Needs()


def key_of_browsed(ctx: Context) -> Key:
    """Return what determines which images are browsed, and how they look, besides the ranking of the first seed."""
    images = {split: fingerprint_images(ctx, split) for split in count_browsed(ctx)}
    return {"images": images, "n_browsed": ctx.config.explore.n_browsed, "seed": ctx.config.explore.seed}


def count_browsed_forwards(ctx: Context) -> int:
    """Return how many images go through the backbone, or a part of it, at most."""
    rule, number = ctx.config.partition.chosen
    n_groups = int(number or 0) if rule is Rule.bands else 2
    n_predicted = sum(has_predictions(ctx, seed) for seed in ctx.config.seeds)
    return (3 + n_predicted * count_forwards(n_groups)) * sum(count_browsed(ctx).values())


def count_browsed_bytes(ctx: Context) -> int:
    """Return about what the files of the browsed images of one seed take."""
    sizes, k = find_sizes(ctx), getattr(ctx.config.sae, "k", None) or USUAL_K
    side = min(PICTURE_PX, find_square_px(ctx))
    of_maps = 3 * sizes.n_patches * k * BYTES_PER_PATCH
    return round(sum(count_browsed(ctx).values()) * (of_maps + 0.5 * side**2 + 4000))


def write_browsed_images(ctx: Context, views: Mapping[int, str], folder: Path) -> dict[str, list[int]]:
    """Write what fires in each browsed image, `data/<view>/images/<set>-<image>.js`, and return which images these are.

    Each image and each of its crops is encoded once, for all SAEs.

    Args:
        views: the id of the view of each SAE seed.
        folder: of the explorer.
    """
    browsed, scope = list_browsed(ctx), ctx.config.scope
    if not any(map(len, browsed.values())):
        return {}
    backbone = load_backbone(ctx)
    saes = {seed: sae_of(ctx, seed).load() for seed in views}
    n, n_done = sum(map(len, browsed.values())), 0
    with ctx.display.bar("browsed images", n, "images") as advance:
        for split, positions in browsed.items():
            images, predictors = open_split(ctx, split), {seed: _make_predictor(ctx, seed, split) for seed in views}
            both = [
                iterate_images(images, size_px, 1, positions, device=ctx.device)
                for size_px in (backbone.image_px, find_square_px(ctx))
            ]
            for position, whole, square in zip(positions.tolist(), *both, strict=True):
                pictures = whole.images[0], square.images[0]
                tokens = encode_image(backbone, hook_of(ctx).layer, *pictures, scope.shift_patches, scope.diagonal)
                picture = _draw(square.images[0])
                for seed, view in views.items():
                    crops = [_show_crop(*crop) for crop in list_latents(saes[seed], tokens, backbone.grid)]
                    content: dict[str, Any] = {"picture": picture, "crops": crops}
                    if (predict := predictors[seed]) is not None:
                        content["predictions"] = predict(tokens, position)
                    put(folder, f"{view}/images/{split}-{position}", content)
                n_done += 1
                advance(n_done, n)
    return {split: positions.tolist() for split, positions in browsed.items()}


def _draw(square: UInt8[Tensor, "3 size_px size_px"]) -> str:
    """Return the square that both crops are cut from as a URL, larger than its thumbnail."""
    picture = Image.fromarray(square.permute(1, 2, 0).cpu().numpy())
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    return make_picture_url(picture, 85)


def _show_crop(latents: np.ndarray, maps: np.ndarray, n_left_out: int) -> dict[str, Any]:
    """Return a crop as the page reads it: maps as shares of each latent's peak, which are of very different size."""
    peaks = maps.max(axis=(1, 2), initial=0.0)
    shares = maps / peaks[:, None, None]
    return {"latents": latents, "peaks": pack(peaks), "maps": pack_maps(shares), "n_left_out": n_left_out}


def _make_predictor(ctx: Context, seed: int, split: str) -> Callable[[Tokens, int], dict[str, Any]] | None:
    """Return what predicts an image of a split from its tokens, whole first, and its place in the split, as the page
    reads it; None where no predictions were made."""
    if not has_predictions(ctx, seed):
        return None
    sae, backbone, head = sae_of(ctx, seed).load(), load_backbone(ctx), EmbeddedClasses.at(ctx).load()
    images, reads = open_split(ctx, split), choose_tokens(ctx)
    groups = {name: members for name, members in partition_of(ctx, seed).groups.items() if members.any()}
    labels = images.labels(ctx.config.predict.target) if Truth.labels in images.truths else None

    def predict(tokens: Tokens, position: int) -> dict[str, Any]:
        alone = Tokens(*(part[:1].to(sae.W_dec.device) for part in tokens))
        inputs = PredictInputs(
            *(sae, OneImage(alone), backbone, hook_of(ctx).layer),
            edits_patches=reads is not TokenChoice.cls,
            edits_prefix=reads is not TokenChoice.patch,
        )
        label = None if labels is None else int(labels[position])
        found = predict_image(inputs, head, alone, groups, label, ctx.config.predict.batch_images)
        return {
            "classes": found.classes,
            "texts": [head.class_names[place] for place in found.classes],
            "label": label,
            "before": _round(found.before),
            "groups": [{"name": name, "probabilities": _round(p)} for name, p in found.groups.items()],
            "latents": [
                {"latent": latent, "probabilities": _round(p), "attribution": a}
                for latent, p, a in zip(found.latents, found.without, found.attributions, strict=True)
            ],
            "n_classes": len(head.class_names),
        }

    return predict


def _round(probabilities: np.ndarray) -> np.ndarray:
    """Return float32 probabilities in as many digits as they have."""
    return probabilities.astype(np.float64).round(7)
