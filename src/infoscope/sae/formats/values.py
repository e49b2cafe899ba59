"""What the files of strangers say, checked: any name may be missing, and any value be of another type."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from reprlib import Repr
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from infoscope.runtime.calls import name_type
from infoscope.runtime.errors import InputError
from infoscope.runtime.large_tensors import row_norms
from infoscope.sae.formats.base import check_float, make_writable, need, scale_rows
from infoscope.sae.imported_activations import Gated

T = TypeVar("T")
_MAX_LAYER = 4096
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def pick(choices: Mapping[Any, T], value: Any, name: str) -> T:
    """Return what a value chooses.

    Args:
        name: of the setting that has the value, for the message.

    Raises:
        InputError: it is none of the choices: what is not known is not guessed at.
    """
    for choice, chosen in choices.items():
        if type(choice) is type(value) and choice == value:
            return chosen
    known = ", ".join("null" if choice is None else str(choice) for choice in choices)
    raise InputError(f"Expected {name} to be one of {known}, found {show(value)}, which is not read.")


def show(value: Any) -> str:
    """Return the beginning of a value on one line, for messages; of what is large no more than that is looked at."""
    try:
        return " ".join(_SHORT.repr(value).split())[:80]
    except ValueError:  # a number of thousands of digits
        return f"a long {name_type(value)}"


def read_flag(config: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """Return what a configuration says of a flag.

    Raises:
        InputError: it is neither true nor false.
    """
    return pick({None: default, False: False, True: True}, config.get(name), name)


def get_as(kind: type[T], config: Mapping[str, Any], name: str) -> T | None:
    """Return a value of a configuration; None if there is none of this type."""
    value = config.get(name)
    return value if isinstance(value, kind) and not isinstance(value, bool) else None


def read_count(value: Any, name: str) -> int | None:
    """Return a whole number above 0, such as k, from a tensor too; None: nothing is said.

    Raises:
        InputError: it is something else.
    """
    plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if plain is None:
        return None
    is_whole = isinstance(plain, int) or (isinstance(plain, float) and plain.is_integer())
    if not is_whole or isinstance(plain, bool) or not 1 <= plain < 2**63:
        raise InputError(f"Expected {name} to be a whole number above 0, found {show(plain)}.")
    return int(plain)


def read_layer(value: Any, name: str) -> int | None:
    """Return the number of a block, negative from the end; None: nothing is said, or no one block ("all", [3, 4]).

    Raises:
        InputError: it is something else, or larger than that of any network.
    """
    said = value[0] if isinstance(value, list) and len(value) == 1 else value
    if said is None or isinstance(said, list):
        return None
    try:
        number = float(said) if isinstance(said, str) else said
    except ValueError:
        return None
    is_whole = isinstance(number, int) or (isinstance(number, float) and number.is_integer())
    if not is_whole or isinstance(number, bool):
        raise InputError(f"Expected {name} to be the number of one block, found {show(value)}.")
    if abs(number) > _MAX_LAYER:
        bound = f"most {_MAX_LAYER}" if number > 0 else f"least {-_MAX_LAYER}"
        raise InputError(f"Expected {name} to be at {bound}, found {show(value)}.")
    return int(number)


def warn_of_layer(layer: int | None, config: Mapping[str, Any], name: str) -> list[str]:
    """Return a warning where a configuration says of the block what is not one, and nothing else told it."""
    said = config.get(name)
    if layer is not None or not said or read_layer(said, name) is not None:
        return []
    return [f"Its configuration says {name}: {show(said)}, which is not one block: which block it reads is not known."]


def read_number(value: Any, name: str, above: float = -math.inf) -> float:
    """Return a finite number, from a tensor too.

    Raises:
        InputError: it is something else, or not above the bound.
    """
    if isinstance(value, Tensor):
        check_float(value, name)
    plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(plain, bool) or not isinstance(plain, int | float) or not above < plain <= sys.float_info.max:
        bound = f" above {above:g}" if above > -math.inf else ""
        raise InputError(f"Expected {name} to be a number{bound}, found {show(plain)}.")
    return float(plain)


def need_matrices(
    state: Mapping[str, Tensor], encoder: str, decoder: str, is_linear: bool = False
) -> tuple[Float[Tensor, "d_in d_sae"], Float[Tensor, "d_sae d_in"]]:
    """Return W_enc and W_dec.

    Args:
        encoder, decoder: what the file calls them.
        is_linear: they are those of torch's linear layers, which are transposed.

    Raises:
        InputError: one is missing, or they are no matrices of an SAE.
    """
    found = tuple(need(state, encoder, decoder))
    shapes = [list(W.shape) for W in found]
    if any(W.ndim != 2 for W in found) or shapes[0] != shapes[1][::-1]:
        raise InputError(
            f"Expected matrices {encoder} and {decoder}, one the size of the other transposed, found {shapes[0]} and"
            f" {shapes[1]}."
        )
    W_enc, W_dec = (W.T for W in found) if is_linear else found
    return W_enc, W_dec.contiguous()


def refuse_others(state: Mapping[str, Tensor], known: Iterable[str], among: Iterable[str], what: str) -> None:
    """Refuse tensors that other SAEs compute with: one that has them is not what it is said to be.

    Raises:
        InputError: there are such tensors.
    """
    others = [name for name in among if name in state and name not in set(known)]
    if others:
        raise InputError(f"It is said to be {what}, and has tensors of something else: {', '.join(others)}.")


def check_sizes(W_enc: Float[Tensor, "d_in d_sae"], config: Mapping[str, Any], d_in: str, d_sae: str) -> None:
    """Refuse weights of other sizes than a configuration says, where it does.

    Args:
        d_in, d_sae: what the configuration calls them.

    Raises:
        InputError: they differ or are no numbers, or W_enc is no matrix.
    """
    if W_enc.ndim != 2:
        raise InputError(f"Expected W_enc to be a matrix, found {list(W_enc.shape)}.")
    said = [read_count(config.get(name), name) for name in (d_in, d_sae)]
    if any(size not in (None, found) for size, found in zip(said, W_enc.shape, strict=True)):
        raise InputError(
            f"Its configuration says {d_in}={said[0]} and {d_sae}={said[1]}, W_enc is {list(W_enc.shape)}."
        )


def unit_rows(
    state: Mapping[str, Tensor],
    W_enc: Float[Tensor, "d_in d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return W_enc, W_dec and b_enc such that rows of W_dec are unit and the code is larger by what they lose.

    Matrices become float32 and are scaled in place. A row of zeros stays one, and never fires.

    Args:
        state: the file's tensors.

    Raises:
        InputError: b_enc is of another length.
    """
    if b_enc.shape != W_dec.shape[:1]:
        raise InputError(f"Expected an encoder bias [{len(W_dec)}], found {list(b_enc.shape)}.")
    W_enc, W_dec = make_writable(W_enc, state), make_writable(W_dec, state)
    norms = row_norms(W_dec)
    scale_rows(W_enc.T, norms)
    return W_enc, scale_rows(W_dec, norms.reciprocal().where(norms > 0, 0)), b_enc.double() * norms


