"""Objects of classes of packages that are not installed, as their own programs pickle them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn


class Package:
    """Makes classes and functions that pickle by names of a package."""

    def __init__(self) -> None:
        self.modules: set[str] = set()

    def make_class(self, name: str, base: type = nn.Module) -> Any:
        """Return the class of a dotted name, without any code of its own."""
        module, _, word = name.rpartition(".")
        made = type(word, (base,), {"__module__": module, "__qualname__": word})
        return self._put(module, word, made)

    def make_function(self, name: str) -> Any:
        """Return a function of a dotted name."""
        module, _, word = name.rpartition(".")

        def function() -> None: ...

        function.__module__, function.__name__, function.__qualname__ = module, word, word
        return self._put(module, word, function)

    def _put(self, module: str, word: str, made: Any) -> Any:
        parts = module.split(".")
        for name in (".".join(parts[: i + 1]) for i in range(len(parts))):
            if name not in sys.modules:
                sys.modules[name] = ModuleType(name)
                self.modules.add(name)
        setattr(sys.modules[module], word, made)
        return made


@contextmanager
def package() -> Iterator[Package]:
    """Yield what makes classes; their modules exist only inside, for as long as it takes to pickle them."""
    made = Package()
    try:
        yield made
    finally:
        for name in made.modules:
            del sys.modules[name]
