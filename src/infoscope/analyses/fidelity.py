"""How faithfully an SAE gives back tokens: in the tokens' own terms, and by what a zero-shot head makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64
from torch import Tensor

from infoscope.predictions.inputs import put_tokens, take_tokens
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.errors import InputError
from infoscope.runtime.profile import Kind, counted, spent_on
from infoscope.runtime.progress import Advance, ignore
from infoscope.sae.config import TokenChoice
from infoscope.sae.edit import GroupEditor
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import check_edits, check_tokens
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.tokens.source import TokenSource

VERSIONS = ("tokens", "reconstruction", "zeros", "mean")
"""What the head is shown: the tokens as they are; in place of those that the SAE reads its reconstruction, zeros, or
the data set's mean token, the SAE's `centre`. Zeros are Prisma's baseline (Joseph et al., 2025); the mean is ours:
zeros may lie far from all tokens."""


@dataclass(frozen=True)
class FidelityResult:
    """How faithfully an SAE gives back the tokens that it reads, of all images of a split.

    n_tokens: how many were read.
    fvu: squared error / squared deviation from the data set's mean (`centre`), each summed over all tokens.
    fvu_per_token: MSAE's reading (Zaigrajew et al., 2025): var(x - x_hat) / var(x) over the components of a token, mean
        over tokens; the mean of a token's own components counts in neither, and tokens without variance are left out.
    cosine_raw: cosine of x and x_hat, mean over tokens; the mean direction alone makes it high.
    cosine_centred: the same of both deviations from the mean token (ours).
    l0: mean number of latents that write into a token.
    alive_share: share of the latents that fire, above 0, on one of the tokens at least.
    n_classes: that the head chooses from; 0: it was not asked.
    image_index: [n_images] positions of the images that the head was asked about.
    cross_entropy: [4, n_images] -ln p of the image's own class, in nats, for each of `VERSIONS`.
    is_right: [4, n_images] whether that class has the largest probability.
    """

    n_tokens: int
    fvu: float
    fvu_per_token: float
    cosine_raw: float
    cosine_centred: float
    l0: float
    alive_share: float
    n_classes: int
    image_index: Int64[np.ndarray, " n_images"]
    cross_entropy: Float32[np.ndarray, "4 n_images"]
    is_right: Bool[np.ndarray, "4 n_images"]

    @property
    def explained_variance(self) -> float:
        """1 - FVU; below 0 where the mean token would be nearer."""
        return 1 - self.fvu

    @property
    def has_predictions(self) -> bool:
        """Whether a zero-shot head was asked."""
        return self.n_classes > 0

    def mean_cross_entropy(self, version: str) -> float:
        """Return the mean over images, in nats; NaN where the head was not asked."""
        values = self.cross_entropy[VERSIONS.index(version)]
        return float(values.mean(dtype=np.float64)) if len(values) else np.nan

    def top1(self, version: str) -> float:
        """Return the share of images whose class is predicted; NaN where the head was not asked."""
        right = self.is_right[VERSIONS.index(version)]
        return float(right.mean()) if len(right) else np.nan

    def recovered(self, baseline: str = "zeros") -> float:
        """Return the share of the cross-entropy lost to a baseline that the reconstruction wins back.

        (CE_0 - CE_hat) / (CE_0 - CE): 1 as good as the tokens, 0 as bad as the baseline; above 1 or below 0 where it is
        better or worse than these. NaN where the baseline costs nothing, CE_0 <= CE, or the head was not asked.
        """
        tokens, reconstruction, without = (self.mean_cross_entropy(v) for v in ("tokens", "reconstruction", baseline))
        return (without - reconstruction) / (without - tokens) if without > tokens else np.nan

    def save(self, folder: Path) -> None:
        """Write `fidelity.npz` and `fidelity.json` into a folder."""
        save_result(folder, "fidelity", vars(self))

    @classmethod
    def load(cls, folder: Path) -> FidelityResult:
        """Return what `save` wrote."""
        arrays, facts = load_result(folder, "fidelity")
        return cls(**arrays, **facts)


@dataclass(frozen=True)
class ZeroShotTest:
    """What tells how much of a prediction is left after a replacement of tokens.

    backbone: goes on from the replaced tokens.
    layer: the hooked block, negative from the end.
    head: asked for the class, with the model's own scale.
    rows: of the tokens; the images that are asked about.
    labels: of every row of the tokens, 0..n_classes - 1.
    """

    backbone: Backbone
    layer: int
    head: ZeroShotHead
    rows: Int[np.ndarray, " n_images"]
    labels: Int[np.ndarray, " n_rows"]

    def ask(self, tokens: Tokens, labels: Int64[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        """Return -ln p of each image's label, and whether it is the prediction.

        Raises:
            InputError: NaN or Inf in a prediction.
        """
        with spent_on(Kind.forward):
            log_p = self.head.log_probabilities(self.backbone.embed_tokens(tokens, self.layer))
        if not torch.isfinite(log_p).all():
            raise InputError("The predictions hold NaN or Inf: check the SAE and the tokens it was trained on.")
        return -log_p.gather(-1, labels[:, None])[:, 0], log_p.argmax(-1) == labels


@torch.no_grad()
def measure_fidelity(
    saes: Sequence[SparseAutoencoder],
    tokens: TokenSource,
    reads: TokenChoice = TokenChoice.patch,
    zero_shot: ZeroShotTest | None = None,
    batch_images: int = 32,
    progress: Advance = ignore,
    other_weights: bool = False,
) -> list[FidelityResult]:
    """Return how faithfully each of some SAEs gives back the tokens of all images of a split, in one reading of them.

    Args:
        reads: which tokens the SAEs were trained on: these are measured and replaced, all others stay as they are.
        zero_shot: None: no head is asked.
        batch_images: read, and sent through the remaining blocks, at a time: changes nothing beyond rounding.
        progress: called with (images done, all images).
        other_weights: see `check_tokens`.

    Raises:
        InputError: no image, an SAE of other tokens, NaN or Inf in a prediction, or as `Backbone.embed_tokens`.
    """
    for sae in saes:
        check_tokens(sae, tokens, other_weights=other_weights)
        check_edits(sae, reads is not TokenChoice.cls, reads is not TokenChoice.patch)
    if len(tokens) == 0:
        raise InputError("Expected at least one image to measure the SAE on, got none.")
    meters, device = [_TokenMeter(sae) for sae in saes], saes[0].W_dec.device
    asked = np.isin(np.arange(len(tokens)), [] if zero_shot is None else zero_shot.rows)
    answers: list[list[Tensor]] = [[] for _ in saes]
    for rows, batch in counted(Kind.reading, tokens.iterate(np.arange(len(tokens)), batch_images)):
        batch = Tokens(batch.prefix.to(device), batch.patches.to(device))
        for sae, meter, of_sae in zip(saes, meters, answers, strict=True):
            editor = GroupEditor(sae, take_tokens(batch, reads))
            meter.update(editor)
            if zero_shot is not None and asked[rows].any():
                of_sae.append(_ask_all(zero_shot, batch, editor, reads, rows, asked[rows]).cpu())
        progress(int(rows[-1]) + 1, len(tokens))
    n_classes = 0 if zero_shot is None else len(zero_shot.head.class_names)
    image_index = np.asarray(tokens.image_index[asked], dtype=np.int64)
    return [_join(*one, n_classes, image_index) for one in zip(meters, answers, strict=True)]


def _join(
    meter: _TokenMeter, answers: Sequence[Tensor], n_classes: int, image_index: Int64[np.ndarray, " n_images"]
) -> FidelityResult:
    """Return what was found of an SAE.

    Args:
        answers: of each batch that has images which are asked about, [2, 4, n_asked].
    """
    entropies, right = torch.cat(list(answers), dim=2).numpy() if answers else np.zeros((2, len(VERSIONS), 0))
    return FidelityResult(
        meter.n_tokens,
        **meter.compute(),
        n_classes=n_classes,
        image_index=image_index,
        cross_entropy=entropies.astype(np.float32),
        is_right=right.astype(bool),
    )


def _ask_all(
    zero_shot: ZeroShotTest,
    tokens: Tokens,
    editor: GroupEditor,
    reads: TokenChoice,
    rows: Int[np.ndarray, " batch"],
    asked: Bool[np.ndarray, " batch"],
) -> Float[Tensor, "2 4 n_asked"]:
    """Return the cross-entropy of some images of a batch, and whether each is right, for each of `VERSIONS`."""
    x, chosen = editor.x, torch.from_numpy(asked).to(editor.x.device)
    labels = torch.from_numpy(np.asarray(zero_shot.labels[rows[asked]], dtype=np.int64)).to(x.device)
    kept = Tokens(tokens.prefix[chosen], tokens.patches[chosen])
    versions: Sequence[Tensor] = (x, editor.x_hat, torch.zeros_like(x), editor.sae.centre.expand_as(x))
    answers = [zero_shot.ask(put_tokens(kept, one[chosen], reads), labels) for one in versions]
    return torch.stack([torch.stack([one.float() for one in of]) for of in zip(*answers, strict=True)])


class ReconstructionMeter:
    """How near reconstructions are to tokens: sums over tokens in float64.

    Args:
        centre: what deviations are counted from, the SAE's `centre`.
    """

    def __init__(self, centre: Float[Tensor, " d_in"]) -> None:
        self.centre, self.n_tokens = centre, 0
        self.sums = torch.zeros(6, dtype=torch.float64, device=centre.device)

    def update(self, x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"]) -> None:
        """Add some tokens and their reconstructions, in raw units."""
        error, deviation = x - x_hat, x - self.centre
        variance = x.var(-1)
        varies = variance > 0
        parts = (
            error.square(),
            deviation.square(),
            torch.where(varies, error.var(-1) / variance, 0),
            varies,
            torch.cosine_similarity(x, x_hat, dim=-1),
            torch.cosine_similarity(deviation, x_hat - self.centre, dim=-1),
        )
        self.sums += torch.stack([part.sum(dtype=torch.float64) for part in parts])
        self.n_tokens += len(x)

    def compute(self) -> dict[str, float]:
        """Return the numbers by name, as in `FidelityResult`."""
        error, total, ratios, n_varying, cosine_raw, cosine_centred = self.sums.tolist()
        return {
            "fvu": error / total if total > 0 else np.nan,
            "fvu_per_token": ratios / n_varying if n_varying else np.nan,
            "cosine_raw": cosine_raw / self.n_tokens,
            "cosine_centred": cosine_centred / self.n_tokens,
        }


class _TokenMeter:
    """How well an SAE reconstructs tokens, and what fires on them."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        device = sae.W_dec.device
        self.reconstruction = ReconstructionMeter(sae.centre)
        self.n_active = torch.zeros((), dtype=torch.int64, device=device)
        self.fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=device)

    def update(self, editor: GroupEditor) -> None:
        """Add a batch of tokens."""
        self.reconstruction.update(*(part.flatten(0, -2) for part in (editor.x, editor.x_hat)))
        self.n_active += (editor.acts.values != 0).sum()
        self.fired[editor.acts.indices[editor.acts.values > 0]] = True

    @property
    def n_tokens(self) -> int:
        """How many were added."""
        return self.reconstruction.n_tokens

    def compute(self) -> dict[str, float]:
        """Return the numbers by name, as in `FidelityResult`."""
        return {
            **self.reconstruction.compute(),
            "l0": self.n_active.item() / self.n_tokens,
            "alive_share": self.fired.double().mean().item(),
        }
