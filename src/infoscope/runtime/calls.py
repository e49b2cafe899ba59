"""What callers in Python meet: options checked by name and type, and sentences that speak of arguments.

What a user sets on the command line as `scope.k_cds` is the argument `k_cds` in Python. Errors speak of
settings wherever they are found; functions that are called from Python say them in terms of their arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from enum import Enum
from numbers import Real
from types import NoneType
from typing import Any, ParamSpec, SupportsIndex, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from infoscope.runtime.bounds import find_kind
from infoscope.runtime.errors import InputError, suggest

Given = ParamSpec("Given")
Made = TypeVar("Made")

_VALUE = r"(?:\"[^\"]*\"|'[^']*'|\[[^\]]*\]|[^\s,;:)(]*[^\s,;:)(.])"
_SETTING = re.compile(rf"(?<![\w./~-])([a-z]+)\.([a-z]\w*)(={_VALUE})?")
_ARGUMENTS = {"data.root": "images", "data.n_workers": "n_readers"}
"""Settings whose argument has another name."""
_VALUES = {"null": "None", "true": "True", "false": "False"}


def speaks_python(**schemas: type) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """Make a function for callers in Python: it refuses unknown options, and its errors speak of arguments.

    Args:
        schemas: the dataclass of each section of the configuration whose settings are arguments: scope=ScopeConfig.
    """
    settings = {f"{section}.{one.name}" for section, schema in schemas.items() for one in dataclasses.fields(schema)}

    def decorate(function: Callable[Given, Made]) -> Callable[Given, Made]:
        parameters = inspect.signature(function).parameters.values()
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
        names = [one.name for one in parameters if one.kind is not one.VAR_KEYWORD and one.name != "self"]

        @functools.wraps(function)
        def call(*args: Given.args, **kwargs: Given.kwargs) -> Made:
            if not takes_any:
                refuse_unknown(kwargs, names, function.__name__)
            try:
                return function(*args, **kwargs)
            except InputError as error:
                raise InputError(say_in_python(str(error), settings)) from None

        return call

    return decorate


def say_in_python(sentence: str, settings: Set[str]) -> str:
    """Return a sentence about settings as one about arguments: `data.on_error=skip` becomes `on_error="skip"`."""

    def replace(found: re.Match[str]) -> str:
        setting, value = f"{found[1]}.{found[2]}", (found[3] or "").removeprefix("=")
        if setting not in settings:
            return found[0]
        name = _ARGUMENTS.get(setting, found[2])
        if not value:
            return f"{name}=" if name == "images" else name
        is_word = re.fullmatch(r"[a-z]\w*", value) is not None and value not in _VALUES
        return f'{name}="{value}"' if is_word else f"{name}={_VALUES.get(value, value)}"

    translated = re.sub(r"\bpartition=([a-z]+)", r'rule="\1"', _SETTING.sub(replace, sentence))  # a choice of presets
    return re.sub(r"\bnull\b", "None", translated)


def name_type(value: Any) -> str:
    """Return the type of a value for display."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def refuse_unknown(given: Iterable[str], known: Sequence[str], function: str) -> None:
    """Refuse options that a function does not take.

    Raises:
        InputError: with the close match, if there is one.
    """
    for name in given:
        if name not in known:
            near = suggest(name, known)
            raise InputError(f"{function} takes no option {name!r}{near}: expected one of {', '.join(known)}.")


def make_options(make: type[Made], options: Mapping[str, Any]) -> Made:
    """Return a configuration of what a caller gives.

    Raises:
        InputError: if a value has the wrong type, is NaN, or is refused by the configuration itself.
    """
    return make(**convert_all(make, options))


def convert_all(make: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values for a configuration: whole numbers of any kind, choices by name, sequences as lists.

    Raises:
        InputError: if a value has the wrong type or is NaN.
    """
    hints = get_type_hints(make)
    return {name: convert(name, value, hints[name]) for name, value in options.items()}


def convert(name: str, value: Any, kind: Any) -> Any:
    """Return an argument's value as a type: bool, int, float, str, an Enum, a list or dataclass of these, or None.

    Raises:
        InputError: if it is of another.
    """
    if value is None and NoneType in get_args(kind):
        return None
    kind = find_kind(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _choose(name, value, kind)
    if get_origin(kind) is list and isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        return [convert(name, one, get_args(kind)[0]) for one in value]
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        assert isinstance(kind, type)
        refuse_unknown(map(str, value), [one.name for one in dataclasses.fields(kind)], f"{name}=")
        return make_options(kind, value)
    is_bool = isinstance(value, bool | np.bool_)
    if kind is bool and is_bool:
        return bool(value)
    if kind is int and not is_bool and isinstance(value, SupportsIndex):
        return operator.index(value)
    if kind is float and not is_bool and isinstance(value, Real) and not math.isnan(value):
        return float(value)
    if kind is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    expected = "a dict" if dataclasses.is_dataclass(kind) else words.get(kind, "a list of numbers")
    raise InputError(f"Expected {name} to be {expected}, got {value!r}.")


def _choose(name: str, value: Any, choices: type[Enum]) -> Enum:
    if isinstance(value, choices):
        return value
    names = list(choices.__members__)
    if isinstance(value, str) and value in names:
        return choices[value]
    near = suggest(str(value), names, '"', '"')
    raise InputError(f"Expected {name} to be one of {', '.join(names)}, got {value!r}{near}.")
