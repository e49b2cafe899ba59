"""Which n latents a task can be read from: kept by scope, by activation, by the probe's own weights, or at random."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from infoscope.probes.config import SelectConfig
from infoscope.probes.rates import Heads
from infoscope.sae.edit import EditMode
from infoscope.scope.ablations import Ablation, Role

BY_ACTIVATION, BY_CHANCE, BY_PROBE, BY_WORTH = "activation", "random", "probe", "worth"
LOGITS = ("classification/patch_mean", "segmentation")
"""Heads that read patch tokens and whose outputs count up to a number common to all."""
SCORES = ("depth",)
"""Heads that read patch tokens and whose outputs count as they are."""


def name_probe_rule(task: str) -> str:
    """Return the name of the rule that selects by the weights of a task's probe."""
    return f"{BY_PROBE} {task}"


def name_worth_rule(rule: str, task: str) -> str:
    """Return the name of the rule that selects by what a rule of `worth.RULES` predicts of a task."""
    return f"{BY_WORTH} {rule} {task}"


def compute_probe_importance(
    heads: Heads, W_dec: Float[np.ndarray, "d_sae d_in"], mean_act: Float[np.ndarray, " d_sae"]
) -> dict[str, Float[np.ndarray, " d_sae"]]:
    """Return how much each latent adds to what a linear head says: {rule: mean activation * |W_dec W_head|}.

    The norm is over the head's outputs, centred over classes where only differences count. Heads behind further blocks
    (final CLS) are not linear in the latents and are left out. It ranks latents, and is their share of the output only
    where activations are 0 or more and tokens have no norm of their own: activations below 0 do not count in the mean,
    nor does the factor by which such a norm scales what is written into each token.

    Args:
        heads: one variant's, of the original tokens.
        mean_act: mean activation per token on the training split, of those above 0.
    """
    found = {}
    for task in (*LOGITS, *SCORES):
        if task in heads:
            effect = W_dec @ heads[task].weight[0].double().cpu().numpy()
            if task in LOGITS:
                effect = effect - effect.mean(1, keepdims=True)
            found[name_probe_rule(task)] = np.linalg.norm(effect, axis=1) * mean_act
    return found


def make_selection_ablations(
    bands: Mapping[str, Bool[np.ndarray, " d_sae"]],
    candidates: Bool[np.ndarray, " d_sae"],
    mass: Float[np.ndarray, " d_sae"],
    of_tasks: Mapping[str, Float[np.ndarray, " d_sae"]],
    config: SelectConfig,
    seed: int = 0,
) -> list[Ablation]:
    """Return the variants that keep n latents alone: tokens are decoded from them, so the SAE's error is removed too.

    For every n: the n latents of most mass within each band of the CDS; of most mass among all; the first in each order
    that is made for a task; and random ones. The rule is the variant's `group`. A band of fewer than n has none.

    Args:
        bands: latents by their CDS, from the lowest scores to the highest.
        candidates: scored and alive latents, from which all rules choose.
        mass: activation mass of each latent on the training split.
        of_tasks: orders for single tasks by rule, the largest values first, such as `compute_probe_importance`.
        seed: of the random draws.
    """
    mass = np.asarray(mass, dtype=np.float64)
    by_activation = {name: (members & candidates, mass) for name, members in bands.items()}
    by_activation[BY_ACTIVATION] = (candidates, mass)
    rules = by_activation | {rule: (candidates, values) for rule, values in of_tasks.items()}
    variants = []
    for n_kept in config.n_kept:
        for rule, (pool, values) in rules.items():
            if n_kept <= pool.sum():
                order = np.argsort(np.where(pool, -values, np.inf), kind="stable")
                variants.append(_keep(order[:n_kept], mass, rule))
        if n_kept <= candidates.sum():
            for draw in range(config.n_draws):
                order = np.random.default_rng([seed, 13, n_kept, draw]).permutation(np.flatnonzero(candidates))
                variants.append(_keep(order[:n_kept], mass, BY_CHANCE, draw))
    return variants


def _keep(kept: np.ndarray, mass: np.ndarray, rule: str, draw: int | None = None) -> Ablation:
    removed = np.ones(len(mass), dtype=bool)
    removed[kept] = False
    name = f"keep_{len(kept)}_{rule}".replace(" ", "_").replace("/", "_") + ("" if draw is None else f"_{draw}")
    share = float(mass[removed].sum() / max(mass.sum(), np.finfo(np.float64).tiny))
    return Ablation(name, EditMode.reconstruct, removed, Role.kept, rule, draw=draw, mass_share_train=share)
