"""A pass reads tokens once and encodes them once for each SAE, whoever measures; what is finished is not made again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from infoscope.analyses.image_codes import CodeMeter
from infoscope.runtime import parts
from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Part
from infoscope.sae import passes
from infoscope.sae.activations import ReLU, TopK
from infoscope.sae.config import TokenChoice, TokenNorm
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.sae.passes import LatentBatch, Measurement, SumMeter, iterate_latents, run_pass
from infoscope.vision.tokens import source
from infoscope.vision.tokens.extract import TokenCache
from tests.support import imported_samples
from tests.support.imported_samples import ACTIVATIONS, SIGNED
from tests.support.imported_samples import make_tokens as make_patches
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

    def pre_acts(self, x: torch.Tensor) -> torch.Tensor:
        n_images = len(x) // N_PATCHES
        self.n_encoded += n_images
        self.most = max(self.most, n_images)
        return super().pre_acts(x)


def make_sae(seed: int) -> CountingSAE:
    return CountingSAE(D_IN, D_SAE, TopK(3) if seed % 2 else ReLU(), seed=seed).requires_grad_(False)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_IMAGES", (8, 8))
    monkeypatch.setattr(passes, "BATCH_IMAGES", 5)
    monkeypatch.setattr(passes, "MAX_LATENT_VALUES", 2 * 16 * D_SAE)


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


class Apart(Mass):
    """Asks for nothing of other images."""

    reads_known, has_others = False, False

    def add(self, part: Part) -> None:
        self.has_others = True
        super().add(part)


def test_a_meter_that_reads_nothing_of_other_images_is_told_nothing() -> None:
    meters: list[Apart] = []

    def make(device: torch.device | str, known: Mass | None) -> Apart:
        meters.append(Apart(device, known))
        return meters[-1]

    found = run_pass(make_tokens(), {"one": Measurement(make_sae(0), make)})["one"]
    assert found.sums["known"] == 0
    assert [meter for meter in meters if meter.has_others] == [found]  # no other one has collected parts
    assert not CodeMeter.reads_known


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


@pytest.mark.parametrize("token_norm", list(TokenNorm))
@pytest.mark.parametrize("name", [*ACTIVATIONS, "nothing"])
def test_what_meters_share_is_what_brute_force_finds(name: str, token_norm: TokenNorm) -> None:
    sae, patches = imported_samples.make_sae(name.replace("nothing", "relu"), token_norm), make_patches(3, 7)
    if name == "nothing":
        sae.b_enc.fill_(-1000)
    index, rows = torch.arange(5, 8), np.arange(3)
    found = list(iterate_latents(sae, patches, index, rows))
    assert torch.equal(torch.cat([batch.index for batch in found]), index)
    assert np.concatenate([batch.rows for batch in found]).tolist() == [0, 1, 2]
    codes = torch.cat([sae.encode(patches[batch.rows]) for batch in found])
    assert bool((codes < 0).any()) == (name in SIGNED)
    assert bool((codes > 0).any()) == (name != "nothing")
    dense, factor = codes.clamp_min(0), sae.token_factor(patches)
    expected = {"sums": dense.sum(1), "squares": dense.square().sum(1), "counts": (dense > 0).sum(1).double()}
    for what, value in expected.items():
        torch.testing.assert_close(torch.cat([getattr(batch, what) for batch in found]), value)
    assert torch.equal(torch.cat([batch.peaks for batch in found]), dense.amax(1))
    for batch in found:
        for (tokens, latents, values), of in ((batch.entries, dense), (batch.codes, codes)):
            of = of[batch.rows].flatten(0, 1)
            assert torch.equal(torch.stack([tokens, latents]), torch.stack(of.nonzero(as_tuple=True)))
            assert torch.equal(values, of[tokens, latents])
        assert (batch.factor is None) == (factor is None)
        if batch.factor is not None and factor is not None:
            assert torch.equal(batch.factor, factor[batch.rows])


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


@pytest.mark.gpu
@pytest.mark.parametrize("seed", [0, 1])
def test_a_pass_on_cuda_finds_what_one_on_the_cpu_finds(seed: int, tmp_path: Path) -> None:
    folder, patches = tmp_path, make_tokens().patches.half()
    np.save(folder / "patches-00000.npy", patches.numpy())
    np.save(folder / source.INDEX_FILE, np.arange(N))
    (folder / source.META_FILE).write_text(json.dumps({"n_images": N, "layer": None, "backbone": None}))
    tokens, sae = TokenCache(folder), make_sae(seed)
    expected = run_pass(tokens, {"one": Measurement(sae, Mass)})["one"].sums
    found = run_pass(tokens, {"one": Measurement(sae.cuda(), Mass)})["one"].sums
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
