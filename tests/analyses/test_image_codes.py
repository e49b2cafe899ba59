from pathlib import Path

import numpy as np
import pytest
import torch

from infoscope.analyses.image_codes import CodeMeter, ImageCodes, measure_image_codes
from infoscope.runtime import parts
from infoscope.runtime.errors import InputError
from infoscope.sae import passes
from infoscope.sae.model import TokenNorm
from infoscope.sae.passes import measure_one
from tests.support import imported_samples
from tests.support.memory_tokens import MemoryTokens

N, N_PATCHES, STRONG = 22, 16, 0.3


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_IMAGES", (8, 8))
    monkeypatch.setattr(passes, "BATCH_IMAGES", 5)


def make_patches(d_in: int) -> torch.Tensor:
    patches = torch.randn(N, N_PATCHES, d_in, generator=torch.Generator().manual_seed(0))
    patches[3] = 0  # an image on which some activations are silent
    return patches


@pytest.mark.parametrize("name", [*imported_samples.ACTIVATIONS, "nothing"])
def test_codes_are_what_brute_force_finds(name: str, tmp_path: Path) -> None:
    sae = imported_samples.make_sae(name.replace("nothing", "relu"), TokenNorm.none)
    if name == "nothing":
        sae.b_enc.data.fill_(-1000)
    patches = make_patches(sae.d_in)
    codes = measure_one(MemoryTokens(patches, first=N + 5), measure_image_codes(sae, STRONG)).compute()
    codes.save(tmp_path)
    codes = ImageCodes.load(tmp_path)
    z = sae.encode(patches).clamp_min(0).double()
    expected = {
        "means": z.mean(1),
        "peaks": z.amax(1),
        "n_on": (z > 0).sum(1),
        "n_strong": (z > STRONG).sum(1),
    }
    assert codes.image_index.tolist() == [N + 5 - i for i in range(N)]
    assert (codes.n_images, codes.d_sae, codes.n_patches, codes.strong_above) == (N, sae.d_sae, N_PATCHES, STRONG)
    for of, values in expected.items():
        np.testing.assert_allclose(codes.matrix(of).toarray(), values.numpy(), rtol=1e-6, atol=1e-7)
    assert len(codes.latents) == int((z.amax(1) > 0).sum())  # nothing else is stored
    for start, end in zip(codes.starts[:-1], codes.starts[1:], strict=True):
        assert (np.diff(codes.latents[start:end]) > 0).all()


def test_no_images_are_refused() -> None:
    with pytest.raises(InputError, match="Expected images to describe"):
        CodeMeter(4, 0.2, "cpu", None).compute()
