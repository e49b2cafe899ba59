"""Weights of CLIPs under the names of an open_clip model, whichever of its two layouts it has."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

SCALES = {"logit_scale", "logit_bias"}
"""Of the cosines of images and texts: of no use without a text tower."""
_TEXT = ("positional_embedding", "token_embedding.", "transformer.", "ln_final.", "text_projection", "cls_emb")
_NO_WEIGHTS = {"attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size", "n_averaged"}
"""Last parts of the names of tensors that are constants or counts."""


def to_open_clip(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names that a model expects.

    Args:
        state: open_clip's, with the text tower under `text.` or not, or an image tower alone, by names from its root.
        expected: the model's own.
    """
    state = {name: value for name, value in state.items() if not _is_beside(name)}
    if "class_embedding" in state or "patch_embed.proj.weight" in state:  # a bare tower
        return {f"{_find_prefix(state, expected)}{name}": value for name, value in state.items()}
    if "text.positional_embedding" in expected:
        state = {f"text.{name}" if name.startswith(_TEXT) else name: value for name, value in state.items()}
    elif "positional_embedding" in expected:
        state = {name.removeprefix("text."): value for name, value in state.items()}
    for name in SCALES & state.keys() & expected.keys():
        if state[name].numel() == 1:
            state[name] = state[name].reshape(expected[name].shape)
    return state


def _is_beside(name: str) -> bool:
    """Whether a tensor is no part of a CLIP: a constant, a count, a classifier that was put on its image tower."""
    return name.startswith("classifier.") or name.rpartition(".")[2] in _NO_WEIGHTS


def _find_prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    if "class_embedding" in state:
        return "visual."
    return "visual.trunk." if "visual.trunk.patch_embed.proj.weight" in expected else ""
