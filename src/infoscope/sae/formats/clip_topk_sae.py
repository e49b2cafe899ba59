"""The top-k SAE of "ttt_theory" (lasgroup, patrikwolf): config.json beside model.safetensors, of CLIP's embeddings.

b_dec is not subtracted; the k largest as they are, negative ones too; decoder rows are made unit when they are used
(`sae/sae_topk.py`). Its embeddings are normalised to unit length before.
"""

from __future__ import annotations

from infoscope.runtime.errors import InputError
from infoscope.runtime.large_tensors import row_norms
from infoscope.sae.activations import TopK
from infoscope.sae.formats.base import Foreign, Found, Options, make_writable, need, scale_rows
from infoscope.sae.formats.unknown import refuse_settings, refuse_tensors
from infoscope.sae.formats.values import check_sizes, name_dtype, need_matrices, read_count, read_flag, show
from infoscope.vision.hooks import POOLED

LABEL = "clip-topk-sae (ttt_theory)"
KEYS = ("W_enc", "b_enc", "W_dec")
COUNTS = "feature_counts"
EPS = 1e-12
"""Norms are at least this where they divide."""


def recognise(found: Found) -> bool:
    return found.inner_state.keys() >= {*KEYS, COUNTS}


def read(found: Found, options: Options) -> Foreign:
    state, config = found.inner_state, found.config("config.json") or {}
    W_enc, W_dec = need_matrices(state, "W_enc", "W_dec")
    refuse_tensors(state, *KEYS, "b_dec")
    refuse_settings(config, "decoder_bias", "k", subtracts_b_dec=False)
    has_bias = "b_dec" in state
    if read_flag(config, "decoder_bias", default=has_bias) != has_bias:
        raise InputError(
            f"Its configuration says decoder_bias: {show(config['decoder_bias'])}, and b_dec is"
            f" {'among' if has_bias else 'not among'} its tensors."
        )
    check_sizes(W_enc, config, "input_dim", "hidden_dim")
    place = "Its config.json does not say" if config else "There is no config.json beside it that says"
    k = options.settle("k", read_count(config.get("k"), "k"), f"{place} its k")
    if read_flag(config, "normalize_decoder", default=True):
        W_dec = make_writable(W_dec, state)
        W_dec = scale_rows(W_dec, 1 / row_norms(W_dec).clamp_min(EPS))
    return Foreign(
        kind="topk",
        activation=TopK(k, signed=True),
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=next(need(state, "b_enc")),
        b_dec=state.get("b_dec"),
        subtracts_b_dec=False,
        site=POOLED,
        facts={"k": k, "embeddings": "CLIP's, of unit length", "dtype": name_dtype(W_enc)},
    )
