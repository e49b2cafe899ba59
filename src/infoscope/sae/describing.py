"""What an SAE is and computes, in words: what `infoscope describe-sae` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenNorm
from infoscope.sae.formats import load_formats
from infoscope.sae.formulas import MEETS, NORMS, describe_activation
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import check_has_maps
from infoscope.vision.config import ModelConfig
from infoscope.vision.hooks import AT_END, POOLED, PROJECTED, SITES
from infoscope.vision.load import compute_model_fingerprint
from infoscope.vision.names import find_backbone_name, name_architecture, name_fingerprint

SCORED = "its features can be ranked and scored on the tokens it was trained on"
_HIDDEN = {"needs_statistics", "scale_is_free", "folded", "pickled", "k", "threshold", MEETS}
"""Facts that are said in other words."""


def describe(sae: SparseAutoencoder) -> dict[str, str]:
    """Return what an SAE is by heading, in words: format, file, sizes, what it computes, what it was trained on.

    Several sentences of one heading stand in lines of their own.
    """
    source = sae.origin.source
    found = {"format": "infoscope"} if source is None else {"format": f"{source.format} ({_label(source.format)})"}
    if source is not None:
        found["file"] = f"{source.file}, sha256 {source.sha256}"
        if source.address is not None:
            found["address"] = f"{source.address} at {source.revision}"
        if "pickled" in source.facts:
            found["pickle"] = f"names {', '.join(source.facts['pickled'])}; nothing of that was imported or called"
        if source.exported_from is not None:
            found["exported"] = f"by infoscope, from {source.exported_from}"
    found["kind"] = sae.activation.kind if source is None else source.kind
    found["size"] = f"{sae.d_sae:,} latents of tokens of width {sae.d_in:,}"
    found["computes"] = "\n".join(_list_formulas(sae))
    found["trained on"] = ", ".join(_list_origin(sae)) or "not said"
    if sae.trained_in_bf16:
        found["precision"] = "bf16: trained with products in bfloat16 (trainer.precision)"
    facts = {} if source is None else {name: value for name, value in source.facts.items() if name not in _HIDDEN}
    if facts:
        found["also"] = ", ".join(f"{name} {_show(value)}" for name, value in facts.items())
    if source is not None and source.warnings:
        found["warnings"] = "\n".join(source.warnings)
    found["maps"] = _find_obstacle(sae) or SCORED
    return found


def list_facts(sae: SparseAutoencoder) -> dict[str, Any]:
    """Return the same as plain JSON values, see `commands.saes.describe_sae`."""
    origin, source, activation = sae.origin, sae.origin.source, sae.activation
    facts = {} if source is None else dict(source.facts)
    of_file = ("file", "sha256", "address", "revision", "exported_from", "backbone")
    said = {name: None if source is None else getattr(source, name) for name in of_file}
    backbone = said.pop("backbone")
    known = name_fingerprint(origin.backbone) or (find_backbone_name(backbone) if backbone else None)
    threshold: Any = getattr(activation, "threshold", torch.empty(0))
    k = getattr(activation, "k", None)
    return {
        "format": "infoscope" if source is None else source.format,
        **said,
        "kind": activation.kind if source is None else source.kind,
        "activation": activation.kind,
        "k": facts.get("k") if k is None else k,
        "threshold": None if threshold.ndim else float(threshold),
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "token_norm": sae.token_norm.name,
        "computes": list(_list_formulas(sae)),
        "backbone": backbone,
        "known_as": None if known is None else str(known),
        "layer": origin.layer,
        "image_px": origin.image_px,
        "site": origin.site,
        "tokens": origin.tokens and origin.tokens.name,
        "precision": "bf16" if sae.trained_in_bf16 else None,
        "facts": {name: value for name, value in facts.items() if name not in _HIDDEN},
        "warnings": [] if source is None else list(source.warnings),
        "has_maps": _find_obstacle(sae) is None,
        "maps": _find_obstacle(sae) or SCORED,
    }


def _label(name: str) -> str:
    return load_formats()[name].LABEL


def _list_formulas(sae: SparseAutoencoder) -> Iterator[str]:
    mean, scale, norm = bool(sae.mean.any()), float(sae.scale), NORMS[sae.token_norm]
    x = "(x - mean)" if mean else "x"
    x = x if scale == 1 else f"{scale:.4g} {x}"
    is_raw, is_normed = x == "x", sae.token_norm is not TokenNorm.none
    if is_normed:
        yield f"x_n = {norm.x_n}" if is_raw else f"y = {x}; x_n = {norm.x_n.replace('x', 'y')}"
        x = "x_n"
    facts = {} if sae.origin.source is None else sae.origin.source.facts
    pre = f"({x} - b_dec) W_enc" if sae.b_dec.any() and "folded" not in facts else f"{x} W_enc"
    yield f"a = {pre} + b_enc" if sae.b_enc.any() else f"a = {pre}"
    yield f"z = {describe_activation(sae.activation, bool(facts.get(MEETS)))}"
    x_hat = "z W_dec + b_dec" if sae.b_dec.any() else "z W_dec"
    if is_normed:
        x_hat = f"({x_hat}) {norm.back if is_raw else norm.back.replace('x', 'y')}"
    x_hat = x_hat if scale == 1 else f"({x_hat}) / {scale:.4g}"
    yield f"x_hat = {x_hat}{' + mean' if mean else ''}"


def _list_origin(sae: SparseAutoencoder) -> Iterator[str]:
    origin, source = sae.origin, sae.origin.source
    if source is not None and source.backbone:
        known = find_backbone_name(source.backbone)
        same = f" (= {known})" if known is not None and str(known) != source.backbone else ""
        yield f"{source.backbone}{same}" if known else f"{source.backbone} (a name that infoscope cannot compare)"
    elif origin.backbone:
        yield str(name_fingerprint(origin.backbone) or _describe_unnamed(origin.backbone))
    if origin.site in AT_END:
        yield {POOLED: "pooled embeddings", PROJECTED: "patches, each as the model would embed it"}[origin.site]
        return
    if origin.layer is not None:
        yield f"block {origin.layer}"
    if origin.site is not None:
        yield origin.site
    if origin.tokens is not None:
        yield {"patch": "patch tokens", "all": "all tokens", "cls": "CLS tokens"}[origin.tokens.name]


def _describe_unnamed(fingerprint: dict[str, Any]) -> str:
    """Return what the fingerprint of a backbone says whose weights were a file, which has no name."""
    what, weights = name_architecture(fingerprint) or fingerprint.get("kind"), fingerprint.get("weights")
    if weights == compute_model_fingerprint(ModelConfig())["weights"]:
        return "scenes_clip, which infoscope ships"
    return str(what) if weights is None else f"{what} with weights of a file, {weights}"


def _find_obstacle(sae: SparseAutoencoder) -> str | None:
    """Return why its features have no maps that are scored, None where they have."""
    try:
        check_has_maps(sae.origin)
    except InputError as error:
        return str(error)
    if sae.origin.site not in (None, *SITES):
        known = f"{', '.join(SITES[:-1])} or {SITES[-1]}"
        return f"it reads {sae.origin.site}, and infoscope {known}: refused but for sae.ignore_origin=true"
    return None


def _show(value: Any) -> str:
    return ", ".join(map(_show, value)) if isinstance(value, list | tuple) else str(value)
