"""The tokens of every image at the hooked layer, kept or encoded as they are asked for."""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from infoscope.data.config import RAISE, DataConfig, DataKind
from infoscope.data.decoding import check_decoder
from infoscope.data.images import CHECK_PX, ImageBatch, ImageError, ImageSet
from infoscope.data.reader import ImageReader, iterate_images
from infoscope.data.recalled import save_images
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import ArtifactStage, Handle, Key, Needs, NotBuiltYet, Work
from infoscope.runtime import processes
from infoscope.runtime.copies import count_behind
from infoscope.runtime.errors import InputError
from infoscope.runtime.files import write_json
from infoscope.runtime.manifests import Artifact
from infoscope.runtime.store import Workspace
from infoscope.stages.backbone import (
    check_captions,
    compile_backbone,
    fingerprint_model,
    hook_of,
    load_backbone,
    load_tower,
    say_model,
    say_unread_facts,
)
from infoscope.stages.images import check_split, count_images, fingerprint_images, open_split, scenes_of
from infoscope.stages.train_clip import needs_trained
from infoscope.vision.hooks import POOLED, PROJECTED
from infoscope.vision.tokens.extract import TokenCache, Wanted, compute_cache_bytes, extract_layers
from infoscope.vision.tokens.shards import N_BEHIND
from infoscope.vision.tokens.source import LiveTokens, ReadImages, TokenSource, choose_batch_images


