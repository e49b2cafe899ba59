"""stage=collect: what the jobs of a sweep have left, what is missing, and the commands that make it."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import parquet
from rich.console import Console

from infoscope.commands.collect.jobs import CollectedJob
from infoscope.commands.collect.table import N_ROWS_SHOWN, cut_table, make_jobs_table, make_rows_table
from infoscope.commands.experiments.sweep import main
from infoscope.config.overrides import quote_override
from infoscope.config.sweeps import Sweep, expand_sweep, find_swept, make_commands, read_sweep
from infoscope.report.tables import Table
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.scope.matching import name_matched
from infoscope.scope.scores import Scores
from infoscope.stages.probe import run as probe_run
from infoscope.stages.stability.stage import Stability
from tests.support.app_samples import run_infoscope
from tests.support.experiment_samples import load_experiment, read_rows
from tests.support.pipeline_samples import collect_tiny, copy_run, find_folder, finish_tiny_run, make_overrides

NASTY = "my, photos [2020] x=1 {a} (b) #ü%'\"$ ~&;<|>"
GAMMAS = ("partition.gamma=0.1,0.2", "stage=score", "seeds=[0]")


@pytest.fixture(scope="module")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a sweep over gamma, of which two jobs of four are refused; tests leave it as it is."""
    output_dir = tmp_path_factory.mktemp("swept")
    assert run_infoscope("-m", *make_overrides(output_dir, "scope.k_cds=2,9", *GAMMAS)) == 2
    return output_dir


@pytest.fixture
def swept(finished_sweep: Path, tmp_path: Path) -> Path:
    """A copy of it, whose artifacts are read."""
    return shutil.copytree(finished_sweep, tmp_path / "out")


