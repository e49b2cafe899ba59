"""The first notebook: its code runs on a machine without network, and each cell shows what the text around it says."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from tests.support.shown import read_png

NOTEBOOK = Path(__file__).parents[2] / "experiments" / "first_steps.ipynb"
SMALL = ("data.n_train=64", "data.n_test=8", "sae.expansion_factor=1", "sae.n_tokens=16384", "sae.eval_tokens=1024")
"""What makes its SAE in seconds; there are images enough for some features of a score."""


def read_cells(kind: str = "code") -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def make_small(source: str) -> str:
    return source.replace('"seeds=[0]",', '"seeds=[0]", ' + "".join(f'"{setting}", ' for setting in SMALL))


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run the code of a cell and return what it ends with."""
    tree = ast.parse(source)
    last = tree.body.pop()
    exec(compile(tree, "cell", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    exec(compile(ast.Module([last], []), "cell", "exec"), names)
    return None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the notebook lies; what it makes lies beside it."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    return folder


def test_its_code_runs(folder: Path) -> None:
    names: dict[str, Any] = {}
    threads = torch.get_num_threads()
    try:
        shown = [run_cell(make_small(source), names) for source in read_cells()]
    finally:
        torch.set_num_threads(threads)
    assert (folder.parent / "outputs" / "artifacts" / "train_sae").is_dir()
    of_saes, of_scores, frame, low, high, patch, table = shown[1:]
    assert of_saes is names["sae"]
    assert of_scores is names["found"]
    assert list(frame["group"].unique()) == ["low", "high"]
    for figure in (low, high, patch):
        assert read_png(figure).shape[1] == 720
    texts = [[text.get_text() for text in figure.texts] for figure in (low, high)]
    assert "low-scope" in texts[0]
    assert "high-scope" in texts[1]
    assert len(table) == names["sae"].d_sae


def test_a_kernel_shows_what_each_cell_ends_with(folder: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    for cell in notebook.cells:
        cell.source = make_small(cell.source)
    notebook.cells += [new_code_cell(source) for source in ("%matplotlib inline\nfound.show(0)", "patch")]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    made = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    *shown, inline, of_patch = [list_kinds(outputs) for outputs in made]
    html, png = {"text/plain", "text/html"}, {"text/plain", "image/png"}
    assert shown[1:] == [[html], [html], [html], [png], [png], [png], [html]]
    assert inline == of_patch == [png]  # once, with matplotlib's own display too
    assert [list_kinds(outputs) for outputs in kept] == shown
    assert {one.output_type for outputs in made[1:] for one in outputs} == {"execute_result"}
    assert {one.get("name", one.output_type) for one in made[0]} == {"stdout"}


def list_kinds(outputs: list[Any]) -> list[set[str]]:
    return [set(one.data) for one in outputs if one.output_type == "execute_result"]


def test_what_it_keeps_is_small_and_of_no_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 700_000
    assert not re.search(r"/(work|home|root|tmp|usr|Users)/|[A-Z]:\\\\Users", text)
    assert all(cell["execution_count"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")
