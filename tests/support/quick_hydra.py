"""Hydra composes the same few files some thousand times in the tests: what it has read and joined once, it copies.

A file that has changed is read anew, and so is a schema that was stored anew; defaults and overrides are found and
applied by Hydra each time. That halves a composition.
"""

from __future__ import annotations

import copy
import os
import pickle
from dataclasses import astuple
from typing import Any

import pytest
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
    for source in map(SourcesRegistry.instance().resolve, ("file", "pkg")):
        patch.setattr(source, "load_config", _keep(source.load_config))
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
