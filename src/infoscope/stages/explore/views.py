"""A view of an explorer: one SAE under one experiment, with what the table says of each of its latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from infoscope.explorer.format import DTYPES, pack, pack_texts, put
from infoscope.pipeline.context import Context
from infoscope.report.tables import compute_stat, format_number
from infoscope.sae.latent_table import LatentColumn
from infoscope.scope.partition import ENDS, order_groups
from infoscope.stages.explore.latents import BLOCK_LATENTS
from infoscope.stages.latents import Latents
from infoscope.stages.publish import describe_experiment
from infoscope.stages.score.result import ScopeResult
from infoscope.stages.score.stage import scope_of
from infoscope.stages.score.tables import SAE_METRICS

SHOWN_FACTS = ("model", "data", "SAE", "scope")
"""Of an experiment, those that tell views apart; software and hardware stand once, for all of them."""


def name_view(seed: int) -> str:
    """Return the id of the view of an SAE seed."""
    return f"seed{seed}"


def write_view(ctx: Context, folder: Path, seed: int) -> dict[str, Any]:
    """Write the columns of a seed's table of latents; return what the explorer's manifest says of the view."""
    scope, table, view = scope_of(ctx, seed), Latents.at(ctx, seed).load(), name_view(seed)
    facts = describe_experiment(ctx)
    return {
        "id": view,
        "title": f"{ctx.config.model.name}, {ctx.config.sae.kind}, SAE seed {seed}",
        "facts": {**{name: facts[name] for name in SHOWN_FACTS}, **_describe_sae(scope)},
        "seed": seed,
        "layer": ctx.config.model.layer,
        "d_sae": len(table),
        "grid": scope.scores.grid,
        "shift": scope.scores.shift_patches,
        "diagonal": scope.scores.diagonal.name,
        "k_cds": scope.k_cds,
        "k_max": min(scope.scores.k_max, ctx.config.explore.n_images),
        "ranked_by": ctx.config.scope.rank_by.name,
        "emd": ctx.config.scope.emd.name,
        "set": "train",
        "groups": describe_groups(scope),
        "landmarks": _list_landmarks(scope),
        "columns": [_write_column(folder, view, column) for column in table],
        "block_size": BLOCK_LATENTS,
    }


def _describe_sae(scope: ScopeResult) -> dict[str, str]:
    """Return the SAE's own metrics by heading."""
    known = {name: of for name, of in SAE_METRICS.items() if name in scope.sae_metrics}
    return {
        heading: format_number(scale * scope.sae_metrics[name], digits)
        for name, (heading, scale, digits) in known.items()
    }


def describe_groups(scope: ScopeResult) -> dict[str, Any]:
    """Return the groups, and what they divide: the column of that name, on whose axis gamma stands."""
    names, (above, below) = order_groups(scope.partition.groups), ENDS[scope.by]
    by = {"name": scope.by.name, "words": scope.by.words, "above": above, "below": below}
    return {"names": names, "rule": scope.rule, "gamma": scope.partition.gamma, "by": by}


def _list_landmarks(scope: ScopeResult) -> list[dict[str, Any]]:
    """Return what the report's histogram of the CDS marks, beside gamma."""
    chance = scope.scores.chance(scope.k_cds)
    landmarks = {
        "chance, mean": compute_stat(chance).mean,
        "chance of two uniform patches": scope.uniform_chance,
        "position-locked feature": scope.locked,
    }
    return [{"name": name, "value": value} for name, value in landmarks.items() if np.isfinite(value)]


def _write_column(folder: Path, view: str, column: LatentColumn) -> dict[str, Any]:
    """Write the values of a column; return what the manifest says of it."""
    is_text = column.values.dtype.kind == "U"
    values = pack_texts(column.values) if is_text else pack(_fit(column.values))
    put(folder, f"{view}/columns/{column.name}", values)
    kind = {"U": "text", "b": "switch"}.get(column.values.dtype.kind, "number")
    about = {name: getattr(column, name) for name in ("name", "heading", "unit", "source", "n_known")}
    return {**about, "kind": kind}


def _fit(values: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """Return numbers in a type that a page has arrays of, unchanged in value; large integers as float64."""
    if values.dtype.name in DTYPES or values.dtype == bool:
        return values
    if values.dtype.kind in "iu":
        return values.astype(np.int32 if np.abs(values).max(initial=0) < 2**31 else np.float64)
    return values.astype(np.float64)
