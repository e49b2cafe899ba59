"""The first notebook: it runs in a kernel without network, and each cell shows what the text around it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

NOTEBOOK = Path(__file__).parents[2] / "experiments" / "first_steps.ipynb"
SMALL = ("data.n_train=64", "data.n_test=8", "sae.expansion_factor=1", "sae.n_tokens=16384", "sae.eval_tokens=1024")
"""What makes its SAE in seconds; there are images enough for some features of a score."""
CHECKS = """
of_sae, of_scores, frame, low, high, of_patch, table = (Out[number] for number in range(2, 9))
assert of_sae is sae and of_scores is found
assert list(frame["group"].unique()) == ["low", "high"]
assert "low-scope" in [text.get_text() for text in low.texts]
assert "high-scope" in [text.get_text() for text in high.texts]
assert len(table) == sae.d_sae
"""
"""A cell after the notebook's own; it fails where they did not end with what they should."""


def make_small(source: str) -> str:
    return source.replace('"seeds=[0]",', '"seeds=[0]", ' + "".join(f'"{setting}", ' for setting in SMALL))


def list_kinds(outputs: list[Any]) -> list[set[str]]:
    return [set(one.data) for one in outputs if one.output_type == "execute_result"]


def test_a_kernel_shows_what_each_cell_ends_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "experiments"  # what the notebook makes lies beside it
    folder.mkdir()
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    for cell in notebook.cells:
        cell.source = make_small(cell.source)
    notebook.cells += [new_code_cell(source) for source in (CHECKS, "%matplotlib inline\nfound.show(0)", "patch")]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    made = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    *shown, of_checks, inline, of_patch = [list_kinds(outputs) for outputs in made]
    html, png = {"text/plain", "text/html"}, {"text/plain", "image/png"}
    assert shown[1:] == [[html], [html], [html], [png], [png], [png], [html]]
    assert of_checks == []
    assert inline == of_patch == [png]  # once, with matplotlib's own display too
    assert [list_kinds(outputs) for outputs in kept] == shown
    assert {one.output_type for outputs in made[1:] for one in outputs} == {"execute_result"}
    assert {one.get("name", one.output_type) for one in made[0]} == {"stdout"}
    assert (tmp_path / "outputs" / "artifacts" / "train_sae").is_dir()


def test_what_it_keeps_is_small_and_of_no_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 700_000
    assert not re.search(r"/(work|home|root|tmp|usr|Users)/|[A-Z]:\\\\Users", text)
    assert all(cell["execution_count"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")
