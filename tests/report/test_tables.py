"""Tables: means and spreads, and the four ways to write them."""

from __future__ import annotations

import csv
import io
import math
import re

import numpy as np
import pytest
from rich.console import Console

from infoscope.report.joining import Part, join_tables
from infoscope.report.latex import escape_latex
from infoscope.report.tables import (
    MINUS,
    MISSING,
    NO_NUMBER,
    OVER_SEEDS,
    Align,
    Cell,
    Column,
    Stat,
    Table,
    compute_stat,
    format_interval,
    format_number,
    format_percent,
    format_signed,
    format_stat,
)

NASTY = r"50% of a_b & c#1 {x} $y$ ~z ^2 \w <p> |q|"


def make_table() -> Table:
    columns = [
        Column("name", "name", Align.left),
        Column("share", "share", digits=1, scale=100, unit="%"),
        Column("n", "n", digits=0, optional=True),
    ]
    table = Table("some_table", "A title", columns, notes=["A note & more."], marks={"†": "at the edge.", "∅": "never"})
    table.add_row(NASTY, Stat(0.5, 0.1234, 3), 1200)
    table.add_section("second")
    table.add_row("[b]", Cell(compute_stat([0.25, math.nan]), "†"), 7)
    table.add_row("missing", compute_stat([]), None)
    return table


def test_mean_and_sd_are_numpys() -> None:
    values = np.random.default_rng(0).normal(3, 2, 15)
    stat = compute_stat([*values, math.nan, None])
    assert stat.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert stat.sd == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert stat.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(15), abs=1e-12)
    assert (stat.n, stat.n_missing) == (15, 2)


def test_one_value_has_no_spread_and_none_no_mean() -> None:
    assert compute_stat([2.0])[::2] == (2.0, 1)
    assert math.isnan(compute_stat([2.0]).sd)
    assert math.isnan(compute_stat([]).error)
    assert math.isnan(compute_stat([math.nan]).mean)
    assert all(math.isnan(end) for end in compute_stat([2.0]).interval)


def test_intervals_are_students() -> None:
    half = 4.302652729911275 / math.sqrt(3)  # t of 2 degrees of freedom
    three = compute_stat([1.0, 2.0, 3.0, math.nan])
    assert three.interval == pytest.approx((2 - half, 2 + half))
    assert format_interval(three, 1, 10) == ("+20.0", f"{MINUS}4.8", "+44.8")


def test_a_difference_has_a_sign_where_its_interval_does_not_hold_0() -> None:
    few = {0: [1.0, 2.0, 3.0], 1: [2.0, 2.1, 2.2], -1: [-2.0, -2.1, -2.2]}
    assert {sign: compute_stat(values).sign for sign, values in few.items()} == {sign: sign for sign in few}
    assert [compute_stat(values).sign for values in ([], [2.0], [2.0, 2.0], [0.0, 0.0])] == [0, 0, 1, 0]


def test_words_for_shares_differences_and_means() -> None:
    assert (format_percent(0.1234), format_percent(math.nan)) == ("12.3%", "no share")
    assert (format_signed(0.126), format_signed(-1.0, 0)) == ("+0.13", "\N{MINUS SIGN}1")
    assert format_stat(compute_stat([0.1, 0.3]), 1, 100) == "20.0 ± 14.1"
    assert format_stat(compute_stat([0.1, 0.1001]), 2) == format_stat(compute_stat([0.1]), 2) == "0.10"


@pytest.mark.parametrize(
    ("value", "digits", "signed", "text"),
    [
        (-0.004, 2, True, "0.00"),
        (0.126, 2, True, "+0.13"),
        (-1234.5, 1, False, f"{MINUS}1,234.5"),
        (math.nan, 2, False, MISSING),
        (math.inf, 2, False, MISSING),
    ],
)
def test_numbers_as_people_read_them(value: float, digits: int, signed: bool, text: str) -> None:
    assert format_number(value, digits, signed) == text


def test_csv_gives_the_numbers_back_exactly() -> None:
    table = make_table()
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [row["name"] for row in rows] == [NASTY, "[b]", "missing"]
    assert [row["section"] for row in rows] == ["", "second", "second"]
    assert float(rows[0]["share"]) == 0.5
    assert float(rows[0]["share_sd"]) == 0.1234
    assert rows[0]["share_n"] == "3"
    assert rows[0]["n"] == "1200"
    assert math.isnan(float(rows[2]["share"]))
    assert rows[2]["n"] == ""
    assert rows[1]["marks"] == "share:†°"


def test_csv_numbers_survive_at_full_precision() -> None:
    value = 1 / 3 + 1e-16
    table = Table("t", "t", [Column("x", "x", digits=1)])
    table.add_row(value)
    assert float(table.to_csv().splitlines()[1]) == value


