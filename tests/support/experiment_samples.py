"""What tests of the files in experiments/ share: the files as modules, and one folder of planted artifacts."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from infoscope.commands.experiments.sweep import main

FOLDER = Path(__file__).parents[2] / "experiments"
SWEEPS = sorted(path.stem for path in FOLDER.glob("*.py") if "EXPERIMENT =" in path.read_text())
"""The files that define an experiment; the others are scripts of another kind."""
PLANTED = (
    "experiment=planted_registers",
    "seeds=[0]",
    "logger=none",
    "trainer.progress=false",
    "trainer.device=cpu",
    "data.n_train=300",
    "data.n_test=150",
    "data.n_workers=1",
    "sae.n_tokens=614400",
    "sae.batch_tokens=1024",
    "sae.lr=0.003",
    "sae.dead_after_tokens=30000",
    "sae.eval_tokens=4096",
    "scope.k_max=8",
    "scope.n_workers=1",
    "outliers.n_images=100",
    "outliers.n_layer_images=16",
    "probe=plain",
    "probe.target=light",
    "probe.n_draws=1",
    "probe.held_out_share=0.2",
    "probe.classification_lrs=[0.03,0.1]",
    "probe.n_dense_train_images=120",
    "probe.n_dense_test_images=40",
    "probe.segmentation_lrs=[0.01]",
    "probe.depth_lrs=[0.03]",
    "probe.dense_steps=80",
)
"""The positive control, as small as its signs allow."""


def load_experiment(name: str) -> ModuleType:
    """Return a file of experiments/ as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_planted(name: str, output_dir: Path, *overrides: str) -> Path:
    """Run an experiment on the planted backbone, which must succeed; return the folder of its tables and figures."""
    assert main(load_experiment(name).EXPERIMENT, [*PLANTED, f"output_dir={output_dir}", *overrides]) == 0
    return output_dir / "experiments" / name


def read_rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV, every field of every row present."""
    with file.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert rows
    assert all(None not in row and None not in row.values() for row in rows), f"ragged rows in {file}"
    return rows


def check_files(folder: Path, tables: list[str], figures: list[str]) -> None:
    """Assert that every table is there in three forms and every figure is a picture of something."""
    for name in tables:
        assert (folder / f"{name}.md").read_text(encoding="utf-8").startswith("**")
        assert r"\toprule" in (folder / f"{name}.tex").read_text(encoding="utf-8")
        assert all(row["artifacts"].count(":") >= 2 for row in read_rows(folder / f"{name}.csv"))
    for name in figures:
        with Image.open(folder / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
