"""What a user can get wrong: one sentence, exit code 2, and nothing that was finished is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from infoscope import app
from infoscope.runtime.errors import InputError
from infoscope.runtime.output import EXIT_INPUT, EXIT_INTERRUPT
from infoscope.sae.module import SAEModule
from infoscope.stages import backbone as backbone_module
from infoscope.stages import train_sae as train_module
from infoscope.vision.backbone import Tokens
from infoscope.vision.config import ContrastiveConfig, ModelConfig
from infoscope.vision.load import load_backbone
from infoscope.vision.open_clip import family
from infoscope.vision.open_clip.backbone import OpenClipBackbone
from infoscope.vision.open_clip.contrastive import make_clip_config
from infoscope.vision.planted import PlantedRegisters
from infoscope.vision.tokens import shards
from tests.support.app_samples import run_infoscope
from tests.support.pipeline_samples import (
    N_TRAIN,
    copy_run,
    find_artifacts,
    find_folder,
    finish_tiny_run,
    make_overrides,
    run_tiny,
)

SMALL_CLIP = ["model=scenes_clip", "model.pretrained=random"]
FOLDER = ["data=image_folder", "data.n_workers=0"]
N_PHOTOGRAPHS = 30


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which failures must leave as it is."""
    return copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of JPEGs of every size, some of them grey."""
    root = tmp_path_factory.mktemp("photographs")
    (root / "b").mkdir()
    rng = np.random.default_rng(0)
    for i in range(N_PHOTOGRAPHS):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        image = coarse.resize((40 + 7 * i, 150 - 3 * i), Image.Resampling.BICUBIC)
        image.convert("L" if i % 5 == 0 else "RGB").save(root / ("b" if i % 2 else ".") / f"{i:02d}.jpg")
    return root


Fail = Callable[..., str]


@pytest.fixture
def fail(output_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fail:
    """Return a function that runs a command line which must fail, and returns its one sentence."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def run(*overrides: str, folder: Path = output_dir) -> str:
        before = find_artifacts(folder) if (folder / "artifacts").is_dir() else {}
        monkeypatch.setattr(sys, "argv", ["infoscope", *make_overrides(folder, *overrides)])
        capsys.readouterr()
        assert app.run_command_line() == EXIT_INPUT
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("infoscope: ")]
        assert len(lines) == 1
        assert lines[0].endswith((".", ")", "..."))
        after = find_artifacts(folder) if (folder / "artifacts").is_dir() else {}
        assert before.items() <= after.items()
        assert not list(folder.rglob("*.tmp"))
        return lines[0].removeprefix("infoscope: ")

    return run


