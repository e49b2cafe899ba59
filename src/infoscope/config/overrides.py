"""Command-line arguments that Hydra reads as they are meant: quoted where its grammar needs it, and ~ for one's home.

`quote_override` is how every command that infoscope prints names a value.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from infoscope.runtime.bounds import expand_path
from infoscope.runtime.errors import InputError

_PLAIN = re.compile(r"[A-Za-z_][\w.+-]*|[\w.+@%-]*/[\w./+@%-]*", re.ASCII)
"""A text that needs no quotes: a word, or a path of usual characters (which no number is)."""
_AT_HOME = re.compile(r"(^|[\[, ]|local-dir:)~(?=[/,\]]|$)")
_LAYERS = re.compile(r"model\.layer=\[([^\[\]]*[^\[\],\s][^\[\]]*)\]")
_POOLED = "sae.tokens=pooled"
"""How MSAE's readers would say it: which tokens there are is the model's part here."""
_WORDS = {"null", "true", "false", "inf", "nan"}
FOLDER_KEYS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.launcher.submitit_folder", "hydra.searchpath")
_CONFIG_DIR = ("--config-dir", "-cd", "--config-path", "-cp")


def quote_override(key: str, value: Any) -> str:
    """Return KEY=VALUE such that Hydra reads this very value.

    >>> quote_override("data.root", "/my, photos")
    'data.root="/my, photos"'

    Args:
        value: a text, a number, true or false, None, or a list of those.
    """
    return f"{key}={_quote(value)}"


def quote_argument(key: str, value: str, is_list: bool = False) -> str:
    """Return a text that Hydra's grammar does not cover as an argument to paste into a shell.

    >>> quote_argument("data.root", "/my, photos")
    '\'data.root="/my, photos"\''

    Args:
        value: as it was typed.
        is_list: whether it stands for a list of texts.
    """
    value = value.strip()
    if not is_list:
        return shlex.quote(quote_override(key, value))
    inner = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    items = [inner] if os.path.lexists(inner) else [item.strip() for item in inner.split(",")]
    return shlex.quote(quote_override(key, items))


def _quote(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_quote, value))}]"
    if not isinstance(value, str) or (_PLAIN.fullmatch(value) and value.lower() not in _WORDS):
        return str(value)
    escaped = re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)  # no interpolation of OmegaConf
    return '"' + re.sub(r'(\\*)("|\Z)', lambda found: 2 * found[1] + found[2].replace('"', r"\""), escaped) + '"'


def make_readable(arguments: Sequence[str], is_text: Callable[[str], bool]) -> list[str]:
    """Return a command line as Hydra should get it.

    Hydra does not read a ~, takes a folder called 2020_01 for a number, and knows no variables of the environment in
    folders of its own (`--config-dir`, `hydra.run.dir`, ...). In settings that are paths they are put in later. Several
    layers, `model.layer=[1,2]`, are a sweep over them. `sae.tokens=pooled` is short for model.site=pooled.

    Args:
        arguments: KEY=VALUE, options among them.
        is_text: whether a key's value is a text.

    Raises:
        InputError: the environment has no such variable, or a sweep over sae.tokens holds "pooled".
    """
    prepared: list[str] = []
    for argument in arguments:
        if found := _LAYERS.fullmatch(argument):
            argument = f"model.layer={found[1]}"
        elif argument == _POOLED:
            argument = "model.site=pooled"
        elif argument.startswith("sae.tokens=") and "pooled" in argument.partition("=")[2].split(","):
            raise InputError(
                f"Expected sae.tokens=pooled alone, which is short for model.site=pooled, got {argument}: give"
                " model.site=resid_post,pooled."
            )
        name, equals, value = argument.partition("=")
        if equals and name in _CONFIG_DIR:
            prepared.append(f"{name}={expand_path(value, name)}")
        elif prepared and prepared[-1] in _CONFIG_DIR:
            prepared.append(expand_path(argument, prepared[-1]))
        elif equals and not name.startswith("-"):
            prepared.append(_prepare(name, value, is_text))
        else:
            prepared.append(argument)
    return prepared


def has_layers(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for several layers by a list, which makes it a sweep."""
    return any("," in found[1] for argument in arguments if (found := _LAYERS.fullmatch(argument)))


def _prepare(key: str, value: str, is_text: Callable[[str], bool]) -> str:
    if key in FOLDER_KEYS and (value.startswith("$") or "[$" in value):
        value = expand_path(value, key)
    may_be_number = re.search(r"(^|\[|,)\s*[-+.]*\d", value) is not None
    if "~" not in value and not (may_be_number and is_text(key.lstrip("+"))):
        return f"{key}={value}"
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={value}").value()
    except HydraException:
        return f"{key}={_AT_HOME.sub(lambda found: found[1] + os.path.expanduser('~'), value)}"
    if _is_number(parsed):
        return quote_override(key, value.strip())
    if isinstance(parsed, list) and any(map(_is_number, parsed)):
        return quote_override(key, [text.strip(" '\"") for text in value.strip()[1:-1].split(",")])
    return f"{key}={value}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
