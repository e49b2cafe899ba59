"""Whole images and words: dictionaries of embeddings and of patch tokens by the measures of the lineage, beside scope.

    python experiments/lineage.py                                           # the miniature: scenes and their own CLIP
    python experiments/lineage.py seeds=[0] model.site=pooled
    python experiments/lineage.py seeds=[0] data.n_train=400 data.n_test=150 sae.n_tokens=200000 sae.batch_tokens=512 \
        scope.k_max=8 attribution.n_tested=20 steer.n_latents=64            # small: does it run, and what does it show
    python experiments/lineage.py model=clip_b16 data=imagenet data.root=/imagenet predict=imagenet \
        sae=import sae.path=SAE.pt model.site=resid_post name.vocabulary=words.txt

Two SAEs of one model, of its patch tokens and of its image embeddings, as MSAE has them: how good each is as a
dictionary, which of its features have a name, what predictions rest on and whither they are steered; and of the first,
which has maps, how all of that goes with the CDS. Two tables sum up, the others are those of the stages, whose pages
tell more; figures.md says what each figure shows. What is published is of other models and data: of image embeddings of
CLIP a cosine of .99, FVU below .1, 80% zeros and more than 120 names (MSAE), of patch tokens 10 to 15% of features by
which predictions are steered (Steering CLIP).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from infoscope.analyses.latent_orders import GRADIENT
from infoscope.commands.experiments.runs import Run, Shown, join_runs, make_run_table
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.pipeline.context import Context
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import (
    OVER_SEEDS,
    PERCENT,
    Align,
    Column,
    Stat,
    Table,
    compute_stat,
    format_number,
    format_percent,
    format_signed,
)
from infoscope.stages.attribute.stage import Attribute
from infoscope.stages.cross.stage import Cross
from infoscope.stages.name.section import COLUMNS as NAMES
from infoscope.stages.name.stage import Name
from infoscope.stages.quality.numbers import COLUMNS as QUALITY
from infoscope.stages.quality.stage import Quality
from infoscope.stages.sae import count_latents, has_maps
from infoscope.stages.steer.numbers import ALL
from infoscope.stages.steer.stage import Steer
from infoscope.vision.hooks import POOLED, PROJECTED


class Found(NamedTuple):
    """sections: of a run, by name. n_latents: of each SAE."""

    sections: Mapping[str, ReportSection]
    n_latents: int


TABLES = ("quality", "names", "steering", "suppression", "attribution", "cross")
FIGURES = ("progressive", "steering", "suppression", "attribution_curves", "attribution_groups", "cross")
SITES = {POOLED: "pooled", PROJECTED: "projected"}
"""What the tokens are called that are no patches of a block."""
AS_DICTIONARY = [
    replace(column, heading=column.heading.replace("of unit norm", "CKNNA, unit norm"))
    for column in QUALITY
    if column.key in ("zeros", "dead_share", "fvu", "cosine_raw", "cknna_unit", "orthogonality", "agreement")
]
AS_WORDS = [
    *(column for column in NAMES if column.key in ("n_named", "n_valid", "n_random", "is_best")),
    Column("steerable", "steerable", **PERCENT),
    Column("steerable_random", "random directions", **PERCENT),
    Column("gradients", "gradients against ablation", signed=True),
]
CROSSED = {
    "name_cosine": "the cosine with their name",
    "attribution": "the size of their attribution",
    "steering_effect": "the steering",
}
"""Which quantities are told in a sentence, as keys of the table of latents, and in words."""


def measure(ctx: Context) -> Found:
    """Return what each stage says of the SAEs of one configuration; the cross comes last, for it reads the others."""
    stages = [Quality(), Name(), Steer(), Attribute(), *([Cross()] if has_maps(ctx) else [])]
    return Found({section.name: section for section in (stage.section(ctx) for stage in stages)}, count_latents(ctx))


def show(runs: Sequence[Run[Found]]) -> Shown:
    """Two tables that sum up, with what they say; then the main table of each stage, and its figures."""
    labels = label_runs(runs)
    tables = [
        make_run_table("lineage", "As dictionaries", runs, AS_DICTIONARY, _read_dictionary, [OVER_SEEDS]),
        make_run_table("lineage_words", "Names, steering and attribution", runs, AS_WORDS, _read_words, [OVER_SEEDS]),
    ]
    tables[0].notes.append(
        "Zeros: in the code of a token; silent: of the latents, on all test tokens; FVU of all tokens against their"
        " mean; CKNNA: of tokens and codes. Agreement: of a linear probe's predictions on originals and on"
        " reconstructions."
    )
    tables[1].notes.append(
        "Features with a name fire in enough training images to have one; valid: by MSAE's rule, beside names of random"
        " directions; right: of the valid names. Steerable: of features, and of random directions of their length."
        " Gradients against ablation: rank correlation of the attributions of the latents of an image."
    )
    tables[1].notes += [say(label, run.found) for label, run in labels.items()]
    tables[1].notes += [sentence for label, run in labels.items() for sentence in say_scope(label, run.found)]
    for name in TABLES:
        having = [run for run in runs if _having(run.found, "tables", name)]
        if having:
            tables.append(join_runs(having, lambda run, name=name: _having(run.found, "tables", name)[0]))
    captions = Table(
        "figures",
        "What the figures show",
        [
            Column("figure", "figure", Align.left),
            Column("of", "of", Align.left),
            Column("caption", "what it shows", Align.left),
        ],
    )
    figures = {}
    for name in FIGURES:
        for label, run in labels.items():
            for one in _having(run.found, "figures", name):
                file = f"{name}_{label.replace(' ', '_')}"
                figures[file] = partial(_draw, one, run.label)
                captions.add_row(file, run.label, one.caption)
    return Shown(tables, figures, [captions])


def label_runs(runs: Sequence[Run[Found]]) -> dict[str, Run[Found]]:
    """Return runs by which tokens their SAEs read; numbered where several read the same."""
    sites = [SITES.get(run.config.model.site, "patches") for run in runs]
    return {
        site if sites.count(site) == 1 else f"{site} {sites[: place + 1].count(site)}": run
        for place, (site, run) in enumerate(zip(sites, runs, strict=True))
    }


def say(label: str, found: Found) -> str:
    """Return what a run's features are good for, in a sentence."""
    named, valid, chance, right, steerable, random, gradients = _read_words(found)
    digits = 0 if named.n == 1 else 1  # of one seed they are counts
    n, n_valid = (format_number(one.mean, digits) for one in (named, valid))
    by_chance = format_number(chance.mean, 1)
    return (
        f"{label}: {n} of {found.n_latents} features fire in enough images to have a name, {n_valid} have a valid one"
        f" ({by_chance} of random directions), of which {format_percent(right)} are right; {format_percent(steerable)}"
        f" steer predictions, {format_percent(random)} of random directions do; gradients rank latents as their"
        f" ablation does by {format_signed(gradients.mean)}."
    )


