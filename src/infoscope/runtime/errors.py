"""The one exception for what a user can mend, a warning, other errors in few words, and what a wrong word may mean."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Something given from outside is not what was expected; the message is one sentence that says what to do.

    The command line prints the message alone and exits with code 2. Broken invariants of our own are `assert`s.
    """


class InputWarning(UserWarning):
    """What was read may not be what was meant, and numbers may be wrong; the message says why and what to do."""


def explain_write_error(error: BaseException, place: Path | str) -> InputError | None:
    """Return what a user can do about a failed write, or None if it is no such failure."""
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return InputError(
            f"A file in {place} would be larger than the system lets it be (ulimit -f, or the kind of disk): raise the"
            " limit or set output_dir to another disk, and run the same command again; finished artifacts are kept."
        )
    if _is_full_disk(error):
        return InputError(
            f"The disk that holds {place} is full: free some space or set output_dir to another disk, and run the same"
            " command again; finished artifacts are kept."
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return InputError(f"Cannot write to {place} ({error.strerror}): set output_dir to a folder you may write to.")
    return None


@contextmanager
def explaining_writes(place: Path | str) -> Iterator[None]:
    """Turn a write that fails in the block into an `InputError`, see `explain_write_error`; others stay as they are."""
    try:
        yield
    except Exception as error:
        explained = explain_write_error(error, place)
        if explained is None:
            raise
        raise explained from error


def _is_full_disk(error: BaseException) -> bool:
    """safetensors tells of it in words alone, and numpy by a count of what it could write."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    words = str(error)
    return "No space left on device" in words or (isinstance(error, OSError) and "requested and" in words)


def get_first_line(error: BaseException) -> str:
    """Return what an error says first, in at most 200 letters."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


def suggest(word: str, known: Sequence[str], before: str = "", after: str = "") -> str:
    """Return the known word that is most like another, as a question in brackets; empty: none is like it."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {before}{near[0]}{after}?)" if near else ""


def list_some(names: Iterable[str], n: int = 3) -> str:
    """Return the first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more
