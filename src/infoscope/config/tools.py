"""The command line of commands that need no configuration: `infoscope NAME PLACE ... [KEY=VALUE ...]`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from infoscope.config.tree import prepare_arguments
from infoscope.runtime.errors import InputError, suggest
from infoscope.runtime.output import say
from infoscope.sae.import_config import ImportedConfig

_SAE = "sae."
_SETTINGS = [one.name for one in fields(ImportedConfig) if one.name not in ("path", "statistics", "ignore_origin")]
"""Settings of sae=import that say what a file does not, and need no run."""


def call_tool(name: str, function: Callable[..., Any], arguments: Sequence[str]) -> None:
    """Call a function with what follows its name on the command line.

    Args:
        function: its positional arguments are the places, which all must be given; its others the options, texts or
            flags; where it takes more, those are the settings of sae=import.
        arguments: places, and KEY=VALUE; --KEY VALUE is the same, and sae.KEY=VALUE for settings; --help explains.

    Raises:
        InputError: too few or too many places, an unknown option; and what the function raises.
    """
    parameters = inspect.signature(function).parameters.values()
    places = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    options = {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}
    takes_more = any(one.kind is one.VAR_KEYWORD for one in parameters)
    shown = [f"[{key}={_show(value)}]" for key, value in options.items()] + ["[KEY=VALUE ...]"] * takes_more
    usage = " ".join(["infoscope", name, *map(str.upper, places), *shown])
    if {"-h", "--help"} & set(arguments):
        say(f"{usage}\n\n{inspect.getdoc(function)}")
        return
    hints, given, values = get_type_hints(function), list[str](), dict[str, Any]()
    for key, text in _split(arguments, [one for one in options if hints[one] is bool]):
        setting, _, part = key.removeprefix(_SAE).partition(".")
        if not key:
            given.append(text)
        elif key in options:
            values[key] = _read_flag(key, text) if hints[key] is bool else _unquote(text)
        elif not takes_more or setting not in _SETTINGS:
            known = [*options, *(_SETTINGS if takes_more else [])]
            near = suggest(setting, known, after="=")
            more = f", KEY one of {', '.join(_SETTINGS)}" if takes_more else ""
            raise InputError(f"infoscope {name} takes no {key}={near}: expected {usage}{more}.")
        elif part:
            values[setting] = {**values.get(setting, {}), part: text}
        else:
            values[key if setting in options else setting] = _read_setting(setting, text)
    if len(given) != len(places):
        lacking, more = " and ".join(map(str.upper, places[len(given) :])), " ".join(given[len(places) :])
        got = f"got no {lacking}" if lacking else f"got {more} too: quote what holds spaces"
        raise InputError(f"Expected {usage}, {got}.")
    function(*given, **values)


def _split(arguments: Sequence[str], flags: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the options and their values; of a place no option, but an empty text.

    Args:
        flags: options that --KEY alone turns on.

    Raises:
        InputError: an option without a value.
    """
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        key, equals, value = argument.removeprefix("--").partition("=")
        is_option = argument.startswith("--") or (equals and key.replace(".", "_").isidentifier())
        if not is_option or os.path.lexists(argument):
            yield "", argument
        elif equals:
            yield key, value
        elif key in flags and rest[:1] not in (["true"], ["false"]):
            yield key, "true"
        elif not rest:
            raise InputError(f"Expected a value after --{key}, got none.")
        else:
            yield key, rest.pop(0)


def _show(value: Any) -> str:
    """Return a default as one types it."""
    return "..." if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _read_flag(key: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise InputError(f"Expected {key}=true or {key}=false, got {key}={text}.")
    return text.lower() == "true"


def _unquote(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _read_setting(name: str, text: str) -> Any:
    """Return a value as Hydra reads it (numbers, true, null, mappings), else the text itself."""
    try:
        (prepared,) = prepare_arguments([f"{_SAE}{name}={text}"])
        override = OverridesParser.create().parse_override(prepared)
        return text if override.is_sweep_override() else override.value()
    except HydraException:
        return text
