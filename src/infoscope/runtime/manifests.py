"""What an artifact is: its spec before it exists, its manifest when it does.

The hash covers the *key* alone; a manifest lists the checksum of every file next to it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infoscope.runtime.environment import describe_environment
from infoscope.runtime.errors import InputError

FORMAT_VERSION = 2
"""Part of every hash: raise it when the meaning of any stored file changes."""

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
NOT_DETERMINING = ("stage", "seeds", "trainer", "logger", "collect", "artifacts", "explore", "output_dir", "plan")
"""Parts of the whole configuration by which experiments are not told apart: of these only the precision changes
numbers."""


@dataclass(frozen=True)
class Spec:
    """What an artifact is, before it exists.

    Args:
        stage: the stage that makes it, the name of its parent folder.
        name: for display; not part of the hash.
        key: everything that determines the content: plain JSON types.
        is_one_of_many: whether there are dozens for each SAE seed, so that no line is printed for each.
    """

    stage: str
    name: str
    key: dict[str, Any]
    is_one_of_many: bool = False

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of (format version, stage, key)."""
        return compute_hash([FORMAT_VERSION, self.stage, self.key])

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{self.hash}"


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder, its hash, its manifest, and whether this call built it."""

    folder: Path
    hash: str
    manifest: dict[str, Any]
    built: bool

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file of the artifact."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


class NewerArtifact(InputError):
    """An artifact whose format this version does not know."""


def flatten_tree(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration by dotted key; a list as JSON."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten_tree(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, default=str) if isinstance(value, list) else value
    return flat


def flatten_determining(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells experiments apart, but for the precision, by dotted key."""
    return flatten_tree({key: value for key, value in tree.items() if key not in NOT_DETERMINING})


def compute_hash(value: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of `value` as canonical JSON.

    Raises:
        TypeError: if `value` holds anything but plain JSON types.
        ValueError: if it holds NaN or infinity.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compute_checksum(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of an artifact's folder, None if there is none that can be read.

    Raises:
        InputError: a newer infoscope has made it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = int(manifest["format_version"])
        is_whole = isinstance(manifest["hash"], str) and isinstance(manifest["files"], dict)
    except (OSError, OverflowError, RecursionError, ValueError, KeyError, TypeError):
        return None
    if version > FORMAT_VERSION:
        raise NewerArtifact(
            f"{folder} has format version {version}, and this infoscope knows {FORMAT_VERSION}: update infoscope, or"
            " set another output_dir; nothing was changed."
        )
    return manifest if is_whole else None


def find_damage(
    folder: Path,
    manifest: dict[str, Any],
    checked_bytes: float = math.inf,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Iterator[str]:
    """Yield the files of an artifact that are missing or do not agree with its manifest.

    Args:
        checked_bytes: files up to this size are compared by size and checksum, larger ones by size alone.
        tell: called with (files done, all files).
    """
    for number, (name, entry) in enumerate(manifest["files"].items()):
        tell(number, len(manifest["files"]))
        file = folder / name
        try:
            is_whole = file.stat().st_size == entry["bytes"]
            is_checked = entry["bytes"] <= checked_bytes
            if not is_whole or (is_checked and compute_checksum(file) != entry["sha256"]):
                yield name
        except (OSError, KeyError, TypeError):
            yield name


def make_manifest(
    spec: Spec,
    folder: Path,
    wall_s: float,
    upstream: Mapping[str, Artifact],
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Return the manifest of an artifact whose files lie in a folder, built in `wall_s` seconds.

    Args:
        tell: called with (files read, all files).
    """
    paths, files = sorted(path for path in folder.rglob("*") if path.is_file()), {}
    for number, path in enumerate(paths):
        tell(number, len(paths))
        entry = {"bytes": path.stat().st_size, "sha256": compute_checksum(path)}
        files[path.relative_to(folder).as_posix()] = entry
    return {
        "format_version": FORMAT_VERSION,
        "stage": spec.stage,
        "name": spec.name,
        "hash": spec.hash,
        "key": spec.key,
        "upstream": {role: artifact.hash for role, artifact in upstream.items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_s": round(wall_s, 3),
        **describe_environment(),
        "files": files,
    }
