"""What the log of a run gets of an explorer: of each group the latents of lowest and highest CDS, or of what else the
groups divide, with pictures."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from infoscope.explorer.format import name_thumbnail, read, unpack_maps
from infoscope.explorer.tables import find_divided, read_latents
from infoscope.runtime.errors import InputError
from infoscope.sae.latent_table import LatentTable
from infoscope.stages.score.example_figure import lay_heat
from infoscope.tracking.tracker import Tracker

N_EXTREMES = 4
"""Latents of the lowest, and of the highest values of each group."""
N_PAIRS = 4
"""Top images of each, as pairs of crops."""
CROP_PX = 112
"""Side of a crop, at least."""
MAX_ROWS = 200_000
"""Of a table: more Weights & Biases does not take."""
_GREY = 154
_GAP_PX = 4


def log_latents(tracker: Tracker, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Log the latents of the explorer's own views: `latents_<view>` has those of `choose_extremes` with a picture each,
    `all_latents_<view>` all of them, up to `MAX_ROWS`.

    Args:
        folder: of the explorer.
    """
    for view in manifest["views"]:
        if "from" in view:
            continue
        latents = read_latents(folder, view)
        with tempfile.TemporaryDirectory() as place:
            chosen, pictures = choose_extremes(latents, by=find_divided(view).name), list[Path | None]()
            for latent in chosen:
                file = Path(place) / f"latent_{latent}.png"
                picture = draw_pairs(folder, view, latent)
                if picture is not None:
                    picture.save(file)
                pictures.append(None if picture is None else file)
            rows = list_rows(latents, np.array(chosen, dtype=int))
            names = [column.name for column in latents]
            with_pictures = [[row[0], of, *row[1:]] for row, of in zip(rows, pictures, strict=True)]
            tracker.log_table(f"latents_{view['id']}", ["latent", "images", *names], with_pictures)
        if len(latents) <= MAX_ROWS:
            rows = list_rows(latents, np.arange(len(latents)))
            tracker.log_table(f"all_latents_{view['id']}", ["latent", *names], rows)


def choose_extremes(latents: LatentTable, n: int = N_EXTREMES, by: str = "cds") -> list[int]:
    """Return the n latents of lowest and the n of highest values of each group, the lowest of all first.

    Args:
        by: the column of what the groups divide.
    """
    values, groups = latents[by], latents["group"]
    chosen = set[int]()
    for group in np.unique(groups[np.isfinite(values)]):
        of = np.flatnonzero((groups == group) & np.isfinite(values))
        order = of[np.argsort(values[of], kind="stable")].tolist()
        chosen |= {*order[:n], *order[-n:]}
    return sorted(chosen, key=lambda latent: (values[latent], latent))


def list_rows(latents: LatentTable, some: np.ndarray) -> list[list[Any]]:
    """Return some latents as rows of numbers, switches and texts; None where a latent has no value."""
    columns = [_to_cells(column.values[some]) for column in latents]
    return [list(row) for row in zip(some.tolist(), *columns, strict=True)]


def _to_cells(values: np.ndarray) -> list[Any]:
    if values.dtype.kind != "f":
        return values.tolist()
    return [value if known else None for value, known in zip(values.tolist(), np.isfinite(values), strict=True)]


def draw_pairs(folder: Path, view: Mapping[str, Any], latent: int) -> Image.Image | None:
    """Return the top images of a latent as pairs of crops, its map laid over each; None: it has no image.

    The two maps of a pair have one scale, from 0 to the larger maximum of the two; an image that is missing is grey.
    """
    detail = read(folder, f"{view['id']}/latents/{latent // view['block_size']}").get(str(latent), {})
    ranks = detail.get("ranks", {"images": []})
    images = ranks["images"][:N_PAIRS]
    if not images:
        return None
    grid, shift = view["grid"], view["shift"]
    maps = unpack_maps(ranks["maps"], grid)
    patch_px = -(-CROP_PX // grid)
    is_main = view["diagonal"] == "main"
    pairs: list[UInt8[np.ndarray, "height width 3"]] = []
    for rank, image in enumerate(images):
        square = _read_square(folder, view["set"], image, (grid + shift) * patch_px)
        scale = float(maps[2 * rank : 2 * rank + 2].max()) or 1.0
        crops = [
            _lay(square, heat / scale, shift * number, shift * (number if is_main else 1 - number), patch_px)
            for number, heat in enumerate(maps[2 * rank : 2 * rank + 2])
        ]
        pairs.append(_join(crops))
    return Image.fromarray(_join(pairs, 3 * _GAP_PX))


def _lay(
    square: UInt8[np.ndarray, "side side 3"], heat: Float[np.ndarray, "grid grid"], top: int, left: int, patch_px: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Return a crop with a map laid over it, of 0..1; `top` and `left` in patches."""
    rows, columns = (slice(start * patch_px, (start + len(heat)) * patch_px) for start in (top, left))
    return np.round(255 * lay_heat(square[rows, columns], heat)).astype(np.uint8)


def _join(pictures: list[UInt8[np.ndarray, "height width 3"]], gap_px: int = _GAP_PX) -> UInt8[np.ndarray, "h w 3"]:
    """Return pictures of one height beside each other, on white."""
    gap = np.full((len(pictures[0]), gap_px, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _read_square(folder: Path, image_set: str, image: int, side_px: int) -> UInt8[np.ndarray, "side side 3"]:
    """Return the square of an image that both crops are cut from; grey where there is none."""
    try:
        url = read(folder, name_thumbnail(image_set, image))
    except InputError:
        return np.full((side_px, side_px, 3), _GREY, np.uint8)
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGB").resize((side_px, side_px), Image.Resampling.BICUBIC))
