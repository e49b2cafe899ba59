"""The command line: exit codes, and one line on stderr for whatever a user can mend."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from infoscope import app
from infoscope.config.tree import Config, StageName, compose, to_tree
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from tests.support.app_samples import run_infoscope


@dataclass
class Result:
    code: int
    out: str
    err: str

    def sentence(self) -> str:
        """The only line on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("infoscope: ")
        return lines[0].removeprefix("infoscope: ")


@dataclass
class CommandLine:
    """Runs the command line in this process, with a pipeline that only remembers what it was asked for."""

    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch
    action: Callable[[Config], None] = lambda config: None
    configs: list[Config] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        pipeline = ModuleType("infoscope.pipeline.run")
        pipeline.run = self.run  # pyright: ignore[reportAttributeAccessIssue]
        self.monkeypatch.setitem(sys.modules, "infoscope.pipeline.run", pipeline)

    def run(self, config: Config, job: Job) -> None:
        self.configs.append(config)
        self.jobs.append(job)
        self.action(config)

    def __call__(self, *arguments: str) -> Result:
        self.monkeypatch.setattr(sys, "argv", ["infoscope", *arguments])
        code = app.run_command_line()
        captured = self.capsys.readouterr()
        return Result(code, captured.out, captured.err)


@pytest.fixture
def infoscope(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[CommandLine]:
    """Hydra changes logging, the environment and a global of its own: all of it is put back."""
    monkeypatch.chdir(tmp_path)
    for name in ("HYDRA_FULL_ERROR", "INFOSCOPE_TRACEBACK"):
        monkeypatch.setenv(name, "")  # so that the end of the test removes what the run sets
        monkeypatch.delenv(name)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield CommandLine(capsys, monkeypatch)
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    GlobalHydra.instance().clear()


def raising(error: BaseException) -> Callable[[Config], None]:
    def action(config: Config) -> None:
        raise error

    return action


# -- what goes well ----------------------------------------------------------------------------------------------------


def test_a_run_gets_the_typed_configuration_and_writes_below_output_dir(infoscope: CommandLine, tmp_path: Path):
    result = infoscope("stage=rank", "scope.k_cds=4", "output_dir=out")
    assert (result.code, result.err) == (0, "")
    assert infoscope.configs == [compose(["stage=rank", "scope.k_cds=4", "output_dir=out"])]
    assert infoscope.configs[0].stage is StageName.rank
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (recorded,) = tmp_path.glob("out/runs/*/.hydra/overrides.yaml")
    assert yaml.safe_load(recorded.read_text()) == ["stage=rank", "scope.k_cds=4", "output_dir=out"]


def test_help_tells_the_stages_and_the_choices(infoscope: CommandLine, tmp_path: Path):
    result = infoscope("--help")
    assert (result.code, result.err, infoscope.configs) == (0, "", [])
    missing = [stage.name for stage in StageName if f"  {stage.name} " not in result.out]
    assert missing == []
    for word in ("model: ", "scenes_clip", "image_folder", "INFOSCOPE_TRACEBACK", "infoscope -m"):
        assert word in result.out
    assert list(tmp_path.iterdir()) == []


def test_cfg_job_shows_the_configuration_and_runs_nothing(infoscope: CommandLine, tmp_path: Path):
    result = infoscope("--cfg", "job", "--resolve", "stage=score", "debug=tiny")
    assert (result.code, result.err, infoscope.configs) == (0, "", [])
    assert yaml.safe_load(result.out) == to_tree(compose(["stage=score", "debug=tiny"]))
    assert list(tmp_path.iterdir()) == []


def test_the_console_command_exits_with_the_code(infoscope: CommandLine):
    infoscope.monkeypatch.setattr(sys, "argv", ["infoscope", "foo"])
    with pytest.raises(SystemExit) as caught:
        app.main()
    assert caught.value.code == 2


# -- what the user can mend --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["scope.kk=3"], ["'scope.kk'", "expected one of batch_images, diagonal"]),
        (["model=clip_b17"], ["'clip_b17'", "expected one of clip_b16", "did you mean model=clip_b16"]),
        (["scope.k_cds=abc"], ["scope.k_cds", "expected a whole number"]),
        (["model=3"], ["such as model=scenes_clip"]),
        (["foo"], ["got 'foo'", "Expected KEY=VALUE, or one of the commands describe-sae, "]),
        (["describe_sea"], ["got 'describe_sea' (did you mean describe-sae?)"]),
        (["scope.k_max=4"], ["scope.k_max to be at least scope.k_cds (8), got 4"]),
        (["--config-dir", "nowhere"], ["nowhere", "not found"]),
        (["--config-name", "nothing"], ["'nothing'"]),
        (["--cfg", "job", "scope.kk=3"], ["'scope.kk'"]),
    ],
    ids=" ".join,
)
def test_a_wrong_configuration_is_one_line(infoscope: CommandLine, arguments: list[str], parts: list[str]):
    result = infoscope(*arguments)
    assert result.code == 2
    assert [part for part in parts if part not in result.sentence()] == [], result.err
    assert infoscope.configs == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "k_cds: 4\nkk: 3\n",
            ["'scope.kk' (in scope/mine.yaml)", "expected one of batch_images, diagonal, emd, extent, k_cds"],
        ),
        ("k_cds: many\n", ["scope.k_cds (in scope/mine.yaml): expected a whole number, got 'many'"]),
        ("emd: fast\n", ["scope.emd (in scope/mine.yaml): expected one of exact, sinkhorn, got 'fast'"]),
        ("k_cds: [4\n", ["mine.yaml, line 2: ", "expected YAML"]),
        ("- 4\n", ["a group (in scope/mine.yaml)"]),
    ],
    ids=["unknown key", "wrong type", "wrong choice", "no YAML", "a list"],
)
def test_a_wrong_file_of_ones_own_is_one_line(infoscope: CommandLine, tmp_path: Path, text: str, parts: list[str]):
    file = tmp_path / "mine" / "scope" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    result = infoscope("--config-dir", "mine", "scope=mine")
    assert result.code == 2
    assert [part for part in parts if part not in result.sentence()] == [], result.err


