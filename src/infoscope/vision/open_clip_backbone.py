"""open_clip's vision transformers as frozen backbones: pretrained tags, local files or folders, our scenes_clip."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor

from infoscope.artifacts import compute_hash
from infoscope.errors import InputError
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.planted import make_context_free, make_planted_registers
from infoscope.vision.tokenizer import WordTokenizer
from infoscope.vision.weights import (
    fetch_tag,
    find_source,
    get_first_line,
    load_tag_weights,
    load_weights,
)

VOCABULARY = "vocabulary.json"
MAX_LOGIT_SCALE = 100.0
"""CLIP's own bound (Radford et al., 2021, 2.5); training of the scenes' CLIP clips the scale, not the parameter."""
_TEXT_BATCH = 256

Tokenizer = Callable[[list[str]], Tensor]
"""Texts to token ids, int64 [n_texts, context_length]."""


def compute_model_fingerprint(config: ModelConfig, trained_folder: Path | None = None) -> dict[str, Any]:
    """Return what determines a backbone's numbers, without building it; plain JSON types, no paths.

    Args:
        trained_folder: the artifact of stage train_clip where `pretrained=train_clip`.

    Raises:
        InputError: as `load_backbone`.
    """
    if config.kind is not ModelKind.open_clip:
        return {"kind": config.kind.name, "seed": config.seed}
    source = find_source(config, trained_folder)
    return {
        "kind": "open_clip",
        "model_cfg": compute_hash(source.model_cfg),
        "mean": list(source.mean),
        "std": list(source.std),
        "weights": source.weights_id,
        "precision": config.precision,
    }


def load_backbone(config: ModelConfig | str = "scenes_clip", trained_folder: Path | None = None) -> Backbone:
    """Return a frozen backbone in evaluation mode.

    Args:
        config: a full configuration, or a short form: "scenes_clip", or "<arch>:<pretrained>" such as
            "ViT-B-16:openai" or "ViT-B-16:/weights/b16.safetensors".
        trained_folder: the artifact of stage train_clip where `pretrained=train_clip`.

    Raises:
        InputError: unknown architecture or tag, weights that are missing, damaged or of another architecture, no
            network and no cached weights, or a tower that is not a plain vision transformer.
    """
    if isinstance(config, str):
        arch, _, pretrained = config.partition(":")
        config = (
            ModelConfig() if config == "scenes_clip" else ModelConfig(arch, arch=arch, pretrained=pretrained or None)
        )
    if config.kind is ModelKind.planted_registers:
        return make_planted_registers(seed=config.seed)
    if config.kind is ModelKind.context_free:
        return make_context_free(seed=config.seed)
    source = find_source(config, trained_folder)
    is_tag = source.weights_id.startswith("tag:")
    weights = fetch_tag(config) if is_tag else source.weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        clip = _make_clip(source.model_cfg)
    if weights is not None and is_tag:
        load_tag_weights(clip, weights, config)
    elif weights is not None:
        load_weights(clip, weights, config)
    fingerprint = compute_model_fingerprint(config, trained_folder)
    tokenizer = partial(_make_tokenizer, source.tokenizer)
    backbone = OpenClipBackbone(clip, source.mean, source.std, fingerprint, config.precision, tokenizer)
    return backbone.eval().requires_grad_(False)


class OpenClipBackbone(Backbone):
    """A CLIP whose image tower is open_clip's own VisionTransformer with CLS pooling.

    Args:
        clip: the whole model; the text tower serves zero-shot heads.
        mean, std: RGB normalisation.
        fingerprint: what determines its numbers.
        precision: float32, or bfloat16 by autocast.
        make_tokenizer: makes the text tower's tokenizer when a text is embedded, not before.
    """

    def __init__(
        self,
        clip: torch.nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        fingerprint: dict[str, Any],
        precision: str = "float32",
        make_tokenizer: Callable[[], Tokenizer] | None = None,
    ) -> None:
        visual: Any = clip.visual
        if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.pool_type != "tok":
            raise InputError(
                f"Expected an open_clip vision transformer with CLS pooling, got {type(visual).__name__}: choose a"
                " ViT-* architecture (timm, SigLIP and ResNet towers are not supported yet)."
            )
        tower: Any = visual  # open_clip annotates its sizes as plain numbers
        grid, patch = tower.grid_size, tower.patch_size
        if grid[0] != grid[1] or patch[0] != patch[1]:
            raise InputError(f"Expected square patches and a square grid, got patches {patch} and grid {grid}.")
        super().__init__(
            d_in=tower.class_embedding.shape[0],
            n_layers=len(visual.transformer.resblocks),
            n_prefix_tokens=1,
            grid=grid[0],
            patch_px=patch[0],
            mean=mean,
            std=std,
            fingerprint=fingerprint,
        )
        self.clip = clip
        self.visual: VisionTransformer = visual
        self.precision = precision
        self._make_tokenizer = make_tokenizer

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.mean.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _tokens(self, pixels: Float[Tensor, "batch 3 height width"], layer: int) -> Tokens:
        with self._autocast():
            x = self.visual._embeds(pixels)
            for block in self.visual.transformer.resblocks[: layer + 1]:
                x = block(x)
        x = x.float()
        return Tokens(x[:, :1], x[:, 1:])

    def _resume(self, tokens: Tokens, layer: int) -> Float[Tensor, "batch d_out"]:
        x = torch.cat([tokens.prefix, tokens.patches], dim=1)
        blocks = list(self.visual.transformer.resblocks[layer + 1 :])
        with self._autocast():
            for block in blocks[:-1]:
                x = block(x)
            x = self._run_for_cls(blocks[-1], x) if isinstance(blocks[-1], ResidualAttentionBlock) else blocks[-1](x)
            pooled, _ = self.visual._pool(x)
        return pooled.float()

    @staticmethod
    def _run_for_cls(block: Any, x: Float[Tensor, "batch n_tokens d_in"]) -> Tensor:
        """Run the last block for CLS alone: only CLS asks, all tokens answer.

        Keys and values of all tokens are never formed: the query goes through W_k once, and the attended mean of the
        tokens through W_v once, which is the same by linearity (b_k moves all scores alike, and softmax ignores it).
        """
        attn, n_heads, d = block.attn, block.attn.num_heads, x.shape[-1]
        width = d // n_heads
        w_q, w_k, w_v = attn.in_proj_weight.chunk(3)
        b_q, _, b_v = attn.in_proj_bias.chunk(3)
        normed = block.ln_1(x)
        query = F.linear(normed[:, 0], w_q, b_q).view(-1, n_heads, width) / width**0.5
        asked = torch.einsum("bhw,hwd->bhd", query, w_k.view(n_heads, width, d))
        share = torch.softmax(asked @ normed.transpose(1, 2), dim=-1)
        answer = torch.einsum("bhd,hwd->bhw", share @ normed, w_v.view(n_heads, width, d)).flatten(1) + b_v
        cls = x[:, :1] + block.ls_1(attn.out_proj(answer)[:, None])
        return cls + block.ls_2(block.mlp(block.ln_2(cls)))

    @torch.inference_mode()
    def embed_images(self, images: Tensor) -> Float[Tensor, "batch embed_dim"]:
        """Return CLIP's image embeddings (unit norm) of uint8 images [batch, 3, image_px, image_px]."""
        self.n_images_encoded += len(images)
        with self._autocast():
            clip: Any = self.clip
            return clip.encode_image(self.normalise(images), normalize=True).float()

    @torch.inference_mode()
    def embed_tokens(self, tokens: Tokens, layer: int) -> Float[Tensor, "batch embed_dim"]:
        pooled, proj = self.resume(tokens, layer), self.visual.proj  # the final LayerNorm is behind it already
        return F.normalize(pooled if proj is None else pooled @ proj, dim=-1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n embed_dim"]:
        self._check_words(texts)
        clip: Any = self.clip
        embedded = []
        for start in range(0, len(texts), _TEXT_BATCH):
            ids = self._tokenizer(list(texts[start : start + _TEXT_BATCH]))
            if int(ids.max()) >= clip.vocab_size:
                raise InputError(
                    f"The tokenizer gives ids up to {int(ids.max())}, but the text tower has {clip.vocab_size}: put the"
                    f" model's {VOCABULARY} beside its weights."
                )
            with self._autocast():
                embedded.append(clip.encode_text(ids.to(self.mean.device), normalize=True).float())
        return F.normalize(torch.cat(embedded), dim=-1)

    @property
    def logit_scale(self) -> float:
        clip: Any = self.clip
        return min(float(clip.logit_scale.detach().exp()), MAX_LOGIT_SCALE)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        if self._make_tokenizer is None:
            raise InputError("This CLIP came without a tokenizer: load it by load_backbone, which brings the model's.")
        return self._make_tokenizer()

    def _check_words(self, texts: Sequence[str]) -> None:
        """A closed vocabulary would read every word that it does not know as the same one."""
        if isinstance(self._tokenizer, WordTokenizer):
            known = set(self._tokenizer.words)
            unknown = dict.fromkeys(word for text in texts for word in text.lower().split() if word not in known)
            if unknown:
                raise InputError(
                    f"Expected words of the model's own vocabulary ({len(known)} words), got"
                    f" {', '.join(map(repr, list(unknown)[:5]))}: choose other class names or templates, or another"
                    " model."
                )


def _make_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer of a folder or an architecture; CLIP's own comes with open_clip, offline.

    Raises:
        InputError: if it cannot be had: a damaged file, or one of a hub's without network or library.
    """
    vocabulary = Path(name.removeprefix("local-dir:")) / VOCABULARY
    try:
        if name.startswith("local-dir:") and vocabulary.is_file():
            return WordTokenizer(**json.loads(vocabulary.read_text()))
        return open_clip.get_tokenizer(name)
    except Exception as error:  # whatever the tokenizer's library leads to
        raise InputError(f"Cannot make the tokenizer of {name}: {get_first_line(error)}.") from error


def _make_clip(model_cfg: dict[str, Any]) -> torch.nn.Module:
    cfg = {**model_cfg}
    custom_text = cfg.pop("custom_text", False) or "hf_model_name" in cfg.get("text_cfg", {})
    cfg.pop("multimodal_cfg", None)
    make = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    return make(**cfg)
