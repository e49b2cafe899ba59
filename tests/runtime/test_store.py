"""A folder under its final name is whole or it is rebuilt; whatever interrupts a build, the same command goes on."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import socket
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import filelock
import pytest

from infoscope.runtime import environment, manifests
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import FORMAT_VERSION, MANIFEST, Artifact, Spec, compute_hash
from infoscope.runtime.store import Store, Workspace
from tests.support.quick_processes import get_quick_context

SPEC = Spec("rank", "topk", {"k": 8, "images": {"seed": 0, "split": "train"}})
CONTENT = {"values.bin": b"0123456789", "maps/first.bin": b"abc"}


@pytest.fixture(autouse=True)
def _cheap_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking torch and git what they are takes seconds; one test does."""
    monkeypatch.setattr(manifests, "describe_environment", dict)


class Recorder:
    """A store that tells what happened, opened anew as a new process would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events: list[str] = []
        self.n_builds = 0

    def open(self, lock_timeout_s: float = 60, config: Any = None) -> Store:
        self.events.clear()
        return Store(self.root, lambda event, spec, detail: self.events.append(event), lock_timeout_s, config=config)

    def build(self, work: Workspace) -> None:
        self.n_builds += 1
        for name, content in CONTENT.items():
            file = work.folder / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)

    def get(self) -> Artifact:
        return self.open().get(SPEC, self.build)

    def visible(self) -> list[str]:
        """Whatever lies in the stage's folder beside lock files."""
        return sorted(path.name for path in (self.root / SPEC.stage).iterdir() if path.suffix != ".lock")


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "artifacts")


# -- hashes ----------------------------------------------------------------------------------------------------------


def test_the_hash_is_that_of_canonical_json():
    text = f'[{FORMAT_VERSION},"rank",{{"images":{{"seed":0,"split":"train"}},"k":8}}]'
    assert SPEC.hash == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_the_order_of_keys_and_the_name_do_not_matter():
    reordered = Spec("rank", "another-name", {"images": {"split": "train", "seed": 0}, "k": 8})
    assert reordered.hash == SPEC.hash
    assert reordered.folder_name != SPEC.folder_name


@pytest.mark.parametrize(
    "other",
    [
        Spec("score", "topk", SPEC.key),
        Spec("rank", "topk", {**SPEC.key, "k": 9}),
        Spec("rank", "topk", {**SPEC.key, "k": "8"}),
        Spec("rank", "topk", {**SPEC.key, "more": None}),
    ],
)
def test_whatever_determines_the_content_changes_the_hash(other: Spec):
    assert other.hash != SPEC.hash


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_know_are_refused(value: float):
    with pytest.raises(ValueError, match="JSON compliant"):
        compute_hash({"gamma": value})


def test_only_plain_types_are_hashed():
    with pytest.raises(TypeError):
        compute_hash({"root": Path("somewhere")})


# -- building and reusing --------------------------------------------------------------------------------------------


