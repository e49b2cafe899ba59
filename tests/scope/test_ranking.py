import numpy as np
import pytest
import torch

from infoscope.runtime import parts
from infoscope.runtime.errors import InputError
from infoscope.sae.activations import ReLU
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope import ranking as ranking_module
from infoscope.scope.ranking import RankBy, Ranking, TopImages, rank_images, rank_in_parts


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


ARRAYS = ("top_images", "top_values", "firing_rate", "mean_act")


@pytest.mark.parametrize("rank_by", list(RankBy))
def test_an_interrupted_pass_goes_on_and_ends_the_same(tmp_path, monkeypatch, rank_by):
    monkeypatch.setattr(parts, "PART_IMAGES", (8, 8))
    tokens = make_tokens() + torch.rand(23, 4, 6, generator=torch.Generator().manual_seed(4))
    sae, asked, seen = make_identity_sae(6), [], []

    def read(rows, stops_in=None):
        asked.append(rows.start)
        yield from [(index, tokens[index]) for index in torch.arange(rows.start, rows.stop).split(4)]
        if rows.start == stops_in:
            raise KeyboardInterrupt

    def rank(folder, stops_in=None):
        return rank_in_parts(sae, lambda rows: read(rows, stops_in), 23, 5, rank_by, seen.append, folder)

    expected = rank(None)
    with pytest.raises(KeyboardInterrupt):
        rank(tmp_path, stops_in=8)
    asked.clear()
    seen.clear()
    found = rank(tmp_path)
    assert asked == [8, 16]
    assert seen == [12, 16, 20, 23]
    assert (found.n_images, found.n_tokens) == (23, 92)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_parts_join_to_the_ranking_of_one_pass_whoever_made_them(tmp_path, monkeypatch):
    tokens, sae = make_tokens(), make_identity_sae(6)  # many ties
    expected = rank_images(sae, batches(tokens, 23), 5)
    monkeypatch.setattr(parts, "PART_IMAGES", (3, 3))

    def read(rows):
        yield torch.arange(rows.start, rows.stop), tokens[rows]

    def give_up(rows):
        if rows.start == 12:
            raise KeyboardInterrupt
        return read(rows)

    with pytest.raises(KeyboardInterrupt):
        rank_in_parts(sae, give_up, 23, 5, progress_folder=tmp_path)
    for number in (0, 2):  # as if another process, which knew less or more, were to make them
        (tmp_path / f"ranked-{number:05d}.pt").unlink()
    for folder in (None, tmp_path):
        found = rank_in_parts(sae, read, 23, 5, progress_folder=folder)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_a_part_leaves_out_what_cannot_be_among_the_best(monkeypatch):
    """The first images are the best: none of the later parts holds an image."""
    monkeypatch.setattr(parts, "PART_IMAGES", (4, 4))
    tokens, joined = torch.arange(12, 0, -1.0)[:, None, None].expand(-1, 1, 3), []
    merge = TopImages.merge

    def note(self, rows, values, images):
        joined.append(len(rows))
        merge(self, rows, values, images)

    monkeypatch.setattr(TopImages, "merge", note)
    found = rank_in_parts(make_identity_sae(3), lambda rows: [(torch.arange(12)[rows], tokens[rows])], 12, 4)
    assert found.top_images.tolist() == [[0, 1, 2, 3]] * 3
    assert joined == [3, 3, 3] + [0] * 6  # each part: its only batch, what its process knows, and the join


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
