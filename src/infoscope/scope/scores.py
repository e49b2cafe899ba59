"""What scoring leaves: distances, masses and maps per latent and rank, and the scores that are arithmetic on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from infoscope.runtime.arrays import load_result, save_result
from infoscope.scope.cds import CDS, compute_cds
from infoscope.scope.config import Diagonal
from infoscope.scope.sparse_maps import SparseMaps


@dataclass
class Scores:
    """Distances between the maps of two shifted crops, for every latent and rank.

    emd: [d_sae, k_max] in units of D_grid, 0..1; NaN where a map is all zero or there is no image.
    mass1, mass2: [d_sae, k_max] summed activation on the shared region of crop 1 and 2; NaN where there is no image.
    chance_emd: [d_sae, k_max] as `emd`, but map 1 at this rank against map 2 at the latent's next valid rank, the last
        against the first; NaN where the latent has fewer than two valid pairs.
    maps: [d_sae, k_max, 2, grid, grid] activation on all patches of both crops, raw; 0 where there is no image. Sparse
        where they were measured: `maps[latents, ranks]` makes some of them an array, `np.asarray(maps)` all.
    """

    emd: Float[np.ndarray, "d_sae k_max"]
    mass1: Float[np.ndarray, "d_sae k_max"]
    mass2: Float[np.ndarray, "d_sae k_max"]
    chance_emd: Float[np.ndarray, "d_sae k_max"]
    maps: SparseMaps | Float[np.ndarray, "d_sae k_max 2 grid grid"]
    grid: int
    shift_patches: int
    diagonal: Diagonal = Diagonal.main

    @property
    def k_max(self) -> int:
        """Ranks that were scored: k may be anything up to this."""
        return self.emd.shape[1]

    def cds(self, k: int) -> CDS:
        """Return the scores over the first `k` ranks (see `compute_cds`)."""
        return compute_cds(self.emd, k)

    def chance(self, k: int) -> Float[np.ndarray, " d_sae"]:
        """Return each latent's chance level over the first `k` ranks, NaN by the same rule as the score."""
        return compute_cds(self.chance_emd, k).values

    def save(self, folder: Path) -> None:
        """Write one .npy file per array, three for the maps, and scores.json into `folder` (made if missing)."""
        maps = SparseMaps.of(self.maps) if isinstance(self.maps, np.ndarray) else self.maps
        save_result(folder, "scores", {name: of for name, of in vars(self).items() if name != "maps"}, one_by_one=True)
        maps.save(folder)

    @classmethod
    def load(cls, folder: Path) -> Scores:
        """Read what `save` wrote; `maps` stay on disk, memory-mapped and read-only."""
        arrays, facts = load_result(folder, "scores", ("emd", "mass1", "mass2", "chance_emd"))
        diagonal = Diagonal[facts.pop("diagonal", Diagonal.main.name)]  # early files do not name it
        dense = folder / "maps.npy"  # of early files
        maps = np.load(dense, mmap_mode="r") if dense.exists() else SparseMaps.load(folder, facts["grid"])
        return cls(**arrays, maps=maps, **facts, diagonal=diagonal)