def test_a_build_becomes_a_folder_with_a_manifest(recorder: Recorder):
    upstream = Artifact(recorder.root / "train_sae" / "x", "0123456789abcdef", {}, built=False)
    made = recorder.open(config={"scope": {"k_cds": 8}}).get(SPEC, recorder.build, sae=upstream)
    assert made.built
    assert made.folder == recorder.root / "rank" / f"topk-{SPEC.hash}"
    assert {name: (made.folder / name).read_bytes() for name in CONTENT} == CONTENT
    assert (made.folder / "config.yaml").read_text() == "scope:\n  k_cds: 8\n"

    manifest = made.read_json(MANIFEST)
    assert manifest == made.manifest
    assert manifest["hash"] == made.hash == SPEC.hash
    assert manifest["key"] == SPEC.key
    assert manifest["upstream"] == {"sae": "0123456789abcdef"}
    assert set(manifest["files"]) == {*CONTENT, "config.yaml"}
    for name, content in CONTENT.items():
        assert manifest["files"][name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert recorder.events == ["building", "built"]
    assert recorder.visible() == [made.folder.name]


def test_the_environment_names_versions_and_hardware(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    facts = environment.describe_environment()
    assert {"python", "infoscope", "torch", "lightning"} <= set(facts["versions"])
    assert "not installed" not in facts["versions"].values()
    assert facts["hardware"]["cores"] >= 1
    assert set(facts) == {"versions", "commit", "hardware"}


def test_a_second_request_reuses_without_building(recorder: Recorder):
    first = recorder.get()
    second = recorder.get()
    assert (second.folder, second.manifest, second.built) == (first.folder, first.manifest, False)
    assert recorder.events == ["reused"]
    assert recorder.n_builds == 1


def test_a_renamed_artifact_is_found_by_its_hash(recorder: Recorder):
    recorder.get()
    renamed = Spec(SPEC.stage, "another-name", SPEC.key)
    assert not recorder.open().get(renamed, recorder.build).built


# -- damage ----------------------------------------------------------------------------------------------------------


def flip_a_byte(folder: Path) -> None:
    (folder / "values.bin").write_bytes(b"0123456788")


def cut_a_file(folder: Path) -> None:
    (folder / "values.bin").write_bytes(b"01234")


def lose_a_file(folder: Path) -> None:
    (folder / "maps" / "first.bin").unlink()


def cut_the_manifest(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])


def lose_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def empty_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("[]")


def forge_the_hash(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "hash": "0" * 16}))


@pytest.mark.parametrize(
    "damage",
    [flip_a_byte, cut_a_file, lose_a_file, cut_the_manifest, lose_the_manifest, empty_the_manifest, forge_the_hash],
)
def test_a_damaged_artifact_is_rebuilt(recorder: Recorder, damage: Callable[[Path], None]):
    damage(recorder.get().folder)
    again = recorder.get()
    assert again.built
    assert recorder.events == ["damaged", "building", "built"]
    assert (again.folder / "values.bin").read_bytes() == CONTENT["values.bin"]
    assert not recorder.get().built


# -- interruptions ---------------------------------------------------------------------------------------------------


def test_what_a_killed_process_left_is_ignored_and_cleaned(recorder: Recorder):
    host = "".join(character for character in socket.gethostname() if character.isalnum())
    left = recorder.root / SPEC.stage / f".{SPEC.hash}.{host}-4194304-deadbeef.tmp"
    left.mkdir(parents=True)
    (left / "values.bin").write_bytes(b"012")
    (left.parent / f".{SPEC.hash}.lock").touch()
    assert recorder.open().find(SPEC) is None
    made = recorder.get()
    assert made.built
    assert recorder.visible() == [made.folder.name]


@pytest.mark.parametrize("other_is_damaged", [False, True])
def test_a_lost_lock_costs_work_and_nothing_else(recorder: Recorder, other_is_damaged: bool):
    """Another process makes the same artifact at the same time, since the lock is gone, and is done first."""
    other = Recorder(recorder.root)

    def build(work: Workspace) -> None:
        recorder.build(work)
        (recorder.root / SPEC.stage / f".{SPEC.hash}.lock").unlink()
        made = other.get()
        assert made.built
        assert work.folder.exists(), "it does not touch what this process is at"
        if other_is_damaged:
            (made.folder / "values.bin").write_bytes(b"other")

    made = recorder.open().get(SPEC, build)
    assert (made.folder / "values.bin").read_bytes() == CONTENT["values.bin"]
    assert recorder.open().find(SPEC) is not None
    assert recorder.visible() == [made.folder.name]


