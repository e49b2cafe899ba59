"""The training step in kernels against the plain one in float64, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from infoscope.sae import fused_step, module
from infoscope.sae.activations import TopK
from infoscope.sae.choose_step import find_deviation
from infoscope.sae.fused_step import FusedStep
from infoscope.sae.losses import BatchTopKObjective, MatryoshkaKObjective, TopKObjective
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.topk_step import Selected, make_selected
from infoscope.sae.train import train_sae
from tests.support.sae_samples import CONFIG, Stop, Tokens, as_kind, assert_same

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
D_IN, D_SAE, N = 20, 44, 18
OBJECTIVES: dict[str, Any] = {
    "topk": lambda d_sae=D_SAE, **aux: TopKObjective(3, **aux),
    "batchtopk": lambda d_sae=D_SAE, **aux: BatchTopKObjective(3, **aux),
    "matryoshka_k": lambda d_sae=D_SAE, **aux: MatryoshkaKObjective([1, 3, 5], [3, 2, 1], **aux),
    "matryoshka_prefix": lambda d_sae=D_SAE, **aux: BatchTopKObjective(3, **aux, prefix_sizes=[6, 20, d_sae]),
}
NO_AUX = {"aux_k": 0, "aux_coef": 0.0}
TOLERANCES = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-3, 1e-2)}
"""Of the loss and of the gradients."""


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents of few entries are summed in chunks too."""
    monkeypatch.setattr(fused_step, "CHUNK", 8)


def make_case(d_in: int = D_IN, d_sae: int = D_SAE, n: int = N) -> tuple[SparseAutoencoder, Tensor, Tensor]:
    """Return an SAE two of whose latents are active on every token, tokens, and which latents count as dead."""
    generator = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(d_in, d_sae, TopK(3), seed=2)
    with torch.no_grad():
        sae.W_enc.add_(0.1 * torch.randn(d_in, d_sae, generator=generator))
        sae.b_enc.add_(0.2 * torch.randn(d_sae, generator=generator))
        sae.b_dec.add_(0.2 * torch.randn(d_in, generator=generator))
        sae.b_enc[5:7] += 2.0
        dead = torch.arange(d_sae) % 8 == 0
        sae.b_enc[dead] -= 1.0
    return sae.to(DEVICE), torch.randn(n, d_in, generator=generator).to(DEVICE), dead.to(DEVICE)


def make_adam(sae: SparseAutoencoder, **settings: Any) -> torch.optim.Adam:
    return torch.optim.Adam(sae.parameters(), **{"lr": 1e-3, "eps": 6.25e-10, "fused": True, **settings})


def compute_expected(sae: SparseAutoencoder, objective: TopKObjective, step: FusedStep, x_n: Tensor, dead: Any) -> Any:
    """Return the plain loss in float64 with the entries that the kernels selected, and the gradients that Adam gets."""
    assert step.state is not None
    chosen = step.state.decoded.chosen
    if chosen is None:
        chosen = make_selected(step.state.decoded.entries.latents)
    plain: Any = copy.copy(objective)
    plain.select = lambda _: Selected(*chosen)
    double = copy.deepcopy(sae).double()
    out = plain(double, x_n.double(), dead)
    out.loss.backward()
    double.project_decoder_grad()
    return out, {name: weight.grad for name, weight in double.named_parameters()}


