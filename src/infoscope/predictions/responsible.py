"""Which features of an ablated group a prediction depended on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool

from infoscope.predictions.config import PredictConfig
from infoscope.predictions.inputs import PredictInputs, TokenEditor
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.runtime.parts import Part
from infoscope.sae.edit import EditMode
from infoscope.sae.metrics import compute_row_norms
from infoscope.vision.backbone import Tokens

N_NAMED = 3


class ResponsibleFeature(NamedTuple):
    """latent: of the SAE. drop: fall of the log-odds when it alone is removed."""

    latent: int
    drop: float


class Explanation(NamedTuple):
    """Why a prediction fell.

    rival: the class that is most probable, but for the old one, without the whole group.
    drop: fall of the log-odds of the old class against the rival, ln(p_old / p_rival), without the whole group.
    features: at most three of the group, the largest fall first; none where the group is silent in the image.
    """

    rival: int
    drop: float
    features: tuple[ResponsibleFeature, ...]

    def to_part(self) -> Part:
        """Return it as tensors, for `from_part`."""
        numbers = torch.tensor([self.rival, self.drop, *(drop for _, drop in self.features)], dtype=torch.float64)
        return {"numbers": numbers, "latents": torch.tensor([one.latent for one in self.features], dtype=torch.int64)}

    @classmethod
    def from_part(cls, part: Part) -> Explanation:
        """Return what `to_part` was of."""
        rival, drop, *drops = part["numbers"].tolist()
        features = zip(part["latents"].tolist(), drops, strict=True)
        return cls(int(rival), drop, tuple(ResponsibleFeature(*one) for one in features))


@torch.no_grad()
def explain_change(
    inputs: PredictInputs,
    head: ZeroShotHead,
    row: int,
    removed: Bool[np.ndarray, " d_sae"],
    old_class: int,
    config: PredictConfig,
) -> Explanation:
    """Find the features of a group whose ablation, each alone, costs the old class of one image most.

    Only the group's `config.n_candidates` features that write most into the image's tokens are tried (|activation|
    times the norm of the decoder row, summed over the tokens), so an image costs that many forwards; on the scenes 64
    of them name the same features as all. Log-odds and not the logit, which may fall with all the others and change
    nothing; nor the probability, which stays at 1 while a sure prediction loses ground. Features act together, so the
    drops need not sum to what the whole group does.

    Args:
        row: of the tokens.
    """
    tokens = inputs.load(np.array([row]))
    editor = TokenEditor(inputs, tokens)
    candidates = _find_active(inputs, editor, removed, config.n_candidates)
    groups = torch.zeros(1 + len(candidates), inputs.sae.d_sae, dtype=torch.bool, device=inputs.device)
    groups[0] = torch.from_numpy(removed)
    groups[range(1, len(groups)), candidates] = True
    log_p = [head.log_probabilities(inputs.backbone.embed_tokens(tokens, inputs.layer))]
    for batch in groups.split(config.batch_images):
        versions = [editor.edit(group, EditMode.error_preserving) for group in batch]
        joined = Tokens(torch.cat([v.prefix for v in versions]), torch.cat([v.patches for v in versions]))
        log_p.append(head.log_probabilities(inputs.backbone.embed_tokens(joined, inputs.layer)))
    odds = torch.cat(log_p)
    odds = odds[:, old_class, None] - odds
    odds[:, old_class] = torch.inf
    rival = int(odds[1].argmin())
    drops = (odds[0, rival] - odds[1:, rival]).tolist()
    found = [ResponsibleFeature(latent, drop) for latent, drop in zip(candidates, drops[1:], strict=True)]
    return Explanation(rival, drops[0], tuple(sorted(found, key=lambda feature: -feature.drop)[:N_NAMED]))


def _find_active(
    inputs: PredictInputs, editor: TokenEditor, removed: Bool[np.ndarray, " d_sae"], n_candidates: int
) -> list[int]:
    """Return the latents of a group that are active in these tokens, those that write most first."""
    values, indices = editor.editor.written
    total = torch.zeros(inputs.sae.d_sae, device=inputs.device)
    total.index_add_(0, indices.flatten(), values.flatten().abs())
    total *= torch.from_numpy(removed * compute_row_norms(inputs.sae.W_dec)).to(total)
    order = total.argsort(descending=True, stable=True)[:n_candidates]
    return [latent for latent in order.tolist() if total[latent] > 0]
