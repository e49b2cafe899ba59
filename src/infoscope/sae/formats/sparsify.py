"""EleutherAI's sparsify (sae until 2025): cfg.json beside sae.safetensors.

b_dec is subtracted; ReLU, then the k largest, or the largest of each of k groups (`sparsify/fused_encoder.py`).
`multi_topk` and `normalize_decoder` are of training alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from infoscope.runtime.errors import InputError
from infoscope.sae.activations import Activation, TopK
from infoscope.sae.formats.base import Foreign, Found, Options, need
from infoscope.sae.formats.unknown import refuse_settings
from infoscope.sae.formats.values import check_sizes, name_dtype, pick, read_count, transpose
from infoscope.sae.imported_activations import GroupMax

LABEL = "EleutherAI sparsify"
KEYS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
ACTIVATIONS: dict[str, type[Activation]] = {"topk": TopK, "groupmax": GroupMax}
SITES = {"": "resid_post", "mlp": "mlp_out", "attn": "attn_out", "attention": "attn_out", "self_attn": "attn_out"}


def recognise(found: Found) -> bool:
    return found.inner_state.keys() - {"W_skip"} == set(KEYS)


def read(found: Found, options: Options) -> Foreign:
    state, config = found.inner_state, found.config("cfg.json") or {}
    refused = [name for name in ("transcode", "skip_connection") if config.get(name)] + ["W_skip"] * ("W_skip" in state)
    if refused:
        raise InputError(f"it is a transcoder ({refused[0]}): it predicts other tokens than it reads, so it is no SAE.")
    if config.get("signed"):
        raise InputError(
            "it is signed, as sparsify had it from June to August 2024: choosing by size is not supported."
        )
    refuse_settings(config, "activation", "k", subtracts_b_dec=True)
    weight, b_enc, W_dec, b_dec = need(state, *KEYS)
    W_enc = transpose(weight)
    d_sae = config.get("num_latents")
    if not d_sae:  # else the factor is not used
        factor = read_count(config.get("expansion_factor"), "expansion_factor")
        d_sae = factor and factor * len(W_enc)
    check_sizes(W_enc, {**config, "num_latents": d_sae}, "d_in", "num_latents")
    kind = _read_kind(config, options)
    place = "Its cfg.json does not say" if config else "There is no cfg.json beside it that says"
    k = options.settle("k", read_count(config.get("k"), "k"), f"{place} how many latents are active")
    layer, site = _read_hookpoint(found)
    return Foreign(
        kind=kind,
        activation=ACTIVATIONS[kind](k=k),
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=b_enc,
        b_dec=b_dec,
        layer=layer,
        site=site,
        facts={"k": k, "dtype": name_dtype(weight)},
    )


def _read_kind(config: Mapping[str, Any], options: Options) -> str:
    if config:  # old ones know no other than top-k
        return pick({name: name for name in ACTIVATIONS}, config.get("activation", "topk"), "activation")
    said = options.kind(*ACTIVATIONS)
    if said is None:
        raise InputError(
            "there is no cfg.json beside it, which says whether it is a transcoder, its activation and k: fetch it, or"
            " give sae.kind=topk and sae.k=."
        )
    return said


def _read_hookpoint(found: Found) -> tuple[int | None, str | None]:
    """Return block and site from the folder's name: layers.10, blocks.10.mlp, vision_model.encoder.layers.10.

    A site that has no name of ours keeps its own, such as attention.output.
    """
    name = found.parts[0] if found.parts else ""
    match = re.fullmatch(r"(?:.*?\.)??(?:layers?|blocks|resblocks|h)\.(\d{1,4})(?:\.(.+))?", name)
    return (None, None) if match is None else (int(match[1]), SITES.get(match[2] or "", match[2]))