def test_a_file_of_ones_own_is_a_choice(infoscope: CommandLine, tmp_path: Path):
    (tmp_path / "mine" / "scope").mkdir(parents=True)
    (tmp_path / "mine" / "scope" / "four.yaml").write_text("k_cds: 4\n")
    assert infoscope("--config-dir", "mine", "scope=four").code == 0
    assert infoscope.configs[0].scope.k_cds == 4


def test_an_input_error_of_a_stage_is_one_line(infoscope: CommandLine):
    infoscope.action = raising(InputError("Expected photographs in data.root, got none: add some."))
    result = infoscope()
    assert result.code == 2
    assert result.sentence() == "Expected photographs in data.root, got none: add some."


@pytest.mark.parametrize("arguments", [["scope.kk=3"], ["scope.k_max=4"]])
def test_the_traceback_is_shown_on_request(infoscope: CommandLine, arguments: list[str]):
    infoscope.monkeypatch.setenv("INFOSCOPE_TRACEBACK", "1")
    result = infoscope(*arguments)
    assert result.code == 2
    assert result.err.startswith("infoscope: ")
    assert "Traceback (most recent call last)" in result.err


def test_an_output_dir_that_cannot_be_written_is_one_line(infoscope: CommandLine, tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    result = infoscope("output_dir=file")
    assert result.code == 2
    assert "set output_dir to a folder you may write to" in result.sentence()
    assert infoscope.configs == []


# -- Ctrl-C, and bugs of ours ------------------------------------------------------------------------------------------


def exit_as_lightning_does(config: Config) -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


@pytest.mark.parametrize(
    ("action", "arguments"),
    [
        (raising(KeyboardInterrupt()), []),
        (exit_as_lightning_does, []),
        (raising(KeyboardInterrupt()), ["-m", "scope.k_cds=2,4"]),
    ],
    ids=["plain", "Lightning", "sweep"],
)
def test_an_interruption_is_one_line(
    infoscope: CommandLine, action: Callable[[Config], None], arguments: list[str]
) -> None:
    infoscope.action = action
    result = infoscope(*arguments)
    assert result.code == 130
    assert "interrupted" in result.sentence()
    assert len(infoscope.configs) == 1


def test_other_exits_keep_their_code(infoscope: CommandLine):
    infoscope.action = raising(SystemExit(3))
    assert infoscope().code == 3


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a bug"), ValueError("a bug"), FileNotFoundError(errno.ENOENT, "a", "bug")],
    ids=lambda error: type(error).__name__,
)
def test_bugs_of_ours_are_not_hidden(infoscope: CommandLine, error: Exception):
    infoscope.action = raising(error)
    with pytest.raises(type(error)) as caught:
        infoscope()
    assert caught.value is error


