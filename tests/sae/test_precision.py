"""Products in float32, bfloat16 and TF32: how far from float64 they may be, and what stays float32."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from infoscope.runtime.errors import InputError
from infoscope.runtime.precision import Precision, is_bf16_fast
from infoscope.sae.config import KINDS
from infoscope.sae.losses import OBJECTIVES, TopKObjective
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.module import make_sae
from infoscope.sae.train import train_sae
from tests.support.sae_samples import CONFIG, Stop, Tokens

N, D_IN, D_SAE, K, N_DEAD = 256, 32, 256, 8, 6
OWN = {"matryoshka_k": {"k_levels": [3, K]}, "matryoshka_prefix": {"prefixes": [0.25, 1.0]}}
TOLERANCE = {"32": (1e-5, 1e-5), "bf16": (1e-3, 1e-2)}
"""Of the loss, and of each gradient in norm."""


def make_case(kind: str) -> tuple[SparseAutoencoder, TopKObjective, Tensor, Tensor]:
    """Return an SAE, its loss, tokens that few directions make, and which latents count as dead: AuxK takes all."""
    generator = torch.Generator().manual_seed(0)
    shared = {"k": K, "aux_k": N_DEAD} if hasattr(KINDS[kind], "k") else {}
    config = KINDS[kind](expansion_factor=D_SAE // D_IN, **shared, **OWN.get(kind, {}))
    sae = make_sae(config, torch.zeros(D_IN), 1.0, seed=1)
    with torch.no_grad():
        for parameter in (sae.W_enc, sae.b_enc, sae.b_dec):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    chosen, weights = torch.randint(128, (N, 4), generator=generator), torch.rand(N, 4, generator=generator)
    x_n = torch.einsum("nk,nkd->nd", weights, torch.randn(128, D_IN, generator=generator)[chosen])
    return sae, OBJECTIVES[kind](**config.loss_settings(D_IN)), x_n, torch.arange(D_SAE) < N_DEAD  # pyright: ignore


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_float64(kind: str, precision: str) -> None:
    sae, objective, x_n, dead = make_case(kind)
    exact, chosen = deepcopy(sae).double(), []
    if kind not in ("relu", "jumprelu"):  # the choice of latents is compared elsewhere: here it is the same
        select = objective.select
        objective.select = lambda pre_acts: chosen.append(select(pre_acts)) or chosen[0]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = objective(sae, x_n, dead).loss
    loss.backward()
    exact_loss = objective(exact, x_n.double(), dead).loss
    exact_loss.backward()
    of_loss, of_gradients = TOLERANCE[precision]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact_loss.item(), rel=of_loss)
    for (name, ours), theirs in zip(sae.named_parameters(), exact.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert (ours.grad - theirs.grad).norm() <= of_gradients * theirs.grad.norm(), name


class LargestFloat32(TorchDispatchMode):
    """The number of values in the largest float32 tensor that an operation makes."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype == torch.float32:
            self.found = max(self.found, out.numel())
        return out


@pytest.mark.parametrize("is_bf16", [True, False])
def test_pre_activations_in_bfloat16_are_not_copied_to_float32(is_bf16: bool) -> None:
    sae, objective, x_n, dead = make_case("topk")
    with LargestFloat32() as largest, torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        objective(sae, x_n, dead)
    assert (largest.found < N * D_SAE) is is_bf16  # in float32 there are such tensors


def test_training_in_bfloat16_keeps_weights_moments_and_norms_in_float32(cache: Tokens, tmp_path: Path) -> None:
    ends, figures = {}, {}
    for precision in ("32-true", "bf16-mixed"):
        stop = Stop()
        sae, figures[precision] = train_sae(
            cache, replace(CONFIG, n_tokens=100 * 64), 0, tmp_path / precision, precision=precision, callbacks=[stop]
        )
        ends[precision] = stop.end
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48))  # bfloat16 would be off by 1e-3
        assert {tensor.dtype for tensor in stop.end.values() if tensor.is_floating_point()} == {torch.float32}
    assert not torch.equal(*(end["sae.W_enc"] for end in ends.values()))
    assert figures["bf16-mixed"]["fvu"] == pytest.approx(figures["32-true"]["fvu"], rel=0.1)


def test_a_checkpoint_of_the_other_precision_is_refused(cache: Tokens, tmp_path: Path) -> None:
    for first, second in (("32-true", "bf16-mixed"), ("bf16-mixed", "32-true")):
        folder = tmp_path / first
        train_sae(cache, CONFIG, 5, folder, precision=first)
        with pytest.raises(InputError, match="another precision: delete it"):
            train_sae(cache, CONFIG, 5, folder, precision=second)


def test_tf32_is_for_the_encoders_product_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, seen = torch.backends.cuda.matmul, []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *args: seen.append(settings.allow_tf32) or addmm(*args))
    sae, _, x_n, _ = make_case("relu")
    for sae.uses_tf32 in (False, True, False):
        sae.encode(x_n)
        assert settings.allow_tf32 is False
    assert seen == [False, True, False]
    sae.uses_tf32 = True
    with pytest.raises(RuntimeError):
        sae.pre_acts(x_n.expand(2, *x_n.shape))
    assert settings.allow_tf32 is False


def test_auto_is_a_matter_of_the_device_and_not_of_the_processor() -> None:
    assert {device: Precision.auto.resolve(device).name for device in ("cpu", "cuda")} == {"cpu": "32", "cuda": "bf16"}
    assert all(Precision[name].resolve(device).name == name for name in ("32", "bf16") for device in ("cpu", "cuda"))


@pytest.mark.parametrize(
    ("flags", "is_fast"), [("flags : avx512f avx512_bf16 fma", True), ("Features : asimd bf16", True), ("avx2", False)]
)
def test_processors_say_whether_they_multiply_bfloat16(tmp_path: Path, flags: str, is_fast: bool) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor : 0\n{flags}\n")
    assert is_bf16_fast(file) is is_fast
    assert is_bf16_fast(tmp_path / "none")
