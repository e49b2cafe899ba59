from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from infoscope.analyses.config import DescribeConfig, ImageCode
from infoscope.analyses.description import Description, Labels, describe_latents
from infoscope.analyses.hierarchy import make_family_hierarchy
from infoscope.analyses.image_codes import ImageCodes
from infoscope.analyses.monosemanticity import compute_ms, normalise

N, D_SAE, N_PATCHES = 36, 5, 4
PURE, MIXED, RARE, SILENT, CONSTANT = range(D_SAE)
LABELS = np.arange(N) % 3
CONFIG = DescribeConfig(n_label_images=6, n_top_images=8, n_clarity_images=6, n_class_latents=2)


def make_planted() -> tuple[np.ndarray, ImageCodes]:
    """Return activations [N, N_PATCHES, D_SAE] with planted latents, and their codes."""
    rng = np.random.default_rng(0)
    z = np.zeros((N, N_PATCHES, D_SAE), dtype=np.float32)
    z[LABELS == 1, 0, PURE] = 1 + rng.random(12)
    z[:, :2, MIXED] = rng.random((N, 2)) * (rng.random((N, 1)) < 0.8)
    z[3:8, 1, RARE] = 2
    z[:, :, CONSTANT] = 0.1
    images, latents = z.max(1).nonzero()
    found = {"means": z.mean(1), "peaks": z.max(1), "n_on": (z > 0).sum(1), "n_strong": (z > 0.2).sum(1)}
    starts = np.searchsorted(images, np.arange(N + 1))
    columns = {name: values[images, latents] for name, values in found.items()}
    return z, ImageCodes(
        starts, latents, **columns, image_index=np.arange(N) + 7, d_sae=D_SAE, n_patches=4, strong_above=0.2
    )


