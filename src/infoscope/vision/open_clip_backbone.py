"""open_clip's vision transformers as frozen backbones: pretrained tags, local files or folders, our scenes_clip."""

from __future__ import annotations

import json
import socket
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from infoscope.artifacts import compute_checksum, compute_hash
from infoscope.errors import InputError
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.planted import make_context_free, make_planted_registers
from infoscope.vision.tokenizer import WordTokenizer

SHIPPED_FOLDER = Path(__file__).with_name("scenes_clip")
LOCAL_CONFIG = "open_clip_config.json"
LOCAL_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
VOCABULARY = "vocabulary.json"
MAX_LOGIT_SCALE = 100.0
"""CLIP's own bound (Radford et al., 2021, 2.5); training of the scenes' CLIP clips the scale, not the parameter."""
_DOWNLOAD_PROBE_S = 3.0
_TEXT_BATCH = 256

Tokenizer = Callable[[list[str]], Tensor]
"""Texts to token ids, int64 [n_texts, context_length]."""


@dataclass(frozen=True)
class _Source:
    """A model configuration resolved to what open_clip needs: its model config, the preprocessing, the weights.

    tokenizer: what its tokenizer is called: `local-dir:<folder>`, or an architecture.
    """

    model_cfg: dict[str, Any]
    mean: Sequence[float]
    std: Sequence[float]
    weights: Path | None
    weights_id: str
    tokenizer: str


def compute_model_fingerprint(config: ModelConfig, trained_folder: Path | None = None) -> dict[str, Any]:
    """Return what determines a backbone's numbers, without building it; plain JSON types, no paths.

    Args:
        trained_folder: the artifact of stage train_clip where `pretrained=train_clip`.

    Raises:
        InputError: as `load_backbone`.
    """
    if config.kind is not ModelKind.open_clip:
        return {"kind": config.kind.name, "seed": config.seed}
    source = _find_source(config, trained_folder)
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
    source = _find_source(config, trained_folder)
    is_tag = source.weights_id.startswith("tag:")
    weights = _fetch_tag(config) if is_tag else source.weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        clip = _make_clip(source.model_cfg)
    if weights is not None and is_tag:
        _load_tag_weights(clip, weights, config)
    elif weights is not None:
        _load_weights(clip, weights, config)
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
        raise InputError(f"Cannot make the tokenizer of {name}: {_first_line(error)}.") from error


def _make_clip(model_cfg: dict[str, Any]) -> torch.nn.Module:
    cfg = {**model_cfg}
    custom_text = cfg.pop("custom_text", False) or "hf_model_name" in cfg.get("text_cfg", {})
    cfg.pop("multimodal_cfg", None)
    make = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    return make(**cfg)


def _find_source(config: ModelConfig, trained_folder: Path | None) -> _Source:
    """Resolve a configuration to a model config, preprocessing and weights; nothing is loaded yet."""
    pretrained = config.pretrained or ""
    local_file: Path | None = None
    if pretrained == "shipped" or (pretrained == "random" and config.arch is None):
        folder: Path | None = SHIPPED_FOLDER
    elif pretrained == "train_clip":
        if trained_folder is None:
            raise InputError("model.pretrained=train_clip needs the artifact of stage train_clip: give its folder.")
        folder = trained_folder
    elif pretrained.startswith("local-dir:"):
        folder = Path(pretrained.removeprefix("local-dir:")).expanduser()
    else:
        folder = None
        if pretrained.endswith((".safetensors", ".pt", ".pth", ".bin")) or "/" in pretrained:
            local_file = Path(pretrained).expanduser()
            if not local_file.is_file():
                raise InputError(
                    f"model.pretrained={pretrained} is no file: give an existing .safetensors, .pt or .bin."
                )
            if config.arch is None and config.name == "scenes_clip":
                folder = SHIPPED_FOLDER

    if folder is not None:
        model_cfg, preprocess = _read_local_config(folder)
        if local_file is None and pretrained != "random":
            local_file = _find_local_weights(folder)
    else:
        model_cfg, preprocess = _read_builtin_config(config, is_tag=local_file is None and pretrained != "random")
    if config.quick_gelu is not None:
        model_cfg["quick_gelu"] = config.quick_gelu
    if config.image_px is not None:
        model_cfg["vision_cfg"] = {**model_cfg["vision_cfg"], "image_size": config.image_px}

    if pretrained == "random":
        weights_id = f"random:{config.seed}"
    elif local_file is not None:
        weights_id = f"sha256:{compute_checksum(local_file)}"
    else:
        weights_id = f"tag:{config.arch}:{pretrained}"
    mean = config.mean or preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std = config.std or preprocess.get("std") or open_clip.OPENAI_DATASET_STD
    tokenizer = f"local-dir:{folder}" if folder is not None else str(config.arch)
    return _Source(model_cfg, list(mean), list(std), local_file, weights_id, tokenizer)


def _read_local_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    path = folder / LOCAL_CONFIG
    try:
        content = json.loads(path.read_text())
        return dict(content["model_cfg"]), dict(content.get("preprocess_cfg", {}))
    except OSError as error:
        raise InputError(f"Expected {LOCAL_CONFIG} in {folder}, found none that can be read.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"Expected {path} to be JSON with a `model_cfg`, got something else: {error}.") from error


def _find_local_weights(folder: Path) -> Path:
    for name in LOCAL_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"Expected {' or '.join(LOCAL_WEIGHTS)} in {folder}, found neither.")


