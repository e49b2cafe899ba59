"""Which artifacts a run uses, written into its own folder: pruning keeps them as long as that folder exists.

`artifacts.json` holds {"artifacts": {hash: "<stage>/<name>"}}: what the run has read, built, or begun to build. A run
whose folder is not below its output folder leaves a note of where it is in the artifacts' folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from infoscope.runtime import processes
from infoscope.runtime.files import atomic_write
from infoscope.runtime.manifests import Spec, compute_hash

USES_FILE = "artifacts.json"
NOTES = ".elsewhere"
"""Next to the stages' folders: notes of runs that lie somewhere else."""


class UseRecord:
    """The record of one run.

    Args:
        folder: the run's own; None: a run that has none leaves no record.
        root: the artifacts' folder, in the run's output folder.
    """

    def __init__(self, folder: Path | None, root: Path) -> None:
        self.folder, self.root = folder, root
        self._uses: dict[str, str] | None = None

    def add(self, spec: Spec) -> None:
        """Write down one more artifact; what an earlier try of the same run has written stays."""
        if self.folder is None or not processes.is_main():
            return
        if self._uses is None:
            self._uses = read_uses(self.folder / USES_FILE)
            self._leave_note(self.folder)
        if spec.hash not in self._uses:
            self._uses[spec.hash] = f"{spec.stage}/{spec.name}"
            write_uses(self.folder, self._uses)

    def _leave_note(self, folder: Path) -> None:
        place = folder.resolve()
        if not place.is_relative_to(self.root.parent.resolve()):
            notes = self.root / NOTES
            notes.mkdir(parents=True, exist_ok=True)
            _write(notes / f"{compute_hash(str(place))}.json", {"folder": str(place)})


def read_uses(file: Path) -> dict[str, str]:
    """Return what a run has written down, by hash; nothing where it cannot be read."""
    try:
        uses = json.loads(file.read_text(encoding="utf-8"))["artifacts"]
        return {str(name): str(what) for name, what in uses.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_uses(folder: Path, uses: Mapping[str, str]) -> None:
    """Write down what a run uses, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / USES_FILE, {"artifacts": dict(uses)})


def find_uses(output_dir: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield the folder of every run that exists and has written something down, and what."""
    artifacts = output_dir / "artifacts"
    places = [place for place in output_dir.glob("*") if place != artifacts and place.is_dir()]
    for note in sorted((artifacts / NOTES).glob("*.json")):
        place = read_note(note)
        if place is not None:
            places.append(place)
    for place in places:
        for file in sorted(place.rglob(USES_FILE)):
            if uses := read_uses(file):
                yield file.parent, uses


def read_note(note: Path) -> Path | None:
    """Return the folder that a note names, None if it does not exist any more."""
    try:
        folder = Path(json.loads(note.read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if folder.is_dir() else None


def _write(file: Path, content: object) -> None:
    with atomic_write(file) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
