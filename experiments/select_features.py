"""Does scope add to frequency, monosemanticity and class counts when features are chosen for a task?

    python experiments/select_features.py                            # the miniature, three SAE seeds
    python experiments/select_features.py seeds=[0]                  # one: no interval over SAEs
    python experiments/select_features.py select.n_kept=[8,32]       # arguments are overrides of both sets of images
    python experiments/select_features.py data=class_folders probe.target=class probe.tasks=[classification] \\
        fit=data.root=/photographs report=data.root=/others          # folders of photographs of the same classes

What a feature is worth to a task is how much the task's loss rises without it (stage=effects). On the first set of
images (`fit=data.seed=0`: scenes) that is predicted, by ranks within an SAE, from frequency, MS and class counts
(stage=describe), from these and the CDS, from the CDS alone, and from each column alone. The weights are then taken as
they are to the second set (`report=data.seed=3`, scenes on which no setting of this project was chosen), and to SAEs
trained there. Two questions, both on test images:

- Over all features: how well does predicted worth rank what removing each one costs?
- For keeping n of them: what do probes read from tokens that are decoded from the n features of most predicted worth
  (stage=select select.weights=FILE)? And of the most active of the band of lowest CDS, against the same choice by the
  CDS that frequency, MS and class counts predict?

The weights are left in `weights.json`, for stage=select on images of your own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from infoscope.commands.experiments.sweep import add_defaults, run_command
from infoscope.config.tree import Config, compose
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import apply_trainer, check, set_goals
from infoscope.probes.config import SelectConfig
from infoscope.probes.selection import BY_ACTIVATION, BY_WORTH, make_selection_ablations
from infoscope.probes.worth import (
    ALONE,
    BASE,
    COLUMNS,
    RULES,
    WITH,
    WITHOUT,
    Known,
    Weights,
    fit_weights,
    predict_worth,
)
from infoscope.report.tables import Align, Cell, Column, Table, compute_stat
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.runtime.output import say
from infoscope.runtime.progress import Display
from infoscope.runtime.uses import write_uses
from infoscope.scope.ablations import Ablation
from infoscope.scope.partial_ranks import MIN_LATENTS, Draws, Estimate, compute_partials, estimate
from infoscope.stages.effects.stage import Effects
from infoscope.stages.probe.against_random import Excess, compare_runs
from infoscope.stages.probe.results import MAIN_METRICS, Metric, Result, present_metrics
from infoscope.stages.probe.run import probe_variants
from infoscope.stages.probe.stage import read_probed
from infoscope.stages.rank import mass_of
from infoscope.stages.select.section import PREDICTED_BY, Runs, collect_runs, find_runs
from infoscope.stages.select.stage import Select, whole_variants_of
from infoscope.stages.select.worth import SharedImages, known_of, list_test_images, say_unknown

NAME = "select_features"
IMAGES = {"fit": "data.seed=0", "report": "data.seed=3"}
"""What tells the two sets of images apart, where the arguments do not say so: overrides."""
LOW = "low_cds"
"""The lowest of the bands of stage=select by CDS, whose most active features are kept beside the most active of all."""
LIKE_LOW = "like_low_cds"
"""The same of the lowest CDS as frequency, MS and class counts predict it: a choice that needs no scope."""
PROBED = (WITHOUT, WITH, ALONE)
"""The rules by which features are kept."""
DEFAULTS = ["select.n_kept=[8,16,32]"]
SHOWN = {
    BY_ACTIVATION: "most active",
    LOW: "most active of lowest CDS",
    **{rule: f"by {PREDICTED_BY[rule]}" for rule in PROBED},
}

Effect = Float[np.ndarray, " d_sae"]


class OfSeed(NamedTuple):
    """What is known of the latents of an SAE, their mass, and their effects by task."""

    known: Known
    mass: Float[np.ndarray, " d_sae"]
    effects: Mapping[str, Effect]
    seed: int = 0


class Correlations:
    """Rank correlations of predicted worth with measured effect, of a task, over the SAE seeds.

    draws: by rule, of each SAE seed; see `Draws`.
    lacking: why some have no number; empty where all have one.
    """

    def __init__(
        self, seeds: Sequence[OfSeed], task: str, rules: Mapping[str, Mapping[str, tuple[float, float]]]
    ) -> None:
        self.draws: dict[str, list[Draws]] = {}
        self.lacking: list[str] = []
        for one in seeds:
            predicted = {rule: predict_worth(one.known, weights) for rule, weights in rules.items()}
            predicted[BY_ACTIVATION] = np.where(one.known.members, one.mass, np.nan)
            found = compute_partials(one.effects[task], predicted, {rule: [] for rule in predicted}, seed=one.seed)
            for rule, of in found.items():
                self.draws.setdefault(rule, []).append(of.spearman)
            values = {rule: of[one.known.members] for rule, of in predicted.items()}
            constant = [_name(rule) for rule, of in values.items() if np.ptp(of) == 0]
            if min(of.n for of in found.values()) < MIN_LATENTS:
                why = f"fewer than {MIN_LATENTS} features are scored"
            elif np.ptp(one.effects[task][one.known.members]) == 0:
                why = "removing any one feature costs the same"
            else:
                why = f"all features have the same by {', '.join(constant)}" if constant else ""
            if why:
                self.lacking.append(f"{why} (SAE seed {one.seed})")

    def of_seeds(self, rule: str) -> list[float]:
        """Return that of each SAE seed."""
        return [float(draws[0]) for draws in self.draws[rule]]

    def estimate(self, rule: str) -> Estimate:
        """Return the mean over SAE seeds; the interval is over features."""
        return estimate(self.draws[rule])

    @property
    def gain(self) -> Estimate:
        """What CDS adds to the others, draw by draw."""
        return estimate([a - b for a, b in zip(self.draws[WITH], self.draws[WITHOUT], strict=True)])


def _name(rule: str) -> str:
    return PREDICTED_BY.get(rule, "activation (mass)")


def fit_cds(seeds: Sequence[OfSeed]) -> dict[str, tuple[float, float]]:
    """Return the weights by which the other columns predict the CDS."""
    known = [one.known for one in seeds]
    return fit_weights(
        known, [one.columns["cds"] for one in known], [name for name in BASE if name in known[0].columns]
    )


def keep_like_low(of: OfSeed, weights: Mapping[str, tuple[float, float]], config: SelectConfig) -> list[Ablation]:
    """Return the variants that keep the most active features of lowest predicted CDS, of as many as a band has."""
    predicted = predict_worth(of.known, weights)
    low = predicted <= np.nanquantile(predicted, 1 / config.n_bands)
    made = make_selection_ablations({LIKE_LOW: low}, of.known.members, of.mass, {}, config)
    return [variant for variant in made if variant.group == LIKE_LOW]


def probe(ctx: Context, seeds: Sequence[OfSeed], weights: Mapping[str, tuple[float, float]]) -> list[Result]:
    """Return what probes read of the features that are kept; what is missing is trained.

    Args:
        weights: those of `fit_cds`.
    """
    probed = Select().probe_seeds(ctx)
    for one in seeds:
        variants = [whole_variants_of(ctx, one.seed)[0], *keep_like_low(one, weights, ctx.config.select)]
        probed[one.seed] |= probe_variants(ctx, one.seed, variants)
    return read_probed(ctx, probed)


def find_folder(config: Config) -> Path:
    """Return where tables and weights are written."""
    return Path(config.output_dir) / "experiments" / NAME


def open_context(overrides: Sequence[str]) -> Context:
    """Return the context of a command line, checked."""
    config = compose(overrides)
    display = Display(bars=config.trainer.progress)
    apply_trainer(config.trainer, display)
    ctx = Context(config, display, Job(find_folder(config), overrides=tuple(overrides)))
    check(ctx)
    set_goals(ctx)
    return ctx


def read_effects(ctx: Context) -> list[OfSeed]:
    """Return what is known of the latents of all SAE seeds, and what they are worth; what is missing is made."""
    return [
        OfSeed(known_of(ctx, seed), mass_of(ctx, seed), Effects.at(ctx, seed).load().effects, seed)
        for seed in ctx.config.seeds
    ]


def fit(seeds: Sequence[OfSeed]) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """Return the weights of every rule and task; of columns that the data do not give there are none."""
    columns = seeds[0].known.columns
    rules = {rule: [name for name in of if name in columns] for rule, of in RULES.items()}
    known = [one.known for one in seeds]
    return {
        rule: {task: fit_weights(known, [one.effects[task] for one in seeds], names) for task in seeds[0].effects}
        for rule, names in rules.items()
        if names
    }


def run(arguments: Sequence[str]) -> list[str]:
    """Fit, choose, probe, print and write; nothing is left to report."""
    images, given = split_arguments(arguments)
    of_effects = [argument for argument in given if not argument.startswith("select.")]
    first = open_context([*images["fit"].split(), "stage=effects", *of_effects])
    folder = find_folder(first.config)
    folder.mkdir(parents=True, exist_ok=True)
    with first.tracking:
        fitted_on = read_effects(first)
    rules = fit(fitted_on)
    n = sum(int(one.known.members.sum()) for one in fitted_on)
    words = f"{n:,} features of {len(fitted_on)} SAEs, {images['fit']}"
    kept = {rule: rules[rule] for rule in PROBED}
    Weights(kept, first.config.probe.target, list_test_images(first), words).save(folder / "weights.json")
    weights = f"select.weights={folder / 'weights.json'}"
    try:
        ctx = open_context([*images["report"].split(), "stage=select", weights, *add_defaults(DEFAULTS, given)])
    except SharedImages as error:
        raise InputError(
            f"Expected report= to have other images than fit=, got {images['report']} and {images['fit']}, which share"
            f" {error.n_shared:,} of {error.n:,} test images: give another data.root or data.seed."
        ) from error
    with ctx.tracking:
        seeds = read_effects(ctx)
        check_columns(fitted_on[0].known, seeds[0].known)
        found = {
            task: Correlations(seeds, task, {rule: of[task] for rule, of in rules.items()}) for task in seeds[0].effects
        }
        results = probe(ctx, seeds, fit_cds(fitted_on))
    tables = make_tables(found, results, images, say_lacking([one.known for one in seeds]))
    for table in tables:
        table.save(folder)
        table.show(Display().console)
    write_uses(folder, {spec.hash: f"{spec.stage}/{spec.name}" for one in (first, ctx) for spec in one.used.values()})
    say(f"Tables and weights: {folder}")
    return []


def check_columns(first: Known, second: Known) -> None:
    """Refuse sets of images of which one has labels and the other has none.

    Raises:
        InputError: what is known of latents differs.
    """
    if lacking := sorted(first.columns.keys() ^ second.columns.keys()):
        raise InputError(f"Expected labels in both sets of images, or in neither: {', '.join(lacking)} needs them.")


def say_lacking(known: Sequence[Known]) -> list[str]:
    """Say what is not known of features, of all or of some."""
    columns = known[0].columns.keys()
    lacking = [PREDICTED_BY[name] for name in COLUMNS if name not in columns]
    said = [f"These images have no labels, so nothing is predicted from: {', '.join(lacking)}."] if lacking else []
    return [*said, *say_unknown(known, columns)]


def split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return what tells the two sets of images apart, and the overrides of both."""
    pairs = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    images = {name: pairs.get(name, default) for name, default in IMAGES.items()}
    return images, [argument for argument in arguments if argument.partition("=")[0] not in IMAGES]


