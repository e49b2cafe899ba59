"""What is wrong with a command line or a configuration file, in one sentence: the key, what was expected, the choices.

Hydra and OmegaConf say it in several lines and in terms of their own classes; the schema says what a user can write.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Iterator
from enum import Enum
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from infoscope.config.overrides import FOLDER_KEYS, quote_argument
from infoscope.runtime.bounds import find_kind
from infoscope.runtime.errors import InputError, suggest

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)
"""What a wrong command line or file raises before the job begins (Hydra raises a bare ValueError for `model=3`)."""

_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def explain(error: BaseException, schema: type) -> str:
    """Return the sentence.

    Args:
        error: one of `COMPOSITION_ERRORS`.
        schema: the dataclass of the whole configuration.
    """
    chain = list(_walk_chain(error))
    where = next((f" (in {name[1]}.yaml)" for link in chain if (name := re.match("In '(.+?)'", str(link)))), "")
    for link in chain:
        if isinstance(link, InputError):
            return str(link)
        if isinstance(link, MissingConfigException):
            return _explain_missing_config(link)
    for link in chain:
        if isinstance(link, OverrideParseException):
            return _explain_unreadable(str(link.override), schema)
        if isinstance(link, ConfigAttributeError | ConfigKeyError) and (link.full_key or link.key):
            return explain_unknown_key(str(link.full_key or link.key), schema, where, link.object_type)
        if isinstance(link, ValidationError):
            return _explain_wrong_value(link, schema, where)
        if isinstance(link, InterpolationResolutionError):
            return f"Wrong value for {link.full_key or 'a key'}{where}: {_first_line(link)}{_suggest_variable(link)}."
        if isinstance(link, MissingMandatoryValue):
            return f"Expected a value for {link.full_key}, got none: give it as {link.full_key}=..."
        if isinstance(link, yaml.MarkedYAMLError) and link.problem_mark:
            mark = link.problem_mark
            return f"Cannot read {mark.name}, line {mark.line + 1}: {link.problem}; expected YAML."
    return _explain_by_text(error, schema)


def explain_unknown_key(full_key: str, schema: type, where: str = "", section: Any = None) -> str:
    """Return the sentence about a key that the configuration does not have.

    Args:
        section: the dataclass that lacks it, where it is one of several kinds (see `sae/config.py`).
    """
    parent, _, key = full_key.rpartition(".")
    declared = find_type(parent, schema)
    if full_key.startswith("hydra."):
        return (
            f"Unknown key {full_key!r}: expected one of those that `infoscope --cfg hydra` shows; those of"
            " hydra.launcher come with hydra/launcher=local or slurm."
        )
    if not dataclasses.is_dataclass(declared):
        return f"Unknown key {full_key!r}{where}: expected one of those that `infoscope --cfg job` shows."
    _, *kinds = (kind for kind in _list_kinds(declared) if getattr(kind, "kind", None) != "none" or kind is declared)
    readers = [kind.kind for kind in kinds if key in _find_hints(kind)]
    if kinds and section is declared:
        choice = f"`defaults: [{(readers or [kinds[0].kind])[0]}, _self_]`"
        return f"Unknown key {full_key!r}{where}: expected a kind of {parent} before it, begin the file with {choice}."
    known = sorted(f.name for f in dataclasses.fields(section if kinds and section else declared))
    of = f" for {parent}.kind={section.kind}" if readers else ""
    more = f"; {key} is for {parent}={', '.join(readers)}" if readers else suggest(key, known, parent and f"{parent}.")
    known = f"{', '.join(known)}{parent and f' in {parent}'}"
    return f"Unknown key {full_key!r}{where}{of}: expected one of {known}{more}."


_find_hints = cache(get_type_hints)  # parsing annotations was a tenth of reading a command line


def find_unknown_keys(tree: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full keys of a tree that its schemas do not have, with the dataclass that lacks them."""
    schema: Any = OmegaConf.get_type(tree)
    types = _find_hints(schema)
    for key in tree:
        if key not in types:
            yield f"{prefix}{key}", schema
        elif dataclasses.is_dataclass(types[str(key)]):
            yield from find_unknown_keys(tree[key], f"{prefix}{key}.")


def find_type(full_key: str, schema: Any) -> Any:
    """Return the type that a dataclass gives to a key such as `probe.readouts[0]`, None for unknown keys."""
    node = schema
    for part in re.findall(r"[^.\[\]]+", full_key):
        node = find_kind(node)
        if dataclasses.is_dataclass(node):
            hints = [_find_hints(kind) for kind in _list_kinds(node)]
            node = next((of[part] for of in hints if part in of), None)
        elif get_origin(node) is list:
            node = get_args(node)[0]
        else:
            return None
    return node


def _list_kinds(schema: Any) -> list[Any]:
    """Return a dataclass and all that extend it."""
    return [schema, *(kind for extension in schema.__subclasses__() for kind in _list_kinds(extension))]


def _walk_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what caused it, what caused that."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        yield link
        seen.append(link)
        link = link.__cause__ or link.__context__


