"""The command line of commands that need no configuration: `infoscope NAME PLACE ... [KEY=VALUE ...]`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from infoscope.runtime.errors import InputError


def call_tool(name: str, function: Callable[..., Any], arguments: Sequence[str]) -> None:
    """Call a function with what follows its name on the command line.

    Args:
        function: its positional arguments are the places, which all must be given; its others the options.
        arguments: places, and KEY=VALUE as of Hydra; --KEY VALUE is the same; --help explains.

    Raises:
        InputError: too few or too many places, an unknown option; and what the function raises.
    """
    parameters = inspect.signature(function).parameters.values()
    places = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    options = [one for one in parameters if one.kind is one.KEYWORD_ONLY]
    takes_more = any(one.kind is one.VAR_KEYWORD for one in parameters)
    usage = " ".join(["infoscope", name, *map(str.upper, places), *(f"[{one.name}={one.default}]" for one in options)])
    usage += " [KEY=VALUE ...]" * takes_more
    if {"-h", "--help"} & set(arguments):
        print(f"{usage}\n\n{inspect.getdoc(function)}")
        return
    given: list[str] = []
    values: dict[str, Any] = {}
    rest = iter(arguments)
    for argument in rest:
        if argument.startswith("--") and "=" not in argument:
            argument = f"{argument}={next(rest, '')}"
        key, equals, value = argument.removeprefix("--").partition("=")
        if equals and key.removeprefix("sae.").isidentifier():
            values[key.removeprefix("sae.")] = _read_value(value)
        else:
            given.append(argument)
    if len(given) != len(places):
        raise InputError(f"Expected {usage}, got {len(given)} of {len(places)} places: {' '.join(given) or 'none'}.")
    known = [one.name for one in options]
    if not takes_more and (unknown := [key for key in values if key not in known]):
        raise InputError(f"infoscope {name} takes no {unknown[0]}=: expected {usage}.")
    function(*given, **values)


def _read_value(text: str) -> Any:
    """Return a value as Hydra reads it (numbers, true, null, lists, mappings), else the text itself."""
    try:
        return OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:
        return text
