"""saev (OSU NLP, SAE-V): a line of JSON, then a state dict; config.json of its training beside it, if at all.

What is computed changed without a mark in the tensors (`src/saev/nn/modeling.py` and its history), so the header's
"schema" decides. None (February 2025): ReLU, b_dec subtracted, on tokens of which a mean was subtracted and that were
scaled; both were kept elsewhere. 1 (until July 2025): b_dec subtracted. 2 to 5: raw tokens, nothing subtracted; the
Matryoshka class of August 2025 subtracted in training, but not where it encodes, and its files say nothing of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from infoscope.runtime.errors import InputError
from infoscope.sae.activations import Activation, ReLU, TopK
from infoscope.sae.config import TokenChoice
from infoscope.sae.formats.base import USUAL_KEYS, Foreign, Found, Options, need
from infoscope.sae.formats.statistics import settle_mean
from infoscope.sae.formats.unknown import refuse_settings, refuse_tensors
from infoscope.sae.formats.values import (
    check_sizes,
    get_as,
    name_dtype,
    need_matrices,
    pick,
    read_count,
    read_layer,
    read_number,
    show,
    warn_of_layer,
)
from infoscope.sae.import_config import Statistics
from infoscope.sae.imported_activations import Threshold
from infoscope.vision.hooks import POOLED

LABEL = "saev (SAE-V, OSU NLP)"
THRESHOLD = "activation.threshold"
NEWEST = 5
KINDS = {"Relu": "relu", "TopK": "topk", "BatchTopK": "batchtopk"}
TOKENS = {
    "patches": TokenChoice.patch,
    "image": TokenChoice.patch,
    "content": TokenChoice.patch,
    "cls": TokenChoice.cls,
    "special": TokenChoice.cls,
    "all": TokenChoice.all,
}
BACKBONES = {
    "CLIP": "open_clip ViT-B-16 openai",
    "DINOv2": "dinov2_vitb14_reg",
    "BioCLIP": "hf-hub:imageomics/bioclip",
    **{f"DINOv3 ViT-{size}-16": f"facebook/dinov3-vit{size.lower()}16-pretrain-lvd1689m" for size in "SBL"},
}
"""By what the public repositories are called: SAE_CLIP_24K_ViT-B-16_IN1K, SAE_DINOv3_TopK_ViT-L-16_IN1K."""
NO_STATISTICS = (
    "It was trained on (x - mean) / scalar of the tokens, which lie in no file: without {}, or on the"
    " command line sae.statistics=estimate, it reads other tokens than it was trained on."
)


def recognise(found: Found) -> bool:
    return found.header is not None


def read(found: Found, options: Options) -> Foreign:
    header = found.header or {}
    schema = header.get("schema")
    if schema is not None and (type(schema) is not int or not 1 <= schema <= NEWEST):
        raise InputError(
            f"its header says schema {show(schema)}, and known are none and 1 to {NEWEST}: what each subtracts is"
            " another; if you know it, give sae.format=plain."
        )
    config = header if schema is None else header.get("cfg")
    if not isinstance(config, Mapping):
        raise InputError("expected a cfg in its header, found none.")
    W_enc, W_dec = need_matrices(found.state, "W_enc", "W_dec")
    b_enc, b_dec = need(found.state, "b_enc", "b_dec")
    refuse_tensors(found.state, *USUAL_KEYS, THRESHOLD)
    kind, k = _read_kind(header, config, schema)
    refuse_settings(
        config, "activation", *(["top_k"] if config.get("top_k") == k else []), subtracts_b_dec=schema in (None, 1)
    )
    _check_config_sizes(config, W_enc)
    data = _read_data(found)
    foreign = Foreign(
        kind=kind,
        activation=_make_activation(kind, k, found, options),
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=b_enc,
        b_dec=b_dec,
        subtracts_b_dec=schema in (None, 1),
        backbone=_find_backbone(found),
        layer=_read_layer(found, data),
        site="resid_post",
        tokens=TokenChoice.patch,
        facts={"schema": schema, "k": k, "dtype": name_dtype(W_enc)},
    )
    foreign.warnings += warn_of_layer(foreign.layer, data, "layer")
    if isinstance(foreign.activation, Threshold):
        foreign.facts["threshold"] = float(foreign.activation.threshold)
    _read_tokens(foreign, data)
    _settle_statistics(foreign, options, data, schema)
    return foreign


def _check_config_sizes(config: Mapping[str, Any], W_enc: torch.Tensor) -> None:
    d_in = read_count(config.get("d_vit", config.get("d_model")), "d_vit")
    factor = read_count(config.get("exp_factor"), "exp_factor")
    d_sae = d_in * factor if "d_sae" not in config and d_in and factor else config.get("d_sae")
    check_sizes(W_enc, {"d_in": d_in, "d_sae": d_sae}, "d_in", "d_sae")


def _read_kind(header: Mapping[str, Any], config: Mapping[str, Any], schema: int | None) -> tuple[str, int | None]:
    """Return the kind, and k where it has one.

    Raises:
        InputError: an activation that is not known.
    """
    said = {"cls": "Relu"} if schema is None and "activation" not in config else config.get("activation")
    if said is None and schema == 1 and get_as(str, header, "cls") in KINDS:
        said = {"cls": header["cls"], "params": config}
    name = said.get("cls") if isinstance(said, Mapping) else said
    kind = pick(KINDS, name, "the activation in its header")
    params = said.get("params") if isinstance(said, Mapping) else None
    if kind == "relu" and isinstance(params, Mapping) and params is not config:
        refuse_settings(params)
    k = read_count(params.get("top_k"), "top_k") if isinstance(params, Mapping) and kind != "relu" else None
    return kind, k


def _make_activation(kind: str, k: int | None, found: Found, options: Options) -> Activation:
    if kind == "relu":
        return ReLU()
    if kind == "topk":
        n_active = options.settle("k", k, "Its header does not say how many latents are active")
        return TopK(min(n_active, found.state["b_enc"].numel()), signed=True)
    stored = found.state.get(THRESHOLD)
    threshold = options.settle(
        "threshold",
        None if stored is None else read_number(stored, THRESHOLD),
        "It is of BatchTopK before November 2025, which kept no threshold: its code depended on the batch",
    )
    return Threshold(torch.tensor(threshold))


def _read_data(found: Found) -> Mapping[str, Any]:
    """Return what config.json says of the tokens that it was trained on."""
    config = found.config("config.json") or {}
    parts = (config.get(name) for name in ("data", "train_data"))
    return next((part for part in parts if isinstance(part, Mapping)), {})


def _read_tokens(foreign: Foreign, data: Mapping[str, Any]) -> None:
    said = data.get("patches", data.get("tokens"))
    if said in ("meanpool", "pooled"):
        foreign.site, foreign.tokens = POOLED, None
    elif said is not None:
        foreign.tokens = pick(TOKENS, said, "the tokens in config.json")
        foreign.facts["tokens"] = said


def _read_layer(found: Found, data: Mapping[str, Any]) -> int | None:
    if (layer := read_layer(data.get("layer"), "layer")) is not None:
        return layer
    return next((int(match[1]) for part in found.parts if (match := re.fullmatch(r"layer_(\d+)", part))), None)


def _find_backbone(found: Found) -> str | None:
    for part in found.parts:
        if match := re.search(r"SAE_(DINOv3|DINOv2|BioCLIP|CLIP)_(?:\w+?_)?(ViT-[SBL]-1[46])", part):
            return BACKBONES.get(match[1], BACKBONES.get(f"{match[1]} {match[2]}"))
    return None


def _settle_statistics(foreign: Foreign, options: Options, data: Mapping[str, Any], schema: int | None) -> None:
    """Give it the mean and scale that it was trained with, where it was; without them say so."""
    subtracts, scales = (data.get(name, schema is None) for name in ("scale_mean", "scale_norm"))
    if not (subtracts or scales):
        return
    mean = settle_mean(options, len(foreign.W_enc)) if subtracts else None
    scale = options.get("scale") if scales else None
    asked = {"sae.mean_file": (subtracts, mean), "sae.scale (1 / scalar)": (scales, scale)}
    missing = [name for name, (is_needed, value) in asked.items() if is_needed and value is None]
    if not missing:
        foreign.mean, foreign.scale = mean, scale or 1.0
        return
    if mean is not None or scale is not None:
        raise InputError(f"its tokens had a mean subtracted and were scaled: give {missing[0]} too.")
    if len(missing) == 1 and options.get("statistics") is Statistics.estimate:
        raise InputError(f"sae.statistics=estimate would subtract and scale, and its tokens need {missing[0]} alone.")
    foreign.needs_statistics = True
    foreign.warnings.append(NO_STATISTICS.format(" and ".join(missing)))