def say_scope(label: str, found: Found) -> Iterator[str]:
    """Yield how names, attribution and steering go with scope, where there is one."""
    if "cross" not in found.sections:
        return
    crossed = found.sections["cross"].summary["quantities"]
    parts = [
        f"{words} by {format_signed(of['within'].mean)}{'' if of['p_corrected'] < 0.05 else ' (not told from chance)'}"
        for key, words in CROSSED.items()
        if (of := crossed.get(key)) is not None
    ]
    if parts:
        yield (
            f"{label}: with the CDS of features go, at like firing frequency (Spearman, after correction for all"
            f" quantities): {', '.join(parts)}."
        )


def _read_dictionary(found: Found) -> list[Stat]:
    return [compute_stat(seed[column.key] for seed in found.sections["quality"].summary) for column in AS_DICTIONARY]


def _read_words(found: Found) -> list[Stat]:
    names = [seed["readings"][seed["reading"]] for seed in found.sections["name"].summary]
    steered, orders = (
        found.sections["steering"].summary["groups"][ALL],
        found.sections["attribution"].summary["methods"],
    )
    return [
        *(compute_stat(seed[column.key] for seed in names) for column in AS_WORDS[:4]),
        *(steered[key] for key in ("steerable", "steerable_random")),
        orders[GRADIENT]["agreement"],
    ]


def _having(found: Found, what: str, name: str) -> list[Any]:
    """Return the table or figure of that name of a run; nothing where it has none."""
    return [getattr(one, what)[name] for one in found.sections.values() if name in getattr(one, what)]


def _draw(of: SectionFigure, title: str) -> Figure:
    figure = of.draw()
    figure.suptitle(title, fontsize=8)
    return figure


EXPERIMENT = Experiment(
    "lineage",
    __doc__,
    measure,
    show,
    stages=["quality"],
    also=["name", "steer", "attribute"],
    defaults=["model.site=resid_post,pooled"],
    is_scored=False,
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
