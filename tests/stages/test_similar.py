"""find_similar: nearest images by embedding, by latents alone, and with latents set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import infoscope
from infoscope import InputError, find_similar
from infoscope.data.scenes.render import render_split_part
from infoscope.sae.activations import make_activation
from infoscope.sae.config import TokenChoice
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.vision.embedded import EmbeddedBackbone


@pytest.fixture(scope="module")
def backbone() -> EmbeddedBackbone:
    return EmbeddedBackbone(infoscope.load_backbone("scenes_clip", progress=False), "pooled")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [scene.image for scene in render_split_part(0, "test", 0, 12, size_px=96)]


def test_each_way_of_searching_equals_a_loop(backbone: EmbeddedBackbone, pictures: list[np.ndarray]) -> None:
    sae = SparseAutoencoder(128, 64, make_activation("topk", {"k": 8}), scale=2.0, seed=1)
    x = torch.cat([backbone.tokens(torch.from_numpy(one).permute(2, 0, 1)[None], -1).patches[:, 0] for one in pictures])
    z = sae.encode(x).detach()
    of = z.sum(0).argsort(descending=True)[:2].tolist()
    moved = x[3] + ((7.0 - z[3, of]) @ sae.W_dec[of] / 2.0).detach()
    unit = torch.nn.functional.normalize(x, dim=1)
    expected = {
        (None,): unit @ unit[3],
        (tuple(of), None): -(z[:, of] - z[3, of]).square().sum(1),
        (tuple(of), 7.0): unit @ torch.nn.functional.normalize(moved, dim=0),
    }
    for given, nearness in expected.items():
        found = find_similar(backbone, sae, pictures, 3, *given, n=4)
        nearness = nearness.double()
        nearness[3] = -torch.inf
        chosen = torch.from_numpy(found.positions)
        assert 3 not in chosen
        torch.testing.assert_close(nearness[chosen], nearness.sort(descending=True).values[:4], rtol=1e-4, atol=1e-5)
        if given[0] is not None:
            np.testing.assert_allclose(found.activations, z[chosen][:, of].numpy(), atol=1e-4)
            np.testing.assert_allclose(found.query, z[3, of].numpy(), atol=1e-4)


def test_what_cannot_be_searched_is_refused(backbone: EmbeddedBackbone, pictures: list[np.ndarray]) -> None:
    sae = SparseAutoencoder(128, 64, make_activation("topk", {"k": 8}))
    wrong = {
        "a backbone that gives embeddings of whole images": (backbone.tower, pictures, 0),
        r"images= to be a list of pictures, such as the paths of files, got photos": (backbone, "photos", 0),
        "at least two images": (backbone, pictures[:1], 0),
        r"query= to be one of their positions, got 12": (backbone, pictures, 12),
        r"latents= of 0\.\.63, got 64": (backbone, pictures, 0, (3, 64)),
        "latents= that are set to value=": (backbone, pictures, 0, None, 1.0),
        "latents= of a concept, got none": (backbone, pictures, 0, ()),
        "Expected value to be a number": (backbone, pictures, 0, (3,), "high"),
        r"a finite value=, got inf": (backbone, pictures, 0, (3,), float("inf")),
        r"each of latents= once, got \[3, 3\]": (backbone, pictures, 0, (3, 3), 1.0),
    }
    for words, (model, images, query, *more) in wrong.items():
        with pytest.raises(InputError, match=words):
            find_similar(model, sae, images, query, *more)
    silent = SparseAutoencoder(128, 64, make_activation("topk", {"k": 1}), seed=1)
    x = backbone.tokens(torch.from_numpy(pictures[0]).permute(2, 0, 1)[None], -1).patches[:, 0]
    off = np.flatnonzero(silent.encode(x).detach()[0].numpy() == 0)[:2].tolist()
    with pytest.raises(InputError, match=r"Expected latents= that fire in image 0, to find others"):
        find_similar(backbone, silent, pictures, 0, off)
    assert len(find_similar(backbone, silent, pictures, 0, off, value=1.0).positions) == 8
    with pytest.raises(InputError, match="n to be at least 1"):
        find_similar(backbone, sae, pictures, 0, n=0)
    sae.origin = Origin.of(backbone.tower, 2, TokenChoice.patch)
    with pytest.raises(InputError, match="tokens at resid_post, given those at pooled"):
        find_similar(backbone, sae, pictures, 0)
    with pytest.raises(InputError, match="tokens of width 16"):
        find_similar(backbone, SparseAutoencoder(16, 64, make_activation("topk", {"k": 8})), pictures, 0)
