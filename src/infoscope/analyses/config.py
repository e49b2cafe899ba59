"""How latents are described, held against their scope, and masked."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

from infoscope.runtime.bounds import (
    Bounds,
    Count,
    CountOrNone,
    Few,
    FewOrNone,
    FilePath,
    Items,
    NotNegative,
    Seed,
    Share,
    check,
)


class ImageCode(Enum):
    """How strongly a latent fires in an image, of its activations over all patches."""

    mean = "mean"
    """As PatchSAE."""
    max = "max"


@dataclass
class DescribeConfig:
    """What `stage=describe` says of each latent."""

    image_code: ImageCode = ImageCode.mean
    strong_above: NotNegative = 0.2
    """A patch counts for a class where the latent's activation, in the SAE's own units, is larger (PatchSAE's). These
    units differ: the section says where all activations are larger, or none, and what they are in the mean."""
    n_label_images: Annotated[int, Bounds(2, 4096)] = 10
    """Images whose labels the label entropy is of (PatchSAE's), and on which a latent must fire to be described."""
    n_top_images: Annotated[int, Bounds(2, 4096)] = 16
    """Images in the sets whose overlap is uniqueness, and whose labels meet in the hierarchy (sae-for-vlm's)."""
    n_clarity_images: Annotated[int, Bounds(2, 4096)] = 20
    """Images whose likeness is clarity, and in `stage=attribute` those of semantic alignment (Attributing CLIP's)."""
    n_class_latents: Few = 10
    """Latents of a class: those that fire strongly on most of its patches."""
    tree: FilePath | None = None
    """A text file with a line `parent child` for each edge of a hierarchy of the classes (wnids, as ImageNet's
    wordnet.is_a.txt, or names of classes or class folders without spaces); null: the scenes' own, none elsewhere."""

    def __post_init__(self) -> None:
        check(self, "describe")

    def cache_key_fields(self) -> dict[str, Any]:
        """Return the settings that change results, apart from those of the image codes, as plain JSON: no path."""
        sizes = ("n_label_images", "n_top_images", "n_clarity_images", "n_class_latents")
        return {"image_code": self.image_code.name, **{name: getattr(self, name) for name in sizes}}


@dataclass
class CrossConfig:
    """How `stage=cross` holds what is known of the latents against their CDS. All numbers are ours."""

    n_bands: Annotated[int, Bounds(2, 100)] = 5
    """Groups of equal size by CDS, of each of which the quantities are given."""
    n_strata: Annotated[int, Bounds(2, 100)] = 5
    """Groups of equal size by firing rate, within which latents are compared."""
    n_draws: Annotated[int, Bounds(50, 10**6)] = 1000
    """Draws of the latents for the intervals."""
    n_permutations: Annotated[int, Bounds(50, 10**6)] = 5000
    """Of the CDS within strata: no p is below 1 / (1 + n_permutations), and before it counts it is multiplied by the
    number of quantities, some thirty."""
    seed: Seed = 0
    """Of draws and permutations."""

    def __post_init__(self) -> None:
        check(self, "cross")


class RankSplit(Enum):
    """The split on whose images the latents of a class are ranked."""

    train = "train"
    test = "test"
    """As PatchSAE: that of the images that are predicted, so that their labels leak into the masks once more."""


@dataclass
class MaskingConfig:
    """Which latents of an image's class `stage=masking` keeps alone, or drops; what is predicted: `predict.*`."""

    n_latents: Annotated[list[Count], Items(ascending=True)] = field(
        default_factory=lambda: [1, 2, 5, 10, 50, 100, 500, 1000, 2000]
    )
    """How many (PatchSAE's); those not below the number of latents are left out, all of them are always among them."""
    rank_split: RankSplit = RankSplit.train
    n_draws: Annotated[int, Bounds(0, 1000)] = 3
    """Random choices of as many latents, for each class anew (ours)."""
    seed: Seed = 0
    """Of the random choices."""
    sae_bias: Annotated[float, Bounds(-1e3, 1e3)] = 0.0
    """Added to each coordinate of a token that the decoding of what is kept replaces; PatchSAE's code adds 0.1051."""

    def __post_init__(self) -> None:
        check(self, "masking")

    @property
    def unread(self) -> dict[str, str]:
        """The settings that are not read, and in words what would read them."""
        return {} if self.n_draws else {"seed": "where random latents are drawn: drop it, or masking.n_draws=0"}

    def cache_key_fields(self) -> dict[str, Any]:
        """Return the settings that change results, apart from the split, as plain JSON."""
        return {name: getattr(self, name) for name in ("n_latents", "n_draws", "seed", "sae_bias")}


class Normalise(Enum):
    """Over what a latent's map is min-max normalised, before it is cut at thresholds."""

    split = "split"
    """All patches of the training split (ours): a threshold is the same activation in every picture, and where a latent
    hardly fires there is no mask."""
    image = "image"
    """The patches of each picture, as PatchSAE: every picture in which a latent fires at all has a mask."""


@dataclass
class SegmentConfig:
    """How `stage=segment` makes masks of the maps of latents."""

    normalise: Normalise = Normalise.split
    n_thresholds: Annotated[int, Bounds(1, 64)] = 16
    """Thresholds 0, 1/n, 2/n, ... (ours); a mask is where the normalised map is larger."""

    def __post_init__(self) -> None:
        check(self, "segment")

    @property
    def thresholds(self) -> list[float]:
        """The thresholds, ascending."""
        return [i / self.n_thresholds for i in range(self.n_thresholds)]

    def cache_key_fields(self) -> dict[str, Any]:
        """Return all settings as plain JSON."""
        return {"normalise": self.normalise.name, "n_thresholds": self.n_thresholds}


@dataclass
class AdaptConfig:
    """With what `stage=adapt` compares the model, and how: the same architecture with other weights."""

    pretrained: FilePath | None = None
    """The adapted model's weights, as model.pretrained: mostly a file."""
    origin: str | None = None
    """As model.origin; null: that of the model, for adapted weights have the activation, mean and std of what they
    were made from."""
    weights_key: str | None = None
    """As model.weights_key."""
    factor: Annotated[float, Bounds(1, 1e6)] = 2.0
    """By more than which the firing rate of a latent that is new rises, and that of one that is gone falls (ours)."""
    n_draws: Annotated[int, Bounds(2, 1000)] = 10
    """Random halvings of each class's images, which say what differs without any adaptation (ours)."""
    seed: Seed = 0
    """Of the halvings."""

    def __post_init__(self) -> None:
        check(self, "adapt")

    def cache_key_fields(self) -> dict[str, Any]:
        """Return what changes the comparison as plain JSON; the weights are in its key by what they determine."""
        return {"n_draws": self.n_draws, "seed": self.seed}


class Towards(Enum):
    """The class of an image towards which latents are attributed."""

    prediction = "prediction"
    label = "label"
    """The true class, of data that know it."""


@dataclass
class AttributionConfig:
    """Towards what `stage=attribute` attributes, and how that is tested; what is predicted: `predict.*`."""

    towards: Towards = Towards.prediction
    n_tested: Count = 100
    """Test images, drawn at random, on which orders of latents are compared: each costs a pass through the remaining
    blocks for every latent that fires in it."""
    n_steps: Annotated[int, Bounds(2, 100)] = 5
    """Of the deletion curves (as many as Attributing CLIP has, which removes one latent a step): equal shares of the
    latents that fire in an image (ours)."""
    n_groups: Annotated[int, Bounds(2, 4096)] | None = None
    """Null: activation times the gradient at the tokens as they are (Attributing CLIP's). A number, such as 16: times
    the gradient halfway to the tokens without the latent's group, of so many groups of equal mass in each image (ours):
    nearer to what removing the latent does, mostly of latents that fire on many patches; costs as many backwards more.
    """
    seed: Seed = 0
    """Of the images drawn, and of random orders."""

    def __post_init__(self) -> None:
        check(self, "attribution")

    def cache_key_fields(self) -> dict[str, Any]:
        """Return all settings as plain JSON."""
        keys = {"towards": self.towards.name, "n_tested": self.n_tested, "n_steps": self.n_steps, "seed": self.seed}
        return keys if self.n_groups is None else {**keys, "n_groups": self.n_groups}


@dataclass
class SteerConfig:
    """What `stage=steer` sets latents to, and which it removes (numbers are ours); what is predicted: `predict.*`."""

    n_latents: Count | None = 256
    """Drawn at random from those that fire in a training image; null: all."""
    n_images: Count = 32
    """Test images, drawn at random: each costs two passes through the remaining blocks for every latent."""
    quantile: Share = 0.999
    """Of a latent's largest activation in an image, over the training images in which it fires: the value to which it
    is set on all patches."""
    min_effect: NotNegative = 1.0
    """In nats: a latent is steerable if it raises the log probability of one word by more than that ..."""
    min_share: Share = 0.8
    """... in at least this share of the images."""
    words: FilePath | None = None
    """A text file with one word per line, which steered predictions choose from; null: the classes."""
    spurious: str | None = None
    """The target that misleads, whose latents are removed; null: the data's own, of the scenes the texture or the
    planted card, of Waterbirds the place, of CelebA Male; none elsewhere."""
    n_suppressed: Annotated[list[Count], Items(ascending=True)] = field(default_factory=lambda: [1, 5, 20, 100])
    """How many latents are removed together."""
    n_draws: Annotated[int, Bounds(0, 1000)] = 3
    """Random sets of equal activation mass for each of these."""
    min_group_images: Count = 5
    """Test images that a group must have to be called the worst."""
    seed: Seed = 0
    """Of latents and images drawn, of random directions and random sets."""

    def __post_init__(self) -> None:
        check(self, "steer")


@dataclass
class QualityConfig:
    """On what `stage=quality` measures an SAE beside its fidelity.

    Images are read `predict.batch_images` at a time; the linear probe has `probe.target`, `held_out_share` and `seed`.
    """

    n_tokens: Annotated[int, Bounds(4, 10_000)] = 10_000
    """Test tokens, drawn at random, on which CKNNA and the curve over k are measured; all where there are fewer."""
    n_neighbours: Annotated[int, Bounds(1, 1000)] = 10
    """Nearest neighbours that CKNNA compares (the default of MSAE's code)."""
    k_levels: Annotated[list[Count], Items(ascending=True)] | None = None
    """Largest activations of a token that are kept; those above the number of latents are left out; null: 1, 2, 4, ...
    and all."""
    n_probe_images: Annotated[int, Bounds(2, 10**12)] | None = 10_000
    """Training images, drawn at random, on which the linear probe is trained (ours); null: all."""
    seed: Seed = 0
    """Of the tokens and the images that are drawn."""

    def __post_init__(self) -> None:
        check(self, "quality")

    def choose_ks(self, d_sae: int) -> list[int]:
        """Return `k_levels` for so many latents, with null resolved."""
        if self.k_levels is not None:
            return [k for k in self.k_levels if k <= d_sae]
        return [2**i for i in range((d_sae - 1).bit_length())] + [d_sae]

    def cache_key_fields(self) -> dict[str, Any]:
        """Return the settings that change results, apart from those of the probe, as plain JSON."""
        return {name: getattr(self, name) for name in ("n_tokens", "n_neighbours", "k_levels", "seed")}


class Reading(Enum):
    """What is compared with a word: of SAEs of embeddings a decoder row, of others the images where a latent fires."""

    centred = "centred"
    """The decoder row (of other SAEs: the mean embedding of the latent's top images, less that of all images) with the
    text less the mean of all texts of the vocabulary (ours): texts have a direction in common that no image has."""
    row = "row"
    """The decoder row with the text (MSAE's); of other SAEs there is none."""
    shifted = "shifted"
    """The mean embedding plus the decoder row (MSAE's), or the mean embedding of the top images, with the text."""


class NameText(Enum):
    """What is embedded of a word."""

    templates = "templates"
    """The mean of the sentences of predict.templates about it."""
    word = "word"
    """The word alone."""


@dataclass
class NameConfig:
    """What `stage=name` calls latents, when a name is valid, and what it makes of them."""

    vocabulary: FilePath | None = None
    """A text file with a word or phrase on each line; null: of scenes the kinds, colours, textures, places, weathers
    and lights with their synonyms, of CelebA the attributes, else the names of the classes."""
    text: NameText = NameText.templates
    reading: Reading = Reading.centred
    """By which latents are named in the table of latents; how many valid names the others give is told too."""
    min_cosine: Annotated[float, Bounds(-1, 1)] = 0.42
    """A valid name has a larger cosine (MSAE's)."""
    min_ratio: Annotated[float, Bounds(1, 1e6)] = 2.0
    """And over so many times the cosine of the next concept (MSAE's)."""
    n_top_images: Annotated[int, Bounds(2, 4096)] = 16
    """Images by which names are made where there are no rows to compare, and held against the truth (ours); a latent
    that fires in fewer training images has no name."""
    n_nearest: Annotated[int, Bounds(1, 1000)] = 10
    """Nearest images of a search (ours)."""
    concept: str | None = None
    """Whose search the page shows; null: the one with the largest cosine among valid names."""
    n_draws: Annotated[int, Bounds(1, 1000)] = 10
    """Random directions and permutations that say what comes by chance (ours)."""
    seed: Seed = 0
    """Of these, and of the images that are searched for."""

    def __post_init__(self) -> None:
        check(self, "name")

    def cache_key_fields(self) -> dict[str, Any]:
        """Return the settings that change results, apart from the words, as plain JSON: no path."""
        numbers = ("min_cosine", "min_ratio", "n_top_images", "n_nearest", "concept", "n_draws", "seed")
        return {"reading": self.reading.name, **{name: getattr(self, name) for name in numbers}}


@dataclass
class ExploreConfig:
    """What the explorer of `stage=explore` shows."""

    n_images: Few = 16
    """Top images of each latent with its maps on both crops: of the `scope.k_max` that are ranked, so many at most."""
    thumbnail_px: Annotated[int, Bounds(16, 4096)] = 128
    """Side of the thumbnails, of which each image has one; never larger than the square that the crops are cut from."""
    n_browsed: CountOrNone = 24
    """Images of which all that fires in them is shown, on the whole image and on both crops: half of training and half
    of test images, where there are such; 0: none."""
    n_near: FewOrNone = 8
    """Nearest latents of each latent that are listed: by decoder row, and by the images on which they fire; 0: none."""
    n_level_images: Count | None = 4096
    """Training images, drawn at random, on which the levels of activation are measured; null: all."""
    seed: Seed = 0
    """Of the images that are drawn."""
    beside: list[FilePath] = field(default_factory=list)
    """Folders of other explorers, to stand beside this one: another layer, another SAE, another model."""
    of: FilePath | None = None
    """Show scores that exist, whatever became of their images: the folder of the scores
    (OUTPUT_DIR/artifacts/score/NAME) or of a run, from which all settings come. Nothing before them is made anew, and a
    grey tile stands for each image that is gone."""
    root: FilePath | None = None
    """Of explore.of: where its images lie now; null: where they lay."""

    def __post_init__(self) -> None:
        check(self, "explore")

    @property
    def unread(self) -> dict[str, str]:
        """The settings that are not read, and in words what would read them."""
        return {} if self.of is not None else {"root": "by explore.of alone: drop it, or give data.root"}

    def cache_key_fields(self) -> dict[str, Any]:
        """Return the settings that change what is shown as plain JSON: no path."""
        names = ("n_images", "thumbnail_px", "n_browsed", "n_near", "n_level_images", "seed")
        return {name: getattr(self, name) for name in names}
