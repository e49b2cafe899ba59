"""Reconstruction against sparsity over kinds of SAEs: the Pareto front, by MSAE's measures, each point with its scope.

    python experiments/sae_pareto.py                                        # patch tokens of the miniature's own CLIP
    python experiments/sae_pareto.py model.site=pooled data.n_train=6000 seeds=[0,1]     # whole images, no scores
    python experiments/sae_pareto.py sae=topk,matryoshka_k model=clip_b16 data=imagenet data.root=/imagenet \
        sae.expansion_factor=8 sae.n_tokens=50000000 sae.batch_tokens=4096

`sae=` chooses among the kinds; all else are overrides of every run. A point is on the front if no other has both a
smaller L0 and a smaller FVU. With more than one seed a column says how alike the features of two seeds are. SAEs of
pooled embeddings have no scores.

matryoshka_k is MSAE (Zaigrajew et al., 2025): codes of 1, 2, 4, ... up to k latents, whose FVUs count all the same
(`sae.level_weights=uniform`, UW in MSAE) or n, n - 1, ..., 1, the smallest code most (decreasing, RW). sae.k=null is
its own k, all latents: each that is above 0 is active then. The curves over k say what any other k leaves at inference.

MSAE claims, for image embeddings of CLIP: a cosine of .99, FVU below .1 and 80% zeros. Notes say which points reach all
three, by the raw cosine and by that from the mean token: MSAE's code measures the second while it trains, whose tokens
are centred, and the first when it evaluates an SAE.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from infoscope.commands.experiments.runs import Run, Shown, join_runs, make_run_table
from infoscope.commands.experiments.sweep import Experiment, main, name_gamma
from infoscope.pipeline.context import Context
from infoscope.report.figure_style import FAINT, GREY, INK, make_panels
from infoscope.report.tables import PERCENT, Align, Cell, Column, Stat, Value, compute_stat
from infoscope.sae.config import LevelWeights, MatryoshkaKConfig, SAEConfig, TopKConfig
from infoscope.stages.quality.figure import draw_progressive
from infoscope.stages.quality.numbers import COLUMNS, Measured
from infoscope.stages.quality.section import make_progressive_table
from infoscope.stages.quality.stage import measured_of
from infoscope.stages.sae import has_maps
from infoscope.stages.score.stage import scope_of
from infoscope.stages.score.tables import summarise_scope

KS = (4, 16, 64)
MATRYOSHKA = tuple(f"sae=matryoshka_k sae.k={k} sae.level_weights=" for k in (*KS, "null"))
"""MSAE's kind, nested codes of 1, 2, 4, ..., k latents; k=null is all latents, as MSAE has it."""
SETTINGS = (
    *(f"sae={kind} sae.k={k}" for kind in ("topk", "batchtopk") for k in KS),
    *(f"{one}{weights}" for weights in ("uniform", "decreasing") for one in MATRYOSHKA),
    *(f"sae=matryoshka_prefix sae.k={k}" for k in KS),
    *(f"sae=relu sae.l1={l1:g}" for l1 in (0.03, 0.1, 0.3)),
    *(f"sae=jumprelu sae.l0_coef={coef:g}" for coef in (0.0003, 0.001, 0.003)),
)
CLAIMS = {"cosine": 0.985, "fvu_per_token": 0.1, "zeros": 0.795}
"""What MSAE claims, in the last digit that it is given: a cosine of at least .99, FVU below .1, 80% zeros."""
KIND_COLUMNS = (
    Column("kind", "SAE", Align.left),
    Column("k", "k", digits=0, is_count=True),
    Column("weights", "weights", Align.left),
)
SCOPE_COLUMNS = (
    Column("n_scored", "scored", digits=0, optional=True),
    Column("scored_share", "of all", **PERCENT, optional=True),
    Column("median_cds", "median CDS", digits=3),
    Column("mean_chance", "chance", digits=3, optional=True),
    Column("high_share", "CDS above gamma", **PERCENT),
)
MARKS = {
    "topk": ("o", "#0072b2"),
    "batchtopk": ("s", "#56b4e9"),
    "matryoshka_k UW": ("^", "#d55e00"),
    "matryoshka_k RW": ("<", "#f0e442"),
    "matryoshka_prefix": ("D", "#e69f00"),
    "relu": ("v", "#009e73"),
    "jumprelu": ("P", "#cc79a7"),
}
"""Marker and colour of each kind; the colour where there are no scores to show by it."""
EDGE = {"markeredgecolor": INK, "markeredgewidth": 0.5, "markersize": 5.5}
FRONT_EDGE = {"markeredgewidth": 1.5}
"""Of points on the front."""
MSAE_NAMES = {LevelWeights.uniform: "UW", LevelWeights.decreasing: "RW"}
"""What MSAE calls the weights of its nested codes: uniform and reverse weighting."""


