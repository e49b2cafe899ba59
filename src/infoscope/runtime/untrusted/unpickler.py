"""What a pickle holds, without importing or calling anything that it names.

Python's own machine of pickles, but for the steps that call, set or import: those make what `makers` makes, and
`Record`s. It is the machine written in Python: the one in C takes as much memory as a damaged file claims.
"""

from __future__ import annotations

import pickle
import sys
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
_MAX_MEMORY = 2**29
"""Bytes that a pickle may fill beside the values of its tensors: a byte of it can make objects of hundreds."""
_STEP, _ENTRY = 64, 128
"""Bytes that a step takes at most if it makes no more than a number, and those of an entry of a dict or a set."""
_TEXTS = (
    *(pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES),
    *(pickle.BINBYTES8, pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
    *(pickle.INT, pickle.LONG, pickle.LONG1, pickle.LONG4),
)
"""Steps that make something as long as the file says."""
_CONTAINERS = (
    *(pickle.MARK, pickle.EMPTY_LIST, pickle.LIST, pickle.EMPTY_DICT, pickle.DICT, pickle.EMPTY_TUPLE, pickle.TUPLE),
    *(pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.MEMOIZE, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT),
)
_STEPS = dict.fromkeys(_CONTAINERS, 128) | dict.fromkeys((pickle.EMPTY_SET, pickle.FROZENSET), 256)
_STEPS |= dict.fromkeys((pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.PERSID, pickle.BINPERSID), 512)
_STEPS |= dict.fromkeys((pickle.REDUCE, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.OBJ, pickle.INST), 512)
"""Bytes that other steps take at most: containers, what the machine remembers, records and tensors."""
_MAX_NAME = 200


def _count_bytes(value: Any) -> int:
    """Return what a copy of a value takes at most, those of its parts aside."""
    if isinstance(value, str | bytes):
        return sys.getsizeof(value)
    return _ENTRY * len(value) if isinstance(value, list | tuple | dict | set | frozenset) else 0


def _count_memory(code: int, step: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a step of the machine that counts what it fills, so that a small file cannot fill the memory."""
    n_bytes = _STEPS.get(bytes([code]), _STEP)

    def count(self: Any) -> None:
        self._take(n_bytes)
        step(self)
        if bytes([code]) in _TEXTS:
            self._take(sys.getsizeof(self.stack[-1]))

    return count


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
        self._left = _MAX_MEMORY
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
        if len(module) + len(name) > _MAX_NAME:
            raise odd(f"asks for a name of more than {_MAX_NAME} letters")
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
        is_storage = pid[0] == "storage" and type(key) is str and type(n_values) is int and n_values >= 0
        if not is_storage or self._load_storage is None:
            raise odd("has something else than a storage where tensors keep their values")
        if len(pid) > 5 and pid[5] is not None:
            raise NotReadError("it was written by a torch before 0.4: save it again by a newer one")
        dtype = STORAGES[kind.name]
        return Storage(self._load_storage(key, dtype, n_values), dtype)

    def _call(self, target: Any, args: Any, options: Any = None) -> Any:
        """Do what a pickle calls a call."""
        if not isinstance(target, Record) or not isinstance(args, tuple):
            raise odd(f"calls a {name_kind(target)}")
        self._take(sum(_count_bytes(arg) for arg in args))  # which a maker may copy
        if target.name in _SUBCLASSED:
            target, _, args = args[:3]
            return self._makers[target.name](*args)
        make = self._makers.get(target.name)
        return Record(target.name, args, options) if make is None else make(*args)

    def _take(self, n_bytes: int) -> None:
        """Count memory that is filled."""
        self._left -= n_bytes
        if self._left < 0:
            raise NotReadError("it holds millions of objects beside its tensors: give the state dict alone")

    def _stop(self) -> None:
        if len(self.stack) > 1 or self.metastack:
            raise odd("holds more than one object")
        self.load_stop()

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
        self._take(_ENTRY * len(values))
        if isinstance(top, list):
            top.extend(values)
        elif isinstance(top, set):
            top.update(check_keys(values))
        elif not isinstance(top, Record):
            raise odd(f"adds to a {name_kind(top)}")

    def _set_items(self, items: list[Any]) -> None:
        top = self.stack[-1]
        self._take(_ENTRY * len(items))
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

    def _make_frozen_set(self) -> None:
        values = self.pop_mark()
        self._take(_ENTRY * len(values))
        self.append(frozenset(check_keys(values)))

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
        pickle.FROZENSET[0]: _make_frozen_set,
        pickle.STOP[0]: _stop,
    }
    dispatch = {code: _count_memory(code, step) for code, step in dispatch.items()}
