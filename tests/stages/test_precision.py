"""trainer.precision: what it is on this device, whose hashes hold it, and what users are told of the other one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from infoscope.commands.collect.jobs import read_jobs
from infoscope.commands.collect.opening import ContextFactory
from infoscope.config.sweeps import Sweep
from infoscope.config.tree import compose
from infoscope.pipeline.context import Context
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.runtime.progress import Display
from infoscope.stages import precision
from infoscope.stages.sae import describe_sae
from infoscope.stages.score.stage import Score
from infoscope.stages.train_sae import TrainSAE
from tests.support.app_samples import run_infoscope
from tests.support.pipeline_samples import collect_tiny, find_folder, make_overrides, make_tiny_config, run_tiny

BF16 = ("stage=train_sae", "seeds=[0]", "trainer.precision=bf16")
AUTO = ("stage=train_sae", "seeds=[0]", "trainer.device=auto")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="auto is bf16 on a GPU")


@pytest.fixture(scope="module")
def in_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SAE trained in bfloat16 from the command line; tests leave it as it is."""
    output_dir = tmp_path_factory.mktemp("bf16")
    assert run_infoscope(*make_overrides(output_dir, *BF16)) == 0
    return output_dir


def test_an_sae_trained_in_bfloat16_says_so_and_is_read_in_tf32(in_bf16: Path) -> None:
    folder = find_folder(in_bf16, "train_sae")
    assert json.loads((folder / "manifest.json").read_text())["key"]["precision"] == "bf16"
    assert json.loads((folder / "sae.json").read_text())["training"]["precision"] == "bf16"
    ctx = Context(make_tiny_config(in_bf16, *BF16), Display.silent())
    sae = TrainSAE.at(ctx, 0).load()
    assert sae.uses_tf32
    assert sae.W_enc.dtype == torch.float32
    assert "bf16 products" in describe_sae(ctx)
    assert "bf16" not in describe_sae(Context(make_tiny_config(in_bf16), Display.silent()))


def test_commands_say_which_saes_are_in_bfloat16(
    in_bf16: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_dir = shutil.copytree(in_bf16, tmp_path / "both")
    run_tiny(output_dir, *BF16[:2], "trainer.precision=32")
    capsys.readouterr()
    said, facts = {}, {}
    for folder in (output_dir / "artifacts" / "train_sae").glob("*-seed0-*"):
        assert run_infoscope("describe-sae", str(folder)) == 0
        said[folder.name] = "trained with products in bfloat16" in capsys.readouterr().out
        assert run_infoscope("describe-sae", str(folder), "json=true") == 0
        facts[folder.name] = json.loads(capsys.readouterr().out)["precision"]
    own = find_folder(in_bf16, "train_sae").name
    assert said == {name: name == own for name in said}
    assert facts == {name: "bf16" if name == own else None for name in said}
    assert len(said) == 2
    assert run_infoscope("stage=artifacts", f"output_dir={output_dir}") == 0
    printed = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in printed.splitlines() if ", bf16" in line] == [f"| train_sae/{own}"]


def test_only_bf16_is_in_the_hashes_of_an_sae_and_of_what_reads_it(in_bf16: Path) -> None:
    hashes = {}
    for name in ("auto", "32", "bf16"):
        ctx = Context(make_tiny_config(in_bf16, f"trainer.precision={name}"), Display.silent())
        hashes[name] = [stage.at(ctx, 0).hash for stage in (TrainSAE, Score)]
    assert hashes["auto"] == hashes["32"]
    assert not set(hashes["32"]) & set(hashes["bf16"])


@needs_no_gpu
def test_who_looks_for_what_a_gpu_has_trained_is_told_how_to_find_it(in_bf16: Path, tmp_path: Path) -> None:
    said = run_tiny(in_bf16, *AUTO, "plan=true").text
    assert said.count("this SAE exists with trainer.precision=bf16, which finds it") == 1
    for given in ("bf16", "32"):  # whoever asks for one gets it
        assert "exists with" not in run_tiny(in_bf16, *AUTO, f"trainer.precision={given}", "plan=true").text
    shutil.copytree(in_bf16, tmp_path / "both")
    run_tiny(tmp_path / "both", *AUTO)
    assert len(list((tmp_path / "both" / "artifacts" / "train_sae").glob("*-seed0-*"))) == 2
    assert "exists with" not in run_tiny(tmp_path / "both", *AUTO, "plan=true").text


@needs_no_gpu
def test_what_the_gpus_of_others_have_trained_is_collected(in_bf16: Path, tmp_path: Path) -> None:
    collected = collect_tiny(in_bf16, *AUTO)
    assert collected.state == "done"
    assert [row["trainer.precision"] for row in collected.rows] == ["bf16"]
    assert collect_tiny(in_bf16, *AUTO, "trainer.device=cpu").state_in_short == "missing at train_sae"
    shutil.copytree(in_bf16, tmp_path / "both")
    run_tiny(tmp_path / "both", *AUTO)
    assert [row["trainer.precision"] for row in collect_tiny(tmp_path / "both", *AUTO).rows] == ["32"]
    run_tiny(tmp_path / "both", *BF16, "seeds=[1]")
    more = collect_tiny(tmp_path / "both", *AUTO, "seeds=[0,1]")  # of both seeds there is one in bf16 alone
    assert more.state == "done"
    assert [row["trainer.precision"] for row in more.rows] == ["bf16", "bf16"]


def test_jobs_that_differ_in_their_precision_are_two(in_bf16: Path) -> None:
    jobs = [
        Job(number=number, overrides=(*make_overrides(in_bf16, *BF16[:2]), f"trainer.precision={name}"))
        for number, name in enumerate(("32", "bf16", "auto"))
    ]
    sweep = Sweep(in_bf16 / "sweeps" / "tiny", tuple(jobs))
    states = [one.state_in_short for one in read_jobs([sweep], ContextFactory(Display.silent(), builds=False))]
    assert states == ["missing at train_sae", "done", "missing at train_sae"]


def test_a_processor_without_bfloat16_is_a_warning(in_bf16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for is_fast in (True, False):
        monkeypatch.setattr(precision, "is_bf16_fast", lambda is_fast=is_fast: is_fast)
        said = run_tiny(in_bf16, *BF16, "seeds=[1,2]", "trainer.device=cpu", "plan=true").text
        assert said.count("no products in bfloat16") == 1 - is_fast


def test_another_value_is_one_sentence() -> None:
    with pytest.raises(InputError, match=r"trainer.precision: expected one of auto, 32, bf16, got 16"):
        compose(["trainer.precision=16"])
