"""Group removal: formulas in raw units, both modes, shares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.sae.activations import Activation, ReLU, TopK
from infoscope.sae.edit import EditMode, GroupEditor, RemovedShareMeter
from infoscope.sae.model import SparseAutoencoder

SCALE = 4.0
ACTIVATIONS = [TopK(5), ReLU()]


def make_case(activation: Activation) -> tuple[SparseAutoencoder, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(6, 18, activation, torch.randn(6, generator=generator), SCALE, seed=1)
    with torch.no_grad():
        sae.b_dec.normal_(0, 0.2, generator=generator)
        sae.W_dec.mul_(1.5)  # not unit rows: the mass share must not rely on them
    return sae, torch.randn(3, 10, 6, generator=generator), torch.rand(18, generator=generator) < 0.4


def edit(sae: SparseAutoencoder, x: Tensor, removed: Tensor, mode: EditMode) -> Tensor:
    return GroupEditor(sae, x).edit(removed, mode)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_edit_is_rescaled_to_raw_units(activation: Activation) -> None:
    sae, x, removed = make_case(activation)
    z = sae.encode(x)
    expected = x - 1 / SCALE * (z * removed) @ sae.W_dec
    torch.testing.assert_close(edit(sae, x, removed, EditMode.error_preserving), expected)
    # Independent of the formula: what was taken is the change of the SAE's own reconstruction in raw units.
    change = sae.decode(z) - sae.decode(z * ~removed)
    torch.testing.assert_close(x - edit(sae, x, removed, EditMode.error_preserving), change, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_reconstruct_decodes_the_other_latents(activation: Activation) -> None:
    sae, x, removed = make_case(activation)
    z = sae.encode(x)
    expected = sae.mean + ((z * ~removed) @ sae.W_dec + sae.b_dec) / SCALE
    torch.testing.assert_close(edit(sae, x, removed, EditMode.reconstruct), expected)
    torch.testing.assert_close(edit(sae, x, removed.new_zeros(18), EditMode.reconstruct), sae(x).x_hat)


def test_removing_nothing_gives_the_tokens_bit_for_bit() -> None:
    sae, x, removed = make_case(TopK(5))
    assert torch.equal(edit(sae, x, torch.zeros_like(removed), EditMode.error_preserving), x)


def test_removing_everything_leaves_the_error_or_the_bias() -> None:
    sae, x, removed = make_case(TopK(5))
    everything = torch.ones_like(removed)
    bias = sae.mean + sae.b_dec / SCALE
    error = x - sae(x).x_hat
    torch.testing.assert_close(edit(sae, x, everything, EditMode.error_preserving), bias + error)
    torch.testing.assert_close(edit(sae, x, everything, EditMode.reconstruct), bias.expand_as(x))


def test_editor_encodes_once_for_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x, removed = make_case(TopK(5))
    editor, cases = GroupEditor(sae, x), [(group, mode) for group in (removed, ~removed) for mode in EditMode]
    expected = [edit(sae, x, *case) for case in cases]
    monkeypatch.setattr(sae, "pre_acts", None)
    for case, tokens in zip(cases, expected, strict=True):
        assert torch.equal(editor.edit(*case), tokens)


def test_complementary_groups_add_up() -> None:
    sae, x, removed = make_case(ReLU())
    editor = GroupEditor(sae, x)
    total = editor.contribution(removed) + editor.contribution(~removed)
    torch.testing.assert_close(total, editor.contribution(torch.ones_like(removed)))


@pytest.mark.parametrize("mode", list(EditMode))
def test_removed_shares_are_the_definitions(mode: EditMode) -> None:
    sae, x, removed = make_case(TopK(5))
    sae.requires_grad_(False)
    groups = torch.stack([removed, ~removed, torch.ones_like(removed), torch.zeros_like(removed)])
    meter = RemovedShareMeter(sae, groups, mode)
    for part in x.split(2):
        meter.update(GroupEditor(sae, part))
    mass_share, energy_share = meter.compute()
    mass = (sae.encode(x) * sae.W_dec.norm(dim=1)).sum((0, 1)).double()
    total = (x - sae.mean).square().sum().double()
    for i, group in enumerate(groups):
        energy = (x - edit(sae, x, group, mode)).square().sum().double() / total
        assert float(mass_share[i]) == pytest.approx(float(mass[group].sum() / mass.sum()), rel=1e-5)
        assert float(energy_share[i]) == pytest.approx(float(energy), rel=1e-5)
    assert float(mass_share[:2].sum()) == pytest.approx(1.0)
    assert float(mass_share[2]) == pytest.approx(1.0)
    if mode is EditMode.error_preserving:
        assert float(energy_share[3]) == 0.0


def test_a_group_of_the_wrong_shape_is_refused() -> None:
    sae, x, removed = make_case(TopK(5))
    with pytest.raises(InputError, match="18 booleans"):
        edit(sae, x, removed[:-1], EditMode.reconstruct)
    with pytest.raises(InputError, match="18 booleans"):
        edit(sae, x, removed.long(), EditMode.reconstruct)