def test_a_process_that_loses_its_progress_to_a_faster_one_takes_what_that_has_made(recorder: Recorder):
    other = Recorder(recorder.root)

    def build(work: Workspace) -> None:
        (recorder.root / SPEC.stage / f".{SPEC.hash}.lock").unlink()
        (work.progress / "part").touch()
        assert other.get().built
        (work.progress / "part").read_bytes()

    made = recorder.open().get(SPEC, build)
    assert not made.built
    assert (made.folder / "values.bin").read_bytes() == CONTENT["values.bin"]


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failed_build_leaves_nothing(recorder: Recorder, error: BaseException):
    def build(work: Workspace) -> None:
        recorder.build(work)
        raise error

    with pytest.raises(type(error)) as caught:
        recorder.open().get(SPEC, build)
    assert caught.value is error
    assert recorder.visible() == []
    assert recorder.get().built


def test_an_interrupted_build_goes_on_from_its_progress(recorder: Recorder):
    def interrupted(work: Workspace) -> None:
        (work.progress / "step-100.ckpt").write_bytes(b"weights")
        raise KeyboardInterrupt

    def resumed(work: Workspace) -> None:
        assert (work.progress / "step-100.ckpt").read_bytes() == b"weights"
        recorder.build(work)

    with pytest.raises(KeyboardInterrupt):
        recorder.open().get(SPEC, interrupted)
    assert recorder.visible() == [f".{SPEC.hash}.progress"]
    details: list[tuple[str, str]] = []
    store = Store(recorder.root, lambda event, spec, detail: details.append((event, detail)))
    made = store.get(SPEC, resumed)
    assert details[0] == ("building", "resuming")
    assert recorder.visible() == [made.folder.name]
    assert set(made.manifest["files"]) == set(CONTENT)


@pytest.mark.parametrize("kept", [[], ["part-0.pt"]])
def test_interrupted_work_on_several_artifacts_leaves_a_folder_only_where_it_kept_something(
    tmp_path: Path, kept: list[str]
):
    def work() -> None:
        with Store(tmp_path).open_progress("probe", {"seed": 0}) as folder:
            for name in kept:
                (folder / name).touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert [path.name for path in tmp_path.glob("probe/.*.progress/*")] == kept
    assert len(list((tmp_path / "probe").iterdir())) == len(kept)


# -- disks that are full or may not be written -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "is full: free some space or set output_dir"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "is full: free some space or set output_dir"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "is full: free some space"),
        (OSError(errno.EROFS, "Read-only file system"), "(Read-only file system): set output_dir to a folder"),
        (PermissionError(errno.EACCES, "Permission denied"), "(Permission denied): set output_dir to a folder"),
        (OSError(errno.EFBIG, "File too large"), "larger than the system lets it be"),
    ],
)
def test_a_disk_that_takes_nothing_is_one_sentence(recorder: Recorder, error: Exception, sentence: str):
    def build(work: Workspace) -> None:
        raise error

    with pytest.raises(InputError) as caught:
        recorder.open().get(SPEC, build)
    assert sentence in str(caught.value)
    assert str(recorder.root) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert recorder.visible() == []
    assert recorder.get().built


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_lock_or_a_folder_that_cannot_be_made_is_one_sentence(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, code: int
):
    def refuse(self: Any, *_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code), "a file")

    for owner, name in ((filelock.FileLock, "acquire"), (Path, "mkdir")):
        monkeypatch.setattr(owner, name, refuse)
        with pytest.raises(InputError, match=rf"{recorder.root}.* set output_dir"):
            recorder.get()
        with pytest.raises(InputError, match=rf"{recorder.root}.* set output_dir"), recorder.open().claim([SPEC]):
            pass
    with (
        pytest.raises(InputError, match=rf"{recorder.root}.* set output_dir"),
        recorder.open().open_progress("rank", "any"),
    ):
        pass
    assert recorder.n_builds == 0


def test_a_file_in_the_place_of_the_folder_is_one_sentence(tmp_path: Path):
    (tmp_path / "outputs").write_text("not a folder")
    with pytest.raises(InputError, match=r"Cannot write to .* set output_dir"):
        Store(tmp_path / "outputs").get(SPEC, Recorder(tmp_path).build)