@pytest.fixture
def collect(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run stage=collect and return its exit code, what it printed, and what it said on stderr."""

    def run(output_dir: Path, *overrides: str, logger: str = "none") -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_infoscope("stage=collect", f"output_dir={output_dir}", f"logger={logger}", *overrides)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def find_collected(output_dir: Path) -> Path:
    (folder,) = (output_dir / "collected").iterdir()
    return folder


# -- sweeps as command lines -------------------------------------------------------------------------------------------


def test_a_sweep_is_read_from_what_hydra_writes_before_its_jobs(finished_sweep: Path) -> None:
    (folder,) = (finished_sweep / "sweeps").iterdir()
    sweep = read_sweep(folder)
    assert [job.number for job in sweep.jobs] == [0, 1, 2, 3]
    assert [job.folder for job in sweep.jobs] == [folder / str(number) for number in range(4)]
    for job in sweep.jobs:
        assert job.folder is not None
        begun = yaml.safe_load((job.folder / ".hydra" / "overrides.yaml").read_text())
        assert tuple(begun) == job.overrides
    told = find_swept([job.overrides for job in sweep.jobs])
    assert told[1] == {"scope.k_cds": "2", "partition.gamma": "0.2"}


def test_jobs_of_another_sweeper_are_those_that_have_begun(tmp_path: Path) -> None:
    hydra = {
        "overrides": {"hydra": ["hydra.mode=MULTIRUN", "hydra/sweeper=optuna"], "task": ["x=interval(0,1)"]},
        "sweeper": {"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"},
        "runtime": {"config_sources": [{"path": "/mine", "schema": "file", "provider": "command-line"}]},
    }
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    for number in (10, 2):
        folder = tmp_path / str(number) / ".hydra"
        folder.mkdir(parents=True)
        (folder / "overrides.yaml").write_text(f"- x=0.{number}\n")
    sweep = read_sweep(tmp_path)
    assert [(job.number, job.overrides) for job in sweep.jobs] == [(2, ("x=0.2",)), (10, ("x=0.10",))]
    assert sweep.options == ("hydra/sweeper=optuna",)
    assert sweep.config_dirs == ("/mine",)


@pytest.mark.parametrize(
    ("output_dir", "jobs", "expected"),
    [
        ("outs", ["a=1"], ["a=1 output_dir={now}"]),
        ("$MINE/outs", ["a=1 output_dir=$MINE/outs b=2"], ["a=1 output_dir={now} b=2"]),
        (
            "outs",
            ["+output_dir=outs/in a", "output_dir={mine}/outs"],
            ["output_dir={now}/in a", "output_dir={now}"],
        ),
        ("outs", ["output_dir=other", "output_dir=/outs"], ["output_dir=other", "output_dir=/outs"]),
    ],
)
def test_jobs_follow_their_output_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_dir: str, jobs: list[str], expected: list[str]
) -> None:
    monkeypatch.setenv("MINE", str(tmp_path))
    monkeypatch.chdir("/")
    now, folder = tmp_path / "there", tmp_path / "outs" / "sweeps" / "monday"
    hydra = {
        "overrides": {"hydra": [], "task": []},
        "sweep": {"dir": "${path:${output_dir}}/sweeps/${now:%Y}"},
        "sweeper": {"_target_": "another"},
        "runtime": {"cwd": str(tmp_path), "config_sources": []},
    }
    for number, overrides in enumerate(jobs):
        begun = folder / str(number) / ".hydra" / "overrides.yaml"
        begun.parent.mkdir(parents=True)
        begun.write_text(yaml.safe_dump(overrides.format(mine=tmp_path).split()))
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra, "output_dir": output_dir}))
    (tmp_path / "outs" / "artifacts").mkdir()
    before = [job.overrides for job in read_sweep(folder).jobs]
    assert before == [tuple(overrides.format(mine=tmp_path).split()) for overrides in jobs]
    (tmp_path / "outs").rename(now)
    after = [job.overrides for job in read_sweep(now / "sweeps" / "monday").jobs]
    assert after == [tuple(overrides.format(now=now).split()) for overrides in expected]
    (now / "artifacts").rmdir()
    assert [job.overrides for job in read_sweep(now / "sweeps" / "monday").jobs] == before


@pytest.mark.parametrize("text", ["", "hydra: 3", "hydra: [", "hydra: {overrides: {}}", "\x00"])
def test_a_sweep_that_cannot_be_read_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "multirun.yaml").write_text(text)
    with pytest.raises(InputError, match=r"Cannot read .*multirun\.yaml, which Hydra writes"):
        read_sweep(tmp_path)


@pytest.mark.parametrize(
    ("jobs", "n_commands", "n_run"),
    [
        ([["a=1", "b='x, y'"]], 1, 1),
        ([["a=1", "seeds=[0,1]"], ["a=2", "seeds=[0,1]"]], 1, 2),
        ([["a=1", "b=1"], ["a=2", "b=2"]], 1, 4),  # the product has two jobs more
        ([["a=1"], ["a=1", "b=2"]], 2, 2),
    ],
)
def test_commands_run_the_jobs_that_they_are_for(jobs: list[list[str]], n_commands: int, n_run: int) -> None:
    commands = [shlex.split(command) for command in make_commands(jobs, ["hydra/launcher=slurm"], ["/my folder"])]
    assert len(commands) == n_commands
    run: list[list[str]] = []
    for name, option, folder, *rest in commands:
        assert (name, option, folder) == ("infoscope", "--config-dir", "/my folder")
        is_sweep = rest[:2] == ["-m", "hydra/launcher=slurm"]
        run += expand_sweep(rest[2:]) if is_sweep else [rest]
    assert len(run) == n_run
    assert [job for job in jobs if job not in run] == []


# -- collecting --------------------------------------------------------------------------------------------------------


def test_the_table_holds_what_the_artifacts_hold(swept: Path, collect: Callable[..., Any]) -> None:
    code, printed, errors = collect(swept)
    assert (code, errors) == (0, "")
    folder = find_collected(swept)
    assert folder.name == next((swept / "sweeps").iterdir()).name
    assert {file.name for file in folder.iterdir()} == {"jobs.parquet", "jobs.csv", "jobs.md"}
    rows = parquet.read_table(folder / "jobs.parquet").to_pylist()
    assert [(row["job"], row["seed"], row["partition.gamma"]) for row in rows] == [(0, 0, 0.1), (1, 0, 0.2)]
    scored = find_folder(swept, "score")
    cds = Scores.load(scored).cds(2).values
    assert [row["n_high"] for row in rows] == [int((cds > gamma).sum()) for gamma in (0.1, 0.2)]
    metrics = json.loads((find_folder(swept, "train_sae") / "metrics.json").read_text())
    for row in rows:
        assert row["fvu"] == metrics["fvu"]
        assert row["artifact"] == f"score:{row['hash.score']}"
        for stage in ("train_sae", "rank", "score"):
            assert find_folder(swept, stage).name.endswith(row[f"hash.{stage}"])
        assert (row["sae.k"], row["scope.k_cds"], row["model.name"]) == (4, 2, "planted_registers")
    with (folder / "jobs.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [list(row) for row in written] == [list(rows[0])] * 2
    assert [float(row["fvu"]) for row in written] == [metrics["fvu"]] * 2
    page = (folder / "jobs.md").read_text().splitlines()
    assert page[2].startswith("| sweep | job | stage | model | scope.k_cds | partition.gamma | seed |")
    assert len([line for line in page if "score:" in line]) == 2
    assert printed.count("is refused: Expected scope.k_max to be at least scope.k_cds (9), got 3") == 2
    assert " is missing" not in printed


def test_a_sweep_is_summed_up_in_one_run_of_the_logger(swept: Path, collect: Callable[..., Any]) -> None:
    for _ in range(2):
        assert collect(swept, logger="csv")[0] == 0
    (sweep,) = (swept / "sweeps").iterdir()
    (table,) = swept.rglob("csv/**/jobs.csv")
    assert sweep.name in str(table)
    rows = read_rows(table)
    assert [(row["job"], row["scope.k_cds"], row["state"]) for row in rows] == [
        ("0", "2", "done"),
        ("1", "2", "done"),
        ("2", "9", "refused"),
        ("3", "9", "refused"),
    ]
    numbers = (table.parent / "metrics.csv").read_text()
    assert "n_done,2" in numbers
    assert "n_refused,2" in numbers


def test_the_command_of_a_missing_job_makes_it(swept: Path, collect: Callable[..., Any]) -> None:
    """Job 1 never began, and what it shares with job 0 has gone too."""
    (sweep,) = (swept / "sweeps").iterdir()
    shutil.rmtree(sweep / "1")
    scored = find_folder(swept, "score")
    shutil.rmtree(scored)
    before = {path for path in (swept / "artifacts").rglob("*") if not path.name.endswith(".lock")}
    code, printed, errors = collect(swept)
    assert (code, errors) == (0, "")
    assert {path for path in (swept / "artifacts").rglob("*") if not path.name.endswith(".lock")} == before
    assert f"job 1 is missing at score ({scored.name}); this makes it:" in printed
    commands = [line.strip() for line in printed.splitlines() if line.startswith("    infoscope ")]
    assert len(commands) == 3
    file = find_collected(swept) / "missing.txt"
    assert [line for line in file.read_text().splitlines() if line.startswith("infoscope")] == commands[:2]
    everything = shlex.split(commands[2])
    assert everything[1] == "-m"
    assert "partition.gamma=0.1,0.2" in everything
    assert collect(swept, "collect.require_all=true")[::2] == (
        2,
        f"infoscope: 2 of 4 jobs are missing: run the command above, listed in {file} too, and collect again.\n",
    )
    assert run_infoscope(*shlex.split(commands[1])[1:]) == 0
    assert scored.is_dir()
    assert collect(swept, "collect.require_all=true")[0] == 0
    assert not file.exists()


def test_what_is_printed_for_odd_names_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / NASTY / "conf"
    (own / "experiment").mkdir(parents=True)
    (own / "experiment" / "mine.yaml").write_text("# @package _global_\nstage: train_sae\n")
    name = quote_override("output_dir", str(tmp_path / NASTY / "out"))
    tiny = [one for one in make_overrides(tmp_path) if not one.startswith("output_dir")]
    odd = ["experiment=mine", name, 'predict.template_list=["it\'s, a \\"{}\\"."]', "predict.templates=list"]
    assert run_infoscope("--config-dir", str(own), "-m", *tiny, *odd, "sae.k=4,900", "hydra.launcher={}") == 2

    def find_commands() -> list[list[str]]:
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        return [shlex.split(line)[1:] for line in lines if line.startswith("infoscope ")]

    (collect,) = find_commands()
    assert run_infoscope(*collect, "logger=none") == 0
    (makes,) = find_commands()
    assert makes[:2] == ["--config-dir", str(own)]
    assert run_infoscope(*makes, "sae.n_tokens=600", "sae.k=3") == 0
    assert "train_sae/" in capsys.readouterr().out
    (listed,) = (tmp_path / NASTY / "out" / "collected").glob("*/missing.txt")
    (line,) = [line for line in listed.read_text().splitlines() if line.startswith("infoscope")]
    assert shlex.split(line)[1:] == makes


def test_a_plan_is_no_sweep_to_collect(swept: Path, collect: Callable[..., Any], capsys: Any) -> None:
    (sweep,) = (swept / "sweeps").iterdir()
    assert run_infoscope("-m", *make_overrides(swept, *GAMMAS, "plan=true")) == 0
    printed = capsys.readouterr().out
    assert printed.count("What this command would do") == 2
    assert "This joins" not in printed
    assert list((swept / "sweeps").iterdir()) == [sweep]
    (plan,) = (swept / "plans").iterdir()
    assert collect(swept)[0] == 0
    assert find_collected(swept).name == sweep.name
    said = collect(swept, f"collect.sweeps=[{plan}]")[1]
    assert said.count("is refused: plan=true leaves nothing to collect") == 2


def test_equal_jobs_of_several_sweeps_count_once(swept: Path, collect: Callable[..., Any]) -> None:
    (first,) = (swept / "sweeps").iterdir()
    assert run_infoscope("-m", *make_overrides(swept, *GAMMAS[1:], "partition.gamma=0.2,0.3")) == 0
    second = max((swept / "sweeps").iterdir())
    collect(swept)
    assert [path.name for path in (swept / "collected").iterdir()] == [second.name]  # the newest
    code, printed, _ = collect(swept, f"collect.sweeps=[{first.name},{second}]")
    assert code == 0
    assert "5 jobs of" in printed
    (folder,) = (swept / "collected").glob(f"{first.name}-and-1-more-*")
    rows = read_rows(folder / "jobs.csv")
    assert [(row["sweep"], row["job"], row["partition.gamma"]) for row in rows] == [
        (first.name, "0", "0.1"),
        (first.name, "1", "0.2"),
        (second.name, "1", "0.3"),
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Expected sweeps in "),
        (["collect.sweeps=[nowhere]"], "Expected the folder of a sweep"),
        (["seeds=[0],[1]", "-m"], "stage=collect reads sweeps and is none: drop -m"),
        (["stage=check_data"], "stage=check_data leaves no artifact to collect"),
    ],
)
def test_what_cannot_be_collected_is_one_sentence(
    tmp_path: Path, collect: Callable[..., Any], arguments: Sequence[str], sentence: str
) -> None:
    if arguments == ["stage=check_data"]:
        assert sentence in collect_tiny(tmp_path, *arguments).refused
        return
    code, _, errors = collect(tmp_path, *arguments)
    assert code == 2
    assert errors.startswith(f"infoscope: {sentence}")
    assert all(line.startswith("infoscope: ") for line in errors.splitlines())
    assert not (tmp_path / "collected").exists()


# -- what a job has left -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish_tiny_run(tmp_path_factory)[0]


def test_what_was_finished_when_unread_settings_were_ignored_is_shown(finished: Path) -> None:
    ignored = ("stage=score", "data.max_train=2", "outliers.quantile=0.5")
    collected = collect_tiny(finished, *ignored)
    assert (collected.state, len(collected.rows)) == ("done", 1)
    missing = collect_tiny(finished, *ignored, "scope.k_cds=1", "scope.shift_patches=2")
    assert missing.state.startswith("refused: data.max_train is read by data.kind=image_folder")
    assert missing.missing is None


@pytest.mark.parametrize(
    ("stage", "stage_of_rows"),
    [
        ("train_sae", "train_sae"),
        ("rank", "rank"),
        ("score", "score"),
        ("latents", "latents"),
        ("cross", "cross"),
        ("outliers", "group_activation"),
    ],
)
def test_every_stage_has_rows(finished: Path, stage: str, stage_of_rows: str) -> None:
    collected = collect_tiny(finished, f"stage={stage}")
    if stage in ("cross", "outliers"):  # which leave a page, that the whole report has not made
        assert collected.state.startswith("missing at report (")
    else:
        assert collected.state == "done"
    assert {row["seed"] for row in collected.rows} == {0}
    assert all(str(row["artifact"]).startswith(f"{stage_of_rows}:") for row in collected.rows)


def test_quantities_have_their_plain_names_with_units(finished: Path) -> None:
    collected = collect_tiny(finished, "stage=cross")
    told = {row["variant"]: row["quantity"] for row in collected.rows}
    assert len(set(told.values())) == len(told) > 5
    assert told["firing_rate"] == "firing frequency (share of patch tokens)"
    overview = make_jobs_table([collected], "jobs")
    assert [row["variant"] for row in overview.records()] == list(told.values())
    table = make_rows_table(collected.rows)
    assert "| firing frequency (share of patch tokens) |" in table.to_markdown()
    assert "| firing_rate |" not in table.to_markdown()
    header, *lines = csv.reader(io.StringIO(table.to_csv()))
    assert {line[header.index("variant")] for line in lines} == told.keys()


def test_a_report_is_collected_by_variant(finished: Path) -> None:
    collected = collect_tiny(finished)
    assert collected.state == "done"
    rows = {str(row["variant"]): row for row in collected.rows}
    assert len(rows) == len(collected.rows) > 5
    assert rows["original"]["n_removed"] == 0
    summary = json.loads(next(finished.glob("artifacts/report/*/summary.json")).read_text())
    assert rows["original"]["n_scored"] == summary["scope"][0]["n_scored"]
    for name, row in rows.items():
        folder = next(finished.glob(f"artifacts/probe/*-{str(row['artifact']).removeprefix('probe:')}"))
        metrics = json.loads((folder / "result.json").read_text())["metrics"]
        assert row["segmentation/miou"] == metrics["segmentation"]["miou"], name


@pytest.mark.parametrize("gone", ["report", "probe", "confounds", "latents"])
def test_a_report_that_lacks_something_is_missing_and_nothing_is_built(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("probes were to be trained")

    monkeypatch.setattr(probe_run, "_ProbeLoop", refuse)  # it works before it asks the store
    output_dir = copy_run(finished, tmp_path / "run", but=(gone,))
    before = sorted(output_dir.rglob("*"))
    collected = collect_tiny(output_dir)
    assert sorted(output_dir.rglob("*")) == before
    assert collected.missing is not None
    assert collected.missing.stage == gone
    assert bool(collected.rows) == (gone not in ("probe", "confounds"))  # by which probed groups are matched


def test_seeds_that_are_whole_are_kept(finished: Path) -> None:
    collected = collect_tiny(finished, "stage=score", "seeds=[7,0]")
    assert collected.state.startswith("missing at train_sae (planted_registers-topk-seed7-")
    assert [row["seed"] for row in collected.rows] == [0]


def test_an_experiment_of_what_exists_builds_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_dir = copy_run(finished, tmp_path / "run")
    experiment = load_experiment("gamma_sweep").EXPERIMENT
    before = sorted((output_dir / "artifacts").rglob("*"))
    overrides = make_overrides(output_dir, "partition.gamma=0.1,0.12", "stage=probe")
    assert main(experiment, [*overrides, "build=false"]) == 0
    assert sorted((output_dir / "artifacts").rglob("*")) == before
    rows = read_rows(output_dir / "experiments" / "gamma_sweep" / "removal.csv")
    assert {float(row["gamma"]) for row in rows if row["gamma"]} == {0.1}
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "missing (partition.gamma=0.12): probe/" in printed.out
    assert "1 of 2 configurations are missing; this makes them:" in printed.out
    (command,) = [line.strip() for line in printed.out.splitlines() if line.startswith("    infoscope ")]
    assert {"partition.gamma=0.12", "stage=probe", f"output_dir={output_dir}"} <= set(shlex.split(command))


# -- what people see of a sweep ----------------------------------------------------------------------------------------


def make_job(number: int, rows: Sequence[dict[str, Any]], *swept: str, **told: Any) -> CollectedJob:
    """A job that has found these rows."""
    return CollectedJob(Job(number=number, overrides=swept), Sweep(Path("sweeps/s"), ()), rows=list(rows), **told)


def make_probe_rows(seed: int, miou: float) -> list[dict[str, Any]]:
    """The rows of one seed as stage=probe has them: those that are shown, then others."""
    shown = [("original", "original", None), ("group", "without_high", "high"), ("group", "without_low", "low")]
    return [
        {
            "seed": seed,
            "variant": name,
            "role": role,
            "mode": mode,
            "group": group,
            "control": control,
            "n_removed": 10 * place,
            "mass_share": place / 10,
            "n_high": 7,
            "segmentation/miou": miou - place / 10,
            "depth/rmse_m": 1.0 + place,
        }
        for place, (role, name, group, mode, control) in enumerate(
            [
                *((role, name, group, "error_preserving", None) for role, name, group in shown),
                ("group", "without_high", "high", "reconstruct", None),
                ("group", "without_high_matched", name_matched("high"), "error_preserving", None),
                ("control", "random_mass_of_high_0", "high", "error_preserving", "mass"),
                ("all", "without_all", None, "error_preserving", None),
            ]
        )
    ]


def draw(table: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    table.print(console)
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())


def test_a_sweep_of_probes_shows_what_was_swept_and_what_each_group_costs() -> None:
    jobs = [
        make_job(0, [*make_probe_rows(0, 0.5), *make_probe_rows(1, 0.7)], "partition.gamma=0.05"),
        make_job(1, make_probe_rows(0, 0.6), "partition.gamma=0.1"),
        make_job(2, [], "partition.gamma=7", refused="no"),
    ]
    table = make_jobs_table(jobs, "3 jobs")
    records = table.records()
    told = [(record["job"], record["partition.gamma"], record["variant"], record["state"]) for record in records]
    variants = ["original tokens", "without high-scope", "without low-scope"]
    assert told == [
        *((0, "0.05", variant, "done") for variant in variants),
        *((1, "0.1", variant, "done") for variant in variants),
        (2, "7", None, "refused"),
    ]
    assert [records[i]["segmentation/miou"] for i in range(3)] == pytest.approx([0.6, 0.5, 0.4])
    assert records[0]["segmentation/miou_sd"] == pytest.approx(0.02**0.5)
    assert records[4]["mass_share"] == pytest.approx(0.1)
    assert "n_high" not in records[0]  # of the SAE: the same for each of its variants
    for width in (100, 120):
        lines = draw(table, width).splitlines()
        assert max(map(len, lines)) <= width
        assert any("50.0 ± 14.1" in line and "without high-scope" in line for line in lines)


def test_saes_of_two_precisions_in_one_table_are_told() -> None:
    def make(precisions: Sequence[str], *overrides: str) -> str:
        jobs = [
            make_job(i, [{**row, "trainer.precision": one} for row in make_probe_rows(0, 0.5)], *overrides)
            for i, one in enumerate(precisions)
        ]
        return make_jobs_table(jobs, "jobs").to_markdown()

    told = "The SAEs of these jobs differ in precision (trainer.precision): 32: job 1; bf16: job 0, 2."
    assert told in make(["bf16", "32", "bf16"])
    assert "differ in precision" not in make(["bf16", "bf16"])


def test_a_long_sweep_is_cut_and_says_where_the_rest_is() -> None:
    jobs = [make_job(number, make_probe_rows(0, 0.5), f"seeds=[{number}]") for number in range(40)]
    table = make_jobs_table(jobs, "40 jobs")
    assert len(table.rows) == 120
    cut = cut_table(table, Path("collected/jobs.md"))
    assert len(cut.rows) == N_ROWS_SHOWN
    assert "... and 60 more rows: all jobs stand in collected/jobs.md." in cut.to_markdown()
    assert cut_table(cut, Path("elsewhere")) is cut


@pytest.mark.parametrize("stage", ["train_sae", "rank", "score", "outliers", "probe", "report"])
def test_the_overview_of_every_stage_has_its_metrics(finished: Path, stage: str) -> None:
    table = make_jobs_table([collect_tiny(finished, f"stage={stage}")], "one job")
    headings = {
        "train_sae": ["FVU", "L0"],
        "rank": ["silent on the ranked images", "FVU"],
        "score": ["scored", "high scope", "mean CDS", "chance"],
        "outliers": ["on outlier tokens", "on normal tokens", "ratio"],
        "probe": ["mass removed (%)", "top-1 patch mean (%)", "mIoU (%)", "depth RMSE (m)"],
    }[stage.replace("report", "probe")]
    first = table.to_markdown().splitlines()[2]
    assert all(f"| {heading} |" in first for heading in headings)
    assert len(draw(table, 100).splitlines()[1]) <= 100
    assert table.sentence == ""


@pytest.mark.parametrize(
    ("rows", "labels", "key"),
    [
        (
            [
                {"variant": "original", "role": "original", "mode": "error_preserving", "group": None, "control": None},
                *(
                    {
                        "variant": f"keep_{n}_{rule}",
                        "role": "kept",
                        "mode": "reconstruct",
                        "group": rule,
                        "control": None,
                    }
                    for n in (4, 16, 64)
                    for rule in ("band 1 of 3", "activation", "random", "probe depth")
                ),
            ],
            [
                "original tokens",
                "16 kept: band 1 of 3",
                "16 kept: activation",
                "16 kept: random",
            ],
            "depth/rmse_m",
        ),
        ([{"variant": "shift 2"}, {"variant": "k_CDS 1"}], ["shift 2", "k_CDS 1"], "rank_correlation"),
        (
            [{"variant": group} for group in ("all features", "high", "narrow", "context-driven", "band 2 of 2")],
            ["all features", "high-scope", "narrow", "context-driven", "band 2 of 2 (highest CDS)"],
            "rank_correlation",
        ),
    ],
    ids=["select", "stability", "groups"],
)
def test_rows_of_what_is_compared_are_summed_up(rows: Any, labels: list[str], key: str) -> None:
    table = make_jobs_table([make_job(0, [{**row, key: 0.5} for row in rows], columns=Stability.columns)], "one job")
    assert [record["variant"] for record in table.records()] == labels
    assert [record[key] for record in table.records()] == [0.5] * len(labels)
