"""Hydra composes the same few files some thousand times in the tests: what it has read and joined once, it copies.

A file that has changed is read anew, and so is a schema that was stored anew; a list of defaults is made anew for other
choices of groups, and where any file is new, gone or changed. Overrides are applied by Hydra each time.
"""

from __future__ import annotations

import copy
import os
import pickle
from dataclasses import astuple
from typing import Any

import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins

_KNOWN: dict[Any, bytes] = {}
"""Pickled: to read that takes a fifth of the time of a copy."""


def speed_up(patch: pytest.MonkeyPatch) -> None:
    """Let Hydra, in this process, keep what it reads."""
    patch.setattr(CachingConfigRepository, "__init__", _share_sources)
    Plugins.instance()  # registers the classes of sources, others than their modules hold
    for source in map(SourcesRegistry.instance().resolve, ("file", "pkg", "structured")):
        patch.setattr(source, "load_config", _keep(source.load_config))
    patch.setattr(config_loader_impl, "create_defaults_list", _keep_defaults(config_loader_impl.create_defaults_list))
    patch.setattr(
        ConfigLoaderImpl,
        "_compose_config_from_defaults_list",
        _keep_joined(ConfigLoaderImpl._compose_config_from_defaults_list),
    )


def _share_sources(self: Any, delegate: Any) -> None:
    """As the original, which copies all schemas with the sources."""
    self.delegate, self.cache = copy.copy(delegate), {}
    self.delegate.sources = list(delegate.sources)


def _identify(source: Any, config_path: str) -> tuple[Any, ...]:
    """Return what is another where a configuration is; a schema itself, so that its id stays its own."""
    name = source._normalize_file_name(config_path)
    if source.scheme() == "structured":
        return source.path, name, _Same(source.store._load(name).node)
    if source.scheme() == "pkg":
        return source.path, name  # installed: it stays
    state = os.stat(os.path.join(source.path, name))
    return source.path, name, state.st_mtime_ns, state.st_size, state.st_ino


class _Same:
    """Equals none but the very same object."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.what is other.what

    def __hash__(self) -> int:
        return id(self.what)


def _keep(load: Any) -> Any:
    def load_config(self: Any, config_path: str) -> Any:
        try:
            key = _identify(self, config_path)
        except OSError:  # it says so itself
            return load(self, config_path)
        if key not in _KNOWN:
            _KNOWN[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(_KNOWN[key])

    return load_config


def _keep_joined(join: Any) -> Any:
    def compose(self: Any, defaults: list[Any], repo: Any) -> Any:
        names = [one.config_path for one in defaults]
        sources = [repo.delegate._find_object_source(name, ObjectType.CONFIG) for name in names]
        key = (*map(astuple, defaults), *map(_identify, sources, names))
        if key not in _KNOWN:
            _KNOWN[key] = pickle.dumps(join(self, defaults, repo))
        return pickle.loads(_KNOWN[key])

    return compose


def _keep_defaults(create: Any) -> Any:
    def create_defaults_list(
        repo: Any, config_name: Any, overrides_list: list[Any], prepend_hydra: bool, skip_missing: bool
    ) -> Any:
        chosen, others = [], []  # as Hydra tells them apart
        for override in overrides_list:
            if not override.is_sweep_override():
                is_choice = not isinstance(override.value(), dict) and repo.group_exists(override.key_or_group)
                (chosen if is_choice else others).append(override)
        choices = tuple(override.input_line for override in chosen)
        key = (config_name, choices, prepend_hydra, skip_missing, *map(_identify_all, repo.get_sources()))
        if key not in _KNOWN:
            _KNOWN[key] = pickle.dumps(create(repo, config_name, chosen, prepend_hydra, skip_missing))
        found = pickle.loads(_KNOWN[key])
        found.config_overrides = found.overrides.config_overrides = others
        return found

    return create_defaults_list


def _identify_all(source: Any) -> tuple[Any, ...]:
    """Return what is another where a source has other configurations."""
    if source.scheme() == "structured":
        return source.path, *map(_Same, _list_nodes(source.store.repo))
    if source.scheme() == "pkg":
        return (source.path,)
    folders = [(folder, files) for folder, _, files in os.walk(source.path)]
    states = [(path, os.stat(path)) for folder, files in folders for path in (os.path.join(folder, f) for f in files)]
    return source.path, *((path, state.st_mtime_ns, state.st_size, state.st_ino) for path, state in states)


def _list_nodes(repo: Any) -> list[Any]:
    if not isinstance(repo, dict):
        return [repo.node]
    return [node for part in repo.values() for node in _list_nodes(part)]
