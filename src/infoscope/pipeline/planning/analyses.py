"""The steps of the analyses: one function each, named in `ANALYSES`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from infoscope.config import Stage
from infoscope.pipeline.planning.chain import count_probes, count_ranked, has_features_of, plan_variants
from infoscope.pipeline.planning.known import Known, Step
from infoscope.pipeline.planning.probe_costs import make_nominal_variants
from infoscope.predictions.inputs import check_predictions
from infoscope.predictions.prompts import make_prompts
from infoscope.probes.selection import LOGITS, SCORES
from infoscope.probes.variants import Role, Variant
from infoscope.sae.edit import EditMode
from infoscope.scope.config import EMDMethod
from infoscope.scope.token_outliers import MAPS


def plan_report(known: Known) -> list[Step]:
    """The analyses that the report joins."""
    return [*_plan_outliers(known), _plan_seeds(known, "confounds", "confounds")]


def _plan_outliers(known: Known) -> list[Step]:
    config, stages = known.config, known.stages
    n, backbone, step = stages.n_images("train"), stages.backbone, Step("outliers", 0, 1)
    if known.find("token_outliers") is None:
        n_cropped, n_by_layer = min(n, config.outliers.n_images), min(n, config.outliers.n_layer_images)
        forwards, pairs = 2 * n_cropped + (backbone.n_layers - 1) * n_by_layer, 2 * len(MAPS) * n_cropped
        seconds = forwards / known.rates.images + known.distance_s(pairs, config.scope.emd)
        step = Step("outliers", 1, 0, forwards=forwards, distances=pairs, seconds=seconds, is_bound=True)
    return [step, _plan_seeds(known, "group_activation", "group activation")]


def _plan_seeds(known: Known, name: str, what: str) -> Step:
    """What reads all tokens for each SAE seed."""
    n, seeds = known.stages.n_images("train"), known.config.seeds
    n_found = sum(known.find(name, seed) is not None for seed in seeds)
    n_built = len(seeds) - n_found
    seconds = n_built * n * getattr(known.rates, f"{name}_s") if n_built else 0.0
    return known.read_tokens(Step(what, n_built, n_found, seconds=seconds), n_built * n)


def _plan_predict(known: Known) -> list[Step]:
    """Every variant of every test image, then trials of single features; how many features act is not known before."""
    config, stages = known.config.predict, known.stages
    check_predictions(stages.backbone, known.config.model.layer)
    prompts = make_prompts(config, known.rates.images_set)
    head = Step("zero_shot_head", 0, 1)
    if known.find("zero_shot_head") is None:
        n_texts = len(prompts.class_names) * len(prompts.templates)
        head = Step("zero_shot_head", 1, 0, seconds=n_texts / known.rates.texts)
    return [head, *(_plan_predictions(known, seed) for seed in known.config.seeds)]


def _plan_predictions(known: Known, seed: int) -> Step:
    config, stages, name = known.config.predict, known.stages, f"predict, seed {seed}"
    if known.find("predict", seed) is not None:
        return Step(name, 0, 1)
    variants = known.find("variants", seed)
    if variants is None:
        variants, is_known = make_nominal_variants(known.config), False
        sizes = [known.d_sae for variant in variants if _is_explained(variant)]
    else:
        is_known, sizes = True, [variant.n_latents for variant in variants if _is_explained(variant)]
    n_images = min(stages.n_images("test"), config.n_images or stages.n_images("test"))
    n_shown = min(n_images, config.n_shown)
    n_edited = len({variant.key() for variant in variants}) * n_images
    n_trials = n_shown * sum(2 + min(size, config.n_candidates) for size in sizes)  # 2: original, whole group
    resumed = n_edited + n_trials
    n_bytes = n_images * len(variants) * 18
    bound = not is_known or n_trials > 0
    seconds = resumed * known.rates.resumed_s
    step = Step(name, 1, 0, resumed=resumed, seconds=seconds, disk_bytes=n_bytes, is_bound=bound)
    return known.read_tokens(step, n_images)


def _is_explained(variant: Variant) -> bool:
    return variant.role is Role.group and variant.mode is EditMode.error_preserving and not variant.empty


def _plan_stability(known: Known) -> list[Step]:
    """Every other shift, diagonal and image set, each encoded once for all SAEs, and some pairs by the other solver."""
    config, stages, seeds = known.config.stability, known.stages, known.config.seeds
    scope, grid, n_saes = known.config.scope, stages.backbone.grid, len(seeds)
    if known.find("stability") is not None:
        return [Step("stability", 0, 1)]
    ranked = [_RankedLatents(known, seed, config.n_latents) for seed in seeds]
    shifts = [shift for shift in dict.fromkeys(config.shifts) if shift != scope.shift_patches and grid - shift >= 2]
    n_again = len(shifts) + 1  # the other diagonal
    n_pairs = [one.n_pairs for one in ranked]
    n_images = min(stages.n_images("train"), sum(n_pairs))
    if all(one.top_images is not None for one in ranked):
        n_images = min(n_images, count_ranked([one.top_images for one in ranked if one.top_images is not None])[1])
    cropped, pairs = n_again * n_images, [n_again * n for n in n_pairs]
    seconds = known.crop_s(cropped, n_saes) + n_again * sum(known.distance_s(n, scope.emd) for n in n_pairs)
    n_test = stages.n_images("test")
    if n_test >= scope.k_cds:
        n_pairs = [one.n_latents * scope.k_cds for one in ranked]
        n_held_out = min(n_test, sum(n_pairs))
        cropped, pairs = cropped + n_held_out, pairs + n_pairs
        seconds += n_saes * n_test / known.rates.ranked + known.crop_s(n_held_out, n_saes)
        seconds += sum(known.distance_s(n, scope.emd) for n in n_pairs)
    other = EMDMethod.sinkhorn if scope.emd is EMDMethod.exact else EMDMethod.exact
    n_solver = [min(one.n_latents, config.n_solver_latents) * scope.k_cds for one in ranked]
    seconds += sum(known.distance_s(n, other) for n in n_solver)
    return [
        Step(
            "stability",
            1,
            0,
            forwards=2 * cropped,
            distances=sum(pairs) + sum(n_solver),
            seconds=seconds,
            disk_bytes=n_saes * known.d_sae * 8 * (2 * n_again + 16),
            memory_bytes=sum(one.n_latents for one in ranked) * scope.k_cds * 2 * grid**2 * 4,
            is_bound=True,
        )
    ]


class _RankedLatents:
    """The latents of a seed that are scored again: how many, with how many ranked images; all of them before scores.

    top_images: [n_scored, k_cds], of the latents among which they are drawn; None without scores.
    """

    def __init__(self, known: Known, seed: int, n_wanted: int | None) -> None:
        k, scores, ranking = known.config.scope.k_cds, known.find_scores(seed), known.find_ranking(seed)
        self.n_latents, self.top_images = known.d_sae, None
        if scores is not None and ranking is not None:
            scored = np.isfinite(scores.cds(k).values)
            self.n_latents, self.top_images = int(scored.sum()), ranking.top_images[scored, :k]
        if n_wanted is not None:
            self.n_latents = min(self.n_latents, n_wanted)
        self.n_pairs = self.n_latents * k
        if self.top_images is not None:
            self.n_pairs = min(self.n_pairs, count_ranked([self.top_images])[0])


def _plan_select(known: Known) -> list[Step]:
    """The variants are known once the original's probes are; before, as many as every rule has features enough for."""
    config, steps = known.config, []
    for seed in config.seeds:
        whole, kept, has_features = known.find("whole_variants", seed), known.find("selection_variants", seed), False
        if whole is None or kept is None:
            n_rules = config.select.n_bands + 1 + config.select.n_draws + len({*LOGITS, *SCORES} & config.probe.heads)
            n_built, n_reused = 3 + len(config.select.n_kept) * n_rules, 0
        else:
            n_built, n_reused = count_probes(known, seed, [*whole, *kept])
            has_features = has_features_of(known, seed, [*whole, *kept])
        steps.append(plan_variants(known, f"select, seed {seed}", n_built, n_reused, has_features))
    return steps


ANALYSES: dict[Stage, Callable[[Known], list[Step]]] = {
    Stage.predict: _plan_predict,
    Stage.stability: _plan_stability,
    Stage.select: _plan_select,
    Stage.outliers: _plan_outliers,
}
"""What the stages beside the chain need once scores and tokens exist."""