class Tokens(ArtifactStage[TokenSource]):
    """The tokens of a split after a block; an item is (split, data, layer).

    Those of the layers that other jobs of the same sweep will ask for (`Job.layers`) come from the same forwards.
    """

    kind = "tokens"

    @classmethod
    def at(
        cls, ctx: Context, split: str, data: DataConfig | None = None, layer: int | None = None
    ) -> Handle[TokenSource]:
        """Return the tokens of a split, of the experiment's own data and layer unless others are given."""
        return super().at(ctx, split, data or ctx.config.data, hook_of(ctx, layer).layer)

    def name(self, ctx: Context, split: str, data: DataConfig, layer: int) -> str:
        return f"{ctx.config.model.name}-{split}"

    def describe(self, ctx: Context, split: str, data: DataConfig, layer: int) -> str:
        return f"tokens, {split}" + ("" if data == ctx.config.data else f" of {data.kind.name}")

    def needs(self, ctx: Context, split: str, data: DataConfig, layer: int) -> Needs:
        return Needs(**vars(scenes_of(ctx, data)), **needs_trained(ctx))

    def key(self, ctx: Context, up: Needs, split: str, data: DataConfig, layer: int) -> Key:
        return {
            "model": fingerprint_model(ctx),
            **hook_of(ctx, layer).key(),
            "images": fingerprint_images(ctx, split, data),
            "dtype": data.cache_dtype if data.store_tokens else None,
        }

    def check(self, ctx: Context, split: str, data: DataConfig, layer: int) -> None:
        self.say_how(ctx)
        say_unread_facts(ctx, data)
        if split == "train":  # of test images, those who need them say why
            check_split(ctx, split, data)
        found = self.at(ctx, split, data, layer).find()
        if found is not None:
            _say_skipped(ctx, found.folder, split, data)
            return
        if data.kind is DataKind.captions:
            check_captions(ctx, open_split(ctx, split, data))
        check_decoder(data.decoder, ctx.device if ctx.device.type == "cuda" else torch.device("cuda"))
        find_sizes(ctx)  # a model that cannot be loaded is refused now

    def say_how(self, ctx: Context) -> None:
        """Say how the model is run."""
        say_model(ctx)

    def build(self, ctx: Context, up: Needs, work: Workspace, split: str, data: DataConfig, layer: int) -> None:
        _encode(ctx, split, data, {layer: work})

    def get(self, handle: Handle[TokenSource]) -> Artifact:
        ctx, (split, data, layer) = handle.ctx, handle.item
        check_split(ctx, split, data)
        if not ctx.job.layers:
            artifact = super().get(handle)
        elif handle.exists():
            artifact = ctx.store.get(handle.spec)
        else:
            others = [self.at(ctx, split, data, other) for other in _find_others(ctx, layer)]
            try:
                artifact = self._get_together(handle, [handle, *others])
            except InputError:  # perhaps another layer's tokens do not fit into float16: its own job is told
                if processes.current().size > 1:
                    raise
                handle.is_known_to_exist = False
                artifact = super().get(handle)
        _say_skipped(ctx, artifact.folder, split, data)
        return artifact

    def _get_together(self, handle: Handle[TokenSource], together: list[Handle[TokenSource]]) -> Artifact:
        """Return the tokens of one layer; those of all that are missing are made by one reading of the images."""
        ctx, (split, data, _) = handle.ctx, handle.item
        upstream = {
            one.hash: {role: node.get() for role, node in one.needs if isinstance(node, Handle)} for one in together
        }

        def build(works: dict[str, Workspace]) -> None:
            missing = [one for one in together if one.hash in works]
            start = time.perf_counter()
            with ctx.recorded(self.kind):
                _encode(ctx, split, data, {one.item[2]: works[one.hash] for one in missing})
            for one in missing:
                one.note(works[one.hash], (time.perf_counter() - start) / len(missing))

        specs = {one.hash: one.spec for one in together}
        return ctx.store.get_together(specs, build, shared=True, upstream=upstream)[handle.hash]

    def load(self, ctx: Context, folder: Path, split: str, data: DataConfig, layer: int) -> TokenSource:
        if data.store_tokens:
            return TokenCache(folder)
        images = open_split(ctx, split, data)
        backbone = load_tower(ctx, images)
        compile_backbone(ctx, len(images))
        read = keep_open(images, backbone.image_px, data.n_workers, ctx.device)
        return LiveTokens(folder, backbone, read)

    def work(self, ctx: Context, split: str, data: DataConfig, layer: int) -> Work:
        n, sizes = count_images(ctx, split, data), find_sizes(ctx)
        kept_bytes = n * sizes.n_patches * 4  # the norms
        n_values = (sizes.n_patches + sizes.n_prefix) * sizes.d_in
        n_batch, n_behind = choose_batch_images(ctx.device.type), N_BEHIND
        held = 4 * n_batch * n_values
        if data.store_tokens:
            value_bytes = np.dtype(data.cache_dtype).itemsize
            kept_bytes += n * n_values * value_bytes
            if ctx.device.type == "cuda":
                each = [n_batch * many * sizes.d_in * value_bytes for many in (sizes.n_patches, sizes.n_prefix)]
                n_behind = count_behind(each, N_BEHIND)
            held += (n_behind + 1) * n_batch * n_values * value_bytes
        like = [ctx.config.model.name, layer, data.store_tokens]
        others = [self.at(ctx, split, data, other) for other in _find_others(ctx, layer)]
        shared = n if any(other.find() is None for other in others) else 0
        return Work(n, like, forwards=n, shared_forwards=shared, disk_bytes=kept_bytes, memory_bytes=held)


def _find_others(ctx: Context, layer: int) -> list[int]:
    """Return the layers that other jobs of the sweep will ask for, and that the model has."""
    others = []
    for other in ctx.job.layers:
        with suppress(InputError):  # said to the job that asks for it
            others.append(hook_of(ctx, other).layer)
    return [other for other in dict.fromkeys(others) if other != layer]