def mentions(sentence: str, *words: str) -> bool:
    return all(word in sentence for word in words) and "\n" not in sentence


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sae.kk=3"], ["sae.kk", "expected one of", "k"]),
        (["model=nothing_like_it"], ["model", "nothing_like_it", "scenes_clip"]),
        (["data=nothing_like_it"], ["data", "nothing_like_it", "scenes"]),
        (["sae.k=many"], ["sae.k", "many"]),
        (["partition.gamma=2"], ["partition.gamma", "0..1", "2"]),
        (["probe.target=colour_of_the_sea"], ["colour_of_the_sea", "class", "light"]),
        (["probe.readouts=[cls_layer]"], ["cls_layer", "patch_mean"]),
        (["model.layer=-1"], ["cls_final", "layer"]),
        (["model.layer=7"], ["model.layer", "7"]),
        (["model=scenes_clip", "model.pretrained=random", "model.layer=7"], ["model.layer", "-4..3", "4 blocks", "7"]),
        (["scope.k_cds=50", "scope.k_max=null"], ["scope.k_cds=50", str(N_TRAIN), "images"]),
        (["data=image_folder"], ["data.root"]),
        (["data.max_train=2"], ["data.max_train is read by data.kind=image_folder", "drop it"]),
        (["sae.k=100000"], ["sae.k", "100000"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_a_wrong_value_is_one_sentence(fail: Fail, overrides: list[str], words: list[str]) -> None:
    assert mentions(fail(*overrides), *words)


EARLY = [
    (["stage=score", f"scope.k_cds={N_TRAIN + 1}", "scope.k_max=null"], ["scope.k_cds=41", f"got {N_TRAIN}"]),
    (["stage=rank", "sae.tokens=cls"], ["CLS tokens", "sae.tokens=patch"]),
    (["stage=train_sae", "sae.k=33"], ["sae.k in 1..32", "got 33"]),
    (["stage=train_sae", "sae=matryoshka_prefix", "sae.prefixes=[0.001,1]"], ["sae.prefixes to add latents", "of 32"]),
    (["stage=score", "scope.shift_patches=11"], ["scope.shift_patches", "got 11", "at most 10"]),
    (["stage=outliers", "scope.shift_patches=11"], ["scope.shift_patches", "got 11"]),
    (["stage=train_sae", "model.layer=7"], ["model.layer", "got 7"]),
    (
        ["stage=train_sae", *SMALL_CLIP[:1], "model.pretrained=nowhere.safetensors"],
        ["nowhere.safetensors", "is no file"],
    ),
    (
        ["stage=train_sae", *SMALL_CLIP[:1], "model.pretrained=train_clip", "sae.expansion_factor=1", "sae.k=200"],
        ["1..128"],
    ),
    (["stage=train_sae", "data.n_train=1"], ["at least 2 images", "got 1"]),
    (["probe.target=colour_of_the_sea"], ["colour_of_the_sea", "class", "light"]),
    (["probe.readouts=[patch_mean,cls_layer]", "stage=probe"], ["cls_layer", "patch_mean"]),
    (["stage=probe", "probe.n_train_images=1"], ["two training images", "got 1"]),
    (
        ["stage=probe", "probe.depth_crops.crop_px=64", "probe.depth_crops.stride_px=32"],
        ["64 px", "probe whole images"],
    ),
    (["stage=probe", "probe_data.depth={kind: nyud, root: nowhere}"], ["NYU", "nowhere"]),
    (["stage=probe", "partition=bands", "partition.n_bands=33"], ["partition.n_bands to be at most 32", "got 33"]),
    (["stage=select", "select.n_kept=[64]"], ["select.n_kept[0] to be at most 32", "got 64"]),
    (["stage=select", "select.weights=nowhere.json"], ["select.weights=nowhere.json to be a file", "No such file"]),
    (["stage=predict"], ["no text tower", "scenes_clip"]),
    (["stage=predict", *SMALL_CLIP, "predict.class_names=nowhere.txt"], ["predict.class_names", "nowhere.txt"]),
    (["stage=predict", *SMALL_CLIP, "predict.target=light"], ["predict.class_names", "light"]),
    (["stage=masking"], ["no text tower", "scenes_clip"]),
    (["stage=masking", *SMALL_CLIP, "masking.sae_bias=1e30"], ["masking.sae_bias to be at most 1000"]),
    (["stage=masking", *SMALL_CLIP, "sae.tokens=cls"], ["CLS tokens", "sae.tokens=patch"]),
    (["stage=masking", *SMALL_CLIP, "model.layer=-1", "probe.readouts=[patch_mean]"], ["model.layer=-1 is the last"]),
    (
        ["stage=describe", "judge=scenes_clip", "judge.pretrained=nowhere.pt"],
        ["judge.pretrained=nowhere.pt"],
    ),
    (
        ["stage=describe", "judge=dinov2_s14", "judge.pretrained=random", "judge.image_px=100"],
        ["judge.image_px", "14 px"],
    ),
    (["stage=describe", *SMALL_CLIP, "predict.class_names=nowhere.txt"], ["predict.class_names", "nowhere.txt"]),
    (["stage=describe", "predict.target=mood"], ["Expected a target of the scenes", "mood"]),
    (["stage=describe", "describe.tree=nowhere.txt"], ["describe.tree", "nowhere.txt cannot be read"]),
    (["stage=cross", "cross.n_bands=33"], ["cross.n_bands to be at most 32, the number of latents, got 33"]),
    (["stage=cross", "cross.n_strata=33"], ["cross.n_strata to be at most 32"]),
    ([*SMALL_CLIP, "adapt.pretrained=nowhere.pt"], ["adapt.pretrained=nowhere.pt is no file"]),
    (["stage=steer"], ["no text tower", "scenes_clip"]),
    (["stage=steer", *SMALL_CLIP, "steer.spurious=mood"], ["target of the scenes", "texture", "got 'mood'"]),
    (["stage=steer", *SMALL_CLIP, "steer.spurious=class"], ["another target than the one that is predicted"]),
    (["stage=attribute"], ["no text tower", "scenes_clip"]),
    (["stage=attribute", *SMALL_CLIP, "model.layer=-1", "probe.readouts=[patch_mean]"], ["model.layer=-1 is the last"]),
    (["stage=attribute", *SMALL_CLIP, "model.site=projected"], ["nothing follows", "model.site=pooled"]),
    (["stage=score", "trainer.device=cuda"], ["trainer.device=cuda", "cpu"]),
    (["stage=train_clip", "trainer.device=cuda"], ["trainer.device=cuda", "cpu"]),
]
"""What a stage could only say after others had worked, and what must be named."""


@pytest.mark.parametrize(("overrides", "words"), EARLY, ids=[" ".join(overrides) for overrides, _ in EARLY])
def test_what_is_known_beforehand_is_refused_before_anything_is_built(
    tmp_path: Path, fail: Fail, monkeypatch: pytest.MonkeyPatch, overrides: list[str], words: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    for plan in ("plan=true", "plan=false"):
        assert mentions(fail(*overrides, plan, folder=tmp_path / "out"), *words)
    assert not list(tmp_path.glob("out/artifacts/*/*"))


def test_every_job_of_a_sweep_is_refused_before_its_first_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    overrides = make_overrides(tmp_path, "stage=score", "scope.shift_patches=11,12")
    monkeypatch.setattr(sys, "argv", ["infoscope", "-m", *overrides])
    assert app.run_command_line() == EXIT_INPUT
    assert capsys.readouterr().err.count("infoscope: Expected scope.shift_patches") == 2
    assert not list(tmp_path.glob("artifacts/*/*"))


def test_what_exists_is_reused_without_its_model(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> Any:
        raise AssertionError("a model was loaded for nothing")

    monkeypatch.setattr(backbone_module, "make_backbone", load)
    assert run_tiny(output_dir, "stage=probe").stages("built") == []


def test_cuda_without_cuda(fail: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert mentions(fail("stage=train_sae", "seeds=[5]", "trainer.device=cuda"), "trainer.device=cuda", "cpu")


def test_a_failed_job_of_a_sweep_stops_no_other(
    output_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    overrides = make_overrides(output_dir, "stage=score", "scope.shift_patches=11,1")
    monkeypatch.setattr(sys, "argv", ["infoscope", "-m", *overrides])
    assert app.run_command_line() == EXIT_INPUT
    printed = capsys.readouterr()
    assert printed.err.count("infoscope: Expected") == 1
    assert f"score/{find_folder(output_dir, 'score').name}" in printed.out


def test_ctrl_c_is_exit_code_130(
    output_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(*_: Any) -> Any:
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(SAEModule, "training_step", press)
    monkeypatch.setattr(sys, "argv", ["infoscope", *make_overrides(output_dir, "stage=train_sae", "seeds=[6]")])
    assert app.run_command_line() == EXIT_INTERRUPT
    assert "interrupted" in capsys.readouterr().err
    signal.signal(signal.SIGINT, handler)


# -- weights -------------------------------------------------------------------------------------------------------


def make_weights(folder: Path, kind: str) -> Path:
    """Write a file of weights that is not what it should be."""
    file = folder / "weights.safetensors"
    if kind == "garbage":
        file.write_bytes(np.random.default_rng(0).bytes(500))
    elif kind == "garbage pickle":
        file = folder / "weights.pt"
        file.write_bytes(np.random.default_rng(0).bytes(500))
    elif kind == "pickled object":
        file = folder / "weights.pt"
        torch.save({"model": Path("not tensors")}, file)
    elif kind == "TorchScript":
        file = folder / "weights.pt"
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    elif kind == "other shapes":
        config = ContrastiveConfig(width=32, layers=2, text_layers=1, embed_dim=32)
        save_file(open_clip.CLIP(**make_clip_config(config, vocab_size=50)).state_dict(), file)
    elif kind == "NaN":
        backbone = load_backbone(ModelConfig(pretrained="random"))
        assert isinstance(backbone, OpenClipBackbone)
        state = {name: value.clone() for name, value in backbone.clip.state_dict().items()}
        state["visual.class_embedding"][3] = torch.nan
        save_file(state, file)
    return file


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", ["is no file", "safetensors"]),
        ("garbage", ["Cannot read safetensors file"]),
        ("garbage pickle", ["Cannot read weights file", "damaged", "state dict"]),
        ("pickled object", ["Cannot read weights file", "other objects than tensors"]),
        ("TorchScript", ["does not fit", "architecture"]),
        ("other shapes", ["does not fit", "architecture"]),
        ("NaN", ["NaN", "visual.class_embedding"]),
    ],
)
def test_weights_that_are_not_what_they_should_be(fail: Fail, tmp_path: Path, kind: str, words: list[str]) -> None:
    file = make_weights(tmp_path, kind)
    sentence = fail("model=scenes_clip", f"model.pretrained={file}", "stage=train_sae")
    assert mentions(sentence, str(file), *words)


def test_missing_weights_offline(fail: Fail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    def build(*_: Any) -> Any:
        raise AssertionError("a large model was made for nothing")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(family, "_make_clip", build)
    sentence = fail("model=clip_b32", "stage=train_sae")
    assert mentions(sentence, "ViT-B-32:openai", "no network", "model.pretrained=<file>.safetensors", str(tmp_path))


def test_a_tag_that_does_not_exist(fail: Fail) -> None:
    assert mentions(fail("model=clip_b32", "model.pretrained=nobody", "stage=train_sae"), "nobody", "openai")


# -- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "empty", "a file"])
def test_a_root_without_images(fail: Fail, tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    if kind == "empty":
        root.mkdir()
    elif kind == "a file":
        root.write_text("no folder")
    assert mentions(fail(*FOLDER, f"data.root={root}"), str(root), "data.root")


def add_broken_images(photographs: Path, root: Path) -> Path:
    """Copy the photographs and add a truncated JPEG and a text that is called one."""
    shutil.copytree(photographs, root)
    whole = (root / "02.jpg").read_bytes()
    (root / "00_truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "03_text.jpg").write_text("no picture")
    return root


def test_an_unreadable_image_is_named(fail: Fail, photographs: Path, tmp_path: Path) -> None:
    root = add_broken_images(photographs, tmp_path / "root")
    options = (*FOLDER, *SMALL_CLIP, "stage=train_sae", "data.test_share=0", f"data.root={root}")
    sentence = fail(*options)
    assert mentions(sentence, str(root / "00_truncated.jpg"), "data.on_error=skip")
    (root / "00_truncated.jpg").unlink()
    assert mentions(fail(*options), str(root / "03_text.jpg"), "no JPEG")


def test_skipped_images_are_listed_and_counted(photographs: Path, tmp_path: Path) -> None:
    root = add_broken_images(photographs, tmp_path / "root")
    options = (*FOLDER, *SMALL_CLIP, "data.test_share=0", f"data.root={root}", "data.on_error=skip")
    recorder = run_tiny(tmp_path, *options, "stage=score")
    listed = json.loads((find_folder(tmp_path, "tokens") / "skipped.json").read_text())
    assert listed.keys() == {"00_truncated.jpg", "03_text.jpg"}
    assert f"2 of {N_PHOTOGRAPHS + 2} train images were skipped" in recorder.text
    assert "score" in recorder.stages("built")
    again = run_tiny(tmp_path, *options, "stage=score")
    assert again.stages("built") == []
    assert f"2 of {N_PHOTOGRAPHS + 2} train images were skipped" in again.text


def test_an_image_folder_from_end_to_end(photographs: Path, tmp_path: Path, fail: Fail) -> None:
    root = tmp_path / "pictures"
    shutil.copytree(photographs, root)
    made = run_tiny(tmp_path, *FOLDER, *SMALL_CLIP, f"data.root={root}")
    assert made.files is not None
    tables = {
        "scope",
        "outlier_emd",
        "outlier_activation",
        "confounds",
        "stability",
        "describe",
        "fidelity",
        "cross",
        "cross_bands",
    }
    assert made.files.tables.keys() == tables
    assert "cds_histogram" in made.files.figures
    assert "No probes" in made.files.page.read_text()
    assert "No probes" in made.text
    assert "probe" not in made.stages("built")

    root = root.rename(tmp_path / "moved")
    again = run_tiny(tmp_path, *FOLDER, *SMALL_CLIP, f"data.root={root}")
    assert again.stages("built") == []
    assert again.files == made.files

    sentence = fail(*FOLDER, *SMALL_CLIP, f"data.root={root}", "stage=probe", folder=tmp_path)
    assert mentions(sentence, "labels", "image_folder", "probe_data.classification", "stage=report")


# -- numbers and disks ---------------------------------------------------------------------------------------------


def test_nan_tokens(fail: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    original = PlantedRegisters._tokens

    def spoil(self: PlantedRegisters, *args: Any) -> list[Tokens]:
        found = original(self, *args)
        found[0].patches[-1, 0, 0] = torch.nan
        return found

    monkeypatch.setattr(PlantedRegisters, "_tokens", spoil)
    assert mentions(fail("data.cache_dtype=float16", "stage=train_sae"), "NaN", "block")


def test_weights_of_a_judge_are_named_as_its_own(fail: Fail) -> None:
    given = ["stage=describe", "judge=dinov2_s14"]
    assert mentions(fail(*given, "judge.pretrained=/nope.pth"), "judge.pretrained=/nope.pth is no file")
    small = ["judge.arch=vit_tiny_patch16_224", "judge.pretrained=random", "judge.image_px=100"]
    assert mentions(fail(*given, *small), "judge.image_px to be a multiple of the patch (16 px)")


def test_a_loss_that_runs_away(fail: Fail) -> None:
    sentence = fail("stage=train_sae", "sae=relu", "sae.lr=1e30", "sae.warmup_steps=0")
    assert mentions(sentence, "loss", "step", "sae.lr")


def test_a_disk_too_small_is_seen_beforehand(fail: Fail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2000, 1000, 1000))
    sentence = fail("stage=train_sae", "data.cache_dtype=float16", folder=tmp_path)
    assert not list(tmp_path.glob("artifacts/*/*"))
    assert mentions(sentence, "MB in", "where 1 kB are free", "output_dir")


FULL: dict[str, Callable[[], Exception]] = {
    "the system": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "numpy": lambda: OSError("100000 requested and 13056 written"),
    "safetensors": lambda: SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
}
"""What writers say, as seen on a real disk of 1 MB."""


@pytest.mark.parametrize("words", FULL)
def test_a_disk_that_fills_up(fail: Fail, output_dir: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    def write(*_: Any, **__: Any) -> Any:
        raise FULL[words]()

    monkeypatch.setattr(train_module, "save_sae", write)
    sentence = fail("stage=train_sae", "sae.n_tokens=1000")
    assert mentions(sentence, "full", str(output_dir), "output_dir")


def test_a_disk_that_fills_up_while_tokens_are_written(fail: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any) -> Any:
        raise FULL["the system"]()

    monkeypatch.setattr(shards.RowWriter, "append", write)
    assert mentions(fail("stage=train_sae", "model.seed=3"), "full", "finished artifacts are kept")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written(
    output_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    copy_run(output_dir, tmp_path / "run", but=("rank", "score", "probe", "report"))
    original = Path.mkdir

    def refuse(self: Path, *args: Any, **options: Any) -> None:
        if "rank" in self.parts:
            raise OSError(code, os.strerror(code), str(self))
        original(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError) as caught:
        run_tiny(tmp_path / "run", "stage=rank")
    assert mentions(str(caught.value), str(tmp_path), os.strerror(code), "output_dir")


@pytest.mark.parametrize("place", ["artifacts", "exports"])
def test_a_place_that_takes_nothing_is_said_without_the_overrides(
    output_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], place: str
) -> None:
    """Hydra would print them before the error that it lets through."""
    copy_run(output_dir, tmp_path / "run", but=("probe", "report") if place == "artifacts" else ())

    def refuse(path: Any, *_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    if place == "artifacts":
        monkeypatch.setattr(filelock.FileLock, "acquire", lambda lock, **_: refuse(lock.lock_file))
    else:
        monkeypatch.setattr(app, "_run", lambda *_: refuse(tmp_path / "run" / place))
    assert run_infoscope(*make_overrides(tmp_path / "run", "stage=probe")) == EXIT_INPUT
    said = capfd.readouterr().err
    assert "Error executing job" not in said
    assert mentions(
        said.strip(), "infoscope: Cannot write to", str(tmp_path / "run" / place), "Read-only", "output_dir"
    )


def test_an_output_folder_that_is_a_file(fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert mentions(fail("stage=rank", folder=tmp_path / "file" / "outputs"), str(tmp_path / "file"), "output_dir")