class Found(NamedTuple):
    """What is known of how good the SAEs of a run are, and of their scores; by SAE seed."""

    sae: SAEConfig
    measured: list[Measured]
    scopes: Sequence[Mapping[str, Value]]


def measure(ctx: Context) -> Found:
    """Return what is known of the SAEs of one setting, and their scores where features have maps."""
    seeds = ctx.config.seeds
    scopes = [summarise_scope(scope_of(ctx, seed)) for seed in seeds] if has_maps(ctx) else []
    return Found(ctx.config.sae, [measured_of(ctx, seed) for seed in seeds], scopes)


def compute_point(found: Found) -> dict[str, Stat]:
    """Return mean and spread over SAE seeds of all that is known, by key."""
    summaries = [one.summary for one in found.measured]
    point = {column.key: compute_stat(_number(of[column.key]) for of in summaries) for column in COLUMNS}
    scopes = [
        {
            **of,
            "scored_share": _number(of["n_scored"]) / one.d_sae,
            "high_share": _number(of["n_high"]) / max(_number(of["n_scored"]), 1),
        }
        for one, of in zip(found.measured, found.scopes, strict=False)  # there may be none
    ]
    return point | {column.key: compute_stat(_number(of[column.key]) for of in scopes) for column in SCOPE_COLUMNS}


def _number(value: Value) -> float:
    return float(value) if isinstance(value, int | float) else np.nan


def describe_sae(found: Found) -> list[Value]:
    """Return `KIND_COLUMNS`: the kind, k with null resolved, and the weights of nested codes in MSAE's words."""
    sae = found.sae
    k = sae.count_active(found.measured[0].d_sae) if isinstance(sae, TopKConfig) else None
    return [sae.kind, k, MSAE_NAMES[sae.level_weights] if isinstance(sae, MatryoshkaKConfig) else ""]


def find_front(points: Sequence[Mapping[str, Stat]]) -> list[bool]:
    """Return which points no other one beats: none has both L0 and FVU as small, and one of them smaller."""
    at = np.array([(point["l0"].mean, point["fvu"].mean) for point in points])
    return [not ((at <= one).all(1) & (at < one).any(1)).any() for one in at]


def show(runs: Sequence[Run[Found]]) -> Shown:
    """A row per SAE, the front in a figure, and the curves over k."""
    points = [compute_point(run.found) for run in runs]
    front = dict(zip((id(run.found) for run in runs), find_front(points), strict=True))
    known = [column for column in (*COLUMNS, *SCOPE_COLUMNS) if any(point[column.key].n for point in points)]

    def cells(found: Found) -> list[Value | Cell]:
        point = compute_point(found)
        return [*describe_sae(found), *(point[column.key] for column in known), "yes" if front[id(found)] else ""]

    groups = ", ".join(sorted({name_gamma(run.config) for run in runs}))
    columns = [*KIND_COLUMNS, *known, Column("front", "on the front", Align.left)]
    notes = [
        "Test tokens; mean over SAE seeds. Zeros: of a token's code. FVU within a token: MSAE's reading. Silent: on all"
        " test tokens. UW, RW: MSAE's uniform and reversed (decreasing) weights of nested codes. On the front: no other"
        " SAE here has both a smaller L0 and a smaller FVU.",
        *([f"Groups by scope: {groups}."] if SCOPE_COLUMNS[-1] in known else []),
        *_hold_against_claims(runs, points),
    ]
    table = make_run_table("sae_pareto", "Reconstruction against sparsity", runs, columns, cells, notes)
    curves = {_name_kind(run): [one.quality for one in run.found.measured] for run in _choose_fullest(runs, points)}
    return Shown(
        [table],
        {"sae_pareto": lambda: draw_front(runs, points), "progressive": lambda: draw_progressive(curves)},
        [join_runs(runs, lambda run: make_progressive_table(run.found.measured))],
    )


