"""stage=artifacts: what there is, who uses it, what is damaged, what can go and what never goes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import pytest

from infoscope.commands.artifacts import command
from infoscope.commands.artifacts.command import run_artifacts_command
from infoscope.commands.artifacts.inventory import Entry, Kind, list_entries
from infoscope.commands.experiments.sweep import main
from infoscope.config.tree import compose
from infoscope.pipeline.run import run
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.runtime.manifests import FORMAT_VERSION, MANIFEST, Artifact, Spec
from infoscope.runtime.store import Store, Workspace
from infoscope.runtime.uses import USES_FILE, UseRecord, find_uses, read_uses, write_uses
from tests.support.app_samples import run_infoscope
from tests.support.experiment_samples import load_experiment
from tests.support.pipeline_samples import Recorder, copy_run, finish_tiny_run, make_overrides, make_tiny_config

DEAD = f"{''.join(c for c in socket.gethostname() if c.isalnum())}-999999999-abcd"


def make(output_dir: Path, stage: str, number: int = 0, **upstream: Artifact) -> Artifact:
    """Make a small artifact."""

    def build(work: Workspace) -> None:
        (work.folder / "numbers.txt").write_text(f"{number}\n" * 10)

    key = {"number": number, "of": {role: artifact.hash for role, artifact in upstream.items()}}
    return Store(output_dir / "artifacts").get(Spec(stage, f"n{number}", key), build, **upstream)


def keep(output_dir: Path, *overrides: str) -> tuple[list[Entry], str]:
    """Keep house; return what there was and what was said."""
    display = Recorder()
    chosen = [f"artifacts.{override}" for override in overrides]
    config = compose([f"output_dir={output_dir}", "stage=artifacts", *chosen])
    return run_artifacts_command(config, display=display), display.text


def prune(output_dir: Path, min_age_h: float = 0, delete: bool = True) -> str:
    return keep(output_dir, "prune=true", f"delete={str(delete).lower()}", f"min_age_h={min_age_h}")[1]


def use(folder: Path, *artifacts: Artifact) -> None:
    """Let a run have used some artifacts."""
    write_uses(folder, {artifact.hash: artifact.manifest["stage"] for artifact in artifacts})


def find_names(output_dir: Path) -> set[str]:
    """What lies in the artifacts folder, hidden things included."""
    return {f"{path.parent.name}/{path.name}" for path in (output_dir / "artifacts").glob("*/*")}


def name(artifact: Artifact) -> str:
    return f"{artifact.folder.parent.name}/{artifact.folder.name}"


# -- what runs write down ----------------------------------------------------------------------------------------------


def test_a_run_writes_down_everything_it_uses(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    output_dir = copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path / "run", but=("report", "confounds"))
    folder = output_dir / "runs" / "one"
    run(make_tiny_config(output_dir), Recorder(), Job(folder))
    used = read_uses(folder / USES_FILE)
    lying = {entry.hash: entry for entry in list_entries(output_dir / "artifacts") if entry.kind is Kind.whole}
    needed_while_building = {entry.hash for entry in lying.values() if entry.stage in ("features", "image_means")}
    assert used.keys() <= lying.keys() - needed_while_building
    assert {what.split("/")[0] for what in used.values()} >= {"scenes", "tokens", "probe", "confounds", "report"}
    before = find_names(output_dir)
    prune(output_dir)
    gone = {entry.name for entry in lying.values() if entry.hash in needed_while_building}
    assert {path for path in before - find_names(output_dir) if not path.endswith(".lock")} == gone
    again = Recorder()
    run(make_tiny_config(output_dir), again, Job(folder))
    assert again.stages("built") == []


def test_what_an_earlier_try_has_written_stays(tmp_path: Path) -> None:
    first, second = Spec("rank", "a", {"n": 1}), Spec("rank", "b", {"n": 2})
    UseRecord(tmp_path / "run", tmp_path / "artifacts").add(first)
    UseRecord(tmp_path / "run", tmp_path / "artifacts").add(second)
    assert read_uses(tmp_path / "run" / USES_FILE) == {first.hash: "rank/a", second.hash: "rank/b"}
    (tmp_path / "run" / USES_FILE).write_text("{")
    UseRecord(tmp_path / "run", tmp_path / "artifacts").add(first)
    assert read_uses(tmp_path / "run" / USES_FILE) == {first.hash: "rank/a"}


def test_an_experiment_writes_down_what_its_tables_are_made_of(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    output_dir = copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path / "run")
    experiment, folder = load_experiment("cds_histograms").EXPERIMENT, output_dir / "experiments" / "cds_histograms"
    use(folder, make(output_dir, "other"))  # of an earlier command, whose tables are written over
    assert main(experiment, [*make_overrides(output_dir), "stage=score", "build=false"]) == 0
    stages = {what.split("/")[0] for what in read_uses(folder / USES_FILE).values()}
    assert stages == {"train_sae", "rank", "score"}
    prune(output_dir)
    left = {name.split("/")[0] for name in find_names(output_dir) if "/." not in name}
    assert left == {"scenes", "tokens", *stages}  # what those are made from is kept by their manifests


# -- listing and verifying ---------------------------------------------------------------------------------------------


def test_artifacts_are_listed_with_size_age_and_users(tmp_path: Path) -> None:
    source = make(tmp_path, "tokens")
    made = [make(tmp_path, "rank", number, source=source) for number in range(15)]
    use(tmp_path / "runs" / "monday", source, made[0])
    os.utime(made[1].folder / "numbers.txt", (0, 0))
    _, said = keep(tmp_path)
    assert f"| {name(source)} |" in said
    assert "| 1 | 15 | whole |" in said
    assert "rank: 3 more" in said
    assert "16 artifacts" in said
    assert "no run refers to 14 of them" in said
    with (tmp_path / "housekeeping" / "artifacts.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert len([row for row in rows.values() if row["state"].startswith("whole")]) == 16
    row = rows[name(source)]
    assert (row["runs"], row["n_runs"], row["n_artifacts"]) == ("runs/monday", "1", "15")
    assert set(row["made_from_it"].split()) == {name(artifact) for artifact in made}
    assert int(row["n_bytes"]) >= sum(file.stat().st_size for file in source.folder.iterdir())
    assert int(row["age_s"]) < 600
    assert rows[name(made[3])]["state"] == "whole, unreferenced"


def test_an_empty_folder_has_no_artifacts(tmp_path: Path) -> None:
    entries, said = keep(tmp_path)
    assert entries == []
    assert "0 artifacts, 0 kB" in said
    assert "Deleted 0 things" in prune(tmp_path)


@pytest.mark.parametrize("seen_at_once", [True, False])
def test_damage_is_named_and_the_exit_code_is_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seen_at_once: bool
) -> None:
    whole, damaged = make(tmp_path, "rank"), make(tmp_path, "score")
    file = damaged.folder / "numbers.txt"
    file.write_text("0" if seen_at_once else "1" * len(file.read_text()))
    assert ("damaged: " in keep(tmp_path)[1]) is seen_at_once
    assert run_infoscope("stage=artifacts", "artifacts.verify=true", f"output_dir={tmp_path}") == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("infoscope: Found damaged artifacts: 1, listed above. ")
    assert f"damaged: {damaged.folder}: numbers.txt" in printed.out
    assert "those of 1 are as they were written" in " ".join(printed.out.split())
    assert str(whole.folder) not in printed.out
    assert make(tmp_path, "score").built
    assert run_infoscope("stage=artifacts", "artifacts.verify=true", f"output_dir={tmp_path}") == 0


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format_version": "x"}', '{"format_version": 2}'])
def test_a_manifest_that_cannot_be_read_is_damage_and_is_built_anew(tmp_path: Path, text: str) -> None:
    artifact = make(tmp_path, "rank")
    (artifact.folder / MANIFEST).write_text(text)
    entries, said = keep(tmp_path)
    assert [entry.kind for entry in entries if entry.name == name(artifact)] == [Kind.damaged]
    assert f"damaged: {artifact.folder}: its manifest cannot be read" in said
    assert make(tmp_path, "rank").built


# -- other formats -----------------------------------------------------------------------------------------------------


def set_version(artifact: Artifact, version: int) -> None:
    manifest: dict[str, Any] = json.loads((artifact.folder / MANIFEST).read_text())
    (artifact.folder / MANIFEST).write_text(json.dumps({**manifest, "format_version": version}))


def test_an_artifact_of_a_newer_format_is_refused_in_one_sentence_and_never_touched(tmp_path: Path) -> None:
    artifact = make(tmp_path, "rank", 1)
    set_version(artifact, FORMAT_VERSION + 1)
    before = {path: path.read_bytes() for path in artifact.folder.iterdir()}
    for number in (1, 2):  # the same thing, and another one of its stage
        with pytest.raises(InputError, match=rf"has format version {FORMAT_VERSION + 1}, .*: update infoscope, or set"):
            make(tmp_path, "rank", number)
    assert make(tmp_path, "score").built
    said = prune(tmp_path)
    assert f"of a newer infoscope, left alone: {artifact.folder}" in said
    assert {path: path.read_bytes() for path in artifact.folder.iterdir()} == before


def test_artifacts_of_an_older_format_go_though_runs_used_them(tmp_path: Path) -> None:
    old, new = make(tmp_path, "rank", 1), make(tmp_path, "rank", 2)
    use(tmp_path / "runs" / "monday", old, new)
    set_version(old, FORMAT_VERSION - 1)
    said = prune(tmp_path)
    assert f"deleted: {name(old)}" in said
    assert "of an older format" in said
    assert find_names(tmp_path) == {name(new)}


# -- pruning -----------------------------------------------------------------------------------------------------------


def test_what_runs_reach_stays_and_the_rest_goes(tmp_path: Path) -> None:
    source = make(tmp_path, "tokens")
    middle = make(tmp_path, "rank", source=source)
    last = make(tmp_path, "score", ranking=middle)
    alone = make(tmp_path, "score", 7)
    use(tmp_path / "sweeps" / "monday" / "3", last)  # names the last alone: what it is made of is reached too
    before = find_names(tmp_path)
    said = prune(tmp_path, delete=False)
    assert find_names(tmp_path) == before
    assert f"would go: {name(alone)}" in said
    assert "Nothing was deleted. 1 things, " in said
    assert "add artifacts.delete=true" in said
    prune(tmp_path)
    assert find_names(tmp_path) == {name(source), name(middle), name(last)}
    shutil.rmtree(tmp_path / "sweeps" / "monday")
    prune(tmp_path)
    assert find_names(tmp_path) == set()


def test_what_is_young_stays(tmp_path: Path) -> None:
    artifact = make(tmp_path, "rank")
    said = prune(tmp_path, min_age_h=1)
    assert artifact.folder.is_dir()
    assert "1 more are younger than artifacts.min_age_h=1 hours" in said
    for path in (*artifact.folder.iterdir(), artifact.folder):
        os.utime(path, (0, 0))
    prune(tmp_path, min_age_h=1)
    assert not artifact.folder.exists()


def test_a_run_that_lies_elsewhere_keeps_its_artifacts_until_it_is_gone(tmp_path: Path) -> None:
    output_dir, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    artifact = make(output_dir, "rank")
    UseRecord(elsewhere, output_dir / "artifacts").add(Spec("rank", "n0", artifact.manifest["key"]))
    assert [folder for folder, _ in find_uses(output_dir)] == [elsewhere]
    prune(output_dir)
    assert artifact.folder.is_dir()
    shutil.rmtree(elsewhere)
    prune(output_dir)
    assert not artifact.folder.exists()
    assert not list((output_dir / "artifacts" / ".elsewhere").iterdir())


def test_an_artifact_that_a_run_begins_to_use_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = make(tmp_path, "rank")

    def choose(*arguments: Any) -> Any:
        chosen = original(*arguments)
        use(tmp_path / "runs" / "now", artifact)
        return chosen

    original = command.choose
    monkeypatch.setattr(command, "choose", choose)
    monkeypatch.setattr(command, "LOOK_AGAIN_S", -1.0)
    assert f"stays, it is in use: {name(artifact)}" in prune(tmp_path)
    assert artifact.folder.is_dir()


def test_leftovers_of_killed_runs_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "rank"
    wanted, unwanted = Spec("rank", "a", {"n": 1}), Spec("rank", "b", {"n": 2})
    mine = f"{DEAD.split('-')[0]}-{os.getpid()}-abcd"
    stay = [f".{wanted.hash}.progress", f".{'1' * 16}.{mine}.tmp", f".{'2' * 16}.elsewhere-1-abcd.tmp"]
    go = [f".{unwanted.hash}.progress", f".{'3' * 16}.{DEAD}.tmp"]
    for name_ in (*stay, *go):
        (folder / name_).mkdir(parents=True)
        (folder / name_ / "part").write_text("half")
    (folder / f".{'4' * 16}.lock").touch()
    write_uses(tmp_path / "runs" / "monday", {wanted.hash: "rank/a"})
    assert "2 things" in prune(tmp_path, delete=False)
    prune(tmp_path)
    assert {path.name for path in folder.iterdir()} == set(stay)
    for path in (*(folder / stay[2]).iterdir(), folder / stay[2]):
        os.utime(path, (0, 0))
    prune(tmp_path)
    assert {path.name for path in folder.iterdir()} == set(stay[:2])


def test_what_a_living_process_has_locked_stays(tmp_path: Path) -> None:
    artifact = make(tmp_path, "rank")
    folder, name_ = artifact.folder.parent, artifact.hash
    (folder / f".{name_}.{DEAD}.tmp").mkdir()
    (folder / f".{name_}.progress").mkdir()
    (folder / f".{'5' * 16}.progress").mkdir()  # of work on several artifacts, whose locks nobody can tell
    with filelock.FileLock(folder / f".{name_}.lock"):
        before = find_names(tmp_path)
        prune(tmp_path)
        assert find_names(tmp_path) == before
    prune(tmp_path)
    assert find_names(tmp_path) == set()


def test_nothing_outside_the_artifacts_folder_is_deleted(tmp_path: Path) -> None:
    output_dir, outside = tmp_path / "out", tmp_path / "outside"
    treasure = make(outside, "rank")
    root = output_dir / "artifacts"
    (root / "rank").mkdir(parents=True)
    (root / "rank" / treasure.folder.name).symlink_to(treasure.folder)
    (root / "score").symlink_to(outside / "artifacts" / "rank")
    (root / "rank" / f".{'6' * 16}.progress").symlink_to(outside)
    (root / "rank" / "notes.txt").write_text("mine")
    (root / "rank" / "my folder").mkdir()
    inner = make(output_dir, "tokens")
    (inner.folder / "link").symlink_to(outside)
    entries, said = keep(output_dir, "prune=true", "delete=true", "min_age_h=0")
    assert sum(entry.kind is Kind.foreign for entry in entries) == 5
    assert said.count("not ours, left alone: ") == 5
    assert not inner.folder.exists()
    assert (treasure.folder / "numbers.txt").is_file()
    assert {path.name for path in (root / "rank").iterdir()} == {
        treasure.folder.name,
        f".{'6' * 16}.progress",
        "notes.txt",
        "my folder",
    }
    assert (root / "score").is_symlink()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["artifacts.delete=true"], "artifacts.delete=true deletes what artifacts.prune=true finds: give both."),
        (["artifacts.min_age_h=-1"], "Expected artifacts.min_age_h to be at least 0, got -1.0."),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert run_infoscope("stage=artifacts", f"output_dir={tmp_path}", *arguments) == 2
    assert capsys.readouterr().err == f"infoscope: {sentence}\n"


def test_listing_needs_none_of_the_heavy_packages(tmp_path: Path) -> None:
    use(tmp_path / "runs" / "1", make(tmp_path, "tokens"))
    script = """
import sys
from infoscope import app
code = app.run_command_line()
heavy = {"torch", "lightning", "open_clip", "wandb", "scipy", "matplotlib"}
print(code, sorted(heavy & set(sys.modules)))
"""
    options = ["stage=artifacts", "artifacts.prune=true", f"output_dir={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", script, *options], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
