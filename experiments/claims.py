"""Numbers that a text claims, compared with those in files.

An address is `SOURCE/FILE/STEP/...`, with ` * SCALE` behind it where the text prints another unit. A source is a
folder; FILE is the name of a CSV or JSON file there, or in its `tables/`, without the suffix. A step is a key, the
place in a list, `*` (mean and spread over a list), or `KEY=VALUE;KEY=VALUE`: the one row with these values. The spread
of a mean is what stands under the same key with `_sd` behind it.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infoscope.report.tables import Stat, compute_stat
from infoscope.runtime.errors import InputError

_UNSIGNED = r"(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)"
NUMBER = rf"([+\-\u2212]?{_UNSIGNED}(?: ± {_UNSIGNED})?)"
OK, NEAR, DIFFERS, MISSING, LOST = "ok", "near", "differs", "not built", "lost"
LABEL_WIDTH = 55
"""Characters before a number that say which it is."""
NEAR_SHARE = 0.05
"""How far a number without a spread may be off to be near."""

FindFolder = Callable[[str], Path | None]
"""Returns the folder of a source; None where it is not built."""


@dataclass(frozen=True)
class Claim:
    """A sentence with numbers.

    Args:
        text: its own words, with {} where a number stands; any white space stands for any other.
        addresses: of the numbers.
    """

    text: str
    addresses: Sequence[str]

    @property
    def name(self) -> str:
        """The sentence without its numbers."""
        return self.text.replace("{}", "…")

    def read(self, document: str) -> list[tuple[str, str, str]]:
        """Return label, number and address of each number.

        Raises:
            InputError: the text does not hold the sentence, or more than once.
        """
        pattern = NUMBER.join(r"\s+".join(map(re.escape, part.split(" "))) for part in self.text.split("{}"))
        found = list(re.finditer(pattern, document))
        if len(found) != 1:
            raise InputError(f"Expected one sentence {self.text!r}, found {len(found)}: has it been written anew?")
        parts = self.text.split("{}")
        before = ["…".join(parts[: place + 1]) for place in range(len(self.addresses))]
        labels = [text if len(text) < LABEL_WIDTH else f"…{text[-LABEL_WIDTH:].partition(' ')[2]}" for text in before]
        return [
            (label, number, of) for label, number, of in zip(labels, found[0].groups(), self.addresses, strict=True)
        ]


@dataclass(frozen=True)
class TableClaim:
    """A Markdown table of numbers.

    Args:
        header: how its first line begins.
        rows: for each row, how it begins, and the address of what it is about.
        columns: for some columns, how the heading begins, and what stands behind the row's address. Other columns, and
            empty cells, are not read.
    """

    header: str
    rows: Sequence[tuple[str, str]]
    columns: Mapping[str, str]

    @property
    def name(self) -> str:
        """Its header."""
        return self.header

    def read(self, document: str) -> list[tuple[str, str, str]]:
        """Return label, number and address of each number.

        Raises:
            InputError: the text does not hold the table, or its rows or columns are others.
        """
        lines = document.splitlines()
        starts = [i for i, line in enumerate(lines) if line.startswith(self.header)]
        if len(starts) != 1:
            raise InputError(f"Expected one table with the header {self.header!r}, found {len(starts)}.")
        headings = _split_row(lines[starts[0]])
        places = {heading: _find_place(headings, heading) for heading in self.columns}
        return list(self._read_rows(lines[starts[0] + 2 :], headings, places))

    def _read_rows(
        self, lines: Sequence[str], headings: Sequence[str], places: Mapping[str, int]
    ) -> Iterator[tuple[str, str, str]]:
        for number, (start, address) in enumerate(self.rows):
            cells = _split_row(lines[number]) if number < len(lines) else []
            if not cells or not cells[0].startswith(start):
                raise InputError(
                    f"Expected row {number + 1} of {self.header!r} to begin with {start!r}, got {cells[:1]}."
                )
            for heading, place in places.items():
                said = cells[place].removesuffix("%").removesuffix("*")
                if said and not re.fullmatch(NUMBER, said):
                    raise InputError(f"Expected a number under {heading!r} of {cells[0]!r}, got {said!r}.")
                if said:
                    yield f"{cells[0]}: {headings[place]}", said, f"{address}/{self.columns[heading]}"
        if lines[len(self.rows) :][:1] and lines[len(self.rows)].startswith("|"):
            raise InputError(f"Expected {len(self.rows)} rows under {self.header!r}, got more.")


def _split_row(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _find_place(headings: Sequence[str], start: str) -> int:
    places = [i for i, heading in enumerate(headings) if heading.startswith(start)]
    if len(places) != 1:
        raise InputError(f"Expected one column {start!r}, got {', '.join(headings)}.")
    return places[0]


@dataclass(frozen=True)
class Finding:
    """A number that a text claims and what was found for it; `verdict` is one of the words above.

    lost: the text no longer holds the claim, or its address leads nowhere; `found` says so.
    """

    label: str
    said: str
    found: str
    verdict: str


def check_claims(claims: Sequence[Claim | TableClaim], document: str, find_folder: FindFolder) -> Iterator[Finding]:
    """Yield what each number of a text claims and what is found for it."""
    for claim in claims:
        try:
            numbers = claim.read(document)
        except InputError as error:
            yield Finding(claim.name, "", str(error), LOST)
            continue
        for label, said, address in numbers:
            folder = find_folder(address.split("/")[0])
            try:
                yield (
                    compare(label, said, find_number(folder, address)) if folder else Finding(label, said, "", MISSING)
                )
            except InputError as error:
                yield Finding(label, said, str(error), LOST)


def compare(label: str, said: str, found: Stat) -> Finding:
    """Compare a number as it is written with one that was found: ok means the same digits, of the spread too.

    Near is within the spread that is written, or within `NEAR_SHARE` or two units of the last digit without one.
    """
    mean_text, _, sd_text = said.partition(" ± ")
    texts = [_format(found.mean, mean_text)]
    if sd_text:
        texts.append(_format(found.sd, sd_text))
    if texts == [text for text in (mean_text, sd_text) if text]:
        return Finding(label, said, " ± ".join(texts), OK)
    value = _parse(mean_text)
    off = abs(found.mean - value)
    near = _parse(sd_text) if sd_text else max(NEAR_SHARE * abs(value), 2 * 10.0 ** -_count_digits(mean_text))
    return Finding(label, said, " ± ".join(texts), NEAR if off <= near else DIFFERS)


def _format(value: float, like: str) -> str:
    """Write a number as another one is written."""
    if not math.isfinite(value):
        return "no number"
    text = f"{value + 0.0:,.{_count_digits(like)}f}"
    text = text.removeprefix("-") if float(text.replace(",", "")) == 0 else text
    if "," not in like and abs(_parse(like)) >= 1000:
        text = text.replace(",", "")
    if like.lstrip("+-\u2212").startswith("."):
        text = text.replace("0.", ".", 1)
    sign = "+" if like.startswith("+") and value > 0 else ""
    return sign + (text.replace("-", "\u2212") if "\u2212" in like else text)


def _count_digits(text: str) -> int:
    return len(text.partition(".")[2])


def _parse(text: str) -> float:
    return float(text.replace("\u2212", "-").replace(",", ""))


def find_number(folder: Path, address: str) -> Stat:
    """Follow an address into the folder of its source; the spread is NaN where none is known.

    Raises:
        InputError: it leads nowhere, or not to a number.
    """
    path, _, scale = address.partition(" * ")
    _, name, *steps = path.split("/")
    found, factor = _follow(_load(folder, name, address), steps, address), float(scale or 1)
    return Stat(found.mean * factor, found.sd * abs(factor), found.n)


def _follow(tree: Any, steps: Sequence[str], address: str) -> Stat:
    step, *rest = steps
    if step == "*":
        return compute_stat(_follow(one, rest, address).mean for one in tree)
    found = _step(tree, step, address)
    if rest:
        return _follow(found, rest, address)
    sd = tree.get(f"{step}_sd") if isinstance(tree, Mapping) else None
    try:
        return Stat(float(found), float(sd or math.nan) if sd != 0 else 0.0, 1)
    except (TypeError, ValueError):
        raise InputError(f"Expected a number at {address!r}, got {str(found)[:80]!r}.") from None


def _step(tree: Any, step: str, address: str) -> Any:
    if isinstance(tree, Mapping) and step in tree:
        return tree[step]
    if isinstance(tree, list) and step.isdigit() and int(step) < len(tree):
        return tree[int(step)]
    if isinstance(tree, list) and "=" in step:
        wanted = dict(one.split("=", 1) for one in step.split(";"))
        rows = [row for row in tree if all(str(row.get(key, "")) == value for key, value in wanted.items())]
        if len(rows) == 1:
            return rows[0]
        raise InputError(f"Expected one row {step!r} at {address!r}, found {len(rows)}.")
    raise InputError(f"Nothing stands at {step!r} of {address!r}.")


def _load(folder: Path, name: str, address: str) -> Any:
    for path in (folder / "tables" / f"{name}.csv", folder / f"{name}.csv", folder / f"{name}.json"):
        if path.exists():
            text = path.read_text(encoding="utf-8")
            return json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))
    raise InputError(f"Expected {name}.csv or {name}.json in {folder}, for {address!r}.")