def test_markdown_rows_have_as_many_cells_as_columns() -> None:
    lines = [line for line in make_table().to_markdown().splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {5}
    assert f"| missing | {MISSING} |  |" in lines
    assert "50.0 ± 12.3" in lines[2]


def test_only_marks_in_use_are_explained() -> None:
    text = make_table().to_markdown()
    assert "† at the edge." in text
    assert "never" not in text
    assert f"{MISSING} no number" in text
    assert "° runs without a number" in text


@pytest.mark.parametrize(("values", "is_said"), [([0.25], False), ([0.25, math.nan], False), ([0.25, 0.25], True)])
def test_no_spread_is_explained_where_there_is_none(values: list[float], is_said: bool) -> None:
    table = Table("t", "T", [Column("x", "x")], [OVER_SEEDS, "Another."])
    table.add_row(compute_stat(values))
    assert (OVER_SEEDS in table.footnotes) is is_said
    assert "Another." in table.footnotes


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_people_read_as_it_is_has_no_escapes(is_terminal: bool) -> None:
    table = Table("t", "T", [Column("p", "p")], ["* p < 0.05 after the correction."])
    table.add_row(Cell(-0.34, "*"))
    console = Console(width=80, file=io.StringIO(), color_system=None, force_terminal=is_terminal)
    table.show(console)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "* p < 0.05 after" in output
    assert f"{MINUS}0.34 *" in output
    assert "\\" not in output
    assert r"\* p &lt; 0.05" in table.to_markdown()


def test_latex_escapes_every_special_character() -> None:
    escaped = escape_latex(NASTY)
    plain = re.sub(r"\\text[a-z]+\{\}|\\[%&#_{}$]", "", escaped)
    assert not set(plain) & set("%&#_{}$~^\\<>|")
    assert escape_latex(f"1 ± 2 {MINUS} 3") == r"1 $\pm$ 2 $-$ 3"


def test_latex_is_balanced() -> None:
    text = make_table().to_latex()
    bare = text.replace(r"\\", "").replace(r"\{", "").replace(r"\}", "").replace(r"\$", "")
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    begins, ends = re.findall(r"\\begin\{(\w+)\}", text), re.findall(r"\\end\{(\w+)\}", text)
    assert begins == ends[::-1] == ["table", "tabular"]
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {2}
    assert "{}[b]" in text  # not an optional argument of the row before
    assert text.isascii()


@pytest.mark.parametrize("width", [30, 60, 200])
def test_terminal_cuts_no_number(width: int) -> None:
    table = Table("t", "t", [Column("a", "name", Align.left), Column("b", "share"), Column("c", "n", optional=True)])
    table.add_row("first", Stat(12.345, 1.5, 3), Stat(1.0, 0.5, 3))
    console = Console(width=width, file=io.StringIO(), color_system=None)
    table.print(console)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "12.3" in output
    assert "…" not in output
    assert max(map(len, output.splitlines())) <= width


def test_long_names_are_broken_before_numbers_are_cut() -> None:
    table = Table("t", "t", [Column("a", "quantity", Align.left), Column("b", "with CDS"), Column("c", "p")])
    table.add_row("mean activation on patches on which it fires", 12.345, 0.5)
    console = Console(width=40, file=io.StringIO(), color_system=None)
    table.print(console)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "12.3" in output
    assert "0.50" in output
    assert "…" not in output
    assert "mean activation on patches on which it fires" in " ".join(
        output.replace("12.35", "").replace("0.50", "").split()
    )
    assert max(map(len, output.splitlines())) <= 40


def test_narrow_terminal_says_what_is_left_out() -> None:
    console = Console(width=38, file=io.StringIO(), color_system=None)
    make_table().print(console)
    assert "too narrow" in " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def test_square_brackets_are_not_markup() -> None:
    console = Console(width=120, file=io.StringIO(), color_system=None)
    make_table().print(console)
    assert "[b]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_row_needs_a_value_per_column() -> None:
    with pytest.raises(AssertionError, match="2 values for 3 columns"):
        make_table().add_row("a", 1)


def make_blank(instead: str = "") -> Table:
    """A job, how many pairs it had, and nothing that was found in them."""
    columns = [
        Column("job", "job", digits=0, is_count=True),
        Column("n", "pairs", is_count=True),
        Column("emd", "EMD", digits=3),
        Column("sd", "sd", csv_only=True),
    ]
    table = Table("blank", "Distances", columns, notes=["of 3 pairs"], marks={"†": "none"}, instead=instead)
    table.add_row(0, 3, Cell(math.nan, "†"), 0.5)
    table.add_row(1, 3, compute_stat([math.nan]), 0.5)
    return table


@pytest.mark.parametrize("instead", ["", "There are no pairs."])
def test_a_table_of_dashes_is_one_sentence_for_people_and_rows_for_programs(instead: str) -> None:
    table = make_blank(instead)
    sentence = instead or NO_NUMBER
    assert table.to_markdown() == f"**Distances**\n\n{sentence}\n"
    latex = table.to_latex()
    assert sentence in latex
    assert "tabular" not in latex
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    table.print(console)
    assert isinstance(console.file, io.StringIO)
    assert sentence in console.file.getvalue()
    assert MISSING not in console.file.getvalue()
    assert [row["job"] for row in csv.DictReader(io.StringIO(table.to_csv()))] == ["0", "1"]


def test_one_number_makes_a_table() -> None:
    table = make_blank()
    table.add_row(2, 3, 0.25, None)
    assert table.sentence == ""
    assert "0.250" in table.to_markdown()
    assert Table("empty", "No rows, nothing missing", [Column("x", "x")]).sentence == ""


def test_a_part_without_numbers_is_a_sentence_among_others() -> None:
    whole = make_blank()
    whole.add_row(2, 3, 0.25, None)
    joined = join_tables([Part("A", {"k": 1}, make_blank("None here.")), Part("B", {"k": 2}, whole)])
    page = joined.to_markdown()
    assert "A: None here." in page.splitlines()
    assert "| 0 |" in page.split("*B*")[1]
    assert "| 0 |" not in page.split("*B*")[0]
    nothing = join_tables([Part("A", {}, make_blank("None.")), Part("B", {}, make_blank("None."))])
    assert nothing.to_markdown() == "**Distances**\n\nNone.\n"
    apart = join_tables([Part("A", {}, make_blank("None.")), Part("B", {}, make_blank("Nothing."))])
    assert apart.to_markdown() == "**Distances**\n\nA: None. B: Nothing.\n"
