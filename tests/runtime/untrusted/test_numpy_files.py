"""numpy's own files: arrays of numbers are read, objects and false headers are not."""

from __future__ import annotations

import copy
import io
import zipfile

import numpy as np
import pytest
import torch

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted.numpy_files import read_npy, read_npz

A = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("array", [A, np.asfortranarray(A), A.astype(">f8"), A.astype(np.int16), A[0, 0], A[:0], A > 3])
def test_arrays_of_numbers(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", a=array, b=A)
    np.savez_compressed(tmp_path / "b.npz", a=array)
    found = [read_npy(tmp_path / "a.npy"), read_npz(tmp_path / "a.npz")["a"], read_npz(tmp_path / "b.npz")["a"]]
    for tensor in found:
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert list(read_npz(tmp_path / "a.npz")) == ["a", "b"]


def make_npy(array=A):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        make_npy()[:-1],
        make_npy() + b"x",
        make_npy(np.array([{}, "a"], dtype=object)),
        make_npy(np.array(["a", "b"])),
        make_npy().replace(b"(3, 4)", b"(9, 4)"),
        make_npy().replace(b"(3, 4), }      ", b"(3, 4 << 40), }"),
        b"PK\x03\x04 not a zip",
    ],
)
def test_anything_else_is_refused(tmp_path, data):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.npy"):
        read_npy(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(InputError, match=r"a\.npz"):
        read_npz(tmp_path / "a.npz")


FEW = np.random.default_rng(0).integers(0, 4, 10**6).astype(np.float32)  # two bits of each 32 say something


@pytest.mark.parametrize("arrays", [[np.zeros(10**6, dtype=np.float32)], [FEW], [FEW[: 10**5]] * 20])
def test_what_would_fill_the_memory_is_not_unpacked(tmp_path, arrays):
    np.savez_compressed(tmp_path / "a.npz", *arrays)
    with pytest.raises(InputError, match=r"bytes are compressed to .* in it, more than weights can be"):
        read_npz(tmp_path / "a.npz")


def test_members_of_the_same_bytes_count_each(tmp_path):
    """Many entries of a directory may point to one member."""
    file = tmp_path / "a.npz"
    np.savez(file, a=A.repeat(10_000))
    with zipfile.ZipFile(file, "a") as archive:
        for i in range(9):
            again = copy.copy(archive.infolist()[0])
            again.filename = f"a{i}.npy"
            archive.filelist.append(again)
        archive._didModify = True
    with pytest.raises(InputError, match="compressed"):
        read_npz(file)


def test_weights_of_16_bits_in_32_are_unpacked(tmp_path):
    weights = torch.randn(500, 1000, generator=torch.Generator().manual_seed(0)).bfloat16().float().numpy()
    np.savez_compressed(tmp_path / "a.npz", W=weights, b=np.zeros(1000, dtype=np.float32))
    np.testing.assert_array_equal(read_npz(tmp_path / "a.npz")["W"].numpy(), weights)


@pytest.mark.parametrize("array", [A, np.asfortranarray(A)])
def test_an_array_is_ours_to_change(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    found = read_npy(tmp_path / "a.npy")
    assert found.mul_(2).numpy().sum() == 2 * A.sum()
