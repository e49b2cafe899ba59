"""What lies in an artifacts folder: artifacts, what killed runs have left, and things that are not ours to touch."""

from __future__ import annotations

import json
import math
import os
import re
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from infoscope.runtime.manifests import FORMAT_VERSION, NewerArtifact, find_damage, read_manifest

_FINAL = re.compile(r".+-(?P<hash>[0-9a-f]{16})")
_LEFT = re.compile(r"\.(?P<hash>[0-9a-f]{16})\.(?:(?P<owner>[^.]+\.tmp)|(?P<kind>progress|lock))")
_HASH = re.compile(r"[0-9a-f]{16}")


class Kind(Enum):
    """What a thing in an artifacts folder is."""

    whole = "whole"
    damaged = "damaged"
    """No manifest that can be read, or files that do not agree with it; rebuilt when a run needs it."""
    older = "older format"
    """Of no use to this version: it builds its own."""
    newer = "newer format"
    temporary = "temporary"
    progress = "progress"
    lock = "lock"
    foreign = "not ours"
    """A link, or a name that no version of infoscope gives."""


ARTIFACTS = (Kind.whole, Kind.damaged, Kind.older, Kind.newer)


@dataclass
class Entry:
    """One thing.

    Args:
        hash: in its name; empty for what is not ours.
        owner: of a temporary folder, who fills it, see `may_be_alive`.
        n_bytes: on the disk; links count as themselves.
        changed: when anything in it was last written, in seconds since 1970.
        refers: hashes of what it was made from.
        is_bf16: whether it is an SAE's of trainer.precision=bf16.
        damage: what is wrong with it, in words.
        runs: the folders of the runs that use it.
        made: the names of the artifacts that were made from it.
    """

    path: Path
    stage: str
    kind: Kind
    hash: str = ""
    owner: str = ""
    n_bytes: int = 0
    changed: float = 0.0
    refers: frozenset[str] = frozenset()
    is_bf16: bool = False
    damage: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Stage and name."""
        return f"{self.stage}/{self.path.name}"

    def age_s(self) -> float:
        """Seconds since it was last changed."""
        return max(0.0, time.time() - self.changed)


def list_entries(root: Path) -> list[Entry]:
    """Return everything in the folders of the stages; links are not followed.

    Args:
        root: the artifacts folder, its own path resolved.
    """
    entries: list[Entry] = []
    for stage in sorted(root.iterdir()) if root.is_dir() else []:
        if stage.is_symlink() or not stage.is_dir():
            entries.append(_measure(Entry(stage, "", Kind.foreign)))
        elif not stage.name.startswith("."):
            entries += [_measure(_identify(path, stage.name)) for path in sorted(stage.iterdir())]
    return entries


def _identify(path: Path, stage: str) -> Entry:
    if path.is_symlink():
        return Entry(path, stage, Kind.foreign)
    if left := _LEFT.fullmatch(path.name):
        kind = Kind.temporary if left["owner"] else Kind[left["kind"]]
        is_as_named = path.is_file() if kind is Kind.lock else path.is_dir()
        if is_as_named:
            return Entry(path, stage, kind, left["hash"], left["owner"] or "")
    final = _FINAL.fullmatch(path.name)
    if final is None or not path.is_dir():
        return Entry(path, stage, Kind.foreign)
    return _read(Entry(path, stage, Kind.whole, final["hash"]))


def _read(entry: Entry) -> Entry:
    """Look at the manifest and the sizes of the files."""
    try:
        manifest = read_manifest(entry.path)
    except NewerArtifact:
        entry.kind = Kind.newer
        return entry
    if manifest is None:
        entry.kind, entry.damage = Kind.damaged, ["its manifest cannot be read"]
        return entry
    key = manifest.get("key")
    refers = json.dumps([manifest.get("upstream"), key])
    entry.refers = frozenset(_HASH.findall(refers)) - {entry.hash}
    entry.is_bf16 = isinstance(key, dict) and key.get("precision") == "bf16"
    if manifest["format_version"] < FORMAT_VERSION:
        entry.kind = Kind.older
    elif manifest["hash"] != entry.hash:
        entry.kind, entry.damage = Kind.damaged, [f"its manifest is that of {manifest['hash']}"]
    else:
        check(entry, manifest, checked_bytes=-1)
    return entry


def check(entry: Entry, manifest: dict[str, Any] | None = None, checked_bytes: float = math.inf) -> None:
    """Compare the files of an artifact with its manifest: sizes, or checksums too."""
    manifest = manifest or read_manifest(entry.path)
    assert manifest is not None
    entry.damage = list(find_damage(entry.path, manifest, checked_bytes))
    entry.kind = Kind.damaged if entry.damage else entry.kind


def _measure(entry: Entry) -> Entry:
    """Add up sizes, and find the last change."""
    for folder, names, files in os.walk(entry.path):
        for name in (*names, *files):
            _count(entry, Path(folder) / name)
    _count(entry, entry.path)
    return entry


def _count(entry: Entry, path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:  # a run goes on while this one looks
        return
    entry.n_bytes += found.st_size
    entry.changed = max(entry.changed, found.st_mtime)
