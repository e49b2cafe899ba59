"""What a latent does to predictions: one latent set to a high value on all patches (after Steering CLIP).

Of latent j, with activations z_tj on the patch tokens t of an image, the SAE's error kept:

    x'_t = x_t + s_t (level_j - z_tj) W_dec[j] / scale

where level_j is a high quantile of the latent's own peaks in training images, s_t the token's factor and `scale` the
SAE's. p and p' are the zero-shot head's probabilities of V words before and after. The word of a latent is the one
whose log p rises most in the mean over images, its effect that rise in nats, its specificity by how much the entropy
of p falls, as a share of ln V. It is steerable if the log p of this one word rises by more than `min_effect` in at
least a share of `min_share` of the images (ours: the formula behind the published shares is not known to us).

Any push of that length may raise some word, so each latent has a twin: the same push along a random direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from infoscope.analyses.image_codes import ImageCodes
from infoscope.predictions.inputs import PredictInputs, put_tokens, take_tokens
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Part, compute_parts, cut
from infoscope.runtime.profile import Kind, counted, spent_on
from infoscope.sae.config import TokenChoice
from infoscope.sae.edit import GroupEditor
from infoscope.scope.ablations import Progress, choose_rows, no_progress
from infoscope.vision.backbone import Tokens

LATENT, RANDOM = range(2)
"""Along what tokens are pushed: the latent's decoder row, or a random direction of its length."""
_PART_LATENTS = 64
_ENTRIES_AT_ONCE = 2**24


@dataclass(frozen=True)
class SteeringResult:
    """What single latents do to predictions, of one SAE. Arrays [2, n] are of `LATENT` and of `RANDOM`.

    words: what the head chooses from.
    min_effect, min_share: see above. n_images: test images.
    before: entropy of p in the mean over images, as a share of ln V.
    measured: the latents, ascending. levels: to which they are set, in the SAE's own units.
    word: place in `words` of the one that is raised most. effect: by how much, in nats, mean over images.
    consistency: share of images in which it rises by more than `min_effect`.
    specificity: fall of the entropy of p, mean over images, as a share of ln V; below 0: predictions are less decided.
    taken: share of images in which the word is predicted then. taken_before: without steering.
    """

    words: tuple[str, ...]
    min_effect: float
    min_share: float
    n_images: int
    d_sae: int
    before: float
    measured: Int64[np.ndarray, " n"]
    levels: Float64[np.ndarray, " n"]
    word: Int64[np.ndarray, "2 n"]
    effect: Float64[np.ndarray, "2 n"]
    consistency: Float64[np.ndarray, "2 n"]
    specificity: Float64[np.ndarray, "2 n"]
    taken: Float64[np.ndarray, "2 n"]
    taken_before: Float64[np.ndarray, "2 n"]

    @property
    def is_steerable(self) -> Bool[np.ndarray, "2 n"]:
        """Whether one word rises enough in enough images."""
        return self.consistency >= self.min_share

    def spread(self, values: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " d_sae"]:
        """Return values of the measured latents at their places among all; NaN elsewhere."""
        spread = np.full(self.d_sae, np.nan)
        spread[self.measured] = values
        return spread

    def save(self, folder: Path) -> None:
        """Write steering.npz and steering.json into an existing folder."""
        save_result(folder, "steering", vars(self), compressed=True)

    @classmethod
    def load(cls, folder: Path) -> SteeringResult:
        """Read what `save` wrote."""
        arrays, facts = load_result(folder, "steering")
        return cls(**{**arrays, **facts, "words": tuple(facts["words"])})


def choose_latents(codes: ImageCodes, n_latents: int | None, seed: int) -> Int64[np.ndarray, " n"]:
    """Return latents that fire in some image, ascending: all, or as many as wanted, drawn at random."""
    fires = np.zeros(codes.d_sae, dtype=bool)
    for start in range(0, len(codes.latents), _ENTRIES_AT_ONCE):
        fires[codes.latents[start : start + _ENTRIES_AT_ONCE]] = True
    alive = np.flatnonzero(fires)
    return alive[choose_rows(len(alive), n_latents, seed)]


def find_levels(codes: ImageCodes, latents: Int64[np.ndarray, " n"], quantile: float) -> Float64[np.ndarray, " n"]:
    """Return a quantile of each latent's largest activation in an image, of the images in which it fires.

    Args:
        latents: ascending; each fires in some image. None where none fires.
        quantile: 0..1.
    """
    if not len(latents):
        return np.empty(0)
    place = np.full(codes.d_sae, -1, dtype=np.int64)
    place[latents] = np.arange(len(latents))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(codes.latents), _ENTRIES_AT_ONCE):
        some = slice(start, start + _ENTRIES_AT_ONCE)
        of = place[codes.latents[some]]
        found.append((of[of >= 0], np.asarray(codes.peaks[some], dtype=np.float64)[of >= 0]))
    of, peaks = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(of, kind="stable")
    starts = np.searchsorted(of[order], np.arange(len(latents) + 1))
    return np.array([np.quantile(peaks[order[a:b]], quantile) for a, b in pairwise(starts)])


@dataclass(frozen=True)
class SteeringInputs:
    """What is steered, and how it is judged.

    inputs: the SAE, the tokens of the test images, the backbone that goes on from them.
    latents: ascending. levels: to which they are set, in the SAE's own units.
    n_images: test images, drawn at random with `seed`, which also draws the random directions.
    """

    inputs: PredictInputs
    head: ZeroShotHead
    latents: Int64[np.ndarray, " n"]
    levels: Float64[np.ndarray, " n"]
    n_images: int = 32
    min_effect: float = 1.0
    min_share: float = 0.8
    seed: int = 0


