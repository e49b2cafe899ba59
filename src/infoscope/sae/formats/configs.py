"""The configurations beside a checkpoint, JSON and YAML files of strangers, each read where a format asks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from infoscope.runtime.errors import get_first_line
from infoscope.runtime.untrusted.kinds import refuse
from infoscope.runtime.untrusted.makers import NotReadError
from infoscope.sae.hub import CONFIGS

_MAX_JSON, _MAX_YAML = 2**24, 2**16
"""Bytes. YAML is read a thousand times slower than JSON."""


class Configs(Mapping[str, Mapping[str, Any]]):
    """The mappings in JSON and YAML files of some folders by the files' names, of equal names that of the last folder.

    A name raises InputError where its file is too large, damaged, or YAML with anchors: a few lines of it can fill the
    memory. What is no mapping is left out.
    """

    def __init__(self, *folders: Path) -> None:
        self._folders, self._found = folders, dict[str, Mapping[str, Any] | None]()

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        if name not in self._found:
            files = [folder / name for folder in reversed(self._folders) if (folder / name).is_file()]
            self._found[name] = next((config for file in files if (config := _read(file)) is not None), None)
        if (found := self._found[name]) is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        names = {file.name for folder in self._folders for file in folder.iterdir() if file.suffix in CONFIGS}
        return (name for name in sorted(names) if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Loader(yaml.SafeLoader):
    def _refuse(self) -> NoReturn:
        raise NotReadError("it has anchors or aliases of YAML, which are not read: write out what they stand for")

    fetch_anchor = fetch_alias = _refuse


def _read(file: Path) -> dict[str, Any] | None:
    """Return a JSON or YAML file; None if it is no mapping.

    Raises:
        InputError: it is too large, or damaged.
    """
    try:
        limit = _MAX_JSON if file.suffix == ".json" else _MAX_YAML
        with file.open("rb") as stream:
            text = stream.read(limit + 1)
        if len(text) > limit:
            raise NotReadError(f"it is larger than {limit:,} bytes")
        content = json.loads(text) if file.suffix == ".json" else yaml.load(text, _Loader)
    except Exception as error:  # whatever strangers write
        reason = str(error) if isinstance(error, NotReadError) else f"it is damaged ({get_first_line(error)})"
        advice = "if it says nothing of the SAE, give sae.format="
        raise refuse(file, "configuration", NotReadError(f"{reason}; {advice}")) from error
    return content if isinstance(content, dict) else None
