"""Every long pass of the chain, interrupted and shared among processes: the files are the same, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import SingleStage
from infoscope.predictions import run, zero_shot
from infoscope.runtime import parts, processes
from infoscope.runtime.manifests import Artifact
from infoscope.scope import scoring
from infoscope.scope.config import EMDMethod
from infoscope.stages.confounds.stage import Confounds
from infoscope.stages.describe.fidelity import Fidelity
from infoscope.stages.energy import Sample
from infoscope.stages.image_codes import Codes
from infoscope.stages.judge import Judge
from infoscope.stages.outliers.stage import Outliers, OutlierTokens
from infoscope.stages.predict.stage import EmbeddedClasses, Predict
from infoscope.stages.probe.stage import Probe
from infoscope.stages.rank import Rank
from infoscope.stages.score.stage import Score
from infoscope.stages.segment.stage import LabelScreens, Segment
from infoscope.stages.stability.stage import Stability
from infoscope.stages.tokens import Tokens
from tests.support.pipeline_samples import Recorder, copy_run, find_artifacts, make_tiny_config
from tests.support.quick_processes import quick_sharing
from tests.support.slow import fall_behind

BEFORE = ("scenes", "tokens", "train_sae", "outliers")
"""What the passes read, made by other means."""
MADE_BY = {
    stage.kind: stage
    for stage in (
        *(Rank, Score, Outliers, Confounds, EmbeddedClasses, Sample, Predict, Stability),
        *(Codes, Judge, Fidelity, LabelScreens, Segment),
    )
}
ITEMS = {Codes: (0, "train"), Judge: ("train",)}
"""Of stages whose item is not an SAE seed, or nothing."""
PASSES = tuple(MADE_BY)
IN_PARTS = tuple(stage for stage in PASSES if stage != "fidelity")  # which one process measures in one go
PROBES = ("features", "image_means", "probe")
SMALL = (
    "model=scenes_clip",
    "data.n_workers=0",
    "seeds=[0]",
    "sae.n_tokens=2000",
    "scope.n_workers=0",
    "probe.n_draws=1",
    "probe.variants_per_chunk=3",
    "predict.n_shown=2",
    "predict.n_candidates=3",
    "predict.batch_images=4",
    "stability.shifts=[2]",
    "stability.n_solver_latents=1",
    "trainer.n_threads=1",
)


def cut_small() -> dict[tuple[Any, str], Any]:
    """Return parts so small that each of two processes gets some of every pass."""
    return {
        (parts, "PART_IMAGES"): (8, 8),
        (scoring, "PART_PAIRS"): {EMDMethod.exact: 100, EMDMethod.sinkhorn: 2},
        (run, "PART_IMAGES"): 4,
        (zero_shot, "CLASSES_PER_CALL"): 2,
    }


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for (module, name), value in cut_small().items():
        monkeypatch.setattr(module, name, value)


def make_context(folder: Path) -> Context:
    return Context(make_tiny_config(folder, *SMALL), Recorder())


def make(ctx: Context, stage: str) -> Artifact:
    """Make the artifact of a pass, of seed 0 where there is one for each."""
    of = MADE_BY[stage]
    return of.at(ctx, *ITEMS.get(of, () if issubclass(of, SingleStage) else (0,))).get()


def work(folder: Path) -> None:
    """What a process does that was started by another one, and is slower than that."""
    fall_behind()
    for (module, name), value in cut_small().items():
        setattr(module, name, value)
    ctx = make_context(folder)
    for stage in PASSES:
        make(ctx, stage)
    Probe().make(ctx, 0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """The folder of a run by one process, and the parts it saved, by stage."""
    folder, saved = tmp_path_factory.mktemp("undisturbed"), {stage: [] for stage in PASSES}
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), value in cut_small().items():
            patch.setattr(module, name, value)
        ctx = make_context(folder)
        OutlierTokens.at(ctx).get()
        Tokens.at(ctx, "test").get()
        save = parts.save_state
        for stage in PASSES:

            def note(path: Path, state: Any, names: list[str] = saved[stage]) -> None:
                names.append(path.name)
                save(path, state)

            patch.setattr(parts, "save_state", note)
            make(ctx, stage)
        patch.setattr(parts, "save_state", save)
        Probe().make(ctx, 0)
    return folder, saved


def find_files(folder: Path) -> dict[str, Any]:
    """Return the checksums of all files of a run's artifacts but of the configuration, which names the folder."""
    return {
        f"{artifact}/{name}": entry["sha256"]
        for artifact, manifest in find_artifacts(folder).items()
        for name, entry in manifest["files"].items()
        if name != "config.yaml"
    }


def test_two_processes_make_what_one_makes(undisturbed: tuple[Path, dict[str, list[str]]], tmp_path: Path) -> None:
    folder = copy_run(undisturbed[0], tmp_path, but=(*PASSES, *PROBES))
    with quick_sharing(), processes.sharing(2, work, folder):
        ctx = make_context(folder)
        for stage in PASSES:
            made = make(ctx, stage)
            assert made.built
            assert not list(made.folder.parent.glob(".*.progress"))
        Probe().make(ctx, 0)
    assert find_files(folder) == find_files(undisturbed[0])


@pytest.mark.parametrize("stage", IN_PARTS)
def test_an_interrupted_pass_goes_on(
    undisturbed: tuple[Path, dict[str, list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    files, save, kept = undisturbed[1][stage], parts.save_state, []
    assert len(files) > 2
    folder = copy_run(undisturbed[0], tmp_path, but=PASSES[PASSES.index(stage) :])

    def save_some(path: Path, state: Any) -> None:
        if len(kept) == len(files) // 2:
            raise KeyboardInterrupt
        save(path, state)
        kept.append(path.name)

    monkeypatch.setattr(parts, "save_state", save_some)
    with pytest.raises(KeyboardInterrupt):
        make(make_context(folder), stage)
    n_kept = len(kept)
    kept.append("so that the rest is kept too")
    make(make_context(folder), stage)
    assert kept[:n_kept] + kept[n_kept + 1 :] == files
    here = f"{stage}/"
    assert {name: of for name, of in find_files(folder).items() if name.startswith(here)} == {
        name: of for name, of in find_files(undisturbed[0]).items() if name.startswith(here)
    }