class Steerer:
    """Some images, and what is predicted of them with a latent at another value."""

    def __init__(self, inputs: PredictInputs, head: ZeroShotHead, rows: np.ndarray, batch_images: int) -> None:
        self.inputs, self.head, self.batches = inputs, head, []
        for _, tokens in counted(Kind.reading, inputs.iterate(rows, batch_images)):
            self.batches.append((tokens, GroupEditor(inputs.sae, take_tokens(tokens, inputs.reads))))

    @torch.no_grad()
    def predict(
        self, latent: int | None = None, level: float = 0.0, direction: Float[Tensor, " d_in"] | None = None
    ) -> Float[Tensor, "n_images n_words"]:
        """Return log p of the words in every image.

        Args:
            latent: which is set on all patch tokens; None: nothing is changed.
            level: to what, in the SAE's own units.
            direction: along which tokens are pushed, None: the latent's decoder row.
        """
        found = []
        for tokens, editor in self.batches:
            read = editor.x if latent is None else self._set(tokens, editor, latent, level, direction)
            whole = put_tokens(tokens, read, self.inputs.reads)
            with spent_on(Kind.forward):
                embeddings = self.inputs.backbone.embed_tokens(whole, self.inputs.layer).float()
            found.append(self.head.log_probabilities(embeddings).double())
        return torch.cat(found)

    def _set(
        self, tokens: Tokens, editor: GroupEditor, latent: int, level: float, direction: Tensor | None
    ) -> Float[Tensor, "batch n_read d_in"]:
        sae, x = self.inputs.sae, editor.x
        (values, indices), factor = editor.acts, sae.token_factor(x)
        push = (level - (values * (indices == latent)).sum(-1)).view(*x.shape[:-1], 1)
        push = push if factor is None else push * factor
        if self.inputs.reads is TokenChoice.all:
            push[:, : tokens.prefix.shape[1]] = 0
        along = sae.W_dec[latent] if direction is None else direction
        return x + push * (along / sae.scale)


def draw_direction(row: Float[Tensor, " d_in"], seed: int, latent: int) -> Float[Tensor, " d_in"]:
    """Return a random direction as long as a decoder row."""
    drawn = torch.from_numpy(np.random.default_rng([seed, 31, latent]).standard_normal(len(row))).to(row)
    return drawn * (row.norm() / drawn.norm())


def measure_steering(
    wanted: SteeringInputs, batch_images: int, progress: Progress = no_progress, folder: Path | None = None
) -> SteeringResult:
    """Return what each latent does to the predictions of some test images.

    Args:
        batch_images: sent through the remaining blocks at a time.
        folder: see `compute_parts`.

    Raises:
        InputError: no test image, no latent that fires, NaN or Inf in predictions.
    """
    inputs, head = wanted.inputs, wanted.head
    rows = inputs.choose_rows(wanted.n_images, wanted.seed)
    if not len(wanted.latents):
        raise InputError(
            "Expected features that fire in some training image, got none: train the SAE for longer, or give another."
        )
    steerer = Steerer(inputs, head, rows, batch_images)
    before, parts = steerer.predict(), cut(len(wanted.latents), _PART_LATENTS)

    def steer_part(number: int) -> Part:
        found = []
        for place in range(len(wanted.latents))[parts[number]]:
            latent, level = int(wanted.latents[place]), float(wanted.levels[place])
            drawn = draw_direction(inputs.sae.W_dec[latent].detach(), wanted.seed, latent)
            both = (None, drawn)
            found.append(
                torch.stack([_judge(before, steerer.predict(latent, level, of), wanted.min_effect) for of in both])
            )
            progress("steering", place + 1, len(wanted.latents))
        return {"numbers": torch.stack(found, dim=1)}

    joined = compute_parts(len(parts), steer_part, folder, "steering")
    numbers = torch.cat([part["numbers"] for part in joined], dim=1).numpy()
    if not np.isfinite(numbers).all():
        raise InputError(
            "Predictions with a feature at a high value hold NaN or Inf: check the SAE and the tokens it was trained"
            " on, or use model.precision=float32."
        )
    word, effect, consistency, specificity, taken, taken_before = np.moveaxis(numbers, -1, 0)
    return SteeringResult(
        words=head.class_names,
        min_effect=wanted.min_effect,
        min_share=wanted.min_share,
        n_images=len(rows),
        d_sae=inputs.sae.d_sae,
        before=float(compute_entropy(before).mean()),
        measured=wanted.latents,
        levels=wanted.levels,
        word=word.astype(np.int64),
        effect=effect,
        consistency=consistency,
        specificity=specificity,
        taken=taken,
        taken_before=taken_before,
    )


def compute_entropy(log_p: Float[Tensor, "n n_words"]) -> Float[Tensor, " n"]:
    """Return the entropy of each row of log probabilities as a share of the largest one, 0..1."""
    p = log_p.exp()
    return -torch.where(p > 0, p * log_p, 0).sum(-1) / math.log(log_p.shape[1])


def _judge(
    before: Float[Tensor, "n n_words"], after: Float[Tensor, "n n_words"], min_effect: float
) -> Float[Tensor, " 6"]:
    """Return word, effect, consistency, specificity, taken and taken_before, see `SteeringResult`."""
    gains = after - before
    word = int(gains.mean(0).argmax())
    return torch.tensor(
        [
            word,
            gains[:, word].mean(),
            (gains[:, word] > min_effect).double().mean(),
            (compute_entropy(before) - compute_entropy(after)).mean(),
            (after.argmax(-1) == word).double().mean(),
            (before.argmax(-1) == word).double().mean(),
        ],
        dtype=torch.float64,
    )
