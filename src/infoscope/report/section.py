"""A part of the report that one analysis makes: its tables, figures, findings in words, and key numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from infoscope.report.tables import Table


class SectionFigure(NamedTuple):
    """draw: makes the figure when it is saved; caption: one or two sentences under it."""

    draw: Callable[[], Figure]
    caption: str


@dataclass(frozen=True)
class ReportSection:
    """What an analysis adds to a report.

    Args:
        name: prefix of the key numbers; unique within a report.
        title: heading for display.
        findings: what was found and what was not, in plain sentences; the first stands in the terminal too, all where
            the section is a report by itself.
        tables: by name; a name is a file name, unique within a report.
        figures: by name, likewise.
        summary: key numbers: plain JSON types and `Stat`; NaN and None are numbers that do not exist.
        is_lead: whether it stands at the top of the page, without a heading.
    """

    name: str
    title: str
    findings: tuple[str, ...] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Mapping[str, SectionFigure] = field(default_factory=dict)
    summary: Any = field(default_factory=dict)
    is_lead: bool = False
