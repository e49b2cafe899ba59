"""BatchTopK, JumpReLU and both Matryoshka kinds against dense autograd written from their definitions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infoscope.config.tree import compose, register_schemas
from infoscope.runtime.bounds import Share
from infoscope.runtime.errors import InputError
from infoscope.sae.activations import (
    ACTIVATIONS,
    Activation,
    BatchTopK,
    JumpReLU,
    MatryoshkaK,
    MatryoshkaPrefix,
    ReLU,
    TopK,
)
from infoscope.sae.checkpoint import load_sae, load_sae_info, save_sae
from infoscope.sae.config import (
    KINDS,
    LevelWeights,
    MatryoshkaKConfig,
    MatryoshkaPrefixConfig,
    ReLUConfig,
    TopKConfig,
    TrainedConfig,
)
from infoscope.sae.edit import EditMode, GroupEditor
from infoscope.sae.losses import (
    OBJECTIVES,
    BatchTopKObjective,
    JumpReLUObjective,
    MatryoshkaKObjective,
    Objective,
    ReLUObjective,
    TopKObjective,
    compute_jump,
)
from infoscope.sae.metrics import compute_sae_metrics
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.module import make_sae
from infoscope.sae.topk_step import compute_sparse_step, select_batch_topk, select_nested_topk
from infoscope.sae.train import train_sae
from tests.support.sae_samples import (
    AUX_K,
    CONFIG,
    D_IN,
    D_SAE,
    PARAMETERS,
    N,
    RecordShapes,
    Stop,
    Tokens,
    as_kind,
    assert_same,
    compute_grads,
    make_case,
)

K, K_LEVELS, PREFIX_SIZES = 4, [1, 3, 4], [5, 10, D_SAE]
LEVEL_WEIGHTS = [3, 2, 1]
NEW_KINDS = ["batchtopk", "jumprelu", "matryoshka_k", "matryoshka_prefix"]
EXAMPLES: dict[str, partial[Objective]] = {
    "batchtopk": partial(BatchTopKObjective, K),
    "matryoshka_k": partial(MatryoshkaKObjective, K_LEVELS, LEVEL_WEIGHTS),
    "matryoshka_prefix": partial(BatchTopKObjective, K, prefix_sizes=PREFIX_SIZES),
}


def keep_largest(pre_acts: Tensor, k: int) -> Tensor:
    """ReLU of the k largest of each token, as a dense code."""
    kept = torch.zeros_like(pre_acts).scatter(1, pre_acts.topk(k, dim=1).indices, 1.0)
    return (pre_acts * kept).clamp(min=0)


def keep_largest_of_batch(pre_acts: Tensor, k: int) -> Tensor:
    """ReLU of the k * n largest of the batch, as a dense code."""
    smallest = pre_acts.detach().flatten().sort(descending=True).values[k * len(pre_acts) - 1]
    return (pre_acts * (pre_acts >= smallest)).clamp(min=0)


def make_dense_codes(kind: str, pre_acts: Tensor) -> tuple[list[Tensor], list[float]]:
    """The code of every level, the full one last, and the levels' weights."""
    if kind == "matryoshka_k":
        return [keep_largest(pre_acts, k) for k in K_LEVELS], [3 / 6, 2 / 6, 1 / 6]
    full = keep_largest_of_batch(pre_acts, K)
    if kind == "batchtopk":
        return [full], [1.0]
    return [full * (torch.arange(D_SAE) < size) for size in PREFIX_SIZES], [1 / 3] * 3


def compute_dense_loss(kind: str, sae: SparseAutoencoder, x_n: Tensor, dead: Tensor, aux_coef: float) -> Tensor:
    pre_acts = (x_n - sae.b_dec) @ sae.W_enc + sae.b_enc
    codes, weights = make_dense_codes(kind, pre_acts)
    x_hats = [code @ sae.W_dec + sae.b_dec for code in codes]
    fvus = [(x_n - x_hat).pow(2).sum() / x_n.pow(2).sum() for x_hat in x_hats]
    loss = sum((weight * fvu for weight, fvu in zip(weights, fvus, strict=True)), torch.zeros(()))
    if not dead.any():
        return loss
    of_dead = pre_acts.masked_fill(~dead, -torch.inf)
    chosen = torch.zeros_like(pre_acts).scatter(1, of_dead.topk(min(AUX_K, int(dead.sum())), dim=1).indices, 1.0)
    residual = (x_n - x_hats[-1]).detach()
    residual_hat = (pre_acts * chosen).clamp(min=0) @ sae.W_dec
    return loss + aux_coef * (residual - residual_hat).pow(2).sum() / (residual - residual.mean(0)).pow(2).sum()


