"""JPEGs decoded, and pictures resized, by torchvision: what `data.decoder` offers beside Pillow, and near it.

torchvision knows less of what lies in files: Pillow reads their headers, and whatever is no plain JPEG, or is damaged,
is left to it. torchvision is imported where it is needed: that takes seconds.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, JpegImagePlugin
from torch import Tensor

from infoscope.data.config import Decoder, Resize
from infoscope.runtime.errors import InputError, get_first_line

Array = UInt8[np.ndarray, "height width 3"]
Pixels = UInt8[Tensor, "3 height width"]

MAX_ASPECT = 4.0
"""Of longer pictures Pillow makes a square: torchvision's crop resizes what is cut off, too."""
_JPEGS = ("JPEG", "MPO")
"""Formats as Pillow calls them; an MPO is a JPEG with more pictures behind it."""
_ORIENTATION, _UPRIGHT = 0x0112, 1
_END_OF_IMAGE = b"\xff\xd9"
_N_AT_ONCE = 32
"""Decoded together on a GPU, at their full size."""


def decode_jpeg(data: bytes) -> Array | None:
    """Return the picture of a JPEG in colour or grey, upright, as RGB; None: it is something else, or damaged."""
    header = _read_header(data)
    if header is None or header.mode not in ("RGB", "L"):
        return None
    try:
        (pixels,) = _decode([_to_tensor(data)], torch.device("cpu"))
    except RuntimeError:
        return None
    return _turn(pixels.permute(1, 2, 0).numpy(), _find_orientation(header))


def is_plain(data: bytes) -> bool:
    """Whether a file is a JPEG that leaves a decoder no choice: whole, upright, of three colours as most have them."""
    header = _read_header(data)
    if header is None or header.format != "JPEG" or header.mode != "RGB" or not data.endswith(_END_OF_IMAGE):
        return False
    is_usual = header.info.get("adobe_transform", 1) == 1 and [layer[0] for layer in header.layer] == [1, 2, 3]
    return is_usual and can_resize(*header.size, Resize.crop) and _find_orientation(header) == _UPRIGHT


def decode_plain(files: Sequence[bytes], device: torch.device) -> Iterator[Pixels | None]:
    """Yield the pictures of plain JPEGs, decoded on a device; None: one is damaged."""
    for start in range(0, len(files), _N_AT_ONCE):
        tensors = [_to_tensor(data) for data in files[start : start + _N_AT_ONCE]]
        try:
            yield from _decode(tensors, device)
        except RuntimeError:  # of which it is not said
            for tensor in tensors:
                try:
                    yield from _decode([tensor], device)
                except RuntimeError:
                    yield None


def check_decoder(decoder: Decoder, gpu: torch.device) -> None:
    """Refuse what cannot be had here; what is needed is imported, so that helpers have it from the start.

    Raises:
        InputError: torchvision decodes no JPEGs, or not on this GPU, which nvJPEG needs.
    """
    if decoder is Decoder.pillow:
        return
    problem = ""
    try:
        import torchvision.transforms.v2.functional  # noqa: F401
        from torchvision.io import decode_jpeg  # noqa: F401
    except ImportError as error:  # 0.29 announces that decoding will go
        problem = get_first_line(error)
    if decoder is Decoder.nvjpeg and not problem:
        problem = _find_problem(gpu)
    if problem:
        on, other = (" on a GPU", "torchvision") if decoder is Decoder.nvjpeg else ("", "pillow")
        raise InputError(
            f"Expected a torchvision that decodes JPEGs{on} for data.decoder={decoder.name}, got: {problem}; set"
            f" data.decoder={other}."
        )


def _find_problem(gpu: torch.device) -> str:
    """Say why a GPU decodes no JPEGs; "": it does."""
    if not torch.cuda.is_available():
        return "no GPU"
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    try:
        _decode([_to_tensor(buffer.getvalue())], gpu)
    except RuntimeError as error:
        return get_first_line(error)
    return ""


def can_resize(width: int, height: int, resize: Resize) -> bool:
    """Whether `resize_pixels` makes a square of such a picture."""
    return resize is Resize.squash or max(width, height) <= MAX_ASPECT * min(width, height)


def resize_pixels(pixels: Pixels, size_px: int, resize: Resize) -> UInt8[Tensor, "3 size size"]:
    """Return a picture as a square of side `size_px` (antialiased bicubic), where it lies: as `resize_image`."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import resize as resize_to

    height, width = pixels.shape[-2:]
    if (height, width) == (size_px, size_px):
        return pixels
    if resize is Resize.squash:
        return resize_to(pixels, [size_px, size_px], InterpolationMode.BICUBIC, antialias=True)
    high, wide = (int(size_px * side / min(height, width)) for side in (height, width))
    top, left = round((high - size_px) / 2), round((wide - size_px) / 2)
    resized = resize_to(pixels, [high, wide], InterpolationMode.BICUBIC, antialias=True)
    return resized[:, top : top + size_px, left : left + size_px]


def _decode(files: list[UInt8[Tensor, " n_bytes"]], device: torch.device) -> list[Pixels]:
    """Return RGB pictures of JPEGs.

    Raises:
        RuntimeError: one is damaged, or the device decodes none.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torchvision 0.29 announces that this will go
        decoded = decode_jpeg(files, ImageReadMode.RGB, device=device)
    assert isinstance(decoded, list)  # as the files are
    if device.type == "cuda":
        for pixels in decoded:
            pixels.record_stream(torch.cuda.current_stream(device))  # it was made on another one
    return decoded


def _read_header(data: bytes) -> JpegImagePlugin.JpegImageFile | None:
    """Return what Pillow knows of a JPEG before it is decoded."""
    with warnings.catch_warnings(), suppress(Exception):  # Pillow's own reading says what is wrong
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data), formats=_JPEGS)
        return image if isinstance(image, JpegImagePlugin.JpegImageFile) else None
    return None


def _find_orientation(header: Image.Image) -> int:
    with suppress(Exception):  # damaged EXIF tags do not make the picture unreadable
        return header.getexif().get(_ORIENTATION, _UPRIGHT)
    return _UPRIGHT


def _turn(pixels: Array, orientation: int) -> Array:
    """Return a picture upright, as `ImageOps.exif_transpose` does."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _to_tensor(data: bytes) -> UInt8[Tensor, " n_bytes"]:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
