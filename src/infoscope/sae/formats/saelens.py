"""SAELens: sae_weights.safetensors with a cfg.json beside it, as versions before 6.0 and since write it.

Older configurations are flat: hook_point for hook_name, activation_fn_str for the kind (a top-k is "standard" there),
normalize_activations true or false. Batch top-k and Matryoshka SAEs are saved as JumpReLU once they are trained; in the
checkpoints of a training they are what they are, and become here what the toolkit makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.sae.activations import Activation, ReLU, TanhReLU, Threshold, TopK
from infoscope.sae.config import TokenNorm
from infoscope.sae.formats import exported
from infoscope.sae.formats.base import USUAL_KEYS, Foreign, Found, Options, make_writable, need, scale_rows
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
    read_number,
    refuse_others,
    unit_rows,
)

LABEL = "SAELens"
AVERAGE = "expected_average_only_in"
NORMS = {
    None: TokenNorm.none,
    False: TokenNorm.none,
    True: TokenNorm.none,
    "none": TokenNorm.none,
    AVERAGE: TokenNorm.none,
    "layer_norm": TokenNorm.layer_norm,
    "constant_norm_rescale": TokenNorm.constant_norm,
}
"""True and false are how old versions write AVERAGE and none."""
KINDS = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "matryoshka_prefix",
}
"""Our words for its architectures."""
SCALES = ("finetuning_scaling_factor", "scaling_factor")
TENSORS = {
    "gated": ("b_gate", "b_mag", "r_mag"),
    "jumprelu": ("threshold",),
    "batchtopk": ("topk_threshold",),
    "matryoshka_batchtopk": ("topk_threshold",),
}
"""What its activations need."""
READ = (
    *("normalize_activations", "apply_b_dec_to_input", "activation_fn", "activation_fn_str"),
    *("architecture", "activation_fn_kwargs", "finetuning_scaling_factor", "rescale_acts_by_decoder_norm"),
    "scale_sparsity_penalty_by_decoder_norm",  # in training alone
)
"""Settings that are read, or known not to matter."""
REFUSED = {
    "transcoder": "it reads one place of the network and predicts another",
    "skip_transcoder": "it reads one place of the network and predicts another",
    "jumprelu_transcoder": "it reads one place of the network and predicts another",
    "crosscoder": "it reads several places of the network",
    "abstopk": "it keeps the largest by magnitude, negative ones too",
    "matching_pursuit": "its code takes several passes over a token",
    "temporal": "its code needs the tokens before",
}


class Settings(NamedTuple):
    """A cfg.json. about: what it says of the network, in itself or in its metadata."""

    config: Mapping[str, Any]
    about: Mapping[str, Any]
    architecture: str
    activation_fn: str

    @property
    def rescales(self) -> bool:
        """Whether latents are compared, and returned, times the norms of their decoder rows."""
        is_batch = "batchtopk" in self.architecture
        is_read = is_batch or self.architecture == "topk"
        return is_read and read_flag(self.config, "rescale_acts_by_decoder_norm", default=is_batch)


def recognise(found: Found) -> bool:
    config = found.config("cfg.json") or {}
    if "d_in" not in config or found.header is not None:
        return False
    is_refused = get_as(str, config, "architecture") in REFUSED and bool(found.state.keys() - {"sparsity"})
    return is_refused or found.has("W_enc", "W_dec", "b_dec")


def read(found: Found, options: Options) -> Foreign:
    settings = _read_settings(found)
    config, about, state = settings.config, settings.about, found.state
    W_enc, W_dec = need_matrices(state, "W_enc", "W_dec")
    check_sizes(W_enc, config, "d_in", "d_sae")
    norm, warnings = config.get("normalize_activations"), list[str]()
    token_norm = pick(NORMS, norm, "normalize_activations")
    activation, facts = _make_activation(settings, state, options)
    facts |= {"dataset": get_as(str, about, "dataset_path"), "dtype": name_dtype(W_enc)}
    b_enc = None if settings.architecture == "gated" else next(need(state, "b_enc"))
    if settings.rescales and b_enc is not None:
        W_enc, W_dec, b_enc = unit_rows(state, W_enc, W_dec, b_enc)
    factors = _find_finetuning(config, state, len(W_dec), warnings)
    head = about.get("hook_head_index", config.get("hook_point_head_index"))
    layer, site = parse_hook(_find_hook(settings), head)
    foreign = Foreign(
        kind="tanh_relu" if isinstance(activation, TanhReLU) else KINDS[settings.architecture],
        activation=activation,
        W_enc=W_enc,
        W_dec=W_dec if factors is None else scale_rows(make_writable(W_dec, state), factors),
        b_enc=b_enc,
        b_dec=next(need(state, "b_dec")),
        subtracts_b_dec=read_flag(config, "apply_b_dec_to_input", default=True),
        scale=_find_scale(found, options, warnings) if norm is True or norm == AVERAGE else 1.0,
        token_norm=token_norm,
        backbone=get_as(str, about, "model_name"),
        layer=layer,
        site=site,
        facts=facts,
        warnings=warnings,
    )
    said = about.get(exported.PROGRAM)
    return foreign if said is None else exported.restore(foreign, exported.read_record(said, "cfg.json", about))


def _read_settings(found: Found) -> Settings:
    """Return the configuration; a top-k of before 6.0 as one of since.

    Raises:
        InputError: there is none, or it is of what is not read.
    """
    config = found.config("cfg.json")
    if config is None:
        raise InputError("Expected the cfg.json of SAELens beside the weights, and there is none.")
    about = config["metadata"] if isinstance(config.get("metadata"), Mapping) else config
    architecture = config.get("architecture") or "standard"
    if architecture in list(REFUSED):
        raise InputError(f"it is of architecture {architecture}, which is not read: {REFUSED[architecture]}.")
    pick(KINDS, architecture, "architecture")
    name = config.get("activation_fn_str", config.get("activation_fn")) or "relu"
    if name == "topk" and architecture == "standard":
        architecture = "topk"
    known = {"standard": ("relu", "tanh-relu"), "topk": ("relu", "topk")}.get(architecture, ("relu",))
    pick(dict.fromkeys(known), name, f"activation_fn of a {architecture} SAE")
    kwargs = config.get("activation_fn_kwargs")
    for said in (config, kwargs if isinstance(kwargs, Mapping) else {}):
        refuse_settings(said, *READ, *(["k"] if architecture not in ("standard", "gated") else []))
    settings = Settings(config, about, architecture, name)
    by_hook = "hook_z" if isinstance(hook := _find_hook(settings), str) and "hook_z" in hook else "none"
    pick({"none": None}, config.get("reshape_activations", by_hook), "reshape_activations (heads one by one)")
    return settings


def _find_hook(settings: Settings) -> Any:
    """Return where in the network it is, such as blocks.10.hook_resid_post."""
    places = (settings.about.get("hook_name"), settings.config.get("hook_name"), settings.config.get("hook_point"))
    return next((place for place in places if place), None)


def _make_activation(
    settings: Settings, state: Mapping[str, Tensor], options: Options
) -> tuple[Activation, dict[str, Any]]:
    """Return the activation, and what is to be known of it.

    Raises:
        InputError: a tensor is missing, there are those of another activation, or k is not known.
    """
    architecture, config = settings.architecture, settings.config
    names = TENSORS.get(architecture, ())
    others = [name for group in TENSORS.values() for name in group]
    refuse_others(state, names, dict.fromkeys(others), f"of architecture {architecture}")
    refuse_tensors(state, *USUAL_KEYS, *names, *SCALES)
    tensors = [tensor.float() for tensor in need(state, *names)]
    match architecture:
        case "topk":
            kwargs = config.get("activation_fn_kwargs")
            named = [config.get("k"), kwargs.get("k") if isinstance(kwargs, Mapping) else None]
            said = [k for k in (read_count(k, "k") for k in named) if k is not None]
            if len(set(said)) > 1:
                raise InputError(f"Its configuration says k: {said[0]}, and k: {said[1]} in activation_fn_kwargs.")
            k = options.settle("k", next(iter(said), None), "it is a top-k SAE whose configuration lacks k")
            return TopK(k), {"k": k}
        case "gated":
            return make_gated(*tensors), {}
        case "jumprelu":
            is_one = tensors[0].numel() > 0 and bool((tensors[0] == tensors[0].flatten()[0]).all())
            return Threshold(tensors[0]), {"threshold": float(tensors[0].flatten()[0])} if is_one else {}
        case "batchtopk" | "matryoshka_batchtopk":
            facts = {"k": get_as(float, config, "k") or get_as(int, config, "k"), "threshold": float(tensors[0].max())}
            return Threshold(tensors[0]), facts | {"prefix_sizes": get_as(list, config, "matryoshka_widths")}
        case _:
            return (TanhReLU() if settings.activation_fn == "tanh-relu" else ReLU()), {}


def _find_finetuning(
    config: Mapping[str, Any], state: Mapping[str, Tensor], d_sae: int, warnings: list[str]
) -> Float[Tensor, " d_sae"] | None:
    """Return by what finetuning has multiplied the code before it is decoded; None: nothing.

    Raises:
        InputError: there are such factors, and the configuration says that there are none; or too many.
    """
    says = read_flag(config, "finetuning_scaling_factor")
    factors = next((next(need(state, name)) for name in SCALES if name in state), None)
    if factors is None and says:
        warnings.append("Its configuration says finetuning_scaling_factor, and it holds no such factors: none is used.")
    if factors is None or bool((factors == 1).all()):
        return None
    if not says or factors.shape != (d_sae,):
        raise InputError(
            f"Expected {d_sae} finetuning factors and finetuning_scaling_factor: true, found {list(factors.shape)} and"
            f" {says}."
        )
    return factors


def _find_scale(found: Found, options: Options, warnings: list[str]) -> float:
    """Return what tokens were multiplied by in training, where that is not in the weights: 1 if nobody says."""
    in_file = (found.config("activation_scaler.json") or {}).get("scaling_factor")
    in_file = None if in_file is None else read_number(in_file, "scaling_factor of activation_scaler.json", above=0)
    scale = options.settle("scale", in_file)
    if scale is None:
        warnings.append(
            f"It was trained with normalize_activations={AVERAGE}, whose factor SAELens folds into the weights when a"
            " training ends, and then says none: the factor may be missing here (SAELens issues 222 and 381), and every"
            " number be wrong. If FVU is far from 0, give sae.scale= (sqrt(d_in) over the mean norm of a token)."
        )
    return 1.0 if scale is None else float(scale)
