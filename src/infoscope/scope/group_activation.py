"""How strongly each group of features acts on outlier and on normal tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from infoscope.runtime.parts import Part, compute_parts, cut_images
from infoscope.sae.model import SparseAutoencoder, sum_decoder_rows
from infoscope.sae.origin import check_tokens
from infoscope.scope.emd import ProgressHook
from infoscope.vision.token_source import TokenSource

BATCH_TOKENS = 2**14
"""Tokens through the SAE at a time."""


@dataclass(frozen=True)
class GroupActivation:
    """How strongly groups of one SAE's features act on outlier tokens and on normal ones.

    names: of the groups.
    n_features: latents in each.
    on_outlier, on_normal: summed activation of the group per token, mean over the tokens of that kind, in SAE units;
        NaN without such tokens.
    all_on_outlier, all_on_normal: the same of all latents together.
    n_outlier, n_normal: tokens of either kind.
    """

    names: tuple[str, ...]
    n_features: Int[np.ndarray, " n_groups"]
    on_outlier: Float[np.ndarray, " n_groups"]
    on_normal: Float[np.ndarray, " n_groups"]
    all_on_outlier: float
    all_on_normal: float
    n_outlier: int
    n_normal: int

    @property
    def ratio(self) -> Float[np.ndarray, " n_groups"]:
        """Activation on outlier tokens / on normal ones; NaN where the latter is 0."""
        return np.divide(
            self.on_outlier, self.on_normal, out=np.full(len(self.names), np.nan), where=self.on_normal > 0
        )

    def save(self, folder: Path) -> None:
        """Write group_activation.npz and group_activation.json into `folder` (made if missing)."""
        folder.mkdir(parents=True, exist_ok=True)
        values = dict(vars(self))
        facts = {name: values.pop(name) for name in ("names", "n_outlier", "n_normal")}
        np.savez(folder / "group_activation.npz", **values)
        (folder / "group_activation.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> GroupActivation:
        """Read what `save` wrote."""
        facts = json.loads((folder / "group_activation.json").read_text(encoding="utf-8"))
        with np.load(folder / "group_activation.npz", allow_pickle=False) as file:
            values = {name: array if array.ndim else array.item() for name, array in file.items()}
        return cls(names=tuple(facts.pop("names")), **facts, **values)


@torch.inference_mode()
def compute_group_activation(
    sae: SparseAutoencoder,
    tokens: TokenSource,
    groups: Mapping[str, Bool[np.ndarray, " d_sae"]],
    threshold: float,
    progress: ProgressHook | None = None,
    progress_folder: Path | None = None,
) -> GroupActivation:
    """Average each group's summed activation over the outlier tokens and over the normal ones of a whole split.

    Args:
        groups: by name, masks over the latents; they may be empty, and may overlap.
        threshold: tokens of a greater raw norm are outliers.
        progress: called with (row up to which images are encoded, all images).
        progress_folder: see `compute_parts`.

    Raises:
        InputError: if the SAE was trained on other tokens.
    """
    check_tokens(sae, tokens)
    device = sae.W_enc.device
    everyone = np.ones(sae.d_sae, dtype=bool)
    members = torch.from_numpy(np.stack([*groups.values(), everyone], axis=1)).to(device, torch.float32)
    parts, batch_images = cut_images(len(tokens)), max(1, BATCH_TOKENS // tokens.norms.shape[1])

    def add_up(number: int) -> Part:
        sums = torch.zeros(2, members.shape[1], dtype=torch.float64, device=device)  # normal, outlier
        for rows, read in tokens.iterate(np.arange(len(tokens))[parts[number]], batch_images):
            acts = sae.encode_sparse(read.patches.flatten(0, 1).to(device))
            by_group = sum_decoder_rows(acts, members).double()  # the sum over a group's latents, of each token
            is_outlier = torch.from_numpy(tokens.norms[rows] > threshold).to(device)
            sums.index_add_(0, is_outlier.flatten().long(), by_group)
            if progress is not None:
                progress(int(rows[-1]) + 1, len(tokens))
        return {"sums": sums}

    sums = np.zeros((2, members.shape[1]))
    for part in compute_parts(len(parts), add_up, progress_folder, "sums"):
        sums += part["sums"].numpy()
    n_outlier = int((tokens.norms > threshold).sum())
    counts = np.array([[tokens.norms.size - n_outlier], [n_outlier]])
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return GroupActivation(
        names=tuple(groups),
        n_features=np.array([mask.sum() for mask in groups.values()], dtype=np.int64),
        on_outlier=means[1, :-1],
        on_normal=means[0, :-1],
        all_on_outlier=float(means[1, -1]),
        all_on_normal=float(means[0, -1]),
        n_outlier=n_outlier,
        n_normal=int(counts[0, 0]),
    )
