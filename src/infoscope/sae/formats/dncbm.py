"""Discover-then-Name (DN-CBM), which trains with the sparse_autoencoder package: `sparse_autoencoder_final.pt`.

One bias is subtracted before encoding and added after decoding; ReLU (`sparse_autoencoder/autoencoder/model.py`). It
reads what CLIP makes of a whole image.
"""

from __future__ import annotations

import re
from itertools import pairwise

from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.sae.activations import ReLU
from infoscope.sae.formats.base import Foreign, Found, Options, need
from infoscope.sae.formats.unknown import refuse_tensors
from infoscope.sae.formats.values import name_dtype
from infoscope.vision.hooks import POOLED

LABEL = "DN-CBM (sparse_autoencoder)"
KEYS = ("encoder.weight", "encoder.bias", "decoder.weight", "tied_bias")
REFERENCES = ("pre_encoder_bias.bias_reference", "post_decoder_bias.bias_reference")
BACKBONE = re.compile(r"clip_(RN|ViT-)\w+")


def recognise(found: Found) -> bool:
    return _read_state(found).keys() >= set(KEYS)


def read(found: Found, options: Options) -> Foreign:
    state = _read_state(found)
    refuse_tensors(state, *KEYS, *REFERENCES)
    weight, b_enc, W_dec, b_dec = (
        _drop_component(tensor, name) for tensor, name in zip(need(state, *KEYS), KEYS, strict=True)
    )
    for name in REFERENCES:
        if name in state and not _drop_component(state[name], name).equal(b_dec):
            raise InputError(f"its {name} is another than its tied_bias: the two are one in this package.")
    backbone, dataset = next((pair for pair in pairwise(found.parts) if BACKBONE.fullmatch(pair[0])), (None, None))
    hook = next((match[1] for part in found.parts if (match := re.search(r"_hook([a-z]\w*?)_", part))), "out")
    return Foreign(
        kind="relu",
        activation=ReLU(),
        W_enc=weight.T,
        W_dec=W_dec.T.contiguous(),
        b_enc=b_enc,
        b_dec=b_dec,
        backbone=backbone,
        facts={"dataset": dataset, "dtype": name_dtype(weight)},
        site=POOLED if hook == "out" else hook,
    )


def _read_state(found: Found) -> dict[str, Tensor]:
    """Return the state dict by the names of the newer package: the older one has `_weight` for `weight`."""
    return {re.sub(r"(^|\.)_(?=\w+$)", r"\1", name): tensor for name, tensor in found.inner_state.items()}


def _drop_component(tensor: Tensor, name: str) -> Tensor:
    """Return a tensor without the dimension of components, which those of one place of a model have too."""
    n_dims = 2 if name.endswith("weight") else 1
    if tensor.ndim == n_dims + 1 and len(tensor) == 1:
        return tensor[0]
    if tensor.ndim != n_dims:
        raise InputError(f"its {name} is {list(tensor.shape)}: SAEs of several places in one file are not supported.")
    return tensor
