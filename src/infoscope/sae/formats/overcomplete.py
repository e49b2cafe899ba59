"""overcomplete (Fel): a whole pickled module, or its state dict.

No b_dec. ReLU, then by class: the k largest; what is at least a running threshold, which is no part of a state dict;
what is at least exp(thresholds). The dictionary is as `eval()` leaves it (`overcomplete/sae/*.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted import Record, list_keys, module_state
from infoscope.sae.activations import Activation, ReLU, TopK
from infoscope.sae.formats import visaebench
from infoscope.sae.formats.base import Foreign, Found, Options, need
from infoscope.sae.formats.overcomplete_dictionary import make_dictionary
from infoscope.sae.formats.unknown import refuse_tensors
from infoscope.sae.formats.values import at_least, name_dtype, read_count, read_number, transpose
from infoscope.sae.formulas import MEETS
from infoscope.sae.imported_activations import Threshold

LABEL = "overcomplete"
PACKAGE = "overcomplete."
KINDS = {
    "SAE": "relu",
    "TopKSAE": "topk",
    "RATopKSAE": "topk",
    "BatchTopKSAE": "batchtopk",
    "JumpSAE": "jumprelu",
    "RAJumpSAE": "jumprelu",
}
"""By the name of the class."""
LINEAR, TIED = "overcomplete.sae.modules.MLPEncoder", "overcomplete.sae.modules.TieableEncoder"
FINAL = ("encoder.final_block.0.weight", "encoder.final_block.0.bias")
UNTIED = ("encoder.weight", "encoder.bias")
IDENTITY, RELU = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.ReLU"
DICTIONARY = ("_weights", "W", "C", "Relax", "multiplier")


class Encoder(NamedTuple):
    """weight [d_sae, d_in]; None: the dictionary itself. bias: None: it has none."""

    weight: Tensor | None
    bias: Tensor | None


def recognise(found: Found) -> bool:
    if isinstance(found.content, Record):
        return found.content.name.startswith(PACKAGE)
    has_dictionary = any(name.startswith(("dictionary._weights", "dictionary.Relax")) for name in _read_state(found))
    return has_dictionary and not visaebench.recognise(found)


def read(found: Found, options: Options) -> Foreign:
    module = found.content if isinstance(found.content, Record) else None
    state = _read_state(found)
    kind = _read_kind(module, state, options)
    encoder = _read_encoder(module, state, kind)
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("encoder.")}
    refuse_tensors(rest, "thresholds", *(f"dictionary.{name}" for name in DICTIONARY))
    facts: dict[str, Any] = {"dtype": name_dtype(next(iter(state.values())))}
    attributes = {} if module is None else module.attributes
    activation = _make_activation(kind, attributes, state, options, facts, is_module=module is not None)
    part = _get_module(module, "dictionary")
    others = {n.removeprefix("dictionary."): t for n, t in state.items() if not n.startswith("encoder.tied_to.")}
    W_dec, warnings = make_dictionary(part, others)
    if encoder.weight is None:
        facts["tied"] = True
    return Foreign(
        kind=kind,
        activation=activation,
        W_enc=W_dec.T.contiguous() if encoder.weight is None else transpose(encoder.weight),
        W_dec=W_dec,
        b_enc=encoder.bias,
        facts=facts,
        warnings=warnings,
    )


def _read_state(found: Found) -> dict[str, Tensor]:
    return module_state(found.content) if isinstance(found.content, Record) else found.inner_state


def _get_module(module: Record | None, name: str) -> Record | None:
    """Return a part of a module, None where it has none of this name."""
    part = module.attributes.get("_modules", {}).get(name) if module is not None else None
    return part if isinstance(part, Record) else None


def _read_kind(module: Record | None, state: Mapping[str, Tensor], options: Options) -> str:
    """Return the kind: a module's class says it; of a state dict only thresholds of each latent do."""
    if module is not None:
        name = module.name.rpartition(".")[2]
        if name not in KINDS or not module.is_module:
            raise InputError(f"it is a {module.name}, and read are {', '.join(KINDS)}.")
        return KINDS[name]
    names = {name for name in state if name.startswith("encoder.")}
    if not names:
        raise InputError("it has no encoder, so it is a matching pursuit (MpSAE, OMPSAE): not supported.")
    _refuse_batch_norm(names)
    if "Q" in state:
        raise InputError("it is a Q-SAE (QSAE), whose codes are quantised: not supported.")
    said = options.kind("relu", "topk", "batchtopk", "jumprelu")
    if "thresholds" in state:
        if said not in (None, "jumprelu"):
            raise InputError(f"it has thresholds, so it is a JumpSAE, got sae.kind={said}: drop that.")
        return "jumprelu"
    if said is None:
        given = [kind for kind, name in (("topk", "k"), ("batchtopk", "threshold")) if options.get(name) is not None]
        if len(given) == 1:
            return given[0]
    if said in (None, "jumprelu"):
        raise InputError(
            "a state dict does not say which class it is of: give sae.kind=relu, or sae.k= of a TopKSAE, or"
            " sae.threshold= of a BatchTopKSAE (its running_threshold, which is not in a state dict)."
        )
    return said


