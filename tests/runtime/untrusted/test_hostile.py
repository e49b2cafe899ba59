"""Hostile files: whatever a pickle asks for, nothing is called, imported or set, and no memory is taken on its word."""

from __future__ import annotations

import copy
import io
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted import Record, read_checkpoint
from infoscope.runtime.untrusted.tensors import read_tensors
from tests.support.hostile import KNOWN, STORAGE, name, refuse, tensor, text, write


class Call:
    """An object whose unpickling calls something."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture(autouse=True)
def no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("PWNED").exists()


PWN = (os.system, "touch PWNED")
COMMAND = pickle.dumps(Call(*PWN), protocol=2)[2:-1]


def test_a_pickle_as_here_would_indeed_run(monkeypatch):
    pickle.loads(b"\x80\x02" + COMMAND + b".")
    assert Path("PWNED").exists()
    Path("PWNED").unlink()


NESTED: dict[str, bytes] = {
    "alone": COMMAND,
    "in a dict": b"}" + text("cfg") + COMMAND + b"s",
    "as a key": b"}" + COMMAND + text("cfg") + b"s",
    "in a list": b"]" + COMMAND + b"a",
    "as the state of an object": name("src.sae_training.config.Config") + b")\x81" + COMMAND + b"b",
    "in the state of an object": name("src.sae_training.config.Config") + b")\x81}" + text("a") + COMMAND + b"sb",
    "as the arguments of an object": name("src.sae_training.config.Config") + b"(" + COMMAND + b"tR",
    "in the state of a module": name("torch.nn.modules.linear.Linear") + b")\x81}" + text("_buffers") + COMMAND + b"sb",
    "in a storage": b"(" + text("storage") + COMMAND + text("0") + text("cpu") + b"K\x04tQ",
    "for a storage": tensor(storage=COMMAND),
    "for a storage's key": b"(" + text("storage") + name("torch.FloatStorage") + COMMAND + text("cpu") + b"K\x04tQ",
    "as a storage's id": COMMAND + b"Q",
    "in a device": name("torch.device") + COMMAND + b"\x85R",
    "in a dtype": name("numpy.dtype") + COMMAND + b"\x85R",
    "in a parameter": name("torch._utils._rebuild_parameter") + b"(" + COMMAND + b"\x88N" + b"tR",
    "in a subclass": name("torch._tensor._rebuild_from_type_v2") + b"(" + name("posix.system") + b"N)}tR",
    "in the order of a dict": name("collections.OrderedDict") + b"(" + COMMAND + b"tR",
    "as an old instance": b"(" + text("touch PWNED") + b"iposix\nsystem\n",
    "as an old object": b"(" + name("posix.system") + text("touch PWNED") + b"o",
    "with options": name("posix.system") + text("touch PWNED") + b"\x85}\x92",
    "by its parts": text("posix") + text("system") + b"\x93" + text("touch PWNED") + b"\x85R",
}


@pytest.mark.parametrize("where", NESTED)
def test_a_command_is_refused_wherever_it_stands(tmp_path, where):
    path = write(tmp_path / "evil.pt", b"\x80\x04" + NESTED[where] + b".")
    refuse(path, r"it asks for posix\.system, which runs commands: do not trust this file")
    with pytest.raises(InputError, match=r"posix\.system"):
        read_tensors(path)


NAMES = [
    *("builtins.eval", "builtins.exec", "builtins.getattr", "builtins.__import__", "__builtin__.eval", "nt.system"),
    *("subprocess.Popen", "importlib.import_module", "pickle.loads", "_pickle.loads", "sys.modules", "socket.socket"),
    *(
        "torch.load",
        "torch.storage._load_from_bytes",
        "torch.hub.load",
        "torch.jit.load",
        "torch._utils._import_dotted_name",
    ),
    *("functools.partial", "operator.attrgetter", "copyreg._reconstructor", "copyreg.__newobj__", "codecs.decode"),
    *("numpy.load", "numpy.ndarray", "numpy.core.multiarray._reconstruct", "numpy.testing._private.utils.runstring"),
    *(
        "builtins.list",
        "builtins.object",
        "torch.nn.parameter.Parameter",
        "Tensor",
        "overcomplete_evil.x",
        "xsrc.sae_training.a",
    ),
]


@pytest.mark.parametrize("full", NAMES)
def test_a_name_that_is_not_known_is_refused_by_name(tmp_path, full):
    named = full.replace("__builtin__", "builtins").replace(".", r"\.")
    for call in (b"", text("touch PWNED") + b"\x85R", b")\x81", text("touch PWNED") + b"\x85\x81"):
        refuse(write(tmp_path / "evil.pt", b"\x80\x02" + name(full) + call + b"."), f"{named}, which (is not|runs)")


def test_known_names_become_records_and_nothing_more(tmp_path):
    """Even where the name goes on to a command, or what is called is a function."""
    for full in ("overcomplete.os.system", "torch.nn.modules.module.os.system", "src.sae_training.eval"):
        data = b"\x80\x04" + name(full) + text("touch PWNED") + b"\x85R."
        content, _, pickled = read_checkpoint(write(tmp_path / "a.pt", data), KNOWN)
        assert isinstance(content, Record)
        assert (content.name, content.args, content.state) == (full, ("touch PWNED",), None)
        assert pickled == (full,)
    data = b"\x80\x04" + text("overcomplete.sae") + text("os.system") + b"\x93" + text("touch PWNED") + b"\x85R."
    assert read_checkpoint(write(tmp_path / "a.pt", data), KNOWN).content.name == "overcomplete.sae.os.system"


def test_a_record_cannot_be_called_or_become_another(tmp_path):
    made = name("overcomplete.A") + text("touch PWNED") + b"\x85R"
    for more in (b")R", b"}b)R", b"(" + text("x") + text("y") + b"u)R"):  # called again, with a state, with items
        content = read_checkpoint(write(tmp_path / "a.pt", b"\x80\x02" + made + more + b"."), KNOWN).content
        assert isinstance(content, Record)
        assert content.name == "overcomplete.A"


@pytest.mark.parametrize(
    "value", [np.array([1, {}], dtype=object)[1:].item, np.str_("a"), np.datetime64(1, "s"), np.complex128(1)]
)
def test_numpy_objects_are_refused(tmp_path, value):
    torch.save({"a": value}, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", r"builtins\.getattr|no number|numpy\S*, which is not loaded")


def test_a_pickle_inside_a_numpy_scalar_stays_bytes(tmp_path):
    dtype = name("numpy.dtype") + text("O8") + b"\x85R"
    inner = b"\x80\x02" + COMMAND + b"."
    data = name("numpy._core.multiarray.scalar") + dtype + b"C" + bytes([len(inner)]) + inner + b"\x86R"
    refuse(write(tmp_path / "a.pt", b"\x80\x04" + data + b"."), "numpy object that is no number")


@pytest.mark.parametrize(
    "number", [np.float64(2.5), np.float32(-1), np.float16(0.5), np.int64(-7), np.uint8(9), np.bool_(True)]
)
def test_numbers_of_numpy_are_numbers(tmp_path, number):
    torch.save({"a": number}, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt").content["a"]
    assert found == number
    assert type(found) is type(number.item())


STEPS: dict[str, tuple[bytes, str]] = {
    "the state of a list": (b"]}b", "sets the state of a list"),
    "the state of a tensor": (tensor() + b"(" + STORAGE + b"K\x00))tb", "sets the state of a Tensor"),
    "the state of a storage": (STORAGE + b"}b", "sets the state of"),
    "an item of a tensor": (tensor() + b"K\x00G" + bytes(8) + b"s", "sets items of a Tensor"),
    "an item of a storage": (STORAGE + b"K\x00K\x01s", "sets items of"),
    "more of a tensor": (tensor() + b"K\x01a", "adds to a Tensor"),
    "a call of a tensor": (tensor() + b")R", "calls a Tensor"),
    "a call of a dtype": (name("torch.float32") + b")R", "calls a dtype"),
    "a call of text": (text("os.system") + b")R", "calls a str"),
    "a registered extension": (b"\x82\x01", "damaged"),
    "a buffer of others": (b"\x97", "damaged"),
    "a bytearray of any length": (b"\x96" + struct.pack("<Q", 2**40), "damaged"),
    "text of any length": (b"\x8d" + struct.pack("<Q", 2**40) + b"a", "damaged"),
    "bytes of any length": (b"\x8e" + struct.pack("<Q", 2**62) + b"a", "damaged"),
    "a number of any length": (b"\x8b" + struct.pack("<i", 2**31 - 1) + b"a", "damaged"),
    "a text number of any length": (b"L" + b"9" * 100_000 + b"L\n", "damaged"),
    "a frame of any length": (b"\x95" + struct.pack("<Q", 2**63), "damaged"),
    "memory of any size": (b"Nr" + struct.pack("<I", 2**32 - 1) + b"j" + struct.pack("<I", 7), "damaged"),
    "nothing on the stack": (b"R", "damaged"),
    "a list for a key": (b"}]K\x01s", "list for a key"),
    "a tensor for a key": (b"}" + tensor() + b"K\x01s", "Tensor for a key"),
    "a storage without tensor": (STORAGE, "Storage, which is not loaded"),
    "a size that is none": (name("torch.Size") + b"]" + text("a") + b"a\x85R", "size that is none"),
    "another encoding": (name("_codecs.encode") + text("a") + text("rot13") + b"\x86R", "encoding that is not known"),
    "a parameter of a record": (
        name("torch._utils._rebuild_parameter") + b"(" + name("overcomplete.A") + b"\x88NtR",
        "makes a parameter of a",
    ),
    "a tensor of a record": (tensor(storage=name("overcomplete.A")), "makes a tensor of a Record, not of a storage"),
    "a tensor of a list": (tensor(storage=b"]"), "makes a tensor of a list"),
    "an unknown storage": (b"(" + text("module") + b"NNNNtQ", "something else than a storage"),
    "a storage of nothing": (b"NQ", "damaged"),
    "a storage whose key is a list": (STORAGE.replace(text("0"), b"]"), "something else than a storage"),
    "two objects": (b"NN", "holds more than one object"),
    "an open mark": (b"N(N", "holds more than one object"),
    "a mark below": (b"(N", "holds more than one object"),
    "a long name": (text("overcomplete." + "a" * 100) + text("a" * 100) + b"\x93", "a name of more than 200 letters"),
    "a long key": (b"}" + text("a" * 1001) + b"Ns", "a key of more than 1,000 letters"),
    "a key of many parts": (b"}(" + b"N" * 1001 + b"tNs", "a key of more than 1,000 letters or parts"),
    "a tensor of many sides": (tensor((1,) * 65, (1,) * 65), "impossible sides"),
}


@pytest.mark.parametrize("what", STEPS)
def test_steps_that_no_checkpoint_needs_are_refused(tmp_path, what):
    step, words = STEPS[what]
    began = time.process_time()
    refuse(write(tmp_path / "a.pt", b"\x80\x05" + step + b"."), words)
    assert time.process_time() - began < 5


class TestTensors:
    def test_views_in_their_storage_are_read(self, tmp_path):
        values = struct.pack("<4f", 0, 1, 2, 3)
        for size, stride, offset in (
            ((2, 2), (1, 2), 0),
            ((2,), (1,), 2),
            ((3, 2), (0, 1), 1),
            ((0, 5), (1, 1), 0),
            ((), (), 3),
        ):
            path = write(tmp_path / "a.pt", b"\x80\x02" + tensor(size, stride, offset) + b".", {"0": values})
            expected = torch.arange(4.0).as_strided(size, stride, offset)
            assert torch.equal(read_checkpoint(path).content, expected)

    @pytest.mark.parametrize(
        ("size", "stride", "offset"),
        [
            *(((5,), (1,), 0), ((4,), (1,), 1), ((2, 2), (1, 3), 0), ((2,), (2**39,), 0), ((2**39,), (1,), 0)),
            *(
                ((2**39,), (0,), 0),
                ((2**21,), (0,), 0),
                ((2**20, 2**20), (0, 0), 0),
                ((1,), (1,), 2**50),
                ((0,), (1,), 5),
            ),
            *(((4,), (-1,), 3), ((-4,), (1,), 0), ((4,), (1,), -1), ((4,), (1, 1), 0), ((2**70, 0), (1, 1), 0)),
            *(((4.0,), (1,), 0), ((True,), (1,), 0), (("a",), (1,), 0)),
        ],
    )
    def test_views_outside_of_it_and_absurd_shapes_are_refused(self, tmp_path, size, stride, offset):
        path = write(tmp_path / "a.pt", b"\x80\x02" + tensor(size, stride, offset) + b".")
        refuse(path, "larger than its storage of 4 values|impossible sides, steps or offset")

    @pytest.mark.parametrize("n_bytes", [0, 12, 15, 17, 32])
    def test_a_storage_of_another_length_than_its_tensors_is_refused(self, tmp_path, n_bytes):
        refuse(
            write(tmp_path / "a.pt", b"\x80\x02" + tensor() + b".", {"0": bytes(n_bytes)}),
            "storage 0 does not have the 16 bytes",
        )

    def test_a_storage_that_is_not_there_is_refused(self, tmp_path):
        refuse(write(tmp_path / "a.pt", b"\x80\x02" + tensor() + b".", {"1": bytes(16)}), "storage 0 does not have")
        outside = STORAGE.replace(text("0"), text("../../b"))
        refuse(
            write(tmp_path / "a.pt", b"\x80\x02" + tensor(storage=outside) + b"."), r"storage \.\./\.\./b does not have"
        )

    def test_a_storage_of_two_dtypes_has_one_length(self, tmp_path):
        half = STORAGE.replace(b"FloatStorage", b"HalfStorage")
        refuse(
            write(tmp_path / "a.pt", b"\x80\x02(" + tensor() + tensor(storage=half) + b"t."),
            "the 8 bytes of its tensors",
        )


class TestArchives:
    DATA = b"\x80\x02" + tensor() + b"."

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_members_of_one_name_are_refused(self, tmp_path):
        refuse(write(tmp_path / "a.pt", self.DATA, **{"a/data/0": bytes(16)}), "have the same name")

    @pytest.mark.parametrize("outside", ["../b", "a/../../b", "/etc/b"])
    def test_members_outside_are_refused(self, tmp_path, outside):
        refuse(write(tmp_path / "a.pt", self.DATA, **{outside: b"x"}), "one outside of it: do not trust")

    def test_two_pickles_are_refused(self, tmp_path):
        refuse(write(tmp_path / "a.pt", self.DATA, **{"b/data.pkl": self.DATA}), "it is a zip archive of")

    def test_compressed_tensors_are_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", self.DATA)
            archive.writestr("a/data/0", bytes(16))
        refuse(tmp_path / "a.pt", "its tensors are compressed: unpack the archive, and zip it again without")

    def test_a_compressed_pickle_is_read_as_torch_reads_it(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr("a/data.pkl", self.DATA, zipfile.ZIP_DEFLATED)
            archive.writestr("a/version", "3\n")
            archive.writestr("a/data/0", struct.pack("<4f", 0, 1, 2, 3))
        expected = torch.load(tmp_path / "a.pt", weights_only=True)
        assert torch.equal(read_checkpoint(tmp_path / "a.pt").content, expected)

    def test_a_pickle_that_unpacks_to_gigabytes_is_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", bytes(2**26 + 1))
        refuse(tmp_path / "a.pt", "67,108,865 bytes beside the tensors")

    def test_members_that_share_their_bytes_are_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr("a/data.pkl", self.DATA)
            archive.writestr("a/data/0", bytes(1000))
            for i in range(1, 9):
                again = copy.copy(archive.filelist[-1])
                again.filename = f"a/data/{i}"
                archive.filelist.append(again)
        refuse(tmp_path / "a.pt", "overlap")

    def test_another_byte_order_is_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr("a/data.pkl", self.DATA)
            archive.writestr("a/byteorder", "big")
        refuse(tmp_path / "a.pt", "another byte order")


class TestLegacy:
    @pytest.fixture
    def data(self) -> bytes:
        stream = io.BytesIO()
        torch.save({"a": torch.arange(4.0), "b": torch.ones(3)}, stream, _use_new_zipfile_serialization=False)
        return stream.getvalue()

    @pytest.mark.parametrize("is_zip", [True, False])
    def test_a_command_is_refused(self, tmp_path, is_zip):
        torch.save({"cfg": Call(*PWN), "a": torch.ones(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
        refuse(tmp_path / "a.pt", r"it asks for posix\.system")

    def test_a_command_in_any_of_its_pickles_is_refused(self, tmp_path, data):
        parts = [
            pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])
        ]
        (tmp_path / "a.pt").write_bytes(b"".join(parts))
        assert read_checkpoint(tmp_path / "a.pt").content == {}
        for i in range(1, 5):
            changed = [*parts[:i], b"\x80\x02" + COMMAND + b".", *parts[i + 1 :]]
            (tmp_path / "a.pt").write_bytes(b"".join(changed))
            refuse(tmp_path / "a.pt", r"it asks for posix\.system")

    def test_storages_that_the_file_is_too_short_for_are_refused(self, tmp_path, data):
        for n_values in (2**30, 2**31 - 1):
            changed = data.replace(b"K\x04N", b"J" + struct.pack("<i", n_values) + b"N", 1)
            assert changed != data
            (tmp_path / "a.pt").write_bytes(changed)
            refuse(tmp_path / "a.pt", "its tensors are of .* bytes at least")

    def test_values_of_another_count_are_refused(self, tmp_path, data):
        values = struct.pack("<q4f", 4, 0, 1, 2, 3)
        assert data.count(values) == 1
        (tmp_path / "a.pt").write_bytes(data.replace(values, struct.pack("<q4f", 3, 0, 1, 2, 3)))
        refuse(tmp_path / "a.pt", "another size than its tensors")
