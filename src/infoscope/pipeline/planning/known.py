"""What a plan is made of: its steps, and what the configuration, the store and the calibration tell of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from infoscope.config import Stage
from infoscope.data.config import DataKind
from infoscope.pipeline.chain import Stages
from infoscope.pipeline.planning.calibration import Calibration
from infoscope.runtime.manifests import Spec
from infoscope.runtime.read_only import MissingArtifact
from infoscope.scope.config import EMDMethod
from infoscope.scope.emd import count_workers
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores

ORDER = (Stage.train_sae, Stage.rank, Stage.score, Stage.probe, Stage.report)


@dataclass(frozen=True)
class Step:
    """One artifact, or several alike, that a command needs.

    Args:
        what: stage and name, for people.
        n_built, n_reused: artifacts to build, and that exist.
        forwards: pictures that go through the backbone.
        resumed: pictures' edited tokens that go through its remaining blocks.
        distances: earth mover's distances to compute.
        seconds: estimated time to build what is missing.
        disk_bytes, memory_bytes: what stays on the disk, and the largest arrays held while it is made.
        is_bound: whether the counts are upper bounds.
    """

    what: str
    n_built: int
    n_reused: int
    forwards: int = 0
    resumed: int = 0
    distances: int = 0
    seconds: float = 0.0
    disk_bytes: int = 0
    memory_bytes: int = 0
    is_bound: bool = False


@dataclass(frozen=True)
class Plan:
    """The steps in their order, and what the naive way would cost.

    Args:
        naive_forwards: pictures that would be encoded if every latent encoded both crops of its own top images.
        naive_s: how long that would take, in seconds.
    """

    steps: list[Step]
    naive_forwards: int
    naive_s: float

    @property
    def seconds(self) -> float:
        """Estimated time of everything that is missing."""
        return sum(step.seconds for step in self.steps)


class Known:
    """What the steps are planned from: the stages over a store that builds nothing, rates, and sizes."""

    def __init__(self, stages: Stages, rates: Calibration) -> None:
        config = stages.config
        self.stages, self.rates, self.config = stages, rates, config
        self.is_analysis = config.stage not in ORDER and config.stage is not Stage.train_clip
        last = Stage.score if self.is_analysis else config.stage
        self.reached = ORDER[: ORDER.index(last) + 1] if last in ORDER else ()
        self.d_sae = stages.backbone.d_in * config.sae.expansion_factor
        own_truth = config.data.kind is DataKind.scenes and all(
            data == config.data for data, _ in stages.probe_groups()
        )
        self.probes = own_truth and Stage.probe in self.reached
        is_tested = self.probes or (self.is_analysis and config.stage is not Stage.outliers)
        self.splits = ("train", "test") if is_tested else ("train",)

    def exists(self, spec: Spec) -> bool:
        """Whether there is such an artifact."""
        return self.stages.store.find(spec) is not None

    def find(self, name: str, *args: Any) -> Any:
        """Return what a method of the stages (or analyses) gives if nothing has to be built for it, else None.

        Only for methods that ask the store before they work, as those that return one artifact do.
        """
        try:
            return getattr(self.stages, name)(*args)
        except MissingArtifact:
            return None

    def find_ranking(self, seed: int) -> Ranking | None:
        """Return the ranking of a seed if there is one."""
        found = self.stages.store.find(self.stages.rank_spec(seed))
        return None if found is None else Ranking.load(found.folder)

    def find_scores(self, seed: int) -> Scores | None:
        """Return the scores of a seed if there are any."""
        found = self.stages.store.find(self.stages.score_spec(seed))
        return None if found is None else Scores.load(found.folder)

    def distance_s(self, n_pairs: int, method: EMDMethod) -> float:
        """Seconds for the distances of one list of pairs."""
        if method is EMDMethod.sinkhorn:
            return n_pairs / self.rates.sinkhorn
        return n_pairs / (self.rates.distances * count_workers(n_pairs, self.config.scope.n_workers))

    def read_tokens(self, step: Step, n_images: int) -> Step:
        """Return a step with what it costs to read the tokens of some images: a forward of each if none are stored."""
        if self.config.data.store_tokens or not step.n_built:
            return step
        seconds = step.seconds + n_images / self.rates.images
        return replace(step, forwards=step.forwards + n_images, seconds=seconds)

    def crop_s(self, n_images: int, n_saes: int = 1) -> float:
        """Seconds for encoding both crops of some images and keeping the maps of some SAEs."""
        return n_images * (self.rates.cropped_s + (n_saes - 1) * self.rates.cropped_sae_s)
