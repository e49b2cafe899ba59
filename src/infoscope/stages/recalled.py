"""explore.of: the scores that exist, and the images as they were then, whatever became of these since."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from infoscope.data.config import SKIP, DataConfig
from infoscope.data.images import ImageSet
from infoscope.data.recalled import RecalledImages
from infoscope.data.sets import make_image_sets, open_whole_sets
from infoscope.pipeline.context import Context, once
from infoscope.runtime.errors import InputError
from infoscope.runtime.experiments import read_settings
from infoscope.runtime.manifests import read_manifest

_TOKENS = "tokens"
WHERE = {"data.root", "data.n_workers"}
"""Settings of data that may be others now: where they lie, and how they are read."""


def shows_past(ctx: Context) -> bool:
    """Whether the command shows scores that exist (`explore.of`), so that nothing before them is made."""
    return ctx.config.explore.of is not None


def recall_sets(ctx: Context, data: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Return the training and the test images as they were when the scores of `explore.of` were made.

    Test images are those of the newest tokens that the same settings have made; none where there are none.

    Raises:
        InputError: the tokens that the scores were made from are not there any more.
    """
    if data != ctx.config.data:  # that of a probe
        try:
            return make_image_sets(data)
        except InputError as error:
            ctx.display.say(f"          what was measured on {data.root} is left out ({error})")
            return _NoImages("train", []), _NoImages("test", [])
    folders = _find_tokens(ctx)
    made = {split: _read_key(folder)["images"] for split, folder in folders.items()}
    if (same := _open_same(data, made)) is not None:
        return same
    data_now, why = (None, None), ""
    try:
        data_now = open_whole_sets(replace(data, on_error=SKIP))
    except InputError as error:
        why = f" ({str(error).replace('data.root', 'explore.root')})"
    found: list[ImageSet] = []
    for split, now in zip(("train", "test"), data_now, strict=True):
        if split not in folders:
            found.append(_NoImages(split, []))
            continue
        images = RecalledImages(folders[split], split, made[split], now)
        with ctx.display.bar(f"looking for {len(images):,} {split} images"):
            n_gone = len(images.gone)
        told = f"{n_gone:,} of {len(images):,} {split} images gone, or not what they were when they were scored"
        if n_gone and not images.is_named:
            told = (
                f"{len(images):,} {split} images cannot be shown: their set was another then, and these tokens, of an"
                " earlier version, do not say what they were called"
            )
        if n_gone:
            ctx.display.say(f"          {data.root}: {told}{why}")
        found.append(images)
    return found[0], found[1]


def list_gone(images: ImageSet) -> Int64[np.ndarray, " n_gone"]:
    """Return the positions of images that are known to be gone, of a set as it was."""
    return images.gone if isinstance(images, RecalledImages) else np.zeros(0, np.int64)


class _NoImages(ImageSet):
    """A split of which nothing is known."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "none", "split": self.split, "n_images": 0}


def _open_same(data: DataConfig, made: Mapping[str, Any]) -> tuple[ImageSet, ImageSet] | None:
    """Return the images of now if they are those of then."""
    with suppress(InputError):
        sets = make_image_sets(data)
        if all(of.fingerprint == made.get(of.split, of.fingerprint) for of in sets):
            return sets
    return None


@once
def _find_tokens(ctx: Context) -> dict[str, Path]:
    """Return the tokens that the scores of `explore.of` were made from, and those of test images that go with them."""
    scores = Path(str(ctx.config.explore.of))
    ranking = _find(ctx, "rank", _read_key(scores)["ranking"])
    train = _find(ctx, _TOKENS, _read_key(ranking)["tokens"])
    like = _list_determining(train)
    tests = [
        folder
        for folder in _list_artifacts(ctx, _TOKENS)
        if _get_split(_read_key(folder)["images"]) == "test" and _list_determining(folder) == like
    ]
    created = {folder: (read_manifest(folder) or {}).get("created", "") for folder in tests}
    return {"train": train, **({"test": max(tests, key=created.__getitem__)} if tests else {})}


def _get_split(images: Mapping[str, Any]) -> str:
    return images.get("sample_of", images)["split"]


def _list_determining(tokens: Path) -> dict[str, Any]:
    """Return what training and test tokens of the same settings have in common: their key, and how they were drawn."""
    data = {key: of for key, of in read_settings(tokens).items() if key.startswith("data.") and key not in WHERE}
    return {**_read_key(tokens), **data, "images": None}


def _find(ctx: Context, kind: str, made: str) -> Path:
    places = [folder for folder in _list_artifacts(ctx, kind) if folder.name.endswith(f"-{made}")]
    if not places:
        raise InputError(
            f"explore.of={ctx.config.explore.of} was made from {kind}/*-{made}, which is not in {ctx.store.root} any"
            " more: an explorer needs it too. Give other scores, or make all anew, without explore.of."
        )
    return places[0]


def _list_artifacts(ctx: Context, kind: str) -> Iterator[Path]:
    places = sorted((ctx.store.root / kind).glob("*-*"))
    return (folder for folder in places if not folder.name.startswith(".") and read_manifest(folder) is not None)


def _read_key(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} is no artifact"
    return manifest["key"]
