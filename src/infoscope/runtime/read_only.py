"""Artifacts to be read: what is missing is said, not built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from infoscope.runtime.manifests import Artifact, Spec
from infoscope.runtime.store import Store


class MissingArtifact(Exception):
    """An artifact that does not exist, and that nothing may build."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(f"{spec.stage}/{spec.folder_name}")
        self.spec = spec


class ReadOnlyStore(Store):
    """A store that builds nothing: `get` raises `MissingArtifact` instead."""

    checked_bytes = 2**26
    """Who looks at what a hundred jobs have found does not wait for the checksums of a hundred GB of tokens."""

    @classmethod
    def of(cls, store: Store) -> ReadOnlyStore:
        """Return a silent one over the same folder, which need not check again what that one has checked."""
        reading = cls(store.root)
        reading._verified = store._verified
        return reading

    @contextmanager
    def claim(self, specs: Iterable[Spec]) -> Iterator[list[str]]:
        for spec in specs:
            if self.find(spec) is None:
                raise MissingArtifact(spec)
        yield []

    def get_together(self, specs: Mapping[str, Spec], *_: Any, **__: Any) -> dict[str, Artifact]:
        found: dict[str, Artifact] = {}
        for name, spec in specs.items():
            if not self._reuse(name, spec, found):
                raise MissingArtifact(spec)
        return found
