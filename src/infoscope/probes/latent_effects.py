"""What each latent alone is worth to each task: the change of the loss when it is removed and the head stays.

The latent's part is taken from the tokens while the SAE's error stays, and the head that was trained on the original
tokens reads them. What is linear is not computed again: removing latent j takes z_j (W_dec[j] . head) / c from the
logits (times the token's factor, where the SAE has a token norm), where it is active, and nothing elsewhere. Only what
CLS makes of edited tokens goes through the remaining blocks anew, for each latent and image in which it is active. The
loss is that of probing for classification and segmentation (nats of cross-entropy), and the squared error in m^2 for
depth: unlike the loss of its training, it is a mean over pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.probes.config import EffectConfig, ProbeConfig, Readout, Task
from infoscope.probes.extraction import iterate_tokens
from infoscope.probes.heads import LinearMaps, compute_depth_m
from infoscope.probes.inputs import ProbeInputs
from infoscope.probes.metrics import IGNORE_LABEL, valid_depth
from infoscope.probes.pixels import choose_pixels, compute_pixel_weights
from infoscope.probes.rates import Heads
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.parts import Part, compute_parts, cut
from infoscope.sae.activation import Entries
from infoscope.scope.ablations import Progress, choose_rows, no_progress
from infoscope.vision.backbone import Tokens

PART_IMAGES = 64
"""Images between which an interrupted run can go on, and that processes share out."""
PIXEL_STEP = 2**32
"""Pixels are drawn as of this step, far from those of training and of the images held out."""
_RESUMED_BYTES = {"cpu": 2**23, "cuda": 2**25}
"""Edited tokens that go through the remaining blocks at a time: few enough to stay near a processor."""


@dataclass(frozen=True)
class LatentEffects:
    """Of each task ("classification/<readout>", "segmentation", "depth"):

    effects: [d_sae] the mean loss without the latent minus that of the original tokens; above 0 where it is missed, 0
        where it is never active. Nats per image or labelled pixel; m^2 per pixel with a depth.
    losses: of the original tokens.
    n_units: images or pixels that the means are over.
    """

    effects: Mapping[str, Float[np.ndarray, " d_sae"]]
    losses: Mapping[str, float]
    n_units: Mapping[str, int]

    def save(self, folder: Path) -> None:
        """Write effects.npz and effects.json into `folder` (made if missing)."""
        save_result(folder, "effects", self.effects, {"losses": self.losses, "n_units": self.n_units})

    @classmethod
    def join(cls, parts: Iterable[LatentEffects]) -> LatentEffects:
        """Return those of several data sets as one."""
        found = cls({}, {}, {})
        for part in parts:
            found = cls(*(own | of for own, of in zip(vars(found).values(), vars(part).values(), strict=True)))
        return found

    @classmethod
    def load(cls, folder: Path) -> LatentEffects:
        """Read what `save` wrote."""
        arrays, facts = load_result(folder, "effects")
        return cls({task: arrays[task] for task in facts["losses"]}, facts["losses"], facts["n_units"])


def measure_latent_effects(
    inputs: ProbeInputs,
    config: ProbeConfig,
    effects: EffectConfig,
    heads: Heads,
    folder: Path | None = None,
    progress: Progress = no_progress,
) -> LatentEffects:
    """Return the effect of each latent on each task, on test images.

    Tasks that are probed on crops are read on whole images here, as the SAE is.

    Args:
        heads: trained on the original tokens, of every task.
        folder: where an interrupted run goes on from; None: nowhere.
    """
    data, device = inputs.test, inputs.device
    rows = choose_rows(len(data.tokens), effects.n_images, config.seed)
    losses = {name: _make_loss(name, inputs, config, effects, heads[name].to(device)) for name in heads}
    slices = cut(len(rows), PART_IMAGES)

    def measure(number: int) -> Part:
        part = rows[slices[number]]
        sums = {name: _Sums.zeros(inputs.sae.d_sae, device) for name in losses}
        for place, tokens in enumerate(iterate_tokens(data, part, 1, device)):
            image = EncodedImage(inputs, tokens, int(part[place]))
            for name, loss in losses.items():
                sums[name].add(image, loss)
            progress("effects of single features", slices[number].start + place + 1, len(rows))
        return {f"{name}/{key}": value for name, of in sums.items() for key, value in vars(of).items()}

    totals = {name: _Sums.zeros(inputs.sae.d_sae, "cpu") for name in losses}
    with torch.no_grad():
        for part in compute_parts(len(slices), measure, folder, "effects"):
            for name, total in totals.items():
                for key, value in vars(total).items():
                    value += part[f"{name}/{key}"]
    return LatentEffects(
        {name: (of.changes / of.n_units).numpy() for name, of in totals.items()},
        {name: float(of.loss / of.n_units) for name, of in totals.items()},
        {name: int(of.n_units) for name, of in totals.items()},
    )


class EncodedImage:
    """The tokens of one image, patches first, and the activations on them of the latents that are active there.

    An activation is z times the token's factor (see `SparseAutoencoder.written`), and keeps its sign.

    Args:
        tokens: of a batch of one image.
        row: of the split's tokens.
    """

    def __init__(self, inputs: ProbeInputs, tokens: Tokens, row: int) -> None:
        self.inputs, self.row = inputs, row
        self.patches, self.prefix = tokens.patches[0], tokens.prefix[0]
        self.index = int(inputs.test.tokens.image_index[row])

    @cached_property
    def entries(self) -> Entries:
        """Activations, of the prefix too where the SAE was trained on it."""
        x = torch.cat([self.patches, self.prefix]) if self.inputs.edits_prefix else self.patches
        tokens, latents, values = self.inputs.sae.encode_entries(x)
        factor = self.inputs.sae.token_factor(x)
        return Entries(tokens, latents, values if factor is None else values * factor.flatten()[tokens])

    @cached_property
    def latents(self) -> Int[Tensor, " n_on"]:
        """Those that are active on a token at least, ascending."""
        return self.entries.latents.unique()

    @cached_property
    def on(self) -> Float[Tensor, "n_tokens n_on"]:
        """Their activations."""
        tokens, latents, values = self.entries
        n_tokens = len(self.patches) + len(self.prefix) * self.inputs.edits_prefix
        on = values.new_zeros(n_tokens, len(self.latents))
        on[tokens, torch.searchsorted(self.latents, latents)] = values
        return on

    @property
    def of_patches(self) -> Float[Tensor, "n_patches n_on"]:
        """Their activations on patches."""
        return self.on[: len(self.patches)]

    @property
    def of_cls(self) -> Float[Tensor, " n_on"]:
        """Their activations on the first token of the prefix; 0 where the SAE does not read it."""
        return self.on[len(self.patches)] if self.inputs.edits_prefix else torch.zeros_like(self.on[0])

    def iterate_edited(self) -> Iterator[Tokens]:
        """Yield the tokens without each of `latents`, some of these at a time."""
        sae, n_patches = self.inputs.sae, len(self.patches)
        n_bytes = 4 * (self.patches.numel() + self.prefix.numel())
        n_at_once = max(1, _RESUMED_BYTES[self.patches.device.type] // n_bytes)
        for some, acts in zip(self.latents.split(n_at_once), self.on.split(n_at_once, dim=1), strict=True):
            taken = acts.T[:, :, None] * (sae.W_dec[some] / sae.scale)[:, None]
            of_prefix = taken[:, n_patches:] if self.inputs.edits_prefix else taken.new_zeros(len(some), 1, 1)
            yield Tokens(self.prefix - of_prefix, self.patches - taken[:, :n_patches])


class _Loss(ABC):
    """The loss of a task, as sums over units (images or pixels)."""

    def __init__(self, inputs: ProbeInputs, head: LinearMaps) -> None:
        sae = inputs.sae
        self.weight, self.bias = head.weight[0], head.bias[0]
        self.written = sae.W_dec @ self.weight / sae.scale
        """[d_sae, n_outputs] what a unit of a latent's activation, times the token's factor, adds to the outputs."""

    @abstractmethod
    def measure(self, image: EncodedImage) -> tuple[Tensor, Tensor, int]:
        """Return of an image: the sum of the losses of its units, its change without each of `image.latents`, and how
        many units it has."""


@dataclass
class _Sums:
    changes: Float[Tensor, " d_sae"]
    loss: Float[Tensor, ""]
    n_units: Int[Tensor, ""]

    @classmethod
    def zeros(cls, d_sae: int, device: torch.device | str) -> _Sums:
        new = {"dtype": torch.float64, "device": device}
        return cls(torch.zeros(d_sae, **new), torch.zeros((), **new), torch.zeros((), dtype=torch.int64, device=device))

    def add(self, image: EncodedImage, loss: _Loss) -> None:
        total, changes, n_units = loss.measure(image)
        self.changes.index_add_(0, image.latents, changes.double())
        self.loss += total.double()
        self.n_units += n_units


class _Classification(_Loss):
    """Cross-entropy of a vector of the image."""

    def __init__(self, inputs: ProbeInputs, config: ProbeConfig, readout: Readout, head: LinearMaps) -> None:
        super().__init__(inputs, head)
        self.inputs, self.readout = inputs, readout
        self.labels = torch.from_numpy(inputs.test.images.labels(config.target)).to(inputs.device)

    def measure(self, image: EncodedImage) -> tuple[Tensor, Tensor, int]:
        vectors, edited = self._read(image)
        label = self.labels[image.index]
        losses = F.cross_entropy(
            torch.cat([vectors @ self.weight + self.bias, edited]), label.expand(1 + len(edited)), reduction="none"
        )
        return losses[0], losses[1:] - losses[0], 1

    def _read(self, image: EncodedImage) -> tuple[Float[Tensor, "1 d"], Float[Tensor, "n_on n_classes"]]:
        """Return the vector of the original tokens, and the logits without each latent."""
        match self.readout:
            case Readout.cls_final:
                backbone, layer = self.inputs.backbone, self.inputs.layer
                assert backbone is not None
                original = backbone.resume(Tokens(image.prefix[None], image.patches[None]), layer)
                vectors = [backbone.resume(tokens, layer) for tokens in image.iterate_edited()]
                return original, torch.cat([original[:0], *vectors]) @ self.weight + self.bias
            case Readout.patch_mean:
                vector, acts = image.patches.mean(0, keepdim=True), image.of_patches.mean(0)
            case Readout.cls_layer:
                vector, acts = image.prefix[:1], image.of_cls
        return vector, vector @ self.weight + self.bias - acts[:, None] * self.written[image.latents]


class _OfPixels(_Loss):
    """A loss at some pixels of each image, drawn at random; what patches say is interpolated bilinearly."""

    def __init__(
        self, inputs: ProbeInputs, config: ProbeConfig, effects: EffectConfig, task: Task, head: LinearMaps
    ) -> None:
        super().__init__(inputs, head)
        self.images, self.seed, self.n_pixels, self.task = inputs.test.images, config.seed, effects.n_pixels, task
        self.grid, self.max_depth_m = inputs.test.tokens.grid, config.max_depth_m

    def draw(self, image: EncodedImage) -> tuple[Float[Tensor, "n_pixels n_patches"], Tensor]:
        """Return how the pixels of an image that have a truth read the patches, and what is true there."""
        images, i = self.images, image.index
        truth = images.label_map(i) if self.task is Task.segmentation else images.depth_m(i)
        height, width = truth.shape
        rows, columns = choose_pixels(self.seed, PIXEL_STEP, image.row, height, width, self.n_pixels)
        known = torch.from_numpy(truth[rows, columns])
        is_known = known != IGNORE_LABEL if self.task is Task.segmentation else valid_depth(known, self.max_depth_m)
        chosen = is_known.numpy()
        weights = compute_pixel_weights(rows[chosen], columns[chosen], height, width, self.grid)
        return torch.from_numpy(weights).to(self.weight), known[is_known].to(self.weight.device)


class _Segmentation(_OfPixels):
    """Cross-entropy of labelled pixels."""

    def measure(self, image: EncodedImage) -> tuple[Tensor, Tensor, int]:
        weights, truth = self.draw(image)
        truth = truth.long()
        logits = weights @ (image.patches @ self.weight + self.bias)
        losses = F.cross_entropy(logits, truth, reduction="none")
        acts = weights @ image.of_patches
        pixels, places = acts.nonzero(as_tuple=True)
        edited = logits[pixels] - acts[pixels, places, None] * self.written[image.latents[places]]
        changes = F.cross_entropy(edited, truth[pixels], reduction="none") - losses[pixels]
        return losses.sum(), changes.new_zeros(acts.shape[1]).index_add_(0, places, changes), len(truth)


class _Depth(_OfPixels):
    """Squared error of the depth of pixels, in m^2."""

    def measure(self, image: EncodedImage) -> tuple[Tensor, Tensor, int]:
        weights, truth = self.draw(image)
        scores = image.patches @ self.weight + self.bias
        depth, acts = compute_depth_m(scores, self.max_depth_m), image.of_patches
        patches, places = acts.nonzero(as_tuple=True)
        edited = scores[patches] - acts[patches, places, None] * self.written[image.latents[places]]
        moved = torch.zeros_like(acts)
        moved[patches, places] = compute_depth_m(edited, self.max_depth_m) - depth[patches]
        errors = (weights @ depth - truth)[:, None]
        changes = (errors + weights @ moved).square() - errors.square()
        return errors.square().sum(), changes.sum(0), len(truth)


def _make_loss(name: str, inputs: ProbeInputs, config: ProbeConfig, effects: EffectConfig, head: LinearMaps) -> _Loss:
    """Return the loss of a task by its name among the heads."""
    task, _, readout = name.partition("/")
    if Task[task] is Task.classification:
        return _Classification(inputs, config, Readout[readout], head)
    kind = _Segmentation if Task[task] is Task.segmentation else _Depth
    return kind(inputs, config, effects, Task[task], head)
