"""A tiny experiment, run once for all tests of the pipeline, and what they need to run it again in another way."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pytest
from filelock import FileLock
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from infoscope import registry
from infoscope.commands.collect.jobs import CollectedJob, read_jobs
from infoscope.commands.collect.opening import ContextFactory
from infoscope.config.sweeps import Sweep
from infoscope.config.tree import Config, compose
from infoscope.pipeline.run import run
from infoscope.report import figure_style, page
from infoscope.report.figure_style import save_figure
from infoscope.report.page import ReportFiles
from infoscope.runtime.job import Job
from infoscope.runtime.manifests import Artifact, Spec
from infoscope.runtime.progress import Advance, Display
from infoscope.runtime.store import Store

N_TRAIN, N_TEST = 40, 16
READ_ONCE = ("image_codes", "judge")
"""What features are described by, and no report reads again."""
ANALYSES = ("outliers", "group_activation", "confounds", *READ_ONCE, "describe", "fidelity", "effects")
STAGES = ("scenes", "tokens", "train_sae", "rank", "score", "sample", "probe", *ANALYSES, "latents", "cross", "report")
FEATURES = ("image_means", "features")
"""What the probes of classification make for themselves, and ask for only when a probe is missing."""
TINY = (
    "debug=tiny",
    "logger=none",
    "trainer.progress=false",
    "trainer.device=cpu",
    "model=planted_registers",
    f"data.n_train={N_TRAIN}",
    f"data.n_test={N_TEST}",
    "data.n_workers=1",
    "sae=topk",
    "sae.expansion_factor=1",
    "sae.k=4",
    "sae.n_tokens=16000",
    "sae.batch_tokens=500",
    "sae.lr=0.001",
    "scope.k_cds=2",
    "partition.gamma=0.1",
    "probe=plain",
    "scope.k_max=3",
    "scope.n_workers=1",
    "probe.classification_epochs=2",
    "probe.classification_lrs=[0.1]",
    "probe.segmentation_lrs=[0.003]",
    "probe.depth_lrs=[0.003]",
    "probe.dense_steps=3",
    "probe.n_dense_train_images=16",
    "probe.n_dense_test_images=8",
)

SGD = ["probe.classification_epochs", "probe.classification_lrs"]
DENSE = ["probe.segmentation_lrs", "probe.depth_lrs", "probe.dense_steps"]
SCENES = ["data.n_train", "data.n_test"]
UNREAD = {
    **dict.fromkeys(
        (
            f"data={kind}"
            for kind in ("image_folder", "class_folders", "imagenet", "ade20k", "nyud", "celeba", "waterbirds")
        ),
        SCENES,
    ),
    "data=captions": [*SCENES, "data.n_workers"],
    "sae=import": [f"sae.{name}" for name in ("expansion_factor", "k", "n_tokens", "batch_tokens", "lr")],
    "sae=relu": ["sae.k"],
    "sae=jumprelu": ["sae.k"],
    "probe.classification_solver=lbfgs": SGD,
    "probe.tasks=[classification]": [*DENSE, "probe.n_dense_train_images", "probe.n_dense_test_images"],
    "probe.tasks=[segmentation]": [*SGD, "probe.depth_lrs"],
    "probe.tasks=[segmentation,depth]": SGD,
}
"""Settings of the tiny experiment that are refused beside others, which do not read them."""


def make_overrides(output_dir: Path, *overrides: str) -> list[str]:
    """Return the command line of the tiny experiment; later values win, and take out what they do not read."""
    chosen: dict[str, str] = {}
    for override in (*TINY, f"output_dir={output_dir}", *overrides):
        key = override.partition("=")[0]
        chosen.pop(key, None)
        for unread in UNREAD.get(override, ["partition.gamma"] if key in ("partition", "partition.rule") else []):
            chosen.pop(unread, None)
        chosen[key] = override
    return list(chosen.values())


def make_tiny_config(output_dir: Path, *overrides: str) -> Config:
    """Return the tiny experiment's configuration."""
    return compose(make_overrides(output_dir, *overrides))


