import numpy as np
import pytest
import torch

from infoscope.data.pictures import Pictures
from infoscope.data.reader import iterate_images
from infoscope.runtime import parts
from infoscope.runtime.errors import InputError
from infoscope.sae import passes
from infoscope.sae.activations import BatchTopK, ReLU
from infoscope.sae.config import KINDS
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.module import make_sae
from infoscope.sae.passes import run_pass
from infoscope.scope.ranking import RankBy, Ranking, RankMeter, draw_numbers, measure_ranking
from infoscope.scope.top_images import TopImages
from infoscope.vision.planted import PlantedRegisters
from infoscope.vision.tokens.extract import extract_tokens
from infoscope.vision.tokens.source import LiveTokens
from tests.support.memory_tokens import MemoryTokens
from tests.support.scope_samples import rank


def make_noise(n, side, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


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


def rank_images(sae, batches, k_max, rank_by=RankBy.max):
    """Batches of any order and size, shown to one meter."""
    meter = RankMeter(sae.d_sae, k_max, rank_by)
    for index, patches in batches:
        for latents in passes.iterate_latents(sae, patches, index, index.numpy()):
            meter.update(latents)
    return meter.compute()


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
    monkeypatch.setattr(passes, "MAX_LATENT_VALUES", 16 * 6 * 2)  # two images encoded at a time
    for size, order in ((1, None), (7, None), (5, shuffled), (23, shuffled)):
        found = rank_images(sae, batches(tokens, size, order), 5)
        np.testing.assert_array_equal(found.top_images, expected.top_images)
        np.testing.assert_array_equal(found.top_values, expected.top_values)
        np.testing.assert_array_equal(found.firing_rate, expected.firing_rate)
        np.testing.assert_array_equal(found.mean_act, expected.mean_act)


ARRAYS = ("top_images", "top_values", "firing_rate", "mean_act")


def assert_equal(found, expected):
    assert (found.n_images, found.n_tokens) == (expected.n_images, expected.n_tokens)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype


@pytest.mark.parametrize("rank_by", list(RankBy))
def test_an_interrupted_pass_goes_on_and_ends_the_same(tmp_path, monkeypatch, rank_by):
    monkeypatch.setattr(parts, "PART_IMAGES", (8, 8))
    monkeypatch.setattr(passes, "BATCH_IMAGES", 4)
    noise = torch.rand(23, 4, 6, generator=torch.Generator().manual_seed(4))
    sae, tokens, seen = make_identity_sae(6), MemoryTokens(make_tokens() + noise), []
    expected = rank(sae, tokens, 5, rank_by)
    tokens.stops_in = 8
    with pytest.raises(KeyboardInterrupt):
        rank(sae, tokens, 5, rank_by, place=tmp_path / "ranked")
    tokens.read.clear()
    tokens.stops_in = None
    found = rank(sae, tokens, 5, rank_by, tmp_path / "ranked", seen.append)
    assert [rows[0] for rows in tokens.read] == [8, 12, 16, 20]
    assert seen == [12, 16, 20, 23]
    assert_equal(found, expected)


def test_parts_join_to_the_ranking_of_one_pass_whoever_made_them(tmp_path, monkeypatch):
    tokens, sae = MemoryTokens(make_tokens()), make_identity_sae(6)  # many ties
    expected = rank(sae, tokens, 5)  # in one part
    monkeypatch.setattr(parts, "PART_IMAGES", (3, 3))
    tokens.stops_in = 12
    with pytest.raises(KeyboardInterrupt):
        rank(sae, tokens, 5, place=tmp_path / "ranked")
    tokens.stops_in = None
    for number in (0, 2):  # as if another process, which knew less or more, were to make them
        (tmp_path / f"ranked-{number:05d}.pt").unlink()
    for place in (None, tmp_path / "ranked"):
        assert_equal(rank(sae, tokens, 5, place=place), expected)


def rank_plainly(sae, patches, index, k_max, rank_by):
    """The definition, from dense codes; sums in float64 end with the same bits in any order once they are rounded."""
    values, n_firing, act_sum = [], 0, torch.zeros(sae.d_sae, dtype=torch.float64)
    for part in parts.cut_images(len(patches)):
        part_sum = torch.zeros(sae.d_sae, dtype=torch.float64)
        for batch in patches[part].split(passes.BATCH_IMAGES):
            for some in batch.split(max(1, passes.MAX_LATENT_VALUES // (batch.shape[1] * sae.d_sae))):
                acts = sae.encode(some)
                image_sum = acts.sum(1, dtype=torch.float64)
                values.append((image_sum / acts.shape[1]).float() if rank_by is RankBy.mean else acts.amax(1))
                n_firing = n_firing + (acts > 0).sum((0, 1))
                part_sum += image_sum.sum(0)
        act_sum += part_sum
    n_tokens = patches.shape[0] * patches.shape[1]
    by_position = np.zeros((index.max() + 1, sae.d_sae), np.float32)
    by_position[index] = torch.cat(values).numpy()
    if rank_by is RankBy.drawn:
        by_position = np.where(by_position > 0, draw_numbers(torch.arange(len(by_position)), sae.d_sae).numpy(), 0)
    rates = [(of / n_tokens).float().numpy() for of in (n_firing.double(), act_sum)]
    return Ranking(*full_sort(by_position, k_max), *rates, len(patches), n_tokens, rank_by)


def make_sae_of(kind, d_in, d_sae, seed):
    """An SAE that was never trained, with activations of all sizes and kinds."""
    config = KINDS[kind](expansion_factor=d_sae // d_in, **({} if kind in ("relu", "jumprelu") else {"k": 3}))
    sae = make_sae(config, torch.zeros(d_in), 1.3, seed)
    with torch.no_grad():
        sae.b_enc.copy_(torch.linspace(-4, 0.2, d_sae))
        if isinstance(sae.activation, BatchTopK):
            sae.activation.threshold.fill_(0.4)
    return sae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same tokens in memory, on the disk and encoded as they are asked for; rows are not image positions."""
    backbone, pictures = PlantedRegisters(6, 4, 24), Pictures(list(make_noise(26, 24, seed=5)))

    def read(positions, batch_images):
        for batch in iterate_images(pictures, backbone.image_px, batch_images, positions):
            kept = ~np.isin(batch.index, [3, 11])
            if kept.any():
                yield batch.index[kept], batch.images[kept]

    stored, live = (tmp_path_factory.mktemp(name) for name in ("stored", "live"))
    extract_tokens(backbone, read, len(pictures), -2, live, dtype=None)
    return extract_tokens(backbone, read, len(pictures), -2, stored), LiveTokens(live, backbone, read)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank_by", list(RankBy))
def test_a_ranking_has_the_bits_of_the_plain_definition_alone_and_in_company(
    tmp_path, monkeypatch, sources, kind, rank_by
):
    monkeypatch.setattr(parts, "PART_IMAGES", (9, 9))
    monkeypatch.setattr(passes, "BATCH_IMAGES", 4)
    monkeypatch.setattr(passes, "MAX_LATENT_VALUES", 3 * 36 * 48)  # three images encoded at a time
    sae, others = make_sae_of(kind, 24, 48, 0), [make_sae_of(of, 24, 96, 1) for of in ("topk", "relu")]
    for number, tokens in enumerate(sources):
        assert len(tokens) == 24
        expected = rank_plainly(sae, tokens.tokens(slice(None)).patches, tokens.image_index, 5, rank_by)
        assert 0 < (expected.top_values > 0).mean() < 1
        assert_equal(rank(sae, tokens, 5, rank_by), expected)
        places = [tmp_path / f"{number}-{name}" for name in "abc"]
        assert_equal(rank(others[0], tokens, 3, place=places[0]), rank(others[0], tokens, 3))
        places[0].with_name(f"{number}-a-00001.pt").unlink()
        together = {
            "first": measure_ranking(others[0], 3).kept_in(places[0]),  # of which two parts of three are there
            "mine": measure_ranking(sae, 5, rank_by).kept_in(places[1]),
            "last": measure_ranking(others[1], 4).kept_in(places[2]),
        }
        assert_equal(run_pass(tokens, together)["mine"].compute(), expected)


def test_a_part_leaves_out_what_cannot_be_among_the_best(monkeypatch):
    """The first images are the best: none of the later parts holds an image."""
    monkeypatch.setattr(parts, "PART_IMAGES", (4, 4))
    tokens, joined = torch.arange(12, 0, -1.0)[:, None, None].expand(-1, 1, 3), []
    merge = TopImages.merge

    def note(self, rows, values, images):
        joined.append(len(rows))
        merge(self, rows, values, images)

    monkeypatch.setattr(TopImages, "merge", note)
    found = rank(make_identity_sae(3), MemoryTokens(tokens), 4)
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
    found = rank_images(make_identity_sae(6), batches(tokens, 10), 3)
    np.testing.assert_allclose(found.firing_rate, (tokens > 0).float().mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(found.mean_act, tokens.relu().mean((0, 1)), rtol=1e-6)
    assert found.firing_rate[0] == 0
    assert found.firing_rate[1] == np.float32(2 / 92)


def test_a_ranking_is_read_as_it_was_written(tmp_path):
    written = rank_images(make_identity_sae(6), batches(make_tokens(), 8), 3, RankBy.mean)
    written.save(tmp_path / "rank")
    read = Ranking.load(tmp_path / "rank")
    for name in ("top_images", "top_values", "firing_rate", "mean_act"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        assert getattr(read, name).dtype == getattr(written, name).dtype
    assert (read.n_images, read.n_tokens, read.rank_by) == (23, 92, RankBy.mean)


def test_too_few_images_are_refused():
    found = rank_images(make_identity_sae(6), batches(make_tokens(n_images=8), 8), 4)
    found.check(6, 4)
    with pytest.raises(InputError, match=r"at least scope\.k_cds=9 images to rank, got 8"):
        found.check(6, 9)
    with pytest.raises(InputError, match=r"larger scope\.k_max"):
        found.check(6, 5)
    with pytest.raises(InputError, match="got none"):
        rank_images(make_identity_sae(6), [], 4)
    with pytest.raises(InputError, match="k_max"):
        TopImages(3, 0)


def test_drawn_images_come_evenly_from_those_on_which_a_latent_fires():
    tokens = torch.zeros(200, 4, 40)
    tokens[50:150] = torch.arange(1.0, 101)[:, None, None]  # in the first 50 and the last 50 images nothing fires
    found = rank_images(make_identity_sae(40), batches(tokens, 16), 10, RankBy.drawn)
    again = rank_images(make_identity_sae(40), batches(tokens, 64), 10, RankBy.drawn)
    assert_equal(found, again)
    assert found.top_images.min() >= 50
    assert found.top_images.max() < 150
    assert all(len(set(images)) == 10 for images in found.top_images.tolist())
    assert np.bincount((found.top_images.ravel() - 50) // 25) == pytest.approx([100] * 4, abs=35)  # quarters


def test_drawn_numbers_are_even_and_differ_by_latent_and_image():
    numbers = draw_numbers(torch.arange(50), 400).numpy()
    assert 0 < numbers.min() < numbers.max() <= 1
    assert np.quantile(numbers, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.02)
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.03
