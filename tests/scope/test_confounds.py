"""Properties and effects against brute force; what is planted as global or local is declared so; AUROC and matching."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from infoscope.data.images import ImageSet, Truth
from infoscope.runtime.errors import InputError
from infoscope.sae import passes
from infoscope.sae.activations import ReLU
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import measure_one
from infoscope.scope import confounds as confounds_module
from infoscope.scope.confound_meters import compute_epsilon_squared, compute_patch_labels
from infoscope.scope.confounds import ConfoundResult, LatentProperties, measure_confounds
from infoscope.scope.partial_ranks import compute_spearman
from infoscope.scope.separation import compute_auroc, compute_separation, find_best_cut, judge_cut, match_frequency
from infoscope.vision.backbone import Tokens
from infoscope.vision.tokens.source import TokenSource

GRID, N_PATCHES, D, N_LABELS = 4, 16, 8, 3
GLOBAL, EVEN, LOCAL, BOTH, NOISE, RARE, CONSTANT, DEAD = range(D)


class SampleSet(ImageSet):
    """Label maps at 6 px a patch, whose first pixel row is ignored; the light and the weather are known."""

    truths = frozenset({Truth.labels, Truth.label_maps})
    label_names = ("a", "b", "c")
    global_factors = ("light", "weather")
    targets = ("class", *global_factors)

    def __init__(self, n_images: int) -> None:
        super().__init__("train", [f"{i:04d}" for i in range(n_images)])
        rng = np.random.default_rng(0)
        self.factors = {name: rng.integers(4, size=n_images) for name in self.global_factors}
        self.patch_labels = rng.integers(N_LABELS, size=(n_images, GRID, GRID))

    @property
    def fingerprint(self):
        return {}

    def load(self, index, size_px):
        raise NotImplementedError

    def depth_m(self, index):
        raise NotImplementedError

    def caption(self, index):
        raise NotImplementedError

    def labels(self, target):
        return self.factors[target]

    def n_target_classes(self, target):
        return 4

    def label_map(self, index):
        pixels = np.kron(self.patch_labels[index], np.ones((6, 6))).astype(np.uint8)
        pixels[0] = 255
        return pixels


class SampleCache:
    """Tokens whose channels are what the latents will be; rows are images in reverse, the last is not there."""

    grid = GRID
    iterate, iterate_patches = TokenSource.iterate, TokenSource.iterate_patches

    def __init__(self, images: SampleSet) -> None:
        rng = np.random.default_rng(1)
        n = len(images) - 1
        self.image_index = np.arange(n)[::-1].copy()
        light = images.factors["light"][self.image_index][:, None]
        label = images.patch_labels[self.image_index].reshape(n, N_PATCHES)
        acts = np.zeros((n, N_PATCHES, D))
        acts[..., GLOBAL] = (light == 2) * rng.uniform(0.8, 1.2, (n, N_PATCHES))
        acts[..., EVEN] = light == 1
        acts[..., LOCAL] = (label == 1) * rng.uniform(0.5, 1.5, (n, N_PATCHES))
        acts[..., BOTH] = (light == 3) & (label == 0)
        acts[..., NOISE] = np.maximum(rng.normal(0, 1, (n, N_PATCHES)), 0)
        acts[:9, 3, RARE] = 2 + np.arange(9)
        acts[..., CONSTANT] = 0.7
        self.acts = acts.astype(np.float32)

    def __len__(self) -> int:
        return len(self.image_index)

    def tokens(self, rows):
        return Tokens(torch.zeros(0), torch.from_numpy(self.acts[rows]))


def make_identity_sae() -> SparseAutoencoder:
    sae = SparseAutoencoder(D, D, ReLU())
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(D))
    return sae.requires_grad_(False)


def compute_confounds(tokens, images, k_max=16) -> ConfoundResult:
    return measure_one(tokens, measure_confounds(make_identity_sae(), images, k_max)).compute()


@pytest.fixture(scope="module")
def images() -> SampleSet:
    return SampleSet(151)


@pytest.fixture(scope="module")
def cache(images):
    return SampleCache(images)


@pytest.fixture(scope="module")
def result(images, cache) -> ConfoundResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "BATCH_IMAGES", 7)
        return compute_confounds(cache, images, k_max=6)


def epsilon_squared(values: np.ndarray, groups: np.ndarray, df_total: float) -> float:
    """One-way analysis of variance the long way."""
    present = np.unique(groups)
    within = sum(((values[groups == g] - values[groups == g].mean()) ** 2).sum() for g in present)
    total = ((values - values.mean()) ** 2).sum()
    mean_square = within / (df_total - (len(present) - 1))
    return (total - within - (len(present) - 1) * mean_square) / total


class TestEffects:
    @pytest.mark.parametrize("factor", ["light", "weather"])
    @pytest.mark.parametrize("latent", [GLOBAL, LOCAL, BOTH, NOISE, RARE])
    def test_the_image_effect_is_that_of_a_direct_analysis(self, images, cache, result, factor, latent):
        means = cache.acts[..., latent].astype(np.float64).mean(1)
        expected = epsilon_squared(means, images.factors[factor][cache.image_index], len(means) - 1)
        assert result.image_effects[factor][latent] == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize("latent", [GLOBAL, LOCAL, BOTH, NOISE, RARE])
    def test_the_label_effect_is_that_of_deviations_within_images(self, images, cache, result, latent):
        acts = cache.acts[..., latent].astype(np.float64)
        deviations = acts - acts.mean(1, keepdims=True)
        labels = images.patch_labels[cache.image_index].reshape(len(acts), -1)
        expected = epsilon_squared(deviations.ravel(), labels.ravel(), acts.size - len(acts))
        assert result.label_effect is not None
        assert result.label_effect[latent] == pytest.approx(expected, abs=1e-9)

    def test_ignored_patches_take_no_part(self, images, cache):
        class Holes(SampleSet):
            def label_map(self, index):
                pixels = super().label_map(index)
                pixels[:12] = 255  # two rows of patches
                return pixels

        found = compute_confounds(cache, Holes(len(images))).label_effect
        acts = cache.acts[:, 8:, NOISE].astype(np.float64)
        labels = images.patch_labels[cache.image_index].reshape(len(acts), -1)[:, 8:]
        deviations = acts - acts.mean(1, keepdims=True)
        expected = epsilon_squared(deviations.ravel(), labels.ravel(), acts.size - len(acts))
        assert found is not None
        assert found[NOISE] == pytest.approx(expected, abs=1e-9)

    def test_corrected_for_the_number_of_groups(self):
        """Groups that mean nothing explain about nothing, however many they are; plain eta^2 would say 0.2."""
        rng = np.random.default_rng(0)
        values, groups = rng.normal(size=(200, 100)), np.arange(200) % 40
        sums = np.stack([values[groups == g].sum(0) for g in range(40)])
        found = compute_epsilon_squared(
            torch.tensor([5.0] * 40 + [0.0]).double(),  # an empty group changes nothing
            torch.from_numpy(np.vstack([sums, np.zeros((1, 100))])),
            torch.from_numpy(((values - values.mean(0)) ** 2).sum(0)),
            199,
        )
        assert found[3] == pytest.approx(epsilon_squared(values[:, 3], groups, 199), abs=1e-9)
        assert abs(found.mean()) < 0.02

    def test_no_effect_exists_without_variation_or_groups(self, result):
        assert np.isnan(result.image_effect[[CONSTANT, DEAD]]).all()
        one_group = compute_epsilon_squared(torch.ones(1), torch.ones(1, 2), torch.ones(2), 5)
        assert np.isnan(one_group).all()


class TestDeclared:
    def test_what_is_planted_is_found(self, result):
        assert np.flatnonzero(result.known_global).tolist() == [GLOBAL, EVEN]
        assert np.flatnonzero(result.known_local).tolist() == [LOCAL]

    def test_too_few_images_declare_nothing(self, monkeypatch, result):
        assert result.properties.image_rate[RARE] * result.n_images == pytest.approx(9)
        monkeypatch.setattr(confounds_module, "MIN_IMAGES", 1000)
        assert not (result.known_global | result.known_local).any()

    def test_support_divides(self, result):
        assert result.diffuse[[GLOBAL, EVEN, LOCAL]].all()  # a label holds a third of the patches here
        assert result.compact[RARE]
        assert not (result.compact | result.diffuse)[DEAD]

    def test_photographs_have_properties_alone(self, cache, result):
        bare = compute_confounds(cache, None)
        assert not bare.has_truth
        assert not (bare.known_global | bare.known_local).any()
        assert np.isnan(bare.image_effect).all()
        np.testing.assert_allclose(bare.properties.support, result.properties.support)


class TestProperties:
    def test_against_brute_force(self, cache, result):
        acts, found = cache.acts.astype(np.float64), result.properties
        fires = acts > 0
        on = fires.any(1)
        np.testing.assert_allclose(found.firing_rate, fires.mean((0, 1)))
        np.testing.assert_allclose(found.image_rate, on.mean(0))
        np.testing.assert_allclose(found.peak, acts.max((0, 1)), rtol=1e-6)
        for latent in (GLOBAL, LOCAL, NOISE, RARE):
            there = acts[on[:, latent], :, latent]
            assert found.support[latent] == pytest.approx((there > 0).mean())
            participation = (there.sum(1) ** 2 / (there**2).sum(1)).mean() / N_PATCHES
            assert found.participation[latent] == pytest.approx(participation)
        assert (found.firing_rate[DEAD], found.peak[DEAD], found.peak_top(4)[DEAD]) == (0, 0, 0)
        assert np.isnan([found.support[DEAD], found.participation[DEAD]]).all()

    def test_the_mean_of_the_best_peaks_is_known_for_every_k(self, cache, result):
        """As a pass for one k alone would find it: the bits of its sum in float32."""
        peaks = torch.from_numpy(cache.acts.max(1)).T
        for k in range(1, 7):
            best = peaks.sort(dim=1, descending=True).values[:, :k].contiguous()
            expected = best.sum(1) / (best > 0).sum(1).clamp(min=1)
            np.testing.assert_array_equal(result.properties.peak_top(k), expected.double().numpy())
        assert (np.diff(result.properties.peaks[RARE]) < 0).all()
        with pytest.raises(AssertionError):
            result.properties.peak_top(7)

    def test_the_batch_size_changes_nothing(self, monkeypatch, cache, result):
        monkeypatch.setattr(passes, "MAX_LATENT_VALUES", 1)  # image by image
        found = compute_confounds(cache, None, k_max=6).properties
        for name in vars(found):
            np.testing.assert_allclose(getattr(found, name), getattr(result.properties, name), rtol=1e-6)

    def test_no_images_are_refused(self):
        empty = type("Empty", (), {"grid": GRID, "__len__": lambda self: 0})()
        with pytest.raises(InputError, match="images to measure"):
            compute_confounds(empty, None)  # pyright: ignore[reportArgumentType]


def test_patch_labels_by_vote():
    assert compute_patch_labels(np.array([[0, 0, 255, 255], [0, 9, 255, 4]], np.uint8), 2).tolist() == [0, 255, 0, 4]
    # 5 px on 2 patches: the middle pixel's centre lies on the edge and belongs to the second
    assert compute_patch_labels(np.array([[1, 1, 2, 2, 2]] * 5, np.uint8), 2).tolist() == [1, 2, 1, 2]
    assert compute_patch_labels(np.array([[7, 3], [3, 7]], np.uint8), 1).tolist() == [3]  # a tie
    assert compute_patch_labels(np.zeros((1, 1), np.uint8), 2).tolist() == [255, 255, 255, 0]


@pytest.mark.parametrize("with_truth", [True, False])
def test_what_is_saved_comes_back(tmp_path: Path, cache, result, with_truth):
    saved = result if with_truth else compute_confounds(cache, None)
    saved.save(tmp_path / "new")
    found = ConfoundResult.load(tmp_path / "new")
    assert (found.n_images, found.has_truth) == (saved.n_images, with_truth)
    for name in vars(saved.properties):
        np.testing.assert_array_equal(getattr(found.properties, name), getattr(saved.properties, name))
    assert list(found.image_effects) == list(saved.image_effects)
    np.testing.assert_array_equal(found.image_effect, saved.image_effect)
    np.testing.assert_array_equal(found.known_global, saved.known_global)
    np.testing.assert_array_equal(found.known_local, saved.known_local)


def mask(n: int, *members: int) -> np.ndarray:
    found = np.zeros(n, bool)
    found[list(members)] = True
    return found


class TestCuts:
    def test_by_hand(self) -> None:
        scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, np.nan])
        positive, negative = mask(6, 1, 3, 4, 5), mask(6, 0, 2)
        assert judge_cut(scores, positive, negative, 0.3) == (0.3, pytest.approx(2 / 3), 1)
        best = find_best_cut(scores, positive, negative)
        assert best == (pytest.approx(0.35), pytest.approx(2 / 3), 1)
        assert best.balanced_accuracy == pytest.approx(5 / 6)

    def test_it_is_the_best_of_all_cuts(self) -> None:
        rng = np.random.default_rng(3)
        scores, positive = rng.integers(0, 30, 200) / 30, rng.random(200) < 0.3
        scores[positive] += 0.2
        best = find_best_cut(scores, positive, ~positive)
        others = [judge_cut(scores, positive, ~positive, value).balanced_accuracy for value in np.unique(scores)]
        assert best.balanced_accuracy == pytest.approx(max(others))

    def test_without_a_group_or_a_cut_there_is_none(self) -> None:
        for cut in (
            find_best_cut(np.array([0.1, 0.2]), mask(2), mask(2, 0)),
            find_best_cut(np.array([0.1, 0.1]), mask(2, 1), mask(2, 0)),
            judge_cut(np.array([0.1, 0.2]), mask(2, 1), mask(2, 0), np.nan),
        ):
            assert np.isnan(cut).all()


class TestAuroc:
    def test_by_hand_with_ties(self):
        scores = np.array([0.5, 0.9, 0.5, 0.1, np.nan])
        found = compute_auroc(scores, mask(5, 0, 1, 4), mask(5, 2, 3))
        assert found.value == (0.5 + 1 + 1 + 1) / 4
        assert (found.n_positive, found.n_negative) == (2, 2)

    def test_is_that_of_mann_and_whitney(self):
        rng = np.random.default_rng(3)
        scores = rng.integers(0, 12, 90) / 12
        positive = rng.random(90) < 0.4
        found = compute_auroc(scores, positive, ~positive, n_bootstrap=300)
        u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
        assert found.value == pytest.approx(u / (positive.sum() * (~positive).sum()))
        low, high = found.interval
        assert 0.3 < low < found.value < high < 0.7
        assert found.draws.std() == pytest.approx(0.062, abs=0.012)  # (n + m + 1) / 12 n m, without ties
        again = compute_auroc(scores, positive, ~positive, n_bootstrap=300)
        np.testing.assert_array_equal(again.draws, found.draws)

    def test_perfect_and_empty(self):
        scores = np.array([0.9, 0.8, 0.2])
        assert compute_auroc(scores, mask(3, 0, 1), mask(3, 2)).interval == (1, 1)
        empty = compute_auroc(scores, mask(3), mask(3, 2))
        assert np.isnan([empty.value, *empty.interval]).all()
        assert (empty.n_positive, empty.n_negative) == (0, 1)
        with pytest.raises(InputError, match="bootstrap"):
            compute_auroc(scores, mask(3, 0), mask(3, 2), n_bootstrap=0)


class TestMatching:
    def test_equal_histograms(self):
        rng = np.random.default_rng(0)
        n = 400
        rate = np.where(rng.random(n) < 0.1, 0, np.exp(rng.normal(-4, 1.5, n)))
        high = (rate < 0.02) & (rng.random(n) < 0.5)
        low = ~high & (rng.random(n) < 0.9)
        found = match_frequency(high, low, rate, seed=2)
        edges = np.arange(-40, 9) / 2
        counts = [np.histogram(np.log2(rate[group]), edges)[0] for group in found]
        np.testing.assert_array_equal(counts[0], counts[1])
        there = [np.histogram(np.log2(rate[group & (rate > 0)]), edges)[0] for group in (high, low)]
        np.testing.assert_array_equal(counts[0], np.minimum(*there))
        assert not (found[0] & ~high).any()
        assert not (found[1] & ~low).any()
        assert found[0].sum() > 20

    def test_a_function_of_the_seed(self):
        rate = np.full(60, 0.01)
        high, low = mask(60, *range(10)), mask(60, *range(10, 60))
        first, again, other = (match_frequency(high, low, rate, seed)[1] for seed in (0, 0, 1))
        assert first.sum() == 10
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()

    def test_groups_without_a_common_rate_are_empty(self):
        rate = np.array([0.001, 0.001, 0.5, 0.5])
        assert not np.any(match_frequency(mask(4, 0, 1), mask(4, 2, 3), rate))
        assert not np.any(match_frequency(mask(4), mask(4, 2, 3), rate))
        with pytest.raises(InputError, match="octave"):
            match_frequency(mask(4), mask(4), rate, bins_per_octave=0)


def test_separation_by_support_and_rate():
    """A score that knows the compact latents and is blind to the diffuse ones."""
    rng = np.random.default_rng(0)
    n = 200
    is_global, is_diffuse = np.arange(n) % 2 == 0, np.arange(n) < 100
    cds = np.where(is_diffuse, rng.random(n), is_global + 0.1 * rng.random(n))
    cds[0] = np.nan
    nothing = np.zeros(n)
    properties = LatentProperties(
        firing_rate=np.where(is_global, 0.02, 0.01),
        image_rate=np.ones(n),
        peaks=np.ones((n, 1)),
        support=np.where(is_diffuse, 0.5, 0.1),
        participation=nothing,
    )
    effects = np.where(is_global, 0.5, 0.0)
    confounds = ConfoundResult(properties, 100, {"light": effects, "weather": nothing}, 0.5 - effects)
    found = compute_separation(cds, confounds, n_bootstrap=50)
    assert found["compact"]["cds"].value == 1
    assert 0.3 < found["diffuse"]["cds"].value < 0.7
    assert (found["all"]["cds"].n_positive, found["all"]["firing_rate"].n_positive) == (99, 99)
    assert found["all"]["firing_rate"].value == 1
    assert found["all"]["peak"].value == 0.5
    assert found["matched"]["cds"].n_positive == 0  # no global latent fires as rarely as a local one


def test_spearman():
    a, b = np.random.default_rng(0).normal(size=(2, 30))
    a[3] = np.nan
    rho, n = compute_spearman(np.round(a), b)
    assert n == 29
    assert rho == pytest.approx(stats.spearmanr(np.round(np.delete(a, 3)), np.delete(b, 3))[0])
    assert np.isnan(compute_spearman(np.ones(4), b[:4])[0])
    assert np.isnan(compute_spearman(a[:0], b[:0])[0])
    assert np.isnan(compute_spearman(b, a, given=b)[0])  # nothing is left of b


def test_partial_spearman():
    rng = np.random.default_rng(0)
    cause, own, noise = rng.normal(size=(3, 2000))
    assert compute_spearman(cause + noise, cause + own)[0] > 0.4
    assert abs(compute_spearman(cause + noise, cause + own, given=cause)[0]) < 0.05
    x, y, z = cause + 0.5 * own, own + noise, cause
    (_, ab, az), (_, _, bz), _ = np.corrcoef([stats.rankdata(values) for values in (x, y, z)])
    expected = (ab - az * bz) / np.sqrt((1 - az**2) * (1 - bz**2))
    assert compute_spearman(x, y, given=z)[0] == pytest.approx(expected)
