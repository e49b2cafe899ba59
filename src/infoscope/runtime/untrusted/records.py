"""What stands for the objects of a pickle whose classes are not imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

_MAX_DEPTH, _MAX_NESTED = 64, 20


class Record:
    """Stands for an object of a class, or for a class or function itself: keeps what the pickle says, and does nothing.

    name: of the class or function, "module.Class".
    args, options: what it would have been called with.
    state: what `__setstate__` would have got; of most objects the dict of their attributes.
    entries: what it would hold as a dict.
    """

    def __init__(self, name: str, args: tuple = (), options: dict[str, Any] | None = None) -> None:
        self.name, self.args, self.options = name, args, options or {}
        self.state: Any = None
        self.entries: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"Record({self.name!r})"

    @property
    def attributes(self) -> dict[str, Any]:
        """What the object has as attributes, those in slots too."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {name: value for part in parts if isinstance(part, dict) for name, value in part.items()}

    @property
    def is_module(self) -> bool:
        """Whether it stands for a torch module, whose weights lie in its state."""
        state = self.state if isinstance(self.state, dict) else {}
        return all(isinstance(state.get(part), dict) for part in ("_parameters", "_buffers", "_modules"))


def module_state(record: Record) -> dict[str, Tensor]:
    """Return the state dict of a whole pickled module: parameters and lasting buffers by dotted names.

    What is no tensor, or no module among its parts, is left out.
    """
    return dict(_walk_module(record, "", 0))


def _walk_module(record: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if depth > _MAX_DEPTH or not isinstance(record, Record) or not record.is_module:
        return
    state, passing = record.state, record.state.get("_non_persistent_buffers_set")
    passing = passing if isinstance(passing, set) else ()
    buffers = {name: value for name, value in state["_buffers"].items() if name not in passing}
    for name, value in {**state["_parameters"], **buffers}.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
    for name, part in state["_modules"].items():
        yield from _walk_module(part, f"{prefix}{name}.", depth + 1)


def walk(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield what lies in nested dicts, lists and modules by dotted names: `state_dict.visual.proj`, `models.0.weight`.

    Tensors, and in between whatever else is there, lists of plain values whole; what lies deeper than any checkpoint
    goes is left as it is, for there it may repeat itself for ever.
    """
    if isinstance(content, Record):
        content = module_state(content) or content.entries or content
    holds = content if isinstance(content, list | tuple) else ()
    if any(isinstance(value, Tensor | Record | dict | list | tuple) for value in holds):
        content = dict(enumerate(holds))
    if isinstance(content, dict) and depth < _MAX_NESTED:
        for key, value in content.items():
            yield from walk(value, f"{name}.{key}" if name else str(key), depth + 1)
    else:
        yield name, content
