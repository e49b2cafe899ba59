"""stage=probe: linear probes on tokens with groups of features ablated, and with random controls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from infoscope.config.tree import Config
from infoscope.data.config import DataKind
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Count, Handle, Needs, Node, NotBuiltYet, Row, Shown, Stage, Work, name_artifacts
from infoscope.probes.checks import check_probes
from infoscope.probes.classification import count_variants_at_a_time
from infoscope.probes.config import Task
from infoscope.probes.crops import round_to_patches
from infoscope.probes.dense_images import count_training_bytes
from infoscope.probes.results import load_results
from infoscope.report.section import ReportSection
from infoscope.runtime.errors import InputError
from infoscope.runtime.progress import flatten
from infoscope.runtime.read_only import MissingArtifact
from infoscope.sae.config import TokenChoice
from infoscope.sae.edit import EditMode
from infoscope.scope.ablations import Ablation, make_ablations, make_matched_ablations
from infoscope.scope.config import Rule
from infoscope.scope.matching import MATCHINGS
from infoscope.stages.ablations import all_ablations_of, needs_of_ablations
from infoscope.stages.backbone import load_backbone, load_backbone_at
from infoscope.stages.confounds.stage import Confounds
from infoscope.stages.images import check_split, count_images, find_known, knows, probe_data, scenes_of
from infoscope.stages.probe.artifacts import AblationProbes, Features, ProbeGroup, count_features
from infoscope.stages.probe.features import list_features, make_features
from infoscope.stages.probe.results import Result
from infoscope.stages.probe.run import TRUTHS, Probed, check_truths, like_of, list_probe_groups, probe_variants
from infoscope.stages.probe.section import make_removal_section
from infoscope.stages.probe.tables import make_main_table
from infoscope.stages.sae import choose_tokens
from infoscope.stages.score.stage import Score, needs_of_groups, say_ungrouped, scope_of, summarise_seed
from infoscope.stages.tokens import Tokens, find_sizes
from infoscope.vision.open_clip.source import is_of_origin

PAPER_ARCHS = {"ViT-B-16": "clip_b16", "ViT-L-14": "clip_l14"}
VARIANT_KEYS = ("mode", "role", "group", "control", "draw", "mass_share", "energy_share")
"""What is said of a variant, besides its name and `n_removed`; the shares are those removed from the test tokens."""


class ProbesOfVariants(Stage, ABC):
    """What stages have in common that probe variants of the tokens; each variant has artifacts of its own."""

    kind = "probe"

    @abstractmethod
    def variants(self, ctx: Context, seed: int) -> list[Ablation]:
        """Return what is probed, the original tokens first."""

    @abstractmethod
    def count_nominal(self, ctx: Context) -> int:
        """Return how many variants a plan counts before there are scores."""

    @abstractmethod
    def make(self, ctx: Context, seed: int) -> Probed:
        """Return the probes of every variant; what is missing is trained."""

    def probe_seeds(self, ctx: Context) -> dict[int, Probed]:
        """Return the probes of every variant of every seed; what is missing is trained."""
        return {seed: self.make(ctx, seed) for seed in ctx.config.seeds}

    def hash_probes(self, ctx: Context) -> dict[str, list[str]]:
        """Return the hashes of the probes of every variant, by seed."""
        probed = self.probe_seeds(ctx).items()
        return {str(seed): [one.hash for of in many.values() for one in of] for seed, many in probed}

    def needs(self, ctx: Context, seed: int) -> Needs:
        tokens = {
            f"{split}_{number}": Tokens.at(ctx, split, group.data)
            for number, group in enumerate(list_probe_groups(ctx))
            for split in ("train", "test")
        }
        scenes = {}
        for group in list_probe_groups(ctx):
            scenes |= {f"{group.data.kind.name}_{name}": of for name, of in scenes_of(ctx, group.data)}
        features = _FeaturesOfSeed.at(ctx, self, seed)
        return Needs(**vars(self.needs_of_variants(ctx, seed)), **tokens, **scenes, features=features)

    def needs_of_variants(self, ctx: Context, seed: int) -> Needs:
        """Return what `variants` reads."""
        return needs_of_groups(ctx, seed)

    def reads(self, ctx: Context) -> list[Node]:
        return Score().reads(ctx)

    def check(self, ctx: Context, seed: int) -> None:
        check_probe_inputs(ctx)

    def count(self, ctx: Context, seed: int) -> Count:
        groups = list_probe_groups(ctx)
        try:
            variants = self.variants(ctx, seed)
        except (MissingArtifact, NotBuiltYet):
            return Count(self.count_nominal(ctx) * len(groups), 0, is_bound=True)
        return _count(AblationProbes.at(ctx, seed, group, variant) for variant in variants for group in groups)

    def work(self, ctx: Context, seed: int) -> Work:
        """Return what the probes of one variant cost, and what those of a chunk hold in memory."""
        groups = list_probe_groups(ctx)
        work = Work(1, like_of(ctx, groups[0])) if len(groups) == 1 else Work()
        held = max(_count_held(ctx, group, self.count_nominal(ctx)) for group in groups)
        return replace(work, memory_bytes=held)

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        scope = summarise_seed(ctx, seed)
        for variant, artifacts in self.make(ctx, seed).items():
            result = load_results([artifact.folder for artifact in artifacts], variant)
            metrics = {**flatten(result.metrics), **flatten(result.frozen_head, "frozen_head/")}
            yield {**name_artifacts(*artifacts), **describe_variant(result.variant), **scope, **metrics}


class _FeaturesOfSeed(Stage):
    """What classification reads of the variants whose probes are missing; an item is (stage that probes, SAE seed).

    A plan counts them; probes make what they read.
    """

    kind = Features.kind

    def identify(self, stage: ProbesOfVariants, seed: int) -> str:
        return f"{type(stage).__name__}, {seed}"

    def describe(self, ctx: Context, stage: ProbesOfVariants, seed: int) -> str:
        return f"{self.kind}, seed {seed}"

    def count(self, ctx: Context, stage: ProbesOfVariants, seed: int) -> Count:
        groups = [group for group in list_probe_groups(ctx) if Task.classification in group.probe.tasks]
        try:
            variants = stage.variants(ctx, seed)
        except (MissingArtifact, NotBuiltYet):
            return Count((stage.count_nominal(ctx) + 1) * len(groups), 0, is_bound=True)  # and the means of images
        return _count(one for group in groups for one in list_features(ctx, seed, group, variants).values())

    def work(self, ctx: Context, stage: ProbesOfVariants, seed: int) -> Work:
        (group,) = [group for group in list_probe_groups(ctx) if Task.classification in group.probe.tasks]
        return Features().work(ctx, seed, group, None)


def _count_held(ctx: Context, group: ProbeGroup, n_variants: int) -> int:
    """Return the bytes that training holds of as many variants as are trained together.

    Tokens and logits on crops count as all that they may take.
    """
    probe, sizes, known = group.probe, find_sizes(ctx), find_known(ctx, group.data)[0]
    n_variants, held = min(n_variants, probe.variants_per_chunk), [0]
    if Task.classification in probe.tasks:
        n_images, n_classes = count_features(ctx, group), known.n_target_classes(probe.target)
        n_together, n_bytes = count_variants_at_a_time(probe, n_images, sizes.d_in, n_classes)
        held.append(min(n_variants, n_together) * n_bytes)
    dense = [task for task in probe.tasks if task is not Task.classification]
    if any(probe.crops(task) for task in dense):
        held.append(int(probe.memory_gb * 1e9))
    elif dense:
        held.append(count_training_bytes(probe, n_variants, sizes.n_patches, sizes.d_in, len(known.label_names)))
    return max(held)


def _count(handles: Iterable[Handle]) -> Count:
    """Count artifacts, equal ones once."""
    found = [handle.find() is not None for handle in {handle.hash: handle for handle in handles}.values()]
    return Count(found.count(False), found.count(True))


class Probe(ProbesOfVariants):
    """The probes of every variant of the tokens; variants follow from the scores."""

    in_report = True

    def applies(self, ctx: Context) -> bool:
        return is_probed(ctx)

    def hashes(self, ctx: Context) -> list[str]:
        return [one for of_seed in self.hash_probes(ctx).values() for one in of_seed]

    def describe(self, ctx: Context, seed: int) -> str:
        return f"probe, seed {seed}"

    def variants(self, ctx: Context, seed: int) -> list[Ablation]:
        return all_ablations_of(ctx, seed)

    def needs_of_variants(self, ctx: Context, seed: int) -> Needs:
        return Needs(**vars(needs_of_ablations(ctx, seed)), confounds=Confounds.at(ctx, seed))

    def count_nominal(self, ctx: Context) -> int:
        """Return as many as two groups, or all bands, with members have."""
        rule, number = ctx.config.partition.chosen
        n_groups = int(number or 0) if rule is Rule.bands else 2
        groups = {str(i): np.arange(2 * n_groups) // 2 == i for i in range(n_groups)}
        everyone, alike = np.ones(2 * n_groups, bool), np.ones(2 * n_groups)
        matched = {} if rule is Rule.bands else dict.fromkeys(MATCHINGS, (groups["0"], groups["1"]))
        probe, count = ctx.config.probe, lambda order: 1.0 + np.arange(len(order))
        variants = make_ablations(groups, everyone, alike, probe.n_draws, controls=probe.controls, energy=count)
        return len(variants + make_matched_ablations(matched, alike))

    def make(self, ctx: Context, seed: int) -> Probed:
        return probe_all(ctx, seed)

    def closing(self, ctx: Context) -> Shown:
        kept = EditMode.error_preserving.name  # that of the original tokens too
        shown = [result for result in read_probed(ctx) if result["variant"]["mode"] == kept]
        table = make_main_table(shown, find_paper_reference(ctx.config))
        table.notes += [f"{ungrouped}."] if (ungrouped := say_ungrouped(ctx)) else []
        table.notes.append("Reconstruct, differences and further metrics stand in the report: stage=report.")
        return [table]

    def section(self, ctx: Context) -> ReportSection:
        results = read_probed(ctx)
        scopes = [scope_of(ctx, seed) for seed in ctx.config.seeds]
        return make_removal_section(scopes, results, find_paper_reference(ctx.config))


@once
def probe_all(ctx: Context, seed: int) -> Probed:
    """Return the probes of every variant of a seed; what is missing is trained."""
    return probe_with_others(ctx, seed, all_ablations_of)


def probe_with_others(ctx: Context, seed: int, variants_of: Callable[[Context, int], list[Ablation]]) -> Probed:
    """Return the probes of every variant of a seed; what is missing is trained, after the features of all seeds.

    Args:
        variants_of: gives the variants of a seed.
    """
    if len(ctx.config.seeds) > 1:
        _make_all_features(ctx, variants_of)
    return probe_variants(ctx, seed, variants_of(ctx, seed))


@once
def _make_all_features(ctx: Context, variants_of: Callable[[Context, int], list[Ablation]]) -> None:
    """Make what classification reads of all seeds: each split is read once for all of them."""
    check_truths(ctx)
    for group in list_probe_groups(ctx):
        make_features(ctx, group, {seed: variants_of(ctx, seed) for seed in ctx.config.seeds})


def is_probed(ctx: Context) -> bool:
    """Whether there is anything to probe: some task whose data know the truth."""
    return any(knows(ctx, TRUTHS[task], probe_data(ctx, task)) for task in ctx.config.probe.tasks)


def check_probe_inputs(ctx: Context) -> None:
    """Refuse tasks whose data do not know the truth or code it wrongly, too few images, probes that cannot change.

    Raises:
        InputError: any of these.
    """
    check_truths(ctx)
    for data, probe in list_probe_groups(ctx):
        check_split(ctx, "test", data)
        counts = [probe.n_train_images] if Task.classification in probe.tasks else []
        counts += [probe.n_dense_train_images] if set(probe.tasks) - {Task.classification} else []
        n = count_images(ctx, "train", data)
        if (least := min(n, *(count or n for count in counts))) < 2:
            raise InputError(f"Expected at least two training images for the probes, got {least}.")
        if all(Score.at(ctx, seed).find() is not None for seed in ctx.config.seeds):
            continue  # the backbone need not be loaded to say more
        try:
            backbone = load_backbone(ctx)
        except NotBuiltYet:
            continue
        known, edits_prefix = find_known(ctx, data)[0], choose_tokens(ctx) is not TokenChoice.patch
        check_probes(probe, backbone, ctx.config.model.layer, known, edits_prefix=edits_prefix)
        for task in probe.tasks:
            if (crops := probe.crops(task)) and crops.crop_px is not None:
                load_backbone_at(ctx, round_to_patches(crops.crop_px, backbone.patch_px))


def read_probed(ctx: Context, probed: Mapping[int, Probed] | None = None) -> list[Result]:
    """Return what the probes read by SAE seed and variant, as tables and figures read it; none where nothing is probed.

    Args:
        probed: by seed; by default every variant of every seed.
    """
    if probed is None:
        probed = {seed: probe_all(ctx, seed) for seed in ctx.config.seeds} if is_probed(ctx) else {}
    return [
        {"sae_seed": seed, **load_results([one.folder for one in artifacts], variant).to_json()}
        for seed, many in probed.items()
        for variant, artifacts in many.items()
    ]


def describe_variant(variant: Mapping[str, Any]) -> Row:
    """Return what the collected table says of a variant."""
    known = {key: variant[key] for key in VARIANT_KEYS}
    return {"variant": variant["name"], "n_removed": variant["n_latents"], **known}


def find_paper_reference(config: Config) -> str | None:
    """Return which of the paper's values are shown with ours: only where model and data are the paper's.

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
