"""Tables of one kind as one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from infoscope.report.tables import Cell, Column, Table, Value


class Part(NamedTuple):
    """What `join_tables` joins: a heading, what holds for every row of it (by key), and the table."""

    heading: str
    facts: Mapping[str, Value]
    table: Table


def join_tables(parts: Sequence[Part]) -> Table:
    """Return tables of one kind as one table, named as the first: a section per part, its facts columns of the CSV.

    A column that a part does not have is empty there; a note that not every part has says whose it is, and so does a
    sentence in place of a part. Where all of them say the same, it stands in place of the whole.
    """
    first = parts[0].table
    columns = {column.key: column for part in parts for column in part.table.columns}
    facts = {key: Column(key, key, csv_only=True) for part in parts for key in part.facts}
    joined = Table(first.name, first.title, [*facts.values(), *columns.values()])
    sentences = {part.heading: part.table.sentence for part in parts}
    if all(sentences.values()):
        joined.instead = parts[0].table.sentence
        if len(set(sentences.values())) > 1:
            joined.instead = " ".join(f"{heading}: {sentence}" for heading, sentence in sentences.items())
    for part in parts:
        joined.marks |= part.table.marks
        places = {column.key: i for i, column in enumerate(part.table.columns)}
        for section in part.table.sections:
            is_first = section is part.table.sections[0]
            titled = f"{part.heading}: {section.title}" if section.title else ""
            if not part.table.sentence:
                joined.add_section(titled or (part.heading if is_first else ""))
            elif is_first:
                joined.add_section(part.heading, part.table.sentence)
            for row in section.rows:
                cells = [row[places[key]] if key in places else Cell() for key in columns]
                joined.add_row(*(part.facts.get(key) for key in facts), *cells)
    for note in dict.fromkeys(note for part in parts for note in part.table.notes):
        holding = [part.heading for part in parts if note in part.table.notes]
        joined.notes.append(note if len(holding) == len(parts) else f"{', '.join(holding)}: {note}")
    return joined
