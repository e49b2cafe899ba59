"""The file of another toolkit that an SAE was read from, and what is checked of it where it is read again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from infoscope.sae.activations import ACTIVATIONS
from infoscope.sae.formats import NAMES
from infoscope.sae.formulas import MEETS

_MAX_TEXT = 1000
_NUMBER = (int, float)
_FACTS = {
    "k": _NUMBER,
    "threshold": _NUMBER,
    "prefix_sizes": (list,),
    "fitted_scale": _NUMBER,
    "pickled": (list, tuple),
    "folded": (str,),
    "statistics": (str,),
    "needs_statistics": (bool,),
    "scale_is_free": (bool,),
    MEETS: (bool,),
}
"""Types of the facts that infoscope reads again."""


@dataclass(frozen=True)
class Source:
    """The file of another toolkit that an SAE was read from.

    format: of which toolkit; kind: what that trained, in our words, such as "batchtopk".
    file: its name; sha256: of its bytes.
    backbone: as the file calls it; None: it does not say.
    address, revision: of the hub, where it comes from there.
    facts: what else it says, as plain JSON values: k, threshold, prefix_sizes, folded, ...
    warnings: sentences.
    exported_from: in words what infoscope has exported into this file; None: infoscope did not write it.
    """

    format: str
    kind: str
    file: str = ""
    sha256: str = ""
    backbone: str | None = None
    address: str | None = None
    revision: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    exported_from: str | None = None

    @property
    def words(self) -> str:
        """What it was, and what of infoscope's the file holds, if it does."""
        place = f" of {self.address} at {self.revision}" if self.address else ""
        before = f", which infoscope exported from {self.exported_from}" if self.exported_from else ""
        return f"{self.kind} in the format of {self.format}, {self.file}{place}, sha256 {self.sha256[:12]}{before}"


def check_types(made: Any) -> None:
    """Refuse a dataclass with fields of another type than they are declared with.

    Raises:
        TypeError: there is one.
    """
    for name, kind in get_type_hints(type(made)).items():
        value, kinds = getattr(made, name), get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        if type(value) not in [get_origin(one) or one for one in kinds]:
            raise TypeError(name)
        if isinstance(value, tuple) and not all(isinstance(one, str) for one in value):
            raise TypeError(name)


def check_source(source: Source) -> None:
    """Refuse a source that infoscope has not written.

    Raises:
        TypeError: a field or a fact is of another type.
        ValueError: the format or the kind is none that infoscope knows.
    """
    check_types(source)
    if source.format not in NAMES or source.kind not in ACTIVATIONS:
        raise ValueError(f"{source.kind} of {source.format}")
    for name, kinds in _FACTS.items():
        if name in source.facts and type(source.facts[name]) not in kinds:
            raise TypeError(name)
    if not all(isinstance(one, str) for one in source.facts.get("pickled", ())):
        raise TypeError("pickled")


def check_text(value: Any) -> None:
    """Refuse text that a terminal may obey, or that fills it, anywhere in dicts and lists, the names of dicts too.

    Numbers that JSON does not have are refused as well.

    Raises:
        ValueError: some text is not printable, or too long; or a number is NaN or infinite.
        RecursionError: the values are nested too deeply.
    """
    if isinstance(value, str) and not (value.isprintable() and len(value) <= _MAX_TEXT):
        raise ValueError(f"text that is not printable, or longer than {_MAX_TEXT:,} letters")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the number {value}")
    if isinstance(value, dict | list | tuple):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            check_text(part)


def read_prefix_sizes(said: Any, d_sae: int) -> tuple[int, ...]:
    """Return how many latents are in each prefix of a Matryoshka SAE, as a file says it.

    Empty where it says nothing, or what cannot be: whole numbers ascend from above 0 to d_sae.
    """
    sizes = said if isinstance(said, list | tuple) and all(type(size) is int for size in said) else ()
    ascends = all(low < high for low, high in pairwise([0, *sizes]))
    return tuple(sizes) if ascends and sizes and sizes[-1] == d_sae else ()
