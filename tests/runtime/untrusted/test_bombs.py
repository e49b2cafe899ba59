"""Small files that would fill the memory, or that nobody could walk through."""

from __future__ import annotations

import io
import pickle
import tracemalloc
from typing import Any

import pytest
import torch
from torch import nn

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted import list_keys, read_checkpoint, unpickler
from infoscope.runtime.untrusted.tensors import read_tensors
from tests.support.hostile import KNOWN, STORAGE, name, refuse, text, write


def call(full: str, arguments: bytes) -> tuple[bytes, bytes]:
    """Return the steps that remember a name and arguments, and those that call the one with the others."""
    return name(full) + b"q\x00" + arguments + b"q\x0100", b"h\x00h\x01R"


HUNDRED = b"(" + b"".join(bytes([75, i]) for i in range(100)) + b"l"
BOMBS: dict[str, tuple[bytes, bytes]] = {
    "empty sets": (b"", b"\x8f"),
    "sets": (b"", b"\x8f(K\x01\x90"),
    "frozen sets": (b"", b"(K\x01\x91"),
    "empty dicts": (b"", b"}"),
    "dicts": (b"", b"}NNs"),
    "empty lists": (b"", b"]"),
    "lists": (b"", b"]Na"),
    "tuples": (b"", b"N\x85"),
    "numbers": (b"", b"G" + bytes(8)),
    "whole numbers": (b"", b"\x8a\x04" + bytes(3) + b"\x01"),
    "text": (b"", text("\N{GRINNING FACE}" + "a" * 40)),
    "bytes": (b"", b"C\x20" + bytes(32)),
    "what it remembers": (b"", b"N\x94"),
    "long names": (text("overcomplete") + b"q\x00" + text("a" * 180) + b"q\x0100", b"h\x00h\x01\x93"),
    "objects": call("overcomplete.A", b")"),
    "objects with state": (name("overcomplete.A") + b"q\x000", b"h\x00)\x81}NNsb"),
    "dicts of calls": call("collections.OrderedDict", b")"),
    "copies of a list": call("collections.OrderedDict", b"(K\x00K\x01\x86K\x01K\x01\x86l\x85"),
    "copies of a set": call("builtins.set", HUNDRED + b"\x85"),
    "copies of sides": call("torch.Size", HUNDRED + b"\x85"),
    "copies of text": call("_codecs.encode", text("a" * 1000) + text("latin1") + b"\x86"),
    "tensors": call(
        "torch._utils._rebuild_tensor_v2", b"(" + STORAGE + b"K\x00K\x04\x85K\x01\x85\x89Nt"
    ),
}  # fmt: skip
"""What is written once, and what is written again and again."""


class TestBombs:
    """Small files that would fill the memory. Python counts what it allocates, all but what torch holds of tensors."""

    LIMIT = 2**21

    @pytest.mark.parametrize("is_zip", [True, False])
    @pytest.mark.parametrize("what", BOMBS)
    def test_the_memory_of_a_pickle_is_bounded(self, tmp_path, monkeypatch, what, is_zip):
        monkeypatch.setattr(unpickler, "_MAX_MEMORY", self.LIMIT)
        first, again = BOMBS[what]
        data = b"\x80\x04" + first + b"(" + again * (self.LIMIT // 64) + b"l."
        if is_zip:
            path = write(tmp_path / "a.pt", data)
        else:
            heads = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
            path = tmp_path / "a.pt"
            path.write_bytes(b"".join(heads) + data + pickle.dumps(["0"]) + bytes(8))
        tracemalloc.start()
        try:
            refuse(path, "holds millions of objects beside its tensors: give the state dict alone")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < self.LIMIT + 2 * len(data) + 2**19

    @pytest.mark.parametrize("is_zip", [True, False])
    def test_what_training_writes_is_far_from_the_bound(self, tmp_path, monkeypatch, is_zip):
        """Of 10,000 entries of an optimizer, 40,000 tensors, 1,000 modules, a million numbers; a 64th of each."""
        monkeypatch.setattr(unpickler, "_MAX_MEMORY", unpickler._MAX_MEMORY // 64)
        moments = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
        state = {i: {name: value.clone() for name, value in moments.items()} for i in range(10_000 // 64)}
        contents: list[Any] = [
            {"optimizer": {"state": state, "param_groups": [{"lr": 1e-3, "params": list(state)}]}},
            {f"layers.{i}.weight": torch.zeros(2) for i in range(40_000 // 64)},
            nn.Sequential(*[nn.Linear(2, 2) for _ in range(1000 // 64)]),
            {"losses": [0.5] * (1_000_000 // 64), "counts": {str(i): i for i in range(200_000 // 64)}},
        ]
        for content in contents:
            torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
            assert list_keys(read_checkpoint(tmp_path / "a.pt", KNOWN).content)


class TestNesting:
    def test_a_deep_list_is_refused(self, tmp_path):
        refuse(write(tmp_path / "a.pt", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."), "nested too deeply")

    def test_a_list_in_itself_is_refused(self, tmp_path):
        refuse(write(tmp_path / "a.pt", b"\x80\x02]q\x00h\x00a."), "nested too deeply")

    def test_a_record_in_itself_is_refused(self, tmp_path):
        data = name("overcomplete.A") + b")\x81q\x00}" + text("a") + b"h\x00sb"
        refuse(write(tmp_path / "a.pt", b"\x80\x02" + data + b"."), "nested too deeply")

    def test_a_deep_tuple_for_a_key_is_refused(self, tmp_path):
        """Python itself would end on hashing it."""
        deep = b")" + b"\x85" * 100_000
        for data in (b"}" + deep + b"Ns", b"\x8f(" + deep + b"\x90", b"(" + deep + b"\x91"):
            refuse(write(tmp_path / "a.pt", b"\x80\x04" + data + b"."), "tuple for a key")

    @pytest.mark.long
    def test_what_repeats_itself_without_end_is_refused(self, tmp_path):
        """Twenty lists, each of a hundred times the one before."""
        stream = io.BytesIO()
        laughs: list[Any] = []
        for _ in range(20):
            laughs = [laughs] * 100
        pickle.dump(laughs, stream, protocol=2)
        path = write(tmp_path / "a.pt", stream.getvalue())
        refuse(path, "repeats itself too often")
        with pytest.raises(InputError, match="repeats itself too often"):  # as a backbone too
            read_tensors(path)

    def test_long_names_that_repeat_themselves_are_refused(self, tmp_path):
        """Each name is of twenty keys, and there are a million of them, of two keys a level."""
        content: Any = torch.ones(1)
        for i in range(18):
            content = {str(i) + "a" * 900: content, str(i) + "b" * 900: content}
        torch.save(content, tmp_path / "a.pt")
        refuse(tmp_path / "a.pt", "repeats itself too often")
        with pytest.raises(InputError, match="repeats itself too often"):
            read_tensors(tmp_path / "a.pt")

    def test_keys_of_storages_are_text(self, tmp_path):
        """Of a list that holds itself many times, no text is made."""
        laughs: list[Any] = []
        for _ in range(20):
            laughs = [laughs] * 100
        parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [laughs])
        (tmp_path / "a.pt").write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
        refuse(tmp_path / "a.pt", "its list of storages is not that of its tensors")