def parse_hook(name: Any, head: Any = None) -> tuple[int | None, str | None]:
    """Return block and site of a hook of TransformerLens', such as blocks.10.hook_mlp_out: 10 and "mlp_out".

    What enters a block is what the one before puts out. (None, None): it is no such name.

    Args:
        head: of the attention, of which alone it is; the site says so.
    """
    match = re.fullmatch(r"blocks\.(-?\d+)\.(?:hook_)?([\w.]+)", name) if isinstance(name, str) else None
    if not match:
        return None, None
    layer, site = read_layer(match[1], "blocks") or 0, match[2]
    if head is not None:
        return layer, f"{site} of head {head}"
    return (layer - 1, "resid_post") if site == "resid_pre" and layer > 0 else (layer, site)


def name_dtype(tensor: Tensor) -> str:
    """Return what a file's numbers are, such as "bfloat16"."""
    return str(tensor.dtype).removeprefix("torch.")


def transpose(W: Tensor) -> Tensor:
    """Return a matrix as it is stored in torch's linear layers, or back.

    Raises:
        InputError: it is no matrix.
    """
    if W.ndim != 2:
        raise InputError(f"expected a matrix, got {list(W.shape)}.")
    return W.T


def at_least(threshold: Tensor) -> Tensor:
    """Return what a float32 exceeds exactly where it is a threshold or more: our thresholds are exceeded, not met."""
    return torch.nextafter(threshold.float(), torch.tensor(-torch.inf))


def make_gated(gate: Tensor, magnitude: Tensor, log_scale: Tensor) -> Gated:
    """Return the activation of a gated SAE: the biases of both branches, and the logarithm of the factor of one."""
    return Gated(gate.float(), magnitude.float(), log_scale.double().exp().float())
