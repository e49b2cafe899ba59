"""Runs that are killed at random moments and started again end with the artifacts of an undisturbed run.

`make chaos` does it 50 times; here it is done often enough to meet every stage now and then.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from contextlib import suppress
from pathlib import Path

import pytest

from infoscope.runtime import processes
from infoscope.runtime.manifests import Spec
from infoscope.runtime.store import Store, Workspace
from tests.support.quick_processes import get_quick_context
from tests.support.tiny_runs import TINY, read_checksums

N_KILLS = int(os.environ.get("INFOSCOPE_CHAOS", "3"))
KILLS_PER_RUN = 5
Context = multiprocessing.context.ForkServerContext


@pytest.fixture(scope="module")
def fresh() -> Context:
    """Processes that have imported everything and computed nothing: each run begins within milliseconds."""
    context = get_quick_context()
    first = context.Process(target=int)  # it alone waits for the imports, which are no part of a run's length
    first.start()
    first.join(240)
    assert first.exitcode == 0
    return context


def run_tiny(output_dir: Path, log: Path) -> None:
    """What the command line does with `TINY`, in its own process group."""
    from infoscope.config.tree import compose
    from infoscope.pipeline.run import run

    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    run(compose([*TINY, f"output_dir={output_dir}"]))


def test_kill_9_at_random_moments(fresh: Context, tmp_path: Path):
    log = tmp_path / "log"
    start = time.monotonic()
    undisturbed = fresh.Process(target=run_tiny, args=(tmp_path / "undisturbed", log))
    undisturbed.start()
    undisturbed.join(240)
    length_s = time.monotonic() - start
    assert undisturbed.exitcode == 0, log.read_text()
    expected = read_checksums(tmp_path / "undisturbed")
    assert {name.split("/")[0] for name in expected} >= {"tokens", "train_sae", "rank", "score", "features", "probe"}

    rng = random.Random(20261125)
    n_kills = number = 0
    while n_kills < N_KILLS:
        output_dir, number = tmp_path / f"killed_{number}", number + 1
        for _ in range(KILLS_PER_RUN):
            process = fresh.Process(target=run_tiny, args=(output_dir, log))
            process.start()
            process.join(rng.uniform(0.1, 0.6 * length_s))
            if process.exitcode is None:
                with suppress(ProcessLookupError):  # it has just ended
                    os.killpg(process.pid, 9) if os.getpgid(process.pid) == process.pid else process.kill()
                process.join(60)
            if process.exitcode == 0:  # it was done before: the next folder gets the rest of the kills
                break
            assert process.exitcode == -9, log.read_text()
            n_kills += 1
            if n_kills == N_KILLS:
                break
        last = fresh.Process(target=run_tiny, args=(output_dir, log))
        last.start()
        last.join(240)
        assert last.exitcode == 0, log.read_text()
        assert read_checksums(output_dir) == expected
        left = [path for path in (output_dir / "artifacts").glob("*/.*") if path.suffix in (".tmp", ".progress")]
        # Killed after the last artifact of a chunk of probes, before its folder of results was gone: nobody needs it.
        left = [
            path for path in left if {file.name for file in path.glob("*/*")} - {"results.pt"} or not [*path.iterdir()]
        ]
        assert not left, "an artifact that was finished in the end leaves nothing behind"


RACED = Spec("rank", "raced", {"by": "eight"})


def race(root: Path, barrier: multiprocessing.synchronize.Barrier) -> None:
    """Ask for one artifact at the same moment as everybody else, and for some of several."""

    def build(work: Workspace) -> None:
        (root / "built" / f"raced-{os.getpid()}").touch()
        (work.folder / "by.txt").write_text(str(os.getpid()))

    store = Store(root / "artifacts")
    specs = [Spec("probe", "one_of_many", {"n": n}) for n in range(12)]
    barrier.wait(60)
    assert store.get(RACED, build).read_json("by.txt")
    while True:
        with store.claim(specs) as claimed:
            if not claimed:
                break
            for spec in specs:
                if spec.hash in claimed:
                    (root / "built" / f"{spec.key['n']}-{os.getpid()}").touch()
                    with processes.alone():
                        store.get(spec, build_nothing)


def build_nothing(work: Workspace) -> None:
    """An artifact without files of its own."""


def test_eight_processes_race_for_the_same_artifacts(fresh: Context, tmp_path: Path):
    (tmp_path / "built").mkdir()
    barrier = fresh.Barrier(8)
    started = [fresh.Process(target=race, args=(tmp_path, barrier)) for _ in range(8)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    built = sorted(path.name.split("-")[0] for path in (tmp_path / "built").iterdir())
    assert built == sorted(["raced", *map(str, range(12))]), "each is built once, whoever builds it"
    assert len(list((tmp_path / "artifacts").glob("*/*/manifest.json"))) == 13
