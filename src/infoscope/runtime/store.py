"""Folders named by the hash of what determines their content.

An artifact is `<root>/<stage>/<name>-<hash>/`. The hash covers its *key* alone: the part of the configuration that
matters, fingerprints of data and weights, the hashes of the artifacts it was made from, and the format version; never
paths, devices, worker counts or time. It is built in a temporary folder next to it, under a file lock, and renamed when
whole, so a folder under its final name is complete; its manifest lists the checksum of every file, and a folder that
no longer agrees with its manifest is rebuilt, never used. A lost lock is harmless: at worst a thing is computed twice.

Where several processes work on one job (`processes`), the main one finds, locks and commits; the others wait for
its message.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from infoscope.runtime import processes
from infoscope.runtime.errors import explaining_writes
from infoscope.runtime.files import atomic_write, count_file_bytes, write_json
from infoscope.runtime.locks import Locks
from infoscope.runtime.manifests import (
    CONFIG,
    MANIFEST,
    Artifact,
    Spec,
    compute_hash,
    find_damage,
    make_manifest,
    read_manifest,
)
from infoscope.runtime.profile import Kind, spent_on
from infoscope.runtime.progress import Advance, ShowBar, show_nothing


@dataclass(frozen=True)
class Workspace:
    """Where a builder works.

    folder: the temporary folder whose files become the artifact.
    progress: a folder that outlives an interrupted build (checkpoints to resume from) and is deleted after success.
    notes: what else the manifest is to say, by key; not part of the hash.
    """

    folder: Path
    progress: Path
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def progress_bytes(self) -> int:
        """What an interrupted build has left."""
        return count_file_bytes(self.progress)


Build = Callable[[Workspace], None]
BuildAll = Callable[[dict[str, Workspace]], None]
"""Writes the files of what is missing into workspaces, by the names under which artifacts are asked for."""
Upstream = Mapping[str, Artifact]
"""What an artifact is made from, by role."""


def _must_exist(work: Workspace) -> None:
    raise AssertionError("what was just made is not in the store")


def _to_yaml(config: Any) -> str:
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # if it was compiled: the same text, four times as fast
    return yaml.dump(config, Dumper=dumper, sort_keys=False)


SHOWN_BYTES = 2**28
"""The reading of more than this is shown."""


class Store:
    """The artifacts below one folder.

    Args:
        root: usually `outputs/artifacts`.
        on_event: callback(event, spec, detail) for "building", "built", "reused", "waiting" or "damaged"; and "claimed"
            of what will be built, alone or with others, and of the progress of such work.
        lock_timeout_s: how long to wait for another process that builds the same artifact.
        show_bar: given a name, shows how far the reading of large files is, or for how long one has waited.
        config: the resolved configuration (plain containers), stored for readers with every artifact that is built.
    """

    checked_bytes = math.inf
    """Files up to this size are compared with their checksums before an artifact is used, larger ones by size alone."""

    def __init__(
        self,
        root: Path,
        on_event: Callable[[str, Spec, str], None] | None = None,
        lock_timeout_s: float = 6 * 3600,
        show_bar: ShowBar = show_nothing,
        config: Any = None,
    ) -> None:
        self.root, self._show_bar, self.config = root, show_bar, config
        self.on_event = on_event or (lambda event, spec, detail: None)
        self.locks = Locks(root, lambda *args: self.on_event(*args), lock_timeout_s, show_bar)
        self._verified: dict[Path, dict[str, Any]] = {}
        self._checked: set[str] = set()
        """Stages without artifacts of a newer format."""
        self._told: dict[str, dict[str, Artifact]] = {}

    def folder(self, spec: Spec) -> Path:
        """Return where the artifact lies, or would lie."""
        return self.root / spec.stage / spec.folder_name

    def find(self, spec: Spec) -> Artifact | None:
        """Return the artifact if it exists and agrees with its manifest, else None. Names do not matter, hashes do."""
        for folder in [self.folder(spec), *sorted((self.root / spec.stage).glob(f"*-{spec.hash}"))]:
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            manifest = self._verify(folder, spec)
            if manifest is not None:
                return Artifact(folder, spec.hash, manifest, built=False)
        return None

    def get(self, spec: Spec, build: Build = _must_exist, *, shared: bool = False, **upstream: Artifact) -> Artifact:
        """Return the artifact of `spec`, building it if it is missing or damaged.

        Args:
            build: writes the artifact's files into `workspace.folder`; none: the same run has just made it.
            shared: whether all processes of the job build together: each calls `build` with the same workspace, and the
                main one writes the files. Else the main one builds, as if it were alone, and the others wait.
            upstream: the artifacts it is made from, by role, for the manifest.

        Raises:
            InputError: if the folder cannot be written, the disk is full, or another process holds the lock too long.
        """
        name = spec.hash
        together = self.get_together({name: spec}, lambda works: build(works[name]), shared, {name: upstream})
        return together[name]

    def get_together(
        self,
        specs: Mapping[str, Spec],
        build: BuildAll,
        shared: bool = False,
        upstream: Mapping[str, Upstream] | None = None,
    ) -> dict[str, Artifact]:
        """Return several artifacts by name; those that are missing are built by one call, and none if it fails.

        Args:
            specs: by name, no two the same; the same artifacts always by the same names.
            build: writes the files of every missing artifact into the workspace of its name.
            shared: as for `get`.
            upstream: of each, by name, as for `get`.

        Raises:
            InputError: as `get`.
        """
        key = compute_hash([str(self.root.absolute()), *sorted(spec.hash for spec in specs.values())])
        if processes.current().rank > 0:
            return self._take_part(key, specs, build)
        is_shared = shared and processes.current().size > 1

        def build_with_others(works: dict[str, Workspace]) -> None:
            if is_shared:
                places = {name: [str(work.folder), str(work.progress)] for name, work in works.items()}
                processes.post(key, json.dumps({"works": places}))
            with nullcontext() if is_shared else processes.alone():
                build(works)
            if is_shared:
                processes.barrier()  # all files are written

        found = self._get_all(specs, build_with_others, upstream or {})
        folders = {name: str(artifact.folder) for name, artifact in found.items()}
        processes.post(key, json.dumps({"folders": folders}))  # from now on; those who have built read:
        processes.post(f"{key}/built", json.dumps(folders))
        return found

    def _take_part(self, key: str, specs: Mapping[str, Spec], build: BuildAll) -> dict[str, Artifact]:
        """Do what the main process says: take what exists, or build with it what does not."""
        if key not in self._told:
            message = json.loads(processes.wait_for(key))
            if "works" in message:
                works = {name: Workspace(Path(places[0]), Path(places[1])) for name, places in message["works"].items()}
                for work in works.values():
                    processes.wait_until_visible(work.folder)
                build(works)
                processes.barrier()
                message = {"folders": json.loads(processes.wait_for(f"{key}/built"))}
            self._told[key] = {}
            for name, place in message["folders"].items():
                folder = Path(place)
                processes.wait_until_visible(folder / MANIFEST)
                manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
                self._told[key][name] = Artifact(folder, specs[name].hash, manifest, built=False)
        return dict(self._told[key])

    def _get_all(
        self, specs: Mapping[str, Spec], build: BuildAll, upstream: Mapping[str, Upstream]
    ) -> dict[str, Artifact]:
        """Find, or lock, build and commit, as one process."""
        found: dict[str, Artifact] = {}
        try:
            with explaining_writes(self.root), ExitStack() as locks, ExitStack() as building:
                works, seals = {}, []
                # One order for all processes, so that no two wait for each other.
                for name, spec in sorted(specs.items(), key=lambda item: item[1].hash):
                    if self._reuse(name, spec, found):
                        continue
                    self._refuse_newer(spec.stage)
                    locks.enter_context(self.locks.hold(spec))
                    if not self._reuse(name, spec, found):  # another process may have built it while this one waited
                        works[name], seal = building.enter_context(self._build_locked(spec, upstream.get(name, {})))
                        seals.append(seal)
                if works:
                    build(works)
                    for seal in seals:  # checksums take their time: all first, then all are committed in one go
                        seal()
        except Exception as error:
            if isinstance(error, FileNotFoundError) and works:
                # Perhaps a lock was lost, and the process that was faster has taken the progress away.
                made = {name: artifact for name, spec in specs.items() if (artifact := self.find(spec))}
                if len(made) == len(specs):
                    return made
            raise
        for name in works:
            folder = self.folder(specs[name])
            found[name] = Artifact(folder, specs[name].hash, self._verified[folder], built=True)
        return found

    def _reuse(self, name: str, spec: Spec, found: dict[str, Artifact]) -> bool:
        """Put the artifact under its name if it exists, and say whether it does."""
        artifact = self.find(spec)
        if artifact is not None:
            self.on_event("reused", spec, str(artifact.folder))
            found[name] = artifact
        return artifact is not None

    @contextmanager
    def _build_locked(self, spec: Spec, upstream: Upstream) -> Iterator[tuple[Workspace, Callable[[], None]]]:
        """Give a workspace that becomes the artifact when the block is done, and goes when it is left by an error.

        Also what makes the manifest, when all files are there: to be called at the end of the block.
        """
        final = self.folder(spec)
        if final.exists():
            self.on_event("damaged", spec, str(final))
            shutil.rmtree(final)
        for stale in final.parent.glob(f".{spec.hash}.*.tmp"):
            if not may_be_alive(stale.name.removeprefix(f".{spec.hash}.")):
                shutil.rmtree(stale, ignore_errors=True)
        temporary = final.parent / name_temporary(spec.hash)
        progress = final.parent / f".{spec.hash}.progress"
        temporary.mkdir()
        progress.mkdir(exist_ok=True)
        self.on_event("building", spec, "resuming" if any(progress.iterdir()) else "")
        start, manifest = time.perf_counter(), {}
        work, is_resumed = Workspace(temporary, progress), any(progress.iterdir())

        def seal() -> None:
            if self.config is not None:
                (temporary / CONFIG).write_text(_to_yaml(self.config), encoding="utf-8")
            with self._reading(spec, temporary) as tell, spent_on(Kind.disk):
                manifest.update(make_manifest(spec, temporary, time.perf_counter() - start, upstream, tell))
            if not is_resumed:  # an earlier process has done a part: its seconds are lost
                manifest.update(work.notes)
            with atomic_write(temporary / MANIFEST, durable=True) as unfinished:  # renaming never shows an empty file
                write_json(unfinished, manifest)

        try:
            yield work, seal
            manifest = self._commit(temporary, final, spec) or manifest
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            with suppress(OSError):  # not empty: there is something to go on from
                progress.rmdir()
            raise
        shutil.rmtree(progress, ignore_errors=True)
        self._verified[final] = manifest
        self.on_event("built", spec, f"{manifest['wall_s']:.1f} s")

    def _commit(self, temporary: Path, final: Path, spec: Spec) -> dict[str, Any] | None:
        """Give an artifact its name; where another process was faster (a lock was lost), return its manifest."""
        try:
            os.replace(temporary, final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            manifest = self._verify(final, spec)
            if manifest is None:
                shutil.rmtree(final)
                os.replace(temporary, final)
            else:
                shutil.rmtree(temporary)
            return manifest
        return None

    @contextmanager
    def claim(self, specs: Iterable[Spec]) -> Iterator[list[str]]:
        """Lock those artifacts that are missing and that no other process builds, and give their hashes, in order.

        Where others build all that is missing, the first of these is waited for; so no hashes means that nothing is
        missing. Inside the block this store builds claimed artifacts without locking again, and each is free for other
        processes as soon as it is there; the rest when the block ends.

        Raises:
            InputError: as `get`.
        """
        specs = list(specs)
        for stage in {spec.stage for spec in specs}:
            self._refuse_newer(stage)
        with self.locks.claim(specs, lambda spec: self.find(spec) is not None) as claimed:
            yield claimed

    @contextmanager
    def open_progress(self, stage: str, key: Any) -> Iterator[Path]:
        """Give a folder for progress of work that makes several artifacts; it goes when it is left empty.

        Jobs that do such work at the same time share it, and each takes away what it has put there.

        Args:
            key: what determines the work, plain JSON types.
        """
        spec = Spec(stage, "progress", {"progress": key})
        folder = self.root / stage / f".{spec.hash}.progress"
        with explaining_writes(self.root):
            folder.mkdir(parents=True, exist_ok=True)
        self.on_event("claimed", spec, "")
        try:
            yield folder
            processes.barrier()
        finally:
            if processes.is_main():
                with suppress(OSError):  # there is something to go on from, or another job is at it
                    folder.rmdir()

    def _verify(self, folder: Path, spec: Spec) -> dict[str, Any] | None:
        """Return the manifest if every file agrees with it; checked once per process and folder."""
        if folder in self._verified:
            return self._verified[folder]
        manifest = read_manifest(folder)
        if manifest is None or manifest["hash"] != spec.hash:
            return None
        with self._reading(spec, folder) as tell, spent_on(Kind.disk):
            if any(find_damage(folder, manifest, self.checked_bytes, tell)):
                return None
        self._verified[folder] = manifest
        return manifest

    def _reading(self, spec: Spec, folder: Path) -> AbstractContextManager[Advance]:
        """Show how far the files of a folder are read, where that takes more than a moment."""
        show_bar = self._show_bar if count_file_bytes(folder) > SHOWN_BYTES else show_nothing
        return show_bar(f"reading {spec.stage}/{spec.name}, file by file")

    def _refuse_newer(self, stage: str) -> None:
        """Refuse to build where a newer infoscope has made something: it may be the same thing under another hash."""
        if stage not in self._checked:
            for folder in (self.root / stage).glob("[!.]*"):
                read_manifest(folder)
            self._checked.add(stage)


_HOST = "".join(character for character in socket.gethostname() if character.isalnum())


def name_temporary(name: str) -> str:
    """Return what this process calls a temporary folder for the artifact of a hash: `.<hash>.<owner>`."""
    return f".{name}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"


def may_be_alive(owner: str) -> bool:
    """Whether a temporary folder, `<host>-<pid>-<random>.tmp`, may still be filled: its lock may have been lost."""
    host, _, rest = owner.partition("-")
    pid = rest.partition("-")[0]
    if host != _HOST or not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True
