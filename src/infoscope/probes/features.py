"""What classification reads, kept on disk: CLS of every variant, and means of images from which patch means follow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from infoscope.probes.config import ProbeConfig, Readout
from infoscope.probes.inputs import ProbeInputs
from infoscope.sae.edit import EditMode
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.ablations import Ablation

MEANS = "means"
"""Under what name the means of images lie; every other name is a variant's key."""
SHARES_FILE = "shares.json"

_BLOCK_IMAGES = 1024
"""Images whose vectors are formed or read at a time."""


class FeatureFolders:
    """Where the features of one run lie: folders in a folder.

    Args:
        root: an existing folder; what it holds already is not made again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self, names: Sequence[str], fill: Callable[[dict[str, Path], Path | None], None]) -> dict[str, Path]:
        """Return the folder of each name; those that are missing are made, and filled by one call.

        Args:
            fill: takes them, and where an interrupted call for the same ones goes on from (None: nowhere).
        """
        folders = {name: self.root / name for name in names}
        missing = {name: folder for name, folder in folders.items() if not folder.exists()}
        for folder in missing.values():
            folder.mkdir()
        if missing:
            fill(missing, None)
        return folders

    def check_disk(self, n_bytes: int) -> None:
        """Refuse what cannot fit. Here nothing is refused: a full disk is an OSError when it is full."""


@dataclass(frozen=True)
class ImageMeans:
    """Means over the patches of each image: of the tokens, and of their latent activations as sparse rows (CSR), times
    each token's factor where the SAE has a token norm.

    Files: `<split>-mean_x.npy` [n, d_in] float32, `<split>-indptr.npy` [n + 1] int64, `<split>-indices.npy` [n_entries]
    int32 (latents) and `<split>-values.npy` [n_entries] float32; image i has entries indptr[i] to indptr[i + 1]. With a
    token norm also `<split>-stats.npy` [n, 2] float32: the means of what it undoes, shift and factor.
    """

    x: Float32[np.ndarray, "n d_in"]
    indptr: Int[np.ndarray, " n_plus_1"]
    indices: Int[np.ndarray, " n_entries"]
    values: Float32[np.ndarray, " n_entries"]
    stats: Float32[np.ndarray, "n 2"] | None = None

    @classmethod
    def open(cls, folder: Path, split: str) -> ImageMeans:
        """Map the means of a split."""
        files = [folder / f"{split}-{name}.npy" for name in ("mean_x", "indptr", "indices", "values", "stats")]
        return cls(*(np.load(file, mmap_mode="r") for file in files[: 4 + files[4].exists()]))

    def __len__(self) -> int:
        return len(self.x)

    @torch.no_grad()
    def form_vectors(self, sae: SparseAutoencoder, variants: Sequence[Ablation]) -> Float[Tensor, "n_variants n d_in"]:
        """Return the mean of each image's edited patch tokens, where the SAE lies.

        An edit is linear in the latents, and so is a mean: mean(x) - (1/c) mean(z_G) W_dec where the SAE's error stays,
        mu + (mean(z_kept) W_dec + b_dec) / c where tokens are decoded (with a token norm, z has each token's factor s,
        b_dec its mean, and the mean shift is added). A variant that removes nothing and keeps the error gives mean(x)
        bit for bit. Work: a decoder row for each entry of a latent that is removed (or kept).
        """
        device = sae.W_dec.device
        removed = [torch.from_numpy(variant.ablated).to(device) for variant in variants]
        out = torch.empty(len(variants), *self.x.shape, device=device)
        for start in range(0, len(self), _BLOCK_IMAGES):
            rows = slice(start, start + _BLOCK_IMAGES)
            x = torch.from_numpy(np.array(self.x[rows])).to(device)
            ends = np.array(self.indptr[start : start + len(x) + 1])
            entries = slice(ends[0], ends[-1])
            indices = torch.from_numpy(self.indices[entries].astype(np.int64)).to(device)
            values = torch.from_numpy(np.array(self.values[entries])).to(device)
            bounds = torch.from_numpy(ends - ends[0]).to(device)
            base = sae.b_dec
            if self.stats is not None:
                shift, factor = torch.from_numpy(np.array(self.stats[rows])).to(device)[:, :, None].unbind(1)
                base = factor * sae.b_dec + shift
            for place, variant, group in zip(out[:, rows], variants, removed, strict=True):
                if variant.mode is EditMode.error_preserving:
                    part = _sum_rows(sae.W_dec, group, indices, values, bounds)
                    torch.sub(x, part / sae.scale, out=place)
                else:
                    kept = _sum_rows(sae.W_dec, ~group, indices, values, bounds)
                    place.copy_(sae.mean + (kept + base) / sae.scale)
        return out


def _sum_rows(
    W_dec: Float[Tensor, "d_sae d_in"],
    chosen: Bool[Tensor, " d_sae"],
    indices: Int[Tensor, " n_entries"],
    values: Float[Tensor, " n_entries"],
    bounds: Int[Tensor, " n_plus_1"],
) -> Float[Tensor, "n d_in"]:
    """Return z W_dec over the chosen latents alone, from sparse rows."""
    keep = chosen[indices]
    offsets = F.pad(keep.cumsum(0), (1, 0))[bounds[:-1]]
    return F.embedding_bag(indices[keep], W_dec, offsets, per_sample_weights=values[keep], mode="sum")


class Features:
    """The vectors of the images that classification reads, variant by variant.

    Args:
        folders: by variant key, and `MEANS`, as `write_features` filled them.
        rows: of each split's tokens, the images.
    """

    def __init__(
        self,
        inputs: ProbeInputs,
        config: ProbeConfig,
        folders: Mapping[str, Path],
        rows: Mapping[str, Int[np.ndarray, " n"]],
    ) -> None:
        self.sae, self.readouts, self.folders, self.rows = inputs.sae, config.readouts, folders, rows

    def shares(self, key: str) -> tuple[float, float]:
        """Return the shares of activation mass and of energy that a variant removes from the test tokens; NaN where
        there is nothing to remove."""
        mass, energy = json.loads((self.folders[key] / SHARES_FILE).read_text(encoding="utf-8"))
        return mass, energy

    def load(self, split: str, variants: Mapping[str, Ablation]) -> dict[str, Float[Tensor, "n_variants n d"]]:
        """Return {readout: one float32 vector for each variant and image} on the device.

        Args:
            split: "train" or "test".
            variants: by key.
        """
        vectors = {}
        for readout in self.readouts:
            if readout is Readout.patch_mean:
                means = ImageMeans.open(self.folders[MEANS], split)
                vectors[readout.name] = means.form_vectors(self.sae, list(variants.values()))
            else:
                files = [self.folders[key] / f"{split}-{readout.name}.npy" for key in variants]
                vectors[readout.name] = _load_arrays(files, self.sae.W_dec.device)
        return vectors


def _load_arrays(files: Sequence[Path], device: torch.device) -> Float[Tensor, "n_files n d"]:
    """Return arrays of one shape as one float32 tensor, read block by block."""
    arrays = [np.load(file, mmap_mode="r") for file in files]
    out = torch.empty(len(arrays), *arrays[0].shape, device=device)
    for place, array in zip(out, arrays, strict=True):
        for start in range(0, len(array), _BLOCK_IMAGES):
            block = torch.from_numpy(array[start : start + _BLOCK_IMAGES].astype(np.float32))
            place[start : start + len(block)] = block.to(device)
    return out
