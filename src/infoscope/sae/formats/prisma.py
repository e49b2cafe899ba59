"""Prisma (vit_prisma): config.json beside a state dict; a dict of a pickled config and one; or the older dict of both.

Which norm each token gets, and whether it is a top-k, is in the configuration, whatever its name calls it. Where that
lacks a setting, the toolkit's own loader takes the default of its class (`sae/config.py`), and so does this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted import Record
from infoscope.sae.activations import Activation, ReLU, TanhReLU, TopK
from infoscope.sae.config import TokenChoice, TokenNorm
from infoscope.sae.formats.base import USUAL_KEYS, Foreign, Found, Options, get_tensors, need
from infoscope.sae.formats.unknown import refuse_settings, refuse_tensors
from infoscope.sae.formats.values import (
    check_sizes,
    get_as,
    make_gated,
    name_dtype,
    need_matrices,
    parse_hook,
    pick,
    read_count,
    read_flag,
    read_layer,
    refuse_others,
    show,
    warn_of_layer,
)

LABEL = "Prisma (ViT-Prisma)"
NORMS = {
    None: TokenNorm.none,
    "none": TokenNorm.none,
    "layer_norm": TokenNorm.layer_norm,
    "constant_norm_rescale": TokenNorm.constant_norm,
}
COMPUTES = ("normalize_activations", "architecture", "activation_fn_str", "activation_fn_kwargs", "is_transcoder")
CHOOSES = ("use_patches_only", "cls_token_only")
NUMBERS = {"d_in": read_count, "d_sae": read_count, "hook_point_layer": read_layer}
READ = (
    *COMPUTES,
    "transcoder_with_skip_connection",  # true of all that are no transcoders
)
DEFAULTS = {"normalize_activations": "layer_norm", "activation_fn_str": "topk"}
"""What the toolkit's loader takes for a setting that is missing; of the older dict it takes a ReLU (`sae_utils.py`)."""
GATES = ("b_gate", "b_mag", "r_mag")
SCALES = "scaling_factor"
"""Of finetuning: ones, where there was none."""


class Parts(NamedTuple):
    """defaults: what holds where the configuration does not say it."""

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    defaults: Mapping[str, str] = DEFAULTS


def recognise(found: Found) -> bool:
    parts = _find_parts(found)
    return parts is not None and {"W_enc", "W_dec", "b_dec"} <= parts.state.keys()


def read(found: Found, options: Options) -> Foreign:
    parts = _find_parts(found)
    if parts is None:
        raise InputError(f"Expected a config.json of Prisma's beside the weights, found {found.words}.")
    beside = _find_beside(found)
    _check_beside(parts.config, beside)
    for said in (parts.config, beside):
        refuse_settings(said, *READ, subtracts_b_dec=True)
    parts = parts._replace(config={**beside, **parts.config})
    config, state, _ = parts
    if read_flag(config, "is_transcoder") or {"W_skip", "b_dec_out"} & state.keys():
        raise InputError("it is a transcoder, which reads one place of a block and predicts another: no SAE of tokens.")
    W_enc, W_dec = need_matrices(state, "W_enc", "W_dec")
    check_sizes(W_enc, config, "d_in", "d_sae")
    refuse_tensors(
        state, *USUAL_KEYS, *GATES, "threshold", *([SCALES] * bool((state.get(SCALES, W_enc[:0]) == 1).all()))
    )
    assumed = {name: value for name, value in parts.defaults.items() if name not in config}
    token_norm = options.get("token_norm") if "normalize_activations" in assumed else None
    if token_norm is None:
        token_norm = pick(NORMS, {**config, **assumed}.get("normalize_activations"), "normalize_activations")
    else:
        del assumed["normalize_activations"]
    kind, activation = _make_activation(parts, options)
    layer, site = _find_hook(config)
    advice = "sae.token_norm=" if list(assumed) == ["normalize_activations"] else "sae.format=plain"
    warning = (
        f"Its configuration does not say {' and '.join(assumed)}: taken for {' and '.join(assumed.values())}, as the"
        f" toolkit's own loader takes it; if it was trained otherwise, give {advice}."
    )
    return Foreign(
        kind=kind,
        activation=activation,
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=None if kind == "gated" else next(need(state, "b_enc")),  # a gated one has it, and does not use it
        b_dec=next(need(state, "b_dec")),
        token_norm=token_norm,
        backbone=get_as(str, config, "model_name"),
        image_px=get_as(int, config, "image_size"),
        layer=layer,
        site=site,
        tokens=_find_tokens(config),
        facts={
            "k": activation.k if isinstance(activation, TopK) else None,
            "dataset": get_as(str, config, "dataset_name"),
            "dtype": name_dtype(W_enc),
        },
        warnings=[warning] * bool(assumed) + warn_of_layer(layer, config, "hook_point_layer"),
    )