def measure(ours: Tensor, theirs: Tensor) -> float:
    """Return the norm of the difference over the norm."""
    return float((ours.double() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(
    ("kind", "aux_k", "dtype"),
    [
        ("topk", 0, torch.float32),
        *((kind, 4, torch.float32) for kind in OBJECTIVES),
        # Which latents AuxK selects would depend on the precision: here, all that are dead.
        *((kind, 20, torch.bfloat16) for kind in OBJECTIVES),
    ],
)
def test_loss_and_gradients_are_those_of_float64(kind: str, aux_k: int, dtype: torch.dtype) -> None:
    check_step(kind, aux_k, dtype, *make_case())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("kind", list(OBJECTIVES))
def test_on_a_gpu_so_they_are_at_the_widths_of_a_backbone(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # chunks are as long as always
    check_step(kind, 600, dtype, *make_case(768, 4096, 2048))


def check_step(kind: str, aux_k: int, dtype: torch.dtype, sae: SparseAutoencoder, x_n: Tensor, dead: Tensor) -> None:
    """Assert that one step computes what the plain one does in float64, and what Adam makes of it."""
    objective = OBJECTIVES[kind](sae.d_sae, aux_k=aux_k, aux_coef=1 / 32 if aux_k else 0.0)
    step, adam = FusedStep(sae, objective, dtype), make_adam(sae)
    out = step.compute(x_n, dead)
    expected, gradients = compute_expected(sae, objective, step, x_n, dead)
    loss_tolerance, tolerance = TOLERANCES[dtype]
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=loss_tolerance)
    assert out.fvu.item() == pytest.approx(expected.fvu.item(), rel=loss_tolerance)
    assert torch.equal(out.n_fired.double(), expected.n_fired)
    assert (out.smallest_act is None) == (objective.entries_per_token is not None)
    if out.smallest_act is not None:
        assert out.smallest_act.item() == pytest.approx(expected.smallest_act.item(), rel=tolerance)
    assert measure(step.reconstruct(), expected.x_hat_n) < tolerance
    before = {name: weight.detach().clone() for name, weight in sae.named_parameters()}
    step.update(adam)
    for name, weight in sae.named_parameters():
        state, beta1, beta2 = adam.state[weight], 0.9, 0.999
        assert measure(state["exp_avg"] / (1 - beta1), gradients[name]) < tolerance, name
        assert state["step"].item() == 1
        assert weight.grad is None
        gradient = state["exp_avg"].double() / (1 - beta1)
        assert measure(state["exp_avg_sq"] / (1 - beta2), gradient**2) < 1e-5
        moved = before[name] - 1e-3 * gradient / (gradient.abs() + 6.25e-10)
        moved = torch.nn.functional.normalize(moved, dim=1) if name == "W_dec" else moved
        torch.testing.assert_close(weight.detach(), moved.float(), rtol=1e-5, atol=1e-6)
    rounding = 0.0 if dtype == torch.float32 else 2**-7  # the interpreter rounds towards 0
    torch.testing.assert_close(step.W_dec.float(), sae.W_dec.detach(), rtol=rounding, atol=0)
    torch.testing.assert_close(step.W_enc.float(), sae.W_enc.detach().T, rtol=rounding, atol=0)


@pytest.mark.parametrize(
    ("d_in", "d_sae", "k", "n"),
    [(1, 3, 1, 2), (7, 9, 9, 3), (33, 70, 66, 2), (300, 50, 40, 2), (5, 40, 1, 9)],
    ids=["narrow", "all latents", "more entries than registers hold", "many blocks of columns", "k of 1"],
)
def test_any_size_will_do(d_in: int, d_sae: int, k: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_step, "SHORT", 20)
    sae, x_n, dead = make_case(d_in, d_sae, n)
    objective, adam = TopKObjective(k, **NO_AUX), make_adam(sae)
    step = FusedStep(sae, objective, torch.float32)
    loss = step.compute(x_n, dead).loss
    expected, gradients = compute_expected(sae, objective, step, x_n, None)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    step.update(adam)
    for name, weight in sae.named_parameters():
        ours, theirs = adam.state[weight]["exp_avg"] / 0.1, gradients[name]
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_is_not_finite_shows_in_the_loss_and_breaks_nothing() -> None:
    sae, x_n, _ = make_case()
    x_n[3, 2], x_n[5] = torch.nan, torch.inf
    step = FusedStep(sae, TopKObjective(3, **NO_AUX), torch.bfloat16)
    assert not step.compute(x_n, None).loss.isfinite()
    step.update(make_adam(sae))
    assert sae.W_dec.isnan().any()


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_with_several_processes_gradients_are_averaged_before_adam(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, x_n, dead = make_case()
    other = copy.deepcopy(sae)
    objective = TopKObjective(3, aux_k=4, aux_coef=1 / 32)
    steps, averaged = [], []

    def mean(tensor: Tensor) -> Tensor:
        assert tensor.is_contiguous()  # NCCL refuses others
        averaged.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr(fused_step, "collective", SimpleNamespace(mean=mean))
    for each, is_shared in ((sae, False), (other, True)):
        steps.append(FusedStep(each, objective, dtype, is_shared))
        adam = make_adam(each)
        for _ in range(2 if dtype == torch.float32 else 1):  # the interpreter rounds to bfloat16 in its own way
            averaged.clear()
            steps[-1].compute(x_n, dead)
            steps[-1].update(adam)
    assert Counter(averaged)[D_SAE, D_IN] == 2
    assert {(D_SAE, D_IN), (D_SAE,), (D_IN,), ()} == set(averaged)
    for name, weight in sae.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(steps[1].W_enc, steps[0].W_enc, rtol=2**-7, atol=1e-6)


def test_either_step_goes_on_from_the_others_checkpoint(
    cache: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = as_kind(CONFIG, "topk", n_tokens=4 * 12, batch_tokens=12, log_every_n_steps=2, dead_after_tokens=20)
    used: list[str] = []

    def choose(how: str) -> None:
        def choose_step(sae: SparseAutoencoder, objective: Any) -> FusedStep | None:
            used.append(how)
            return FusedStep(sae, objective, torch.float32) if how == "kernels" else None

        monkeypatch.setattr(module, "choose_step", choose_step)

    def train(folder: str, how: str, stop: int | None = None) -> dict:
        choose(how)
        end = Stop(stop)
        if stop is None:
            train_sae(cache, config, 0, tmp_path / folder, callbacks=[end])
        else:
            with pytest.raises(KeyboardInterrupt):
                train_sae(cache, config, 0, tmp_path / folder, callbacks=[end])
        return end.end

    straight = train("straight", "kernels")
    train("half", "kernels", 2)
    train("plain", "plain", 2)
    copytree(tmp_path / "half", tmp_path / "crossed")
    assert_same(train("half", "kernels"), straight)
    for folder, how in (("crossed", "plain"), ("plain", "kernels")):
        crossed = train(folder, how)
        assert crossed.keys() == straight.keys()
        for name, tensor in crossed.items():
            torch.testing.assert_close(tensor, straight[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert used == ["kernels", "kernels", "plain", "kernels", "plain", "kernels"]


def test_the_check_before_use_passes_and_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = BatchTopKObjective(2, 3, 1 / 32, prefix_sizes=[1000, 2000])
    for is_shared in (False, True):
        assert find_deviation(objective, 6, torch.float32, torch.device(DEVICE), is_shared) == ""
    error = FusedStep._error
    monkeypatch.setattr(FusedStep, "_error", lambda *args: 2 * error(*args))
    assert "deviates by" in find_deviation(objective, 6, torch.float32, torch.device(DEVICE))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", list(OBJECTIVES))
def test_on_a_gpu_trainings_take_the_kernels(
    kind: str, precision: str, cache: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: Any
) -> None:
    found = []
    choose_step = module.choose_step
    monkeypatch.setattr(module, "choose_step", lambda *args: found.append(choose_step(*args)) or found[-1])
    config = as_kind(CONFIG, kind, k=4)
    _, ours = train_sae(cache, config, 0, tmp_path / "ours", accelerator="gpu", precision=precision)
    assert isinstance(found[0], FusedStep)
    assert not [each for each in recwarn.list if "kernels" in str(each.message)]
    monkeypatch.setattr(module, "choose_step", lambda *_: None)
    _, plain = train_sae(cache, config, 0, tmp_path / "plain", accelerator="gpu", precision=precision)
    assert ours["fvu"] == pytest.approx(plain["fvu"], rel=0.05)
