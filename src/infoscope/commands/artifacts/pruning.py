"""What can go: what no run refers to, what is of an older format, and what killed runs have left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock

from infoscope.commands.artifacts.inventory import ARTIFACTS, Entry, Kind
from infoscope.runtime.store import may_be_alive, name_temporary
from infoscope.runtime.uses import NOTES, find_uses, read_note

ABANDONED_S = 7 * 24 * 3600
"""A temporary folder of another machine, whose lock is free, is taken for dead when nothing has changed for so long."""


def find_users(entries: Sequence[Entry], output_dir: Path) -> set[str]:
    """Note the users of every entry, and return the hashes that runs reach: what they name, and what that is made of.

    Runs are those whose folder exists, see `infoscope.runtime.uses`.
    """
    by_hash: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.hash:
            by_hash.setdefault(entry.hash, []).append(entry)
        entry.runs.clear()
        entry.made.clear()
    reached: set[str] = set()
    for folder, uses in find_uses(output_dir):
        reached |= uses.keys()
        place = folder.relative_to(output_dir) if folder.is_relative_to(output_dir) else folder
        for name in uses:
            for entry in by_hash.get(name, []):
                entry.runs.append(str(place))
    for entry in entries:
        for name in entry.refers:
            for other in by_hash.get(name, []):
                other.made.append(entry.name)
    waiting = list(reached)
    while waiting:
        for entry in by_hash.get(waiting.pop(), []):
            waiting += entry.refers - reached
            reached |= entry.refers
    return reached


def choose(entries: Sequence[Entry], reached: set[str], min_age_s: float) -> list[tuple[Entry, str]]:
    """Return what can go, and why; never what is younger, of a newer format, not ours, or locked by a living process.

    Args:
        reached: by runs, see `find_users`.
        min_age_s: what was changed less long ago stays.
    """
    held = {(entry.stage, entry.hash) for entry in entries if entry.kind is Kind.lock and is_held(entry.path)}
    busy = {stage for stage, _ in held}
    chosen = []
    for entry in entries:
        is_young = entry.age_s() < min_age_s and entry.kind is not Kind.lock  # looking at a lock touches it
        if is_young or (entry.stage, entry.hash) in held:
            continue
        match entry.kind:
            case Kind.older:
                chosen.append((entry, "of an older format"))
            case Kind.whole | Kind.damaged if entry.hash not in reached:
                chosen.append((entry, "no run refers to it"))
            case Kind.temporary if not may_be_alive(entry.owner) or entry.age_s() > ABANDONED_S:
                chosen.append((entry, "left by a killed run"))
            case Kind.progress if entry.hash not in reached and entry.stage not in busy:
                chosen.append((entry, "progress that no run refers to"))
            case Kind.lock:
                chosen.append((entry, "a lock that nobody holds"))
    return chosen


def delete(entry: Entry, root: Path) -> bool:
    """Delete one thing that was chosen, and say whether it is gone; one that somebody has locked meanwhile stays.

    An artifact loses its name before its files, so that none is ever seen in part.
    """
    assert entry.path.parent.parent == root
    assert not entry.path.is_symlink()
    lock = entry.path if entry.kind is Kind.lock else entry.path.with_name(f".{entry.hash}.lock")
    with _hold(lock) as is_ours:
        if not is_ours:
            return False
        if entry.kind in ARTIFACTS:
            going = entry.path.with_name(name_temporary(entry.hash))
            entry.path.rename(going)
            shutil.rmtree(going)
        elif entry.kind is not Kind.lock:
            shutil.rmtree(entry.path)
        lock.unlink(missing_ok=True)
    return True


def is_held(path: Path) -> bool:
    """Whether a living process holds a lock."""
    with _hold(path) as is_ours:
        return not is_ours


@contextmanager
def _hold(path: Path) -> Iterator[bool]:
    """Hold a lock if nobody does, and say whether this process does."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def delete_notes(root: Path) -> None:
    """Delete the notes of runs that lay elsewhere and are gone."""
    for note in (root / NOTES).glob("*.json"):
        if read_note(note) is None:
            note.unlink(missing_ok=True)