def test_other_failures_of_the_system_are_not_explained_away(recorder: Recorder):
    def build(work: Workspace) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "maps.npy")

    with pytest.raises(FileNotFoundError, match=r"maps\.npy"):
        recorder.open().get(SPEC, build)


# -- several processes -------------------------------------------------------------------------------------------------


def test_a_lock_that_is_never_released_is_one_sentence(recorder: Recorder):
    (recorder.root / SPEC.stage).mkdir(parents=True)
    path = recorder.root / SPEC.stage / f".{SPEC.hash}.lock"
    with filelock.FileLock(path), pytest.raises(InputError) as caught:
        recorder.open(lock_timeout_s=0.05).get(SPEC, recorder.build)
    assert recorder.events == ["waiting"]
    assert f"if none runs, delete {path} and start again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert recorder.get().built


def test_a_disk_without_locks_is_one_sentence(recorder: Recorder, monkeypatch: pytest.MonkeyPatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(InputError, match=r"No locks available.*: let output_dir lie on a disk that knows locks"):
        recorder.get()


def build_in_another_process(root: Path, name: str, other_waits: Event) -> None:
    """Ask for the artifact; whoever builds it goes on only when the other one is seen to wait."""
    manifests.describe_environment = dict  # pyright: ignore[reportAttributeAccessIssue]
    events: list[str] = []

    def on_event(event: str, spec: Spec, detail: str) -> None:
        events.append(event)
        if event == "waiting":
            other_waits.set()

    def build(work: Workspace) -> None:
        (root / f"built-by-{name}").touch()
        assert other_waits.wait(60)
        (work.folder / "values.bin").write_bytes(CONTENT["values.bin"])

    Store(root / "artifacts", on_event).get(SPEC, build)
    (root / f"{name}.json").write_text(json.dumps(events))


@pytest.mark.long
def test_two_processes_build_once(tmp_path: Path):
    context = get_quick_context()
    other_waits = context.Event()
    names = ["a", "b"]
    processes = [
        context.Process(target=build_in_another_process, args=(tmp_path, name, other_waits), daemon=True)
        for name in names
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(tmp_path.glob("built-by-*"))) == 1
    told = [json.loads((tmp_path / f"{name}.json").read_text()) for name in names]
    assert sorted(told) == [["building", "built"], ["waiting", "reused"]]


# -- several at once -------------------------------------------------------------------------------------------------


def make_specs(*names: str) -> dict[str, Spec]:
    return {name: Spec("features", name, {"of": name}) for name in names}


def test_what_is_missing_is_built_by_one_call(tmp_path: Path):
    store, calls = Store(tmp_path), []

    def build(works: dict[str, Workspace]) -> None:
        calls.append(sorted(works))
        for name, work in works.items():
            (work.folder / "name").write_text(name)

    store.get(make_specs("b")["b"], lambda work: build({"b": work}))
    made = store.get_together(make_specs("a", "b", "c"), build)
    assert calls == [["b"], ["a", "c"]]
    assert [(made[name].folder / "name").read_text() for name in "abc"] == ["a", "b", "c"]
    assert {name: artifact.built for name, artifact in made.items()} == {"a": True, "b": False, "c": True}
    again = Store(tmp_path).get_together(make_specs("a", "b", "c"), build)
    assert len(calls) == 2
    assert not any(artifact.built for artifact in again.values())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a fault"), OSError(errno.ENOSPC, "full")])
def test_what_fails_together_leaves_nothing(tmp_path: Path, error: BaseException):
    def build(works: dict[str, Workspace]) -> None:
        (works["a"].folder / "name").write_text("a")
        raise error

    store = Store(tmp_path)
    with pytest.raises(InputError if isinstance(error, OSError) else type(error)):
        store.get_together(make_specs("a", "b"), build)
    assert [path.name for path in (tmp_path / "features").iterdir() if not path.name.endswith(".lock")] == []
