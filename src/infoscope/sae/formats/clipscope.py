"""CLIP-Scope (Lewington): a dict of sizes, k and a state dict; `22_resid/1200013184.pt`.

pre_b is subtracted; no bias of the encoder; the k largest as they are, negative ones too (`clipscope/sae.py`).
"""

from __future__ import annotations

import re

from infoscope.runtime.errors import InputError
from infoscope.sae.activations import TopK
from infoscope.sae.config import TokenChoice
from infoscope.sae.formats.base import Foreign, Found, Options, need
from infoscope.sae.formats.unknown import refuse_settings, refuse_tensors
from infoscope.sae.formats.values import check_sizes, name_dtype, read_count

LABEL = "CLIP-Scope"
KEYS = ("pre_b", "enc", "dec")
BACKBONE = "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"


def recognise(found: Found) -> bool:
    return found.get_state("model_state_dict").keys() >= set(KEYS)


def read(found: Found, options: Options) -> Foreign:
    state = found.get_state("model_state_dict")
    pre_b, enc, dec = need(state, *KEYS)
    if "router" in state or enc.ndim != 2:
        raise InputError("it is a switch SAE, whose router chooses a dictionary for each token: not supported.")
    refuse_tensors(state, *KEYS)
    refuse_settings(found.content, "k", subtracts_b_dec=True)
    check_sizes(enc, found.content, "d_in", "n_features")
    k = options.settle(
        "k", read_count(found.content.get("k"), "k"), "The file does not say how many latents are active"
    )
    place = re.fullmatch(r"(\d+)_resid", found.parts[0] if found.parts else "")
    return Foreign(
        kind="topk",
        activation=TopK(k, signed=True),
        W_enc=enc,
        W_dec=dec,
        b_dec=pre_b,
        backbone=BACKBONE,
        layer=int(place[1]) if place else None,
        site="resid_post",
        tokens=TokenChoice.all,
        facts={"k": k, "dtype": name_dtype(enc)},
    )