def make_vectors() -> np.ndarray:
    """Return vectors that are alike within a class."""
    noise = np.random.default_rng(1).standard_normal((N, 6))
    return (np.eye(6)[LABELS] + 0.1 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def labels() -> Labels:
    names = ["ball", "ring", "cube", "nothing"]
    return Labels(LABELS, names, make_family_hierarchy({"round": names[:2], "others": names[2:]}, names))


@pytest.mark.parametrize("code", ImageCode)
def test_planted_latents_are_told_apart(labels: Labels, code: ImageCode, tmp_path: Path) -> None:
    config = DescribeConfig(code, n_label_images=6, n_top_images=8, n_clarity_images=6, n_class_latents=2)
    z, codes = make_planted()
    found = describe_latents(codes, make_vectors(), config, labels)
    found.save(tmp_path)
    found = Description.load(tmp_path)
    assert found.fires_enough.tolist() == [True, True, False, False, True]
    on = [z[..., latent][z[..., latent] > 0] for latent in range(D_SAE)]
    np.testing.assert_allclose(found.mean_firing, [of.mean() if len(of) else np.nan for of in on], rtol=1e-6)
    np.testing.assert_allclose(found.strong_rate, (z > 0.2).mean((0, 1)))
    assert found.ms[PURE] > 0.9 > 0.6 > found.ms[MIXED]
    assert np.isnan(found.ms[[RARE, SILENT, CONSTANT]]).all()
    assert np.isnan(found.clarity).tolist() == np.isnan(found.top_overlap).tolist() == [False, False, True, True, False]
    assert found.clarity[PURE] > 0.9
    assert (found.top_images[[RARE, SILENT]] == -1).all()
    strongest = (z.max(1) if code is ImageCode.max else z.mean(1))[:, PURE].argmax()
    assert found.top_images[PURE, 0] == strongest + 7
    for name in ("label_entropy", "label_entropy_all", "label_entropy_share"):
        values = getattr(found, name)
        assert values[PURE] == 0
        assert values[MIXED] > 0.5
        assert np.isnan(values[[RARE, SILENT]]).all()
    assert found.label_entropy_share is not None
    assert found.label_entropy_share[CONSTANT] == pytest.approx(1)  # of the three classes that have images
    assert found.top_class is not None
    assert found.top_class[[PURE, SILENT, CONSTANT]].tolist() == [1, -1, -1]  # 0.1 is not strong
    assert found.top_class_share is not None
    assert found.top_class_share[PURE] == 1
    assert found.class_latents is not None
    counts = np.array([(z[label == LABELS] > 0.2).sum((0, 1)) for label in range(3)])
    assert counts[1, PURE] > 0
    assert found.class_latents[:3].tolist() == np.argsort(-counts, axis=1, kind="stable")[:, :2].tolist()
    assert (found.class_latents[3] == -1).all()
    assert found.n_classes_held is not None
    assert found.n_classes_held.tolist() == [1, 3, 2, 0, 0]
    assert found.class_images == [12, 12, 12, 0]
    assert found.tree_depth is not None
    assert found.tree_depth[PURE] == 2
    assert 0 < found.tree_depth[MIXED] < 1.5
    assert found.chance["ms"] < 0.4
    depth = found.by_chance("tree_depth")
    assert depth is not None
    assert np.nanmean(depth) == pytest.approx((2 * 11 + 12 / 3 * 2) / 35, abs=0.15)  # of any two of the images
    assert found.by_chance("ms") is None


def test_what_the_data_cannot_give_is_left_out() -> None:
    codes, vectors = make_planted()[1], make_vectors()
    found = describe_latents(codes, 3 * vectors, CONFIG)
    assert found.label_entropy is None
    assert found.class_latents is None
    assert found.tree_depth is None
    assert found.chance.keys() == {"ms", "clarity", "top_overlap"}
    ms = compute_ms(codes.matrix("means").T.tocsr(), normalise(vectors))
    assert found.ms[PURE] == pytest.approx(ms[PURE])
    assert found.by_chance("label_entropy") is None
    flat = describe_latents(codes, vectors, CONFIG, Labels(LABELS, ["ball", "ring", "cube"]))
    assert flat.tree_depth is None
    assert flat.label_entropy is not None


def test_with_too_few_images_nothing_is_described() -> None:
    config = DescribeConfig(n_label_images=40)
    found = describe_latents(make_planted()[1], make_vectors(), config, Labels(LABELS, ["ball", "ring", "cube"]))
    assert not found.fires_enough.any()
    assert np.isnan(np.concatenate([found.ms, found.clarity, found.top_overlap])).all()


def test_latents_that_are_blind_to_labels_are_at_chance() -> None:
    """They fire in few images, and unequally, so that their labels are fewer than those of images at random."""
    rng, n_images, n_classes, d_sae = np.random.default_rng(0), 2000, 100, 400
    z = np.zeros((n_images, d_sae), dtype=np.float32)
    for latent in range(d_sae):
        fires = rng.choice(n_images, rng.integers(10, 41), replace=False)
        z[fires, latent] = rng.lognormal(0, 1, len(fires))
    of = np.arange(n_images) % n_classes
    z[:, 0] = np.where(of == 3, z.max(), 0)  # but one is of a class
    z[:, 1] = np.arange(n_images) < n_classes  # and one fires in an image of each
    images, latents = z.nonzero()
    values = z[images, latents]
    codes = ImageCodes(
        np.searchsorted(images, np.arange(n_images + 1)),
        latents.astype(np.int32),
        means=values / N_PATCHES,
        peaks=values,
        n_on=np.ones(len(values), np.uint16),
        n_strong=(values > 0.2).astype(np.uint16),
        image_index=np.arange(n_images),
        d_sae=d_sae,
        n_patches=N_PATCHES,
        strong_above=0.2,
    )
    names = [f"class {number}" for number in range(n_classes)]
    hierarchy = make_family_hierarchy({"first": names[:30], "second": names[30:]}, names)
    found = describe_latents(codes, rng.standard_normal((n_images, 4)), DescribeConfig(), Labels(of, names, hierarchy))
    assert found.permuted == [
        *("label_entropy", "label_entropy_all", "label_entropy_share"),
        "top_class_share",
        "tree_depth",
    ]
    for measure in found.permuted:
        by_chance, values = found.by_chance(measure), getattr(found, measure)
        assert by_chance is not None
        assert np.median(values[2:]) == pytest.approx(np.median(by_chance[:, 2:]), rel=0.03, abs=0.02)
    assert found.label_entropy_all is not None
    assert np.median(found.label_entropy_all) < 3  # of all images 4.6
    entropy = found.by_chance("label_entropy")
    assert found.label_entropy is not None
    assert entropy is not None
    assert found.label_entropy[0] == 0
    assert (entropy[:, 0] > 1.5).all()
    for measure in ("label_entropy", "label_entropy_all"):
        excess, values = found.beyond_chance(measure), getattr(found, measure)
        assert excess is not None
        assert excess[0] < -1.5
        assert excess[1] > 0.2 or measure == "label_entropy"
        assert abs(excess[2:].mean()) < 3 * excess[2:].std() / np.sqrt(d_sae) + 0.01
        assert abs(spearmanr(excess[2:], found.n_firing[2:])[0]) < 0.2
        assert measure == "label_entropy" or spearmanr(values[2:], found.n_firing[2:])[0] > 0.7
    assert found.beyond_chance("ms") is None
