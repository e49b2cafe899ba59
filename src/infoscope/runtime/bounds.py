"""What a setting may be, written as its type: `k_cds: Count = 8` is at least 1, and so is every item of `list[Count]`.

The dataclasses of the configuration check themselves with `check_settings`; a number without bounds fails the tests.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from numbers import Integral
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from infoscope.runtime.errors import InputError


class Limit(ABC):
    """What a value must be."""

    @abstractmethod
    def explain(self, value: Any) -> str | None:
        """Return what was expected, None where the value is as it should be."""


@dataclass(frozen=True)
class Bounds(Limit):
    """Of a number: it is finite, `least <= number <= most`, and `above < number`, `number < below`.

    Args:
        words: how the bounds are said where not one by one, such as "in 0..1".
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    words: str = ""

    def explain(self, value: Any) -> str | None:
        if self.above < value < self.below and self.least <= value <= self.most:
            return None
        if self.words:
            return f"to be {self.words}"
        if value > self.most or value == math.inf:
            return f"to be at most {self.most:.15g}"
        return f"to be at least {self.least:.15g}" if math.isfinite(self.least) else f"to be above {self.above:.15g}"


@dataclass(frozen=True)
class Items(Limit):
    """Of a list: one at least and none twice, ascending where that is asked for; or just `n` of them."""

    n: int | None = None
    ascending: bool = False

    def explain(self, value: Any) -> str | None:
        values = list(value)
        if self.n is not None:
            return None if len(values) == self.n else f"to hold {self.n} numbers"
        if not values:
            return "to hold at least one value"
        if self.ascending and any(low >= high for low, high in pairwise(values)):
            return "to ascend"
        return "to hold none twice" if any(one in values[:i] for i, one in enumerate(values)) else None


@dataclass(frozen=True)
class OneOf(Limit):
    """Of a text: one of these."""

    choices: tuple[str, ...]

    def explain(self, value: Any) -> str | None:
        return None if value in self.choices else f"to be {' or '.join(self.choices)}"


@dataclass(frozen=True)
class FileName(Limit):
    """Of a text that becomes a part of the names of files."""

    def explain(self, value: Any) -> str | None:
        is_fine = re.fullmatch(r"[^./\0\n][^/\0\n]{0,99}", value)
        return None if is_fine else "to be a name of 1 to 100 characters for files, without / and no dot before it"


@dataclass(frozen=True)
class IsPath(Limit):
    """Of a text: a path, in which ~ and variables of the environment are put in, see `expand_path`."""

    def explain(self, value: Any) -> str | None:
        return "to be a path, in one line" if set(value) & {"\0", "\n"} else None


Count = Annotated[int, Bounds(1, 10**12)]
CountOrNone = Annotated[int, Bounds(0, 10**12)]
Batch = Annotated[int, Bounds(1, 2**24)]
"""What is held in memory at a time, or made one by one."""
Few = Annotated[int, Bounds(1, 4096)]
"""Processes, threads, blocks, multiples, ranks."""
FewOrNone = Annotated[int, Bounds(0, 4096)]
Pixels = Annotated[int, Bounds(1, 16384)]
"""The side of a picture."""
Seed = Annotated[int, Bounds(0, 2**32 - 1)]
"""What torch, NumPy and Lightning take."""
Positive = Annotated[float, Bounds(above=0, most=1e30)]
"""Finite in float32 too."""
NotNegative = Annotated[float, Bounds(0, 1e30)]
Seconds = Annotated[float, Bounds(0, 1e9)]
Share = Annotated[float, Bounds(0, 1, words="in 0..1")]
TrueShare = Annotated[float, Bounds(above=0, below=1, words="between 0 and 1")]
"""Neither nothing nor all."""
Float = Annotated[str, OneOf(("float32", "float16"))]
Name = Annotated[str, FileName()]
FilePath = Annotated[str, IsPath()]


