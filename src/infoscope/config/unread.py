"""Settings of a command line that nothing would read: refused by name.

A dataclass of settings says itself, in its property `unread`, which of them its other settings, or those elsewhere,
leave unread: {name: in words, what would read it}.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

from infoscope.probes.config import Task
from infoscope.runtime.errors import InputError

NAMESAKES = {
    "judge": "model",
    **{f"probe_data.{task.name}": "data" for task in Task},
    **{f"probe.{task.name}_crops": "probe.<task>_crops" for task in (Task.segmentation, Task.depth)},
}
"""Where the dataclasses lie that stand in several places, and how they call their place themselves."""


def name_place(words: str, key: str) -> str:
    """Return words in which a dataclass that stands in several places names the one of this key."""
    name = NAMESAKES.get(key)
    return words if name is None else re.sub(rf"(?<![\w./]){name}\.", f"{key}.", words)


def check_read(config: Any, overrides: Sequence[str]) -> None:
    """Refuse settings of the command line that nothing reads, unless they are as they would be without it.

    What a file gives may be for other choices than these.

    Args:
        config: the whole configuration.

    Raises:
        InputError: the first such setting, with what would read it.
    """
    given = [(key.lstrip("+"), value) for key, _, value in (override.partition("=") for override in overrides)]
    for unread, words in _list_unread(config):
        for key, value in given:
            is_inside = f"{key}.".startswith(f"{unread}.")
            is_around = value.startswith("{") and unread.startswith(f"{key}.")
            name = key if is_inside else unread
            if (is_inside or is_around) and _is_changed(config, name):
                raise InputError(f"{name} is read {words}.")


def _list_unread(section: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys that nothing reads, and in words what would."""
    prefix = f"{place}." if place else ""
    for name, words in getattr(section, "unread", {}).items():
        yield f"{prefix}{name}", name_place(words, place)
    for name, value in vars(section).items():
        if dataclasses.is_dataclass(value):
            yield from _list_unread(value, f"{prefix}{name}")


def _is_changed(config: Any, key: str) -> bool:
    """Whether a setting is another than its dataclass gives, and no null; an item of a list always is."""
    place, _, name = key.rpartition(".")
    section = attrgetter(place)(config) if place else config
    if not dataclasses.is_dataclass(section):
        return True
    declared = next(one for one in dataclasses.fields(section) if one.name == name)
    made = declared.default_factory
    return getattr(section, name) not in (None, declared.default if made is dataclasses.MISSING else made())
