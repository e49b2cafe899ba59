"""How the explorer's data lie on the disk: scripts, for a page that is opened from the disk can load nothing else.

Each file `data/<key>.js` calls `infoscope.put(key, value)` with plain JSON; `page/data.js` loads it when it is needed.
Arrays are base64 of their little-endian bytes (`pack`).
"""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image

from infoscope.runtime.errors import InputError

FORMAT = 1
"""Of the whole folder, in its manifest: raise it when a page of before could not read what is written now."""
DTYPES = ("float64", "float32", "int32", "uint32", "uint16", "uint8")
"""Of packed arrays: what JavaScript has typed arrays for."""
LEVELS = 65535
"""Steps between 0 and the largest activation in which maps are kept."""


BYTES_PER_PATCH = (2 + 2) * 4 / 3
"""Of an active patch in packed maps: its place and its value, in base64."""


def put(folder: Path, key: str, value: Any) -> int:
    """Write a value as `data/<key>.js` below the explorer's folder, and return its size in bytes.

    Args:
        key: parts of a path, of letters, digits, "_", "-" and ".".
        value: plain JSON types; numbers that are not finite become null.
    """
    path = folder / "data" / f"{key}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (
        f"infoscope.put({json.dumps(key)}, {json.dumps(_make_plain(value), allow_nan=False, separators=(',', ':'))});\n"
    )
    path.write_text(text, encoding="ascii")
    return len(text)


def name_thumbnail(image_set: str, image: int) -> str:
    """Return the key of an image's thumbnail, `images/<set>/<thousand>/<image>`; `page/data.js` makes the same."""
    return f"images/{image_set}/{image // 1000:04d}/{image:07d}"


def put_thumbnail(folder: Path, image_set: str, image: int, picture: Image.Image) -> int:
    """Write a thumbnail (WebP, quality 75) under its key, see `name_thumbnail`; return its size in bytes.

    A page that was opened from the disk may show an image file but never read its pixels, so it could save no picture
    of what it shows. As a data: URL in a script each image still lies there once, a third larger.

    Args:
        image_set: id of the set.
        picture: the whole square that both crops are cut from.
    """
    return put(folder, name_thumbnail(image_set, image), make_picture_url(picture, 75))


def make_picture_url(picture: Image.Image, quality: int) -> str:
    """Return a picture as a data: URL of WebP."""
    data = io.BytesIO()
    picture.convert("RGB").save(data, "WEBP", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def read(folder: Path, key: str) -> Any:
    """Return the value of `data/<key>.js` below an explorer's folder; it is read as JSON, and nothing of it is run.

    Raises:
        InputError: the file is not there, or is none that `put` has written.
    """
    path = folder / "data" / f"{key}.js"
    try:
        text = path.read_text(encoding="ascii")
        begins = f"infoscope.put({json.dumps(key)}, "
        if not (text.startswith(begins) and text.endswith(");\n")):
            raise ValueError("it is no data of an explorer")
        return json.loads(text[len(begins) : -len(");\n")])
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is no data of an explorer"
        raise InputError(
            f"The explorer in {folder} is not whole, {path.relative_to(folder)} cannot be read ({reason}): copy the"
            " whole folder again, or delete it and make it again with stage=explore."
        ) from error


def unpack(packed: dict[str, Any]) -> Shaped[np.ndarray, "..."]:
    """Return the array that `pack` has made JSON of.

    Raises:
        ValueError, KeyError, TypeError: it is none of those.
    """
    if packed["dtype"] not in DTYPES:
        raise ValueError(f"expected one of {', '.join(DTYPES)}, got {packed['dtype']!r}")
    data = base64.b64decode(packed["base64"], validate=True)
    array = np.frombuffer(data, np.dtype(packed["dtype"]).newbyteorder("<")).astype(packed["dtype"])
    return array.reshape(packed["shape"])


def pack(array: Shaped[np.ndarray, "..."]) -> dict[str, Any]:
    """Return an array as JSON: {"dtype", "shape", "base64"}; of a type in `DTYPES`, and switches as uint8."""
    array = array.astype(np.uint8) if array.dtype == bool else array
    assert array.dtype.name in DTYPES, array.dtype
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": base64.b64encode(data).decode()}


def pack_maps(maps: Float[np.ndarray, "n grid grid"]) -> dict[str, Any]:
    """Return activation maps as JSON, sparse and in 65,535 steps of their largest value (an error of 8e-6 of it).

    {"n", "scale", "counts", "places", "values"}: of each map the active patches, counted row by row, and their
    activation as a share of `scale` in uint16, one map after the other.

    Args:
        maps: not negative; all are scaled by the largest value among them.
    """
    assert not np.any(maps < 0), "activation maps are not negative"
    n = len(maps)
    scale = float(maps.max()) if maps.size else 0.0
    steps = np.rint(maps.reshape(n, math.prod(maps.shape[1:])) / (scale or 1.0) * LEVELS).astype(np.uint16)
    which, places = np.nonzero(steps)
    return {
        "n": n,
        "scale": scale,
        "counts": pack(np.bincount(which, minlength=n).astype(np.uint16)),
        "places": pack(places.astype(np.uint16)),
        "values": pack(steps[which, places]),
    }


def unpack_maps(packed: dict[str, Any], grid: int) -> Float[np.ndarray, "n grid grid"]:
    """Return the maps that `pack_maps` has made JSON of."""
    maps = np.zeros((packed["n"], grid * grid))
    which = np.repeat(np.arange(packed["n"]), unpack(packed["counts"]))
    maps[which, unpack(packed["places"])] = unpack(packed["values"]) / LEVELS * packed["scale"]
    return maps.reshape(-1, grid, grid)


def pack_texts(texts: Shaped[np.ndarray, " n"]) -> dict[str, Any]:
    """Return texts as JSON: the different ones, and of each place which it is."""
    found, codes = np.unique(texts, return_inverse=True)
    return {"texts": [str(text) for text in found], "codes": pack(codes.astype(np.int32))}


def shorten(values: Any) -> Any:
    """Return numbers to six significant digits: more are no information, and half of a file."""
    values = np.asarray(values, dtype=np.float64)
    return np.array([float(f"{value:.6g}") for value in values.ravel()]).reshape(values.shape)


def _make_plain(value: Any) -> Any:
    match value:
        case dict():
            return {str(key): _make_plain(one) for key, one in value.items()}
        case list() | tuple():
            return [_make_plain(one) for one in value]
        case np.ndarray():
            return _make_plain(value.tolist())
        case np.generic():
            return _make_plain(value.item())
        case float():
            return value if math.isfinite(value) else None
        case _:
            return value
