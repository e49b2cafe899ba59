"""What a reader of SAEs of other toolkits is given, and what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted import Record, list_keys, module_state
from infoscope.sae.activations import Activation
from infoscope.sae.config import TokenChoice, TokenNorm
from infoscope.sae.import_config import IMPORT, ImportedConfig

_NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Others are quantised, and mean something only with their scales."""
USUAL_KEYS = ("W_enc", "b_enc", "W_dec", "b_dec")
"""What many toolkits, and infoscope, call the tensors of an SAE."""


@dataclass(frozen=True)
class Found:
    """A checkpoint on the disk.

    file: with the weights.
    content: what it holds: dicts, lists, plain values, tensors; `Record` in place of objects of other classes.
    header: the JSON object before it (saev).
    configs: JSON and YAML files beside it, by name.
    pickled: the classes and functions that it names, as module.name.
    """

    file: Path
    content: Any
    header: Mapping[str, Any] | None = None
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pickled: Sequence[str] = ()

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The state dict, where the file is nothing else: tensors by name; of a whole module those of its parts."""
        return get_tensors(self.content)

    @cached_property
    def inner_state(self) -> dict[str, Tensor]:
        """As `state`, of a state dict that lies deeper, or whose names a wrapper has put a word before.

        It is taken out of a training's checkpoint only where nothing else in there can say how the SAE computes.
        """
        return _strip_prefixes(get_tensors(_take_out(self.content)))

    def get_state(self, key: str) -> dict[str, Tensor]:
        """Return the state dict under a key of the content; empty if there is none."""
        return get_tensors(self.content.get(key)) if isinstance(self.content, Mapping) else {}

    def has(self, *keys: str) -> bool:
        """Whether the state dict has all of these names."""
        return self.state.keys() >= set(keys)

    def config(self, *names: str) -> Mapping[str, Any] | None:
        """Return the first of these files beside it that is there."""
        return next((self.configs[name] for name in names if name in self.configs), None)

    @property
    def words(self) -> str:
        """What it holds, for sentences."""
        return ", ".join(list_keys(self.content)) or "nothing"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the folders above it, the nearest first."""
        return tuple(reversed(self.file.parent.parts))


def get_tensors(content: Any) -> dict[str, Tensor]:
    """Return the tensors of a state dict by name, or of a module; empty if it is neither."""
    if isinstance(content, Record):
        return module_state(content) if content.is_module else {}
    if not isinstance(content, Mapping):
        return {}
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


_NESTS = ("state_dict", "model_state_dict", "model", "sae")
_PREFIXES = ("module.", "_orig_mod.", "model.", "sae.", "autoencoder.")
_PASSING = {
    *(
        "epoch",
        "step",
        "global_step",
        "loss",
        "best_loss",
        "loops",
        "callbacks",
        "pytorch-lightning_version",
        "version",
    ),
    *("optimizer", "optimizer_state_dict", "optimizer_states", "lr_schedulers", "lr_scheduler", "scheduler"),
    *("scheduler_state_dict", "scaler", "rng_state", "lr", "learning_rate"),
}
"""What a training keeps beside a state dict, which says nothing of what the SAE computes."""


