"""Any matrices, given their names: sae.format=plain sae.keys={W_enc: encoder.weight.T, W_dec: decoder.weight.T, ...}.

What the names cannot say is given too: sae.kind, and what that needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from infoscope.runtime.errors import InputError, suggest
from infoscope.runtime.untrusted import list_keys, walk
from infoscope.sae.activations import Activation, Capped, ReLU, TopK
from infoscope.sae.config import TokenNorm
from infoscope.sae.formats.base import Foreign, Found, Options, check_float
from infoscope.sae.formats.statistics import settle_mean
from infoscope.sae.formats.values import name_dtype, transpose
from infoscope.sae.imported_activations import GroupMax, TanhReLU, Threshold

LABEL = "any matrices, by sae.keys"
MATRICES, VECTORS = ("W_enc", "W_dec"), ("b_enc", "b_dec", "mean", "threshold")
WITHOUT: dict[str, Callable[[], Activation]] = {"relu": ReLU, "tanh_relu": TanhReLU}
WITH_K: dict[str, Callable[[int], Activation]] = {
    "topk": TopK,
    "signed_topk": lambda k: TopK(k, signed=True),
    "matryoshka_k": TopK,
    "groupmax": GroupMax,
}
WITH_THRESHOLD = ("jumprelu", "batchtopk", "matryoshka_prefix")
OF_SIDE = (("b_dec", "mean"), ("b_enc", "threshold"))
"""The vectors of length d_in, and of d_sae."""
_LOGARITHMS = re.compile(r"(^|[._])log([._]|_?th|$)|thr[a-z]*log([._]|$)", re.IGNORECASE)
"""Names of thresholds' logarithms: log_threshold, log_jumprelu_threshold, threshold_log, logthr."""
KINDS = (*WITHOUT, *WITH_K, *WITH_THRESHOLD)


def recognise(found: Found) -> bool:
    return False  # only where one asks for it


def read(found: Found, options: Options) -> Foreign:
    given = _find(found, _get_keys(options))
    W_enc, W_dec = given["W_enc"], given["W_dec"]
    _check_shapes(given, _get_keys(options))
    mean = given.get("mean")
    if mean is None:
        mean = settle_mean(options, len(W_enc))
    kind = options.kind(*KINDS)
    if kind is None:
        raise InputError(f"give sae.kind= too, one of {', '.join(KINDS)}.")
    facts: dict[str, Any] = {"dtype": name_dtype(W_enc)}
    return Foreign(
        kind=kind.removeprefix("signed_"),
        activation=_make_activation(kind, given.get("threshold"), options, facts),
        W_enc=W_enc,
        W_dec=W_dec.contiguous(),
        b_enc=given.get("b_enc"),
        b_dec=given.get("b_dec"),
        subtracts_b_dec=options.get("subtract_b_dec") is not False,
        mean=mean,
        scale=options.get("scale") or 1.0,
        token_norm=options.get("token_norm") or TokenNorm.none,
        facts=facts,
        warnings=_warn(W_enc),
    )


def _get_keys(options: Options) -> dict[str, str]:
    keys = options.get("keys")
    return {} if keys is None else keys.given()


def _find(found: Found, keys: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors by our names.

    Raises:
        InputError: a name of ours that is none, a name of the file's that it has not, or no matrices.
    """
    missing = [name for name in MATRICES if name not in keys]
    if missing:
        raise InputError(
            f"give what the file calls {' and '.join(missing)} in sae.keys={{W_enc: ..., W_dec: ..., b_enc: ..., b_dec:"
            f" ...}}; it holds {found.words}."
        )
    tensors = {name: value for name, value in walk(found.content) if isinstance(value, Tensor)}
    given = {}
    for ours, theirs in keys.items():
        name = theirs if theirs in tensors else theirs.removesuffix(".T")
        if name not in tensors:
            raise InputError(
                f"there is no tensor {name} in it, which sae.keys has for {ours}{suggest(name, list(tensors))}: it"
                f" holds {', '.join(list_keys(tensors))}."
            )
        if ours == "threshold" and _LOGARITHMS.search(name):
            raise InputError(
                f"{name} by its name holds logarithms of thresholds, which would be taken as they are: save their exp"
                " under another name."
            )
        check_float(tensors[name], name)
        tensor = tensors[name] if theirs == name else transpose(tensors[name])
        given[ours] = tensor.squeeze() if ours in VECTORS else tensor
    return given


def _check_shapes(given: Mapping[str, Tensor], keys: Mapping[str, str]) -> None:
    """Refuse matrices of shapes that do not fit each other or the biases.

    Raises:
        InputError: with what came, and what to append to which name.
    """
    shapes = {name: tuple(given[name].shape) for name in MATRICES}
    came = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in given.items())
    d_in, d_sae = (next((len(given[n]) for n in names if n in given and given[n].ndim), None) for names in OF_SIDE)
    expected = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in)}
    misfits = [name for name in MATRICES if not _fits(shapes[name], expected[name])]
    turned = [name for name in misfits if _fits(shapes[name][::-1], expected[name])]
    if not all(len(shape) == 2 for shape in shapes.values()):
        advice = "give the names of matrices"
    elif not turned and shapes["W_enc"] == shapes["W_dec"] != shapes["W_dec"][::-1]:
        advice = f"append .T to {keys['W_enc']} or to {keys['W_dec']}, whichever is transposed"
    elif turned:
        advice = " and ".join(f"for {name} {_turn(keys[name])}" for name in turned)
    else:
        return
    raise InputError(f"expected W_enc [d_in, d_sae] and W_dec [d_sae, d_in], got {came}: {advice}.")


def _fits(shape: tuple[int, ...], expected: tuple[int | None, int | None]) -> bool:
    return len(shape) == 2 and all(want in (None, n) for want, n in zip(expected, shape, strict=True))


def _turn(name: str) -> str:
    return f"give {name.removesuffix('.T')}" if name.endswith(".T") else f"give {name}.T"


def _make_activation(kind: str, stored: Tensor | None, options: Options, facts: dict[str, Any]) -> Activation:
    """Return the activation of this kind, its k or threshold put among the facts."""
    if stored is not None and kind not in WITH_THRESHOLD:
        raise InputError(f"sae.keys names a threshold, and sae.kind={kind} has none: drop it, or give another kind.")
    if kind in WITHOUT:
        activation = WITHOUT[kind]()
    elif kind in WITH_K:
        facts["k"] = options.settle("k", None, f"sae.kind={kind} needs how many latents are active")
        activation = WITH_K[kind](facts["k"])
    else:
        if stored is None:
            needed = f"sae.kind={kind} needs what activations must exceed: sae.keys={{threshold: ...}} or one number"
            stored = torch.tensor(options.settle("threshold", None, needed))
        if stored.ndim == 0:
            facts["threshold"] = float(stored)
        activation = Threshold(stored.float())
    cap = options.get("soft_cap")
    return activation if cap is None else Capped(activation, cap)


def _warn(W_enc: Tensor) -> list[str]:
    d_in, d_sae = W_enc.shape
    if d_in != d_sae:
        return []
    return ["Its matrices are square, so that nothing tells whether they came transposed."]
