"""Probes that are interrupted, or shared by two processes, end with the same bits."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from infoscope.probes import dense, extraction
from infoscope.probes import run as probe_run
from infoscope.probes.config import ProbeConfig, Solver, Task
from infoscope.probes.features import FeatureFolders
from infoscope.probes.heads import ClassificationHeads, VectorBatch
from infoscope.probes.module import ProbeModule, fit_heads
from infoscope.probes.results import AblationResult, load_result, save_result
from infoscope.probes.run import run_probes
from infoscope.runtime import parts, processes
from infoscope.runtime.parts import Checkpoint
from infoscope.sae.edit import EditMode
from infoscope.scope.ablations import Ablation, Role
from tests.support.probe_samples import CLASS_LATENTS, DEPTH_LATENT, LABEL_LATENTS, make_config, make_inputs, mask
from tests.support.quick_processes import quick_sharing

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
KEEP = EditMode.error_preserving
VARIANTS = [
    Ablation("original", KEEP, mask([]), Role.original),
    Ablation("without_class", KEEP, mask(CLASS_LATENTS), Role.group, "high"),
    Ablation("without_labels", KEEP, mask(LABEL_LATENTS), Role.group, "low"),
    Ablation("without_depth", KEEP, mask([DEPTH_LATENT]), Role.control, "low"),
    Ablation("without_all", EditMode.reconstruct, mask(list(range(16))), Role.all),
]
SGD = make_config(variants_per_chunk=3, classification_epochs=3, dense_steps=6)
LBFGS = dataclasses.replace(
    SGD,
    tasks=[Task.classification],
    classification_solver=Solver.lbfgs,
    classification_l2=[1e-2, 1.0, 1e2],
    classification_l2_halvings=1,
)


def shorten_parts() -> None:
    """Let every pass over the few images of a test have several parts, and every loop keep each step."""
    parts.SAVE_EVERY_S, parts.SHARE_OF_SAVING = 0.0, 0
    extraction.PART_IMAGES, extraction._READ_IMAGES, dense.MEASURED_IMAGES = 16, 16, 7


@pytest.fixture(autouse=True)
def _short_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two would wait for each other most of the time
    for where, name in (
        (parts, "SAVE_EVERY_S"),
        (parts, "SHARE_OF_SAVING"),
        (extraction, "PART_IMAGES"),
        (extraction, "_READ_IMAGES"),
        (dense, "MEASURED_IMAGES"),
    ):
        monkeypatch.setattr(where, name, getattr(where, name))  # given back after the test
    shorten_parts()
    yield
    torch.set_num_threads(n_threads)


class Folders(FeatureFolders):
    """Features that are whole or not there, and that go on in a folder."""

    def make(self, names, fill):
        folders = {name: self.root / name for name in names}
        missing = {name: folder for name, folder in folders.items() if not (folder / "whole").exists()}
        progress = self.root / "progress"
        if missing:
            for folder in (*missing.values(), progress):
                folder.mkdir(parents=True, exist_ok=True)
            processes.barrier()
            fill(missing, progress)
            processes.barrier()
            if processes.is_main():
                for folder in missing.values():
                    (folder / "whole").touch()
            processes.barrier()
        return folders


class Stop(Exception):
    """An interruption, at any call of a progress hook."""


def run(config: ProbeConfig, root: Path, stop_at: int | None = None) -> tuple[dict[str, AblationResult], int]:
    """Run what is missing below `root`, where everything is kept; return the results and the calls of progress."""
    n_calls = 0
    finished = {folder.name: load_result(folder) for folder in (root / "results").glob("*")}

    def progress(what: str, done: int, of: int) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == stop_at:
            raise Stop

    def keep(key: str, result: AblationResult) -> None:
        finished[key] = result
        (root / "results" / key).mkdir(parents=True)
        save_result(root / "results" / key, result)

    (root / "features").mkdir(parents=True, exist_ok=True)
    original = finished.get(VARIANTS[0].key(""))
    run_probes(
        [variant for variant in VARIANTS if variant.key("") not in finished],
        make_inputs(),
        config,
        original_heads=original.heads if original else None,
        on_result=keep,
        progress=progress,
        folders=Folders(root / "features"),
        folder=root / "work",
    )
    assert not list((root / "work").glob("*")), "what was kept of finished work is gone"
    return finished, n_calls


def assert_same(found: dict[str, AblationResult], expected: dict[str, AblationResult]) -> None:
    assert found.keys() == expected.keys()
    for key, result in found.items():
        assert result.to_json() == expected[key].to_json()
        for task, maps in result.heads.items():
            for mine, other in zip(maps, expected[key].heads[task], strict=True):
                assert torch.equal(mine, other), f"{task} of {result.variant['name']}"


@pytest.mark.parametrize("config", [SGD, LBFGS], ids=["sgd", "lbfgs"])
def test_probes_interrupted_at_any_moment_end_with_the_same_bits(tmp_path: Path, config: ProbeConfig):
    expected, n_calls = run(config, tmp_path / "undisturbed")
    stops = range(2, n_calls, max(1, n_calls // 9))
    assert len(stops) >= 6
    for stop_at in stops:
        root = tmp_path / f"stopped_at_{stop_at}"
        with pytest.raises(Stop):
            run(config, root, stop_at)
        found, n_again = run(config, root)
        assert_same(found, expected)
        if config is SGD:  # the search for a strength reports what it finds solved too
            assert n_again <= n_calls - stop_at + 4, "what was finished is not done again"


def test_a_chunk_that_is_handed_on_in_part_is_not_trained_in_other_company(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected, n_calls = run(SGD, tmp_path / "undisturbed")
    save, saved = save_result, []

    def save_two(folder: Path, result: AblationResult) -> None:
        if len(saved) == 2:
            raise Stop
        saved.append(folder)
        save(folder, result)

    with monkeypatch.context() as patch:
        patch.setitem(globals(), "save_result", save_two)
        with pytest.raises(Stop):
            run(SGD, tmp_path / "killed")
    (unsaved,) = [folder for folder in (tmp_path / "killed" / "results").iterdir() if folder not in saved]
    unsaved.rmdir()
    found, n_again = run(SGD, tmp_path / "killed")
    assert_same(found, expected)
    assert n_again < n_calls / 2


def test_what_another_job_keeps_may_go_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    others = tmp_path / "work" / "of another job" / "results.pt"
    others.parent.mkdir(parents=True)
    others.write_bytes(b"a chunk")
    load, gone = probe_run.load_state, []

    def load_late(path: Path) -> dict[str, Any]:
        if path == others:
            gone.append(path)
            shutil.rmtree(path.parent)
        return load(path)

    monkeypatch.setattr(probe_run, "load_state", load_late)
    run(SGD, tmp_path)
    assert gone == [others]


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, momentum=0.9), torch.optim.AdamW])
def test_training_goes_on_from_its_checkpoint_bit_for_bit(tmp_path: Path, optimizer: Any):
    generator = torch.Generator().manual_seed(0)
    batches = [
        VectorBatch({"x": torch.randn(2, 8, 5, generator=generator)}, torch.randint(3, (8,), generator=generator))
        for _ in range(12)
    ]

    def iterate(first_step: int) -> Iterator[VectorBatch]:
        return iter(batches[first_step:])

    def stop(first_step: int) -> Iterator[VectorBatch]:
        yield from batches[first_step:7]
        raise Stop

    def train(on: Any, checkpoint: Checkpoint | None) -> dict[str, torch.Tensor]:
        heads = ClassificationHeads("x", 2, 5, 3, [0.1, 1.0])
        module = ProbeModule({"x": heads}, 12, optimizer, n_warmup_steps=4)
        fit_heads(module, on, CPU, checkpoint)
        return module.state_dict()

    expected = train(iterate, None)
    with pytest.raises(Stop):
        train(stop, Checkpoint(tmp_path / "loop.pt"))
    kept = Checkpoint(tmp_path / "loop.pt").load()
    assert kept is not None
    assert 0 < kept["step"] < 8
    found = train(iterate, Checkpoint(tmp_path / "loop.pt"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def run_shared(root: Path) -> None:
    """What each of two processes does."""
    shorten_parts()
    torch.set_num_threads(1)
    results, _ = run(dataclasses.replace(SGD, variants_per_chunk=2), root)
    (root / f"{processes.current().rank}.txt").write_text("\n".join(results))
    processes.barrier()


def test_two_processes_share_the_variants_and_find_what_one_finds(tmp_path: Path):
    (tmp_path / "work").mkdir()
    with quick_sharing(), processes.sharing(2, run_shared, tmp_path / "two"):
        run_shared(tmp_path / "two")
    expected, _ = run(dataclasses.replace(SGD, variants_per_chunk=2), tmp_path / "one")
    mine, others = ((tmp_path / "two" / f"{rank}.txt").read_text().split() for rank in range(2))
    assert sorted(mine + others) == sorted(expected)
    assert len(mine) > 0
    assert len(others) > 0
    found = {folder.name: load_result(folder) for folder in (tmp_path / "two" / "results").iterdir()}
    assert_same(found, expected)