def _take_out(content: Any) -> Any:
    nests = [key for key in _NESTS if isinstance(content, Mapping) and key in content]
    is_alone = len(nests) == 1 and content.keys() - set(nests) <= _PASSING
    return content[nests[0]] if is_alone else content


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without the words that all of its names begin with, of wrappers such as DataParallel."""
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return _strip_prefixes({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return state


def need(state: Mapping[str, Tensor], *names: str) -> Iterator[Tensor]:
    """Yield the tensors of these names.

    Raises:
        InputError: one is missing, or quantised or complex.
    """
    for name in names:
        if name not in state:
            raise InputError(f"Expected a tensor {name}, found {', '.join(list_keys(dict(state))) or 'none'}.")
        check_float(state[name], name)
        yield state[name]


def check_float(tensor: Tensor, name: str) -> None:
    """Refuse a tensor before anything is computed with it whose numbers mean something only with their scales.

    Raises:
        InputError: so it is.
    """
    if tensor.dtype not in _NUMBERS:
        raise InputError(
            f"expected float numbers in {name}, got {tensor.dtype}: give the weights as they were trained."
        )


class Options:
    """The settings of an import, which remember what was asked for: what no reader asks for is refused."""

    def __init__(self, config: ImportedConfig) -> None:
        self.config, self._read = config, {"path", "format", "statistics", "tokens", "ignore_origin"}

    def get(self, name: str) -> Any:
        """Return a setting, None where it is not given."""
        self._read.add(name)
        return self.config.given().get(name)

    def kind(self, *choices: str) -> str | None:
        """Return what the SAE is said to be, None where nothing is said.

        Raises:
            InputError: another kind than those that the reader knows.
        """
        self._read.add("kind")
        if self.config.kind == IMPORT:
            return None
        if self.config.kind not in choices:
            raise InputError(f"Expected sae.kind to be one of {', '.join(choices)}, got {self.config.kind!r}.")
        return self.config.kind

    def settle(self, name: str, in_file: Any, needed: str = "") -> Any:
        """Return what the file says, or else the setting.

        Args:
            in_file: None: it says nothing.
            needed: in words why there must be one; empty: None will do.

        Raises:
            InputError: both say something, and not the same; or neither, where one is needed.
        """
        given = self.get(name)
        if in_file is not None and given is not None and given != in_file:
            raise InputError(f"The file says {name}={in_file}, got sae.{name}={given}: drop sae.{name}.")
        value = given if in_file is None else in_file
        if value is None and needed:
            raise InputError(f"{needed}: give sae.{name}=...")
        return value

    def check(self) -> None:
        """Refuse what was given and not asked for.

        Raises:
            InputError: the first such setting.
        """
        for name, value in self.config.given().items():
            if name in self._read or (name == "kind" and value == IMPORT):
                continue
            raise InputError(
                f"sae.{name}={getattr(value, 'name', value)} is not read: the file itself says what it needs; drop it."
            )


@dataclass
class Foreign:
    """What a reader has found: an SAE in the terms of ours (see `SparseAutoencoder`), and what the file says of it.

    x_n = N(c (x - mean));  z = act((x_n - b_dec) W_enc + b_enc);  x_hat = mean + N^-1(z W_dec + b_dec) / c.

    The code z is what the toolkit's own encode returns, and W_dec is such that x_hat is its reconstruction. Tensors of
    any float type; W_enc may be a transposed view.

    kind: what the toolkit trained, in our words: relu, topk, batchtopk, jumprelu, matryoshka_k, matryoshka_prefix,
        gated, groupmax, tanh_relu. `activation`: what its inference computes, such as a threshold for batchtopk.
    b_enc, b_dec: None: it has none.
    subtracts_b_dec: whether b_dec is subtracted before encoding; where not, that is folded into b_enc.
    mean, scale: mu and c; None and 1: it has none.
    backbone: as the file or its name calls it; image_px: side of the images that it read, in pixels.
    layer: of the residual stream's block, negative from the end; site: "resid_post", "mlp_out", ..., or `POOLED`
        (sae/origin.py); tokens: which. None: it does not say.
    facts: what else is worth knowing, as plain JSON values: k, threshold, prefix_sizes, modality, ...
    warnings: sentences.
    needs_statistics: it was trained on tokens of mean 0 and scale 1 whose mean and scale are not in the file.
    has_free_scale: its decoder gives a direction alone; the scale is fitted to the tokens of the run.
    fingerprint: of the backbone; exported_from: see `Source`. Of what infoscope has exported alone.
    """

    kind: str
    activation: Activation
    W_enc: Float[Tensor, "d_in d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"] | None = None
    b_dec: Float[Tensor, " d_in"] | None = None
    subtracts_b_dec: bool = True
    mean: Float[Tensor, " d_in"] | None = None
    scale: float = 1.0
    token_norm: TokenNorm = TokenNorm.none
    backbone: str | None = None
    image_px: int | None = None
    layer: int | None = None
    site: str | None = None
    tokens: TokenChoice | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    needs_statistics: bool = False
    has_free_scale: bool = False
    fingerprint: dict[str, Any] = field(default_factory=dict)
    exported_from: str | None = None


class Format(Protocol):
    """A module of this folder: the checkpoints of one toolkit.

    `LABEL` names the toolkit and whose files they are, for people.
    """

    LABEL: str

    def recognise(self, found: Found) -> bool:
        """Return whether a file is of this format, by names and shapes; the name of the file alone never decides."""
        ...

    def read(self, found: Found, options: Options) -> Foreign:
        """Return the SAE in a file of this format.

        Raises:
            InputError: it cannot be mapped exactly, or something is missing that must be given.
        """
        ...


def make_writable(W: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Return a float32 tensor that may be changed in place: a copy only where another of the file's shares its memory.

    Args:
        state: the tensors that the file holds, W or that which it is a view of among them. Tied weights may be one.
    """
    if W.dtype != torch.float32:
        return W.float()
    places = [tensor.untyped_storage().data_ptr() for tensor in state.values()]
    is_alone = places.count(W.untyped_storage().data_ptr()) < 2
    is_dense = W.is_contiguous() or (W.ndim == 2 and W.T.is_contiguous())  # else a value may stand for several
    return W if is_alone and is_dense else W.clone()


def scale_rows(W: Float[Tensor, "n d"], factors: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """Multiply the rows of a matrix that is `make_writable`, in place: a copy would take as much memory again."""
    return W.mul_(factors.to(W.dtype)[:, None])
