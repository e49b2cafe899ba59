"""The analyses beside the main table: outlier tokens, confounds, predictions, selection, stability.

Each is an artifact (or one per SAE seed) that reads what the chain made, and a section of a report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from infoscope.config import Stage, to_tree
from infoscope.pipeline.chain import Stages, must_exist
from infoscope.pipeline.reporting import read_results
from infoscope.predictions.inputs import PredictInputs, check_predictions
from infoscope.predictions.prompts import Prompts, make_prompts
from infoscope.predictions.results import PredictionResult
from infoscope.predictions.run import run_predictions
from infoscope.predictions.zero_shot import ZeroShotHead, make_zero_shot_head
from infoscope.probes.results import load_results
from infoscope.probes.selection import compute_probe_importance, make_selection_variants
from infoscope.probes.variants import Variant, make_variants
from infoscope.report.confound_section import make_confound_section
from infoscope.report.inputs import ScopeResult
from infoscope.report.outlier_section import make_outlier_section
from infoscope.report.prediction_section import make_prediction_section
from infoscope.report.section import ReportSection
from infoscope.report.selection_section import make_selection_section
from infoscope.report.stability_section import make_stability_section
from infoscope.runtime import processes
from infoscope.runtime.manifests import Artifact, Spec
from infoscope.runtime.store import Workspace
from infoscope.sae.config import TokenChoice
from infoscope.sae.edit import EditMode
from infoscope.scope.config import PartitionConfig
from infoscope.scope.confounds import ConfoundResult, compute_confounds
from infoscope.scope.group_activation import GroupActivation, OutlierActs, compute_outlier_acts
from infoscope.scope.maps import make_trainer
from infoscope.scope.partition import make_partition
from infoscope.scope.ranking import Ranking, rank_in_parts
from infoscope.scope.rescoring import ScoredSAE, compute_stability
from infoscope.scope.scores import Scores
from infoscope.scope.stability import StabilityResult
from infoscope.scope.token_outliers import TokenOutliers, compute_token_outliers
from infoscope.vision.token_source import TokenFacts


class Analyses(Stages):
    """The analyses of one configuration; `report` joins those that take seconds, the others are stages of their own."""

    # -- outlier tokens ------------------------------------------------------------------------------------------

    def token_outliers(self) -> Artifact:
        """Measure how far the outlier tokens move between shifted crops, and the norms block by block."""
        config, tokens = self.config, self.tokens("train")
        scope = config.scope
        key = {
            "tokens": tokens.hash,
            "outliers": to_tree(config.outliers),
            "shift_patches": scope.shift_patches,
            "emd": [scope.emd.name, scope.sinkhorn_blur],
        }

        def build(work: Workspace) -> None:
            with self.display.bar("outlier tokens", unit="images") as advance:
                found = compute_token_outliers(
                    self.backbone,
                    self.image_sets[0],
                    TokenFacts(tokens.folder),
                    config.outliers,
                    scope,
                    n_readers=config.data.n_workers,
                    progress=advance,
                )
            found.save(work.folder)

        return self.get(Spec("outliers", config.model.name, key), build, tokens=tokens)

    def group_activation(self, seed: int) -> Artifact:
        """Measure how strongly each feature acts on outlier and on normal tokens."""
        sae, tokens, outliers = self.train_sae(seed), self.tokens("train"), self.token_outliers()
        key = {"sae": sae.hash, "tokens": tokens.hash, "outliers": outliers.hash}

        def build(work: Workspace) -> None:
            threshold, n = TokenOutliers.load(outliers.folder).norms.threshold, self.n_images("train")
            with self.display.bar(f"groups on outlier tokens, seed {seed}", n, "images") as advance:
                found = compute_outlier_acts(
                    self.load_sae(sae), self.open_tokens("train"), threshold, advance, work.progress / "sums"
                )
            if processes.current().rank == 0:
                found.save(work.folder)

        spec = Spec("group_activation", self.sae_name(seed), key)
        return self.get(spec, build, shared=True, sae=sae, tokens=tokens)

    def find_group_activation(self, seed: int) -> GroupActivation:
        """Return how strongly each group acts on outlier and on normal tokens, and the features without a score."""
        partition = self.partition(seed)
        groups = dict(partition.groups)
        if partition.unscored.any():
            groups["unscored"] = partition.unscored
        return OutlierActs.load(self.group_activation(seed).folder).of_groups(groups)

    def outlier_section(self) -> ReportSection:
        """What outlier tokens do."""
        by_seed = {seed: self.find_group_activation(seed) for seed in self.config.seeds}
        return make_outlier_section(TokenOutliers.load(self.token_outliers().folder), by_seed)

    # -- confounds -----------------------------------------------------------------------------------------------

    def confounds(self, seed: int) -> Artifact:
        """Measure what else tells features apart: how often, how strongly and how widely they fire, and on what."""
        sae, tokens, images = self.train_sae(seed), self.tokens("train"), self.image_sets[0]
        k_max = self.config.scope.n_ranks
        key = {"sae": sae.hash, "tokens": tokens.hash, "images": self.images_fingerprint("train"), "k_max": k_max}

        def build(work: Workspace) -> None:
            n = self.n_images("train")
            with self.display.bar(f"confounds, seed {seed}", n, "images") as advance:
                found = compute_confounds(
                    self.load_sae(sae),
                    self.open_tokens("train"),
                    images,
                    k_max,
                    advance,
                    work.progress / "confounds",
                )
            if processes.current().rank == 0:
                found.save(work.folder)

        return self.get(Spec("confounds", self.sae_name(seed), key), build, shared=True, sae=sae, tokens=tokens)

    def confound_section(self, scopes: Sequence[ScopeResult], results: Sequence[Mapping[str, Any]]) -> ReportSection:
        """What else the scores may measure."""
        by_seed = {seed: ConfoundResult.load(self.confounds(seed).folder) for seed in self.config.seeds}
        return make_confound_section(scopes, by_seed, results)

    # -- predictions ---------------------------------------------------------------------------------------------

    @cached_property
    def prompts(self) -> Prompts:
        """Class names and the sentences they are put into; a model that cannot predict is refused before any work."""
        check_predictions(self.backbone, self.config.model.layer)
        return make_prompts(self.config.predict, self.image_sets[1])

    def zero_shot_head(self) -> Artifact:
        """Embed the class names."""
        prompts = self.prompts
        key = {"model": self.model_fingerprint, "prompts": prompts.determining()}

        def build(work: Workspace) -> None:
            with self.display.bar("embedding class names", len(prompts.class_names), "classes") as advance:
                head = make_zero_shot_head(self.backbone, prompts, advance, work.progress)
            if processes.current().rank == 0:
                head.save(work.folder)

        return self.get(Spec("zero_shot_head", self.config.model.name, key), build, shared=True)

    def predict(self, seed: int) -> Artifact:
        """Let the model's own zero-shot head predict under each removal and control."""
        config = self.config
        head, sae, test = self.zero_shot_head(), self.train_sae(seed), self.tokens("test")
        variants = self.variants(seed)
        key = {
            "model": self.model_fingerprint,
            "head": head.hash,
            "tokens": test.hash,
            "layer": config.model.layer,
            "predict": config.predict.determining(),
            "target": config.predict.target,
            "variants": [[variant.name, variant.key(sae.hash)] for variant in variants],
        }

        def build(work: Workspace) -> None:
            inputs = PredictInputs(
                self.load_sae(sae),
                self.open_tokens("test"),
                self.backbone,
                config.model.layer,
                edits_patches=config.sae.tokens is not TokenChoice.cls,
                edits_prefix=config.sae.tokens is not TokenChoice.patch,
            )
            with self.track(Stage.predict, seed) as tracker, self.display.bar(f"predicting, seed {seed}") as advance:
                found = run_predictions(
                    variants,
                    inputs,
                    ZeroShotHead.load(head.folder),
                    config.predict,
                    self.prompts.labels,
                    lambda what, done, of: advance(done, of, what),
                    work.progress,
                )
                if processes.current().rank == 0:
                    found.save(work.folder)
                tracker.log({name: value for name, value in found.metrics(0).items() if value is not None})

        return self.get(Spec("predict", self.sae_name(seed), key), build, shared=True, sae=sae, tokens=test, head=head)

    def prediction_section(self) -> ReportSection:
        """What the model predicts without a group of features."""
        found = {seed: PredictionResult.load(self.predict(seed).folder) for seed in self.config.seeds}
        images, size_px = self.image_sets[1], self.backbone.image_px
        shown = {image.image_index for image in found[min(found)].changed}
        return make_prediction_section(found, {index: images.load(index, size_px) for index in shown})

    # -- selection -----------------------------------------------------------------------------------------------

    def select(self, seed: int) -> dict[Variant, list[Artifact]]:
        """Probe n kept latents at a time; before them the original tokens, all latents kept, and none."""
        self.check_truths()
        whole = self.whole_variants(seed)
        probed = self.probe_variants(seed, whole)
        return probed | self.probe_variants(seed, [whole[0], *self.selection_variants(seed)])

    def whole_variants(self, seed: int) -> list[Variant]:
        """Return the original tokens, and those decoded from all latents and from none."""
        ranking = Ranking.load(self.rank(seed).folder)
        return make_variants({}, ranking.mean_act > 0, ranking.mean_act, modes=[EditMode.reconstruct])

    def selection_variants(self, seed: int) -> list[Variant]:
        """Return the variants that keep n latents; the weights of the original's probes choose some of them."""
        config = self.config
        cds = Scores.load(self.score(seed).folder).cds(config.scope.k_cds).values
        ranking = Ranking.load(self.rank(seed).folder)
        original = self.whole_variants(seed)[0]
        probed = [self.get(self.probe_spec(seed, original, *of), must_exist).folder for of in self.probe_groups()]
        W_dec = self.load_sae(self.train_sae(seed)).W_dec.detach().cpu().double().numpy()
        return make_selection_variants(
            dict(make_partition(cds, ranking.mean_act, PartitionConfig(n_bands=config.select.n_bands)).bands),
            ~np.isnan(cds) & (ranking.mean_act > 0),
            ranking.mean_act,
            compute_probe_importance(load_results(probed, original).heads, W_dec, ranking.mean_act),
            config.select,
            config.probe.seed,
        )

    def selection_section(self, probed: Mapping[int, Mapping[Variant, Sequence[Artifact]]]) -> ReportSection:
        """What probes read from a few features, by the rule that chose them; `probed` is `select` of every seed."""
        return make_selection_section(read_results(probed))

    # -- stability -----------------------------------------------------------------------------------------------

    def stability(self) -> Artifact:
        """Score the features again with one choice made otherwise: shift, diagonal, images, k, solver, seed."""
        config = self.config
        scored = {seed: self.score(seed) for seed in config.seeds}
        held_out = self.tokens("test") if self.n_images("test") >= config.scope.k_cds else None
        key = {
            "stability": to_tree(config.stability),
            "groups": [self._groups_key(seed) for seed in config.seeds],
            "held_out": held_out.hash if held_out else None,
            "sinkhorn_blur": config.scope.sinkhorn_blur,
        }

        def build(work: Workspace) -> None:
            saes = [self._find_scored(seed, artifact, held_out, work) for seed, artifact in scored.items()]
            with self.track(Stage.stability) as tracker:
                found = compute_stability(
                    self.backbone,
                    saes,
                    *self.image_sets,
                    config.scope,
                    config.stability,
                    layer=config.model.layer,
                    trainer=make_trainer(self.device.type),
                    show_bar=self.display.bar,
                    n_readers=config.data.n_workers,
                    progress_folder=work.progress,
                )
                for result in found:
                    result.save(work.folder / f"seed{result.sae_seed}")
                    rhos = {v.name: result.compare(v).rank_correlation for v in result.variations}
                    seed = result.sae_seed
                    tracker.log({f"seed{seed}/{name}": rho for name, rho in rhos.items() if np.isfinite(rho)})

        upstream = {f"s{n}": a for n, a in scored.items()}
        return self.get(Spec("stability", config.model.name, key), build, shared=True, **upstream)

    def _find_scored(self, seed: int, scores: Artifact, held_out: Artifact | None, work: Workspace) -> ScoredSAE:
        """Return what is known of one SAE, ranked on the held-out images too where there are any."""
        sae, scope, again = self.load_sae(self.train_sae(seed)), self.config.scope, None
        if held_out is not None:
            source = self.open_tokens("test")
            with self.display.bar(f"ranking held-out images, seed {seed}", len(source), "images") as advance:
                again = rank_in_parts(
                    sae,
                    source,
                    scope.n_ranks,
                    scope.rank_by,
                    advance,
                    work.progress / f"held-out-{seed}",
                )
        ranked = Ranking.load(self.rank(seed).folder)
        return ScoredSAE(seed, sae, ranked, Scores.load(scores.folder), self.partition(seed).gamma, again)

    def stability_section(self) -> ReportSection:
        """How far the scores depend on choices that should not matter."""
        folder = self.stability().folder
        return make_stability_section([StabilityResult.load(folder / f"seed{seed}") for seed in self.config.seeds])

    # -- helpers -------------------------------------------------------------------------------------------------

    def _groups_key(self, seed: int) -> dict[str, Any]:
        """What determines the groups of a seed's features."""
        config = self.config
        return {
            "score": self.score_spec(seed).hash,
            "k_cds": config.scope.k_cds,
            "partition": config.partition.determining(),
        }
