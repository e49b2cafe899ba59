"""How far SAEs of other seeds have the same latents: the artifact of two seeds, columns of latents, a table, words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from infoscope.analyses.alignment import (
    MATCHINGS,
    MAX_MATCHED,
    MAX_VALUES,
    MIN_IMAGES,
    N_SAMPLED,
    Alignment,
    align_seeds,
)
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import ArtifactStage, Handle, Key, Needs, Work
from infoscope.report.tables import PERCENT, Align, Column, Table, compute_stat, format_number, format_percent
from infoscope.runtime.store import Workspace
from infoscope.sae.latent_table import LatentColumn
from infoscope.scope.agreement import MAX_ASSIGNED
from infoscope.scope.cds import mean_of_known
from infoscope.stages.image_codes import Codes
from infoscope.stages.images import count_images
from infoscope.stages.sae import count_latents, sae_of
from infoscope.stages.tokens import find_sizes

SHARED, ALIKE = 0.7, 0.9
"""Values above which latents are counted: Paulo and Belrose (2025) call a latent shared above the first."""
COLUMNS = {
    "decoder": "cosine of decoder rows with the partner in other seeds",
    "activation": "cosine of activations with the partner in other seeds",
}
"""The matchings that are columns of latents, and their headings."""


class Aligned(ArtifactStage[Alignment]):
    """The latents of two SAEs, matched; an item is (seed, seed), the smaller one first."""

    kind, holds = "alignment", Alignment
    is_shared = False

    def name(self, ctx: Context, one: int, other: int) -> str:
        return f"{ctx.config.model.name}-{ctx.config.sae.kind}-seed{one}-seed{other}"

    def describe(self, ctx: Context, one: int, other: int) -> str:
        return f"alignment, seeds {one} and {other}"

    def needs(self, ctx: Context, one: int, other: int) -> Needs:
        saes = {"sae": sae_of(ctx, one), "sae_of_other": sae_of(ctx, other)}
        return Needs(**saes, codes=Codes.at(ctx, one, "train"), codes_of_other=Codes.at(ctx, other, "train"))

    def key(self, ctx: Context, up: Needs, one: int, other: int) -> Key:
        key: Key = {"codes": [up.codes.hash, up.codes_of_other.hash]}
        return key | ({"n_sampled": N_SAMPLED} if count_latents(ctx) > MAX_MATCHED else {})

    def build(self, ctx: Context, up: Needs, work: Workspace, one: int, other: int) -> Alignment:
        with ctx.display.bar(f"matching the latents of seeds {one} and {other}", len(MATCHINGS)) as advance:
            codes = up.codes.load(), up.codes_of_other.load()
            return align_seeds(up.sae.load(), up.sae_of_other.load(), *codes, ctx.device, advance)

    def work(self, ctx: Context, one: int, other: int) -> Work:
        n, d_sae = count_images(ctx, "train"), count_latents(ctx)
        rows_bytes = 4 * max(min(n * d_sae, MAX_VALUES), find_sizes(ctx).d_in * d_sae)
        cost_bytes = 20 * d_sae**2 if d_sae <= MAX_ASSIGNED else 0  # of the assignment, and SciPy's copies
        return Work(d_sae, [ctx.config.model.name, n], memory_bytes=5 * rows_bytes + cost_bytes)


def alignments_of(ctx: Context, seed: int | None = None) -> dict[tuple[int, int], Handle[Alignment]]:
    """Return the alignments of all pairs of SAE seeds, or of those with one seed; none of a single seed."""
    pairs = combinations(sorted(ctx.config.seeds), 2)
    return {pair: Aligned.at(ctx, *pair) for pair in pairs if seed is None or seed in pair}


def make_alignment_columns(ctx: Context, seed: int) -> Iterator[LatentColumn]:
    """Yield, for each way of `COLUMNS`, the value of each latent with its partner, mean over the other seeds.

    NaN where it has no partner in any of them. Without another seed there are no columns.
    """
    found = {pair: handle.load() for pair, handle in alignments_of(ctx, seed).items()}
    for matching, heading in COLUMNS.items() if found else ():
        values = [
            one.values(matching) if pair[0] == seed else one.values_of_other(matching) for pair, one in found.items()
        ]
        mean = mean_of_known(np.stack(values).astype(np.float64), axis=0)
        yield LatentColumn(f"match_{matching}", mean, heading, "1")


def make_alignment_table(pairs: Mapping[tuple[int, int], Alignment]) -> Table:
    """Return the table: a row per way of matching, mean ± sd over the pairs of SAE seeds, one or more."""
    found = list(pairs.values())
    n_pairs = f"{len(found)} pairs of SAE seeds; mean ± standard deviation over them" if len(found) > 1 else "two seeds"
    table = Table(
        "alignment",
        "How alike the latents of SAEs of two seeds are, matched one to one",
        [
            Column("matching", "matched by", Align.left),
            Column("n_pairs", "pairs", digits=0, is_count=True),
            Column("mean", "mean", digits=3),
            Column("chance", "chance", digits=3),
            Column("shared", f"above {SHARED}", **PERCENT),
            Column("alike", f"above {ALIKE}", **PERCENT),
            Column("agreement", "same partner as by decoder rows", **PERCENT),
        ],
        notes=[
            f"{n_pairs[0].upper()}{n_pairs[1:]}. Cosine of the rows of W_dec, of the columns of W_enc, of mean"
            f" activations on {found[0].n_images:,} training images, and Pearson's correlation of these. "
            + _explain_matching(found[0])
            + f" By activation, only latents that fire on at least {MIN_IMAGES} images are matched. Chance: the same"
            " when the second SAE's components, or images, are permuted (ours). Shares are of all latents that might be"
            " matched."
        ],
    )
    for matching, heading in MATCHINGS.items():
        agreement = compute_stat(one.agreement(matching, "decoder") for one in found)
        table.add_row(
            heading,
            compute_stat(one.n_pairs(matching) for one in found),
            compute_stat(one.mean(matching) for one in found),
            compute_stat(one.chance[list(MATCHINGS).index(matching)] for one in found),
            *(compute_stat(one.share_above(matching, value) for one in found) for value in (SHARED, ALIKE)),
            None if matching == "decoder" else agreement,
        )
    return table


def _explain_matching(one: Alignment) -> str:
    n = max(one.partner.shape[1], one.d_sae_other)
    if n <= MAX_ASSIGNED:
        return "The pairs have the largest sum of all assignments (Hungarian)."
    sampled = (
        f" Where more than {MAX_MATCHED:,} might be matched, chance and the matching by Pearson's correlation are of"
        f" {N_SAMPLED:,} of them, drawn at random."
    )
    return f"Of more than {MAX_ASSIGNED:,} latents the pairs are each other's nearest." + sampled * (n > MAX_MATCHED)


def say_alignment(pairs: Mapping[tuple[int, int], Alignment]) -> list[str]:
    """Return what the table says, in sentences."""
    found = list(pairs.values())
    if not found:
        return ["There is one SAE seed alone, so nothing is known of whether another one finds the same latents."]

    def say(matching: str) -> str:
        mean = compute_stat(one.mean(matching) for one in found)
        chance = compute_stat(one.chance[list(MATCHINGS).index(matching)] for one in found)
        shared = compute_stat(one.share_above(matching, SHARED) for one in found)
        return (
            f"{format_number(mean.mean, 2)} on average (chance {format_number(chance.mean, 2)}), above {SHARED} for"
            f" {format_percent(shared)} of the latents"
        )

    agreement = compute_stat(one.agreement("decoder", "activation") for one in found)
    return [
        f"Latents of two SAE seeds, matched one to one by their decoder rows, have a cosine of {say('decoder')}; by"
        f" their activations on the same images, {say('activation')}. Both ways name the same partner for"
        f" {format_percent(agreement)} of the latents."
    ]
