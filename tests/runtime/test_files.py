"""Files that are whole or not there."""

import os
from pathlib import Path

import pytest

from infoscope.runtime import files
from infoscope.runtime.files import atomic_write


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write_and_stop(path: Path, what: bytes | None) -> None:
    with atomic_write(path) as unfinished:
        if what is not None:
            unfinished.write_bytes(what)
        raise KeyboardInterrupt


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    for what in (b"half", None):
        with pytest.raises(KeyboardInterrupt):
            write_and_stop(path, what)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [True, False])
def test_it_is_forced_to_the_disk_where_it_must_outlive_a_power_cut(tmp_path: Path, monkeypatch, durable: bool):
    steps, replace = [], os.replace
    monkeypatch.setattr(files.os, "fsync", lambda _: steps.append("fsync"))
    monkeypatch.setattr(files.os, "replace", lambda *paths: (steps.append("replace"), replace(*paths)))
    with atomic_write(tmp_path / "a.txt", durable=durable) as unfinished:
        unfinished.write_text("new")
    assert steps == ["fsync", "replace"][not durable :]