def _find_beside(found: Found) -> Mapping[str, Any]:
    """Return what config.json says if it is Prisma's own: beside a pickle may lie that of a backbone."""
    beside = _unwrap(found.config("config.json"))
    are_its = beside.keys() <= {*COMPUTES, *CHOOSES, *NUMBERS} and beside.keys() != {"architecture"}  # timm's has one
    return beside if are_its or "hook_point_layer" in beside else {}


def _check_beside(config: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
    """Refuse a configuration in the weights that is of another SAE than the one beside them.

    Raises:
        InputError: with both values.
    """
    for name in (*COMPUTES, *CHOOSES, *NUMBERS):
        values = [said.get(name) for said in (config, beside)]
        if name in NUMBERS:
            values = [NUMBERS[name](value, name) for value in values]
        inner, outer = map(show, values)
        is_same = inner == outer or not {inner, outer} - {"None", "'none'", "{}", "False"}
        is_said = name in config and name in beside and not (name in NUMBERS and None in values)
        if is_said and not is_same:
            raise InputError(f"Its weights say {name}: {inner}, and config.json beside them says {outer}.")


def _make_activation(parts: Parts, options: Options) -> tuple[str, Activation]:
    """Return the kind and the activation.

    Raises:
        InputError: it is another one than those that are read.
    """
    config, state, defaults = parts
    architectures = {"standard": ("relu", "tanh-relu", "topk"), "gated": ("relu",)}
    architecture = config.get("architecture", "standard")
    names = pick(architectures, architecture, "architecture")
    said = config.get("activation_fn_str", defaults["activation_fn_str"])
    name = pick(dict(zip(names, names, strict=True)), said, "activation_fn_str")
    settings = config.get("activation_fn_kwargs")
    settings = {} if settings is None else settings
    if not isinstance(settings, Mapping) or settings.keys() - {"k"}:
        raise InputError(f"Expected activation_fn_kwargs to hold k alone, found {show(settings)}.")
    refuse_others(
        state, GATES if architecture == "gated" else (), (*GATES, "threshold"), f"of architecture {architecture}"
    )
    if name != "topk" and show(settings.get("k")) not in ("None", "0"):
        raise InputError(f"Its configuration says activation_fn_str: {name}, and k: {show(settings['k'])} of a top-k.")
    if architecture == "gated":
        return "gated", make_gated(*need(state, *GATES))
    if name == "topk":
        is_said = "activation_fn_str" in config
        by_default = "" if is_said else ", as activation_fn_str is missing (of a ReLU, give sae.format=plain),"
        needed = f"it is a top-k SAE{by_default} whose configuration lacks k"
        k = options.settle("k", read_count(settings.get("k"), "k"), needed)
        return "topk", TopK(k)
    return ("relu", ReLU()) if name == "relu" else ("tanh_relu", TanhReLU())


def _find_hook(config: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """Return block and site."""
    point, subtype = config.get("hook_point_layer"), get_as(str, config, "layer_subtype")
    point = read_layer(point, "hook_point_layer")
    hook = f"blocks.{point}.{subtype}" if subtype else config.get("hook_point")
    return parse_hook(hook, config.get("hook_point_head_index"))


def _find_tokens(config: Mapping[str, Any]) -> TokenChoice | None:
    if read_flag(config, "cls_token_only"):
        return TokenChoice.cls
    if read_flag(config, "use_patches_only"):
        return TokenChoice.patch
    return TokenChoice.all if "use_patches_only" in config or "cls_token_only" in config else None


def _find_parts(found: Found) -> Parts | None:
    """Return configuration and weights, in any of the three forms."""
    content = found.content if isinstance(found.content, Mapping) else {}
    older = content.get("autoencoder")
    if isinstance(older, Mapping) and "config" in content:
        defaults = {**DEFAULTS, "activation_fn_str": "relu"}
        return Parts(_unwrap(content["config"]), get_tensors(older.get("state_dict")), defaults)
    config = _unwrap(content.get("cfg"))
    if "hook_point_layer" in config:
        return Parts(config, found.get_state("state_dict"))
    config = _unwrap(found.config("config.json"))
    is_its = "hook_point_layer" in config and found.header is None
    return Parts(config, found.get_state("state_dict") or found.state) if is_its else None


def _unwrap(config: Any) -> Mapping[str, Any]:
    """Return the settings of a configuration, those typed in JSON ({"__type__": ..., "value": ...}) as plain values."""
    settings = config.attributes if isinstance(config, Record) else config
    if not isinstance(settings, Mapping):
        return {}
    return {
        name: value.get("value") if isinstance(value, Mapping) and "__type__" in value else value
        for name, value in settings.items()
    }
