"""Tables and figures: what the artifacts say, for a terminal, a page, a paper and a program."""

from infoscope.report.inputs import Example, ReportInputs, ScopeResult, TokenStats
from infoscope.report.paper import PAPER_VALUES
from infoscope.report.removal import make_removal_tables
from infoscope.report.report import ReportFiles, make_summary, make_tables, print_report, write_report
from infoscope.report.scope_table import make_scope_table
from infoscope.report.tables import Cell, Column, Stat, Table, compute_stat

__all__ = [
    "PAPER_VALUES",
    "Cell",
    "Column",
    "Example",
    "ReportFiles",
    "ReportInputs",
    "ScopeResult",
    "Stat",
    "Table",
    "TokenStats",
    "compute_stat",
    "make_removal_tables",
    "make_scope_table",
    "make_summary",
    "make_tables",
    "print_report",
    "write_report",
]
