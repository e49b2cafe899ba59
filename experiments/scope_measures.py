"""Which measure of scope tells the truth where it is known: extents and context effect, or the CDS.

    python experiments/scope_measures.py                    # the miniature, on other scenes than the demo
    python experiments/scope_measures.py stage=extent    # without the removal tables
    python experiments/scope_measures.py stage=extent data.planted=nothing data.seed=0 sae.k=64 seeds=[0]

By settings: scenes and their CLIP; and, unless another model, another SAE or debug=tiny is asked for, models that know
what no small window can tell of scenes with marks: a CLIP tuned to that (marked_clip.py), on scenes where nothing was
chosen, and again with a denser SAE, most of whose features of these facts fire on a quarter of the grid or more; and
the positive control, a backbone that says it by a formula, on one leaping patch and evenly on all, the light evenly on
all, and the levels of each patch, read by an SAE of its own directions: there it is these levels that are known to be
local. Other arguments are overrides of the `infoscope` command.

Measured: AUROC of known-global, and of known-broad, against known-local features, of each measure and of pairs of them
(a linear discriminant on ranks, 5 folds, each latent scored by the others), with the middle 95% of 10,000 draws of
features, as the mean over SAE seeds. All measures are compared on the same features. Those that are reversed count
small values as global. Stability: rank correlations under other images, donors and SAEs. And what probes lose without
the features of each half by each measure, the SAE's error kept.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from infoscope.commands.experiments.runs import Run, Shown, is_swept
from infoscope.commands.experiments.sweep import BUILD_NOTHING, Experiment, run_command, run_experiment
from infoscope.config.sweeps import expand_sweep
from infoscope.config.tree import Config, compose
from infoscope.data.config import Planted
from infoscope.data.images import Truth
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Node
from infoscope.report.figure_style import FAINT, HIGH, LOW, MIDDLE, make_figure
from infoscope.report.joining import Part, join_tables
from infoscope.report.tables import Align, Column, Table, compute_stat, format_number, format_signed
from infoscope.runtime.errors import InputError
from infoscope.runtime.output import say
from infoscope.sae.activations import ReLU
from infoscope.sae.checkpoint import save_sae
from infoscope.sae.config import TopKConfig
from infoscope.sae.import_config import ImportedConfig
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.ablations import Ablation
from infoscope.scope.agreement import compute_split_half, correct_halves, match_latents
from infoscope.scope.combining import combine_out_of_fold
from infoscope.scope.config import By, Donor
from infoscope.scope.confounds import ConfoundResult
from infoscope.scope.extent.result import ExtentResult
from infoscope.scope.matching import FREQUENCY, find_matching
from infoscope.scope.partial_ranks import Estimate, compute_spearman, estimate
from infoscope.scope.resampling import draw_auroc, draw_weights
from infoscope.scope.scores import Scores
from infoscope.scope.separation import match_frequency
from infoscope.stages.ablations import ablations_of, matched_ablations_of
from infoscope.stages.confounds.numbers import MIN_GROUP
from infoscope.stages.confounds.stage import Confounds
from infoscope.stages.extent.stage import Extent
from infoscope.stages.images import open_split
from infoscope.stages.probe.against_random import make_table_against_random
from infoscope.stages.probe.results import Result
from infoscope.stages.probe.run import probe_variants
from infoscope.stages.probe.stage import Probe, read_probed
from infoscope.stages.probe.tables import make_main_table, make_matched_table
from infoscope.stages.sae import sae_of
from infoscope.stages.score.stage import Score
from infoscope.vision.config import ModelKind
from infoscope.vision.open_clip.weights import LOCAL_WEIGHTS
from infoscope.vision.planted_facts import CODES, PlantedFacts
from marked_clip import main as make_marked_clip

N_DRAWS = 10_000
SMALL = "data.n_train=1000 data.n_test=300"
"""The images of the positive control, whose features are known by a formula."""
N_LATENTS = 128
"""Features of which extents are measured otherwise, drawn from those that fire."""
ONE_EACH = "one image and one donor each"
CONTROL, TUNED = "positive control", "tuned scenes_clip"
MARKED_CLIP, CONTROL_SAE = "marked_clip", "planted_facts_sae"
"""Folders of the tuned model, and of the SAE of the control."""
TUNED_SEED, DENSE_SEED = 8, 9
"""Of the scenes with marks: on those of seed 7 the mean extent was chosen, on those of seed 8 the denser SAE."""
DENSE_K = 32
"""Latents that fire on a token, four times as many as by default: most features of broad facts are diffuse then."""
DENSE = f"tuned with sae.k={DENSE_K}"
MEASURES = {
    "extent": "evidence extent",
    "mean_extent": "mean extent",
    "context_effect": "context effect",
    "own_patch": "response to its own patch, reversed",
    "cds": "CDS",
    "cds_minus_chance": "CDS - chance",
    "firing_rate": "firing frequency, reversed",
    "support": "support, reversed",
}
"""By column; those that are reversed count small values as global."""
PAIRED = ("extent", "mean_extent", "context_effect", "cds", "cds_minus_chance", "firing_rate")
JUDGED = ("extent", "mean_extent", "context_effect")
"""Which measures are held against the CDS."""
KNOWN = {"global": "known-global", "broad": "known-broad"}
"""What is held against known-local features."""
SUBSETS = {"all": "AUROC", "compact": "compact", "diffuse": "diffuse", "matched": "matched frequency"}
"""Known-global features, all or of a support, against all known-local ones; as many of both of like frequency."""
STABLE = (*JUDGED, "cds")


class OfSeed(NamedTuple):
    """What one configuration says of one SAE.

    measures: by column of `MEASURES`, [d_sae], larger where a latent counts as more global; NaN: unknown.
    decoder: [d_sae, d_in]
    known: by kind (global, broad, local), [d_sae]
    """

    measures: Mapping[str, Float[np.ndarray, " d_sae"]]
    scores: Scores
    confounds: ConfoundResult
    extent: ExtentResult
    decoder: Float[np.ndarray, "d_sae d_in"]
    known: Mapping[str, Bool[np.ndarray, " d_sae"]]


class Found(NamedTuple):
    """seeds: of each SAE seed. others: of the first seed, extents made otherwise, by how. removal: by what divides."""

    seeds: Sequence[OfSeed]
    others: Mapping[str, ExtentResult]
    removal: Mapping[By, Sequence[Result]]


def measure(ctx: Context) -> Found:
    """Return measures and truths of all SAE seeds; on scenes without marks extents of other designs, and removal.

    Raises:
        InputError: if the images do not say what is global and what is local.
    """
    config, images = ctx.config, open_split(ctx, "train")
    if not images.global_factors or Truth.label_maps not in images.truths:
        raise InputError(
            "Expected images with global factors and label maps, which say what is global and local, got others: take"
            " data=scenes."
        )
    seeds = [measure_seed(ctx, seed) for seed in config.seeds]
    if config.data.planted is Planted.marks:
        return Found(seeds, {}, {})
    designs = {words: Extent.at(ctx.beside(other), config.seeds[0]).load() for words, other in list_designs(config)}
    if config.stage.name == "extent":
        return Found(seeds, designs, {})
    return Found(seeds, designs, {by: read_divided(ctx.beside(divide(config, by))) for by in By})


def measure_seed(ctx: Context, seed: int) -> OfSeed:
    """Return what a configuration says of one SAE."""
    k = ctx.config.scope.k_cds
    scores, extent, confounds = (stage.at(ctx, seed).load() for stage in (Score, Extent, Confounds))
    cds, properties = scores.cds(k).values, confounds.properties
    values = (
        *(extent.extent, extent.mean_extent, extent.context_effect, -extent.response[0], cds, cds - scores.chance(k)),
        *(-properties.firing_rate, -properties.support),
    )
    decoder = sae_of(ctx, seed).load().W_dec.detach().float().cpu().numpy()
    known = find_known(confounds, reads_formula(ctx.config))
    return OfSeed(dict(zip(MEASURES, values, strict=True)), scores, confounds, extent, decoder, known)


def reads_formula(config: Config) -> bool:
    """Return whether it is the formula, read by an SAE of its own directions: others say nothing by their position."""
    is_formula, sae = config.model.kind is ModelKind.planted_facts, config.sae
    return is_formula and isinstance(sae, ImportedConfig) and sae.path.endswith(CONTROL_SAE)


def find_known(confounds: ConfoundResult, is_control: bool) -> dict[str, Bool[np.ndarray, " d_sae"]]:
    """Return which features are known to be global, broad and local.

    In the control the local ones are those that the formula makes of single patches. Such codes know the light or the
    place, as any free of context does on these scenes, so that by what they know some would be global and none local.
    """
    known = {kind: getattr(confounds, f"known_{kind}") for kind in (*KNOWN, "local")}
    if not is_control:
        return known
    is_local = np.array([code.startswith("local") for code in CODES]) & confounds.fires_enough
    return {"global": known["global"] & ~is_local, "broad": known["broad"] & ~is_local, "local": is_local}


def list_designs(config: Config) -> Iterator[tuple[str, Config]]:
    """Yield configurations under which extents of some features are measured otherwise, by what differs."""
    extent = config.scope.extent
    others = {
        "donors: a mean colour": replace(extent, donor=Donor.mean),
        "donors: the picture itself, blurred": replace(extent, donor=Donor.blur),
        ONE_EACH: replace(extent, n_images=1, n_donors=1),
    }
    for words, other in others.items():
        if other == extent:  # what it would be held against
            continue
        some = replace(other, n_latents=min(extent.n_latents or N_LATENTS, N_LATENTS))
        yield words, replace(config, scope=replace(config.scope, extent=some))


def divide(config: Config, by: By) -> Config:
    """Return a configuration whose groups divide features by a measure, at half of the mass by default."""
    return replace(config, partition=replace(config.partition, by=by))


class Removal(Probe):
    """Probes without each half, without random groups of its mass, and at equal frequency."""

    def variants(self, ctx: Context, seed: int) -> list[Ablation]:
        original, *others = ablations_of(ctx, seed)
        matched = [one for one in matched_ablations_of(ctx, seed) if find_matching(one.group or "") == FREQUENCY]
        return [original, *filter(is_swept, others), *matched]


def list_goals(ctx: Context) -> Iterator[Node]:
    """Yield what `measure` makes."""
    config = ctx.config
    yield from Extent().goals(ctx)
    if config.data.planted is not Planted.marks:
        yield from (Extent.at(ctx.beside(other), config.seeds[0]) for _, other in list_designs(config))
        if config.stage.name != "extent":
            yield from (node for by in By for node in Removal().goals(ctx.beside(divide(config, by))))


def read_divided(ctx: Context) -> list[Result]:
    """Return what the probes of `Removal` read; what is missing is trained."""
    probed = {seed: probe_variants(ctx, seed, Removal().variants(ctx, seed)) for seed in ctx.config.seeds}
    return read_probed(ctx, probed)


class Separated(NamedTuple):
    """How well measures, and pairs of them, tell known-global (or known-broad) from known-local features of a subset.

    aurocs: by measure or pair, for each SAE seed the AUROC and draws of it; NaN where a group is empty.
    n_positive, n_negative: features, mean over SAE seeds.
    """

    aurocs: Mapping[tuple[str, ...], Sequence[Float[np.ndarray, " n_draws"]]]
    n_positive: float
    n_negative: float

    @property
    def is_small(self) -> bool:
        """Whether there are too few features to say anything."""
        return min(self.n_positive, self.n_negative) < MIN_GROUP

    def gain(self, *names: str) -> Estimate:
        """Return by how much the AUROC of a measure, or of a pair, is larger than that of the CDS."""
        pairs = zip(self.aurocs[names], self.aurocs["cds",], strict=True)
        return estimate([one - of for one, of in pairs])


def separate(seeds: Sequence[OfSeed], known: str) -> dict[str, Separated]:
    """Return {subset: how well measures tell a kind of known features from known-local ones}."""
    found = [list(separate_seed(of, known, number)) for number, of in enumerate(seeds)]
    joined = {}
    for subset, of_seeds in zip(SUBSETS, zip(*found, strict=True), strict=True):
        aurocs = {key: [of[0][key] for of in of_seeds] for key in of_seeds[0][0]}
        joined[subset] = Separated(aurocs, *(float(np.mean([of[place] for of in of_seeds])) for place in (1, 2)))
    return joined


def separate_seed(of: OfSeed, known: str, seed: int) -> Iterator[tuple[dict[tuple[str, ...], np.ndarray], int, int]]:
    """Yield for each subset the AUROCs of one SAE with draws of them, and how many features there are of both kinds.

    Args:
        seed: of the draws, another one for each SAE: means over SAEs are of draws that have nothing in common.
    """
    confounds = of.confounds
    whole = np.isfinite(list(of.measures.values())).all(axis=0)
    positive, negative = of.known[known] & whole, of.known["local"] & whole
    subsets: dict[str, tuple[Bool[np.ndarray, " d_sae"], Bool[np.ndarray, " d_sae"]]] = {
        "all": (positive, negative),
        "compact": (positive & confounds.compact, negative),
        "diffuse": (positive & confounds.diffuse, negative),
        "matched": match_frequency(positive, negative, confounds.properties.firing_rate),
    }
    for pair in subsets.values():
        weights = draw_weights(np.stack(pair), N_DRAWS, seed)
        aurocs = {(name,): draw_auroc(values, *pair, weights) for name, values in of.measures.items()}
        for names in combinations(PAIRED, 2):
            combined = combine_out_of_fold([of.measures[name] for name in names], *pair, seed=seed)
            aurocs[names] = draw_auroc(combined, *pair, weights)
        yield aurocs, int(pair[0].sum()), int(pair[1].sum())


def make_measure_table(found: Found) -> Table:
    """Return a row per measure and pair of measures, a section per kind of truth."""
    columns = [Column("measure", "measure", Align.left)]
    for key, heading in SUBSETS.items():
        hidden = key != "all"
        columns += [Column(key, heading, digits=3)]
        columns += [Column(f"{key}_{end}", end, digits=3, csv_only=hidden) for end in ("from", "to")]
    ends = [Column(f"gain_{end}", end, digits=3, signed=True, csv_only=True) for end in ("from", "to")]
    columns += [Column("gain", "gain on the CDS", digits=3, signed=True), *ends]
    for name in ("truth", "key", *(f"{key}_{side}" for key in SUBSETS for side in ("n_known", "n_local"))):
        columns.append(Column(name, name, is_count=True, csv_only=True))
    table = Table("scope_measures", "Known-global, and known-broad, against known-local features: AUROC", columns)
    for known, words in KNOWN.items():
        separated = separate(found.seeds, known)
        whole = separated["all"]
        if not whole.n_positive:
            continue
        table.notes += say_truth(words, separated)
        table.add_section(f"{words} against known-local ({_list_counts(separated)})")
        counts = [number for of in separated.values() for number in (of.n_positive, of.n_negative)]
        for names in whole.aurocs:
            cells = [value for of in separated.values() for value in estimate(of.aurocs[names])]
            cells += whole.gain(*names)
            table.add_row(" with ".join(map(MEASURES.__getitem__, names)), *cells, known, "+".join(names), *counts)
    if not table.rows:
        table.instead = "No feature is known to be global or broad here, so that nothing is told from local ones."
    return table


def _list_counts(separated: Mapping[str, Separated]) -> str:
    """Return how many features of each kind there are in each subset."""
    parts = []
    for key, of in separated.items():
        counts = (format_number(n, 0 if n == round(n) else 1) for n in (of.n_positive, of.n_negative))
        parts.append(" and ".join([f"{'all' if key == 'all' else SUBSETS[key]} {next(counts)}", *counts]))
    return ", ".join(parts)


def say_truth(words: str, separated: Mapping[str, Separated]) -> Iterator[str]:
    """Yield which measure tells the truth better, the CDS or each of those judged; of diffuse features too."""
    for subset, of in {"": separated["all"], "diffuse ": separated["diffuse"]}.items():
        if of.is_small and not subset:
            yield f"Too few {words} or known-local features to say which measure tells them apart."
        elif not of.is_small and (not subset or of.n_positive < separated["all"].n_positive):
            yield from (_say_gain(f"{subset}{words} from known-local", of, name) for name in JUDGED)


def _say_gain(groups: str, of: Separated, name: str) -> str:
    gain, ours, theirs = of.gain(name), *(estimate(of.aurocs[one,]).value for one in (name, "cds"))
    verdict = "worse than" if gain.high < 0 else "better than" if gain.low > 0 else "neither better nor worse than"
    return (
        f"{MEASURES[name].capitalize()} tells {groups} features {verdict} the CDS: AUROC {format_number(ours, 3)}"
        f" against {format_number(theirs, 3)} (difference {format_signed(gain.value, 3)},"
        f" {format_signed(gain.low, 3)} to {format_signed(gain.high, 3)})."
    )


def make_stability_table(found: Found, k: int, min_cosine: float) -> Table:
    """Return how the order of features by each measure is kept when a choice is made otherwise, a row per choice."""
    columns = [Column("comparison", "", Align.left), *(Column(name, MEASURES[name], digits=3) for name in STABLE)]
    columns.append(Column("n_features", "features", digits=0, is_count=True))
    table = Table("scope_measures_stability", "The order of features when a choice is made otherwise", columns)
    table.notes.append(
        "Spearman's correlation. Halves are corrected to the whole (Spearman-Brown); of the CDS they are random ones of"
        f" its pairs of crops. Two SAE seeds: features matched one to one, cosine > {min_cosine:g}. Other donors, and"
        f" one image (of the CDS too) and donor, against all: up to {N_LATENTS} features of the first SAE seed."
    )
    halves = (slice(0, None, 2), slice(1, None, 2))
    splits = {
        "half of the images": [[of.extent.take(images=half) for half in halves] for of in found.seeds],
        "half of the donors": [[of.extent.take(donors=half) for half in halves] for of in found.seeds],
    }
    of_cds = compute_stat(compute_split_half(of.scores.emd, k).reliability for of in found.seeds)
    for words, pairs in splits.items():
        is_of_images = words == "half of the images"
        correlations = [[_correlate(name, *pair) for pair in pairs] for name in JUDGED]
        cells = [compute_stat(correct_halves(rho) for rho, _ in of) for of in correlations]
        counts = compute_stat(n for _, n in correlations[0])
        table.add_row(words, *cells, of_cds if is_of_images else None, counts)
    first = found.seeds[0]
    for words, other in found.others.items():
        pairs = [_correlate(name, first.extent, other) for name in JUDGED]
        of_one = compute_spearman(first.measures["cds"], first.scores.cds(1).values)[0]
        table.add_row(words, *(rho for rho, _ in pairs), of_one if words == ONE_EACH else None, pairs[0][1])
    if len(found.seeds) > 1:
        seeds = [compare_seeds(*pair, min_cosine) for pair in combinations(found.seeds, 2)]
        cells = [compute_stat(of[name][0] for of in seeds) for name in STABLE]
        table.add_row("another SAE seed", *cells, compute_stat(of["cds"][1] for of in seeds))
    return table


def _correlate(name: str, one: ExtentResult, other: ExtentResult) -> tuple[float, int]:
    return compute_spearman(getattr(one, name), getattr(other, name))


def compare_seeds(one: OfSeed, other: OfSeed, min_cosine: float) -> dict[str, tuple[float, int]]:
    """Return by measure the rank correlation over the features of two SAEs that are alike, and how many those are.

    NaN with fewer than `MIN_GROUP` of them.
    """
    whole = [np.flatnonzero(np.isfinite(list(of.measures.values())).all(axis=0)) for of in (one, other)]
    matches = match_latents(one.decoder[whole[0]], other.decoder[whole[1]])
    alike = matches.cosine > min_cosine
    a, b = whole[0][matches.a[alike]], whole[1][matches.b[alike]]
    if len(a) < MIN_GROUP:
        return dict.fromkeys(STABLE, (np.nan, len(a)))
    return {name: compute_spearman(one.measures[name][a], other.measures[name][b]) for name in STABLE}


def make_correlation_table(found: Found) -> Table:
    """Return how the measures go with each other and with what is declared, a row per measure."""
    others = {"extent": "evidence extent", "context_effect": "context effect", "cds": "CDS", "firing_rate": "frequency"}
    others |= {"image_effect": "image effect", "label_effect": "label effect"}
    columns = [Column("measure", "measure", Align.left), *(Column(k, v, signed=True) for k, v in others.items())]
    columns.append(Column("cds_at_rate", "CDS at equal frequency", signed=True))
    title = "How the measures go together (Spearman), features with all of them"
    table = Table("scope_measures_correlations", title, columns)
    for name, words in MEASURES.items():
        cells = [compute_stat(_read_correlation(of, name, other)[0] for of in found.seeds) for other in others]
        at_rate = (_read_correlation(of, name, "cds", given="firing_rate")[0] for of in found.seeds)
        table.add_row(words, *cells, compute_stat(at_rate))
    return table


def _read_correlation(of: OfSeed, name: str, other: str, given: str = "") -> tuple[float, int]:
    confounds = of.confounds
    assert confounds.label_effect is not None
    columns = {**of.measures, "image_effect": confounds.image_effect, "label_effect": confounds.label_effect}
    columns["firing_rate"] = confounds.properties.firing_rate  # not reversed where it is a column
    values = of.measures[name]
    whole = np.where(np.isfinite(list(of.measures.values())).all(axis=0), values, np.nan)
    return compute_spearman(whole, columns[other], given=columns[given] if given else None)


def draw_measures(runs: Sequence[Run[Found]]) -> Figure:
    """Draw the features of the first SAE seed by extent and CDS, a panel per run, known ones in colours."""
    figure = make_figure(3.0)
    colours = {"known-local": LOW, "known-global": HIGH, "known-broad": MIDDLE}
    for place, run in enumerate(runs, start=1):
        axes = figure.add_subplot(1, len(runs), place)
        of = run.found.seeds[0]
        extent, cds = (of.measures[name] for name in ("extent", "cds"))
        axes.scatter(extent, cds, s=6, c=FAINT, linewidths=0, label="all others")
        for words, colour in colours.items():
            members = of.known[words.removeprefix("known-")]
            axes.scatter(extent[members], cds[members], s=12, c=colour, linewidths=0, label=words, clip_on=False)
        axes.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
        axes.set_title(name_run(run).partition(",")[0])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("evidence extent")
        axes.set_ylabel("CDS")
        if place == 1:
            figure.legend(loc="outside lower right", ncols=4, handletextpad=0.1)
    return figure


def show(runs: Sequence[Run[Found]]) -> Shown:
    """The AUROCs under the first finding, how stable the measures are, what is lost without either half by each."""
    parts = [make_part(run, make_measure_table(run.found)) for run in runs]
    measures = join_tables(parts)
    measures.title = next((note for part in parts for note in part.table.notes), measures.title).removesuffix(".")
    tables = [measures, join_tables([make_part(run, _make_stability(run)) for run in runs])]
    removal, against, matched = [], [], []
    for run in runs:
        for by, results in run.found.removal.items():
            removal.append(make_part(run, make_main_table(results), by))
            against.append(make_part(run, make_table_against_random(results), by))
            if (table := make_matched_table(results)) is not None:
                matched.append(make_part(run, table, by))
    tables += [join_tables(parts) for parts in (removal, against, matched) if parts]
    more = [join_tables([make_part(run, make_correlation_table(run.found)) for run in runs])]
    return Shown(tables, {"scope_measures": partial(draw_measures, runs)}, more)


def make_part(run: Run[Found], table: Table, by: By | None = None) -> Part:
    """Return a table of a run under a heading that names it, and by what features are divided."""
    name = name_run(run)
    facts = {**run.facts, "setting": name} | ({} if by is None else {"by": by.name})
    return Part(name if by is None else f"{name}, divided by {by.words}", facts, table)


def name_run(run: Run[Found]) -> str:
    """Return which run it is: the control or the tuned model, whose labels would be long, or the configuration."""
    model, sae = run.config.model, run.config.sae
    if reads_formula(run.config):
        return CONTROL
    if (model.pretrained or "").endswith(MARKED_CLIP):
        return DENSE if isinstance(sae, TopKConfig) and sae.k == DENSE_K else TUNED
    return run.label


def _make_stability(run: Run[Found]) -> Table:
    return make_stability_table(run.found, run.config.scope.k_cds, run.config.stability.min_cosine)


EXPERIMENT = Experiment(
    "scope_measures",
    __doc__,
    measure,
    show,
    stages=["probe", "extent"],
    goals=list_goals,
    settings=["data.planted=nothing data.seed=7"],
)


def add_marks(arguments: Sequence[str], scratch: Path) -> Experiment[Found]:
    """Return the experiment with a model and a control that know broad facts; without for another model or SAE.

    Both are made if they are missing; a plan leaves the settings of the model out then.

    Args:
        scratch: where a plan has the control's SAE.
    """
    given = {one.partition("=")[0] for one in arguments}
    of_sae = any(key.split(".")[0] == "sae" for key in given)  # debug=tiny has some too; the SAE here is imported
    if of_sae or {"model", "data.planted", "debug"} & given:
        return EXPERIMENT
    config = compose(expand_sweep([one for one in arguments if not one.startswith("build=")])[0])
    directions, folder = PlantedFacts().directions, Path(config.output_dir) / "experiments"
    sae = SparseAutoencoder(directions.shape[1], len(directions), ReLU(), seed=0)
    with torch.no_grad():
        sae.W_enc.copy_(directions.T)
        sae.W_dec.copy_(directions)
        sae.b_enc.fill_(-0.5)  # what rounding leaves of other codes does not fire
    path, tuned = (scratch if config.plan else folder) / CONTROL_SAE, folder / MARKED_CLIP
    save_sae(path, sae)
    control = f"data.planted=marks data.seed=7 model=planted_facts {SMALL} sae=import sae.path={path}"
    model = f"data.planted=marks model.pretrained=local-dir:{tuned}"
    trained = [f"{model} data.seed={TUNED_SEED}", f"{model} data.seed={DENSE_SEED} sae.k={DENSE_K}"]
    if not (tuned / LOCAL_WEIGHTS[0]).exists() and BUILD_NOTHING not in arguments:
        if config.plan:
            say("A CLIP is tuned first, some 4 minutes of one core: what is measured on it can be planned afterwards.")
            trained = []
        else:
            make_marked_clip([str(tuned)])
    return replace(EXPERIMENT, settings=[*EXPERIMENT.settings, *trained, control])


def run(arguments: Sequence[str]) -> list[str]:
    """Run the experiment with what `add_marks` adds, and return what failed."""
    with tempfile.TemporaryDirectory() as scratch:
        return run_experiment(add_marks(arguments, Path(scratch)), arguments)


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(run_command(EXPERIMENT.name, __doc__, partial(run, given), given))
