"""Passes in parts and checkpoints of loops."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from infoscope.runtime import files, parts


def test_cut_covers_every_item_once():
    assert parts.cut(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert parts.cut(0, 3) == []


def test_an_interrupted_pass_computes_only_the_missing_parts(tmp_path: Path):
    computed: list[int] = []

    def compute(number: int, fails_at: int | None = None) -> dict[str, torch.Tensor]:
        if number == fails_at:
            raise KeyboardInterrupt
        computed.append(number)
        return {"square": torch.tensor(number**2)}

    with pytest.raises(KeyboardInterrupt):
        list(parts.compute_parts(5, lambda number: compute(number, 3), tmp_path, "squares"))
    assert computed == [0, 1, 2]
    assert parts.list_missing(5, tmp_path, "squares") == [3, 4]
    assert parts.list_missing(2, None, "squares") == [0, 1]
    found = [int(part["square"]) for part in parts.compute_parts(5, compute, tmp_path, "squares")]
    assert found == [0, 1, 4, 9, 16]
    assert computed == [0, 1, 2, 3, 4]
    assert len(list(tmp_path.glob("squares-*.pt"))) == 5


def test_a_part_that_cannot_be_written_ends_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    computed: list[int] = []

    def compute(number: int) -> dict[str, torch.Tensor]:
        computed.append(number)
        return {"n": torch.tensor(number)}

    def fail(path: Path, state: object) -> None:
        if path.name == "n-00001.pt":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parts, "save_state", fail)
    with pytest.raises(OSError, match="No space"):
        parts.compute_parts(5, compute, tmp_path, "n")
    assert computed == [0, 1, 2]  # part 2 was computed while part 1 was written


def test_without_a_folder_parts_come_one_by_one():
    asked: list[int] = []

    def compute(number: int) -> dict[str, torch.Tensor]:
        asked.append(number)
        return {"n": torch.tensor(number)}

    one_by_one = parts.compute_parts(3, compute, None, "n")
    assert int(next(one_by_one)["n"]) == 0
    assert asked == [0]


def test_a_view_is_saved_without_the_rest_of_its_tensor(tmp_path: Path):
    everything = torch.zeros(100_000)
    parts.save_state(tmp_path / "state.pt", {"few": everything[:10], "nested": [{"few": everything[:5]}]})
    assert (tmp_path / "state.pt").stat().st_size < 10_000
    assert parts.load_state(tmp_path / "state.pt")["nested"][0]["few"].shape == (5,)


def test_a_checkpoint_holds_for_its_key_alone_and_a_damaged_one_for_none(tmp_path: Path):
    path = tmp_path / "loop.pt"
    parts.Checkpoint(path, "a", 0).save({"step": 3})
    assert parts.Checkpoint(path, "a").load() == {"step": 3}
    assert parts.Checkpoint(path, "b").load() is None
    path.write_bytes(path.read_bytes()[:-20])
    assert parts.Checkpoint(path, "a").load() is None
    assert parts.Checkpoint(None).load() is None


def test_a_checkpoint_is_due_when_its_time_has_passed(tmp_path: Path):
    assert parts.Checkpoint(tmp_path / "loop.pt", every_s=0).is_due()
    assert not parts.Checkpoint(tmp_path / "loop.pt", every_s=3600).is_due()
    assert not parts.Checkpoint(None, every_s=0).is_due()


def test_a_full_disk_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "loop.pt"
    checkpoint = parts.Checkpoint(path)
    checkpoint.save({"step": 1})

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({"step": 2})
    assert checkpoint.load() == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["loop.pt"]