def list_choices(annotation: Any) -> list[str]:
    """Return the values that a type has, as one types them; none where they cannot be listed."""
    kind, optional = find_kind(annotation), NoneType in get_args(annotation)
    if kind is bool:
        names = ["true", "false"]
    else:
        names = list(kind.__members__) if isinstance(kind, type) and issubclass(kind, Enum) else []
    return [*names, "null"] if names and optional else names


def _describe_type(annotation: Any) -> str:
    """Return what a user can write for a value of this type."""
    kind, optional = find_kind(annotation), NoneType in get_args(annotation)
    if isinstance(kind, type) and issubclass(kind, Enum):
        text = f"one of {', '.join(kind.__members__)}"
    elif get_origin(kind) is list:
        item = get_args(kind)[0]
        text = f"a list in brackets, each {_describe_type(item)}"
    else:
        text = _TYPES.get(kind, "another value")
    return text + (" or null" if optional else "")


def _explain_wrong_value(error: ValidationError, schema: type, where: str) -> str:
    key = str(error.full_key or "")
    kind = find_type(key, schema) if key else None
    if kind is None or dataclasses.is_dataclass(kind):
        return f"Wrong value for {key or 'a group'}{where}: {_first_line(error)}."
    value = OmegaConf.to_container(error.value) if OmegaConf.is_config(error.value) else error.value
    choice = find_kind(kind)
    choices = list(choice.__members__) if isinstance(choice, type) and issubclass(choice, Enum) else []
    near = suggest(str(value), choices, f"{key}=")
    got = "null" if value is None else repr(value)
    if choice is str and isinstance(value, list):
        typed = ",".join(map(str, value))
        near = f" (a text in brackets is {quote_argument(key, f'[{typed}]')})"
    return f"Wrong value for {key}{where}: expected {_describe_type(kind)}, got {got}{near}."


def _suggest_variable(error: InterpolationResolutionError) -> str:
    """Return how to write a variable of the environment, where one was taken for a key of the configuration."""
    found = re.match("Interpolation key '(.+?)'", str(error))
    return f"; write ${found[1]} for the variable of the environment" if found and found[1] in os.environ else ""


def _explain_missing_config(error: MissingConfigException) -> str:
    name = (error.missing_cfg_file or "?").removesuffix(".yaml")
    group, _, choice = name.rpartition("/")
    options = sorted(error.options or [])
    if not group:
        return f"Unknown configuration {name!r}: {_first_line(error)}."
    if not options:
        return f"Unknown {group} {choice!r}: there are no choices."
    return f"Unknown {group} {choice!r}: expected one of {', '.join(options)}{suggest(choice, options, f'{group}=')}."


def holds_text(full_key: str, schema: type) -> bool:
    """Whether a key's value is a text, or a list of texts."""
    kind = find_kind(find_type(full_key, schema))
    return str in (kind, *get_args(kind))


def _explain_unreadable(override: str, schema: type) -> str:
    """Return the sentence for what Hydra's grammar does not cover, with the argument that says the same to it."""
    key, equals, value = override.partition("=")
    name = key.lstrip("+")
    if not equals or not (holds_text(name, schema) or name in FOLDER_KEYS):
        return f"Cannot read {override!r}: expected KEY=VALUE; quote a value that holds special characters."
    is_list = name == "hydra.searchpath" or get_origin(find_kind(find_type(name, schema))) is list
    quoted = quote_argument(key, value, is_list)
    return f"Cannot read {override}: Hydra needs quotes around such a value, give {quoted} instead."


def _explain_by_text(error: BaseException, schema: type) -> str:
    """Return the sentence for what Hydra tells apart by its text alone."""
    line = _first_line(error)
    if found := re.match("Ambiguous value for argument '(.+?)=(.+)'", line):
        key, value = found.groups()
        many = shlex.quote(f"{key}={value}")
        kind = find_kind(find_type(key, schema))
        if get_origin(kind) is list:
            return f"Several values for {key}: write a list {key}=[{value}]."
        if kind is str:
            return (
                f"Several values for {key}, or one with commas: give {quote_argument(key, value)} for one, or run each"
                f" with `infoscope -m {many}`."
            )
        return f"Several values for {key}: run each with `infoscope -m {many}`."
    if found := re.match("Multiple values for ([^.]+)", line):
        return f"{found[1]} is chosen twice: write {found[1]}=CHOICE once, without a +."
    if found := re.match(r"Error merging override ~([^=]+)|Could not delete from config\. .*?'([^']+)'", line):
        key = found[1] or found[2]
        if find_type(key, schema) is None:
            return explain_unknown_key(key, schema)
        return f"Cannot delete a setting, as ~{key} asks: set it, {key}=VALUE, or leave the argument out."
    if line.startswith("Config group override must be a string"):
        return "Expected the name of a choice for a group, such as model=scenes_clip, got a number or nothing."
    return f"Cannot read the command line or a configuration file: {line}."


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
