"""A small table that can be read in a terminal, in Markdown, in LaTeX, and by a program (CSV with raw numbers)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from infoscope.report.latex import make_latex

MIN_WIDTH = 16
"""Characters that are left of a column whose cells are broken into lines."""
MISSING = "\N{EN DASH}"
"""What stands where a number should be and is not (NaN)."""
COLUMN_GAP = 3
"""Characters between the columns of a rich table without edges: padding, separator, padding."""
MINUS = "\N{MINUS SIGN}"
LEVEL = 0.95
"""Of the intervals of means."""
PARTIAL = "°"
"""Mark of a mean over fewer runs than were asked for."""
OVER_SEEDS = "Mean ± standard deviation over SAE seeds."
"""A note that a table without any spread leaves out."""
NO_NUMBER = "No number: nothing of this was measured, or is defined here."
"""What stands in place of a table of missing numbers alone that does not say why."""
AUTO_NOTES = {
    MISSING: f"{MISSING} no number: not measured, or not defined here.",
    PARTIAL: f"{PARTIAL} runs without a number were left out of this mean.",
}


class Align(Enum):
    """Alignment of a column."""

    left = "left"
    right = "right"


class Stat(NamedTuple):
    """Mean and spread of several runs.

    mean: over the finite values; NaN when there are none.
    sd: sample standard deviation (ddof = 1); NaN for fewer than two finite values, and then it is not printed.
    n: how many values were finite.
    n_missing: how many were not.
    """

    mean: float
    sd: float
    n: int
    n_missing: int = 0

    @property
    def error(self) -> float:
        """Standard error of the mean; NaN where there is no spread."""
        return self.sd / math.sqrt(max(self.n, 1))

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval of the mean (t); NaN for fewer than two finite values."""
        from scipy.special import stdtrit  # a second to import, for which listing artifacts must not wait

        return float(stdtrit(self.n - 1, (1 + LEVEL) / 2)) * self.error if self.n > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of that interval."""
        return self.mean - self.half_width, self.mean + self.half_width

    @property
    def sign(self) -> int:
        """On which side of 0 that interval lies, 1 or -1; 0: it holds 0, or there is none, as of a single value."""
        low, high = self.interval
        return 1 if low > 0 else -1 if high < 0 else 0


def compute_stat(values: Iterable[float | None]) -> Stat:
    """Return mean and sample standard deviation of the finite values; None counts as missing.

    >>> compute_stat([1.0, 3.0, float("nan")])
    Stat(mean=2.0, sd=1.4142135623730951, n=2, n_missing=1)
    """
    everything = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    finite = everything[np.isfinite(everything)]
    return Stat(
        mean=float(finite.mean()) if len(finite) else math.nan,
        sd=float(finite.std(ddof=1)) if len(finite) > 1 else math.nan,
        n=len(finite),
        n_missing=len(everything) - len(finite),
    )


Value = str | int | float | Stat | None


@dataclass(frozen=True)
class Column:
    """How one column is headed and its numbers are written.

    Args:
        key: the header in CSV: lower case, with the unit as a suffix.
        heading: the header for display.
        align: of the cells.
        digits: after the point.
        scale: numbers are multiplied by it for display (100 for a share in percent); CSV keeps the raw number.
        unit: printed behind the heading.
        signed: print a plus sign too (differences).
        optional: a terminal too narrow for the whole table leaves it out.
        csv_only: for programs alone: what people read leaves it out.
        is_count: its numbers say which row it is, or of how many, and are no results.
    """

    key: str
    heading: str
    align: Align = Align.right
    digits: int = 2
    scale: float = 1.0
    unit: str = ""
    signed: bool = False
    optional: bool = False
    csv_only: bool = False
    is_count: bool = False

    @property
    def title(self) -> str:
        """Heading and unit."""
        return f"{self.heading} ({self.unit})" if self.unit else self.heading


PERCENT: dict[str, Any] = {"digits": 1, "scale": 100, "unit": "%"}
"""Settings of a column of shares, 0..1, which people read in percent."""


@dataclass(frozen=True)
class Cell:
    """A value and what is special about it.

    Args:
        value: None is an empty cell; NaN is a number that is missing.
        mark: footnote signs behind the value; the table's `marks` explain them.
        digits, scale: instead of the column's, for tables whose rows are different quantities.
    """

    value: Value = None
    mark: str = ""
    digits: int | None = None
    scale: float | None = None

    @property
    def number(self) -> float | None:
        """The value, or the mean, where it is a number; NaN where one should stand here and does not."""
        number = self.value.mean if isinstance(self.value, Stat) else self.value
        return None if isinstance(number, str) else number

    @property
    def is_missing(self) -> bool:
        """Whether a number should stand here and does not."""
        return self.number is not None and not math.isfinite(self.number)

    @property
    def marks(self) -> str:
        """The footnote signs, that of an incomplete mean included."""
        partial = isinstance(self.value, Stat) and self.value.n > 0 and self.value.n_missing > 0
        return self.mark + (PARTIAL if partial else "")


def format_number(value: float, digits: int, signed: bool = False) -> str:
    """Return a number as people read it: thousands apart, a true minus sign, no "-0"."""
    if not math.isfinite(value):
        return MISSING
    rounded = round(value, digits) + 0.0  # -0.0 becomes 0.0
    sign = "+" if signed and rounded > 0 else ""
    return f"{sign}{rounded:,.{digits}f}".replace("-", MINUS)


def format_signed(value: float, digits: int = 2) -> str:
    """Return a difference or a correlation, which has a plus sign too."""
    return format_number(value, digits, signed=True)


def format_percent(share: float | Stat) -> str:
    """Return a share, 0..1, or the mean of several, in percent."""
    mean = share.mean if isinstance(share, Stat) else share
    return f"{format_number(100 * mean, 1)}%" if math.isfinite(mean) else "no share"


def format_interval(stat: Stat, digits: int = 2, scale: float = 1.0) -> tuple[str, str, str]:
    """Return mean and both ends of the interval of a difference or a correlation."""
    mean, low, high = (format_signed(scale * one, digits) for one in (stat.mean, *stat.interval))
    return mean, low, high


def format_stat(stat: Stat, digits: int, scale: float = 1.0) -> str:
    """Return `mean ± sd`, without a spread that is rounded to nothing."""
    mean, spread = format_number(stat.mean * scale, digits), format_number(stat.sd * scale, digits)
    return mean if spread in (MISSING, format_number(0, digits)) else f"{mean} ± {spread}"


def format_cell(cell: Cell, column: Column, with_spread: bool = True) -> str:
    """Return the text of a cell, footnote marks included: `mean ± sd` for a `Stat`."""
    digits = column.digits if cell.digits is None else cell.digits
    scale = column.scale if cell.scale is None else cell.scale
    match cell.value:
        case None:
            text = ""
        case str(text):
            pass
        case Stat(mean, sd, _, _):
            text = format_number(mean * scale, digits, column.signed)
            if with_spread and math.isfinite(sd) and sd > 1e-12 * abs(mean):  # runs that agree have no spread to show
                text += f" ± {format_number(sd * scale, digits)}"
        case int(number):
            text = format_number(number * scale, 0 if scale == 1 else digits, column.signed)
        case number:
            text = format_number(number * scale, digits, column.signed)
    return f"{text} {cell.marks}".strip() if cell.marks else text


@dataclass(frozen=True)
class Section:
    """Rows that stand together under a line; the title may be empty.

    instead: what people read in place of the rows, as a footnote.
    """

    title: str = ""
    rows: list[list[Cell]] = field(default_factory=list)
    instead: str = ""


@dataclass
class Table:
    """Rows of cells under columns, in sections, with notes.

    Args:
        name: file name and LaTeX label.
        title: one line above the table.
        columns: the columns.
        notes: sentences below the table.
        marks: what each footnote mark means; only those in use are printed.
        instead: a sentence that people read in place of the rows, where these say nothing; programs get the rows. A
            table of nothing but missing numbers has one of its own.
    """

    name: str
    title: str
    columns: Sequence[Column]
    notes: list[str] = field(default_factory=list)
    marks: dict[str, str] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    instead: str = ""

    def add_section(self, title: str = "", instead: str = "") -> None:
        """Begin a new group of rows."""
        self.sections.append(Section(title, instead=instead))

    def add_row(self, *values: Value | Cell) -> None:
        """Append one row: a value or a `Cell` for each column."""
        assert len(values) == len(self.columns), f"{len(values)} values for {len(self.columns)} columns"
        if not self.sections:
            self.add_section()
        self.sections[-1].rows.append([value if isinstance(value, Cell) else Cell(value) for value in values])

    @property
    def rows(self) -> list[list[Cell]]:
        """All rows, of all sections."""
        return [row for section in self.sections for row in section.rows]

    @property
    def shown(self) -> list[Column]:
        """The columns that people read."""
        return [column for column in self.columns if not column.csv_only]

    @property
    def sentence(self) -> str:
        """What people read in place of the table; empty where there are numbers to read."""
        if self.instead:
            return self.instead
        results = [i for i, column in enumerate(self.columns) if not (column.csv_only or column.is_count)]
        numbers = [cell.number for row in self.rows for cell in (row[i] for i in results) if cell.number is not None]
        return NO_NUMBER if numbers and not any(map(math.isfinite, numbers)) else ""

    @property
    def footnotes(self) -> list[str]:
        """The notes, then what the marks in use mean; where a sentence stands in place of the table, that alone."""
        if self.sentence:
            return [self.sentence]
        used = "".join(
            cell.marks + (MISSING if cell.is_missing else "")
            for section in self.sections
            for row in section.rows
            for cell, column in zip(row, self.columns, strict=True)
            if not (column.csv_only or section.instead)
        )
        left_out = [f"{section.title}: {section.instead}" for section in self.sections if section.instead]
        marks = [f"{mark} {text}" for mark, text in self.marks.items() if mark in used]
        has_spreads = any(isinstance(cell.value, Stat) and cell.value.n > 1 for row in self.rows for cell in row)
        notes = [note for note in self.notes if has_spreads or note != OVER_SEEDS]
        return [*left_out, *notes, *marks, *(text for mark, text in AUTO_NOTES.items() if mark in used)]

    def text_rows(self, section: Section, with_spread: bool = True) -> list[list[str]]:
        """The section's cells as people read them; none where they read a sentence instead."""
        if section.instead:
            return []
        pairs = [zip(row, self.columns, strict=True) for row in section.rows]
        return [
            [format_cell(cell, column, with_spread) for cell, column in row if not column.csv_only] for row in pairs
        ]

    def records(self) -> list[dict[str, str | int | float | None]]:
        """Rows as flat dictionaries of raw numbers; a mean comes with `_sd` and `_n`."""
        stats = {i for row in self.rows for i, cell in enumerate(row) if isinstance(cell.value, Stat)}
        has_titles = any(section.title for section in self.sections)
        has_marks = any(cell.marks for row in self.rows for cell in row)
        records = []
        for section in self.sections:
            for row in section.rows:
                record: dict[str, str | int | float | None] = {"section": section.title} if has_titles else {}
                for i, (cell, column) in enumerate(zip(row, self.columns, strict=True)):
                    record |= _flatten(cell.value, column.key, i in stats)
                if has_marks:
                    pairs = zip(row, self.columns, strict=True)
                    record["marks"] = " ".join(f"{column.key}:{cell.marks}" for cell, column in pairs if cell.marks)
                records.append(record)
        return records

    def to_csv(self) -> str:
        """Raw, unscaled numbers at full precision; an empty field is an empty cell, `nan` a missing number."""
        records, text = self.records(), io.StringIO()
        if records:
            writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(records)
        return text.getvalue()

    def to_markdown(self, escaped: bool = True) -> str:
        """A GitHub table under its title in bold, notes below.

        Args:
            escaped: what has a meaning in Markdown; False: for people who read it as it is.
        """
        escape = _escape_markdown if escaped else _join_lines
        lines = [f"**{escape(self.title)}**", ""]
        if self.sentence:
            return "\n".join([*lines, escape(self.sentence)]) + "\n"
        lines.append(_markdown_row(map(escape, (column.title for column in self.shown))))
        rules = ["---:" if column.align is Align.right else ":---" for column in self.shown]
        lines.append("| " + " | ".join(rules) + " |")
        for section in self.sections:
            if section.title:
                title = f"*{escape(section.title)}*"
                lines.append("| " + " | ".join([title, *[""] * (len(self.shown) - 1)]) + " |")
            lines += [_markdown_row(map(escape, row)) for row in self.text_rows(section)]
        for note in self.footnotes:
            lines += ["", escape(note)]
        return "\n".join(lines) + "\n"

    def to_latex(self) -> str:
        """A `table` environment in booktabs style; needs `\\usepackage{booktabs}` and nothing else."""
        shown = [] if self.sentence else self.shown
        return make_latex(
            name=self.name,
            title=self.title,
            headings=[column.title for column in shown],
            aligns=["r" if column.align is Align.right else "l" for column in shown],
            sections=[(section.title, self.text_rows(section)) for section in self.sections],
            notes=self.footnotes,
        )

    def to_rich(self, with_spread: bool = True, with_optional: bool = True, width: int | None = None) -> RichTable:
        """The table for a terminal; headings and section titles may be broken into lines there, cells may not.

        Args:
            width: of the terminal; where the table is wider, the cells of its first column are broken too.
        """
        columns = self.shown
        keep = [i for i, column in enumerate(columns) if with_optional or not column.optional]
        bodies = [self.text_rows(section, with_spread) for section in self.sections]
        table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for i in keep:
            title = columns[i].title
            cells = [len(row[i]) for rows in bodies for row in rows]
            wide = max([*cells, *map(len, title.split()), math.ceil(len(title) / 3)])
            table.add_column(Text(title), justify=columns[i].align.value, vertical="bottom", width=wide)
        too_wide = 0 if width is None else max(_measure(table) - width, 0)
        if too_wide:
            first = table.columns[0]
            first.width = max((first.width or 0) - too_wide, MIN_WIDTH)
        for section, rows in zip(self.sections, bodies, strict=True):
            if section.title:
                table.add_row(Text(section.title, style="italic"))
            for row in rows:
                table.add_row(*[Text(row[i], no_wrap=i != keep[0] or not too_wide) for i in keep])
            table.add_section()
        return table

    def print(self, console: Console) -> None:
        """Print the table and its notes; a narrow terminal gets fewer columns, then no spreads, and a note on it."""
        if self.sentence:
            console.print(Text(f"{self.title}: {self.sentence}"))
            return
        left_out = ""
        table = self.to_rich()
        if _measure(table) > console.width:
            left_out, table = "some columns", self.to_rich(with_optional=False)
        if _measure(table) > console.width:
            table = self.to_rich(with_spread=False, with_optional=False, width=console.width)
            left_out = "some columns and the spreads"
        console.print(Text(self.title, style="bold"))
        console.print(table)
        shortened = [f"The terminal is too narrow for {left_out}; a wider one shows them."] if left_out else []
        for note in [*self.footnotes, *shortened]:
            console.print(Text(note, style="dim"))

    def show(self, console: Console) -> None:
        """Print the table for a terminal, or as Markdown without escapes into a log, which has any width."""
        if console.is_terminal:
            self.print(console)
        else:
            console.print(Text(self.to_markdown(escaped=False)), soft_wrap=True)

    def save(self, folder: Path) -> None:
        """Write `<name>.md`, `.csv` and `.tex`."""
        for suffix, text in (("md", self.to_markdown()), ("csv", self.to_csv()), ("tex", self.to_latex())):
            (folder / f"{self.name}.{suffix}").write_text(text, encoding="utf-8")


def _measure(table: RichTable) -> int:
    return sum((column.width or 0) + COLUMN_GAP for column in table.columns) - COLUMN_GAP


def _flatten(value: Value, key: str, is_stat_column: bool) -> dict[str, str | int | float | None]:
    if isinstance(value, Stat):
        return {key: value.mean, f"{key}_sd": value.sd, f"{key}_n": value.n}
    return {key: value, f"{key}_sd": None, f"{key}_n": None} if is_stat_column else {key: value}


def _escape_markdown(text: str) -> str:
    for character in "\\|*":
        text = text.replace(character, "\\" + character)
    return _join_lines(text.replace("<", "&lt;"))


def _join_lines(text: str) -> str:
    return text.replace("\n", " ")


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
