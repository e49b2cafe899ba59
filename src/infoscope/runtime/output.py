"""What is printed, to any terminal, pipe or log file, in letters that it knows; failures and their exit code."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import traceback
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console

EXIT_OK, EXIT_BUG, EXIT_INPUT, EXIT_INTERRUPT = 0, 1, 2, 130
EXIT_CLOSED = 128 + 13
"""As of a program that SIGPIPE ends."""
_codes: list[int] = []
"""What the failures that were said ask for."""
_PLAIN = {"±": "+-", "≤": "<=", "≥": ">=", "≈": "~", "≠": "!=", "\u00d7": "x", "\u2212": "-", "·": "*", "•": "*"}
_PLAIN |= {"→": "->", "←": "<-", "↑": "^", "↓": "v", "†": "+", "‡": "++"}
_PLAIN |= {"°": " deg", "∅": "none", "∞": "inf", "µ": "u", "ß": "ss"}
_KINDS = {"Pd": "-", "Pi": "'", "Pf": "'", "Zs": " "}
"""Dashes, quotation marks and spaces, by their category in Unicode."""


class LostOutput(BaseException):
    """The output is closed: the run ends as at Ctrl-C."""


class Terminal(Console):
    """rich's console, which ends the program itself where its reader is gone."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        with _printing():
            super().print(*args, **kwargs)

    def on_broken_pipe(self) -> None:
        raise  # rich is handling it


def say(text: str) -> None:
    """Print a line to stdout at once.

    Raises:
        LostOutput: nobody takes it.
    """
    with _printing():
        print(text, flush=True)


def complain(text: str) -> None:
    """Print a line to stderr, if anybody reads that."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def say_failure(sentence: str, error: BaseException | None = None, code: int = EXIT_INPUT) -> None:
    """Print the sentence, and with INFOSCOPE_TRACEBACK=1 the traceback; remember the exit code that it asks for."""
    _codes.append(code)
    complain(f"infoscope: {sentence}")
    if error is not None and os.environ.get("INFOSCOPE_TRACEBACK") == "1":
        traceback.print_exception(error)


def find_exit_code() -> int:
    """Return 0 if nothing failed, 2 if all that failed can be mended by the user, else 1."""
    return min(_codes, default=EXIT_OK)


def forget_failures() -> None:
    """Forget the failures of an earlier command of this process."""
    _codes.clear()


@contextmanager
def _printing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LostOutput(error) from error


def adapt_streams() -> None:
    """Let stdout and stderr take every letter: what their encoding lacks is written in plain ones.

    COLUMNS=0, as terminals without a size have it, is no width: in none, tables and lines would vanish.
    """
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]
    codecs.register_error("infoscope", _write_plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="infoscope")


def end_output(error: LostOutput | None = None) -> int:
    """Write what is still in hand; return 0, or the exit code of a program whose output is lost, having said why.

    A closed pipe (`| head -1`) is no fault: nothing is said. Nothing can be printed afterwards.
    """
    lost: Any = error and error.args[0]
    try:
        if lost is None and sys.stdout is not None:
            sys.stdout.flush()
            return 0
    except OSError as failed:
        lost = failed
    except ValueError:  # closed by whoever called this
        return 0
    if lost is None:
        return 0
    if sys.stdout is not None:
        with suppress(OSError, ValueError):  # else Python says so once more, when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if lost.errno == errno.EPIPE:
        return EXIT_CLOSED
    complain(
        f"infoscope: cannot print any more ({lost.strerror}): send stdout elsewhere; finished artifacts are kept, the"
        " same command goes on from there."
    )
    return EXIT_INPUT


def _write_plainly(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks; bytes of file names that are no text at all become \\xff."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spell, error.object[error.start : error.end])), error.end


def _spell(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    words = unicodedata.name(letter, "").split()
    bare = "".join(_PLAIN.get(part, part) for part in unicodedata.normalize("NFKD", letter))
    if words[:2] == ["BOX", "DRAWINGS"]:
        return "+" if "AND" in words else "|" if words[-1] == "VERTICAL" else "-"
    if words[-1:] == ["BLOCK"] or words[-1:] == ["SHADE"]:
        return "#"
    if words[:1] == ["GREEK"]:
        return words[-1].lower()
    known = _PLAIN.get(letter) or _KINDS.get(unicodedata.category(letter)) or bare.encode("ascii", "ignore").decode()
    return known or letter.encode("ascii", "backslashreplace").decode()
