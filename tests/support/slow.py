"""A process that lags behind the others, which exposes whoever does not wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from infoscope.runtime import parts, processes

LAG_S = 0.02


def fall_behind() -> None:
    """Let this process take its time before and after all that it exchanges with others; for good."""

    def slow(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            time.sleep(LAG_S)
            value = function(*arguments)
            time.sleep(LAG_S)
            return value

        return call

    for module, name in (
        (processes, "gather"),
        (processes, "broadcast"),
        (processes, "wait_for"),
        (parts, "load_state"),
    ):
        setattr(module, name, slow(getattr(module, name)))
