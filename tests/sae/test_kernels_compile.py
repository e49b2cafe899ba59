"""Every kernel compiles for the GPUs that it is meant for, none of which is needed here."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infoscope.sae import kernels

ROOT = Path(__file__).parents[2]


def find_kernels() -> set[str]:
    """Return the names of all kernels: what is compiled as a whole, not the functions within."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in Path(kernels.__path__[0]).glob("[!_]*.py")]
    return {
        each.name for tree in trees for each in tree.body if isinstance(each, ast.FunctionDef) and each.name[0] != "_"
    }


def test_every_kernel_compiles_without_a_device(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    # Triton's interpreter, which other tests run in, must be off.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": f"{ROOT / 'src'}", "TRITON_CACHE_DIR": str(tmp_path)}
    program = [sys.executable, str(ROOT / "tests" / "support" / "compile_kernels.py")]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = {tuple(line.split()) for line in done.stdout.splitlines()}
    assert {name for name, _ in compiled} == find_kernels()
    assert {capability for _, capability in compiled} == {"80", "90"}
