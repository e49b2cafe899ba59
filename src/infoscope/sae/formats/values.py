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
from infoscope.runtime.untrusted import list_keys
from infoscope.sae.formats.base import check_float, make_writable, need, scale_rows
from infoscope.sae.imported_activations import Gated

T = TypeVar("T")
_MAX_NAME = 100
"""Letters of a setting's name: patterns of names take the square of their length."""
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
    """Return the number of a block, negative from the end; None: nothing is said.

    Raises:
        InputError: it is something else, or larger than that of any network.
    """
    if value is None:
        return None
    match = re.fullmatch(r"'?(-?\d{1,4})(\.0)?'?", show(value), re.ASCII)
    if not match or abs(int(match[1])) > _MAX_LAYER:
        raise InputError(f"Expected {name} to be the number of one block, found {show(value)}.")
    return int(match[1])


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
    match = re.fullmatch(r"blocks\.(-?\d{1,4})\.(?:hook_)?([\w.]+)", name) if isinstance(name, str) else None
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


_COUNTS = {
    *("sparsity", "feature_counts", "act_freq_scores", "latents_activation_frequency", "activation_frequency"),
    *("n_forward_passes_since_fired", "num_batches_since_fired", "num_tokens_since_fired", "steps_since_fired"),
    *("stats_last_nonzero", "num_batches_tracked", "num_updates", "n_updates", "num_steps", "n_steps", "step", "steps"),
    *("total_samples", "num_samples", "n_samples"),
}
"""Names of what a training has counted, which no code depends on."""


def refuse_tensors(state: Mapping[str, Tensor], *known: str) -> None:
    """Refuse a state dict that holds more than a reader knows, counts aside: what it is for may change the code.

    Raises:
        InputError: so it is.
    """
    if unknown := sorted(name for name in state.keys() - set(known) if name not in _COUNTS):
        names = ", ".join(list_keys({name: state[name] for name in unknown}))
        raise InputError(f"it holds {names}, and what is done with that is not known.")


_TELLING = re.compile(
    r"\w*(norm|scal(e|ing)|cent(er|re|ring)|whiten|bias|threshold|top_?k|clamp|soft_?cap|skip|transcod|subtract|relu)\w*|"
    r"k|standardi[sz]\w*|((use|is|has|with)_)?(clip|residual|unit|l2|gated)|hidden_act|"
    r"(\w+_)?(mean|std|transform|multiplier|gain|temperature|cap)(_\w+)?|(sae_)?architecture|sae_(type|kind)|"
    r"(\w+_)?activation(_fn|_function|_fn_str|_fn_kwargs|_kwargs|_type)?|nonlinearity|apply_\w+|tied?(_\w+)?|signed|abs\w*"
)
"""Names of settings that change what is computed."""
_OF_TRAINING = re.compile(
    r"(\w+_)?(re)?(init(ial)?|initiali[sz]ation|loss|lr|learning|penalty|coeff|coefficient|grad|gradient|dead|feature_reinit)(_\w+)?|"
    r"(\w+_)?(ghost|noise|aux|auxk|warmup|resample|resampling|estimate|estimation)(_\w+)?|lp_norm|set_decoder_norm\w*|multi_top_?k|jumprelu_(tanh_scale|bandwidth)|"
    r"(set_|reset_)?norm(ali[sz]e)?_(sae_)?(w_)?dec(oder)?(_\w+)?"
)
"""Names of those among them that change a training alone: noise_scale, normalize_w_dec."""


_BIAS = re.compile(
    r"((apply|subtract|add|remove|use|with|has|no|tied?|pre|post|input|enc|encoder|dec|decoder|latent)_?)*"
    r"(bias(es)?|b_?(dec|pre|enc))(_(to|from)_\w+)?|pre_b"
)
"""Names that speak of a bias, of which false says as much as true."""
_RELU = re.compile(
    r"((apply|use|has|with|is|post|pre|final|enc|encoder)_)*(relu|activation(_fn|_function)?|nonlinearity)"
)
"""Names that speak of the activation, of which false and "none" say that there is none."""
_SUBTRACTION = re.compile(
    r"(apply|subtract)_(b_dec|b_pre|((pre|dec|decoder)_)?bias)(_(to|from)_inputs?)?|((use|with|has)_)?pre_?bias"
)
"""Those that say whether b_dec is subtracted before encoding."""


def refuse_settings(config: Mapping[str, Any], *known: str, subtracts_b_dec: bool | None = None) -> None:
    """Refuse a configuration that sets what a reader does not know, and that by its name changes what is computed.

    Args:
        known: settings that the reader knows.
        subtracts_b_dec: what the reader does; a setting that says the same is none of those refused.

    Raises:
        InputError: with the first such setting.
    """
    for name, value in config.items():
        if not isinstance(name, str) or name in known:
            continue
        if len(name) > _MAX_NAME:
            raise InputError(f"its configuration has a name of {len(name):,} letters, {show(name)}: no toolkit's has.")
        is_bias = _BIAS.fullmatch(name.lower())
        is_same = isinstance(value, bool) and value is subtracts_b_dec and _SUBTRACTION.fullmatch(name.lower())
        is_off = not isinstance(value, Tensor) and value in (None, False, 0, "", "none", "None", "null", [], {})
        is_off &= not (_RELU.fullmatch(name.lower()) and (value is False or value in ("none", "None")))
        if not is_same and (is_bias or (_tells(name.lower()) and not is_off)):
            raise InputError(f"its configuration says {name}: {show(value)}, and what is done with that is not known.")


def _tells(name: str) -> bool:
    return bool(_TELLING.fullmatch(name)) and not _OF_TRAINING.fullmatch(name)
