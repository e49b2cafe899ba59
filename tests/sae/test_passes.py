"""A pass reads tokens once and encodes them once for each SAE, whoever measures; what is finished is not made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from infoscope.runtime import parts
from infoscope.runtime.errors import InputError
from infoscope.sae import passes
from infoscope.sae.activations import ReLU, TopK
from infoscope.sae.config import TokenChoice
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.sae.passes import LatentBatch, Measurement, SumMeter, run_pass
from tests.support.memory_tokens import MemoryTokens

N, N_PATCHES, D_IN, D_SAE = 22, 5, 6, 12


def make_tokens() -> MemoryTokens:
    return MemoryTokens(torch.randn(N, N_PATCHES, D_IN, generator=torch.Generator().manual_seed(0)), first=121)


class Mass(SumMeter):
    """The sum of each latent, and of the positions and rows of the images."""

    def __init__(self, device: torch.device | str, known: Mass | None) -> None:
        super().__init__(device, acts=(D_SAE,), index=(), rows=(), known=())
        self.sums["known"] += 0 if known is None else known.sums["acts"].sum()

    def update(self, batch: LatentBatch) -> None:
        self.sums["acts"] += batch.sums.sum(0)
        self.sums["index"] += batch.index.sum()
        self.sums["rows"] += batch.rows.sum()


class CountingSAE(SparseAutoencoder):
    """Counts the images it encodes."""

    n_encoded, most = 0, 0

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        self.n_encoded += len(x)
        self.most = max(self.most, len(x))
        return super().encode(x)


def make_sae(seed: int) -> CountingSAE:
    return CountingSAE(D_IN, D_SAE, TopK(3) if seed % 2 else ReLU(), seed=seed).requires_grad_(False)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_IMAGES", (8, 8))
    monkeypatch.setattr(passes, "BATCH_IMAGES", 5)
    monkeypatch.setattr(passes, "MAX_LATENT_VALUES", 2 * N_PATCHES * D_SAE)


ALL_BATCHES = [[*range(5)], [5, 6, 7], [*range(8, 13)], [13, 14, 15], [*range(16, 21)], [21]]


def test_tokens_are_read_once_and_encoded_once_for_each_sae() -> None:
    tokens, saes, seen = make_tokens(), [make_sae(0), make_sae(1)], []
    wanted = {(sae, what): Measurement(sae, Mass) for what in "abc" for sae in saes}
    found = run_pass(tokens, wanted, seen.append)
    assert tokens.read == ALL_BATCHES
    assert seen == [5, 8, 13, 16, 21, 22]
    assert [(sae.n_encoded, sae.most) for sae in saes] == [(N, 2)] * 2  # two images at a time are within bounds
    for (sae, _), meter in found.items():
        expected = SparseAutoencoder.encode(sae, tokens.patches).double().sum((0, 1))
        np.testing.assert_allclose(meter.sums["acts"], expected, rtol=1e-6)
        assert meter.sums["index"] == tokens.image_index.sum()
        assert meter.sums["rows"] == np.arange(N).sum()
        assert meter.sums["known"] > 0  # parts after the first are told what the ones before found


def test_what_is_missing_is_made_whatever_it_was_made_with(tmp_path: Path) -> None:
    tokens, saes = make_tokens(), [make_sae(0), make_sae(1)]
    one, two = (Measurement(sae, Mass, tmp_path / f"sae{number}") for number, sae in enumerate(saes))
    expected = [run_pass(tokens, {"x": Measurement(sae, Mass)})["x"].sums["acts"] for sae in saes]
    run_pass(tokens, {"one": one})
    (tmp_path / "sae0-00001.pt").unlink()
    tokens.read.clear()
    for sae in saes:
        sae.n_encoded = 0
    found = run_pass(tokens, {"two": two, "one": one})
    assert tokens.read == ALL_BATCHES
    assert [sae.n_encoded for sae in saes] == [8, N]
    assert list(found) == ["two", "one"]
    assert torch.equal(found["one"].sums["acts"], expected[0])
    assert torch.equal(found["two"].sums["acts"], expected[1])
    tokens.read.clear()
    again = run_pass(tokens, {"one": one, "two": two})
    assert tokens.read == []
    assert torch.equal(again["two"].sums["acts"], expected[1])


@pytest.mark.parametrize("seed", [0, 1])
def test_what_meters_share_is_what_brute_force_finds(seed: int) -> None:
    dense = make_sae(seed).encode(torch.randn(4, N_PATCHES, D_IN, generator=torch.Generator().manual_seed(1)))
    dense[2] = 0
    batch = LatentBatch(dense, torch.arange(4), np.arange(4))
    expected = dense.double()
    torch.testing.assert_close(batch.sums, expected.sum(1))
    torch.testing.assert_close(batch.squares, expected.square().sum(1))
    assert torch.equal(batch.counts, (dense > 0).sum(1).double())
    assert torch.equal(batch.peaks, dense.amax(1))
    tokens, latents, values = batch.entries
    again = torch.zeros_like(expected).flatten(0, 1)
    again[tokens, latents] = values
    assert torch.equal(again.view_as(dense), expected)
    assert tokens.diff().min() >= 0


def test_other_tokens_and_cls_are_refused_before_anything_is_read() -> None:
    tokens = make_tokens()
    tokens.meta = {"layer": 2}  # pyright: ignore[reportAttributeAccessIssue]
    for origin, message in (
        (Origin(tokens=TokenChoice.cls), "SAE of CLS tokens has no activation maps"),
        (Origin(layer=1), "block 1, given block 2"),
    ):
        sae = make_sae(0)
        sae.origin = origin
        with pytest.raises(InputError, match=message):
            run_pass(tokens, {"fine": Measurement(make_sae(1), Mass), "not": Measurement(sae, Mass)})
    assert tokens.read == []


def test_what_is_below_0_does_not_fire() -> None:
    codes = torch.randn(4, N_PATCHES, D_SAE, generator=torch.Generator().manual_seed(0))
    signed = LatentBatch(codes, torch.arange(4), np.arange(4), is_signed=True)
    usual = LatentBatch(codes.clamp_min(0), torch.arange(4), np.arange(4))
    assert usual.dense is usual.codes
    assert (signed.codes < 0).any()
    for name in ("dense", "peaks", "sums", "squares", "counts"):
        assert torch.equal(getattr(signed, name), getattr(usual, name))
