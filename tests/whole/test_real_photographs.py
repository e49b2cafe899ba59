"""Real photographs from a folder, through every stage that needs no labels. Skipped unless INFOSCOPE_SAMPLES is set.

INFOSCOPE_SAMPLES names a folder that holds `imagenet/val/<class>/*.JPEG`. A subset is a folder of links.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from infoscope.config.tree import compose
from infoscope.pipeline.run import run
from infoscope.report.page import ReportFiles
from infoscope.runtime.progress import Display
from infoscope.scope.scores import Scores
from infoscope.stages.probe.paper import PAPER_TITLES
from infoscope.stages.probe.tables import PAPER
from infoscope.stages.report.stage import NO_PROBES
from infoscope.vision.tokens.extract import TokenCache
from tests.support.pipeline_samples import coarse_figures

N_PHOTOGRAPHS, K_CDS = 60, 4
SMALL = [
    "data=image_folder",
    "data.test_share=0",
    "seeds=[0]",
    "sae.expansion_factor=2",
    "sae.n_tokens=40000",
    "sae.batch_tokens=1024",
    "sae.eval_tokens=1024",
    f"scope.k_cds={K_CDS}",
    f"scope.k_max={K_CDS}",
    "logger=none",
    "trainer.progress=false",
    "trainer.device=cpu",
]


@pytest.fixture(scope="module", autouse=True)
def _saved_figures(_unsaved_figures: None) -> Iterator[None]:
    """Here the files of figures are looked at, so they are saved."""
    with coarse_figures():
        yield


@pytest.fixture(scope="module")
def photographs() -> list[Path]:
    samples = os.environ.get("INFOSCOPE_SAMPLES")
    if not samples:
        pytest.skip("INFOSCOPE_SAMPLES is not set")
    found = sorted((Path(samples) / "imagenet" / "val").rglob("*.JPEG"))
    assert found, f"{samples} holds no imagenet/val/*/*.JPEG"
    return found


def make_subset(photographs: list[Path], n: int, folder: Path) -> Path:
    """Return a folder of links to n photographs, spread over the classes, in folders by class."""
    for i in np.linspace(0, len(photographs) - 1, n).astype(int):
        link = folder / photographs[i].parent.name / photographs[i].name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(photographs[i])
    return folder


def run_here(*overrides: str) -> tuple[ReportFiles, str]:
    """Run an experiment in this process; return its report and what the terminal showed."""
    text = io.StringIO()
    threads = torch.get_num_threads()
    try:
        made = run(compose([*SMALL, *overrides]), Display(Console(file=text, width=160), bars=False))
    finally:
        torch.set_num_threads(threads)
    assert made is not None
    return made, text.getvalue()


def find_artifact(output_dir: Path, stage: str) -> Path:
    [folder] = (output_dir / "artifacts" / stage).glob("[!.]*")
    return folder


def check_report(made: ReportFiles, output_dir: Path, n_images: int) -> None:
    """What must hold of every report on unlabelled photographs."""
    page, summary = made.page.read_text(), made.summary.read_text()
    assert NO_PROBES in page
    tables = {"scope", "outlier_emd", "outlier_activation", "confounds", "stability"}
    assert set(made.tables) == tables | {"describe", "describe_levels", "cross", "cross_bands", "levels"}
    assert "removal" not in json.loads(summary)
    for mark in ("2604.05724", PAPER, *PAPER_TITLES.values()):  # the paper's values never stand without their source
        assert mark not in page + summary
    assert f"image_folder, {n_images} training images" in page
    for files in made.tables.values():
        assert {"md", "csv", "tex"} == set(files)
        assert all(path.stat().st_size > 0 for path in files.values())
    with made.tables["scope"]["csv"].open() as file:
        assert len(list(csv.DictReader(file))) >= 1
    assert {"cds_histogram", "examples", "token_norms"} <= set(made.figures)
    assert "removal" not in made.figures
    for files in made.figures.values():
        assert files["png"].read_bytes().startswith(b"\x89PNG")
        assert files["pdf"].read_bytes().startswith(b"%PDF")
    scores = Scores.load(find_artifact(output_dir, "score"))
    cds = scores.cds(K_CDS).values
    assert np.isfinite(cds).any()
    for values in (cds, scores.emd, scores.chance_emd):
        assert np.nanmin(values) >= 0
        assert np.nanmax(values) <= 1


@pytest.fixture(scope="module")
def reported(photographs, tmp_path_factory) -> tuple[ReportFiles, str, Path, Path]:
    """The shipped CLIP on sixty photographs: its report, the terminal, the folder of links, the outputs."""
    root = make_subset(photographs, N_PHOTOGRAPHS, tmp_path_factory.mktemp("photographs"))
    output_dir = tmp_path_factory.mktemp("outputs")
    made, text = run_here(f"data.root={root}", f"output_dir={output_dir}")
    return made, text, root, output_dir


class TestShippedClip:
    def test_the_report_is_whole_and_claims_no_more_than_was_measured(self, reported):
        made, text, _, output_dir = reported
        check_report(made, output_dir, N_PHOTOGRAPHS)
        assert NO_PROBES in " ".join(text.split())

    def test_links_are_followed_and_all_photographs_encoded(self, reported):
        tokens = find_artifact(reported[3], "tokens")
        assert np.load(tokens / "image_index.npy").tolist() == list(range(N_PHOTOGRAPHS))
        assert json.loads((tokens / "skipped.json").read_text()) == {}

    def test_a_second_run_builds_nothing(self, reported):
        _, _, root, output_dir = reported
        _, text = run_here(f"data.root={root}", f"output_dir={output_dir}")
        assert "built" not in text
        assert "reused" in text

    def test_the_same_photographs_elsewhere_are_the_same_data(self, reported, tmp_path):
        """Copies in place of links, at another place: nothing is built anew."""
        _, _, root, output_dir = reported
        for link in root.rglob("*.JPEG"):
            copy = tmp_path / link.relative_to(root)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(link.read_bytes())
        _, text = run_here(f"data.root={tmp_path}", f"output_dir={output_dir}", "stage=report")
        assert "built" not in text

    def test_a_damaged_photograph_is_skipped_and_counted(self, reported, tmp_path):
        root, output_dir = reported[2], tmp_path / "outputs"
        for number, link in enumerate(sorted(root.rglob("*.JPEG"))[:13]):
            data = link.read_bytes()
            (tmp_path / "some").mkdir(exist_ok=True)
            (tmp_path / "some" / link.name).write_bytes(data[: len(data) // 2] if number == 4 else data)
        made, text = run_here(f"data.root={tmp_path / 'some'}", f"output_dir={output_dir}", "data.on_error=skip")
        assert "1 of 13 train images were skipped" in " ".join(text.split())
        assert "1 of 13 files skipped" in made.page.read_text()
        check_report(made, output_dir, 12)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_vit_b16_from_a_local_file(photographs, tmp_path):
    """The whole size: 12 blocks, 14 x 14 patches of 16 px, width 768, weights from a .safetensors file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = open_clip.create_model("ViT-B-16")
    save_file(clip.state_dict(), tmp_path / "b16.safetensors")
    del clip
    root = make_subset(photographs, 24, tmp_path / "photographs")
    made, _ = run_here(
        "model=clip_b16",
        f"model.pretrained={tmp_path / 'b16.safetensors'}",
        "sae.expansion_factor=1",
        "sae.n_tokens=20000",
        f"data.root={root}",
        f"output_dir={tmp_path / 'outputs'}",
    )
    check_report(made, tmp_path / "outputs", 24)
    assert "14 x 14 patches, d_in 768" in made.page.read_text()
    patches = TokenCache(find_artifact(tmp_path / "outputs", "tokens")).patches
    assert patches.shape == (24, 196, 768)
    (tmp_path / "b16.safetensors").unlink()  # 0.6 GB
