"""The dictionaries of overcomplete as `eval()` fuses them: normalised rows, or archetypes; times exp(multiplier)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.runtime.large_tensors import reduce_rows, row_norms
from infoscope.runtime.untrusted import Record
from infoscope.sae.formats.base import make_writable, need, scale_rows
from infoscope.sae.formats.values import read_number

EPS = 1e-8
"""What is added to norms and sums that divide."""
DELTA, SLACK = 1.0, 1.1
"""The default bound of a relaxation, and how far a step of training may leave it behind."""
ROWS = 4096
ARCHETYPES = ("W", "C", "Relax")
KINDS = (
    "overcomplete.sae.dictionary.DictionaryLayer",
    "overcomplete.sae.archetypal_dictionary.RelaxedArchetypalDictionary",
)


def _sums(W: Tensor) -> Tensor:
    return reduce_rows(W, lambda part: part.abs().sum(1))


NORMALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "normalize_l2": lambda W: 1 / (row_norms(W) + EPS),
    "normalize_l1": lambda W: 1 / (_sums(W) + EPS),
    "normalize_max_l2": lambda W: (1 / row_norms(W).amax()).expand(len(W)),
    "normalize_max_l1": lambda W: (1 / _sums(W).amax()).expand(len(W)),
    "normalize_identity": lambda W: torch.ones(len(W), dtype=torch.float64),
}
"""The factors of rows, by the names of its functions."""


def make_dictionary(part: Record | None, state: Mapping[str, Tensor]) -> tuple[Float[Tensor, "d_sae d_in"], list[str]]:
    """Return the rows that codes are multiplied by, and warnings.

    Args:
        part: the module; None: of a state dict, which says neither its normalisation nor delta.
        state: its tensors by their own names, and what else may share their memory.

    Raises:
        InputError: another dictionary, or another normalisation.
    """
    if part is not None and part.name not in KINDS:
        raise InputError(f"its dictionary is a {part.name}, and read are {' and '.join(KINDS)}.")
    attributes = {} if part is None else part.attributes
    if attributes.get("training") is False and isinstance(fused := attributes.get("_fused_dictionary"), Tensor):
        return fused, []  # eval() keeps what an earlier one has fused
    multiplier = torch.tensor(math.exp(read_number(state.get("multiplier", 0.0), "multiplier")))
    if "Relax" in state:
        W, warnings = _mix_archetypes(state, attributes.get("delta"))
        return W.mul_(multiplier), warnings
    (W,) = _need_matrices(state, "_weights")
    W = make_writable(W, state)
    said = Record("normalize_l2") if part is None else attributes.get("normalization")
    name = said.name if isinstance(said, Record) else "nothing"
    normalise = NORMALISATIONS.get(name.rpartition(".")[2])
    if normalise is None:
        raise InputError(f"its dictionary is normalised by {name}, and known are {', '.join(NORMALISATIONS)}.")
    factors = normalise(W)
    return scale_rows(W, factors * multiplier), [] if part is not None else _warn(factors)


def _need_matrices(state: Mapping[str, Tensor], *names: str) -> Iterator[Tensor]:
    for name, W in zip(names, need(state, *names), strict=True):
        if W.ndim != 2:
            raise InputError(f"expected its dictionary's {name} to be a matrix, got {list(W.shape)}.")
        yield W


def _warn(factors: Tensor) -> list[str]:
    if bool(((factors > 0.8) & (factors < 1.25)).all()):
        return []
    return [
        "Rows of its dictionary are far from unit length, and a state dict does not say how they are normalised: they"
        " are made unit, as by default."
    ]


def _mix_archetypes(state: Mapping[str, Tensor], delta: Any) -> tuple[Float[Tensor, "d_sae d_in"], list[str]]:
    """Return convex combinations of the points C, each moved by at most delta."""
    W, C, relax = _need_matrices(state, *ARCHETYPES)
    lengths, warnings = row_norms(relax), []
    if delta is None:
        if bool((lengths > SLACK * DELTA).any()):
            raise InputError(
                f"its archetypes are relaxed by up to {float(lengths.amax()):.3g}, more than the default delta {DELTA}"
                " allows, and a state dict does not say its delta: save the whole model."
            )
        delta = DELTA
        warnings = [f"A state dict does not say delta: {DELTA}, as by default."]
    D = scale_rows(make_writable(relax, state), (read_number(delta, "delta") / lengths).clamp_max(1).nan_to_num(1.0))
    for rows, part in zip(D.split(ROWS), W.split(ROWS), strict=True):
        shares = part.double().relu()
        rows += ((shares / (shares.sum(1, keepdim=True) + EPS)) @ C.double()).float()
    return D, warnings
