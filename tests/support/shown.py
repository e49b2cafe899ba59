"""What a notebook shows of an object."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def read_png(shown: Any) -> np.ndarray:
    """Return the picture that a notebook shows, [height, width, 3]."""
    png = shown._repr_png_()
    return np.asarray(Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB"))