def _read_builtin_config(config: ModelConfig, is_tag: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    assert config.arch is not None
    model_cfg = open_clip.get_model_config(config.arch)
    if model_cfg is None:
        near = [name for name in open_clip.list_models() if name.startswith("ViT-")][:12]
        raise InputError(
            f"Expected model.arch to be one of open_clip's, such as {', '.join(near)}; got {config.arch!r}."
        )
    if not is_tag:
        return dict(model_cfg), {}
    tags = open_clip.list_pretrained_tags_by_model(config.arch)
    if config.pretrained not in tags:
        raise InputError(
            f"Expected model.pretrained to be a file, local-dir:<folder>, random, or a tag of {config.arch}"
            f" ({', '.join(tags) or 'it has none'}); got {config.pretrained!r}."
        )
    preprocess = open_clip.get_pretrained_cfg(config.arch, config.pretrained or "") or {}
    if preprocess.get("quick_gelu"):
        model_cfg = {**model_cfg, "quick_gelu": True}
    return dict(model_cfg), preprocess


def _load_weights(clip: torch.nn.Module, path: Path, config: ModelConfig) -> None:
    """Load a local file into a model, by safetensors or `weights_only=True`; never an unguarded pickle."""
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            if zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
                raise InputError(
                    f"{path} is a TorchScript archive (OpenAI's own format): expected a state dict; convert it with"
                    " open_clip (load_openai_model, then save its state_dict as .safetensors)."
                )
            state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # a damaged file can fail anywhere inside the readers
        kind = "safetensors" if isinstance(error, SafetensorError) else "weights"
        if isinstance(error, UnpicklingError):  # torch's own words advise to run whatever the file holds
            reason = "it is damaged, or holds other objects than tensors, which are not loaded; give a state dict"
        else:
            reason = _first_line(error)
        raise InputError(f"Cannot read {kind} file {path}: {reason}.") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"Expected {path} to hold a state dict of tensors, got {type(state).__name__}.")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    open_clip.model.resize_pos_embed(state, clip)
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise InputError(f"{path} holds NaN or Inf in {name}: the file is damaged, get a good one.")
    try:
        clip.load_state_dict(state)
    except RuntimeError as error:
        arch = config.arch or config.name
        detail = " ".join(str(error).split())[:240]
        raise InputError(
            f"{path} does not fit model.arch={arch}: give the architecture it was made with ({detail})."
        ) from error


def _fetch_tag(config: ModelConfig) -> Path:
    """Return the weights of one of open_clip's tags; without the cached file and a network, fail at once."""
    assert config.arch is not None
    assert config.pretrained is not None
    cfg = open_clip.get_pretrained_cfg(config.arch, config.pretrained) or {}
    cached = _find_cached(cfg)
    if cached is not None:
        return cached
    name = f"{config.arch}:{config.pretrained}"
    if not _can_connect(cfg):
        raise InputError(
            f"The weights {name} are not in the cache ({_cache_folder(cfg)}) and there is no"
            " network: give a local file by model.pretrained=<file>.safetensors, or fill the cache."
        )
    try:
        return Path(open_clip.download_pretrained(cfg))
    except Exception as error:  # whatever the network and the hub lead to
        raise InputError(f"Cannot download the weights {name}: {_first_line(error)}.") from error


def _load_tag_weights(clip: Any, path: Path, config: ModelConfig) -> None:
    """Load the weights of a tag as open_clip does (old names, other shapes of the logit scale, other grids)."""
    try:
        open_clip.load_checkpoint(clip, str(path), weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere inside the readers
        raise InputError(
            f"Cannot load the weights {config.arch}:{config.pretrained} from {path}: {_first_line(error)}."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


def _find_cached(cfg: dict[str, Any]) -> Path | None:
    """Return the cached file of a tag. Where the hub has it, the hub's cache counts: open_clip asks there alone."""
    if cfg.get("hf_hub"):
        from huggingface_hub import try_to_load_from_cache

        repo, _, name = cfg["hf_hub"].rpartition("/")
        found = [try_to_load_from_cache(repo, file) for file in ([name] if name else LOCAL_WEIGHTS)]
        return next((Path(file) for file in found if isinstance(file, str)), None)
    path = _cache_folder(cfg) / Path(cfg.get("url", "")).name
    return path if path.is_file() else None


def _cache_folder(cfg: dict[str, Any]) -> Path:
    if cfg.get("hf_hub"):
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)
    return Path("~/.cache/clip").expanduser()


def _can_connect(cfg: dict[str, Any]) -> bool:
    """Whether the host of the weights answers within seconds; huggingface_hub would retry for minutes."""
    url = cfg.get("url", "")
    if cfg.get("hf_hub"):
        from huggingface_hub import constants

        url = constants.ENDPOINT
    host = urlparse(url).hostname
    if not host:
        return False
    try:
        socket.create_connection((host, 443), timeout=_DOWNLOAD_PROBE_S).close()
    except OSError:
        return False
    return True
