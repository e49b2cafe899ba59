"""infoscope view PATH: which explorer is served, how it ends, and one sentence with the command where there is none."""

from __future__ import annotations

import json
import os
import shutil
import threading
import urllib.request
import webbrowser
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from infoscope.explorer.format import put, read
from infoscope.explorer.server import ExplorerServer
from infoscope.runtime.manifests import FORMAT_VERSION
from infoscope.sae.activations import TopK
from infoscope.sae.checkpoint import save_sae
from infoscope.sae.model import SparseAutoencoder
from tests.support.app_samples import run_infoscope
from tests.support.explorer_sample import write_sample

HASH = "0123456789abcdef"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    write_sample(folder, d_sae=20, n_images=20, n_views=1)
    return folder


@pytest.fixture
def explorer(whole: Path, tmp_path: Path) -> Path:
    """The folder of an explorer, which tests may break."""
    return shutil.copytree(whole, tmp_path / "explorer")


@pytest.fixture
def view(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run `infoscope view` until the first request is answered, as if Ctrl-C came then: exit code, stdout, stderr."""

    def serve(self: ExplorerServer) -> None:
        self.timeout = 10
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        asked: list[bytes] = []
        thread = threading.Thread(target=lambda: asked.append(opener.open(self.address, timeout=10).read()))
        thread.start()
        self.handle_request()
        thread.join()
        assert asked[0].startswith(b"<!doctype html>")
        raise KeyboardInterrupt

    monkeypatch.setattr(ExplorerServer, "serve_forever", serve)
    for name in ("SSH_CONNECTION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = run_infoscope("view", *map(str, arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err.removeprefix("infoscope: ").strip()

    return run


def place(explorer: Path, output_dir: Path, name: str, layer: int, age: int) -> Path:
    """Move an explorer into an output folder, as stage=explore leaves one."""
    folder = output_dir / "artifacts" / "explore" / name
    shutil.copytree(explorer, folder)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"layer": layer}, "output_dir": "/elsewhere"}))
    os.utime(folder / "index.html", ns=(10**18 - age, 10**18 - age))
    return folder


def write_artifact(output_dir: Path, stage: str) -> Path:
    folder = output_dir / "artifacts" / stage / f"scenes-{HASH}"
    folder.mkdir(parents=True)
    manifest = {"format_version": FORMAT_VERSION, "stage": stage, "hash": HASH, "files": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_run(output_dir: Path, overrides: list[str]) -> None:
    run = output_dir / "runs" / "monday"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (run / "artifacts.json").write_text(json.dumps({"artifacts": {HASH: "score/scenes"}}))


@pytest.mark.parametrize("inner", [".", "index.html"])
def test_it_serves_until_ctrl_c(view, explorer: Path, inner: str):
    code, out, err = view(explorer / inner, "port=0")
    assert (code, err) == (0, "")
    folder, address, end = out.splitlines()
    assert (Path(folder), end) == (explorer, "ended")
    assert address.startswith("is at http://127.0.0.1:")
    assert address.endswith("/ for this machine alone; Ctrl-C ends it.")


def test_the_browser_opens_where_there_is_a_screen(view, explorer: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    view(explorer, "port=0")
    assert opened == []
    monkeypatch.setenv("DISPLAY", ":0")
    view(explorer, "port=0", "open=false")
    assert opened == []
    _, out, _ = view(explorer, "port=0")
    assert len(opened) == 1
    assert opened[0] in out
    monkeypatch.setenv("SSH_CONNECTION", "there")
    _, out, _ = view(explorer, "port=0")
    assert len(opened) == 1
    assert "ssh -N -L " in out


def test_of_an_output_folder_the_newest_is_served(view, explorer: Path, tmp_path: Path):
    newest = place(explorer, tmp_path / "out", "scenes-new", layer=2, age=0)
    place(explorer, tmp_path / "out", "scenes-old", layer=2, age=10)
    code, out, _ = view(tmp_path / "out", "port=0")
    assert (code, out.splitlines()[0]) == (0, str(newest))


def test_of_several_experiments_none_is_taken(view, explorer: Path, tmp_path: Path):
    for age, name in enumerate(("scenes-a", "scenes-b", "scenes-c")):
        place(explorer, tmp_path / "out", name, layer=[2, 5, 2][age], age=age)
    code, _, err = view(tmp_path / "out", "port=0")
    assert code == 2
    assert err == (
        f"{tmp_path / 'out'} holds explorers of 2 experiments: give the folder of one,"
        f" {tmp_path / 'out/artifacts/explore/NAME'}, NAME being scenes-a (model.layer=2), scenes-b (model.layer=5)."
    )


def test_what_is_not_there_is_a_sentence(view, tmp_path: Path):
    code, _, err = view(tmp_path / "nothing")
    assert code == 2
    assert err.startswith(f"Expected an explorer's folder, its index.html or an output folder at {tmp_path}/nothing, ")


@pytest.mark.parametrize("port", ["abc", "-1", "65536", "8000.0", "²"])
def test_a_port_is_a_number(view, explorer: Path, port: str):
    code, _, err = view(explorer, f"port={port}")
    assert (code, err) == (2, f"Expected port= a number from 0 (any that is free) to 65535, got {port!r}.")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda data: (data / "manifest.js").unlink(), "is not whole, data/manifest.js cannot be read (No such file"),
        (
            lambda data: (data / "manifest.js").write_text("alert(1)"),
            "data/manifest.js cannot be read (it is no data of",
        ),
        (lambda data: put(data.parent, "manifest", {"format": 2}), "has format 2, and this infoscope knows 1"),
        (lambda data: put(data.parent, "manifest", {"format": 1}), "is damaged, 'sets' is missing"),
        (
            lambda data: put(
                data.parent, "manifest", read(data.parent, "manifest") | {"sets": {"../..": {}, "train": {}}}
            ),
            "has names that lead elsewhere ('../..')",
        ),
    ],
)
def test_an_explorer_that_is_not_whole_is_refused(view, explorer: Path, break_it, said: str):
    break_it(explorer / "data")
    code, _, err = view(explorer)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_an_sae_without_scores_is_told_the_command(view, tmp_path: Path):
    save_sae(tmp_path / "sae", SparseAutoencoder(4, 8, TopK(2), seed=0).requires_grad_(False))
    code, _, err = view(tmp_path / "sae")
    assert code == 2
    assert err.startswith(f"{tmp_path}/sae is an SAE: an explorer shows its scores too; this makes both: infoscope sae")
    assert f"sae.path={tmp_path}/sae" in err
    assert err.endswith("stage=explore")


def test_a_file_that_says_little_gets_a_command_to_fill_in(view, tmp_path: Path):
    (tmp_path / "my sae.pt").write_bytes(b"no SAE")
    code, _, err = view(tmp_path / "my sae.pt")
    assert code == 2
    assert err.endswith(f"""infoscope stage=explore sae=import 'sae.path="{tmp_path}/my sae.pt"' model=... data=...""")


@pytest.mark.parametrize("stage", ["score", "train_sae"])
def test_an_artifact_is_told_the_command_of_its_run(view, tmp_path: Path, stage: str):
    folder = write_artifact(tmp_path, stage)
    write_run(tmp_path, ["stage=score", "sae=topk", "data.root=/my photos", "plan=false"])
    code, _, err = view(folder)
    assert code == 2
    assert err.startswith(f"{folder} is an ")
    assert err.endswith(": infoscope stage=explore sae=topk 'data.root=/my photos'")


def test_an_artifact_of_no_known_run_is_told_its_configuration(view, tmp_path: Path):
    folder = write_artifact(tmp_path, "rank")
    code, _, err = view(folder)
    assert code == 2
    assert err == (
        f"{folder} is an artifact of stage=rank and no explorer, which this makes: infoscope stage=explore ..., with"
        f" the settings of {folder}/config.yaml"
    )


def test_an_output_folder_without_one_is_told_the_command(view, tmp_path: Path):
    write_artifact(tmp_path, "score")
    code, _, err = view(tmp_path)
    assert (code, err.rpartition(": ")[2]) == (2, f"infoscope stage=explore output_dir={tmp_path} ...")
    write_run(tmp_path, ["stage=score", f"output_dir={tmp_path}"])
    code, _, err = view(tmp_path)
    assert (code, err.rpartition(": ")[2]) == (2, f"infoscope stage=explore output_dir={tmp_path}")


def test_any_other_place_is_told_what_was_expected(view, tmp_path: Path):
    code, _, err = view(tmp_path)
    assert code == 2
    assert err.startswith(
        f"Expected an explorer's folder, its index.html or an output folder, got {tmp_path}, which is"
    )