def make_tables(
    found: Mapping[str, Correlations], results: Sequence[Result], images: Mapping[str, str], notes: Sequence[str]
) -> list[Table]:
    """Return the table, a section for each task, and that of single columns."""
    columns = [
        Column("what", "", Align.left),
        *(Column(rule, words) for rule, words in SHOWN.items()),
        Column("gain", "CDS adds", signed=True),
        Column("gain_low", "95% from", signed=True),
        Column("gain_high", "to", signed=True),
    ]
    metrics, runs = present_metrics(results, MAIN_METRICS), collect_runs(results)
    excess = {(n, metric): _compare(runs, n, metric, WITH, WITHOUT) for metric in metrics for n in runs}
    of_band = {
        against: [_compare(runs, n, metric, LOW, against) for metric in metrics for n in runs]
        for against in (BY_ACTIVATION, LIKE_LOW)
    }
    table = Table(
        NAME,
        f"Features chosen for a task, fitted on {images['fit']}, reported on {images['report']}",
        columns,
        [
            *_conclude(found, [*excess.values()], of_band),
            "Rank correlation: of predicted worth (or mass) with what removing a feature alone costs, over all scored"
            " features; mean ± sd over SAE seeds; interval over features, the SAEs given.",
            "n kept: what probes read from tokens that are decoded from the n first features alone; interval: Student's"
            " t over SAE seeds, each by itself.",
            "All SAEs are tested on the same images, and no interval covers what other test images would give.",
            *(f"No rank correlation, {task}: {'; '.join(of.lacking)}." for task, of in found.items() if of.lacking),
            *notes,
        ],
    )
    for metric in metrics:
        of = found[metric.task]
        table.add_section(f"{metric.column.title} {'↑' if metric.higher_is_better else '↓'}")
        stats = [compute_stat(of.of_seeds(rule)) if rule in of.draws else None for rule in SHOWN]
        table.add_row("rank correlation", *(Cell(value, digits=3) for value in (*stats, *of.gain)))
        for n in runs:
            table.add_row(f"{n} kept", *_make_cells(runs, n, metric, excess[n, metric]))
    return [table, _make_column_table(found)]


