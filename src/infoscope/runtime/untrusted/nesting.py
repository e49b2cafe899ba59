"""How much there is in what a file holds: a few bytes can hold themselves again and again."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from infoscope.runtime.calls import name_type
from infoscope.runtime.untrusted.makers import NotReadError
from infoscope.runtime.untrusted.records import Record

_MAX_DEPTH = 64
_MAX_LETTERS, _PART = 2**27, 64
"""Of the dotted names of all parts, and as how many letters a part counts without its name: two million parts."""
_PLAIN = (str, bytes, int, float, complex, type(None), Tensor, torch.dtype, torch.device)


def check_content(content: Any) -> None:
    """Refuse what is so deep, or so large by repeating itself, that nobody could walk through it.

    Raises:
        NotReadError: so it is, or it holds what is neither plain nor a container.
    """
    path, n_letters = [(iter([("", content)]), 0)], 0
    while path:
        parts, n_before = path[-1]
        found = next(parts, None)
        if found is None:
            path.pop()
            continue
        key, value = found
        n_name = n_before + 1 + len(key)
        n_letters += n_name + _PART
        if not isinstance(value, _PLAIN):
            path.append((iter(_list_parts(value)), n_name))
        if len(path) > _MAX_DEPTH or n_letters > _MAX_LETTERS:
            raise NotReadError("it is nested too deeply, or repeats itself too often: give the state dict alone")


def _list_parts(value: Any) -> Iterable[tuple[str, Any]]:
    """Return the parts of a value, each with its part of the dotted name."""
    if isinstance(value, Record):
        return [("", part) for part in (value.args, value.options, value.state, value.entries)]
    if isinstance(value, dict):
        return [(key if isinstance(key, str) else repr(key), part) for key, part in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return zip(repeat("0"), value, strict=False)
    raise NotReadError(f"it holds a {name_type(value)}, which is not loaded")
