"""The wheel holds all that the package reads, and works where there is no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "src/infoscope/explorer/page"
"""Of the explorer, with the libraries of others and their licences."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_code_configuration_and_weights(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    source = ROOT / "src"
    expected = {file.relative_to(source).as_posix() for file in source.rglob("*.py")}
    conf = {f"infoscope/conf/{file.relative_to(ROOT / 'conf')}" for file in (ROOT / "conf").rglob("*.yaml")}
    expected |= {name for name in conf if "/local/" not in name}  # one's own paths
    expected |= {file.relative_to(source).as_posix() for file in PAGE.rglob("*") if file.is_file()}
    shipped = ("open_clip_config.json", "open_clip_model.safetensors", "vocabulary.json")
    expected |= {f"infoscope/vision/open_clip/scenes_clip/{name}" for name in shipped}
    assert sorted(expected - names) == []
    assert "infoscope = infoscope.app:main" in entry_points.splitlines()
    ours = ("infoscope", "hydra_plugins/infoscope_launchers/")
    strays = [name for name in names if not name.startswith(ours) or "__pycache__" in name or "/local/" in name]
    assert strays == []


def test_the_wheel_alone_composes_its_configuration(wheel: Path, tmp_path: Path):
    unpacked, elsewhere = tmp_path / "unpacked", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    script = "import infoscope.config.tree as c, infoscope.app as a; print(c.CONF_FOLDER, flush=True); a.main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "--cfg", "job", "model=context_free", "debug=tiny"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    folder, _, text = done.stdout.partition("\n")
    assert Path(folder) == unpacked / "infoscope" / "conf"
    tree = yaml.safe_load(text)
    assert (tree["model"]["name"], tree["seeds"], tree["scope"]["k_cds"]) == ("context_free", [0], 4)
    assert list(elsewhere.iterdir()) == []