def _find(runs: Runs, n: int, rule: str, metric: Metric) -> list[Result]:
    """Return the runs that keep n features by a rule of `SHOWN`."""
    if rule == LOW:
        rule = next((name for name in runs[n] if name.startswith("band 1 of ")), rule)
    return find_runs(runs, n, f"{BY_WORTH} {rule}" if rule in PROBED else rule, metric)


def _make_cells(runs: Runs, n: int, metric: Metric, gain: Excess) -> list[Cell]:
    stats = [compute_stat(metric.read(run) for run in _find(runs, n, rule, metric)) for rule in SHOWN]
    numbers = (*stats, gain.stat.mean, *gain.interval)
    return [Cell(value, digits=metric.column.digits, scale=metric.column.scale) for value in numbers]


def _compare(runs: Runs, n: int, metric: Metric, first: str, second: str) -> Excess:
    return compare_runs(metric, first, second, *(_find(runs, n, rule, metric) for rule in (first, second)))


def _make_column_table(found: Mapping[str, Correlations]) -> Table:
    columns = [
        Column("rule", "predicted by", Align.left),
        Column("correlation", "rank correlation", digits=3, signed=True),
        Column("low", "95% from", digits=3, signed=True),
        Column("high", "to", digits=3, signed=True),
    ]
    note = "By its rank and the square of that, weighed as on the first images. Mean over SAE seeds, draws of features."
    title = "What single columns predict of a feature's worth on other images"
    table = Table(f"{NAME}_columns", title, columns, [note])
    for task, of in found.items():
        table.add_section(task)
        for rule in of.draws:
            table.add_row(_name(rule), *of.estimate(rule))
    return table


