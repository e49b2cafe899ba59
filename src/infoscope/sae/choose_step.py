"""Whether a training step is taken in kernels: where they can be had, and do what the plain step does."""

from __future__ import annotations

import copy
import warnings

import torch
import torch.nn.functional as F

from infoscope.runtime import collective, processes
from infoscope.runtime.errors import InputWarning
from infoscope.sae.activations import TopK
from infoscope.sae.fused_step import CHUNK, FusedStep
from infoscope.sae.losses import BatchTopKObjective, Objective, TopKObjective
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.topk import has_triton
from infoscope.sae.topk_step import compute_sparse_step, make_selected


def choose_step(sae: SparseAutoencoder, objective: Objective) -> FusedStep | None:
    """Return the step in kernels where it can be used, in the precision of the products around it; None: the plain one.

    It is used on CUDA for TopK kinds, after it did the same as the plain step on a small case of the same widths. Where
    it fails to, that is said in a warning.
    """
    device = sae.W_dec.device
    if device.type != "cuda" or not isinstance(objective, TopKObjective) or sae.W_dec.dtype != torch.float32:
        return None
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else torch.float32
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    reason = "triton is not installed"
    if has_triton():
        try:
            is_shared = processes.current().size > 1
            with processes.alone():  # where it fails in one process alone, the others must not wait for that one
                reason = find_deviation(objective, sae.d_in, dtype, device, is_shared)
        except Exception as error:  # a compiler, a driver and a device can fail in many ways
            reason = f"they failed with {type(error).__name__}: {error}".splitlines()[0]
    if collective.any_of(bool(reason))[0]:
        message = (
            f"The kernels of the training step are not used, which is slower: {reason or 'another process failed'}."
        )
        warnings.warn(message, InputWarning, stacklevel=2)
        return None
    return FusedStep(sae, objective, dtype)


def find_deviation(
    objective: TopKObjective, d_in: int, dtype: torch.dtype, device: torch.device, is_shared: bool = False
) -> str:
    """Return in words what the kernels do otherwise than the plain step on a small case; empty if nothing.

    The case has the objective's k and levels, a latent of many entries and dead ones, so that each kernel runs as it
    will. It takes a second or two, most of which is what compiling them takes.

    Args:
        is_shared: whether the step is to leave gradients for other processes; see `FusedStep`.
    """
    d_sae, n = max(64, 2 * objective.k), CHUNK + 64
    if isinstance(objective, BatchTopKObjective) and objective.prefix_sizes:
        n_levels = len(objective.prefix_sizes)
        objective = copy.copy(objective)
        objective.prefix_sizes = [d_sae * (level + 1) // n_levels for level in range(n_levels)]
    generator = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(d_in, d_sae, TopK(objective.k), seed=0)
    with torch.no_grad():
        sae.b_enc[0] = 3.0
    sae, x_n = sae.to(device), torch.randn(n, d_in, generator=generator).to(device)
    dead = torch.zeros(d_sae, dtype=torch.bool, device=device)
    dead[1 : 1 + min(2, objective.used_aux_k)] = True  # all of which AuxK takes, whatever the rounding
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3, eps=6.25e-10, fused=True)
    step = FusedStep(sae, objective, dtype, is_shared)
    before = copy.deepcopy(sae)
    out = step.compute(x_n, dead)
    assert step.state is not None
    entries = step.state.decoded.chosen or make_selected(step.state.decoded.entries.latents)
    step.update(optimizer)

    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    with torch.autocast(device.type, enabled=False):
        plain = objective.of_step(
            before,
            x_n,
            compute_sparse_step(
                x_n, before, lambda _: entries, len(objective.level_weights), dead, objective.used_aux_k
            ),
        )
        plain.loss.backward()
    before.project_decoder_grad()
    found = {"loss": (out.loss, plain.loss), "counts": (out.n_fired, plain.n_fired)}
    for (name, weight), old in zip(sae.named_parameters(), before.parameters(), strict=True):
        moments = optimizer.state[weight]
        assert old.grad is not None
        gradient, second = moments["exp_avg"] / 0.1, moments["exp_avg_sq"] / 0.001
        expected = old - 1e-3 * gradient / (second.sqrt() + 6.25e-10)
        found[f"gradient of {name}"] = gradient, old.grad
        found[f"new {name}"] = weight, F.normalize(expected, dim=1) if name == "W_dec" else expected
    for what, (ours, theirs) in found.items():
        deviation = float((ours.detach() - theirs.detach()).norm() / theirs.detach().norm().clamp_min(1e-30))
        if not deviation <= tolerance:
            return f"their {what} deviates by {deviation:.2g}"
    return ""
