"""The report: tables and figures as files, a page that joins them, the key numbers as JSON, a form for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from infoscope.report.figure_style import save_figure
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import Table


@dataclass
class ReportFiles:
    """Where a report lies.

    Args:
        folder: that holds all of it.
        page: report.md.
        summary: summary.json.
        tables: by name, then by suffix (md, csv, tex).
        figures: by name, then by suffix (png, pdf).
    """

    folder: Path
    page: Path
    summary: Path
    tables: dict[str, dict[str, Path]] = field(default_factory=dict)
    figures: dict[str, dict[str, Path]] = field(default_factory=dict)

    @classmethod
    def find(cls, folder: Path) -> ReportFiles:
        """Return the files of a report that `write_report` wrote into `folder`."""
        files = cls(folder, folder / "report.md", folder / "summary.json")
        for kind, found in (("tables", files.tables), ("figures", files.figures)):
            for path in sorted((folder / kind).iterdir()):
                found.setdefault(path.stem, {})[path.suffix.lstrip(".")] = path
        return files


@dataclass(frozen=True)
class Page:
    """Everything a report is made from.

    Args:
        title: heading of the report.
        context: model, data, layer, hardware, ...: printed as they are.
        note: a sentence at the top, if there is anything to say.
        leads: what stands at the top without headings: all their tables, then all their figures.
        sections: what follows, in the order of the page.
    """

    title: str
    context: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    leads: Sequence[ReportSection] = ()
    sections: Sequence[ReportSection] = ()

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
        """The key numbers as plain JSON types; None is a number that does not exist."""
        parts = {section.name: section.summary for section in (*self.leads, *self.sections)}
        return {"title": self.title, "context": dict(self.context), **parts}


def write_report(page: Page, folder: Path) -> ReportFiles:
    """Write tables/, figures/, report.md and summary.json into `folder` (made if missing) and return their paths."""
    tables_folder, figures_folder = folder / "tables", folder / "figures"
    for needed in (tables_folder, figures_folder):
        needed.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(folder, folder / "report.md", folder / "summary.json")
    for name, table in page.tables.items():
        files.tables[name] = table.save(tables_folder)
    for name, figure in page.figures.items():
        paths = save_figure(figure.draw, name, figures_folder, ("png", "pdf"))
        files.figures[name] = {path.suffix.lstrip("."): path for path in paths}
    files.summary.write_text(json.dumps(page.summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    files.page.write_text(_make_markdown(page, files), encoding="utf-8")
    return files


def print_report(page: Page, files: ReportFiles | None = None, console: Console | None = None) -> None:
    """Print the main tables, then the first finding of each section, then where the files lie."""
    console = Console() if console is None else console
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
    for section in page.sections:
        for finding in section.findings[:1]:
            console.print(Text(f"{section.title}: {finding}"))
    if files is not None:
        paths = _list_paths(files)
        width = max(map(len, paths)) + 2
        for name, path in paths.items():  # a broken path could not be copied
            console.print(Text(f"{name:<{width}}{path}"), soft_wrap=True)


def _make_markdown(page: Page, files: ReportFiles) -> str:
    def link(path: Path) -> str:
        return path.relative_to(files.folder).as_posix()

    parts = [f"# {page.title}"]
    if page.context:
        parts.append("\n".join(f"- {name}: {value}" for name, value in page.context.items()))
    if page.note:
        parts.append(page.note)

    def show_tables(section: ReportSection) -> None:
        for name, table in section.tables.items():
            sources = ", ".join(f"[{suffix}]({link(path)})" for suffix, path in files.tables[name].items())
            parts.extend([table.to_markdown().strip(), f"As a file: {sources}."])

    def show_figures(section: ReportSection) -> None:
        for name, figure in section.figures.items():
            paths = files.figures[name]
            pdf = f" ([pdf]({link(paths['pdf'])}))" if "pdf" in paths else ""
            parts.extend([f"![{name.replace('_', ' ')}]({link(paths['png'])})", f"{figure.caption}{pdf}"])

    for show in (show_tables, show_figures):
        for section in page.leads:
            show(section)
    for section in page.sections:
        parts += [f"## {section.title}", *section.findings]
        show_tables(section)
        show_figures(section)
    parts.append(f"Key numbers: [{link(files.summary)}]({link(files.summary)}).")
    return "\n\n".join(parts) + "\n"


def _list_paths(files: ReportFiles) -> dict[str, Path]:
    return {
        "report": files.page,
        "summary": files.summary,
        "tables": files.folder / "tables",
        **{f"figure {name.replace('_', ' ')}": paths["png"] for name, paths in files.figures.items()},
    }
