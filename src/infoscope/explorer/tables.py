"""The tables of an explorer as a static page, for browsers without JavaScript, and all columns as csv."""

from __future__ import annotations

import csv
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped

from infoscope.explorer.format import read, unpack
from infoscope.runtime.errors import InputError
from infoscope.sae.latent_table import LatentColumn, LatentTable

FILE = "tables.html"
N_SHOWN = 50
"""Latents of the highest, and of the lowest values on the page."""
MAIN_COLUMNS = (
    "cds",
    "cds_low",
    "cds_high",
    "cds_minus_chance",
    "extent",
    "mean_extent",
    "context_effect",
    "group",
    "undecided",
    "firing_rate",
    "mass",
    "support",
    "label_entropy",
    "ms",
    "name",
)
"""Columns that the page shows where they are there, after what the groups divide; the csv has all."""
CHUNK_ROWS = 4096
"""Rows of a csv that are made into text at a time."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""With what a cell begins that spreadsheets would compute."""
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'self' file:; img-src data:; \
base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>$title</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="page/style.css">
</head>
<body class="tables">
<header><h1>$title</h1><nav aria-label="Pages"><a href="index.html">With pictures (needs JavaScript)</a></nav></header>
<main>
$facts
$views
</main>
</body>
</html>
""")


def write_tables(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write tables.html and latents_<view>.csv into an explorer's folder, from the columns that lie there.

    The page shows the facts, and of each view its groups and the latents of highest and of lowest CDS, or of what else
    the groups divide. The csv has a row per latent and all columns: numbers in the fewest digits that give the same
    value, "" where a latent has none. Text that spreadsheets would compute begins with an apostrophe.

    Args:
        manifest: of the explorer.
    """
    sections: list[str] = []
    for view in manifest["views"]:
        latents = read_latents(folder, view)
        write_csv(folder / f"latents_{view['id']}.csv", latents)
        sections.append(_make_section(view, latents))
    page = _PAGE.substitute(
        title=html.escape(manifest["title"]), facts=_list_facts(manifest["facts"]), views="\n".join(sections)
    )
    (folder / FILE).write_text(page, encoding="utf-8")


class Divided(NamedTuple):
    """What the groups of a view divide: the name of its column, and what it is called in a sentence."""

    name: str
    words: str


def find_divided(view: Mapping[str, Any]) -> Divided:
    """Return what the groups of a view divide; explorers that do not say so divide the CDS.

    Args:
        view: of the manifest.
    """
    by = (view.get("groups") or {}).get("by")
    return Divided("cds", "CDS") if by is None else Divided(str(by["name"]), str(by["words"]))


def read_latents(folder: Path, view: Mapping[str, Any]) -> LatentTable:
    """Return the columns of a view that lie in an explorer's folder.

    Args:
        view: of the manifest.

    Raises:
        InputError: a column is missing or damaged.
    """
    columns = [
        LatentColumn(
            about["name"],
            _read_column(folder, f"{view['id']}/columns/{about['name']}", view["d_sae"], about["kind"]),
            about["heading"],
            about["unit"],
            about["source"],
        )
        for about in view["columns"]
    ]
    return LatentTable(view.get("seed"), columns)


def _read_column(folder: Path, key: str, n: int, kind: str) -> Shaped[np.ndarray, " n"]:
    found = read(folder, key)
    try:
        if kind == "text":
            values = np.array(found["texts"], dtype=str)[unpack(found["codes"])]
        else:
            values = unpack(found).astype(bool) if kind == "switch" else unpack(found)
        if values.shape != (n,):
            raise ValueError(f"expected {n} values, got {values.shape}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"data/{key}.js of the explorer in {folder} is damaged ({error}): make it again with stage=explore."
        ) from error
    return values


def write_csv(path: Path, latents: LatentTable) -> None:
    """Write a row per latent: its number and all columns, by their names."""
    columns = list(latents)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["latent", *(guard(column.name) for column in columns)])
        for start in range(0, len(latents), CHUNK_ROWS):
            some = slice(start, start + CHUNK_ROWS)
            cells = [list_cells(column.values[some]) for column in columns]
            writer.writerows(zip(range(start, start + len(cells[0])), *cells, strict=True))


