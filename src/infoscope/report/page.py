"""The report: tables and figures as files, a page that joins them, the key numbers as JSON, a form for the terminal."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.text import Text

from infoscope.report.figure_style import save_figure
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import Stat, Table


@dataclass(frozen=True)
class ReportFiles:
    """Where a report lies; tables and figures by name, then by suffix (md, csv, tex; png, pdf)."""

    folder: Path
    page: Path
    summary: Path
    tables: dict[str, dict[str, Path]]
    figures: dict[str, dict[str, Path]]

    @classmethod
    def find(cls, folder: Path) -> ReportFiles:
        """Return the files of a report that `write_report` wrote into `folder`."""
        found: dict[str, dict[str, dict[str, Path]]] = {"tables": {}, "figures": {}}
        for kind, by_name in found.items():
            for path in sorted((folder / kind).iterdir()):
                by_name.setdefault(path.stem, {})[path.suffix.lstrip(".")] = path
        return cls(folder, folder / "report.md", folder / "summary.json", **found)


@dataclass(frozen=True)
class Page:
    """Everything a report is made from.

    Args:
        title: heading of the report.
        context: model, data, layer, hardware, ...: printed as they are.
        note: a sentence at the top, if there is anything to say.
        leads: what stands at the top without headings: all their tables, then all their figures.
        sections: what follows, in the order of the page.
        explorer: the page of the experiment's explorer, which lies beside the report; None: there is none.
    """

    title: str
    context: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    leads: Sequence[ReportSection] = ()
    sections: Sequence[ReportSection] = ()
    explorer: Path | None = None

    @cached_property
    def tables(self) -> dict[str, Table]:
        """All tables by name."""
        tables: dict[str, Table] = {}
        for section in (*self.leads, *self.sections):
            assert not tables.keys() & section.tables.keys(), f"two tables of one name, in section {section.name}"
            tables |= section.tables
        return tables

    @property
    def figures(self) -> dict[str, SectionFigure]:
        """All figures by name."""
        return {name: of for section in (*self.leads, *self.sections) for name, of in section.figures.items()}

    @property
    def summary(self) -> dict[str, Any]:
        """The key numbers, see `ReportSection`."""
        parts = {section.name: section.summary for section in (*self.leads, *self.sections)}
        return {"title": self.title, "context": dict(self.context), **parts}


def write_report(page: Page, folder: Path) -> ReportFiles:
    """Write tables/, figures/, report.md and summary.json into `folder` (made if missing) and return where they lie.

    NaN and infinity, which JSON does not know, are null in summary.json.
    """
    for needed in (folder / "tables", folder / "figures"):
        needed.mkdir(parents=True, exist_ok=True)
    for table in page.tables.values():
        table.save(folder / "tables")
    for name, figure in page.figures.items():
        save_figure(figure.draw, name, folder / "figures", ("png", "pdf"))
    summary = json.dumps(_to_plain(page.summary), indent=2, allow_nan=False)
    (folder / "summary.json").write_text(summary + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_make_markdown(page, folder), encoding="utf-8")
    return ReportFiles.find(folder)


def _to_plain(value: Any) -> Any:
    """Return what JSON can say of key numbers: None in place of NaN, {mean, sd} in place of a `Stat`."""
    match value:
        case Stat(mean, sd):
            return _to_plain({"mean": mean, "sd": sd})
        case Mapping():
            return {key: _to_plain(one) for key, one in value.items()}
        case list() | tuple():
            return [_to_plain(one) for one in value]
        case float() if not math.isfinite(value):
            return None
    return value


def print_report(page: Page, files: ReportFiles, console: Console) -> None:
    """Print the main tables, then the first finding of each section, all of a single one, then where the files lie."""
    console.print(Text(page.title, style="bold"))
    tables = [table for section in page.leads or page.sections for table in section.tables.values()]
    for table in reversed(tables):  # the main table last, where the reader looks first
        table.show(console)
        console.print()
    if page.note:
        console.print(page.note)
    for section in page.leads:
        for finding in section.findings:
            console.print(Text(finding))
    if page.leads or len(page.sections) > 1:
        for section in page.sections:
            for finding in section.findings[:1]:
                console.print(Text(f"{section.title}: {finding}"))
    else:
        for finding in page.sections[0].findings if page.sections else ():
            console.print(Text(finding))
    paths = {"report": files.page, "summary": files.summary, "tables": files.folder / "tables"}
    paths |= {} if page.explorer is None else {"explorer": page.explorer}
    paths |= {f"figure {name.replace('_', ' ')}": found["png"] for name, found in files.figures.items()}
    width = max(map(len, paths)) + 2
    for name, path in paths.items():  # a broken path could not be copied
        console.print(Text(f"{name:<{width}}{path}"), soft_wrap=True)


def _make_markdown(page: Page, folder: Path) -> str:
    context = "\n".join(f"- {name}: {value}" for name, value in page.context.items())
    parts = [f"# {page.title}", *filter(None, (context, page.note))]
    if page.explorer is not None:
        link = Path(os.path.relpath(page.explorer, folder)).as_posix()
        parts.append(f"Every feature with its images and maps, in a browser: [the explorer]({quote(link)}).")

    def show_tables(section: ReportSection) -> None:
        for name, table in section.tables.items():
            sources = ", ".join(f"[{suffix}](tables/{name}.{suffix})" for suffix in ("md", "csv", "tex"))
            parts.extend([table.to_markdown().strip(), f"As a file: {sources}."])

    def show_figures(section: ReportSection) -> None:
        for name, figure in section.figures.items():
            file = f"figures/{name}"
            parts.extend([f"![{name.replace('_', ' ')}]({file}.png)", f"{figure.caption} ([pdf]({file}.pdf))"])

    for show in (show_tables, show_figures):
        for section in page.leads:
            show(section)
    for section in page.sections:
        parts += [f"## {section.title}", *section.findings]
        show_tables(section)
        show_figures(section)
    parts.append("Key numbers: [summary.json](summary.json).")
    return "\n\n".join(parts) + "\n"
