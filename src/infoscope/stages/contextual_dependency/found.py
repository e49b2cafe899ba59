"""What `contextual_dependency` returns: scores, and how to go on from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from infoscope.data.config import DataConfig
from infoscope.data.images import ImageError, ImageSet
from infoscope.runtime.calls import convert, make_options, name_type, refuse_unknown, speaks_python
from infoscope.runtime.errors import InputError
from infoscope.sae.latent_table import LatentColumn, LatentTable
from infoscope.scope.agreement import partition_scores
from infoscope.scope.config import PartitionConfig
from infoscope.scope.partition import Partition
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores
from infoscope.stages.score.result import ScopeResult, list_columns, name_groups

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(repr=False)
class ContextualDependency:
    """What `contextual_dependency` found. A notebook shows it as numbers and a histogram.

    ranking: which images each latent fires on most, as positions in `image_ids`.
    mass: activation mass of each latent (mean over tokens of z * |W_dec|).
    scores: distances, masses and maps; scores for any k up to `scores.k_max` are arithmetic on them.
    k_cds: the k that `cds` and `chance` stand for.
    layer: the block that the SAE read, counted from 0.
    images: what was measured on, for `show`: files are read again, pictures that were given as arrays are held.
    patch_px: side of a patch in pixels.
    n_held_out: photographs that the split left out, as on the command line.
    skipped: images that could not be read, and why: {id: reason}.
    """

    ranking: Ranking
    mass: Float[np.ndarray, " d_sae"]
    scores: Scores
    k_cds: int
    layer: int
    images: ImageSet
    patch_px: int
    n_held_out: int
    skipped: dict[str, str]

    def __repr__(self) -> str:
        scored = int(np.isfinite(self.cds).sum())
        return (
            f"ContextualDependency({scored} of {self.ranking.d_sae} latents scored on {self.ranking.n_images} images,"
            f" {self.n_held_out} held out, {len(self.skipped)} skipped; layer={self.layer}, k_cds={self.k_cds})"
        )

    def _repr_html_(self) -> str:
        from infoscope.stages.contextual_dependency.page import write_found  # matplotlib is loaded when it is shown

        return write_found(self, self._halves)

    @property
    def cds(self) -> Float[np.ndarray, " d_sae"]:
        """Contextual dependency score per latent, 0..1; NaN where unscored."""
        return self.scores.cds(self.k_cds).values

    @property
    def chance(self) -> Float[np.ndarray, " d_sae"]:
        """Chance level of each latent's score."""
        return self.scores.chance(self.k_cds)

    @property
    def emd(self) -> Float[np.ndarray, "d_sae k_max"]:
        """Normalised distances per latent and rank."""
        return self.scores.emd

    @property
    def image_ids(self) -> list[str]:
        """What the images are called: paths below the folder, keys in tars, files of a list, or numbers."""
        return self.images.image_ids

    @speaks_python(partition=PartitionConfig)
    def divide(self, **options: Any) -> Partition:
        """Divide the latents into high and low scope, as `partition=...` does on the command line.

        Args:
            options: fields of `PartitionConfig`: gamma=0.1, quantile=0.5, n_bands=4, rule="otsu", mass_share=0.5,
                decided_only=True. None: gamma is where the activation mass divides, half and half.

        Raises:
            InputError: an option that does not exist, is out of range or has nothing to do with the rule.
        """
        refuse_unknown(options, [one.name for one in fields(PartitionConfig) if one.name != "by"], "divide")
        return partition_scores(self.emd, self.k_cds, self.mass, make_options(PartitionConfig, options))

    @speaks_python(data=DataConfig)
    def show(
        self,
        latent: int,
        n_images: int = 8,
        *,
        ranks: Sequence[int] | None = None,
        groups: Partition | None = None,
    ) -> Figure:
        """Draw a latent's top images as pairs of crops with its map over each; needs matplotlib.

        The best image comes first. A notebook shows what a cell ends with; elsewhere, `.savefig("latent.png")`. Of a
        latent that never fires the figure says so; one without a score is drawn, and how many of its pairs have a
        distance stands over it.

        Args:
            latent: index into the SAE.
            n_images: how many at most; there are `scores.k_max`.
            ranks: which images instead, 0 being the best.
            groups: what `divide` returned, to name the latent's group by; None: halves of the activation mass.

        Raises:
            InputError: no such latent or rank, groups of something else, an image that cannot be read any more.
        """
        from infoscope.stages.contextual_dependency.figure import draw_latent  # matplotlib is loaded with it

        d_sae, latent = self.ranking.d_sae, convert("latent", latent, int)
        if not 0 <= latent < d_sae:
            raise InputError(f"Expected latent= in 0..{d_sae - 1}, for the SAE has {d_sae:,} latents, got {latent}.")
        chosen = self._choose_ranks(latent, convert("n_images", n_images, int), ranks)
        scope = self._summarise(groups)
        try:
            return draw_latent(
                scope, latent, name_groups(scope)[latent], self.ranking, self.images, self.patch_px, chosen
            )
        except ImageError as error:
            raise InputError(
                f"Cannot read the image {error.file} ({error.reason}), one of those that were measured: put it back, or"
                " measure again."
            ) from error

    def table(self, groups: Partition | None = None) -> LatentTable:
        """Return a row per latent: scores, group, firing rate and mass, as `load_latents` gives them of a run.

        Args:
            groups: what `divide` returned; None: halves of the activation mass.

        Raises:
            InputError: groups of something else.
        """
        rate, mass = "share of patch tokens", "activation times norm of the decoder row, per patch token"
        table = LatentTable(None)
        table.add("score", list_columns(self._summarise(groups)))
        table.add("rank", [LatentColumn("firing_rate", self.ranking.firing_rate, "firing frequency", rate)])
        table.add("rank", [LatentColumn("mass", self.mass, "activation mass", mass)])
        return table

    def to_pandas(self, groups: Partition | None = None) -> Any:
        """Return `table` as a pandas data frame, the latent being the index, with the ids of its images, best first.

        The column `top_images` holds up to `k_cds` of them.

        Args:
            groups: what `divide` returned; None: halves of the activation mass.

        Raises:
            InputError: pandas is not installed, or groups of something else.
        """
        frame, ids = self.table(groups).to_pandas(), self.image_ids
        top = self.ranking.top_images[:, : self.k_cds].tolist()
        return frame.assign(top_images=[[ids[image] for image in row if image >= 0] for row in top])

    @cached_property
    def _halves(self) -> ScopeResult:
        return self._divided(self.divide(), PartitionConfig().rule_in_words)

    def _summarise(self, groups: Partition | None) -> ScopeResult:
        """Return what tables and figures read, with some groups."""
        if groups is None:
            return self._halves
        if not isinstance(groups, Partition):
            raise InputError(f"Expected groups= to be what divide() returns, got {name_type(groups)}.")
        n, d_sae = len(groups.unscored), self.ranking.d_sae
        if n != d_sae:
            raise InputError(f"Expected groups= of this SAE's {d_sae:,} latents, got those of {n:,}.")
        return self._divided(groups, "as given")

    def _divided(self, groups: Partition, rule: str) -> ScopeResult:
        of_latents = self.cds, self.scores, self.mass, self.ranking.firing_rate
        return ScopeResult(0, self.k_cds, *of_latents, partition=groups, rule=rule)

    def _choose_ranks(self, latent: int, n_images: int, ranks: Sequence[int] | None) -> Int[np.ndarray, " n"]:
        n = int((self.ranking.top_images[latent] >= 0).sum())
        if n_images < 1:
            raise InputError(f"Expected n_images to be at least 1, got {n_images}.")
        if ranks is None or n == 0:
            return np.arange(min(n, n_images))
        chosen = convert("ranks", list(ranks) if isinstance(ranks, range) else ranks, list[int])
        if not chosen or not all(0 <= rank < n for rank in chosen):
            raise InputError(f"Expected ranks= to be some of 0..{n - 1}, the images of latent {latent}, got {chosen}.")
        return np.array(chosen)
