"""Whether weights are exactly a model's own; a sentence with sizes, names and an architecture that fits where not."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from timm.models import is_model_in_modules
from torch import Tensor

from infoscope.runtime.errors import InputError, list_some
from infoscope.vision.weights.origins import guess_origin
from infoscope.vision.weights.timm_layout import MODULES, to_timm
from infoscope.vision.weights.towers import Size, find_tower, get_shapes, measure

_N_NAMED = 3
_N_BUILT = 40
_SIZES = {
    "tiny": (192, 12),
    "small": (384, 12),
    "base": (768, 12),
    "large": (1024, 24),
    "so400m": (1152, 27),
    "huge": (1280, 32),
    "giant": (1536, 40),
    "giantopt": (1536, 40),
    "gigantic": (1664, 48),
}
"""Width and depth that a word in the name of an architecture of timm's stands for."""


def check_fit(
    model: torch.nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    arch: str,
    original: Mapping[str, Tensor],
    without: Collection[str] = (),
) -> None:
    """Refuse weights that are not exactly a model's: their names, shapes, kinds and values.

    Args:
        state: under the model's names; `original`: as the file has them, by which architectures are recognised.
        without: names of the model that need not be there.

    Raises:
        InputError: if they are not, by what differs.
    """
    expected = {name: shape for name, shape in get_shapes(model.state_dict()).items() if name not in without}
    if get_shapes(state) != expected:
        raise refuse_names(original, state, expected, path, arch)
    for name, value in state.items():
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise InputError(
                f"{path} holds {name} as {kind}: it is quantised, give weights in float32, float16 or bfloat16."
            )
        if not torch.isfinite(value.float()).all():
            raise InputError(f"{path} holds NaN or Inf in {name}: the file is damaged, get a good one.")


def check_size(
    model: torch.nn.Module, state: Mapping[str, Tensor], path: Path, arch: str, image_px: int | None
) -> tuple[str, ...]:
    """Refuse weights of a tower of another size; return a note where positions are interpolated and nobody asked.

    Args:
        image_px: the side of images that is asked for.

    Raises:
        InputError: by both sizes, and an architecture that fits.
    """
    theirs, ours = measure(get_shapes(state)), measure(get_shapes(model.state_dict()))
    if theirs is None or ours is None:
        return ()  # another family, or no plain tower: names tell
    if theirs[:3] != ours[:3]:
        raise _refuse(state, f"its image tower is {theirs}; that of {arch} is {ours}", path, arch)
    if theirs.grid in (None, ours.grid) or image_px is not None:
        return ()
    return (f"positions of {theirs.grid} x {theirs.grid} patches are interpolated to {ours.grid} x {ours.grid}",)


def refuse_names(
    original: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    path: Path,
    arch: str,
) -> InputError:
    """Return the sentence about weights whose names or shapes are not those that are expected."""
    return _refuse(original, "; ".join(_list_differences(get_shapes(state), expected)), path, arch)


def _refuse(original: Mapping[str, Tensor], reason: str, path: Path, arch: str) -> InputError:
    base = arch.partition(".")[0]
    kind = "timm" if timm.is_model(base) else "open_clip"
    fitting = _find_fitting(original)
    names = [f"model.arch={name}" if of == kind else f"model.kind={of} model.arch={name}" for of, name in fitting]
    if (kind, base) in fitting:
        advice = "give the whole file as its authors wrote it, or the architecture that it was made with"
    elif names:
        advice = f"give {' or '.join(names[:_N_NAMED])}, which is of its size"
    else:
        advice = "give the architecture it was made with"
    return InputError(f"{path} does not fit model.arch={arch}: {reason}; {advice}.")


def _list_differences(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    lacking, more = (
        [name for name in one if name not in other] for one, other in ((expected, found), (found, expected))
    )
    if lacking:
        yield f"it lacks {list_some(lacking)}"
    if more:
        origin = guess_origin(more)
        yield f"it holds {list_some(more)}" + (f", as if it were {origin.partition(':')[0]}" if origin else "")
    for name in [name for name in found if name in expected and found[name] != expected[name]][:1]:
        yield f"its {name} is {list(found[name])}, expected {list(expected[name])}"


def _find_fitting(state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Return kinds and names of architectures: CLIPs of the same size, or timm's that have just these weights."""
    size, tower = measure(get_shapes(state)), find_tower(state)
    if size is None or tower is None:
        return []
    clips = list(_find_clips(get_shapes(state), size)) if tower.startswith("visual.") else []
    return [("open_clip", name) for name in clips] or [("timm", name) for name in _find_timm(state, size)]


def _find_clips(found: Mapping[str, tuple[int, ...]], size: Size) -> Iterator[str]:
    for name in sorted(open_clip.list_models(), key=len):
        cfg = open_clip.get_model_config(name) or {}
        vision, text = cfg.get("vision_cfg", {}), cfg.get("text_cfg", {})
        has_text = "hf_model_name" not in text
        tokens = found.get("token_embedding.weight", found.get("text.token_embedding.weight"))
        embed = found.get("visual.proj", (0, cfg.get("embed_dim")))[1]
        fits_text = tokens is None or (has_text and tokens == (text.get("vocab_size"), text.get("width")))
        if _measure_cfg(vision) == size and embed == cfg.get("embed_dim") and fits_text:
            yield name


def _measure_cfg(vision: Mapping[str, Any]) -> Size | None:
    """Return how large the tower of a configuration of open_clip's is; None: no plain one."""
    match = re.match(r"vit_([a-z0-9]+)_patch(\d+)_\w*?_?(\d+)$", vision.get("timm_model_name") or "")
    if match and match[1] in _SIZES:
        return Size(*_SIZES[match[1]], int(match[2]), int(match[3]) // int(match[2]))
    layers, patch_px = vision.get("layers", 12), vision.get("patch_size", 16)
    if "timm_model_name" in vision or not isinstance(layers, int):
        return None
    return Size(vision.get("width", 768), layers, patch_px, vision.get("image_size", 224) // patch_px)


def _find_timm(state: Mapping[str, Tensor], size: Size) -> list[str]:
    """Return the first architectures of timm's, of this width and depth, that take these weights as they are."""
    words = [word for word, sides in _SIZES.items() if sides == (size.width, size.depth)]
    names = [name for word in words for name in timm.list_models(f"*_{word}_patch{size.patch_px}_*")]
    fitting = (name for name in names[:_N_BUILT] if is_model_in_modules(name, MODULES) and _fits_timm(state, name))
    return [name for name, _ in zip(fitting, range(_N_NAMED + 1), strict=False)]


def _fits_timm(state: Mapping[str, Tensor], name: str) -> bool:
    try:
        with torch.device("meta"):
            tower: Any = timm.create_model(name, num_classes=0)
        found = to_timm(state, tower)
    except Exception:  # no plain tower, or weights that timm's rules cannot read
        return False
    return get_shapes(found) == get_shapes(tower.state_dict())
