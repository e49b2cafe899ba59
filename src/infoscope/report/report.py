"""The report: tables and figures as files, a page that joins them, the key numbers as JSON, a form for the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from infoscope.report.continuum_figure import draw_continuum
from infoscope.report.example_figure import draw_examples
from infoscope.report.figure_style import save_figure
from infoscope.report.figures import draw_cds_histogram, draw_removal, draw_token_norms
from infoscope.report.inputs import ReportInputs
from infoscope.report.removal import make_removal_tables, summarise_removal
from infoscope.report.scope_table import make_scope_table, summarise_scope
from infoscope.report.tables import Table

NO_PROBES = "No probes: the data set has no labels, so nothing was measured with features removed."
CAPTIONS = {
    "removal": "What each probe gains or loses without a group of features, against the original tokens of the same"
    " run. Left of zero is worse in every panel.",
    "continuum": "What each probe gains or loses without each band of features, by the band's mean CDS; lower is worse"
    " in every panel. Means over SAE seeds and draws, shades are ± one standard deviation.",
    "cds_histogram": "How far the features' activations move between two crops that share all but one border of"
    " patches. Chance: the same maps compared between two different images.",
    "examples": "Features of low, middle and high scope on the training images that excite them most.",
    "token_norms": "Norms of the patch tokens at the layer the SAE reads.",
}
"""What stands under each figure, in the order of the page."""


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


def make_tables(inputs: ReportInputs) -> dict[str, Table]:
    """Return the report's tables by name: removal (none without probes), scope, then those of the sections."""
    tables = make_removal_tables(inputs.results, inputs.paper_reference)
    if inputs.seeds:
        tables["scope"] = make_scope_table(inputs.seeds)
    for section in inputs.sections:
        assert not tables.keys() & section.tables.keys(), f"two tables of one name, in section {section.name}"
        tables |= section.tables
    return tables


def make_summary(inputs: ReportInputs) -> dict[str, Any]:
    """Return the key numbers as plain JSON types; None is a number that does not exist."""
    stats = inputs.token_stats
    return {
        "title": inputs.title,
        "context": dict(inputs.context),
        "scope": [summarise_scope(result) for result in inputs.seeds],
        "removal": summarise_removal(inputs.results),
        "tokens": None
        if stats is None
        else {
            "n_tokens": stats.n_tokens,
            "n_outliers": stats.n_outliers,
            "threshold": stats.threshold,
            "rule": stats.rule,
            "has_outlier_mode": stats.has_outlier_mode,
        },
        **{section.name: dict(section.summary) for section in inputs.sections},
    }


def write_report(inputs: ReportInputs, folder: Path) -> ReportFiles:
    """Write tables/, figures/, report.md and summary.json into `folder` (made if missing) and return their paths."""
    tables_folder, figures_folder = folder / "tables", folder / "figures"
    for needed in (tables_folder, figures_folder):
        needed.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(folder, folder / "report.md", folder / "summary.json")
    tables = make_tables(inputs)
    for name, table in tables.items():
        files.tables[name] = table.save(tables_folder)
    for name, draw in _choose_figures(inputs).items():
        paths = save_figure(draw, name, figures_folder, ("png", "pdf"))
        files.figures[name] = {path.suffix.lstrip("."): path for path in paths}
    summary = json.dumps(make_summary(inputs), indent=2, allow_nan=False)
    files.summary.write_text(summary + "\n", encoding="utf-8")
    files.page.write_text(_make_page(inputs, tables, files), encoding="utf-8")
    return files


def print_report(inputs: ReportInputs, files: ReportFiles | None = None, console: Console | None = None) -> None:
    """Print the tables for people, then where the files lie."""
    console = Console() if console is None else console
    console.print(Text(inputs.title, style="bold"))
    main = make_tables(replace(inputs, sections=()) if inputs.seeds else inputs)
    for table in reversed(main.values()):  # the main table last, where the reader looks first
        table.show(console)
        console.print()
    if inputs.seeds and not inputs.results:
        console.print(NO_PROBES)
    if inputs.token_stats is not None:
        console.print(Text(inputs.token_stats.statement))
    for section in inputs.sections:
        for finding in section.findings[:1]:
            console.print(Text(f"{section.title}: {finding}"))
    if files is not None:
        paths = _list_paths(files)
        width = max(map(len, paths)) + 2
        for name, path in paths.items():  # a broken path could not be copied
            console.print(Text(f"{name:<{width}}{path}"), soft_wrap=True)


def _choose_figures(inputs: ReportInputs) -> dict[str, Callable[[], Figure]]:
    figures: dict[str, Callable[[], Figure]] = {}
    if inputs.results:
        figures["removal"] = lambda: draw_removal(inputs.results)
        if any(result.partition.bands for result in inputs.seeds):
            figures["continuum"] = lambda: draw_continuum(inputs.seeds, inputs.results)
    if inputs.seeds:
        shift = inputs.seeds[0].shift
        figures["cds_histogram"] = lambda: draw_cds_histogram(inputs.seeds)
        figures["examples"] = lambda: draw_examples(inputs.examples, shift)
    if (stats := inputs.token_stats) is not None:
        figures["token_norms"] = lambda: draw_token_norms(stats)
    for section in inputs.sections:
        figures |= {name: figure.draw for name, figure in section.figures.items()}
    return figures


def _make_page(inputs: ReportInputs, tables: dict[str, Table], files: ReportFiles) -> str:
    def link(path: Path) -> str:
        return path.relative_to(files.folder).as_posix()

    parts = [f"# {inputs.title}"]
    if inputs.context:
        parts.append("\n".join(f"- {name}: {value}" for name, value in inputs.context.items()))
    if inputs.seeds and not inputs.results:
        parts.append(NO_PROBES)

    def show_table(name: str, table: Table) -> None:
        sources = ", ".join(f"[{suffix}]({link(path)})" for suffix, path in files.tables[name].items())
        parts.extend([table.to_markdown().strip(), f"As a file: {sources}."])

    def show_figure(name: str, caption: str) -> None:
        paths = files.figures[name]
        pdf = f" ([pdf]({link(paths['pdf'])}))" if "pdf" in paths else ""
        parts.extend([f"![{name.replace('_', ' ')}]({link(paths['png'])})", f"{caption}{pdf}"])

    of_sections = {name for section in inputs.sections for name in (*section.tables, *section.figures)}
    for name, table in tables.items():
        if name not in of_sections:
            show_table(name, table)
    for name in files.figures:
        if name not in of_sections:
            statement = inputs.token_stats.statement if name == "token_norms" and inputs.token_stats else ""
            show_figure(name, f"{CAPTIONS[name]} {statement}".strip())
    for section in inputs.sections:
        parts += [f"## {section.title}", *section.findings]
        for name in section.tables:
            show_table(name, tables[name])
        for name, figure in section.figures.items():
            show_figure(name, figure.caption)
    parts.append(f"Key numbers: [{link(files.summary)}]({link(files.summary)}).")
    return "\n\n".join(parts) + "\n"


def _list_paths(files: ReportFiles) -> dict[str, Path]:
    return {
        "report": files.page,
        "summary": files.summary,
        "tables": files.folder / "tables",
        **{f"figure {name.replace('_', ' ')}": paths["png"] for name, paths in files.figures.items()},
    }