def list_cells(values: Shaped[np.ndarray, " n"]) -> list[Any]:
    """Return values as cells of a csv: full precision, "" for what is not finite, no text that is a formula."""
    match values.dtype.kind:
        case "f":
            texts = values.astype(str).astype(object)  # the fewest digits in the column's own precision
            texts[~np.isfinite(values)] = ""
            return texts.tolist()
        case "U":
            return [guard(text) for text in values.tolist()]
        case "b":
            return ["true" if value else "false" for value in values.tolist()]
        case _:
            return values.tolist()


def guard(text: str) -> str:
    """Return a text that a spreadsheet takes as text: with an apostrophe before what would be a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _make_section(view: Mapping[str, Any], latents: LatentTable) -> str:
    id_ = html.escape(view["id"])
    divided = find_divided(view)
    wanted = dict.fromkeys([divided.name, *MAIN_COLUMNS])
    shown = [column for name in wanted for column in latents if column.name == name]
    tables = [
        _make_table(caption, ["latent", *map(_make_heading, shown)], _list_rows(shown, order))
        for caption, order in _choose_latents(latents, divided)
    ]
    return "\n".join(
        [
            f'<section aria-labelledby="{id_}">',
            f'<h2 id="{id_}">{html.escape(view["title"])}</h2>',
            _list_facts(view["facts"]),
            f'<p><a href="latents_{id_}.csv">All {len(latents):,} latents with all columns (csv)</a></p>',
            *([_make_group_table(latents, divided)] if "group" in latents else []),
            *tables,
            "</section>",
        ]
    )


def _choose_latents(latents: LatentTable, divided: Divided) -> Iterator[tuple[str, Int64[np.ndarray, " n"]]]:
    """Yield captions and the latents below them."""
    name, words = divided
    if name not in latents:
        yield f"The first {min(len(latents), N_SHOWN)} latents", np.arange(min(len(latents), N_SHOWN))
        return
    values = latents[name]
    scored = np.flatnonzero(np.isfinite(values))
    order = scored[np.argsort(values[scored], kind="stable")]
    article = "an" if words[:1] in "aeiou" else "a"
    if len(order) <= 2 * N_SHOWN:
        yield f"All {len(order):,} latents that have {article} {words}, the lowest first", order
        return
    yield f"The {N_SHOWN} latents of lowest {words}, of {len(order):,} that have one", order[:N_SHOWN]
    yield f"The {N_SHOWN} latents of highest {words}, of {len(order):,} that have one", order[: -N_SHOWN - 1 : -1]


def _make_group_table(latents: LatentTable, divided: Divided) -> str:
    """Return the groups by the mean of what they divide: how many latents, their share of the mass, their means."""
    of = {column.name: column.values for column in latents}
    groups, values, mass = of["group"], of.get(divided.name), of.get("mass")
    means = {
        divided.name: f"mean of {divided.words}",
        "cds": "mean CDS",
        "cds_minus_chance": "mean CDS - chance",
        "firing_rate": "mean firing rate",
    }
    known = {name: heading for name, heading in means.items() if name in latents}
    names = {name: np.flatnonzero(groups == name) for name in np.unique(groups).tolist()}
    if values is not None:
        names = dict(sorted(names.items(), key=lambda item: -np.nan_to_num(_mean(values[item[1]]), nan=-1)))
    headings = ["group", "latents", *(["share of the mass"] if mass is not None else []), *known.values()]
    rows = [
        [
            name or "none",
            f"{len(some):,}",
            *([_show(np.nansum(mass[some]) / np.nansum(mass))] if mass is not None else []),
            *(_show(_mean(of[column][some])) for column in known),
        ]
        for name, some in names.items()
    ]
    return _make_table("Groups", [html.escape(heading) for heading in headings], rows)


def _mean(values: Shaped[np.ndarray, " n"]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _list_rows(columns: Sequence[LatentColumn], order: Iterable[int]) -> Iterator[list[str]]:
    for latent in order:
        yield [str(latent), *(_show(column.values[latent]) for column in columns)]


def _make_table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; its headings are HTML, all else is text."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(first)}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>\n'
        f"<caption>{html.escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
        "</table></div>"
    )


def _make_heading(column: LatentColumn) -> str:
    unit = f" <small>{html.escape(column.unit)}</small>" if column.unit not in ("", "1") else ""
    return html.escape(column.heading) + unit


def _list_facts(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    said = "".join(f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(str(text))}</dd>" for key, text in facts.items())
    return f"<dl>{said}</dl>"


def _show(value: Any) -> str:
    """Return a value as people read it."""
    if isinstance(value, np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{float(value):.3g}" if np.isfinite(value) else ""
    return str(value)
