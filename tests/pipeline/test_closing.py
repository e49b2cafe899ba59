"""What a stage prints at its end, when all was there; and the page that it leaves, if it is a part of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infoscope import registry
from infoscope.pipeline.context import Context
from infoscope.report.tables import MISSING, Table
from infoscope.runtime.store import Workspace
from infoscope.scope.scores import Scores
from infoscope.stages.publish import Published
from infoscope.stages.train_clip import TrainClip
from tests.support.pipeline_samples import (
    Recorder,
    copy_run,
    draw_without_saving,
    find_folder,
    finish_tiny_run,
    make_tiny_config,
    run_tiny,
)


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything exists."""
    return copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path_factory.mktemp("closing") / "run")


def run_again(output_dir: Path, stage: str) -> str:
    """Run a stage for which everything exists, and return what it printed."""
    recorder = run_tiny(output_dir, f"stage={stage}")
    assert not recorder.stages("built")
    assert MISSING not in recorder.text
    return recorder.text


def read_json(output_dir: Path, stage: str, name: str, of: str = "") -> Any:
    return json.loads((find_folder(output_dir, stage, of) / name).read_text())


def test_an_sae_ends_with_its_metrics(output_dir: Path) -> None:
    printed = run_again(output_dir, "train_sae")
    metrics = read_json(output_dir, "train_sae", "metrics.json")
    assert f"| FVU, unexplained share of variance | {metrics['fvu']:.4f} |" in printed
    assert f"| L0, active features per token | {metrics['l0']:.1f} |" in printed
    assert f"| silent on the SAE's held-out tokens (%) | {100 * metrics['dead_share']:.1f} |" in printed


def test_a_ranking_ends_with_what_was_ranked_and_is_silent(output_dir: Path) -> None:
    printed = run_again(output_dir, "rank")
    folder = find_folder(output_dir, "rank")
    silent = int((np.load(folder / "firing_rate.npy") == 0).sum())
    assert "| images | 40 |" in printed
    assert f"| silent (never fire on these images) | {silent} |" in printed
    mass = np.sort(np.load(folder / "mean_act.npy"))[::-1]
    (line,) = [line for line in printed.splitlines() if line.startswith("| latents with half of the mass |")]
    n_half = int(line.split("|")[2])
    assert mass[:n_half].sum() >= mass.sum() / 2 > mass[: n_half - 1].sum()


def test_scores_end_with_groups_quantiles_and_chance(output_dir: Path) -> None:
    printed = run_again(output_dir, "score")
    cds = Scores.load(find_folder(output_dir, "score")).cds(2).values
    for heading, value in {
        "scored": str(np.isfinite(cds).sum()),
        "high-scope (CDS > gamma)": str((cds > 0.1).sum()),
        "mean": f"{np.nanmean(cds):.3f}",
        "a tenth lies above": f"{np.nanquantile(cds, 0.9):.3f}",
    }.items():
        assert f"| {heading} | {value} |" in printed
    assert "chance, mean" in printed


def test_probes_end_with_the_removal_table(output_dir: Path) -> None:
    printed = run_again(output_dir, "probe")
    for name, label in {"original": "original tokens", "error_preserving_without_high": "without high-scope"}.items():
        metrics = next(
            result["metrics"]
            for result in map(
                json.loads, (file.read_text() for file in output_dir.glob("artifacts/probe/*/result.json"))
            )
            if result["variant"]["name"] == name
        )
        (line,) = [line for line in printed.splitlines() if line.startswith(f"| {label} |")]
        assert f"| {100 * metrics['segmentation']['miou']:.1f} |" in line
        assert f"| {metrics['depth']['rmse_m']:.3f} |" in line
    labels = ["random, mass of high", "without low-scope", "all removed"]
    assert all(printed.count(f"| {label} |") == 1 for label in labels)
    assert "reconstruct" not in printed.split("**Feature removal**")[1].split("Error-preserving")[0]


@pytest.mark.parametrize("stage", ["outliers", "confounds", "describe", "effects", "cross"])
def test_a_part_of_the_report_is_a_page_of_its_own(
    stage: str, output_dir: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands in the report, and with all that it found printed."""
    draw_without_saving(monkeypatch)
    made, whole = run_tiny(output_dir, f"stage={stage}"), finish_tiny_run(tmp_path_factory)[1].files
    assert made.stages("built") == ["report"]
    assert made.files is not None
    assert whole is not None
    page = made.files.page.read_text()
    section = page[page.index("## ") : page.index("\n\nKey numbers")]
    assert section in whole.page.read_text()
    printed = " ".join(made.text.split())
    _, *findings = section[: section.index("\n\n**")].split("\n\n")
    assert len(findings) > 1
    assert all(" ".join(finding.split()) in printed for finding in findings)
    assert str(made.files.page) in printed
    assert made.files.tables
    for files in (*made.files.tables.values(), *made.files.figures.values()):
        assert all(f"({path.relative_to(made.files.folder)})" in section for path in files.values())
    assert not run_tiny(output_dir, f"stage={stage}").stages("built")
    assert "report" in run_tiny(output_dir, f"stage={stage}", "partition.gamma=0.3").stages("built")


def test_a_clip_ends_with_its_retrieval(tmp_path: Path) -> None:
    ctx = Context(make_tiny_config(tmp_path, "model=scenes_clip", "model.pretrained=train_clip"), Recorder())

    def build(work: Workspace) -> None:
        held_out = {"image_to_text_top1": 0.875, "text_to_image_top1": 0.5, "among": 128.0}
        (work.folder / "training.json").write_text(json.dumps({"held_out": held_out}))

    ctx.store.get(TrainClip.at(ctx).spec, build)
    (table,) = TrainClip().closing(ctx)
    assert isinstance(table, Table)
    assert "| 87.5 | 50.0 | 128 |" in table.to_markdown()


def test_every_stage_without_a_page_ends_with_a_table(output_dir: Path) -> None:
    apart = ("train_clip", "import_sae", "explore")  # others test these
    for entry in registry.STAGES:
        if not issubclass(entry.load(), Published) and entry.name not in apart:
            recorder = run_tiny(output_dir, f"stage={entry.name}")
            assert not recorder.stages("built")
            assert "| ---: |" in recorder.text


def test_several_seeds_have_a_mean(output_dir: Path, tmp_path: Path) -> None:
    run = copy_run(output_dir, tmp_path / "run")
    printed = run_tiny(run, "stage=train_sae", "seeds=[0,1]").text
    values = [read_json(run, "train_sae", "metrics.json", f"seed{seed}")["fvu"] for seed in (0, 1)]
    (line,) = [line for line in printed.splitlines() if line.startswith("| FVU")]
    assert f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" in line