class Recorder(Display):
    """A display that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO(), width=200), bars=False)
        self.events: list[tuple[str, str, str]] = []
        """(event, stage, folder name)"""
        self.shown: list[str] = []
        """The loops of which it was told how far they are."""
        self.units: dict[str, str] = {}
        """What each of these counts."""
        self.files: ReportFiles | None = None

    def event(self, event: str, spec: Spec, detail: str) -> None:
        super().event(event, spec, detail)
        self.events.append((event, spec.stage, spec.folder_name))

    def bar(self, what: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Advance]:
        self.shown.append(what)
        self.units[what] = unit
        return super().bar(what, total, unit)

    @property
    def text(self) -> str:
        """What was printed."""
        assert isinstance(self.console.file, io.StringIO)
        return self.console.file.getvalue()

    def stages(self, event: str) -> list[str]:
        """Return the stages of an event in the order in which they came, once for each artifact."""
        return [
            stage for stage, _ in dict.fromkeys((stage, name) for what, stage, name in self.events if what == event)
        ]

    def names(self, event: str, stage: str) -> list[str]:
        """Return the folder names of an event of one stage."""
        return list(dict.fromkeys(name for what, of, name in self.events if (what, of) == (event, stage)))


def run_tiny(output_dir: Path, *overrides: str) -> Recorder:
    """Run the tiny experiment, or a command on it, and return what the display was told."""
    recorder, config = Recorder(), make_tiny_config(output_dir, *overrides)
    if registry.is_command(config.stage.name):
        registry.find_entry(config.stage.name).load()(config, display=recorder)
    else:
        recorder.files = run(config, recorder)
    return recorder


def draw_without_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the report's figures and save empty files: their look is another test's matter."""

    def save_small(draw: Any, name: str, folder: Path, suffixes: Any) -> list[Path]:
        draw()
        paths = [folder / f"{name}.{suffix}" for suffix in suffixes]
        for path in paths:
            path.touch()
        return paths

    monkeypatch.setattr(page, "save_figure", save_small)


@contextmanager
def coarse_figures() -> Iterator[None]:
    """Save figures coarsely, in PDFs with fonts that need no parsing: else that is half of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure_style, "DPI", 30)
        patch.setitem(figure_style.RC, "pdf.fonttype", 3)
        patch.setattr(page, "save_figure", save_figure)
        yield


@contextmanager
def unsaved_figures() -> Iterator[None]:
    """Draw a report's figures with all their parts in their places and save empty files; experiments save coarsely."""

    def place(draw: Callable[[], Figure], name: str, folder: Path, suffixes: Iterable[str]) -> list[Path]:
        with mpl.rc_context(cast(Any, figure_style.RC)):
            draw().draw_without_rendering()
        paths = [folder / f"{name}.{suffix}" for suffix in suffixes]
        for path in paths:
            path.touch()
        return paths

    with coarse_figures(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "save_figure", place)
        yield


_FINISHED: list[tuple[Path, Recorder]] = []


def finish_tiny_run(factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """Return the folder and the record of the one whole run that tests share; they must leave it as it is.

    Of all processes of pytest-xdist the first that needs it makes it; each has a copy of its own.
    """
    if not _FINISHED:
        base = factory.getbasetemp()
        shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished_run"
        with FileLock(f"{shared}.lock"):
            if not shared.with_suffix(".pickle").exists():
                with coarse_figures():
                    done = run_tiny(shared)
                shared.with_suffix(".pickle").write_bytes(pickle.dumps((done.events, done.shown)))
        output_dir, record = factory.mktemp("finished") / "run", Recorder()
        shutil.copytree(shared, output_dir)
        record.events, record.shown = pickle.loads(shared.with_suffix(".pickle").read_bytes())
        record.files = ReportFiles.find(find_folder(output_dir, "report"))
        _FINISHED.append((output_dir, record))
    return _FINISHED[0]


def copy_run(output_dir: Path, to: Path, but: tuple[str, ...] = ()) -> Path:
    """Copy a run's artifacts without those of some stages."""
    shutil.copytree(output_dir / "artifacts", to / "artifacts", ignore=lambda folder, names: set(names) & set(but))
    return to


def find_artifacts(output_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest of every folder under a final name, {"<stage>/<folder>": manifest}; each must be whole."""
    found = {}
    for folder in sorted((output_dir / "artifacts").glob("*/*")):
        if folder.name.startswith("."):
            continue
        manifest = json.loads((folder / "manifest.json").read_text())
        assert find_artifact(output_dir, manifest) is not None, f"{folder} does not agree with its manifest"
        found[f"{folder.parent.name}/{folder.name}"] = manifest
    return found


def find_artifact(output_dir: Path, manifest: dict[str, Any]) -> Artifact | None:
    """Return the artifact of a manifest, checked anew."""
    return Store(output_dir / "artifacts").find(Spec(manifest["stage"], manifest["name"], manifest["key"]))


def find_folder(output_dir: Path, stage: str, name: str = "") -> Path:
    """Return the only artifact of a stage whose name holds `name`."""
    folders = [path for path in (output_dir / "artifacts" / stage).iterdir() if not path.name.startswith(".")]
    found = [path for path in folders if name in path.name]
    assert len(found) == 1, f"expected one artifact of {stage} {name}, got {[path.name for path in found]}"
    return found[0]


def collect_tiny(output_dir: Path, *overrides: str) -> CollectedJob:
    """Return what the tiny experiment has left, as stage=collect reads it."""
    job = Job(number=0, overrides=tuple(make_overrides(output_dir, *overrides)))
    (collected,) = read_jobs(
        [Sweep(output_dir / "sweeps" / "tiny", (job,))], ContextFactory(Display.silent(), builds=False)
    )
    return collected


def save_noise(file: Path, seed: int, size: tuple[int, int] = (60, 50)) -> None:
    """Save a picture of smooth noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).save(file)
