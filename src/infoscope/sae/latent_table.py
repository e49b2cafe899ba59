"""What is known of each latent of an SAE: a row per latent, a column per fact, in a parquet file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped
from pyarrow import parquet

from infoscope.runtime import notebook
from infoscope.runtime.errors import InputError, list_some, suggest
from infoscope.runtime.experiments import read_settings, tell_experiments
from infoscope.runtime.files import atomic_write
from infoscope.runtime.manifests import read_manifest

FILE = "latents.parquet"
_META = b"infoscope"
"""The key of our JSON (UTF-8) in the metadata of the file (the seed) and of each field (heading, unit, source)."""


class UnknownColumn(InputError, KeyError):
    """There is no column of a name."""

    __str__ = Exception.__str__  # KeyError puts a sentence into quotes


@dataclass(frozen=True)
class LatentColumn:
    """One fact of every latent.

    name: of the column, unique in a table.
    values: [d_sae] numbers, switches or text; NaN, or empty text, where a latent has none.
    heading: for people.
    unit: of the values; "1": a plain number; empty: a name or a switch.
    source: the kind of artifact that it comes from.
    """

    name: str
    values: Shaped[np.ndarray, " d_sae"]
    heading: str
    unit: str = ""
    source: str = ""

    @property
    def n_known(self) -> int:
        """Latents that have a value: not NaN, and no empty text."""
        match self.values.dtype.kind:
            case "f":
                return int(np.isfinite(self.values).sum())
            case "U":
                return int((self.values != "").sum())
            case _:
                return len(self.values)


class LatentTable:
    """A row per latent, in the order of the SAE's; columns by name, in the order in which they were added.

    Args:
        seed: of the SAE; None: not known.
        origin: of which experiment it is, in words; empty where that is not known.
    """

    def __init__(self, seed: int | None, columns: Iterable[LatentColumn] = (), origin: str = "") -> None:
        self.seed, self.origin, self._columns = seed, origin, {}
        for column in columns:
            self._add(column)

    def add(self, source: str, columns: Iterable[LatentColumn]) -> None:
        """Add what one kind of artifact tells of every latent."""
        for column in columns:
            self._add(replace(column, source=source))

    def _add(self, column: LatentColumn) -> None:
        assert column.name not in self._columns, f"{column.name} is there already"
        assert column.values.ndim == 1, (column.name, column.values.shape)
        assert not self._columns or len(column.values) == len(self), (column.name, len(column.values), len(self))
        self._columns[column.name] = column

    def __len__(self) -> int:
        """Latents."""
        return len(next(iter(self._columns.values())).values)

    def __iter__(self) -> Iterator[LatentColumn]:
        return iter(self._columns.values())

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> Shaped[np.ndarray, " d_sae"]:
        """Return the values of a column.

        Raises:
            UnknownColumn: there is none of that name.
        """
        if name not in self._columns:
            raise UnknownColumn(
                f"Expected one of the {len(self._columns)} columns of this table, which print(table) names, got"
                f" {name!r}{suggest(str(name), list(self._columns))}; stage=effects, extent, segment, adapt add theirs"
                " when they have run."
            )
        return self._columns[name].values

    def __repr__(self) -> str:
        return f"LatentTable({', '.join(self._facts)}: {', '.join(self._columns)})"

    def _repr_html_(self) -> str:
        rows = [(column.name, column.heading, column.unit, column.source, *_summarise(column)) for column in self]
        headings = ("column", "what it is", "unit", "from", "known", "10%", "median, or most frequent", "90%")
        return notebook.join(
            notebook.write_title("LatentTable", ", ".join(self._facts)),
            notebook.write_table(headings, rows, n_texts=4),
            notebook.write_line("is a column as an array, .to_pandas() a data frame of all.", 'table["cds"]'),
        )

    @property
    def _facts(self) -> list[str]:
        seed = [] if self.seed is None else [f"seed {self.seed}"]
        return [*([self.origin] if self.origin else []), *seed, f"{len(self)} latents"]

    def to_arrow(self) -> pa.Table:
        """Return it as an arrow table, with heading, unit and source in the metadata of each field."""
        arrays = [pa.array(column.values) for column in self]
        fields = [
            pa.field(
                column.name, array.type, metadata=_pack(heading=column.heading, unit=column.unit, source=column.source)
            )
            for column, array in zip(self, arrays, strict=True)
        ]
        return pa.table(arrays, pa.schema(fields, metadata=_pack(seed=self.seed)))

    def to_pandas(self) -> Any:
        """Return it as a pandas data frame, the latent being the index.

        Raises:
            InputError: pandas is not installed; infoscope does not need it for anything else.
        """
        if find_spec("pandas") is None:
            raise InputError("to_pandas() needs pandas, which is not installed: install it, or use to_arrow().")
        return self.to_arrow().to_pandas().rename_axis("latent")

    def save(self, folder: Path) -> None:
        """Write latents.parquet into an existing folder, whole or not at all."""
        with atomic_write(folder / FILE) as unfinished:
            parquet.write_table(self.to_arrow(), unfinished)

    @classmethod
    def load(cls, folder: Path) -> LatentTable:
        """Read what `save` wrote.

        Raises:
            InputError: there is no such file, or it is damaged.
        """
        try:
            table = parquet.ParquetFile(folder / FILE).read()
            seed = _unpack(table.schema.metadata)["seed"]
            facts = [_unpack(field.metadata) for field in table.schema]
        except FileNotFoundError:
            raise InputError(f"Expected {FILE} in {folder}, which is not there: make it with stage=latents.") from None
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder / FILE} is damaged or no table of latents: delete its folder and make it again with"
                " stage=latents."
            ) from error
        named = zip(table.column_names, table.columns, facts, strict=True)
        columns = (LatentColumn(name, _to_numpy(array), **fact) for name, array, fact in named)
        return cls(seed, columns, _describe_origin(folder))


def load_latents(folder: Path | str, seed: int | None = None) -> LatentTable:
    """Read what a run has found of each latent of an SAE; torch is not needed.

    `.to_arrow()` and, where pandas is installed, `.to_pandas()` give a row per latent; `table["cds"]` gives the values
    [d_sae] of one column, and each `column` of `for column in table` has a name, a heading, a unit and the kind of
    artifact it comes from. Shares lie in 0..1, the CDS is one of the largest distance; mean_act is in the SAE's
    own units, and so are other activations, times the norm of the latent's decoder row where not all of these are 1:
    then the unit says so. NaN: a latent has no such value. `print(table)` names the experiment and the columns.

    Args:
        folder: of a table (`output_dir/artifacts/latents/...`), or the `output_dir` of runs of one experiment: then the
            table that was made last.
        seed: of the SAE; of an `output_dir` that holds tables of one seed alone it need not be given.

    Raises:
        InputError: there is no table in the folder, none of that seed, or the file is damaged; or several seeds, or
            several experiments, to choose from.
    """
    folder = Path(folder)
    if (folder / FILE).is_file():
        files = [folder / FILE]
    else:
        files = [path for path in folder.glob(f"artifacts/latents/*/{FILE}") if not path.parent.name.startswith(".")]
    if not files:
        raise InputError(f"Expected a table of latents in {folder}, found none: make one with stage=report or latents.")
    files.sort(key=lambda path: path.stat().st_mtime_ns)
    of_seed: dict[int, list[Path]] = {}
    for path in files:
        of_seed.setdefault(_find_seed(path.parent), []).append(path.parent)
    seeds = sorted(of_seed)
    if seed is None and len(seeds) > 1:
        raise InputError(f"{folder} holds latents of the SAE seeds {', '.join(map(str, seeds))}: say which, as seed=0.")
    if seed is not None and seed not in seeds:
        raise InputError(
            f"Expected latents of SAE seed {seed} in {folder}, found those of {', '.join(map(str, seeds))}."
        )
    folders = of_seed[seeds[0] if seed is None else seed]
    _check_one_experiment(folder, folders)
    return LatentTable.load(folders[-1])


def _check_one_experiment(outputs: Path, folders: Sequence[Path]) -> None:
    """Refuse tables of one SAE seed whose configurations differ: nobody said which is meant.

    Args:
        folders: of the tables, the newest last.

    Raises:
        InputError: with what differs in each.
    """
    if tables := tell_experiments(folders, _read_scores):
        raise InputError(
            f"{outputs} holds tables of latents of {len(tables)} experiments: give the folder of one,"
            f" load_latents({str(folders[-1].parent / 'NAME')!r}), NAME being {list_some(tables, 8)}."
        )


def _summarise(column: LatentColumn) -> tuple[str, ...]:
    """Return how many latents have a value, and quantiles; of switches how many are on, of texts the most frequent."""
    values, n = column.values, f"{column.n_known:,}"
    if values.dtype.kind == "f":
        known = values[np.isfinite(values)]
    elif values.dtype.kind in "iu":
        known = values
    else:
        names, counts = np.unique(values, return_counts=True)
        most = [f"{names[i]} {counts[i]:,}" for i in np.argsort(-counts, kind="stable")[:3] if str(names[i])]
        return n, "", ", ".join(most), ""
    return n, *((f"{q:.4g}" for q in np.quantile(known, (0.1, 0.5, 0.9))) if len(known) else ("", "", ""))


def _read_scores(folder: Path) -> str | None:
    """Return the hash of the scores that a table holds; None: it has none, or says nothing of them."""
    key = (read_manifest(folder) or {}).get("key")
    sources = key.get("sources") if isinstance(key, dict) else None
    return sources.get("score") if isinstance(sources, dict) else None


def _describe_origin(folder: Path) -> str:
    """Return model, layer, SAE and data of a table, and its hash, in words; empty where they are not known."""
    found = read_settings(folder)
    names = {"model.name": "model", "model.layer": "layer", "sae.kind": "SAE", "sae.path": "of", "data.kind": "data"}
    words = [f"{word} {found[key]}" for key, word in names.items() if found.get(key) is not None]
    named = re.fullmatch(r".*-([0-9a-f]{16})", folder.name)
    return ", ".join([*words, *([f"hash {named[1]}"] if words and named else [])])


def _find_seed(folder: Path) -> int:
    """Return the SAE seed of a table, by its artifact's name: only the one that is asked for is read."""
    named = re.fullmatch(r".*-seed(\d+)-[0-9a-f]+", folder.name)
    return LatentTable.load(folder).seed or 0 if named is None else int(named[1])


def _pack(**facts: Any) -> dict[bytes, bytes]:
    return {_META: json.dumps(facts, ensure_ascii=False).encode()}


def _unpack(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    return json.loads(metadata[_META])


def _to_numpy(array: pa.ChunkedArray) -> np.ndarray:
    values = array.to_numpy()
    return values.astype(str) if values.dtype == object else values
