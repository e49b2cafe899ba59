"""What a pickle holds, without importing or calling anything that it names.

Python's own machine of pickles, but for the steps that call, set or import: those make what `makers` makes, and
`Record`s. It is the machine written in Python: the one in C takes as much memory as a damaged file claims.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, ClassVar

import torch
from torch import UntypedStorage

from infoscope.runtime.untrusted.makers import (
    DTYPES,
    STORAGES,
    TENSORS,
    VALUES,
    NotReadError,
    Storage,
    check_keys,
    name_kind,
    odd,
)
from infoscope.runtime.untrusted.records import Record

LoadStorage = Callable[[str, torch.dtype, int], UntypedStorage]
"""Returns a storage of so many values, given what the file calls it."""

_Machine: Any = pickle._Unpickler
_COMMANDS = {
    *("os", "posix", "nt", "subprocess", "commands", "popen2", "pty", "sys", "shutil", "ctypes", "multiprocessing"),
    *("importlib", "runpy", "pickle", "_pickle", "cPickle", "marshal", "socket", "urllib", "urllib2", "requests"),
    "webbrowser",
}
_FUNCTIONS = {"eval", "exec", "execfile", "compile", "open", "getattr", "setattr", "delattr", "__import__", "apply"}
_COMMANDS |= {f"builtins.{name}" for name in _FUNCTIONS}
_SUBCLASSED = {"torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2"}
"""They call what makes the tensor, and add what is not a tensor's."""


class Unpickler(_Machine):
    """Finds no class by its name, so that all that is called lies in this package.

    known: beginnings of names, of which `Record`s are made; others are refused. None: a `Record` of every name but of
        those that are known to run commands.
    met: the names of classes and functions other than those that tensors need, in order.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_Machine.dispatch)

    def __init__(self, file: BinaryIO, known: Sequence[str] | None, load_storage: LoadStorage | None = None) -> None:
        super().__init__(file, encoding="utf-8")  # what Python 2 wrote is read as torch reads it
        self._load_storage, self._known = load_storage, known
        self.met: dict[str, None] = {}
        self._makers = TENSORS if known is None else {**TENSORS, **VALUES}

    def read_object(self) -> Any:
        """Return the object of the pickle.

        Raises:
            NotReadError: with the reason, whatever it is.
        """
        try:
            return self.load()
        except NotReadError:
            raise
        except Exception as error:  # a damaged pickle can fail anywhere
            raise NotReadError(f"its pickle is damaged ({type(error).__name__}): fetch it again") from error

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if full in DTYPES:
            return DTYPES[full]
        if full in STORAGES or full in TENSORS or full in _SUBCLASSED:
            return Record(full)
        if full in _COMMANDS or full.partition(".")[0] in _COMMANDS:
            raise NotReadError(f"it asks for {full}, which runs commands: do not trust this file")
        if self._known is not None and not (full in (*VALUES, "numpy.dtype") or full.startswith(tuple(self._known))):
            raise NotReadError(f"it holds a {full}, which is not loaded: give a file of tensors alone")
        self.met[full] = None
        return Record(full)

    def persistent_load(self, pid: Any) -> Any:
        """Return a storage; old files also name the classes of modules so, with their code, which is left."""
        if pid[0] == "module" and isinstance(pid[1], Record):
            return pid[1]
        kind, key, _, n_values = pid[1:5]
        if pid[0] != "storage" or type(n_values) is not int or n_values < 0 or self._load_storage is None:
            raise odd("has something else than a storage where tensors keep their values")
        if len(pid) > 5 and pid[5] is not None:
            raise NotReadError("it was written by a torch before 0.4: save it again by a newer one")
        dtype = STORAGES[kind.name]
        return Storage(self._load_storage(str(key), dtype, n_values), dtype)

    def _call(self, target: Any, args: Any, options: Any = None) -> Any:
        """Do what a pickle calls a call."""
        if not isinstance(target, Record) or not isinstance(args, tuple):
            raise odd(f"calls a {name_kind(target)}")
        if target.name in _SUBCLASSED:
            target, _, args = args[:3]
            return self._makers[target.name](*args)
        make = self._makers.get(target.name)
        return Record(target.name, args, options) if make is None else make(*args)

    def _instantiate(self, target: Any, args: Any) -> None:
        self.append(self._call(target, tuple(args)))

    def _call_top(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _call_top_with_options(self) -> None:
        options, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args, options)

    def _set_state(self) -> None:
        """Keep the state of a record; that of a dict, such as the versions in a state dict, is of no use."""
        state, top = self.stack.pop(), self.stack[-1]
        if isinstance(top, Record):
            top.state = state
        elif not isinstance(top, dict):
            raise odd(f"sets the state of a {name_kind(top)}")

    def _add(self, values: list[Any]) -> None:
        """Add values to a list or a set; those of lists of other classes are of no use."""
        top = self.stack[-1]
        if isinstance(top, list):
            top.extend(values)
        elif isinstance(top, set):
            top.update(check_keys(values))
        elif not isinstance(top, Record):
            raise odd(f"adds to a {name_kind(top)}")

    def _set_items(self, items: list[Any]) -> None:
        top = self.stack[-1]
        if not isinstance(top, dict | Record):
            raise odd(f"sets items of a {name_kind(top)}")
        entries = top if isinstance(top, dict) else top.entries
        entries.update(zip(check_keys(items[::2]), items[1::2], strict=True))

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _make_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        del dispatch[_code[0]]
    dispatch |= {
        pickle.REDUCE[0]: _call_top,
        pickle.NEWOBJ[0]: _call_top,
        pickle.NEWOBJ_EX[0]: _call_top_with_options,
        pickle.BUILD[0]: _set_state,
        pickle.APPEND[0]: lambda self: self._add([self.stack.pop()]),
        pickle.APPENDS[0]: lambda self: self._add(self.pop_mark()),
        pickle.ADDITEMS[0]: lambda self: self._add(self.pop_mark()),
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: lambda self: self._set_items(self.pop_mark()),
        pickle.DICT[0]: _make_dict,
        pickle.FROZENSET[0]: lambda self: self.append(frozenset(check_keys(self.pop_mark()))),
    }
