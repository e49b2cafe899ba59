"""What lies among the images of a data set and is not read: counted by what it is, the first of each kind named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

N_NAMED = 3
"""Names that are kept of each kind."""
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""What systems put next to photographs, such as their own small copies."""
HIDDEN, NO_SUFFIX = "hidden", "without a suffix"


@dataclass
class LeftOut:
    """What a reader leaves out.

    Args:
        unit: what is counted: "files", "lines", "members".
        counts: how many of each kind: {".heic": 5, "hidden": 3}.
        first: the first names of each kind.
        n_read: how many of the unit are read.
    """

    unit: str = "files"
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[str]] = field(default_factory=dict)
    n_read: int = 0

    def __bool__(self) -> bool:
        return bool(self.counts)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, kind: str, name: str) -> None:
        """Count one, of a kind that reads well behind a number."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        named = self.first.setdefault(kind, [])
        if len(named) < N_NAMED:
            named.append(name)

    def add_all(self, other: LeftOut) -> None:
        """Count what another part of the same data set leaves out."""
        for kind, n in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + n
            self.first[kind] = (self.first.get(kind, []) + other.first[kind])[:N_NAMED]

    def add_file(self, path: str) -> None:
        """Count a file that is no image, by its suffix."""
        self.add(PurePosixPath(path).suffix.lower() or NO_SUFFIX, path)

    def describe(self) -> str:
        """Return, for display: "8 of 24 files: 5 .heic (a.heic, b.heic, c.heic, ...), 3 hidden (.a.jpg, ...)"."""
        return f"{self.share}: {', '.join(f'{kind} ({names})' for kind, names in self.list_kinds())}"

    @property
    def share(self) -> str:
        """How many of how many: "8 of 24 files"."""
        return f"{self.total:,} of {self.n_read + self.total:,} {self.unit}"

    def list_kinds(self) -> Iterator[tuple[str, str]]:
        """Yield how many of each kind and their first names, the most first: ("5 .heic", "a.heic, b.heic, ...")."""
        for kind, n in sorted(self.counts.items(), key=lambda item: (-item[1], item[0])):
            names = self.first[kind]
            yield f"{n:,} {kind}", ", ".join([*names, "..."] if n > len(names) else names)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: hidden, or a system's own."""
    return name.startswith(".") or name in SYSTEM_FOLDERS
