"""Data sets on the disk, opened as a configuration opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from infoscope.data.config import DataConfig, DataKind

Set = TypeVar("Set")


def open_set(kind: type[Set], root: str | Path, split: str, **options: Any) -> Set:
    """Return one split of ADE20K, ImageNet or NYUd."""
    return kind(configure(kind.__name__.lower(), root, **options), split)  # pyright: ignore[reportCallIssue]


def configure(kind: str, root: str | Path, **options: Any) -> DataConfig:
    return DataConfig(DataKind[kind], root=str(root), **options)
