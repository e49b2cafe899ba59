"""Ablations: which latents are removed from the tokens, how, with which random controls, and on which images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from infoscope.runtime.errors import InputError
from infoscope.sae.edit import EditMode
from infoscope.scope.config import By, Control
from infoscope.scope.energy import Cumulate
from infoscope.scope.matching import FREQUENCY, Pair, name_matched
from infoscope.scope.partition import ENDS

Progress = Callable[[str, int, int], object]
"""Called with (what is being done, how many of it are done, how many there are)."""


def no_progress(what: str, done: int, of: int) -> None:
    """A `Progress` that nobody sees."""


class Role(Enum):
    """What a variant is for."""

    original = "original"
    nothing = "nothing"
    group = "group"
    all = "all"
    control = "control"
    kept = "kept"
    """All latents but a chosen few are removed."""
    part = "part"
    """So much of the mass is removed, from one end of the scores or at random."""


@dataclass(frozen=True, eq=False)
class Ablation:
    """One variant of the tokens: that without some latents.

    Args:
        name: unique among the variants of one SAE.
        mode: how the latents are removed.
        ablated: the latents that are removed.
        role: what the variant is for.
        group: its name ("high", "low", a band), for a group and for its controls; the rule that chose what is kept; the
            part that is removed.
        control: of a random group.
        draw: of a random group or order, from 0.
        overlap: share of the control's latents that are in the group.
        mass_share_train: share of the activation mass of all latents, as given to `make_ablations`.
    """

    name: str
    mode: EditMode
    ablated: Bool[np.ndarray, " d_sae"]
    role: Role
    group: str | None = None
    control: Control | None = None
    draw: int | None = None
    overlap: float | None = None
    mass_share_train: float = 0.0

    @property
    def n_latents(self) -> int:
        """How many latents are removed."""
        return int(self.ablated.sum())

    @property
    def empty(self) -> bool:
        """Whether the variant removes a group that has no features: a row to mark, not an error."""
        return self.role is Role.group and self.n_latents == 0

    def key(self, sae: str = "") -> str:
        """Return the hash of what determines the edited tokens (64 hexadecimal digits).

        Args:
            sae: what tells SAEs apart, such as the hash of the artifact. Tokens from which nothing is removed while
                the SAE's error stays are the original ones of every SAE: they have one key.
        """
        if self.mode is EditMode.error_preserving and self.n_latents == 0:
            return hashlib.sha256(b"original tokens").hexdigest()
        digest = hashlib.sha256(f"{sae}|{self.mode.name}|{len(self.ablated)}|".encode())
        digest.update(np.packbits(self.ablated).tobytes())
        return digest.hexdigest()


def make_original(n_latents: int = 0) -> Ablation:
    """Return the tokens from which nothing is removed; their key does not tell how many latents there are."""
    return Ablation("original", EditMode.error_preserving, np.zeros(n_latents, dtype=bool), Role.original)


def make_ablations(
    groups: Mapping[str, Bool[np.ndarray, " d_sae"]],
    drawable: Bool[np.ndarray, " d_sae"],
    mass: Float[np.ndarray, " d_sae"],
    n_draws: int = 5,
    seed: int = 0,
    modes: Sequence[EditMode] = (EditMode.error_preserving, EditMode.reconstruct),
    controls: Sequence[Control] = (Control.size, Control.mass),
    energy: Cumulate | None = None,
) -> list[Ablation]:
    """Return the rows of the feature-removal table, the original tokens first.

    The original tokens; the plain reconstruction (nothing removed, mode `reconstruct`); without each
    group, without anything, in each mode; random groups of the size, mass or energy of each group (only while
    the SAE's error stays). An empty group keeps its rows, marked `empty`, and has no controls.

    Args:
        groups: the named groups, such as "high" and "low", or quantile bands; none shares a latent with another.
        drawable: the latents that random groups are drawn from: scored and alive.
        mass: activation mass of each latent (sum or mean of z * |W_dec|) on the training split; only ratios matter.
        n_draws: random groups of each kind for each group.
        seed: of the draws.
        modes: how the groups are removed.
        controls: what random groups have in common with their group.
        energy: of latents removed together; only the control by energy reads it.

    Raises:
        InputError: negative n_draws, or no mode.
    """
    groups = {name: np.asarray(members, dtype=bool) for name, members in groups.items()}
    drawable = np.asarray(drawable, dtype=bool)
    mass = np.asarray(mass, dtype=np.float64)
    assert all(members.shape == mass.shape for members in [drawable, *groups.values()]), "one entry per latent"
    assert np.sum(list(groups.values()), axis=0).max(initial=0) <= 1, "a latent is in two groups"
    if n_draws < 0 or not modes:
        raise InputError(f"Expected probe.n_draws >= 0 and at least one mode, got {n_draws} and {list(modes)}.")
    nothing, everything = np.zeros_like(drawable), np.ones_like(drawable)

    variants = [make_original(len(nothing))]
    if EditMode.reconstruct in modes:
        variants.append(Ablation("reconstruct_all_kept", EditMode.reconstruct, nothing, Role.nothing))
    for mode in modes:
        for group, removed in groups.items():
            name, share = f"{mode.name}_without_{group}", _compute_share(mass, removed)
            variants.append(Ablation(name, mode, removed, Role.group, group, mass_share_train=share))
        variants.append(Ablation(f"{mode.name}_without_all", mode, everything, Role.all, mass_share_train=1.0))
    for number, (group, members) in enumerate(groups.items()):
        if n_draws and members.any() and drawable.any():
            for kind in sorted(controls, key=list(Control).index):
                variants += _make_controls(group, members, drawable, mass, kind, energy, n_draws, [seed, number])
    return variants


def make_matched_ablations(
    matched: Mapping[str, Pair], mass: Float[np.ndarray, " d_sae"], ends: tuple[str, str] = ENDS[By.cds]
) -> list[Ablation]:
    """Return the rows without as many high-scope as low-scope latents that are alike in something, for every matching.

    They are removed while the SAE's error stays; groups that have nothing in common have two empty rows.

    Args:
        matched: see `match_groups`.
        mass: as for `make_ablations`.
        ends: what the groups are called, see `find_ends`.
    """
    mass, variants = np.asarray(mass, dtype=np.float64), []
    for matching, pair in matched.items():
        suffix = "matched" if matching == FREQUENCY else f"matched_{matching.replace(', ', '_').replace(' ', '_')}"
        variants += [
            Ablation(
                f"{EditMode.error_preserving.name}_without_{name}_{suffix}",
                EditMode.error_preserving,
                removed,
                Role.group,
                name_matched(name, matching),
                mass_share_train=_compute_share(mass, removed),
            )
            for name, removed in zip(ends, pair, strict=True)
        ]
    return variants


def describe_variant(variant: Ablation, mass_share: float | None, energy_share: float | None) -> dict[str, Any]:
    """Return a variant as plain JSON types; shares are those measured on the test tokens, None as NaN: none is."""
    return {
        "name": variant.name,
        "mode": variant.mode.name,
        "role": variant.role.name,
        "group": variant.group,
        "control": variant.control.name if variant.control else None,
        "draw": variant.draw,
        "n_latents": variant.n_latents,
        "empty": variant.empty,
        "overlap": variant.overlap,
        "mass_share_train": variant.mass_share_train,
        "mass_share": finite(mass_share),
        "energy_share": finite(energy_share),
    }


def finite(value: float | None) -> float | None:
    """Return a number as JSON can hold it: None for NaN and Inf."""
    return value if value is not None and math.isfinite(value) else None


def choose_rows(n_rows: int, n_wanted: int | None, seed: int) -> Int[np.ndarray, " n_chosen"]:
    """Return which rows of tokens take part, ascending: all, or as many as wanted, drawn at random."""
    if n_wanted is None or n_wanted >= n_rows:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng([seed, 10]).permutation(n_rows)[:n_wanted])


def _choose_cumulate(control: Control, mass: Float[np.ndarray, " d_sae"], energy: Cumulate | None) -> Cumulate:
    """Return what sums up what a control has in common with its group: the number of latents, their mass or energy."""
    if control is Control.size:
        return lambda latents: np.arange(1.0, len(latents) + 1)
    if control is Control.mass:
        return lambda latents: np.cumsum(mass[latents])
    assert energy is not None, "the control by energy needs a sample of tokens"
    return energy


def _make_controls(
    group: str,
    members: Bool[np.ndarray, " d_sae"],
    drawable: Bool[np.ndarray, " d_sae"],
    mass: Float[np.ndarray, " d_sae"],
    control: Control,
    energy: Cumulate | None,
    n_draws: int,
    seed: list[int],
) -> list[Ablation]:
    """Return the random controls of one kind of one group.

    Each has the first latents of a random order: as many as the group, or up to the closest mass or energy. At least
    one; all of them where the group has more than they have together.
    """
    controls, cumulate = [], _choose_cumulate(control, mass, energy)
    wanted = cumulate(np.flatnonzero(members))[-1]
    for draw in range(n_draws):
        rng = np.random.default_rng([*seed, list(Control).index(control), draw])
        order = rng.permutation(np.flatnonzero(drawable))
        chosen = order[: np.argmin(np.abs(cumulate(order) - wanted)) + 1]
        removed = np.zeros_like(drawable)
        removed[chosen] = True
        controls.append(
            Ablation(
                f"random_{control.name}_of_{group}_{draw}",
                EditMode.error_preserving,
                removed,
                Role.control,
                group,
                control,
                draw,
                overlap=float(members[chosen].mean()),
                mass_share_train=_compute_share(mass, removed),
            )
        )
    return controls


def _compute_share(mass: Float[np.ndarray, " d_sae"], removed: Bool[np.ndarray, " d_sae"]) -> float:
    """The group's share of all mass, 0 where there is none."""
    return float(mass[removed].sum()) / max(float(mass.sum()), np.finfo(np.float64).tiny)
