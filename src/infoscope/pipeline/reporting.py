"""From artifacts to what a report is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infoscope.config import Config
from infoscope.data.config import DataKind
from infoscope.data.images import ImageSet
from infoscope.probes.results import VariantResult, load_results
from infoscope.probes.variants import Variant
from infoscope.report.inputs import Example, ReportInputs, ScopeResult, TokenStats
from infoscope.report.variants import Result
from infoscope.runtime.environment import describe_environment
from infoscope.runtime.manifests import Artifact
from infoscope.scope.examples import choose_example_latents
from infoscope.scope.outliers import compute_norm_summary
from infoscope.scope.partition import make_partition
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores
from infoscope.vision.origins import Facts
from infoscope.vision.sources import is_of_origin
from infoscope.vision.token_source import TokenFacts

N_EXAMPLES_EACH, N_EXAMPLE_IMAGES = 2, 4
PAPER_ARCHS = {"ViT-B-16": "clip_b16", "ViT-L-14": "clip_l14"}


def make_report_inputs(
    config: Config,
    images: ImageSet,
    tokens: Artifact,
    artifacts: Mapping[int, tuple[Artifact, Artifact, Artifact]],
    probed: Mapping[int, Sequence[VariantResult]],
    model_facts: Facts | None,
) -> ReportInputs:
    """Read everything a report shows.

    Args:
        images: the training images, from which the examples' pictures are taken.
        tokens: of the training split.
        artifacts: per SAE seed, its SAE, ranking and score artifacts.
        probed: per SAE seed, the results of its variants; empty without labels.
        model_facts: its activation, mean and std, and who says so; None for planted backbones.
    """
    seeds = [read_scope(config, seed, *three) for seed, three in artifacts.items()]
    results = [{"sae_seed": seed, **result.to_json()} for seed, many in probed.items() for result in many]
    first = config.seeds[0]
    _, ranked, scored = artifacts[first]
    return ReportInputs(
        title=f"Information scope of {config.model.name} on {config.data.kind.name}",
        seeds=seeds,
        results=results,
        examples=_read_examples(config, images, seeds[0], ranked, scored, tokens.read_json("tokens.json")["patch_px"]),
        token_stats=_read_token_stats(config, tokens),
        context=describe_experiment(config, tokens, images, model_facts),
        paper_reference=find_paper_reference(config),
    )


def find_paper_reference(config: Config) -> str | None:
    """Return whose values of the paper stand beside ours: only where model and data are the paper's.

    That is OpenAI's CLIP B/16 or L/14 on all of ImageNet, ADE20K and NYU Depth v2. What a local file holds nobody can
    see: it is taken for OpenAI's where `model.origin` says so.
    """
    probes = config.probe_data
    has_data = (
        probes.classification.kind is DataKind.own
        and probes.segmentation.kind is DataKind.ade20k
        and probes.depth.kind is DataKind.nyud
        and not any(of.subset or of.max_train or of.max_test for of in (probes.segmentation, probes.depth))
    )
    return find_paper_model(config) if has_data and config.probe.target == "class" else None


def find_paper_model(config: Config) -> str | None:
    """Return the paper's name of this model where the SAE too reads the paper's data, all of ImageNet; else None."""
    model, data = config.model, config.data
    has_data = data.kind is DataKind.imagenet and not data.subset and data.max_train is None and data.max_test is None
    name = PAPER_ARCHS.get(model.arch or "")
    return name if name is not None and has_data and is_of_origin(model, "openai") else None


def read_scope(config: Config, seed: int, sae: Artifact, ranked: Artifact, scored: Artifact) -> ScopeResult:
    """Return the scores and the groups of one SAE, from its SAE, ranking and score artifacts."""
    scores, ranking = Scores.load(scored.folder), Ranking.load(ranked.folder)
    cds = scores.cds(config.scope.k_cds).values
    return ScopeResult(
        sae_seed=seed,
        k_cds=config.scope.k_cds,
        cds=cds,
        emd=scores.emd,
        chance_emd=scores.chance_emd,
        mass1=scores.mass1,
        mass2=scores.mass2,
        mean_act=ranking.mean_act,
        firing_rate=ranking.firing_rate,
        partition=make_partition(cds, ranking.mean_act, config.partition),
        rule=config.partition.rule_in_words,
        grid=scores.grid,
        shift=scores.shift_patches,
        sae_metrics=sae.read_json("metrics.json"),
    )


def read_results(probed: Mapping[int, Mapping[Variant, Sequence[Artifact]]]) -> list[Result]:
    """Return what was probed, by SAE seed and variant, as the tables of a report read it."""
    return [
        {"sae_seed": seed, **load_results([one.folder for one in artifacts], variant).to_json()}
        for seed, many in probed.items()
        for variant, artifacts in many.items()
    ]


def _read_examples(
    config: Config, images: ImageSet, scope: ScopeResult, ranked: Artifact, scored: Artifact, patch_px: int
) -> list[Example]:
    """The top pictures of some low, middle and high features of the first seed."""
    ranking, scores = Ranking.load(ranked.folder), Scores.load(scored.folder)
    size_px = (scope.grid + scope.shift) * patch_px
    examples = []
    for band, latents in choose_example_latents(scope.cds, N_EXAMPLES_EACH).items():
        for latent in latents:
            ranks = np.flatnonzero(ranking.top_images[latent] >= 0)[:N_EXAMPLE_IMAGES]
            index = ranking.top_images[latent, ranks]
            examples.append(
                Example(
                    latent=latent,
                    cds=float(scope.cds[latent]),
                    band=band,
                    images=np.stack([images.load(int(i), size_px) for i in index]),
                    maps=np.array(scores.maps[latent, ranks]),
                    emd=scores.emd[latent, ranks],
                    image_ids=[images.image_ids[i] for i in index],
                )
            )
    return examples


def _read_token_stats(config: Config, tokens: Artifact) -> TokenStats:
    summary = compute_norm_summary(TokenFacts(tokens.folder).norms, config.outliers)
    return TokenStats(
        counts=summary.counts,
        edges=summary.edges,
        threshold=summary.threshold,
        n_outliers=summary.n_outliers,
        rule=config.outliers.rule_in_words,
        has_outlier_mode=summary.has_outlier_mode,
    )


def describe_experiment(
    config: Config, tokens: Artifact, images: ImageSet, model_facts: Facts | None
) -> dict[str, str]:
    """Return model, data, SAE, scope, software and hardware, in words."""
    meta: dict[str, Any] = tokens.read_json("tokens.json")
    environment = describe_environment()
    hardware, versions = environment["hardware"], environment["versions"]
    weights = Path(config.model.pretrained or config.model.kind.name).name
    context = {
        "model": f"{config.model.name} ({weights}), block {meta['layer']},"
        f" {meta['grid']} x {meta['grid']} patches, d_in {meta['d_in']}",
        "data": f"{config.data.kind.name}, {meta['n_images']} training images",
        "SAE": f"{config.sae.kind}, {meta['d_in'] * config.sae.expansion_factor} latents,"
        f" seeds {', '.join(map(str, config.seeds))}",
        "scope": f"k_CDS {config.scope.k_cds}, shift {config.scope.shift_patches}, EMD {config.scope.emd.name}",
        "software": f"infoscope {versions['infoscope']}, torch {versions['torch']}",
        "hardware": f"{hardware['cpu']}, {hardware['cores']} cores" + "".join(f", {gpu}" for gpu in hardware["gpus"]),
    }
    if model_facts is not None:
        context["model"] += f", {model_facts.words}"
    if config.data.kind is DataKind.scenes:
        context["data"] += f", {config.data.n_test} test images"
    if config.model.pretrained == "random":
        context["model"] += "; random weights, so nothing here is about a trained model"
    n_skipped = len(tokens.read_json("skipped.json"))
    if n_skipped:
        context["data"] += f", {n_skipped} of {len(images)} files skipped"
    return context
