"""The many names of one backbone: transformers', open_clip's, timm's, OpenAI's, ours, and those of SAE toolkits."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from infoscope.vision.config import ModelConfig, ModelKind

RANDOM = "random"
"""The tag of weights that nobody trained."""


class BackboneName(NamedTuple):
    """A backbone as `model.kind`, `model.arch` and the tag of its weights name it; tag "": not known."""

    kind: str
    arch: str
    tag: str

    def __str__(self) -> str:
        return f"{self.arch} {self.tag}".strip() if self.kind == "open_clip" else ".".join(filter(None, self[1:]))


def _name_clip(arch: str, tag: str = "openai") -> BackboneName:
    return BackboneName("open_clip", arch, tag)


def _name_timm(arch: str, tag: str) -> BackboneName:
    return BackboneName("timm", arch, tag)


_DINOV2 = {"s": "small", "b": "base", "l": "large", "g": "giant"}
_NAMES = {
    "openai/clip-vit-base-patch32": _name_clip("ViT-B-32"),
    "openai/clip-vit-base-patch16": _name_clip("ViT-B-16"),
    "openai/clip-vit-large-patch14": _name_clip("ViT-L-14"),
    "openai/clip-vit-large-patch14-336": _name_clip("ViT-L-14-336"),
    "ViT-B/32": _name_clip("ViT-B-32"),
    "ViT-B/16": _name_clip("ViT-B-16"),
    "ViT-L/14": _name_clip("ViT-L-14"),
    "ViT-L/14@336px": _name_clip("ViT-L-14-336"),
    "RN50": _name_clip("RN50"),
    "clip_b32": _name_clip("ViT-B-32"),
    "clip_b16": _name_clip("ViT-B-16"),
    "clip_vitb16": _name_clip("ViT-B-16"),
    "clip_l14": _name_clip("ViT-L-14"),
    "clip_l14_336": _name_clip("ViT-L-14-336"),
    "google/siglip-base-patch16-224": _name_clip("ViT-B-16-SigLIP", "webli"),
    "google/siglip-so400m-patch14-384": _name_clip("ViT-SO400M-14-SigLIP-384", "webli"),
    "siglip_b16": _name_clip("ViT-B-16-SigLIP", "webli"),
    "siglip_vitb16": _name_clip("ViT-B-16-SigLIP", "webli"),
    "facebook/vit-mae-base": _name_timm("vit_base_patch16_224", "mae"),
    "facebook/vit-mae-large": _name_timm("vit_large_patch16_224", "mae"),
    "mae_b16": _name_timm("vit_base_patch16_224", "mae"),
    "mae_vitb16": _name_timm("vit_base_patch16_224", "mae"),
    "facebook/dino-vitb16": _name_timm("vit_base_patch16_224", "dino"),
    "facebook/dino-vits16": _name_timm("vit_small_patch16_224", "dino"),
    "facebook/deit-base-patch16-224": _name_timm("deit_base_patch16_224", "fb_in1k"),
    "deit_vitb16": _name_timm("deit_base_patch16_224", "fb_in1k"),
    "deit3_b16": _name_timm("deit3_base_patch16_224", "fb_in1k"),
    "clip_ViT-B32": _name_clip("ViT-B-32"),
    "clip_ViT-B16": _name_clip("ViT-B-16"),
    "clip_ViT-L14": _name_clip("ViT-L-14"),
    "clip_RN50": _name_clip("RN50"),
    "clip_vit_b32_datacomp_xl_s13b_b90k": _name_clip("ViT-B-32", "datacomp_xl_s13b_b90k"),
    "clip_vit_b16_datacomp_xl_s13b_b90k": _name_clip("ViT-B-16", "datacomp_xl_s13b_b90k"),
    "clip_vit_l14_datacomp_xl_s13b_b90k": _name_clip("ViT-L-14", "datacomp_xl_s13b_b90k"),
    "clip_vit_l14_336_openai": _name_clip("ViT-L-14-336"),
    "clip_vit_h14_dfn5b": _name_clip("ViT-H-14", "dfn5b"),
    "scenes_clip": BackboneName("open_clip", "scenes_clip", "shipped"),
}
for _letter, _size in _DINOV2.items():
    for _registers, _part in (("", ""), ("_reg", "_reg4")):
        _timm_name = _name_timm(f"vit_{_size}_patch14{_part}_dinov2", "lvd142m")
        _NAMES[f"facebook/dinov2{'-with-registers' * bool(_registers)}-{_size}"] = _timm_name
        _NAMES[f"dinov2_{_letter}14{_registers}"] = _NAMES[f"dinov2_vit{_letter}14{_registers}"] = _timm_name


@cache
def _list_names() -> dict[str, BackboneName]:
    """Return every name that is known, in lower case with - for _: those of open_clip's tags from open_clip itself."""
    import open_clip  # seconds, which those need not wait for whose SAE names no backbone

    names = dict(_NAMES)
    for arch, tag in open_clip.list_pretrained():
        if arch.endswith("-quickgelu"):
            continue
        hub = (open_clip.get_pretrained_cfg(arch, tag) or {}).get("hf_hub", "").strip("/")
        for name in (f"{arch} {tag}", f"{arch}/{tag}", f"{arch}:{tag}", *([hub] if hub else [])):
            names.setdefault(name, _name_clip(arch, tag))
    return {_simplify(name): known for name, known in names.items()}


