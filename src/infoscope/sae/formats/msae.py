"""MSAE: a dict of a state dict and of the mean and scale of its tokens. The name of the file is its configuration.

    {latents}_{width}_{activation}[_{k or weight}][_UW|_RW]_{tied}_{normalise}_{cap}[_{data}_{CLIP}_{split}_{modality}]

Its tokens are pooled embeddings, (x - mean_center) scaling_factor as the file has them (the toolkit divides by the mean
*squared* norm), normalised each by itself if the name says so. z is the toolkit's full code, its activation without any
k (`Autoencoder.encode`); with `sae.k`, the k largest of that. Then c tanh(z / c), if there is a cap c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.sae.activations import Activation, Capped, ReLU, Threshold, TopK
from infoscope.sae.config import TokenNorm
from infoscope.sae.formats.base import Foreign, Found, Options, get_tensors, need
from infoscope.sae.formats.unknown import refuse_tensors
from infoscope.sae.formats.values import check_sizes, name_dtype, need_matrices, pick, read_number
from infoscope.vision.hooks import POOLED

LABEL = "MSAE"
KINDS = ("relu", "topk", "batchtopk", "jumprelu", "matryoshka_k")
NAME = re.compile(
    r"(?P<d_sae>\d{1,9})_(?P<d_in>\d{1,9})_(?P<act>[A-Za-z]+)(?:_(?P<number>\d[^_]*))?(?:_(?P<nested>UW|RW))?"
    r"_(?P<tied>True|False)_(?P<normalise>True|False)_(?P<cap>\d+\.?\d*)"
    r"(?:_(?P<data>.+?)_(?P<clip>(?:RN|ViT)[^_]*)_(?P<split>[^_]+)_(?P<modality>image|text)(?:_.*)?|_.*)?"
)
ACTIVATIONS = {"ReLU": "relu", "JumpReLU": "jumprelu", "TopKReLU": "topk", "BatchTopKReLU": "batchtopk"}
SIGNED = {"TopK": "topk", "BatchTopK": "batchtopk"}
LOG_THRESHOLD = "activation.log_threshold"
DEAD_LOG_THRESHOLD = "dead_activations.log_threshold"
"""The same once more: the toolkit keeps its activation under two names."""
KEYS = ("encoder", "latent_bias", "pre_bias")


class Name(NamedTuple):
    """What the name of a file says; of another name, what the settings say."""

    kind: str
    is_signed: bool = False
    cap: float = 0.0
    normalise: bool = False
    clip: str | None = None
    facts: Mapping[str, Any] = {}
    warnings: tuple[str, ...] = ()


def recognise(found: Found) -> bool:
    content, state = found.content, found.get_state("model")
    has_constants = isinstance(content, Mapping) and {"mean_center", "scaling_factor"} <= content.keys()
    return has_constants and state.keys() >= set(KEYS)


def read(found: Found, options: Options) -> Foreign:
    state = found.get_state("model")
    b_enc, b_dec, (mean,) = *need(state, "latent_bias", "pre_bias"), need(get_tensors(found.content), "mean_center")
    refuse_tensors(state, *KEYS, "decoder", LOG_THRESHOLD, DEAD_LOG_THRESHOLD)
    is_tied = "decoder" not in state
    tied = {"decoder": state["encoder"].T.contiguous()} if is_tied and "encoder" in state else {}
    W_enc, W_dec = need_matrices({**state, **tied}, "encoder", "decoder")
    name = _read_name(found, options, W_enc, is_tied)
    activation = _make_activation(name, state, options)
    return Foreign(
        kind=name.kind,
        activation=Capped(activation, name.cap) if name.cap > 0 else activation,
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=b_enc,
        b_dec=b_dec,
        mean=mean,
        scale=read_number(found.content.get("scaling_factor"), "scaling_factor", above=0),
        token_norm=TokenNorm.layer_norm if name.normalise else TokenNorm.none,
        backbone=name.clip,
        site=POOLED,
        facts={**name.facts, "tied": is_tied or None, "soft_cap": name.cap or None, "dtype": name_dtype(W_enc)},
        warnings=list(name.warnings),
    )


def _read_name(found: Found, options: Options, W_enc: Tensor, is_tied: bool) -> Name:
    """Return what the name of the file says, or else the settings.

    Raises:
        InputError: it contradicts the tensors, or is of an activation that is not read; or neither says anything.
    """
    match = NAME.fullmatch(found.file.name.partition(".pt")[0])
    if not match:
        return _read_settings(options)
    check_sizes(W_enc, {size: int(match[size]) for size in ("d_in", "d_sae")}, "d_in", "d_sae")
    if (match["tied"] == "True") != is_tied:
        raise InputError(f"Its name says that tied is {match['tied']}, and it has {'no' if is_tied else 'a'} decoder.")
    act, number, cap = match["act"], match["number"] or "", float(match["cap"])
    kind = pick(ACTIVATIONS | SIGNED, act, "the activation in its name")
    k = int(number) if number.isdigit() and "TopK" in act else None
    facts = {"k": k, "dataset": match["data"], "modality": match["modality"]}
    if match["nested"]:
        kind = "matryoshka_k"
        facts |= {"weighting": match["nested"], "levels": k and _list_levels(k, W_enc.shape[1])}
    clip = match["clip"] and match["clip"].replace("~", "/")
    return Name(kind, act in SIGNED, cap, match["normalise"] == "True", clip, facts)


def _read_settings(options: Options) -> Name:
    """Return what the settings say of a file that has another name.

    Raises:
        InputError: they do not say what it is.
    """
    kind = options.kind(*KINDS)
    if kind is None:
        raise InputError(
            "the name of a file of MSAE is its configuration, and this one has another name than the toolkit gives"
            " (6144_768_TopKReLU_64_RW_False_False_0.0_....pth): give it back its name, or say what it is by"
            f" sae.kind= ({', '.join(KINDS)}) and, where its code is capped or each token normalised, sae.soft_cap= and"
            " sae.token_norm=layer_norm."
        )
    cap, normalise = options.get("soft_cap") or 0.0, options.get("token_norm") is TokenNorm.layer_norm
    if options.get("token_norm") is TokenNorm.constant_norm:
        raise InputError("MSAE normalises each token by layer_norm or none, got sae.token_norm=constant_norm.")
    warning = (
        "The file does not have the name that MSAE gave it, which alone says how it computes: taken to have a ReLU,"
        f" {'a layer norm' if normalise else 'no norm'} of each token (sae.token_norm), and a code that is"
        f" {f'capped at {cap:g}' if cap else 'not capped'} (sae.soft_cap)."
    )
    return Name(kind, cap=cap, normalise=normalise, warnings=(warning,))


def _make_activation(name: Name, state: Mapping[str, Tensor], options: Options) -> Activation:
    """Return the activation, without a cap.

    Raises:
        InputError: it has no ReLU, and no k; or the tensors are of another.
    """
    if (name.kind == "jumprelu") != (LOG_THRESHOLD in state):
        has = "a" if LOG_THRESHOLD in state else "no"
        raise InputError(f"It is said to be of kind {name.kind}, and has {has} tensor {LOG_THRESHOLD}.")
    if name.kind == "jumprelu":
        (logs,) = need(state, LOG_THRESHOLD)
        return Threshold(logs.float().exp())
    k = options.get("k")
    if name.is_signed and k is None:
        raise InputError(
            "its full code has no ReLU: every latent of it is active, negative ones too, which is no sparse code. Give"
            " sae.k= to keep the k largest."
        )
    return ReLU() if k is None else TopK(k, signed=name.is_signed)


def _list_levels(first: int, d_sae: int) -> list[int]:
    """Return the k of the nested codes, which the toolkit doubles from the first up to all latents."""
    doubled = (first * 2**i for i in range(d_sae.bit_length()))
    return [*(k for k in doubled if 0 < k < d_sae), d_sae]
