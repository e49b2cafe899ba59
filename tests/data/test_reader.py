"""Images in batches, read ahead."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from contextlib import nullcontext
from itertools import chain, islice

import numpy as np
import pytest
import torch

from infoscope.data import reader as module
from infoscope.data.config import RAISE, SKIP
from infoscope.data.images import ImageError, ImageSet
from infoscope.data.reader import iterate_images, open_images
from infoscope.runtime.errors import InputError
from infoscope.runtime.profile import Kind, recording
from infoscope.runtime.ring import Ring


class Numbered(ImageSet):
    """Image i is filled with i; some cannot be read."""

    def __init__(self, n: int, broken: tuple[int, ...] = ()) -> None:
        super().__init__("train", [f"image-{i:03d}" for i in range(n)])
        self.broken = broken

    @property
    def fingerprint(self):
        return {"n": len(self)}

    def load(self, index, size_px):
        if index in self.broken:
            raise ImageError(self.image_ids[index], "it is broken")
        return np.full((size_px, size_px, 3), index, np.uint8)


def indices(batches) -> list[list[int]]:
    return [batch.index.tolist() for batch in batches]


def test_the_last_incomplete_batch_is_kept():
    batches = list(iterate_images(Numbered(10), 8, 4))
    assert indices(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all(batch.images.shape == (len(batch.index), 3, 8, 8) for batch in batches)
    assert all(batch.images.dtype == torch.uint8 and batch.index.dtype == torch.int64 for batch in batches)
    assert all((batch.images == batch.index.view(-1, 1, 1, 1)).all() for batch in batches)


def test_images_come_in_the_order_asked_for():
    assert indices(iterate_images(Numbered(10), 8, 2, indices=[7, 3, 3])) == [[7, 3], [3]]
    assert indices(iterate_images(Numbered(10), 8, 2, indices=np.array([9, 0]))) == [[9, 0]]


def test_nothing_asked_for_gives_nothing():
    assert indices(iterate_images(Numbered(10), 8, 2, indices=[])) == []
    assert indices(iterate_images(Numbered(0), 8, 2)) == []


def test_reading_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    list(iterate_images(Numbered(4), 8, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_index_out_of_range_is_a_broken_invariant():
    with pytest.raises(AssertionError):
        next(iterate_images(Numbered(3), 8, 2, indices=[3]))


@pytest.mark.parametrize("n_workers", [0, min(2, os.cpu_count() or 1)])
class TestUnreadableImages:
    def test_skip_leaves_them_out_and_lists_them(self, n_workers):
        image_set = Numbered(11, broken=(0, 4, 5, 6, 7, 9))
        batches = iterate_images(image_set, 8, 4, on_error=SKIP, n_workers=n_workers)
        assert indices(batches) == [[1, 2, 3], [8, 10]]  # the second batch of four is empty: it is not given
        assert list(image_set.skipped) == [f"image-{i:03d}" for i in image_set.broken]
        assert set(image_set.skipped.values()) == {"it is broken"}

    def test_raise_names_the_first(self, n_workers):
        batches = iterate_images(Numbered(11, broken=(5, 6)), 8, 4, on_error=RAISE, n_workers=n_workers)
        assert next(batches).index.tolist() == [0, 1, 2, 3]
        with pytest.raises(ImageError, match=r"image-005 \(it is broken\): .*data.on_error=skip") as caught:
            next(batches)
        assert caught.value.reason == "it is broken"

    def test_what_skipping_has_not_left_out_is_advised_otherwise(self, n_workers):
        image_set = Numbered(11, broken=(5,))
        image_set.on_error = SKIP
        with pytest.raises(ImageError, match=r"image-005 \(it is broken\), which data.on_error=skip has not") as caught:
            list(iterate_images(image_set, 8, 4, on_error=RAISE, n_workers=n_workers))
        assert "set data.on_error=skip" not in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    def test_no_readable_image_at_all_is_an_error(self, n_workers):
        image_set = Numbered(3, broken=(0, 1, 2))
        with pytest.raises(InputError, match=r"none of the 3 .* \(the first, image-000: it is broken\)"):
            list(iterate_images(image_set, 8, 2, on_error=SKIP, n_workers=n_workers))


def join(lists) -> list[int]:
    return list(chain.from_iterable(lists))


def values(batches) -> list[list[int]]:
    """What the pixels say that the images are, which must all be the same in an image."""
    found = []
    for batch in batches:
        firsts = batch.images[:, 0, 0, 0]
        assert (batch.images == firsts.view(-1, 1, 1, 1)).all()
        found.append(firsts.tolist())
    return found


@pytest.mark.parametrize("n_workers", [1, 2, 5])
def test_helpers_that_stay_read_again_and_again(n_workers: int):
    wanted = np.random.default_rng(0).integers(0, 200, 150)
    with open_images(Numbered(200), 8, n_workers=n_workers) as reader:
        assert join(values(reader.read(wanted, 40))) == wanted.tolist()
        pids = {helper.pid for helper in multiprocessing.active_children()}
        assert len(pids) == n_workers
        for batch_size in (1, 7, 40, 100):  # smaller slices of the same slots; the last one needs larger ones
            batches = list(reader.read(wanted, batch_size))
            assert join(values(batches)) == join(indices(batches)) == wanted.tolist()
            assert {len(batch.index) for batch in batches[:-1]} <= {batch_size}
            stayed = pids == {helper.pid for helper in multiprocessing.active_children()}
            assert stayed == (batch_size < 100)
        assert indices(reader.read([], 4)) == []
        assert indices(reader.read([3, 1], 1000)) == [[3, 1]]
    assert not multiprocessing.active_children()


def test_a_reading_that_is_broken_off_leaves_nothing_to_the_next():
    with open_images(Numbered(200), 8, n_workers=2) as reader:
        batches = reader.read(range(100), 10)
        assert indices(islice(batches, 2))[1] == list(range(10, 20))
        batches.close()
        assert not multiprocessing.active_children()
        assert join(values(reader.read(range(150, 200), 10))) == list(range(150, 200))
    assert not multiprocessing.active_children()


def test_what_was_given_stays_as_it_is():
    batches = list(iterate_images(Numbered(200), 8, 4, n_workers=2))  # slots are filled many times meanwhile
    assert join(values(batches)) == list(range(200))
    batches[0].images[:] = 255
    assert values(batches[1:2]) == [[4, 5, 6, 7]]


def test_images_that_cannot_be_read_leave_no_gaps_in_pieces():
    broken = (0, 15, 16, 17, 47, 63, 64, 65, 66, 99)  # pieces hold 16
    image_set = Numbered(100, broken)
    batches = list(iterate_images(image_set, 8, 33, on_error=SKIP, n_workers=2))
    read = [i for i in range(100) if i not in broken]
    assert join(values(batches)) == join(indices(batches)) == read
    assert list(image_set.skipped) == [f"image-{i:03d}" for i in broken]


class Deadly(Numbered):
    def load(self, index, size_px):
        if index in self.broken:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(index, size_px)


def test_a_killed_helper_is_one_sentence():
    found = []
    with pytest.raises(InputError, match=r"was killed \(signal 9.*: set data\.n_workers=0; what was finished is kept"):
        found.extend(batch.index.tolist() for batch in iterate_images(Deadly(40, broken=(23,)), 8, 4, n_workers=2))
    assert found == [list(range(i, i + 4)) for i in range(0, 20, 4)][: len(found)]
    assert not multiprocessing.active_children()


def test_rows_come_through_pipes_where_no_memory_is_shared():
    def fill(index: np.ndarray, out: np.ndarray) -> int:
        out[:] = index[:, None]
        return len(index)

    ring = Ring(fill, (70_000,), 20, 2, is_shared=False)
    found = []
    for rows, said in ring.fill(np.arange(50), 20):
        assert sum(said) == len(rows)
        found += rows[:, -1].tolist()
        ring.release()
    ring.close()
    assert found == list(range(50))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("n_workers", [0, 2])
def test_time_is_that_of_reading(n_workers: int):
    with recording() as profile:
        list(iterate_images(Numbered(100), 64, 10, n_workers=n_workers))
    assert profile.seconds[Kind.reading] > profile.seconds[Kind.copying]
    assert (profile.seconds[Kind.copying] > 0) == (n_workers > 0)


def test_two_readings_at_a_time_are_refused():
    with open_images(Numbered(20), 8, n_workers=1) as reader:
        one, other = reader.read(range(20), 4), reader.read(range(20), 4)
        next(one)
        with pytest.raises(AssertionError, match="one reading at a time"):
            next(other)
        assert indices(one)[0] == [4, 5, 6, 7]


class Device:
    """What `torch.cuda` does for a reader, as far as a CPU can tell: in which order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, registers: bool) -> None:
        self.done: list[str] = []
        for name in ("Event", "stream", "current_stream", "cudart", "device"):
            monkeypatch.setattr(torch.cuda, name, self.give(name))
        monkeypatch.setattr(module, "copy_stream", self.give("copy_stream"))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self.done.append("record_stream"))
        monkeypatch.setattr(torch, "zeros", self.fail)
        self.registers = registers

    def give(self, name: str):
        return lambda *_, **__: nullcontext() if name in ("stream", "device") else self

    def fail(self, *_, **__):
        self.done.append("told of the failure")
        raise RuntimeError("CUDA error")

    def record(self, stream) -> None:
        self.done.append("record")

    def synchronize(self) -> None:
        self.done.append("synchronize")

    def cudaHostRegister(self, address: int, n_bytes: int, flags: int) -> int:
        assert (address % 4096, flags) == (0, 1)
        self.done.append(f"register {n_bytes}")
        return 0 if self.registers else 1

    def cudaHostUnregister(self, address: int) -> None:
        self.done.append("unregister")


