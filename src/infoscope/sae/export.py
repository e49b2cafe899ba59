"""An SAE for other programs: SAELens' files, or plain matrices. Everything that infoscope keeps apart is folded in.

With mu, c and the subtraction of b_dec in the weights,

    W_enc' = c W_enc;  b_enc' = b_enc - (c mu + b_dec) W_enc;  W_dec' = W_dec / c;  b_dec' = mu + b_dec / c,

an SAE is z = act(x W_enc' + b_enc') and x_hat = z W_dec' + b_dec' of raw tokens x. z stays what it is, to rounding;
rows of W_dec have another length, so that z |W_dec| is in raw units.
"""

from __future__ import annotations

import filecmp
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.runtime.files import atomic_write
from infoscope.runtime.large_tensors import Change, reduce_rows, write_tensors
from infoscope.sae.activations import Activation, BatchTopK, Gated, JumpReLU, ReLU, Threshold, TopK
from infoscope.sae.config import TokenNorm
from infoscope.sae.formulas import NORMS, describe_activation
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin, check_statistics
from infoscope.vision.hooks import POOLED, RESID_POST
from infoscope.vision.names import name_fingerprint

ExportFormat = Literal["saelens", "plain"]
FILES: dict[ExportFormat, tuple[str, str]] = {
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "plain": ("plain.json", "plain.safetensors"),
}
"""What describes an SAE, and its tensors. No format's names are another's, for a `cfg.json` is read as SAELens'."""
WRITTEN_BY, PROGRAM = "written_by", "infoscope"
"""What a description says of itself, by which infoscope knows a file of its own."""


_NORMS = {
    TokenNorm.none: "none",
    TokenNorm.layer_norm: "layer_norm",
    TokenNorm.constant_norm: "constant_norm_rescale",
}
"""What SAELens calls them."""


class _Exported(NamedTuple):
    """What becomes of an activation.

    architecture: SAELens' name. settings: more of SAELens' description. tensors: more of the weights, [d_sae] each.
    """

    architecture: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]


def export_sae(sae: SparseAutoencoder, out: Path, format: ExportFormat = "saelens") -> list[Path]:
    """Write an SAE into a folder, which is made, as other programs read it; return its description and its weights.

    The exported SAE gives the same z as here, and the same x_hat: rows of W_dec are divided by c, and W_enc multiplied.
    A pre-activation differs by rounding (float32), so latents within that of a threshold, or of the k-th place, may
    fire in one and not in the other.

    saelens: `cfg.json` and `sae_weights.safetensors` (W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec; threshold
        [d_sae]; or b_gate, b_mag, r_mag in place of b_enc), which `SAE.load_from_disk` of SAELens 6 reads.
    plain: `plain.json`, which holds the formula in words, and `plain.safetensors` with the same names of tensors; b_enc
        is among them always, and those of a gate are as here: gate_bias, mag_bias, mag_scale.

    Args:
        sae: of a kind that SAELens knows: relu, topk, matryoshka_k, batchtopk, matryoshka_prefix, jumprelu, threshold,
            gated. A norm per token only with mean 0 and scale 1, where it is the same there.

    Raises:
        InputError: an SAE of another kind or norm, or that lacks the mean and scale of its tokens; a format that does
            not exist; a file in the way that infoscope did not export, or from another SAE.
        OSError: the disk is full.
    """
    if format not in FILES:
        raise InputError(f"Expected format to be one of {', '.join(FILES)}, got {format!r}.")
    check_statistics(sae.origin)
    out = Path(out).expanduser()
    files = [out / name for name in FILES[format]]
    scale, tensors = float(sae.scale), {"W_enc": sae.W_enc, "W_dec": sae.W_dec, **fold_biases(sae)}
    changes: dict[str, Change] = {"W_enc": lambda part: part * scale, "W_dec": lambda part: part / scale}
    exported = _export_activation(sae, tensors["b_enc"], format)
    if format == "saelens" and isinstance(sae.activation, Gated):
        del tensors["b_enc"]
    info = _describe(sae, exported, format)
    _check_free(out, format)
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:  # both are renamed when both are whole
            info_file, weights_file = (stack.enter_context(atomic_write(file)) for file in files)
            write_tensors(weights_file, tensors | exported.tensors, {"format": "pt"}, changes)
            info_file.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
            if _differ(info_file, files[0]) or (
                _differ(weights_file, files[1]) and not _is_cut(files[1], weights_file)
            ):
                raise InputError(f"{out} holds the export of another SAE: give another folder, or remove that one.")
    except BaseException:
        if is_new:
            out.rmdir()
        raise
    return files


@torch.no_grad()
def fold_biases(sae: SparseAutoencoder) -> dict[str, Tensor]:
    """Return b_enc' and b_dec' (float32, on the CPU), with which the weights read and write raw tokens.

    Raises:
        InputError: the SAE normalises each token by itself, after another mean or scale.
    """
    scale, mean = float(sae.scale), sae.mean.double()
    if sae.token_norm is not TokenNorm.none and (sae.mean.any() or scale != 1):
        raise InputError(
            f"This SAE normalises each token by itself ({sae.token_norm.name}) after its mean and scale, which no other"
            " format holds: only those of mean 0 and scale 1 can be exported."
        )
    read = scale * mean + sae.b_dec.double()
    b_enc = sae.b_enc.double() - reduce_rows(sae.W_enc.T, lambda part: part @ read)
    return {"b_enc": b_enc.float().cpu(), "b_dec": (mean + sae.b_dec.double() / scale).float().cpu()}