def _hold_against_claims(runs: Sequence[Run[Found]], points: Sequence[Mapping[str, Stat]]) -> list[str]:
    """Say which SAEs reach what MSAE claims, by either cosine."""
    said = []
    for cosine, words in (("cosine_raw", "the raw cosine"), ("cosine_centred", "the cosine from the mean token")):
        reached = [
            str(run.facts["setting"])
            for run, point in zip(runs, points, strict=True)
            if point[cosine].mean >= CLAIMS["cosine"]
            and point["fvu_per_token"].mean < CLAIMS["fvu_per_token"]
            and point["zeros"].mean >= CLAIMS["zeros"]
        ]
        said.append(f"by {words}: {', '.join(reached) or 'none'}")
    return [
        "MSAE's claims, for CLIP's image embeddings: cosine .99, FVU below .1, 80% zeros. Those that reach"
        f" all three here, {'; '.join(said)}."
    ]


def _name_kind(run: Run[Found]) -> str:
    kind, _, weights = describe_sae(run.found)
    return f"{kind} {weights}".strip()


def _choose_fullest(runs: Sequence[Run[Found]], points: Sequence[Mapping[str, Stat]]) -> list[Run[Found]]:
    """Return of each kind the run of the largest L0, from which most can be cut."""
    found: dict[str, tuple[float, Run[Found]]] = {}
    for run, point in zip(runs, points, strict=True):
        name, l0 = _name_kind(run), point["l0"].mean
        if name not in found or l0 > found[name][0]:
            found[name] = l0, run
    return [run for _, run in found.values()]


def draw_front(runs: Sequence[Run[Found]], points: Sequence[Mapping[str, Stat]]) -> Figure:
    """Draw FVU and CKNNA against L0: a mark per SAE, its form the kind, its colour the median CDS, if there is one.

    Those on the front have a bold edge, and a line joins them.
    """
    figure, (left, right) = make_panels(2, 3.6)
    cds = [point["median_cds"].mean for point in points]
    has_scores = bool(np.isfinite(cds).any())
    scale = Normalize(np.nanmin(cds), np.nanmax(cds)) if has_scores else Normalize(0, 1)
    colours = mpl.colormaps["cividis"]
    is_on_front = find_front(points)
    for run, point, is_on in zip(runs, points, is_on_front, strict=True):
        marker, colour = MARKS[_name_kind(run)]
        if has_scores:
            colour = colours(scale(point["median_cds"].mean)) if point["median_cds"].n else GREY
        for axes, name in ((left, "fvu"), (right, "cknna_unit")):
            x, y = point["l0"].mean, point[name].mean
            axes.plot([x], [y], marker=marker, color=colour, **(EDGE | FRONT_EDGE if is_on else EDGE))
    of_front = sorted((p["l0"].mean, p["fvu"].mean) for p, is_on in zip(points, is_on_front, strict=True) if is_on)
    left.plot(*zip(*of_front, strict=True), color=INK, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    _finish(left, "FVU, and the front (bold)")
    _finish(right, "CKNNA of tokens and codes, rows of unit norm")
    handles = [
        Line2D([], [], linestyle="", marker=marker, color="white" if has_scores else colour, label=kind, **EDGE)
        for kind, (marker, colour) in MARKS.items()
        if kind in set(map(_name_kind, runs))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    if has_scores:
        figure.colorbar(ScalarMappable(scale, colours), ax=[left, right], label="median CDS", shrink=0.8)
    return figure


def _finish(axes: Axes, title: str) -> None:
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=8.5)
    axes.set_xlabel("L0, active latents per token")
    axes.grid(color=FAINT, linewidth=0.6)


EXPERIMENT = Experiment(
    "sae_pareto",
    __doc__,
    measure,
    show,
    stages=["quality"],
    defaults=[
        "seeds=[0]",
        "sae.expansion_factor=4",
        "sae.n_tokens=500000",
        "sae.batch_tokens=1024",
        "partition.gamma=0.05",
    ],
    is_scored=False,
    also=["score"],
    settings=SETTINGS,
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