def expand_path(text: str, name: str = "a path") -> str:
    """Return a path with ~, $NAME and ${NAME} put in; what exists as it stands is left as it is.

    Args:
        text: may begin with "local-dir:", see `model.pretrained`.
        name: of the setting, for the sentence.

    Raises:
        InputError: the environment has no such variable.
    """
    if os.path.lexists(text):
        return text
    prefix = "local-dir:" if text.startswith("local-dir:") else ""

    def put_in(found: re.Match[str]) -> str:
        variable = found[1] or found[2]
        if variable not in os.environ:
            raise InputError(f"The environment has no variable {variable}, which {name}={text} names.")
        return os.environ[variable]

    return prefix + os.path.expanduser(re.sub(r"\$(?:(\w+)|\{(\w+)\})", put_in, text.removeprefix(prefix)))


def check(settings: Any, section: str) -> None:
    """Expand the paths of a dataclass of settings, in place, and refuse what is outside its bounds.

    Args:
        section: what comes before its names in sentences, such as "scope"; empty at the top.

    Raises:
        InputError: the first that is not as it should be.
    """
    prefix = f"{section}." if section else ""
    for name, annotation in get_settings(type(settings)).items():
        value = getattr(settings, name)
        if isinstance(value, str) and IsPath() in find_limits(annotation):
            setattr(settings, name, expand_path(value, f"{prefix}{name}"))
        elif isinstance(value, list) and IsPath() in find_limits(find_item(annotation)):
            setattr(settings, name, [expand_path(one, f"{prefix}{name}") for one in value])
    check_settings(type(settings), vars(settings), prefix)


def check_settings(schema: type, values: Mapping[str, Any], prefix: str) -> None:
    """Refuse values that are outside their bounds, NaN among them, and empty texts.

    Args:
        schema: the dataclass that gives the types.
        values: by name; those that are not there are not looked at.
        prefix: of the names in sentences, such as "scope.".

    Raises:
        InputError: the first that is not as it should be.
    """
    for name, annotation in get_settings(schema).items():
        if name in values:
            check_setting(f"{prefix}{name}", values[name], annotation)


def check_setting(name: str, value: Any, annotation: Any) -> None:
    """Refuse one value, see `check_settings`."""
    if value is None:
        return
    if dataclasses.is_dataclass(annotation):
        assert isinstance(annotation, type)
        check_settings(annotation, value if isinstance(value, Mapping) else vars(value), f"{name}.")
        return
    if (item := find_item(annotation)) is not None:
        for i, one in enumerate(value):
            check_setting(f"{name}[{i}]", one, item)
    if isinstance(value, str) and not value.strip():
        raise InputError(f"Expected {name} not to be empty, got {value!r}.")
    if find_kind(annotation) is int and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise InputError(f"Expected {name} to be a whole number, got {show(value)}.")
    for limit in find_limits(annotation):
        if expected := limit.explain(value):
            raise InputError(f"Expected {name} {expected}, got {show(value)}.")


@cache
def get_settings(schema: type) -> dict[str, Any]:
    """Return the annotations of a dataclass, with what they say of bounds."""
    return get_type_hints(schema, include_extras=True)


def find_limits(annotation: Any) -> list[Any]:
    """Return what a type says of bounds, those of `X | None` for X."""
    if get_origin(annotation) is Annotated:
        return [limit for limit in get_args(annotation)[1:] if isinstance(limit, Limit)]
    return [limit for option in _split(annotation) if option is not annotation for limit in find_limits(option)]


def find_item(annotation: Any) -> Any:
    """Return the type of a list's items, of `list[X] | None` too; None for what is no list."""
    options = [get_args(option)[0] if get_origin(option) is Annotated else option for option in _split(annotation)]
    return next((get_args(option)[0] for option in options if get_origin(option) is list), None)


def find_kind(annotation: Any) -> Any:
    """Return the plain type of a value that is no None."""
    option = _split(annotation)[0]
    return get_args(option)[0] if get_origin(option) is Annotated else option


def _split(annotation: Any) -> tuple[Any, ...]:
    is_single = get_origin(annotation) in (Annotated, list, dict, None)
    return (annotation,) if is_single else get_args(annotation)


def show(value: Any) -> str:
    """Return a value as one types it."""
    if isinstance(value, str):
        return repr(value)
    if hasattr(value, "__iter__"):
        return f"[{','.join(show(item) for item in value)}]"
    return str(getattr(value, "name", value))
