"""Files that are whole or not there, and texts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from infoscope.runtime.errors import InputError, get_first_line


def read_text(file: Path, expected: str, advice: str) -> str:
    """Return a UTF-8 text, without a byte order mark.

    Args:
        expected: what should be there, and advice: what to do where it is not, for the error.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or get_first_line(error)).lower()
        reason = "it is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else reason
        raise InputError(f"Expected {expected} at {file}, got: {reason}: {advice}.") from error


def write_json(path: Path, value: Any) -> None:
    """Write plain JSON types into a file of a folder that nobody else reads yet."""
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def count_file_bytes(folder: Path) -> int:
    """Return how large all files below a folder are together, which others may be moving meanwhile."""
    n_bytes = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            n_bytes += path.stat().st_size if path.is_file() else 0
    return n_bytes


@contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a place to write to, in the folder of a file; at the block's end it becomes that file, an error deletes it.

    Readers see the old file or the new one, never a half. A process that is killed leaves `.<name>.<pid>.part`.

    Args:
        durable: force it to the disk before, so that even after a power cut a file that is there is a whole one.

    Raises:
        OSError: the disk is full.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        if durable:
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
