import numpy as np
import pytest
import torch

from infoscope.sae import model
from infoscope.sae.config import TokenNorm
from infoscope.scope import maps
from infoscope.scope.maps import WantedMaps, encode_pairs
from tests.support.imported_samples import ACTIVATIONS, D_IN, D_SAE, make_sae, make_tokens

N_IMAGES, N_PATCHES = 5, 6


@pytest.mark.parametrize("at_once", [None, 7])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_maps_of_pairs_are_columns_of_what_fires(name, at_once, monkeypatch):
    sae = make_sae(name, TokenNorm.layer_norm, torch.float32)
    patches = make_tokens(2 * N_IMAGES * N_PATCHES, dtype=torch.float32).view(2, N_IMAGES, N_PATCHES, D_IN)
    dense = sae.encode(patches).clamp_min(0)
    pairs = np.random.default_rng(0).permutation(N_IMAGES * D_SAE)[: 3 * N_IMAGES]
    slots, latents = np.divmod(np.sort(pairs), D_SAE)
    latents = np.concatenate([latents[slots == i][::-1] for i in range(N_IMAGES)])  # of an image in any order
    keep = slots != 2  # an image that nobody wants
    if at_once is not None:
        monkeypatch.setattr(model, "MAX_PRE_ACTS", at_once * D_SAE)
        monkeypatch.setattr(maps, "MAX_PRE_ACTS", 2 * 2 * N_PATCHES * D_SAE)  # gates: two images
    found = encode_pairs(sae, patches, slots[keep], latents[keep])
    expected = dense[:, torch.from_numpy(slots[keep]), :, torch.from_numpy(latents[keep])]
    assert (expected > 0).any()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert encode_pairs(sae, patches, slots[:0], latents[:0]).shape == (0, 2, N_PATCHES)


class NotedReader:
    def __init__(self):
        self.n_readings = 0

    def read(self, indices, batch_size):
        self.n_readings += 1
        yield from (indices[start : start + batch_size].tolist() for start in range(0, len(indices), batch_size))


@pytest.mark.parametrize(
    ("sizes", "n_readings"), [((4, 4, 3), 1), ((4,), 1), ((3,), 1), ((3, 4), 2), ((5, 5, 1), 3), ((), 0)]
)
def test_no_batch_is_of_two_parts(sizes, n_readings):
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]) if sizes else []
    reader = NotedReader()
    batches = list(maps._read(reader, parts, 2))
    assert batches == [part[start : start + 2].tolist() for part in parts for start in range(0, len(part), 2)]
    assert reader.n_readings == n_readings


def test_pairs_are_found_by_image():
    wanted = WantedMaps(make_sae("relu", TokenNorm.none), np.array([3, 9]), np.array([[4, 2, -1], [2, 7, 4]]))
    rows, ranks = wanted.find_pairs(np.array([2, 4]))
    assert list(zip(rows.tolist(), ranks.tolist(), strict=True)) == [(0, 1), (1, 0), (0, 0), (1, 2)]
