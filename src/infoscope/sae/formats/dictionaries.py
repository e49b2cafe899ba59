"""The classes of saprmarks' dictionary_learning, whose files other toolkits write too: their tensors, and what z is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted import list_keys
from infoscope.sae.activations import ReLU, Threshold, TopK
from infoscope.sae.formats.base import USUAL_KEYS, Foreign, Options, need
from infoscope.sae.formats.values import make_gated, name_dtype, need_matrices, read_count, read_number, show, unit_rows

LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
K = frozenset({"k", "threshold"})


class Given(NamedTuple):
    """state: the tensors. k: as a configuration has it. bias_scale: what biases and thresholds are multiplied by."""

    state: Mapping[str, Tensor]
    options: Options
    k: Any = None
    bias_scale: float = 1.0

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return W_enc and W_dec."""
        if "encoder.weight" in self.state:
            return need_matrices(self.state, "encoder.weight", "decoder.weight", is_linear=True)
        return need_matrices(self.state, "W_enc", "W_dec")

    def biases(self, *names: str) -> list[Tensor]:
        return [bias.double() * self.bias_scale for bias in need(self.state, *names)]

    def read_k(self, needed: str = "") -> int | None:
        """Return k of the tensors, of the configuration or of the settings, which must agree."""
        found = [read_count(value, "k") for value in (self.state.get("k"), self.k) if value is not None]
        if len(set(found)) > 1:
            raise InputError(f"Its weights say k={found[0]}, and its configuration k={found[1]}.")
        return self.options.settle("k", found[0] if found else None, needed)


def _read_standard(given: Given) -> Foreign:
    b_enc, b_dec = given.biases("encoder.bias", "bias")
    facts = {"rescaled": "decoder rows are unit and z is larger by their norms, as the toolkit's loader has it"}
    return Foreign("relu", ReLU(), *unit_rows(given.state, *given.matrices(), b_enc), b_dec, facts=facts)


def _read_new(given: Given) -> Foreign:
    b_enc, b_dec = given.biases("encoder.bias", "decoder.bias")
    return Foreign("relu", ReLU(), *given.matrices(), b_enc, b_dec, subtracts_b_dec=False)


def _read_gated(given: Given) -> Foreign:
    gate, magnitude, b_dec = given.biases("gate_bias", "mag_bias", "decoder_bias")
    (r_mag,) = need(given.state, "r_mag")
    return Foreign("gated", make_gated(gate, magnitude, r_mag), *given.matrices(), b_dec=b_dec)


def _read_jumprelu(given: Given) -> Foreign:
    b_enc, b_dec, threshold = given.biases("b_enc", "b_dec", "threshold")
    return Foreign("jumprelu", Threshold(threshold.float()), *given.matrices(), b_enc, b_dec, subtracts_b_dec=False)


def _read_topk(given: Given) -> Foreign:
    k = given.read_k("neither its weights nor its configuration say how many latents are active")
    assert k is not None
    b_enc, b_dec = given.biases("encoder.bias", "b_dec")
    return Foreign("topk", TopK(k), *given.matrices(), b_enc, b_dec, facts={"k": k})


def _read_batchtopk(given: Given) -> Foreign:
    activation, facts, warnings = _read_threshold(given)
    b_enc, b_dec = given.biases("encoder.bias", "b_dec")
    return Foreign("batchtopk", activation, *given.matrices(), b_enc, b_dec, facts=facts, warnings=warnings)


def _read_matryoshka(given: Given) -> Foreign:
    activation, facts, warnings = _read_threshold(given)
    W_enc, W_dec = given.matrices()
    sizes = given.state.get("group_sizes", torch.zeros(0))
    is_whole = not sizes.is_floating_point() and sizes.dtype != torch.bool
    is_counts = is_whole and bool(((sizes > 0) & (sizes <= len(W_dec))).all())
    facts["prefix_sizes"] = sizes.flatten().cumsum(0).tolist() if is_counts else []
    if facts["prefix_sizes"][-1:] != [len(W_dec)]:
        raise InputError(
            f"Expected group_sizes to be whole numbers above 0 that add up to {len(W_dec)} latents, found"
            f" {show(sizes.tolist())}."
        )
    b_enc, b_dec = given.biases("b_enc", "b_dec")
    return Foreign("matryoshka_prefix", activation, W_enc, W_dec, b_enc, b_dec, facts=facts, warnings=warnings)


def _read_threshold(given: Given) -> tuple[Threshold, dict[str, Any], list[str]]:
    """Return the threshold that makes the code of a batch top-k independent of the batch, with facts and warnings."""
    value = given.state.get("threshold")
    in_file = None if value is None else read_number(value, "threshold")
    if in_file is not None and in_file > 0:  # below 0 it was never tracked, which is the same in all units
        in_file *= given.bias_scale
    threshold = given.options.settle("threshold", in_file, "it has no threshold, by which the toolkit encodes")
    warning = (
        f"Its threshold was never tracked ({threshold:g}), so that its code is a plain ReLU: many more latents are"
        " active than its k says."
    )
    activation = Threshold(torch.tensor(threshold, dtype=torch.float32))
    return activation, {"k": given.read_k(), "threshold": threshold}, [warning] * (threshold < 0)


class DictionaryClass(NamedTuple):
    """Its tensors, those that old files lack, and what reads them."""

    names: frozenset[str]
    read: Callable[[Given], Foreign]
    newer: frozenset[str] = frozenset()

    def has(self, names: set[str]) -> bool:
        return self.names <= names <= self.names | self.newer


CLASSES = {
    "AutoEncoder": DictionaryClass(frozenset({"bias", *LINEAR}), _read_standard),
    "AutoEncoderNew": DictionaryClass(frozenset({"decoder.bias", *LINEAR}), _read_new),
    "GatedAutoEncoder": DictionaryClass(
        frozenset({*LINEAR[::2], "decoder_bias", "gate_bias", "mag_bias", "r_mag"}), _read_gated
    ),
    "JumpReluAutoEncoder": DictionaryClass(frozenset({*USUAL_KEYS, "threshold"}), _read_jumprelu),
    "AutoEncoderTopK": DictionaryClass(frozenset({"b_dec", *LINEAR}), _read_topk, K),
    "BatchTopKSAE": DictionaryClass(frozenset({"b_dec", *LINEAR}) | K, _read_batchtopk),
    "MatryoshkaBatchTopKSAE": DictionaryClass(frozenset({*USUAL_KEYS, "group_sizes"}) | K, _read_matryoshka),
}


def list_classes(state: Mapping[str, Tensor]) -> list[str]:
    """Return the classes that have just these tensors: none, one, or two that only a configuration tells apart."""
    return [name for name, made in CLASSES.items() if made.has(set(state))]


def read_class(name: str, given: Given) -> Foreign:
    """Return the SAE of a class.

    Raises:
        InputError: it is none of those that are read, misses a tensor or has another one.
    """
    made = CLASSES.get(name.replace("Matroyshka", "Matryoshka"))  # as sae-for-vlm spells it
    if made is None:
        raise InputError(f"Expected a dictionary of class {', '.join(CLASSES)}, found {show(name)}, which is not read.")
    others = sorted(given.state.keys() - made.names - made.newer)
    if others:
        names = ", ".join(list_keys({name: given.state[name] for name in others}))
        raise InputError(f"A {name} has the tensors {', '.join(sorted(made.names))}, found {names} too.")
    foreign = made.read(given)
    (encoder,) = need(given.state, "W_enc" if "W_enc" in made.names else "encoder.weight")
    foreign.facts |= {"dict_class": name, "dtype": name_dtype(encoder)}
    return foreign
