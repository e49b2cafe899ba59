"""What infoscope has exported (`sae/export.py`): its plain files, and what it says of itself in those of SAELens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.sae.activations import ACTIVATIONS, Activation, BatchTopK, Gated, JumpReLU, ReLU, Threshold, TopK
from infoscope.sae.config import TokenNorm
from infoscope.sae.export import FILES, PROGRAM, WRITTEN_BY, make_formula, name_hook
from infoscope.sae.formats.base import USUAL_KEYS, Foreign, Found, Options, need
from infoscope.sae.formats.values import check_sizes, need_matrices, pick, read_count, refuse_others, show
from infoscope.sae.origin import Origin

LABEL = "infoscope's own plain export"
INFO, _ = FILES["plain"]
GATE = ("gate_bias", "mag_bias", "mag_scale")


class Record(NamedTuple):
    """What infoscope says of an SAE that it has exported, and in which file.

    k: None: it has none. prefix_sizes: of a Matryoshka SAE, as they stand there; None: they do not.
    """

    file: str
    kind: str
    k: int | None
    origin: Origin
    prefix_sizes: Any = None


def recognise(found: Found) -> bool:
    info = found.config(INFO) or {}
    return bool({WRITTEN_BY, "formula"} & info.keys()) and found.header is None and found.has("W_enc", "W_dec")


def read(found: Found, options: Options) -> Foreign:
    info, state = found.config(INFO) or {}, found.state
    if info.get(WRITTEN_BY) != PROGRAM:
        raise InputError(f"Expected {INFO} to be written by infoscope, found {show(info.get(WRITTEN_BY))}.")
    record = read_record(info, INFO)
    norm = pick(TokenNorm.__members__, info.get("token_norm"), f"token_norm of {INFO}")
    W_enc, W_dec = need_matrices(state, "W_enc", "W_dec")
    check_sizes(W_enc, info, "d_in", "d_sae")
    activation = _read_activation(state, record)
    if info.get("formula") != make_formula(norm, activation):
        raise InputError(f"the formula in {INFO} is not the one that infoscope wrote there: export the SAE again.")
    b_enc, b_dec = need(state, "b_enc", "b_dec")
    foreign = Foreign(
        kind=record.kind,
        activation=activation,
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=b_enc,
        b_dec=b_dec,
        subtracts_b_dec=False,
        token_norm=norm,
    )
    return restore(foreign, record)


def read_record(said: Any, file: str, about: Mapping[str, Any] = MappingProxyType({})) -> Record:
    """Return what infoscope wrote into a description.

    Args:
        file: the description.
        about: what else stands there of the network, as SAELens calls it.

    Raises:
        InputError: it is something else, or the two disagree.
    """
    try:
        kind, origin = said["kind"], Origin.from_json(said["origin"])
        k = read_count(said["k"], "k")
        if kind not in ACTIVATIONS:
            raise ValueError
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise InputError(
            f"what {file} says of its origin is not as infoscope wrote it: export the SAE again."
        ) from error
    for name, ours in name_hook(origin).items():
        if about.get(name) not in (None, ours):
            raise InputError(f"{file} says {name} {show(about[name])}, and infoscope exported it as {ours}: which?")
    return Record(file, kind, k, origin, said.get("prefix_sizes"))


def restore(foreign: Foreign, record: Record) -> Foreign:
    """Return an SAE that knows again what it was before it was exported.

    Args:
        foreign: as it would be without.

    Raises:
        InputError: it is of another kind.
    """
    origin, source = record.origin, record.origin.source
    activation = _restore_activation(foreign.activation, record)
    if activation is None:
        k = "" if record.k is None else f" with k {record.k}"
        raise InputError(f"{record.file} says that it is of kind {record.kind}{k}, and the rest is of something else.")
    known = {"k": record.k, "threshold": _find_one(activation), "prefix_sizes": record.prefix_sizes}
    facts = {name: value for name, value in known.items() if value}
    return replace(
        foreign,
        kind=source.kind if source else record.kind,
        activation=activation,
        backbone=source.backbone if source else None,
        fingerprint=origin.backbone,
        image_px=origin.image_px,
        layer=origin.layer,
        site=origin.site,
        tokens=origin.tokens,
        facts=facts | (source.facts if source else {}),
        warnings=[*(source.warnings if source else ())],
        exported_from=(source.exported_from or source.words) if source else f"{record.kind}, trained by infoscope",
    )


def _read_activation(state: Mapping[str, Tensor], record: Record) -> Activation:
    """Return what the tensors of a plain export compute."""
    if record.k is not None and "threshold" not in state:
        names, activation = (), TopK(record.k)
    elif "threshold" in state:
        names, activation = ("threshold",), Threshold(state["threshold"].float())
    elif "gate_bias" in state:
        names, activation = GATE, Gated(*(tensor.float() for tensor in need(state, *GATE)))
    else:
        names, activation = (), ReLU()
    refuse_others(state, (*USUAL_KEYS, *names), state, f"of kind {record.kind}")
    return activation


@torch.no_grad()
def _restore_activation(found: Activation, record: Record) -> Activation | None:
    """Return the activation that computes what was found, as the kind that it was; None: it is none of that kind."""
    match record.kind, found:
        case ("topk" | "matryoshka_k", TopK()) if found.k == record.k:
            return ACTIVATIONS[record.kind].from_settings({"k": record.k})
        case ("batchtopk" | "matryoshka_prefix", Threshold()):
            one = _find_one(found)
            if one is None or record.k is None:
                return None
            made = ACTIVATIONS[record.kind].from_settings({"k": record.k})
            assert isinstance(made, BatchTopK)
            made.threshold.fill_(one)
            return made
        case ("jumprelu", Threshold()):
            made = JumpReLU(len(found.threshold))
            if bool((found.threshold <= 0).any()):  # of which there is no logarithm
                return found
            made.log_threshold.copy_(found.threshold.log())
            return made
        case ("threshold", Threshold()):
            one = _find_one(found)
            return found if one is None else Threshold(torch.tensor(one))
        case ("relu", ReLU()) | ("gated", Gated()):
            return found
    return None


def _find_one(activation: Activation) -> float | None:
    """Return the threshold of all latents; None: there is none, or several."""
    values = getattr(activation, "threshold", torch.empty(0)).detach().flatten()
    return float(values[0]) if len(values) and bool((values == values[0]).all()) else None
