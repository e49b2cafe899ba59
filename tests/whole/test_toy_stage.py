"""A new stage is one file and one line of the registry: everything else finds it there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import infoscope
from infoscope.config.tree import CONF_FOLDER
from tests.support.pipeline_samples import copy_run, finish_tiny_run, make_overrides

TOY = """
from infoscope.pipeline.stage import Needs, SeedStage, Work, name_artifacts
from infoscope.report.section import ReportSection
from infoscope.report.tables import Column, Table
from infoscope.runtime.files import write_json
from infoscope.stages.rank import Rank


class Toy(SeedStage):
    kind = "toy"
    in_report = True
    columns = (Column("n_toys", "toys", digits=0),)

    def needs(self, ctx, seed):
        return Needs(ranking=Rank.at(ctx, seed))

    def key(self, ctx, up, seed):
        return {"ranking": up.ranking.hash}

    def build(self, ctx, up, work, seed):
        write_json(work.folder / "toys.json", 100 + up.ranking.load().d_sae)

    def load(self, ctx, folder, seed):
        return int((folder / "toys.json").read_text())

    def work(self, ctx, seed):
        return Work(1, forwards=123, distances=456)

    def rows(self, ctx, seed):
        toy = self.at(ctx, seed)
        yield {**name_artifacts(toy.get()), "n_toys": toy.load()}

    def section(self, ctx):
        table = Table("toys", "How many toys", self.columns)
        found = [self.at(ctx, seed).load() for seed in ctx.config.seeds]
        for n_toys in found:
            table.add_row(n_toys)
        return ReportSection("toy", "Toys", ("There are toys.",), {"toys": table}, summary={"n_toys": found})
"""
LINE = '    Entry("toy", "stages.toy:Toy", "count toys"),\n'
COMMANDS = """
import contextlib, io, json, sys
import pytest
from tests.support import quick_hydra
from tests.support.app_samples import run_infoscope
from tests.support.pipeline_samples import unsaved_figures
import infoscope

assert infoscope.__file__.startswith(sys.argv[1]), infoscope.__file__
told = {}
with pytest.MonkeyPatch.context() as patch, unsaved_figures():  # as in tests/conftest.py
    quick_hydra.speed_up(patch)
    for name, arguments in json.load(sys.stdin).items():
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = run_infoscope(*arguments)
        told[name] = [code, out.getvalue()]
print(json.dumps(told))
"""
N_TOYS = 132
"""A hundred, and the latents of the tiny run."""


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything exists but the toys and what is made of them."""
    return copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path_factory.mktemp("toy") / "run")


@pytest.fixture(scope="module")
def printed(output_dir: Path) -> dict[str, str]:
    """What the commands of a copy of the package with one stage more have printed, each of which has succeeded."""
    package = output_dir.parent / "src" / "infoscope"
    shutil.copytree(Path(infoscope.__file__).parent, package, ignore=shutil.ignore_patterns("conf"))
    (output_dir.parent / "conf").symlink_to(CONF_FOLDER)
    (package / "stages" / "toy.py").write_text(TOY)
    registry = (package / "registry.py").read_text()
    (package / "registry.py").write_text(registry.replace("STAGES = (\n", f"STAGES = (\n{LINE}"))

    tiny = make_overrides(output_dir)
    commands = {
        "help": ["--help"],
        "plan": [*tiny, "stage=toy", "plan=true"],
        "run": [*tiny, "stage=toy"],
        "plan again": [*tiny, "stage=toy", "plan=true"],
        "report": tiny,
        "sweep": [*tiny, "stage=toy", "-m", "scope.k_cds=1,2"],
        "collect": [f"output_dir={output_dir}", "stage=collect"],
        "artifacts": [f"output_dir={output_dir}", "stage=artifacts"],
    }
    repository = Path(__file__).parents[2]
    paths = os.pathsep.join(map(str, (package.parent, repository)))
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(package)],
        input=json.dumps(commands),
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"},
        cwd=output_dir.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert {name: code for name, (code, _) in told.items()} == dict.fromkeys(commands, 0), done.stderr
    return {name: text for name, (_, text) in told.items()}


def cells(text: str, first: str) -> list[str]:
    """The words of the only line that begins with one."""
    (line,) = [line for line in text.splitlines() if line.split("  ")[0].strip() == first]
    return line.removeprefix(first).split()


def test_help_names_it(printed: dict[str, str]) -> None:
    assert [line.split() for line in printed["help"].splitlines() if "toy" in line] == [["toy", "count", "toys"]]


def test_a_plan_counts_it(printed: dict[str, str]) -> None:
    assert cells(printed["plan"], "toy, seed 0") == ["1", "123", "456", "-"]
    assert cells(printed["plan"], "rank, seed 0") == ["1"]
    assert cells(printed["plan again"], "toy, seed 0") == ["1"]


def test_its_stage_builds_it_and_prints_its_table(printed: dict[str, str], output_dir: Path) -> None:
    assert len(list((output_dir / "artifacts" / "toy").glob("[!.]*"))) == 1
    for text in ("How many toys", f"| {N_TOYS} |", "There are toys."):
        assert text in printed["run"]


def test_the_report_has_its_section(printed: dict[str, str], output_dir: Path) -> None:
    assert "Toys: There are toys." in printed["report"]
    reports = [file for file in (output_dir / "artifacts" / "report").glob("*/report.md") if "Toys" in file.read_text()]
    assert len(reports) == 1
    assert f"| {N_TOYS} |" in reports[0].read_text()
    assert json.loads(reports[0].with_name("summary.json").read_text())["toy"] == {"n_toys": [N_TOYS]}


def test_a_sweep_of_it_is_collected(printed: dict[str, str], output_dir: Path) -> None:
    (file,) = (output_dir / "collected").glob("*/jobs.parquet")
    rows = pq.read_table(file).to_pylist()
    assert [(row["stage"], row["seed"], row["n_toys"]) for row in rows] == [("toy", 0, N_TOYS)] * 2
    assert all(row["artifact"] == f"toy:{row['hash.toy']}" for row in rows)
    assert "toys" in file.with_suffix(".md").read_text()
    assert "| toys |" in printed["collect"].replace("  ", " ")


def test_housekeeping_lists_it(printed: dict[str, str]) -> None:
    assert [line for line in printed["artifacts"].splitlines() if "toy/" in line and "whole" in line]