# -- losses and gradients against dense autograd ----------------------------------------------------------------------


@pytest.mark.parametrize("n_dead", [0, 3, 14])
@pytest.mark.parametrize("kind", list(EXAMPLES))
def test_loss_and_every_gradient_equal_dense_autograd(kind: str, n_dead: int) -> None:
    sae, x_n, dead = make_case()
    dead = dead & (dead.cumsum(0) <= n_dead)
    out = EXAMPLES[kind](aux_k=AUX_K, aux_coef=1 / 32)(sae, x_n, dead)
    expected = compute_dense_loss(kind, sae, x_n, dead, 1 / 32)
    torch.testing.assert_close(out.loss, expected)
    for name, ours, theirs in zip(PARAMETERS, compute_grads(sae, out.loss), compute_grads(sae, expected), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")
    codes, _ = make_dense_codes(kind, (x_n - sae.b_dec) @ sae.W_enc + sae.b_enc)
    assert torch.equal(out.n_fired, (codes[-1] > 0).sum(0).double())
    torch.testing.assert_close(out.x_hat_n, (codes[-1] @ sae.W_dec + sae.b_dec).detach())
    assert out.fvu.item() == pytest.approx(float((x_n - out.x_hat_n).pow(2).sum() / x_n.pow(2).sum()))


@pytest.mark.parametrize("kind", list(EXAMPLES))
def test_no_dense_codes_in_the_backward(kind: str) -> None:
    sae, x_n, dead = make_case()
    loss = EXAMPLES[kind](aux_k=AUX_K, aux_coef=1 / 32)(sae, x_n, dead).loss
    with RecordShapes() as recorder:
        compute_grads(sae, loss)
    assert not [shape for shape in recorder.shapes if N in shape and D_SAE in shape]
    assert max(torch.Size(shape).numel() for shape in recorder.shapes) < N * D_SAE


def test_one_level_is_topk_itself() -> None:
    sae, x_n, dead = make_case()
    topk = TopKObjective(K, AUX_K, 1 / 32)(sae, x_n, dead)
    nested = MatryoshkaKObjective([K], [1], AUX_K, 1 / 32)(sae, x_n, dead)
    batch = BatchTopKObjective(K, AUX_K, 1 / 32)(sae, x_n, dead)
    prefix = BatchTopKObjective(K, AUX_K, 1 / 32, [D_SAE])(sae, x_n, dead)
    torch.testing.assert_close(nested.loss, topk.loss)
    torch.testing.assert_close(prefix.loss, batch.loss)
    assert not torch.isclose(batch.loss, topk.loss)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", list(EXAMPLES))
def test_gradients_on_cuda_equal_those_on_the_cpu(kind: str) -> None:
    sae, x_n, dead = make_case()
    objective = EXAMPLES[kind](aux_k=AUX_K, aux_coef=1 / 32)
    expected = compute_grads(sae, objective(sae, x_n, dead).loss)
    sae, x_n, dead = sae.cuda(), x_n.cuda(), dead.cuda()
    for ours, theirs in zip(compute_grads(sae, objective(sae, x_n, dead).loss), expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs)


# -- Matryoshka: levels from one decoding ----------------------------------------------------------------------------


def test_levels_equal_separate_topk_decodings() -> None:
    sae, x_n, _ = make_case()
    select = partial(select_nested_topk, k_levels=K_LEVELS)
    step = compute_sparse_step(x_n, sae, select, n_levels=3)
    assert len(step.x_hats_n) == 3
    for k, x_hat_n in zip(K_LEVELS, step.x_hats_n, strict=True):
        alone = SparseAutoencoder(D_IN, D_SAE, TopK(k)).double()
        alone.load_state_dict(sae.state_dict())
        torch.testing.assert_close(x_hat_n, alone(x_n).x_hat)


def test_prefixes_equal_separate_decodings_of_the_first_latents() -> None:
    sae, x_n, _ = make_case()
    select = partial(select_batch_topk, k=K, prefix_sizes=PREFIX_SIZES)
    step = compute_sparse_step(x_n, sae, select, n_levels=3)
    code = keep_largest_of_batch(sae.pre_acts(x_n), K)
    for size, x_hat_n in zip(PREFIX_SIZES, step.x_hats_n, strict=True):
        torch.testing.assert_close(x_hat_n, code[:, :size] @ sae.W_dec[:size] + sae.b_dec)


def test_a_token_without_entries_in_a_level_keeps_the_level_before() -> None:
    sae, x_n, _ = make_case()
    with torch.no_grad():
        sae.b_enc[10:] = -100.0  # nothing beyond the second prefix
    step = compute_sparse_step(x_n, sae, partial(select_batch_topk, k=1, prefix_sizes=PREFIX_SIZES), 3)
    assert torch.equal(step.x_hats_n[1], step.x_hats_n[2])
    silent = ~(keep_largest_of_batch(sae.pre_acts(x_n), 1) > 0).any(1)
    assert silent.any()
    torch.testing.assert_close(step.x_hats_n[2][silent], sae.b_dec.expand(int(silent.sum()), -1))


# -- BatchTopK ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [7, 600, 1500])
@pytest.mark.parametrize("skewed", [False, True])
def test_batch_topk_selects_exactly_the_k_n_largest(n: int, skewed: bool) -> None:
    pre_acts = torch.randn(n, 30, generator=torch.Generator().manual_seed(n))
    if skewed:  # the tokens by which the bound is guessed are the largest: the guess is too high
        pre_acts[:: max(1, n // 256)] += 10
    entries = select_batch_topk(pre_acts, 3)
    expected = pre_acts.flatten().sort(descending=True).indices[: 3 * n].sort().values
    assert torch.equal(entries.tokens * 30 + entries.latents, expected)
    assert torch.equal(entries.rows, entries.tokens)
    assert entries.tokens.bincount(minlength=n).unique().numel() > 1  # not k for every token


def test_batch_topk_has_k_active_latents_per_token_on_average_in_training() -> None:
    sae, x_n, dead = make_case()
    for kind in ("batchtopk", "matryoshka_prefix"):
        out = EXAMPLES[kind](aux_k=0, aux_coef=0.0)(sae, x_n, dead)
        assert out.n_fired.sum() == K * N
        code = keep_largest_of_batch(sae.pre_acts(x_n), K)
        assert out.smallest_act == code[code > 0].min()


def test_threshold_is_the_running_mean_of_the_smallest_activations() -> None:
    activation, decay = BatchTopK(3), BatchTopK.THRESHOLD_DECAY
    pre_acts = torch.tensor([[-1.0, 0.2, 0.5, 2.0]])
    assert torch.equal(activation.dense(pre_acts), pre_acts.relu())  # 0 before training
    activation.track(torch.tensor(0.4))
    assert activation.threshold == torch.tensor(0.4)
    activation.track(torch.tensor(torch.inf))  # nothing was active
    assert activation.threshold == torch.tensor(0.4)
    activation.track(torch.tensor(0.8))
    assert activation.threshold.item() == pytest.approx(decay * 0.4 + (1 - decay) * 0.8)
    assert activation.dense(pre_acts).tolist() == [[0.0, 0.0, 0.5, 2.0]]


@pytest.fixture(scope="module", params=["batchtopk", "matryoshka_prefix"])
def trained(request: pytest.FixtureRequest, cache: Tokens, tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = as_kind(CONFIG, request.param, n_tokens=200 * 64, checkpoint_every_n_steps=1000)
    return train_sae(cache, config, 0, tmp_path_factory.mktemp("trained"))[0]


@pytest.mark.long
def test_threshold_keeps_l0_near_k_on_single_tokens(trained: SparseAutoencoder, cache: Tokens) -> None:
    x = torch.from_numpy(cache.patches[:54].reshape(-1, 12))
    assert compute_sae_metrics(trained, [x])["l0"] == pytest.approx(3, rel=0.1)
    assert isinstance(trained.activation, BatchTopK)
    assert trained.activation.threshold > 0.1
    z = trained.encode(x)
    torch.testing.assert_close(trained.encode(x[5:6]), z[5:6])  # does not depend on the batch
    assert torch.equal(z, torch.where(trained.pre_acts(x) > trained.activation.threshold, trained.pre_acts(x), 0))


def test_saved_threshold_gives_the_same_outputs(trained: SparseAutoencoder, cache: Tokens, tmp_path: Path) -> None:
    save_sae(tmp_path, trained)
    loaded = load_sae(tmp_path)
    x = torch.from_numpy(cache.patches[:5].reshape(-1, 12))
    assert type(loaded.activation) is type(trained.activation)
    assert torch.equal(loaded.state_dict()["activation.threshold"], trained.state_dict()["activation.threshold"])
    for ours, theirs in zip(loaded(x), trained(x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("how", ["signal", "raise_before"])
def test_batch_topk_resumes_bit_for_bit(cache: Tokens, tmp_path: Path, how: str) -> None:
    config = as_kind(CONFIG, "batchtopk")
    whole, resumed = Stop(), Stop()
    _, expected = train_sae(cache, config, 5, tmp_path / "whole", callbacks=[whole])
    with pytest.raises(KeyboardInterrupt):
        train_sae(cache, config, 5, tmp_path / "cut", callbacks=[Stop(7, how)])
    _, figures = train_sae(cache, config, 5, tmp_path / "cut", callbacks=[resumed])
    assert resumed.end["sae.activation.threshold"] > 0
    assert_same(resumed.end, whole.end)
    assert figures == expected


# -- JumpReLU ---------------------------------------------------------------------------------------------------------


def make_jump_case() -> tuple[SparseAutoencoder, JumpReLU, Tensor, Tensor]:
    sae, x_n, dead = make_case()
    activation = JumpReLU(D_SAE, 0.5)
    with torch.no_grad():
        activation.log_threshold += torch.linspace(-0.5, 0.5, D_SAE)
    sae.activation = activation.double()
    return sae, sae.activation, x_n, dead


def test_jump_relu_loss_is_the_definition() -> None:
    sae, activation, x_n, dead = make_jump_case()
    pre_acts = (x_n - sae.b_dec) @ sae.W_enc + sae.b_enc
    z = pre_acts * (pre_acts > activation.threshold)
    expected = (x_n - z @ sae.W_dec - sae.b_dec).pow(2).sum() / x_n.pow(2).sum() + 0.02 * (z > 0).sum(1).double().mean()
    out = JumpReLUObjective(0.02, bandwidth=0.3)(sae, x_n, dead)
    torch.testing.assert_close(out.loss, expected)
    assert torch.equal(out.n_fired, (z > 0).sum(0).double())
    torch.testing.assert_close(sae.encode(x_n), z)
    for name, ours, theirs in zip(PARAMETERS, compute_grads(sae, out.loss), compute_grads(sae, expected), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_jump_relu_thresholds_get_the_straight_through_gradient() -> None:
    """Equations 11 and 12 of Rajamanoharan et al. (2024), latent by latent."""
    sae, activation, x_n, dead = make_jump_case()
    l0_coef, bandwidth = 0.02, 0.3
    out = JumpReLUObjective(l0_coef, bandwidth)(sae, x_n, dead)
    (ours,) = torch.autograd.grad(out.loss, activation.log_threshold)
    with torch.no_grad():
        pre_acts, threshold = sae.pre_acts(x_n), activation.threshold
        z = sae.encode(x_n)
        z_grad = -2 * (x_n - z @ sae.W_dec - sae.b_dec) @ sae.W_dec.T / x_n.pow(2).sum()
        for j in range(D_SAE):
            distance = (pre_acts[:, j] - threshold[j]) / bandwidth
            kernel = ((distance > -0.5) & (distance < 0.5)).double() / bandwidth
            of_jump = (-threshold[j] * kernel * z_grad[:, j]).sum()
            of_count = (-kernel * l0_coef / N).sum()
            # d threshold / d log threshold = threshold
            torch.testing.assert_close(ours[j], threshold[j] * (of_jump + of_count))
        near = ((pre_acts - threshold).abs() < bandwidth / 2).any(0)
    assert near.sum() > D_SAE // 2
    assert (ours[near] != 0).all()
    assert not ours[~near].any()


def test_straight_through_gradient_is_that_of_the_expectation() -> None:
    """On evenly spread pre-activations the count's gradient is minus their density at the threshold."""
    pre_acts = torch.linspace(0, 2, 20_001, dtype=torch.float64).unsqueeze(1)
    threshold = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    _, n_active = compute_jump(pre_acts, threshold, 0.1)
    (grad,) = torch.autograd.grad(n_active / len(pre_acts), threshold)
    assert n_active.item() == pytest.approx(20_001 * 1.3 / 2, rel=1e-3)
    assert grad.item() == pytest.approx(-0.5, rel=2e-3)


def test_l0_penalty_lowers_l0(cache: Tokens, tmp_path: Path) -> None:
    config = as_kind(CONFIG, "jumprelu", n_tokens=60 * 64, lr=1e-2, bandwidth=0.3)
    low, high = (train_sae(cache, replace(config, l0_coef=coef), 0, tmp_path / str(coef))[1]["l0"] for coef in (0, 0.1))
    assert high < 0.8 * low


# -- every kind at its place -------------------------------------------------------------------------------------------


def make_new(activation: Activation) -> SparseAutoencoder:
    sae = SparseAutoencoder(8, 24, activation, torch.full((8,), 0.1), scale=1 / 3, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for buffer in activation.buffers():
            buffer.fill_(0.6)
    return sae


@pytest.mark.parametrize(
    "make", [partial(BatchTopK, 3), partial(MatryoshkaPrefix, 3), partial(MatryoshkaK, 3), partial(JumpReLU, 24, 0.6)]
)
def test_every_form_and_the_file_agree(make: partial[Activation], tmp_path: Path) -> None:
    sae = make_new(make())
    x = 3 * torch.randn(200, 8, generator=torch.Generator().manual_seed(4))
    z, acts = sae.encode(x), sae.encode_sparse(x)
    assert torch.equal(torch.zeros(200, 24).scatter_add(1, acts.indices, acts.values), z)
    assert (z >= 0).all()
    assert acts.values.shape[1] == (3 if isinstance(sae.activation, TopK) else int((z > 0).sum(1).max()))
    removed = torch.arange(24) % 2 == 0
    edited = GroupEditor(sae, x).edit(removed, EditMode.reconstruct)
    torch.testing.assert_close(edited, sae.decode(z * ~removed))
    silent = sae.encode_sparse(torch.full((2, 8), 0.1))
    torch.testing.assert_close(sae.decode_sparse(silent), sae.decode(sae.encode(torch.full((2, 8), 0.1))))

    save_sae(tmp_path, sae)
    loaded = load_sae(tmp_path)
    assert load_sae_info(tmp_path)["kind"] == sae.activation.kind
    assert torch.equal(loaded.encode(x), z)
    assert type(loaded.activation) is type(sae.activation)
    assert loaded.activation.settings() == sae.activation.settings()


@pytest.mark.long
@pytest.mark.parametrize("kind", NEW_KINDS)
def test_every_kind_is_a_choice_of_the_command_line(kind: str) -> None:
    config = compose([f"sae={kind}", "sae.expansion_factor=2"]).sae
    assert type(config) is KINDS[kind]
    sae = make_sae(config, torch.zeros(64), 1.0, seed=0)
    assert (sae.activation.kind, sae.d_sae) == (kind, 128)
    assert OBJECTIVES[kind](**config.loss_settings(64))


@pytest.mark.long
def test_lists_and_choices_are_read_from_the_command_line() -> None:
    config = compose(["sae=matryoshka_k", "sae.k_levels=[4,16]", "sae.level_weights=decreasing"]).sae
    assert isinstance(config, MatryoshkaKConfig)
    assert (config.choose_k_levels(16), config.compute_level_weights(2)) == ([4, 16], [2, 1])
    assert compose(["sae=matryoshka_k", "sae.k=null"]).sae.k is None  # pyright: ignore[reportAttributeAccessIssue]
    config = compose(["sae=matryoshka_prefix", "sae.prefixes=[0.5,1]"]).sae
    assert isinstance(config, MatryoshkaPrefixConfig)
    assert config.compute_prefix_sizes(64) == [32, 64]
    with pytest.raises(InputError, match=r"level_weights.*uniform, decreasing"):
        compose(["sae=matryoshka_k", "sae.level_weights=rising"])


@pytest.mark.parametrize(("k", "levels"), [(1, [1]), (2, [1, 2]), (12, [1, 2, 4, 8, 12]), (16, [1, 2, 4, 8, 16])])
def test_levels_double_up_to_k(k: int, levels: list[int]) -> None:
    assert as_kind(CONFIG, "matryoshka_k", k=k).choose_k_levels(k) == levels


def test_all_latents_can_be_active() -> None:
    """As MSAE has it: codes of 1, 2, 4, ... and all latents, whose number stands in no setting."""
    config = as_kind(CONFIG, "matryoshka_k", k=None, expansion_factor=2, level_weights=LevelWeights.decreasing)
    config.check_width(12)
    assert config.activation_settings(12) == {"k": 12}
    loss = config.loss_settings(6)
    assert (loss["k_levels"], loss["level_weights"]) == ([1, 2, 4, 8, 12], [5, 4, 3, 2, 1])
    assert (config.cache_key_fields()["k"], config.cache_key_fields()["k_levels"]) == (None, None)
    given = replace(config, k_levels=[4, 12])
    given.check_width(12)
    assert given.cache_key_fields()["k_levels"] == [4, 12]
    with pytest.raises(InputError, match=r"sae\.k_levels, 12, got 24 \(the number of latents, for sae\.k is"):
        given.check_width(24)
    sae = make_sae(config, torch.zeros(6), 1.0, seed=0)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sae.encode(x), sae.pre_acts(x).relu())


# -- a kind of one's own ----------------------------------------------------------------------------------------------


@dataclass
class HalfConfig(TrainedConfig):
    """What a new kind adds to sae/config.py."""

    kind: str = "half"
    share: Share = 0.5

    def activation_settings(self, d_sae: int) -> dict[str, Any]:
        return {"share": self.share}

    def loss_settings(self, d_in: int) -> dict[str, Any]:
        return {"l1": 0.1}


class Half(ReLU):
    """What it adds to sae/activations.py: a share of ReLU."""

    kind = "half"

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def dense(self, pre_acts: Tensor) -> Tensor:
        return self.share * super().dense(pre_acts)

    def settings(self) -> dict[str, Any]:
        return {"share": self.share}


@pytest.mark.long
def test_a_new_kind_is_a_dataclass_an_activation_and_a_file(
    cache: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered at its three places, it is composed, refused, trained, stored and loaded as every other."""
    monkeypatch.setitem(KINDS, "half", HalfConfig)
    monkeypatch.setitem(ACTIVATIONS, "half", Half)
    monkeypatch.setitem(OBJECTIVES, "half", ReLUObjective)
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "half.yaml").write_text("defaults:\n  - /sae_half@_here_\n  - _self_\nshare: 0.25\n")
    monkeypatch.setattr("infoscope.config.tree.register_schemas", register_schemas.__wrapped__)

    def make(*overrides: str) -> TrainedConfig:
        return compose(["sae=half", "sae.expansion_factor=4", "sae.n_tokens=640", *overrides], [str(tmp_path)]).sae

    config = make("sae.batch_tokens=64")
    assert isinstance(config, HalfConfig)
    assert config.cache_key_fields()["share"] == 0.25
    with pytest.raises(InputError, match=r"'sae\.k' for sae\.kind=half: .*, share, .*; k is for sae=topk"):
        make("sae.k=3")
    sae, _ = train_sae(cache, config, 0, tmp_path / "progress")
    save_sae(tmp_path / "sae", sae)
    x = torch.from_numpy(cache.patches[0])
    z = load_sae(tmp_path / "sae").encode(x)
    torch.testing.assert_close(z, 0.25 * sae.pre_acts(x).relu())
    assert (z > 0).any()


# -- what determines an SAE ------------------------------------------------------------------------------------------

SHARED = {"kind", "expansion_factor", "tokens", "n_tokens", "batch_tokens", "pool_images", "lr", "warmup_steps"}
SHARED |= {"decay_share", "eval_tokens", "tokens_per_image"}
AUX = {"k", "aux_k", "aux_coef", "dead_after_tokens"}


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("topk", AUX),
        ("relu", {"l1"}),
        ("batchtopk", AUX),
        ("jumprelu", {"l0_coef", "bandwidth", "initial_threshold"}),
        ("matryoshka_k", AUX | {"k_levels", "level_weights"}),
        ("matryoshka_prefix", AUX | {"prefixes"}),
    ],
)
def test_a_kind_is_determined_by_what_it_reads(kind: str, own: set[str]) -> None:
    config = KINDS[kind]()
    assert set(config.cache_key_fields()) == SHARED | own
    others: dict[str, Any] = {"l1": 9.0, "l0_coef": 9.0, "bandwidth": 9.0, "initial_threshold": 9.0, "aux_coef": 9.0}
    others |= {"prefixes": [0.5, 1.0], "level_weights": LevelWeights.decreasing, "k_levels": [2, 16]}
    for name, value in others.items():
        if name in own:
            assert replace(config, **{name: value}).cache_key_fields() != config.cache_key_fields()
        else:
            assert not hasattr(config, name)


def test_topk_and_relu_are_determined_as_before() -> None:
    assert TopKConfig().cache_key_fields() == {
        "kind": "topk",
        "expansion_factor": 8,
        "k": 16,
        "aux_k": None,
        "aux_coef": 1 / 32,
        "dead_after_tokens": 250_000,
        "tokens": "patch",
        "n_tokens": 2_000_000,
        "batch_tokens": 4096,
        "pool_images": 4096,
        "tokens_per_image": None,
        "lr": None,
        "warmup_steps": 50,
        "decay_share": 0.2,
        "eval_tokens": 65_536,
    }
    without = {"k", "aux_k", "aux_coef", "dead_after_tokens"}
    relu = {name: value for name, value in TopKConfig().cache_key_fields().items() if name not in without}
    assert ReLUConfig().cache_key_fields() == {**relu, "kind": "relu", "l1": 0.1}


def test_null_levels_are_the_levels_they_stand_for() -> None:
    config = as_kind(CONFIG, "matryoshka_k", k=4)
    assert config.cache_key_fields() == replace(config, k_levels=[1, 2, 4]).cache_key_fields()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("jumprelu", {"bandwidth": 0.0}, r"sae\.bandwidth to be above 0"),
        ("jumprelu", {"initial_threshold": -1.0}, r"sae\.initial_threshold to be above 0"),
        ("jumprelu", {"l0_coef": float("nan")}, r"sae\.l0_coef to be at least 0"),
        ("matryoshka_k", {"k_levels": []}, r"sae\.k_levels to hold at least one value"),
        ("matryoshka_k", {"k_levels": [0, 3]}, r"sae\.k_levels\[0\] to be at least 1"),
        ("matryoshka_k", {"k_levels": [2, 2, 3]}, r"sae\.k_levels to ascend"),
        ("matryoshka_k", {"k_levels": [2, 4]}, r"sae\.k to be the largest of sae\.k_levels, 4, got 3"),
        ("matryoshka_prefix", {"prefixes": [0.5]}, r"sae\.prefixes to ascend"),
        ("matryoshka_prefix", {"prefixes": [0.5, 0.25, 1.0]}, r"sae\.prefixes to ascend"),
        ("matryoshka_prefix", {"prefixes": [0.0, 1.0]}, r"sae\.prefixes\[0\] to be above 0"),
        ("matryoshka_prefix", {"prefixes": [float("nan"), 1.0]}, r"sae\.prefixes\[0\] to be above 0"),
        ("topk", {"kind": "relu"}, r"sae\.kind to come with the settings of its kind, got 'relu' alone"),
    ],
)
def test_bad_settings_are_one_sentence(kind: str, changes: dict[str, Any], message: str) -> None:
    config = as_kind(CONFIG, kind)
    with pytest.raises(InputError, match=message) as raised:
        replace(config, **changes)
    assert "\n" not in str(raised.value)


def test_what_does_not_fit_the_dictionary_is_refused() -> None:
    config = as_kind(CONFIG, "matryoshka_prefix", prefixes=[0.001, 1.0])
    with pytest.raises(InputError, match=r"sae\.prefixes to add latents each, got \[0, 48\] of 48"):
        config.loss_settings(12)
    for kind in ("batchtopk", "matryoshka_k", "matryoshka_prefix"):
        with pytest.raises(InputError, match=r"sae\.k in 1\.\.48"):
            make_sae(as_kind(CONFIG, kind, k=49), torch.zeros(12), 1.0, 0)
    with pytest.raises(InputError, match="24 thresholds, one per latent, got 23"):
        SparseAutoencoder(8, 24, JumpReLU(23))