# -- sweeps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_sweep_runs_every_combination(infoscope: CommandLine, place: int):
    arguments = ["scope.k_cds=2,4", "partition.rule=otsu,bands"]
    result = infoscope(*arguments[:place], "-m", *arguments[place:])
    assert (result.code, result.err) == (0, "")
    ran = [(config.scope.k_cds, config.partition.rule.name) for config in infoscope.configs]
    assert ran == [(2, "otsu"), (2, "bands"), (4, "otsu"), (4, "bands")]


def test_a_list_of_layers_is_a_sweep_whose_jobs_know_of_each_other(infoscope: CommandLine):
    result = infoscope("model.layer=[0,-2]", "seeds=[0]")
    assert result.code == 0
    assert "stage=collect" in result.out
    assert [
        (config.model.layer, job.layers) for config, job in zip(infoscope.configs, infoscope.jobs, strict=True)
    ] == [
        (0, (-2,)),
        (-2, (0,)),
    ]
    infoscope("model.layer=[1]", "seeds=[0]")
    assert (infoscope.configs[-1].model.layer, infoscope.jobs[-1].sweep, infoscope.jobs[-1].layers) == (1, None, ())


@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=local",)])
def test_a_layer_that_the_model_lacks_is_refused_before_any_job(infoscope: CommandLine, launcher: tuple[str, ...]):
    result = infoscope("model.layer=[0,1,99]", "sae=topk,relu", *launcher)
    assert (result.code, infoscope.configs) == (2, [])
    assert result.err == "infoscope: Expected model.layer in -4..3 (the model has 4 blocks), got 99.\n"
    assert "stage=collect" not in result.out


def test_a_failed_job_does_not_stop_the_others(infoscope: CommandLine):
    def action(config: Config) -> None:
        if config.scope.k_cds == 4:
            raise InputError("Expected at least scope.k_cds=4 training images, got 3.")

    infoscope.action = action
    result = infoscope("-m", "scope.k_cds=2,4,6")
    assert [config.scope.k_cds for config in infoscope.configs] == [2, 4, 6]
    assert result.code == 2
    assert result.sentence() == "Expected at least scope.k_cds=4 training images, got 3."


def test_a_contradiction_in_one_job_does_not_stop_the_others(infoscope: CommandLine):
    result = infoscope("-m", "scope.k_max=4,8,12")
    assert [config.scope.k_max for config in infoscope.configs] == [8, 12]
    assert result.code == 2
    assert "scope.k_max to be at least scope.k_cds (8), got 4" in result.sentence()


