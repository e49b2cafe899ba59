"""What a finished job says, as rows: one per SAE seed, or per seed and variant where its stage compares variants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from infoscope.config import Stage
from infoscope.pipeline.reporting import read_scope
from infoscope.pipeline.run import Pipeline
from infoscope.predictions.results import PredictionResult
from infoscope.probes.results import load_results
from infoscope.probes.variants import Variant
from infoscope.report.scope_table import summarise_scope
from infoscope.report.tables import Value
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import Artifact
from infoscope.runtime.progress import flatten
from infoscope.scope.ranking import Ranking
from infoscope.scope.stability import StabilityResult

Row = dict[str, Value]
VARIANT_KEYS = ("mode", "role", "group", "control", "draw", "mass_share", "energy_share")
"""What is said of a variant beside its name and `n_removed`; the shares are those removed from the test tokens."""


def read_rows(pipeline: Pipeline, seed: int) -> list[Row]:
    """Return what the configured stage has found for one SAE seed; metrics are those of the tables, by their keys.

    Raises:
        MissingArtifact: something is not there, if the pipeline's store builds nothing.
        InputError: a stage that leaves nothing to collect, or whatever it would refuse.
    """
    stage = pipeline.config.stage
    if stage not in _READERS:
        raise InputError(f"stage={stage.name} leaves no artifact to collect: choose another stage.")
    return list(_READERS[stage](pipeline, seed))


def read_last(pipeline: Pipeline) -> None:
    """Ask for what a job makes after the last of its seeds: its report.

    Raises:
        MissingArtifact: it is not there.
    """
    if pipeline.config.stage in (Stage.report, Stage.predict, Stage.stability, Stage.select):
        pipeline.find_report()


def _read_clip(pipeline: Pipeline, seed: int) -> Iterator[Row]:
    clip = pipeline.train_clip()
    yield {**_name(clip), **clip.read_json("training.json")["held_out"]}


def _read_sae(pipeline: Pipeline, seed: int) -> Iterator[Row]:
    sae = pipeline.train_sae(seed)
    yield {**_name(sae), **sae.read_json("metrics.json")}


def _read_ranking(pipeline: Pipeline, seed: int) -> Iterator[Row]:
    ranked = pipeline.rank(seed)
    ranking = Ranking.load(ranked.folder)
    found = {"n_images": ranking.n_images, "n_silent": int((ranking.firing_rate == 0).sum())}
    yield {**_name(ranked), **pipeline.train_sae(seed).read_json("metrics.json"), **found}


def _read_scores(pipeline: Pipeline, seed: int) -> Iterator[Row]:
    yield {**_name(pipeline.score(seed)), **_summarise(pipeline, seed)}


def _read_probes(pipeline: Pipeline, seed: int) -> Iterator[Row]:
    yield from _join_variants(pipeline, seed, pipeline.probe(seed))


def _read_report(pipeline: Pipeline, seed: int) -> Iterator[Row]:
    yield from _read_probes(pipeline, seed) if pipeline.knows_truths() else _read_scores(pipeline, seed)


def _read_selection(pipeline: Pipeline, seed: int) -> Iterator[Row]:
    yield from _join_variants(pipeline, seed, pipeline.select(seed))


def _read_predictions(pipeline: Pipeline, seed: int) -> Iterator[Row]:
    predicted, scope = pipeline.predict(seed), _summarise(pipeline, seed)
    result = PredictionResult.load(predicted.folder)
    for place, variant in enumerate(result.variants):
        yield {**_name(predicted), **_describe(variant), **scope, **result.metrics(place)}


def _read_stability(pipeline: Pipeline, seed: int) -> Iterator[Row]:
    made = pipeline.stability()
    result = StabilityResult.load(made.folder / f"seed{seed}")
    for variation in result.variations:
        yield {**_name(made), "variant": variation.name, **result.compare(variation)._asdict()}


def _read_outliers(pipeline: Pipeline, seed: int) -> Iterator[Row]:
    made, found = pipeline.group_activation(seed), pipeline.find_group_activation(seed)
    for place, group in enumerate(found.names):
        acts = {"on_outlier": float(found.on_outlier[place]), "on_normal": float(found.on_normal[place])}
        counts = {"n_features": int(found.n_features[place]), "n_outlier_tokens": found.n_outlier}
        yield {**_name(made), "variant": group, **counts, **acts, "activation_ratio": float(found.ratio[place])}


_READERS: Mapping[Stage, Callable[[Pipeline, int], Iterator[Row]]] = {
    Stage.train_clip: _read_clip,
    Stage.train_sae: _read_sae,
    Stage.rank: _read_ranking,
    Stage.score: _read_scores,
    Stage.probe: _read_probes,
    Stage.report: _read_report,
    Stage.select: _read_selection,
    Stage.predict: _read_predictions,
    Stage.stability: _read_stability,
    Stage.outliers: _read_outliers,
}


def _join_variants(pipeline: Pipeline, seed: int, probed: Mapping[Variant, list[Artifact]]) -> Iterator[Row]:
    scope = _summarise(pipeline, seed)
    for variant, artifacts in probed.items():
        result = load_results([artifact.folder for artifact in artifacts], variant)
        metrics = {**flatten(result.metrics), **flatten(result.frozen_head, "frozen_head/")}
        yield {**_name(*artifacts), **_describe(result.variant), **scope, **metrics}


def _name(*artifacts: Artifact) -> Row:
    """Which artifacts hold the numbers of a row; more than one where tasks have data of their own."""
    return {"artifact": " ".join(f"{artifact.manifest['stage']}:{artifact.hash}" for artifact in artifacts)}


def _describe(variant: Mapping[str, Any]) -> Row:
    return {
        "variant": variant["name"],
        "n_removed": variant["n_latents"],
        **{key: variant[key] for key in VARIANT_KEYS},
    }


def _summarise(pipeline: Pipeline, seed: int) -> Row:
    """The scores and the groups of a seed, and its SAE's own metrics."""
    artifacts = pipeline.train_sae(seed), pipeline.rank(seed), pipeline.score(seed)
    summary = summarise_scope(read_scope(pipeline.config, seed, *artifacts))
    return {key: value for key, value in summary.items() if key != "sae_seed"}
