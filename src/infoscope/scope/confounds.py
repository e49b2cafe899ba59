"""What a score could be mistaken for, and which latents are global or local by a formula that knows the pictures.

The formula never reads the score. Two or three effect sizes per latent, each the share of variance that groups explain
in a one-way analysis of variance, corrected for the number of groups (epsilon^2, Kelley 1935: eta^2 is never negative,
so many small groups explain something by chance):

- image effect: the latent's mean activation over the patches of an image, by the values of a global factor (place,
  light, weather, camera); the largest over the factors counts.
- label effect: the activation of a patch minus the mean over the image's labelled patches, by the label of the patch.
- fact effect, where images have broad facts: as the image effect, by what no small window of the picture tells.

Known-global: image effect at least the upper of `IMAGE_CUTS`, label effect below the lower of `LABEL_CUTS`.
Known-broad: fact effect at least the upper of `IMAGE_CUTS`. A global factor may be read off a single patch (the light
off one of sky), so known-global is about what a latent knows; who knows a broad fact has looked broadly, wherever in a
picture it fires (`data/scenes/marks.py`). Where there are such facts, known-local latents know little of them.
Known-local: label effect at least the upper of `LABEL_CUTS`, image effect below the lower of `IMAGE_CUTS`. All other
latents, and those that fire on fewer than `MIN_IMAGES` images, are undeclared. An effect that does not exist because
nothing varies (a latent that is even over every image has no label effect) counts as none.

Latents are compact or diffuse by the share of the grid on which they fire (`DIFFUSE_SUPPORT`). One that fires evenly
everywhere scores near 0 by definition, for any content: diffuse known-global latents are expected to score low.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float

from infoscope.data.images import ImageSet, Truth
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Part
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import LatentBatch, Measurement, Meter
from infoscope.scope.confound_meters import FactorMeter, LabelMeter, PropertyMeter

IMAGE_CUTS, LABEL_CUTS = (0.06, 0.14), (0.01, 0.06)
"""Cohen's (1988) benchmarks for eta^2: small .01, medium .06, large .14. The label effect is that of single patches,
the image effect that of means over a whole grid, so the former is held to the benchmark below; a step between the two
cuts keeps latents that are a little of both undeclared. The benchmarks .06 and .14 for both effects, tried first, left
7 of 512 latents local on 700 scenes of seed 7, too few for an AUROC; it was .99 there under either choice.
"""
MIN_IMAGES = 20
"""Four images for each value of the factor with most values (place, five): with fewer, chance makes groups."""
DIFFUSE_SUPPORT = 0.25
"""A square map on a share f of the grid can move by at most 1 - sqrt(f) of the diagonal: here, half of it is gone."""


@dataclass(frozen=True)
class LatentProperties:
    """How often, how strongly and how widely each latent fires, over the patch tokens of a split.

    firing_rate: [d_sae] share of patch tokens on which it fires.
    image_rate: [d_sae] share of images in which it fires on a patch at least.
    peaks: [d_sae, k_max] its largest activation in each of the images that excite it most, in descending order; 0
        where it fires on no further image.
    support: [d_sae] share of the grid's patches on which it fires, mean over the images in which it does; NaN if none.
    participation: [d_sae] the same by (sum a)^2 / sum a^2 of the map: weak patches count for less.
    """

    firing_rate: Float[np.ndarray, " d_sae"]
    image_rate: Float[np.ndarray, " d_sae"]
    peaks: Float[np.ndarray, "d_sae k_max"]
    support: Float[np.ndarray, " d_sae"]
    participation: Float[np.ndarray, " d_sae"]

    @property
    def peak(self) -> Float[np.ndarray, " d_sae"]:
        """Largest activation, 0 if the latent never fires."""
        return self.peaks[:, 0].astype(np.float64)

    def peak_top(self, k: int) -> Float[np.ndarray, " d_sae"]:
        """Return the mean of the first `k` of `peaks`, or of as many as there are; 0 if the latent never fires."""
        assert 1 <= k <= self.peaks.shape[1], (k, self.peaks.shape)
        best = torch.from_numpy(self.peaks[:, :k].copy())
        return (best.sum(1) / (best > 0).sum(1).clamp(min=1)).double().numpy()


@dataclass(frozen=True)
class ConfoundResult:
    """Properties and effects of one SAE's latents; which are global or local is arithmetic on them.

    image_effects: per global factor [d_sae] epsilon^2, at most 1, about 0 without an effect, NaN for a latent that
        never varies; empty where the data have no such factors.
    label_effect: [d_sae] likewise; None where the data have no label maps.
    fact_effects: per broad fact [d_sae] likewise; empty where the data have none.
    """

    properties: LatentProperties
    n_images: int
    image_effects: Mapping[str, Float[np.ndarray, " d_sae"]]
    label_effect: Float[np.ndarray, " d_sae"] | None
    fact_effects: Mapping[str, Float[np.ndarray, " d_sae"]] = field(default_factory=dict)

    @property
    def has_truth(self) -> bool:
        """Whether the data say what is global and what is local."""
        return bool(self.image_effects) and self.label_effect is not None

    @property
    def image_effect(self) -> Float[np.ndarray, " d_sae"]:
        """The largest effect of a global factor; NaN without factors."""
        return self._find_largest(self.image_effects)

    @property
    def fact_effect(self) -> Float[np.ndarray, " d_sae"]:
        """The largest effect of a broad fact; NaN without such facts."""
        return self._find_largest(self.fact_effects)

    @property
    def known_global(self) -> Bool[np.ndarray, " d_sae"]:
        """Latents declared global: a global factor explains them, where they fire in an image does not."""
        return self._declare(self.image_effect, IMAGE_CUTS[1], self.label_effect, LABEL_CUTS[0])

    @property
    def known_broad(self) -> Bool[np.ndarray, " d_sae"]:
        """Latents declared broad: a broad fact explains them, on whatever patches they fire."""
        return self.fires_enough & (self.fact_effect >= IMAGE_CUTS[1])

    @property
    def known_local(self) -> Bool[np.ndarray, " d_sae"]:
        """Latents declared local: what lies in the patch explains them, the picture as a whole does not."""
        whole_picture = np.fmax(self.image_effect, self.fact_effect)
        return self._declare(self.label_effect, LABEL_CUTS[1], whole_picture, IMAGE_CUTS[0])

    @property
    def diffuse(self) -> Bool[np.ndarray, " d_sae"]:
        """Latents that fire on a quarter of the grid or more."""
        return self.properties.support >= DIFFUSE_SUPPORT

    @property
    def compact(self) -> Bool[np.ndarray, " d_sae"]:
        """Latents that fire on less than that."""
        return self.properties.support < DIFFUSE_SUPPORT

    @property
    def fires_enough(self) -> Bool[np.ndarray, " d_sae"]:
        """Latents that fire on enough images for their effects to mean something."""
        return np.rint(self.properties.image_rate * self.n_images) >= MIN_IMAGES

    def _find_largest(self, effects: Mapping[str, np.ndarray]) -> Float[np.ndarray, " d_sae"]:
        none = np.full_like(self.properties.firing_rate, np.nan, dtype=np.float64)
        return np.fmax.reduce([none, *effects.values()])

    def _declare(
        self, large: np.ndarray | None, at_least: float, small: np.ndarray | None, below: float
    ) -> Bool[np.ndarray, " d_sae"]:
        if not self.has_truth or large is None or small is None:
            return np.zeros_like(self.fires_enough)
        return self.fires_enough & (large >= at_least) & ~(small >= below)  # NaN: nothing varies

    def save(self, folder: Path) -> None:
        """Write confounds.npz and confounds.json into `folder` (made if missing)."""
        effects = {f"image_effect_{name}": effect for name, effect in self.image_effects.items()}
        effects |= {f"fact_effect_{name}": effect for name, effect in self.fact_effects.items()}
        label = {} if self.label_effect is None else {"label_effect": self.label_effect}
        known = {"n_images": self.n_images, "factors": list(self.image_effects)}
        known |= {"facts": list(self.fact_effects)} if self.fact_effects else {}
        save_result(folder, "confounds", {**vars(self.properties), **effects, **label, **known})

    @classmethod
    def load(cls, folder: Path) -> ConfoundResult:
        """Read what `save` wrote."""
        arrays, known = load_result(folder, "confounds")
        effects = {name: arrays.pop(f"image_effect_{name}") for name in known["factors"]}
        facts = {name: arrays.pop(f"fact_effect_{name}") for name in known.get("facts", ())}
        label_effect = arrays.pop("label_effect", None)
        return cls(LatentProperties(**arrays), known["n_images"], effects, label_effect, facts)


class ConfoundMeter(Meter):
    """Everything that `ConfoundResult` holds, of some images.

    Args:
        images: the set that positions refer to; without labels (photographs, None) there are no effects.
        k_max: images per latent whose peak is kept.
        known: see `TopMeter`.
    """

    def __init__(
        self,
        d_sae: int,
        images: ImageSet | None,
        k_max: int,
        device: torch.device | str = "cpu",
        known: ConfoundMeter | None = None,
    ) -> None:
        self.properties = PropertyMeter(d_sae, k_max, device, known and known.properties)
        self.factors: dict[str, FactorMeter] = {}
        self.facts: dict[str, FactorMeter] = {}
        self.labels: LabelMeter | None = None
        if images is not None:
            for meters, names in ((self.factors, images.global_factors), (self.facts, images.broad_facts)):
                for name in names:
                    values = torch.from_numpy(images.labels(name)).to(device)
                    meters[name] = FactorMeter(values, images.n_target_classes(name), d_sae)
            if Truth.label_maps in images.truths:
                self.labels = LabelMeter(images, d_sae, device)

    @property
    def _by_name(self) -> dict[str, Meter]:
        labels = {} if self.labels is None else {"labels": self.labels}
        of = {f"of_{name}": meter for name, meter in self.factors.items()}
        of |= {f"fact_{name}": meter for name, meter in self.facts.items()}
        return {"properties": self.properties, **labels, **of}

    def update(self, batch: LatentBatch) -> None:
        for meter in self._by_name.values():
            meter.update(batch)

    def to_part(self) -> Part:
        return {f"{of}/{name}": sums for of, meter in self._by_name.items() for name, sums in meter.to_part().items()}

    def add(self, part: Part) -> None:
        for of, meter in self._by_name.items():
            meter.add({name.removeprefix(f"{of}/"): sums for name, sums in part.items() if name.startswith(f"{of}/")})

    def compute(self) -> ConfoundResult:
        """Return what all images say.

        Raises:
            InputError: if there were none.
        """
        n_images = int(self.properties.sums["n_images"])
        if n_images == 0:
            raise InputError("Expected images to measure the latents on, got none: check the data set and its split.")
        return ConfoundResult(
            LatentProperties(**self.properties.compute()),
            n_images,
            {name: factor.compute() for name, factor in self.factors.items()},
            None if self.labels is None else self.labels.compute(),
            {name: fact.compute() for name, fact in self.facts.items()},
        )


def measure_confounds(sae: SparseAutoencoder, images: ImageSet | None, k_max: int) -> Measurement[ConfoundMeter]:
    """Return what a pass measures for `ConfoundResult`, see `ConfoundMeter`."""
    return Measurement(sae, partial(ConfoundMeter, sae.d_sae, images, k_max))
