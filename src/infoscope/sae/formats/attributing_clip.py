"""Attributing CLIP (Dreyer et al.): a Lightning checkpoint of a top-k SAE with weight norm.

No b_dec; the k largest as they are, negative ones too (`model_training/sae.py`). Trained on directions alone: rec and x
were made unit before they were compared (`model_training/base_pl.py`). The layers are named g v / |v|, over a latent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.runtime.large_tensors import row_norms
from infoscope.sae.activations import TopK
from infoscope.sae.config import TokenChoice
from infoscope.sae.formats.base import Foreign, Found, Options, make_writable, need, scale_rows
from infoscope.sae.formats.unknown import refuse_tensors
from infoscope.sae.formats.values import name_dtype

LABEL = "Attributing CLIP (TopKSAE)"
KEYS = ("encoder.0.bias", *(f"{part}.weight_{half}" for part in ("encoder.0", "decoder") for half in "gv"))
NEWER = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
"""What torch's newer weight norm calls them."""
TOKENS = {"spatial": TokenChoice.patch, "cls": TokenChoice.cls}
NAME = re.compile(r"(?P<backbone>\w+)_(?P<data>[a-z0-9]+)_topk-(?P<token>\w+)-(?P<k>\d+)-\d+_layer-(?P<layer>-?\d+)_lr")
"""clip_vit_b16_datacomp_xl_s13b_b90k_imagenet_topk-spatial-64-30000_layer--1_lr_0.0002"""
FREE_SCALE = "It was trained on directions alone: the scale of its reconstruction means nothing, and is fitted."


def recognise(found: Found) -> bool:
    return _read_state(found).keys() >= set(KEYS)


def read(found: Found, options: Options) -> Foreign:
    state, named = _read_state(found), _read_name(found)
    refuse_tensors(state, *KEYS)
    b_enc, g, v, g_dec, v_dec = need(state, *KEYS)
    for part, matrix, gains, dim in (("encoder.0", v, g, 0), ("decoder", v_dec, g_dec, 1)):
        shapes = f"{list(gains.shape)} for {list(matrix.shape)}"
        if matrix.ndim != 2 or gains.shape != matrix.narrow(1 - dim, 0, 1).shape:
            raise InputError(f"Expected {part}.weight_g to be a gain for each latent, along dim {dim}, found {shapes}.")
    warnings = [FREE_SCALE]
    k: int | None = options.get("k") or named.get("k")
    if k is None:
        raise InputError(
            "k stands in no file, and its folder's name (topk-spatial-64-30000) does not say it: give sae.k=."
        )
    if k != named.get("k", k):  # a folder's name is no part of a file
        warnings.append(f"Its folder's name says k {named['k']}; sae.k={k} is used.")
    return Foreign(
        kind="topk",
        activation=TopK(k, signed=True),
        W_enc=_weigh(make_writable(v, state), g).T,
        W_dec=_weigh(make_writable(v_dec, state).T.contiguous(), g_dec),
        b_enc=b_enc,
        backbone=named.get("backbone"),
        layer=named.get("layer"),
        site="resid_post",
        tokens=named.get("tokens"),
        facts={"k": k, "dataset": named.get("data"), "dtype": name_dtype(v)},
        warnings=warnings,
        has_free_scale=True,
    )


def _read_state(found: Found) -> dict[str, Tensor]:
    """Return the state dict by the names of the older weight norm; a Lightning checkpoint keeps more beside it."""
    state = found.get_state("state_dict") or found.inner_state
    for new, old in NEWER.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return {name.removeprefix("sae."): tensor for name, tensor in state.items()}


def _read_name(found: Found) -> Mapping[str, Any]:
    for part in (found.file.stem, *found.parts):
        if match := NAME.search(part):
            return {
                "backbone": match["backbone"],
                "data": match["data"],
                "tokens": TOKENS.get(match["token"]),
                "k": int(match["k"]),
                "layer": int(match["layer"]),
            }
    return {}


def _weigh(v: Tensor, g: Tensor) -> Tensor:
    """Return g v / |v|, row by row."""
    return scale_rows(v, g.double().reshape(-1) / row_norms(v))
