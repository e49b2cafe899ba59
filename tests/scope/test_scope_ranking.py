import numpy as np
import pytest
import torch

from infoscope.errors import InputError
from infoscope.sae.activations import ReLU
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope import ranking as ranking_module
from infoscope.scope.ranking import RankBy, Ranking, TopImages, count_ranked, rank_images


def make_identity_sae(d_in):
    sae = SparseAutoencoder(d_in, d_in, ReLU(), seed=0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d_in))
    return sae.requires_grad_(False)


def make_tokens(n_images=23, n_patches=4, d_in=6):
    """Whole numbers with many ties, sums exact; latent 0 never fires, latent 1 on two images alone."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(-3, 4, (n_images, n_patches, d_in), generator=generator).float()
    tokens[..., 0] = -1
    tokens[..., 1] = 0
    tokens[7, 2, 1] = tokens[3, 0, 1] = 2
    return tokens


def batches(tokens, size, order=None):
    order = torch.arange(len(tokens)) if order is None else order
    return [(part, tokens[part]) for part in order.split(size)]


def full_sort(values, k_max):
    """values [n_images, d_sae] -> ids and values by a plain sort of everything."""
    ids = np.full((values.shape[1], k_max), -1)
    top = np.zeros((values.shape[1], k_max), np.float32)
    for latent, column in enumerate(values.T):
        order = sorted((-value, image) for image, value in enumerate(column.tolist()) if value > 0)[:k_max]
        ids[latent, : len(order)] = [image for _, image in order]
        top[latent, : len(order)] = [-value for value, _ in order]
    return ids, top


def test_ranking_equals_a_full_sort():
    tokens = make_tokens()
    for rank_by, values in ((RankBy.max, tokens.relu().amax(1)), (RankBy.mean, tokens.relu().sum(1) / 4)):
        for k_max in (1, 5, 30):
            found = rank_images(make_identity_sae(6), batches(tokens, 4), k_max, rank_by)
            ids, top = full_sort(values.numpy(), k_max)
            np.testing.assert_array_equal(found.top_images, ids)
            np.testing.assert_array_equal(found.top_values, top)
            assert (found.n_images, found.n_tokens, found.k_max, found.d_sae) == (23, 92, k_max, 6)


def test_neither_batches_nor_their_order_change_the_ranking(monkeypatch):
    tokens = make_tokens()
    sae = make_identity_sae(6)
    expected = rank_images(sae, batches(tokens, 23), 5)
    shuffled = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(ranking_module, "MAX_LATENT_VALUES", 4 * 6 * 2)  # two images encoded at a time
    for size, order in ((1, None), (7, None), (5, shuffled), (23, shuffled)):
        found = rank_images(sae, batches(tokens, size, order), 5)
        np.testing.assert_array_equal(found.top_images, expected.top_images)
        np.testing.assert_array_equal(found.top_values, expected.top_values)
        np.testing.assert_array_equal(found.firing_rate, expected.firing_rate)
        np.testing.assert_array_equal(found.mean_act, expected.mean_act)


@pytest.mark.parametrize("rank_by", list(RankBy))
def test_an_interrupted_pass_goes_on_and_ends_the_same(tmp_path, monkeypatch, rank_by):
    monkeypatch.setattr(ranking_module, "SAVE_EVERY_IMAGES", 8)
    tokens = make_tokens() + torch.rand(23, 4, 6, generator=torch.Generator().manual_seed(4))
    sae, whole = make_identity_sae(6), batches(tokens, 4)
    expected = rank_images(sae, whole, 5, rank_by)

    def cut_off():
        yield from whole[:5]
        raise KeyboardInterrupt

    assert count_ranked(tmp_path) == 0
    with pytest.raises(KeyboardInterrupt):
        rank_images(sae, cut_off(), 5, rank_by, progress_folder=tmp_path)
    assert count_ranked(tmp_path) == 16
    seen = []
    found = rank_images(sae, whole[4:], 5, rank_by, seen.append, tmp_path)
    assert seen == [20, 23]
    assert (found.n_images, found.n_tokens) == (23, 92)
    for name in ("top_images", "top_values", "firing_rate", "mean_act"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_merging_random_floats_equals_a_full_sort():
    values = torch.rand(50, 8, generator=torch.Generator().manual_seed(2)).sub(0.3).relu()
    top = TopImages(8, 6)
    for part in torch.randperm(50, generator=torch.Generator().manual_seed(3)).split(9):
        top.update(part, values[part])
    ids, best = full_sort(values.numpy(), 6)
    np.testing.assert_array_equal(top.images.numpy(), ids)
    np.testing.assert_array_equal(top.values.numpy(), best)


def test_rates_count_every_token():
    tokens = make_tokens()
    seen = []
    found = rank_images(make_identity_sae(6), batches(tokens, 10), 3, progress=seen.append)
    np.testing.assert_allclose(found.firing_rate, (tokens > 0).float().mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(found.mean_act, tokens.relu().mean((0, 1)), rtol=1e-6)
    assert found.firing_rate[0] == 0
    assert found.firing_rate[1] == np.float32(2 / 92)
    assert seen == [10, 20, 23]


def test_a_ranking_is_read_as_it_was_written(tmp_path):
    written = rank_images(make_identity_sae(6), batches(make_tokens(), 8), 3, RankBy.mean)
    written.save(tmp_path / "rank")
    read = Ranking.load(tmp_path / "rank")
    for name in ("top_images", "top_values", "firing_rate", "mean_act"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        assert getattr(read, name).dtype == getattr(written, name).dtype
    assert (read.n_images, read.n_tokens, read.rank_by) == (23, 92, RankBy.mean)
    assert read.unique_images().tolist() == sorted(set(written.top_images.ravel().tolist()) - {-1})


def test_too_few_images_are_refused():
    found = rank_images(make_identity_sae(6), batches(make_tokens(n_images=8), 8), 4)
    found.check_enough_images(4)
    with pytest.raises(InputError, match=r"at least scope\.k_cds=9 images to rank, got 8"):
        found.check_enough_images(9)
    with pytest.raises(InputError, match=r"larger scope\.k_max"):
        found.check_enough_images(5)
    with pytest.raises(InputError, match="got none"):
        rank_images(make_identity_sae(6), [], 4)
    with pytest.raises(InputError, match="k_max"):
        TopImages(3, 0)