def _simplify(name: str) -> str:
    return re.sub(r"^(?:open[-_]clip|hf|hf-hub|timm)[: ]", "", name.strip()).lower().replace("_", "-")


def find_backbone_name(text: str) -> BackboneName | None:
    """Return the backbone that a name stands for, or None where it is none that is known.

    Args:
        text: transformers' (openai/clip-vit-base-patch16), OpenAI's (ViT-L/14), open_clip's ("ViT-B-16 openai",
            ViT-B-16/openai, open-clip:laion/...), timm's (vit_base_patch16_224.dino), or a choice of model= (clip_b16).
    """
    known = _list_names().get(_simplify(text)) or _list_names().get(_simplify(text.replace("-quickgelu", "")))
    if known is None and (found := re.fullmatch(r"(?:timm[:/ ])?([a-z]\w+_patch\d+\w*)[.:](\w+)", text)):
        return _name_timm(*found.groups())
    return known


def name_model(config: ModelConfig) -> BackboneName | None:
    """Return which backbone a configuration names; of a file of weights what it is said to hold; None: unknown."""
    pretrained = config.pretrained or ""
    if config.kind is ModelKind.timm:
        arch, _, tag = (config.arch or "").partition(".")
        return BackboneName("timm", arch, RANDOM if pretrained == RANDOM else tag) if arch else None
    if config.kind is not ModelKind.open_clip:
        return BackboneName(config.kind.name, config.kind.name, "")
    if config.arch is None:
        ours = pretrained in ("shipped", "train_clip", RANDOM) or config.name == "scenes_clip"
        return BackboneName("open_clip", "scenes_clip", pretrained) if ours else None
    import open_clip

    is_tag = (config.arch, pretrained) in open_clip.list_pretrained() or pretrained == RANDOM
    return _name_clip(config.arch.removesuffix("-quickgelu"), pretrained if is_tag else config.origin or "")


def name_fingerprint(fingerprint: dict[str, object]) -> BackboneName | None:
    """Return which backbone the fingerprint of a loaded one tells of; None: of a file of weights, which has no name."""
    kind, arch, tag = [*str(fingerprint.get("weights")).split(":", 2), "", ""][:3]
    if kind != "tag":
        return None
    family = str(fingerprint.get("kind"))
    return BackboneName(family, arch.partition(".")[0] if family == "timm" else arch.removesuffix("-quickgelu"), tag)


def name_architecture(fingerprint: dict[str, object]) -> BackboneName | None:
    """Return which architecture the fingerprint of a loaded backbone tells of, with no tag; None: it holds a hash."""
    arch = fingerprint.get("arch")
    return BackboneName(str(fingerprint.get("kind")), str(arch).partition(".")[0], "") if arch else None
