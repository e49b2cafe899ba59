"""Whose weights a file seems to hold, where they cannot be read: a sentence that helps on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from infoscope.runtime.errors import list_some

_BASE = "give the weights of a plain vision transformer"
_PYTORCH = "give the PyTorch weights"
_NO_BACKBONE = "that is no backbone"
_ORIGINS = (
    (r"lora_(A|B|up|down|embedding)|\.hada_w1_a$", "a LoRA or PEFT adapter", "merge it into its base model"),
    (r"(^|\.)W_(enc|dec)$", "a sparse autoencoder (saelens, PatchSAE)", _NO_BACKBONE),
    (r"(^|\.)dictionary\._?weights?|encoder\.final_block\.", "a sparse autoencoder (overcomplete)", _NO_BACKBONE),
    (r"(^|\.)((tied|pre)_bias|b_dec|latent_bias)$", "a sparse autoencoder", _NO_BACKBONE),
    (r"\.diffusion_model\.|(^|\.)(down_blocks|up_blocks|mid_block|double_blocks)\.", "a diffusion model", _BASE),
    (r"(^|\.)first_stage_model\.|quant_conv\.", "an image autoencoder (VAE)", _BASE),
    (r"(^|\.)conv_proj\.|encoder_layer_\d", "torchvision's vision transformer", "give timm's or transformers' weights"),
    (r"(^|\.)(distillation_token|dist_token)$", "a distilled DeiT, whose CLS is a pair", "give one that is not"),
    (r"relative_position_bias_table|(^|\.)layers\.\d+\.blocks\.", "a Swin, BEiT or data2vec model", _BASE),
    (r"(^|\.)stages?\.?\d|(^|\.)downsample_layers\.", "a ConvNeXt or another model in stages", _BASE),
    (r"inner_attn_ln|ffn_ln|(^|\.)rope|\.q_bias$", "an EVA, BEiT or DINOv3 model", _BASE),
    (r"(^|\.)layer[14]\.0\.conv1", "a ResNet", "choose a vision transformer"),
    (r"(^|\.)neck\.|rel_pos_[hw]$", "Segment Anything's tower", _BASE),
    (r"language_model\.|lm_head\.|(^|\.)layers\.\d+\.self_attn\.q_proj", "a language model", _BASE),
)
"""What names look like, whose they are, what to do; the first that is found counts."""
_FRAGMENTS = (
    (r"text_model\.|token_embedding|word_embeddings", "a text tower alone", "give the file with the image tower"),
    (r"exp_avg|momentum_buffer", "the state of an optimizer alone", "give the model's weights"),
    (r"encoderblock|(^|[./])params[./]", "JAX's or big_vision's weights", _PYTORCH),
    (r"(^|\.)resblocks\.", "a part of a CLIP", "give it whole, as open_clip or transformers writes it"),
    (r"(^|\.)blocks\.\d", "a vision transformer without its patch embedding", "give it whole"),
)
"""The same, of names that files with an image tower have too."""


def guess_origin(names: Sequence[str], origins: Iterable[tuple[str, str, str]] = _ORIGINS) -> str | None:
    """Return whose weights some names look like, and what to do, in words; None if nobody's that is known."""
    found = (origin for origin in origins if any(re.search(origin[0], name) for name in names))
    return next((f"{whose}: {advice}" for _, whose, advice in found), None)


def describe_content(path: Path, arch: str, names: Iterable[str]) -> str:
    """Return the sentence about a file in which no image tower was found."""
    names = list(names)
    if not names:
        return f"Expected {path} to hold a state dict of tensors, found none: {_BASE}."
    origin = (
        guess_origin(names, (*_ORIGINS, *_FRAGMENTS))
        or f"nothing that is known: {_BASE}, as open_clip, timm or transformers writes it"
    )
    return (
        f"{path} does not fit model.arch={arch}: it holds {len(names)} tensors ({list_some(names)}), but no image tower"
        f" of an architecture that is known; it looks like {origin}."
    )
