"""The whole measurement in one call, for those who have a backbone, an SAE and some images."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from inspect import signature
from typing import Any, NamedTuple

from infoscope.data.config import DataConfig, DataKind, OnError, Resize
from infoscope.data.images import ImageSet
from infoscope.data.pictures import Picture, Pictures
from infoscope.data.sample import draw_images
from infoscope.data.sets import make_image_sets
from infoscope.runtime.calls import convert, make_options, name_type, refuse_unknown, speaks_python
from infoscope.runtime.errors import InputError
from infoscope.runtime.progress import CallbackDisplay, Display, ProgressCallback, choose_display
from infoscope.sae.import_config import ImportedConfig
from infoscope.sae.metrics import compute_mass
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import check_has_maps, check_statistics, choose_layer
from infoscope.sae.passes import measure_one
from infoscope.scope import crops
from infoscope.scope.config import ScopeConfig
from infoscope.scope.ranking import ImageTokens, Ranking, measure_ranking
from infoscope.scope.scores import Scores
from infoscope.scope.scoring import score_latents
from infoscope.stages.contextual_dependency.found import ContextualDependency
from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ModelConfig

Images = ImageSet | str | os.PathLike[str] | Iterable[Picture]


@speaks_python(data=DataConfig, model=ModelConfig, sae=ImportedConfig, scope=ScopeConfig)
def contextual_dependency(
    backbone: Backbone,
    sae: SparseAutoencoder,
    images: Images,
    layer: int | None = None,
    k_cds: int = 8,
    shift_patches: int = 1,
    *,
    test_share: float | None = None,
    seed: int | None = None,
    max_train: int | None = None,
    resize: str | Resize | None = None,
    on_error: str | OnError = "raise",
    n_readers: int = 0,
    check_origin: bool = True,
    progress: bool | ProgressCallback = True,
    **options: Any,
) -> ContextualDependency:
    """Rank images per latent, then score how far each latent's activation moves when only the context changes.

    Photographs on the disk are divided as on the command line: a tenth of them (`test_share`), chosen by a hash of the
    name, is held out, so that both give the same numbers. Pictures that are given one by one are all taken.

    Args:
        backbone: a frozen vision transformer; the work is done where it lies.
        sae: a sparse autoencoder of its patch tokens.
        images: a folder, a list file (.txt) or WebDataset tars, as `data.root` of the command line; an ImageSet; or
            pictures: a list (or what else has an order) of paths, PIL images and uint8 arrays or tensors of any sizes,
            [height, width, 3] or [3, height, width], or one array or tensor of [n, ...]. They are resized to fit.
        layer: the block that the SAE reads, 0-based or negative from the end; None: the one it was trained on.
        k_cds: images per latent that the score averages over.
        shift_patches: by how much the two crops of an image differ.
        test_share: of photographs on the disk: share that is held out; 0 takes all. None: 0.1.
        seed: of that split and of `max_train`; None: 0.
        max_train: draw as many of the images; None: all.
        resize: "squash" both sides, or "crop" the centre; None: squash, or as the ImageSet does.
        on_error: what an image that cannot be read does: "raise", or "skip" to leave it out and list it in `skipped`.
        n_readers: processes that read images ahead; 0 reads in this one.
        check_origin: False insists on other tokens than the SAE was trained on: of another layer or backbone.
        progress: True shows on stderr how far it is; a function is called with (what, done, total); False is silent.
        options: other fields of `ScopeConfig`: k_max, diagonal, rank_by, emd, sinkhorn_blur, batch_images, n_workers.

    Raises:
        InputError: before anything is encoded, if an option or image is not what it should be, the SAE was trained on
            another backbone or layer, or there are fewer images than `k_cds`; later, if an image cannot be read.
    """
    _refuse_unknown_options(options)
    config = make_options(ScopeConfig, {"k_cds": k_cds, "shift_patches": shift_patches, **options})
    n_readers = make_options(DataConfig, {"n_workers": n_readers}).n_workers
    skips: OnError = convert("on_error", on_error, OnError)
    show = choose_display(progress)
    layer = choose_scored_layer(backbone, sae, layer, check_origin)
    crops.check_shift(backbone.grid, config.shift_patches)
    split = {"test_share": test_share, "seed": seed, "max_train": max_train, "resize": resize}
    found = _open(images, {name: value for name, value in split.items() if value is not None}, skips)
    found.check_enough(config.k_cds)
    found.tell(show)
    ranking, scores = _measure(sae, ImageTokens(backbone, found.images, layer, skips, n_readers), config, show)
    return ContextualDependency(
        ranking=ranking,
        mass=compute_mass(ranking.mean_act, sae.W_dec),
        scores=scores,
        k_cds=config.k_cds,
        layer=layer,
        images=found.images,
        patch_px=backbone.patch_px,
        n_held_out=found.n_held_out,
        skipped=dict(found.images.skipped),
    )


def _measure(
    sae: SparseAutoencoder, tokens: ImageTokens, config: ScopeConfig, show: Display | CallbackDisplay
) -> tuple[Ranking, Scores]:
    """Rank and score where the backbone is, in the batches of the command line: the numbers are the same to the bit."""
    backbone, before = tokens.backbone, sae.W_enc.device
    sae.to(backbone.mean.device)
    try:
        with show.bar("finding top-activating images", len(tokens), "images") as advance:
            ranking = measure_one(tokens, measure_ranking(sae, config.n_ranks, config.rank_by), advance).compute()
        with show.bar("scoring") as advance:
            how = {"layer": tokens.layer, "check_origin": False, "n_readers": tokens.n_readers, "progress": advance}
            return ranking, score_latents(backbone, sae, tokens.image_set, ranking, config, **how)
    finally:
        sae.to(before)


def _refuse_unknown_options(options: Mapping[str, Any]) -> None:
    own = [name for name in signature(contextual_dependency).parameters if name != "options"]
    own += [one.name for one in fields(ScopeConfig) if one.name not in own]
    refuse_unknown(options, own, "contextual_dependency")


def choose_scored_layer(backbone: Any, sae: Any, layer: int | None, check_origin: bool) -> int:
    """Return the layer that an SAE of patch tokens reads, when both are what they should be."""
    _check_types(backbone, sae)
    check_has_maps(sae.origin, backbone.site)
    return choose_read_layer(backbone, sae, layer, check_origin)


def choose_read_layer(backbone: Any, sae: Any, layer: int | None = None, check_origin: bool = True) -> int:
    """Return the layer that an SAE reads, when both are what they should be."""
    _check_types(backbone, sae)
    layer = choose_layer(sae, backbone, layer, check_origin)
    check_statistics(sae.origin)
    return layer


def _check_types(backbone: Any, sae: Any) -> None:
    if not isinstance(backbone, Backbone):
        raise InputError(f"Expected backbone= to be what load_backbone returns, got {name_type(backbone)}.")
    if not isinstance(sae, SparseAutoencoder):
        raise InputError(f"Expected sae= to be what load_sae returns, got {name_type(sae)}.")


class _Opened(NamedTuple):
    """Images to score, and how many were held out of them, for which share."""

    images: ImageSet
    n_held_out: int = 0
    test_share: float = 0.0

    @property
    def words(self) -> str:
        """How the images were divided."""
        return f"{len(self.images):,} images without the {self.n_held_out:,} held out (test_share={self.test_share:g})"

    def tell(self, show: Display | CallbackDisplay) -> None:
        """Say what of the pictures is not taken."""
        if self.n_held_out:
            show.say(f"{self.words}; test_share=0 takes all.")
        if self.images.left_out:
            show.say(f"Left out {self.images.left_out.describe()}.")

    def check_enough(self, k_cds: int) -> None:
        """Refuse a k that the images cannot give.

        Raises:
            InputError: if there are fewer images.
        """
        if len(self.images) < k_cds:
            got = self.words if self.n_held_out else len(self.images)
            raise InputError(f"Expected at least k_cds={k_cds} images, got {got}: add images or lower k_cds.")


def _open(images: Images, split: Mapping[str, Any], on_error: OnError) -> _Opened:
    """Return images of any of the accepted kinds, divided as on the command line if they lie on the disk.

    Args:
        split: test_share, seed, max_train and resize, as far as they are given.

    Raises:
        InputError: if there are none, or they are not what they should be.
    """
    if isinstance(images, str | os.PathLike):
        source = {"kind": DataKind.image_folder, "root": images, "on_error": on_error}
        config = make_options(DataConfig, {**source, **split})
        if glob.has_magic(str(config.root)) and not os.path.lexists(str(config.root)):
            raise InputError(
                f"Expected images= to be a place, got the pattern {config.root}: give a list, glob.glob(...)."
            )
        train, test = make_image_sets(config)
        return _Opened(train, len(test), config.test_share)
    if "test_share" in split:
        raise InputError(
            "test_share= divides photographs on the disk; pictures that are given one by one, and an ImageSet, are all"
            " taken: leave it out."
        )
    if isinstance(images, ImageSet) and "resize" in split:
        raise InputError("An ImageSet squashes or crops as it was made to: leave out resize=.")
    config = make_options(DataConfig, split)
    found = images if isinstance(images, ImageSet) else Pictures(images, config.resize, on_error)
    return _Opened(draw_images(found, config.max_train, config.seed))
