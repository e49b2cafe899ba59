"""What `stage=check_data` found in a data set, as a table."""

from __future__ import annotations

from collections import Counter

from infoscope.data.check import SplitCheck
from infoscope.report.tables import Align, Cell, Column, Table

MAX_VALUES = 6
"""Values of a fact that are shown, the most frequent ones; the rest are counted together."""
MAX_LETTERS = 72


def make_check_table(name: str, found: SplitCheck) -> Table:
    """Return what one split holds: layout, counts, facts by frequency, and the first things that are wrong."""
    table = Table(name, name, [Column("what", "what", Align.left), Column("found", "found", Align.left)])
    published = f" of {found.n_published:,} published" if found.n_published is not None else ""
    table.add_row("images", Cell(f"{found.n_images:,}{published}"))
    for what, value in found.found.items():
        if what != "images":
            table.add_row(what, Cell(_cut(value)))
    if found.left_out:
        table.add_row("left out", Cell(found.left_out.share))
        for kind, names in found.left_out.list_kinds():
            table.add_row("", Cell(_cut(f"{kind}: {names}")))
    for what, counts in found.facts.items():
        shown = Counter(counts).most_common(MAX_VALUES)
        rest = sum(counts.values()) - sum(n for _, n in shown)
        text = ", ".join(f"{value}: {n:,}" for value, n in shown)
        table.add_row(what, Cell(text + (f", {len(counts) - len(shown)} others: {rest:,}" if rest else "")))
    if found.depth:
        low, middle, high, share = (found.depth[name] for name in ("min_m", "median_m", "max_m", "measured_share"))
        table.add_row(
            "depth", Cell(f"{low:.2f} to {high:.2f} m, median {middle:.2f} m, {share:.0%} of pixels measured")
        )
    table.add_row("wrong", Cell(f"{len(found.errors):,}"))
    for error in list(found.errors.values())[:3]:
        table.notes.append(error)
    return table


def _cut(text: str) -> str:
    return text if len(text) <= MAX_LETTERS else text[: MAX_LETTERS - 3] + "..."
