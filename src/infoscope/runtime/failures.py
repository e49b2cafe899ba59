"""What fails in this process or in jobs that it waits for: one sentence each on stderr, all together an exit code."""

from __future__ import annotations

import os
import traceback

from infoscope.runtime.output import complain

EXIT_OK, EXIT_BUG, EXIT_INPUT, EXIT_INTERRUPT = 0, 1, 2, 130
_codes: list[int] = []


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
    """Begin anew."""
    _codes.clear()