@pytest.mark.parametrize("registers", [True, False])
def test_batches_are_copied_ahead_and_slots_wait_for_their_copies(monkeypatch: pytest.MonkeyPatch, registers: bool):
    device = Device(monkeypatch, registers)
    with open_images(Numbered(200, broken=(9, 100)), 8, SKIP, 2) as reader:
        reader._cuda = torch.device("cpu")
        for _ in range(2):
            batches = list(reader.read(range(7, 200), 20))
            assert join(values(batches)) == [i for i in range(7, 200) if i not in (9, 100)]
    n_slots = 2 + 2  # of 20 images, in two pieces each
    first = [f"register {n_slots * 20 * 3 * 8 * 8}"] + ["told of the failure"] * (not registers)
    batch = ["record", "synchronize", "record_stream"]
    reading = ["record", *batch * 9, "synchronize", "record_stream", "synchronize"]
    assert device.done == first + 2 * reading + ["unregister"] * registers

    device.done.clear()
    with open_images(Numbered(200, broken=(33,)), 8, n_workers=2) as reader:
        reader._cuda = torch.device("cpu")
        batches = reader.read(range(200), 4)
        assert indices(islice(batches, 8))[-1] == [28, 29, 30, 31]  # what was read before the error comes before it
        with pytest.raises(ImageError, match="image-033"):
            next(batches)
    assert device.done[-1 - registers :] == ["synchronize"] + ["unregister"] * registers
    assert not multiprocessing.active_children()


@pytest.mark.gpu
@pytest.mark.parametrize("n_workers", [0, 2])
def test_images_come_to_the_device(n_workers: int):
    device, wanted = torch.device("cuda"), list(range(7, 200))
    with open_images(Numbered(200, broken=(9, 100)), 64, SKIP, n_workers, device) as reader:
        for _ in range(2):
            batches = list(reader.read(wanted, 20))  # held, all of them, while others are copied
            assert all(batch.images.is_cuda and not batch.index.is_cuda for batch in batches)
            assert join(values(batches)) == [i for i in wanted if i not in (9, 100)]
    batches = iterate_images(Numbered(200, broken=(33,)), 8, 4, n_workers=n_workers, device=device)
    assert indices(islice(batches, 8))[-1] == [28, 29, 30, 31]  # what was read before the error comes before it
    with pytest.raises(ImageError, match="image-033"):
        next(batches)