def _read_encoder(module: Record | None, state: Mapping[str, Tensor], kind: str) -> Encoder:
    """Return the matrix and bias of an encoder that is one linear layer.

    Raises:
        InputError: it is another one.
    """
    everything = {name for name in state if name.startswith("encoder.")}
    names = {name for name in everything if not name.startswith("encoder.tied_to.")}
    is_tied, part = names != everything, _get_module(module, "encoder")
    _refuse_batch_norm(names)
    if part is not None and part.name not in (LINEAR, TIED):
        raise InputError(f"its encoder is a {part.name}, and read are linear ones (MLPEncoder without hidden blocks).")
    if names == set(FINAL):
        if part is not None:
            _check_layers(part, kind)
        return Encoder(state[FINAL[0]], state[FINAL[1]])
    if names <= set(UNTIED) and (UNTIED[0] in names or is_tied):
        return Encoder(state.get(UNTIED[0]), state.get(UNTIED[1]))
    found = {name: state[name] for name in sorted(names)}
    raise InputError(f"its encoder is no linear layer: it has {', '.join(list_keys(found)) or 'no weights'}.")


def _refuse_batch_norm(names: set[str]) -> None:
    if any("running_mean" in name for name in names):
        raise InputError("its encoder has a BatchNorm, as UniversalSAE's: not supported.")


def _check_layers(encoder: Record, kind: str) -> None:
    """Refuse what else an encoder of one linear layer may do: normalise, or end in another activation than ReLU."""
    final, last = _get_module(encoder, "final_block"), _get_module(encoder, "final_activation")
    parts: list[Any] = list(final.attributes["_modules"].values()) if final is not None else []
    others = [part.name for part in parts[1:] if isinstance(part, Record) and part.name != IDENTITY]
    if last is not None and kind != "jumprelu" and last.name != RELU:
        others.append(last.name)
    if others:
        raise InputError(f"its encoder has a {others[0]}, and read are linear ones with a ReLU.")


def _make_activation(
    kind: str,
    attributes: Mapping[str, Any],
    state: Mapping[str, Tensor],
    options: Options,
    facts: dict[str, Any],
    is_module: bool,
) -> Activation:
    if kind == "relu":
        return ReLU()
    if kind == "topk":
        needed = "A state dict does not say how many latents are active"
        facts["k"] = options.settle("k", read_count(attributes.get("top_k"), "top_k"), needed)
        return TopK(facts["k"])
    if kind == "jumprelu":
        (logs,) = need(state, "thresholds")  # the logarithms
        facts[MEETS] = True
        return Threshold(at_least(logs.float().exp()))
    stored = attributes.get("running_threshold")
    needed = (
        "It was saved before its first step of training, so it has no running_threshold"
        if is_module
        else "A state dict does not hold the running_threshold of a BatchTopKSAE"
    )
    facts["threshold"] = options.settle(
        "threshold", None if stored is None else read_number(stored, "running_threshold"), needed
    )
    facts[MEETS], facts["k_of_batch"] = True, read_count(attributes.get("top_k"), "top_k")
    return Threshold(at_least(torch.tensor(facts["threshold"])))
