"""What a pickle holds, without importing or calling anything that it names.

Checkpoints often hold more than tensors: arguments, schedules, a whole module. `weights_only=True` refuses such files.
Here every name that is not a tensor's becomes a class that keeps its content and does nothing, so that the
tensors can be read. A file that names a way to run commands is refused, though nothing of it would be run.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._utils import _rebuild_tensor, _rebuild_tensor_v2

_COMMANDS = {
    *("os", "posix", "nt", "subprocess", "commands", "popen2", "pty", "sys", "shutil", "ctypes", "multiprocessing"),
    *("importlib", "runpy", "pickle", "_pickle", "cPickle", "marshal", "socket", "urllib", "urllib2", "requests"),
    "webbrowser",
}
_FUNCTIONS = {"eval", "exec", "execfile", "compile", "open", "getattr", "setattr", "delattr", "__import__", "apply"}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


class Inert(dict):
    """Stands for an object of any class: keeps its items and its state, and does nothing."""

    state: Any = None

    def __init__(self, *_args: Any, **_options: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *_args: Any, **_options: Any) -> Inert:
        return Inert()

    def append(self, _value: Any) -> None:
        """Lists of other classes are of no use here."""

    def extend(self, _values: Any) -> None:
        """As `append`."""

    def add(self, _value: Any) -> None:
        """As `append`."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def is_module(self) -> bool:
        """Whether it stands for a torch module, whose weights lie in its state."""
        return isinstance(self.state, dict) and {"_parameters", "_buffers", "_modules"} <= self.state.keys()


def read_inert(path: Path) -> Any:
    """Return the content of a file that `torch.save` has written, everything but tensors as `Inert`.

    A TorchScript archive must not come here: torch hands it to its compiler.

    Raises:
        pickle.UnpicklingError: if the file names a way to run commands.
        Exception: of many kinds, if it is damaged.
    """
    reader: Any = SimpleNamespace(__name__="inert_pickle", Unpickler=_Unpickler, load=_load)
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", pickle_module=reader, weights_only=False)


class _Unpickler(pickle.Unpickler):
    """Finds no class by its name, so that all that is called lies in this file or rebuilds a tensor."""

    def find_class(self, module: str, name: str) -> Any:
        is_function = module in ("builtins", "__builtin__") and name in _FUNCTIONS
        if is_function or module.partition(".")[0] in _COMMANDS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which runs commands: do not trust this file")
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        return _KNOWN.get((module, name), Inert)


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


def keep_data(data: Any, *_: Any) -> Any:
    """Return what a function of torch's is given first, such as the tensor of a parameter."""
    return data


_KNOWN: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): keep_data,
    ("torch._utils", "_rebuild_parameter_with_state"): keep_data,
}
