"""visaebench: config.json or .yaml beside sae.pt, by overcomplete's names or plain ones (`visaebench/hub`).

ReLU, then the k largest, those of one threshold and more, or those above their own; decoder rows as they are stored. It
reads the patch tokens of the last block before the last norm, but those of DINOv2 behind it (`visaebench/backbones`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted import Record
from infoscope.sae.activations import Activation, TopK
from infoscope.sae.config import TokenChoice
from infoscope.sae.formats.base import Foreign, Found, Options, make_writable, need
from infoscope.sae.formats.unknown import refuse_settings, refuse_tensors
from infoscope.sae.formats.values import (
    at_least,
    check_sizes,
    get_as,
    name_dtype,
    read_count,
    read_layer,
    read_number,
    show,
    transpose,
    warn_of_layer,
)
from infoscope.sae.formulas import MEETS
from infoscope.sae.imported_activations import Threshold

LABEL = "visaebench"
CONFIGS = ("config.json", "config.yaml", "config.yml")
"""In the order in which the toolkit's loader looks for one."""
THEIRS = ("encoder.final_block.0.weight", "encoder.final_block.0.bias", "dictionary._weights")
PLAIN = ("encoder.weight", "encoder.bias", "decoder.weight")
KINDS = ("topk", "batchtopk", "jumprelu")
SAYS_KIND = ("activation", "sae_type", "architecture")
THRESHOLDS = ("jump_thresholds", "thresholds")
MULTIPLIER, BIAS = "dictionary.multiplier", "decoder.bias"
"""Read of overcomplete's names, and of plain ones, alone."""
BACKBONES, LAST_BLOCK = ("clip_vitb16", "dinov2_vitb14", "siglip_vitb16", "mae_vitb16", "deit_vitb16"), 11
"""The toolkit's, which have the same last block."""


def recognise(found: Found) -> bool:
    if isinstance(found.content, Record) or not _read_config(found):
        return False
    state = found.inner_state
    is_plain = state.keys() >= set(PLAIN) and state["decoder.weight"].shape == state["encoder.weight"].shape
    return is_plain or state.keys() >= set(THEIRS)


def read(found: Found, options: Options) -> Foreign:
    state, config = found.inner_state, _read_config(found) or {}
    names = THEIRS if THEIRS[0] in state else PLAIN
    weight, b_enc, W_dec = need(state, *names)
    refuse_tensors(state, *names, MULTIPLIER if names is THEIRS else BIAS, "_running_threshold", *THRESHOLDS)
    refuse_settings(config, *SAYS_KIND, "threshold", "k", subtracts_b_dec=False)
    W_enc = transpose(weight)
    check_sizes(W_enc, config, *(("input_dim", "hidden_dim") if "input_dim" in config else ("d_model", "dict_size")))
    if (multiplier := state.get(MULTIPLIER)) is not None and read_number(multiplier, "multiplier") != 0:
        W_dec = make_writable(W_dec, state).mul_(multiplier.float().exp())
    kind = _find_kind(config)
    _check_kinds(config)
    facts: dict[str, Any] = {
        "k": read_count(config.get("k"), "k"),
        "dtype": name_dtype(weight),
        "dataset": get_as(str, config, "dataset"),
    }
    activation = _make_activation(kind, state, config, options, facts)
    backbone = get_as(str, config, "backbone") or ""
    return Foreign(
        kind=kind,
        activation=activation,
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=b_enc,
        b_dec=state.get(BIAS),
        subtracts_b_dec=False,
        backbone=backbone or None,
        layer=(layer := _read_layer(config)),
        site="post_norm" if backbone.startswith("dinov2") else "resid_post",
        tokens=TokenChoice.patch,
        facts=facts,
        warnings=warn_of_layer(layer, config, "layer"),
    )


def _read_config(found: Found) -> Mapping[str, Any] | None:
    """Return the configuration beside it, if it is one of visaebench's: those of others say their kind elsewhere."""
    config = found.config(*CONFIGS)
    return config if config and _find_kind(config) in KINDS else None


def _find_kind(config: Mapping[str, Any]) -> str:
    return (get_as(str, config, next((name for name in SAYS_KIND if name in config), "")) or "").lower()


def _check_kinds(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that says its kind twice, and differently.

    Raises:
        InputError: with all it says.
    """
    said = {name: config[name] for name in SAYS_KIND if config.get(name) is not None}
    if len({str(kind).lower() for kind in said.values()}) > 1:
        kinds = " and ".join(f"{name}: {show(kind)}" for name, kind in said.items())
        raise InputError(f"Its configuration says {kinds}, which are not the same.")


def _make_activation(
    kind: str, state: Mapping[str, Tensor], config: Mapping[str, Any], options: Options, facts: dict[str, Any]
) -> Activation:
    """Return the activation of `GenericSAE`. Where a number is missing, it takes 0 or 0.01; here it must be given.

    A batch top-k latent fires where it meets its threshold, one of JumpReLU where it exceeds it.
    """
    if kind == "topk":
        facts["k"] = options.settle("k", facts["k"], "Its configuration does not say k")
        return TopK(facts["k"])
    if kind == "batchtopk":
        places = (config.get("threshold"), state.get("_running_threshold"))
        said = [read_number(stored, "threshold") for stored in places if stored is not None]
        if len(said) > 1 and not math.isclose(*said, rel_tol=1e-5):
            raise InputError(f"Its configuration says threshold: {said[0]:g}, and _running_threshold is {said[1]:g}.")
        threshold = next(iter(said), None)
        missing = "Neither its configuration nor its tensors say the threshold, for which visaebench takes 0"
        facts |= {"threshold": options.settle("threshold", threshold, missing), MEETS: True}
        return Threshold(at_least(torch.tensor(facts["threshold"])))
    name = next((name for name in THRESHOLDS if name in state), None)
    if name is None:
        raise InputError(
            f"it is a JumpReLU without {THRESHOLDS[0]}, for which visaebench takes 0.01: give sae.format=plain."
        )
    if THEIRS[0] in state and name == "thresholds":
        raise InputError(
            "its thresholds are logarithms, as overcomplete has them, and visaebench takes them for thresholds: give"
            " sae.format=overcomplete."
        )
    (thresholds,) = need(state, name)
    return Threshold(thresholds.float())


def _read_layer(config: Mapping[str, Any]) -> int | None:
    if (layer := read_layer(config.get("layer"), "layer")) is not None:
        return layer
    match = re.search(r"layer_(\d+)", get_as(str, config, "activation_dir") or "")
    return int(match[1]) if match else LAST_BLOCK if get_as(str, config, "backbone") in BACKBONES else None