def test_a_typo_stops_a_sweep_before_its_first_job(infoscope: CommandLine):
    result = infoscope("-m", "partition.rule=otsu,foo")
    assert result.code == 2
    assert "partition.rule: expected one of mass" in result.sentence()
    assert infoscope.configs == []


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_a_launcher_without_a_sweep_is_refused(infoscope: CommandLine, launcher: str):
    result = infoscope(f"hydra/launcher={launcher}")
    assert (result.code, infoscope.configs) == (2, [])
    assert result.sentence() == f"hydra/launcher={launcher} is for sweeps: give -m (infoscope -m ...), or drop it."


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_a_sweep_that_cannot_write_starts_no_job(infoscope: CommandLine, tmp_path: Path, launcher: str):
    (tmp_path / "file").write_text("not a folder")
    result = infoscope("-m", f"hydra/launcher={launcher}", "scope.k_cds=2,4", "output_dir=file")
    assert result.code == 2
    assert "set output_dir to a folder you may write to" in result.sentence()


@pytest.mark.parametrize(
    "arguments",
    [
        ["hydra.launcher.partition=gpu"],
        ["hydra/launcher=local", "hydra.launcher.partition=gpu"],
        ["hydra/launcher=slurm", "hydra.launcher.n_parallel=2"],
    ],
)
def test_a_setting_of_another_launcher_is_one_line(infoscope: CommandLine, arguments: list[str]):
    result = infoscope("-m", "scope.k_cds=2,4", *arguments)
    assert (result.code, infoscope.configs) == (2, [])
    assert "those of hydra.launcher come with hydra/launcher=local or slurm" in result.sentence()


def test_a_failure_is_forgotten_by_the_next_run(infoscope: CommandLine):
    assert infoscope("foo").code == 2
    assert infoscope().code == 0


# -- a process of its own ----------------------------------------------------------------------------------------------


def test_the_process_exits_with_the_code(tmp_path: Path):
    command = [sys.executable, "-m", "infoscope.app", "model=clip_b17"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert Result(2, "", done.stderr).sentence().startswith("Unknown model 'clip_b17'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "offered", "shell"),
    [
        ("stage=re", ["stage=report"], "zsh"),
        ("stage=re", ["stage=report"], "fish"),
        ("stage=re", ["stage=report"], "bash"),
        ("partition.rule=", ["bands", "energy", "mass", "null", "otsu", "quantile", "threshold"], "bash"),
        ("seeds=[0] scope.emd=", ["exact", "sinkhorn"], "bash"),
        ("trainer.progress=", ["false", "true"], "bash"),
        ("scope.k_cds=", ["8"], "bash"),
        ("sae=mat", ["sae=matryoshka_k", "sae=matryoshka_prefix"], "bash"),
        ("sae=matryoshka_k sae.level_weights=", ["decreasing", "uniform"], "bash"),
        ("sae.k=", ["8"], "bash"),
        ("sae.l", ["sae.log_every_n_steps=", "sae.lr="], "bash"),
        ("probe.tasks=", ["[classification,segmentation,depth]"], "bash"),
        ("scope.k_", ["scope.k_cds=", "scope.k_max="], "bash"),
        ("model=clip_b", ["model=clip_b16", "model=clip_b32"], "bash"),
    ],
)
def test_completion_offers_what_one_types(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, offered: list[str], shell: str
):
    monkeypatch.setenv("COMP_LINE", f"infoscope {typed}")
    monkeypatch.setenv("COMP_POINT", str(len(typed)))
    assert run_infoscope("-sc", f"query={shell}") == 0
    key = typed.split()[-1].partition("=")[0]
    assert capsys.readouterr().out.split() == [one if one.startswith(key) else f"{key}={one}" for one in offered]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("typed", "offered"),
    [("describe-", "describe-sae"), ("describe-sae ", ""), ("export-sae fol", ""), ("push-sae a owner/name con", "")],
)
def test_completion_knows_the_commands_without_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, offered: str, shell: str
):
    monkeypatch.setenv("COMP_LINE", f"infoscope {typed}")
    monkeypatch.setenv("COMP_POINT", str(len(typed)))
    assert run_infoscope("-sc", f"query={shell}") == 0
    assert tuple(capsys.readouterr()) == (f"{offered}\n" if offered else "", "")