@torch.no_grad()
def _export_activation(sae: SparseAutoencoder, b_enc: Tensor, format: ExportFormat) -> _Exported:
    """Return what becomes of the activation, given b_enc'."""
    activation, new = sae.activation, {"dtype": torch.float32, "device": "cpu"}
    match activation:
        case TopK(signed=False):
            settings = {"k": activation.k, "rescale_acts_by_decoder_norm": False}
            return _Exported("topk", settings, {})
        case ReLU():
            return _Exported("standard", {}, {})
        case BatchTopK() | JumpReLU() | Threshold():
            threshold = activation.threshold.to(**new).clamp_min(0).expand(sae.d_sae).contiguous()
            return _Exported("jumprelu", {}, {"threshold": threshold})
        case Gated():
            gate = {name: values.to(**new) for name, values in activation.named_buffers()}
            if format == "saelens":
                b_gate, b_mag = b_enc + gate["gate_bias"], b_enc * gate["mag_scale"] + gate["mag_bias"]
                gate = {"b_gate": b_gate, "b_mag": b_mag, "r_mag": gate["mag_scale"].clamp_min(1e-38).log()}
            return _Exported("gated", {}, gate)
    name = "a signed topk" if activation.is_signed and isinstance(activation, TopK) else f"the kind {activation.kind}"
    raise InputError(
        f"This SAE is of {name}, which has no place in format={format}: those of topk, relu, jumprelu, batchtopk, gated"
        " and the like can be exported."
    )


def _describe(sae: SparseAutoencoder, exported: _Exported, format: ExportFormat) -> dict[str, Any]:
    """Return what describes the SAE; `sae/formats/exported.py` reads it."""
    info = {WRITTEN_BY: PROGRAM, "d_in": sae.d_in, "d_sae": sae.d_sae, "dtype": "float32"}
    record = {"kind": sae.activation.kind, "k": getattr(sae.activation, "k", None), "origin": sae.origin.to_json()}
    record |= {"prefix_sizes": [*sae.prefix_sizes]} if sae.prefix_sizes else {}
    if format == "saelens":
        settings = {
            "architecture": exported.architecture,
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": _NORMS[sae.token_norm],
            "reshape_activations": "none",
        }
        return info | settings | exported.settings | {"metadata": {**name_hook(sae.origin), PROGRAM: record}}
    threshold = exported.tensors.get("threshold")  # of each latent, where ours may be one for all
    formula = make_formula(sae.token_norm, sae.activation if threshold is None else Threshold(threshold))
    return info | record | {"token_norm": sae.token_norm.name, "formula": formula}


def make_formula(token_norm: TokenNorm, activation: Activation) -> dict[str, str]:
    """Return how a plain export computes, in words."""
    norm = NORMS[token_norm]
    return {
        "x": "a raw token [d_in], as the backbone gives it",
        "x_n": ", ".join(filter(None, (norm.x_n, norm.where))),
        "a": "x_n W_enc + b_enc",
        "z": describe_activation(activation),
        "x_hat": f"(z W_dec + b_dec) {norm.back}" if norm.back else "z W_dec + b_dec",
    }


def name_hook(origin: Origin) -> dict[str, str]:
    """Return what the SAE was trained on as SAELens says it, as far as it is known."""
    name = name_fingerprint(origin.backbone) or (origin.source and origin.source.backbone)
    hook = {} if name is None else {"model_name": str(name)}
    if origin.layer is not None and origin.layer >= 0 and origin.site != POOLED:
        hook["hook_name"] = f"blocks.{origin.layer}.hook_{origin.site or RESID_POST}"
    return hook


def _check_free(out: Path, format: ExportFormat) -> None:
    """Refuse to write over what infoscope did not export, or beside another format's export.

    Raises:
        InputError: there are such files, or the place is one.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"Expected a folder to export to, {out} is a file.")
    for of, names in FILES.items():
        there = [name for name in names if (out / name).exists()]
        if there and not (of == format and is_exported(out / names[0])):
            whose = "is of another format" if is_exported(out / names[0]) else "infoscope did not export"
            raise InputError(f"{out} holds {there[0]}, which {whose}: give another folder.")


def _differ(new: Path, there: Path) -> bool:
    """Whether there is a file already, and it holds something else."""
    return there.exists() and not filecmp.cmp(new, there, shallow=False)


def _is_cut(there: Path, whole: Path) -> bool:
    return there.stat().st_size < whole.stat().st_size


def is_exported(file: Path) -> bool:
    """Whether a description is one that infoscope has written."""
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError):
        return False
    return isinstance(info, dict) and info.get(WRITTEN_BY) == PROGRAM
