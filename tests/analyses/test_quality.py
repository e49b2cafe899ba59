"""Decoder rows and a probe on reconstructions: against loops; what is read of tokens, and what is drawn."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from infoscope.analyses import quality
from infoscope.analyses.config import QualityConfig
from infoscope.analyses.quality import (
    HeadTest,
    ImageHead,
    QualityResult,
    compare_predictions,
    find_nearest_rows,
    mean_of_images,
    measure_geometry,
    measure_quality,
)
from infoscope.probes.heads import LinearMaps
from infoscope.sae.activation import Activation
from infoscope.sae.activations import BatchTopK, TopK
from infoscope.sae.config import TokenChoice
from infoscope.sae.model import SparseAutoencoder
from infoscope.vision.backbone import Tokens
from tests.support.probe_samples import D, SampleCache

D_IN, D_SAE = 6, 20


def make_rows(n: int = D_SAE) -> torch.Tensor:
    rows = torch.randn(n, D_IN, generator=torch.Generator().manual_seed(0))
    rows *= torch.rand(n, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    return rows


@pytest.mark.parametrize("block", [2**24, 7])
def test_the_squared_cosine_of_rows_is_that_of_a_loop_over_pairs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "MAX_COSINES", block)
    rows = make_rows()
    rows[3] = 0
    kept = [row for i, row in enumerate(rows) if i != 3]
    cosines = [torch.cosine_similarity(one, other, dim=0).item() for one, other in combinations(kept, 2)]
    found = measure_geometry(rows)
    assert found.orthogonality == pytest.approx(np.mean(np.square(cosines)), abs=1e-6)
    assert found.n_zero_rows == 1
    assert 0 < found.least < found.orthogonality
    nearest = find_nearest_rows(rows)
    assert np.isnan(nearest[3])
    assert nearest[0] == pytest.approx(max(torch.cosine_similarity(kept[0], o, dim=0).item() for o in kept[1:]))


def test_rows_at_right_angles_have_0_and_a_tight_frame_has_the_least() -> None:
    assert measure_geometry(3 * torch.eye(5)).orthogonality == pytest.approx(0, abs=1e-12)
    angles = torch.arange(3) * 2 * torch.pi / 3
    star = measure_geometry(torch.stack([angles.cos(), angles.sin()], 1))
    assert star.orthogonality == pytest.approx(star.least) == 0.25
    assert np.isnan(measure_geometry(torch.zeros(4, 2)).orthogonality)
    assert np.isnan(find_nearest_rows(torch.zeros(4, 2))).all()


def test_rows_of_many_latents_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "MAX_COMPARED", D_SAE - 1)
    assert np.isnan(find_nearest_rows(make_rows())).all()


def test_a_head_reads_originals_and_reconstructions() -> None:
    maps = LinearMaps(torch.eye(3)[None], torch.zeros(1, 3))
    x = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [2, 0, 0]])
    x_hat = torch.tensor([[2.0, 0, 0], [0, 1, 0], [9, 0, 2], [2, 0, 0]])
    found = compare_predictions(maps, x, x_hat, torch.tensor([0, 1, 2, 1]))
    assert (found.n_images, found.n_classes, found.accuracy) == (4, 3, 0.75)
    assert (found.accuracy_reconstructed, found.agreement) == (0.5, 0.75)
    p, q = (torch.softmax(maps(vectors[None])[0].double(), -1) for vectors in (x, x_hat))
    kl = [sum(float(a * (a / b).log()) for a, b in zip(*rows, strict=True)) for rows in zip(p, q, strict=True)]
    assert found.kl_nats == pytest.approx(np.mean(kl), abs=1e-9)


class Cache(SampleCache):
    """Nine images of 16 patches and CLS."""

    meta = {"n_prefix": 1}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(9, 0)
        self.read: list[int] = []

    def tokens(self, rows: np.ndarray) -> Tokens:
        self.read += rows.tolist()
        return super().tokens(rows)


def make_sae(activation: Activation) -> SparseAutoencoder:
    return SparseAutoencoder(D, D_SAE, activation).requires_grad_(False)


@pytest.mark.parametrize("reads", list(TokenChoice))
def test_what_is_measured_does_not_depend_on_batches_and_is_saved(reads: TokenChoice, tmp_path: Path) -> None:
    tokens, sae = Cache(), make_sae(TopK(3))
    config = QualityConfig(n_neighbours=2, n_tokens=20)
    weight = torch.randn(D, 3, generator=torch.Generator().manual_seed(0)).numpy()
    probe = HeadTest(ImageHead(weight, np.zeros(3, np.float32), 1.0, 5), tokens.classes)
    found, again = (measure_quality(sae, tokens, config, reads, probe, n) for n in (2, 9))  # pyright: ignore[reportArgumentType]
    assert found.cknna == pytest.approx(again.cknna)
    np.testing.assert_allclose(found.fvu, again.fvu, rtol=1e-6)
    assert found.kl_nats == pytest.approx(again.kl_nats)
    assert found.n_tokens == (9 if reads is TokenChoice.cls else 20)
    assert found.ks.tolist() == [1, 2, 4, 8, 16, 20]
    assert (found.n_images, found.n_classes) == (9, 3)
    found.save(tmp_path)
    loaded = QualityResult.load(tmp_path)
    for name, value in vars(found).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)


def test_without_a_head_only_images_with_a_drawn_token_are_read() -> None:
    tokens, config = Cache(), QualityConfig(n_neighbours=1, n_tokens=4, k_levels=[2, 5, 99])
    found = measure_quality(make_sae(BatchTopK(3)), tokens, config)  # pyright: ignore[reportArgumentType]
    assert 1 <= len(tokens.read) == len(set(tokens.read)) <= 4
    assert found.n_tokens == 4
    assert found.ks.tolist() == [2, 5]
    assert np.isnan(found.accuracy)
    assert found.n_classes == 0


def test_the_vector_of_an_image_is_the_mean_of_what_the_sae_reads() -> None:
    tokens, rows = Cache(), np.array([1, 4, 7])
    everything = tokens.tokens(rows)
    expected = torch.cat([everything.prefix, everything.patches], 1).mean(1)
    found = mean_of_images(tokens, rows, TokenChoice.all, 2)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(found, expected)
