"""Processes that work for this one."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from infoscope.data.images import ImageBatch, ImageError
from infoscope.runtime.errors import InputError
from infoscope.runtime.forks import map_ahead


def make(number: int) -> tuple[int, ImageBatch, np.ndarray]:
    """A result larger than a pipe holds."""
    images = torch.full((4, 3, 100, 100), number, dtype=torch.uint8)
    return os.getpid(), ImageBatch(torch.arange(number), images), np.full(3, number / 7)


@pytest.mark.parametrize(("n_helpers", "n_processes"), [(0, 1), (1, 1), (3, 3), (9, 7)])
def test_results_come_in_order_and_whole(n_helpers: int, n_processes: int):
    found = list(map_ahead(make, range(7), n_helpers, ""))
    assert [int(batch.images[0, 0, 0, 0]) for _, batch, _ in found] == list(range(7))
    for number, (_, batch, array) in enumerate(found):
        assert torch.equal(batch.index, torch.arange(number))
        assert torch.equal(batch.images, make(number)[1].images)
        batch.images[0] = 0  # it is ours to write on
        assert np.array_equal(array, np.full(3, number / 7))
    pids = {pid for pid, _, _ in found}
    assert len(pids) == n_processes
    assert (os.getpid() in pids) == (n_helpers == 0)
    assert not multiprocessing.active_children()


def fail_at(number: int, item: int) -> int:
    if item == number:
        raise ImageError("cat.jpg", "truncated")
    return item


def test_what_fails_is_raised_in_its_turn_and_whole():
    ahead = map_ahead(partial(fail_at, 5), range(100), 2, "")
    assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ImageError, match=r"cat\.jpg \(truncated\)") as failed:
        next(ahead)
    assert failed.value.file == "cat.jpg"
    assert not multiprocessing.active_children()


def die_at(number: int, item: int) -> int:
    if item == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_a_helper_that_is_killed_is_one_sentence():
    with pytest.raises(InputError, match=r"was killed \(signal 9.*: set data\.n_workers=0; what was finished is kept"):
        list(map_ahead(partial(die_at, 3), range(8), 2, "set data.n_workers=0"))
    assert not multiprocessing.active_children()


def test_who_wants_no_more_leaves_no_process_behind():
    ahead = map_ahead(make, range(100), 2, "")
    next(ahead)
    assert len(multiprocessing.active_children()) == 2
    ahead.close()
    assert not multiprocessing.active_children()


def test_no_process_to_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def refuse() -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(InputError, match=r"\(Resource temporarily unavailable\): set data\.n_workers=0\.$"):
        list(map_ahead(make, range(3), 2, "set data.n_workers=0"))


RUN = """
import sys
import numpy as np
from PIL import Image
from pathlib import Path
from infoscope.data.image_folder import ImageFolder
from infoscope.data.reader import iterate_images
from infoscope.data.scenes.scene_set import save_scenes
from infoscope.scope.emd import compute_emd
folder = Path(sys.argv[1])
maps = np.random.default_rng(0).random((9000, 2, 2), dtype=np.float32)
print(len(compute_emd(maps, maps[::-1], n_workers=2)))
(folder / "scenes").mkdir()
save_scenes(folder / "scenes", 0, "train", 65, 32, n_workers=2)
for i in range(24):
    Image.new("RGB", (64, 64), (i, i, i)).save(folder / f"{i}.png")
images = ImageFolder(folder, "train", test_share=0.0)
print(sum(len(batch.index) for batch in iterate_images(images, 224, 8, n_workers=2)))
"""


@pytest.mark.long
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_no_shared_memory_is_needed(tmp_path: Path):
    """64 MB is what a container has by default; here it is a single page."""
    mount = "mount -t tmpfs -o size=4k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", RUN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=240, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["9000", "24"]), done.stderr