def _encode(ctx: Context, split: str, data: DataConfig, works: Mapping[int, Workspace]) -> None:
    """Encode the images of a split once, and keep their tokens after each of some blocks.

    Args:
        works: where, by layer.
    """
    images, dtype = open_split(ctx, split, data), data.cache_dtype if data.store_tokens else None
    backbone = load_tower(ctx, images)
    compile_backbone(ctx, len(images))
    if dtype is not None:
        ctx.check_disk(len(works) * compute_cache_bytes(backbone, len(images), dtype))

    def read(positions: np.ndarray, batch_images: int) -> Iterator[ImageBatch]:
        n_done = 0
        for batch in iterate_images(
            images, backbone.image_px, batch_images, positions, data.on_error, data.n_workers, ctx.device
        ):
            yield batch
            n_done += len(batch.index)
            advance(n_done, len(positions))

    blocks = "" if len(works) == 1 else f" after blocks {', '.join(map(str, works))}"
    with ctx.display.bar(f"encoding {split} images{blocks}", len(images), "images") as advance:
        wanted = [Wanted(layer, work.folder, work.progress) for layer, work in works.items()]
        found = extract_layers(backbone, read, len(images), wanted, dtype)
    if processes.is_main():
        skipped = find_skipped(images, found[0].image_index)
        for work in works.values():
            write_json(work.folder / "skipped.json", skipped)
            if data.kind is not DataKind.scenes and not images.is_text:
                save_images(work.folder, images)


def keep_open(images: ImageSet, size_px: int, n_workers: int, device: torch.device) -> ReadImages:
    """Return what reads images again and again, with helpers that stay until it is forgotten.

    (A GPU encodes what one reading brings in little more time than helpers need to start.) A reading within another one
    has helpers of its own.
    """
    reader, is_busy = ImageReader(images, size_px, RAISE, n_workers, device), False

    def read(positions: np.ndarray, batch_images: int) -> Iterator[ImageBatch]:
        nonlocal is_busy
        if is_busy:
            yield from iterate_images(images, size_px, batch_images, positions, RAISE, n_workers, device)
            return
        is_busy = True
        try:
            yield from reader.read(positions, batch_images)
        finally:
            is_busy = False

    weakref.finalize(read, reader.close)
    return read


@once
def _say_skipped(ctx: Context, folder: Path, split: str, data: DataConfig) -> None:
    """Say which images have no tokens, whether these were made just now or long ago."""
    if skipped := json.loads((folder / "skipped.json").read_text(encoding="utf-8")):
        names = ", ".join(list(skipped)[:5]) + (", ..." if len(skipped) > 5 else "")
        n_images = count_images(ctx, split, data)
        ctx.display.say(f"{len(skipped)} of {n_images} {split} images were skipped: {names} (skipped.json)")


@dataclass(frozen=True)
class Sizes:
    """Width of a token, patches per side, tokens before them, pixels of a patch's side."""

    d_in: int
    grid: int
    n_prefix: int
    patch_px: int

    @property
    def n_patches(self) -> int:
        """Patch tokens of an image."""
        return self.grid**2


@once
def find_sizes(ctx: Context) -> Sizes:
    """Return the backbone's sizes, from tokens where they exist; else it is loaded, if it exists."""
    tokens, clip = Tokens.at(ctx, "train").find(), ctx.config.clip
    if tokens is not None:
        meta = tokens.read_json("tokens.json")
        return Sizes(meta["d_in"], meta["grid"], meta["n_prefix"], meta["patch_px"])
    try:
        loaded = load_backbone(ctx)
    except NotBuiltYet:
        whole, grid = Sizes(clip.embed_dim, 1, 0, clip.image_px), clip.grid
        at = {POOLED: whole, PROJECTED: Sizes(clip.embed_dim, grid, 0, clip.patch_px)}
        return at.get(ctx.config.model.site, Sizes(clip.width, grid, 1, clip.patch_px))
    return Sizes(loaded.d_in, loaded.grid, loaded.n_prefix_tokens, loaded.patch_px)


def find_skipped(images: ImageSet, read: np.ndarray) -> dict[str, str]:
    """Return why images could not be read, by id: all that are not among those read, whichever process or run did it.

    Args:
        read: positions of the images that were.
    """
    reasons = {}
    for i in np.setdiff1d(np.arange(len(images)), read).tolist():
        try:
            images.load(i, CHECK_PX)
            reason = "could not be read when its tokens were made"
        except ImageError as error:
            reason = error.reason
        reasons[images.image_ids[i]] = reason
    return reasons