def _conclude(
    found: Mapping[str, Correlations], excess: Sequence[Excess], of_band: Mapping[str, Sequence[Excess]]
) -> list[str]:
    """Say whether CDS adds to the other columns, over all features and for keeping some, and to activation."""
    gains = [of.gain for of in found.values()]
    said = [
        "With CDS beside frequency, MS and class counts, by 95% intervals: what features are worth is predicted better"
        f" in {sum(gain.low > 0 for gain in gains)} of {len(gains)} tasks, worse in"
        f" {sum(gain.high < 0 for gain in gains)}."
    ]
    words = {
        "What probes read of the features that are kept by it": excess,
        "Of the most active of lowest CDS, against the most active of all": of_band[BY_ACTIVATION],
        "Against the most active of lowest CDS as frequency, MS and class counts predict it": of_band[LIKE_LOW],
    }
    for what, many in words.items():
        if signs := [one.sign for one in many if one.sign is not None]:
            better, worse = signs.count(1), signs.count(-1)
            said.append(f"{what}: better in {better} of {len(signs)} comparisons, worse in {worse}.")
    few = "One SAE seed does not tell whether probes read more of the features that one rule keeps than of another's."
    return said if len(said) > 1 else [*said, few]


def main(arguments: list[str]) -> int:
    """Run from the command line and return the exit code."""
    return run_command(NAME, __doc__, lambda: run(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
