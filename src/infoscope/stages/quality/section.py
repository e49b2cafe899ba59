"""The section on how good SAEs are: tables, the curve over k, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from infoscope.analyses.alignment import Alignment
from infoscope.analyses.progressive import MEASURES
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import Column, Table, compute_stat, format_number, format_stat
from infoscope.stages.describe.alignment import make_alignment_table, say_alignment
from infoscope.stages.describe.fidelity import make_fidelity_table, say_fidelity
from infoscope.stages.quality.figure import draw_progressive
from infoscope.stages.quality.numbers import COLUMNS, Measured
from infoscope.stages.score.tables import Quantity, make_seed_table

Seeds = Mapping[int, Measured]


def make_quality_section(
    seeds: Seeds, pairs: Mapping[tuple[int, int], Alignment], why_no_head: str = "", why_no_predictions: str = ""
) -> ReportSection:
    """Return the tables, the curve over k, and the findings.

    Args:
        seeds: what is known of each SAE, by seed.
        pairs: the alignments of two seeds each.
        why_no_head, why_no_predictions: in a sentence, why there is no linear probe or no zero-shot head; empty: there
            is one.
    """
    fidelities = {seed: one.fidelity for seed, one in seeds.items()}
    tables = {"fidelity": make_fidelity_table(fidelities), "quality": _make_table(seeds)}
    tables["progressive"] = make_progressive_table(list(seeds.values()))
    if pairs:
        tables["alignment"] = make_alignment_table(pairs)
    findings = [*say_fidelity(fidelities, why_no_predictions), *_find(list(seeds.values()), why_no_head)]
    return ReportSection(
        name="quality",
        title="How good the SAEs are",
        findings=(*findings, *say_alignment(pairs)),
        tables=tables,
        figures={
            "progressive": SectionFigure(
                lambda: draw_progressive({"": [one.quality for one in seeds.values()]}),
                "What test tokens are reconstructed from when only the k largest activations of each are kept: means"
                f" over SAE seeds, shades are ± one standard deviation. {_explain_k(list(seeds.values()))}",
            )
        },
        summary=[{"sae_seed": seed, **one.summary} for seed, one in seeds.items()],
    )


def _make_table(seeds: Seeds) -> Table:
    def read(key: str) -> Callable[[Measured], float]:
        return lambda one: one.summary[key]  # pyright: ignore[reportReturnType] # all of them are numbers

    first = next(iter(seeds.values()))
    n, k = first.quality.n_tokens, "the nearest neighbours"
    sections = {
        "code": [
            Quantity("zeros", "zeros in the code of a token (%)", read("zeros"), 1, 100),
            Quantity("dead_share", "latents silent on all test tokens (%)", read("dead_share"), 1, 100),
            Quantity("cknna", "CKNNA of tokens and codes", read("cknna")),
            Quantity("cknna_unit", "the same, rows of unit norm", read("cknna_unit")),
        ],
        "decoder": [
            Quantity("orthogonality", "mean squared cosine of two rows", read("orthogonality"), 5),
            Quantity("random_rows", "   of random rows", lambda one: 1 / one.d_in, 5),
            Quantity("least_orthogonality", "   so many have at least", lambda one: one.quality.least_orthogonality, 5),
            Quantity("n_zero_rows", "rows of zeros, not counted", lambda one: one.quality.n_zero_rows, 0),
            Quantity("nearest_row", "cosine with the nearest other row, median", _median_nearest),
        ],
    }
    notes = [
        f"CKNNA: whether {k} of a token are those of its code, and as near, on {n:,} test tokens: inner products of the"
        " tokens less the data's mean and of their codes times the norms of the decoder rows, masked by the nearest"
        " in both, in unbiased HSIC; 1: the same, 0: nothing in common. Unit norm: as Huh et al., so that no token of"
        " large norm is near to all. Squared cosine of rows: small is orthogonal (MSAE). Latents that are silent have"
        " rows too."
    ]
    if first.quality.n_classes:
        sections["linear probe"] = [
            Quantity("n_images", "test images", lambda one: one.quality.n_images, 0),
            Quantity("accuracy", "right on the originals (%)", read("accuracy"), 1, 100),
            Quantity("accuracy_reconstructed", "right on reconstructions (%)", read("accuracy_reconstructed"), 1, 100),
            Quantity("agreement", "same prediction on both (%)", read("agreement"), 1, 100),
            Quantity("kl_nats", "KL(original || reconstruction), nats", read("kl_nats"), 4),
        ]
        notes.append(
            "Linear probe: trained on the mean of the tokens of each training image that the SAE reads, as they are,"
            " and read on the same of test images and of their reconstructions."
        )
    return make_seed_table("quality", "Codes and decoders", seeds, sections, notes)


def _median_nearest(one: Measured) -> float:
    nearest = one.quality.nearest_row
    return float(np.nanmedian(nearest)) if np.isfinite(nearest).any() else np.nan


def make_progressive_table(measured: Sequence[Measured]) -> Table:
    """Return the curve over k: a row per k, mean ± sd over the SAEs of some seeds."""
    headings = {column.key: column for column in COLUMNS}
    columns = [Column("k", "k", digits=0, is_count=True), *(headings[name] for name in MEASURES)]
    table = Table(
        "progressive",
        "Reconstruction from the k largest activations of a token",
        columns,
        notes=[f"{measured[0].quality.n_tokens:,} test tokens. {_explain_k(measured)}"],
    )
    for place, k in enumerate(measured[0].quality.ks.tolist()):
        stats = (compute_stat(float(getattr(one.quality, name)[place]) for one in measured) for name in MEASURES)
        table.add_row(k, *stats)
    return table


def _explain_k(measured: Sequence[Measured]) -> str:
    if measured[0].quality.has_own_k:
        return "k stands in the place of the SAE's own number of latents per token, which it may exceed."
    return "The k largest of the activations that the SAE gives a token are kept; where a token has fewer, all of them."


def _find(measured: Sequence[Measured], why_no_head: str) -> Iterator[str]:
    first = measured[0]

    def write(key: str, digits: int, scale: float = 1.0) -> str:
        return format_stat(compute_stat(one.summary[key] for one in measured), digits, scale)  # pyright: ignore[reportArgumentType]

    yield (
        f"{write('zeros', 1, 100)}% of a token's code are zeros, and {write('dead_share', 1, 100)}% of the latents are"
        f" silent on all test tokens. CKNNA of tokens and codes is {write('cknna', 3)}, of rows of unit norm"
        f" {write('cknna_unit', 3)} (1: the same neighbours, equally near; 0: nothing in common)."
    )
    if (n_rows := first.d_sae - first.quality.n_zero_rows) > 1:
        yield (
            f"The mean squared cosine of two decoder rows is {write('orthogonality', 4)}; of random ones it is"
            f" {1 / first.d_in:.4f}, and {n_rows:,} rows of {first.d_in} components have"
            f" {first.quality.least_orthogonality:.4f} at least."
        )
    yield _say_progressive(measured)
    if why_no_head:
        yield f"There is no linear probe on reconstructions: {why_no_head}"
    else:
        yield (
            f"A linear probe of {first.quality.n_classes} classes is right on {write('accuracy', 1, 100)}% of"
            f" {first.quality.n_images:,} test images, on {write('accuracy_reconstructed', 1, 100)}% of their"
            f" reconstructions; both predictions agree on {write('agreement', 1, 100)}%, and KL(original ||"
            f" reconstruction) is {write('kl_nats', 3)} nats."
        )


def _say_progressive(measured: Sequence[Measured]) -> str:
    ks = measured[0].quality.ks.tolist()
    fvu = [compute_stat(float(one.quality.fvu[place]) for one in measured).mean for place in range(len(ks))]
    best = int(np.nanargmin(fvu)) if np.isfinite(fvu).any() else 0
    shown = sorted({0, len(ks) // 2, best, len(ks) - 1})
    parts = [f"{format_number(100 * fvu[place], 1)}% at k = {ks[place]:,}" for place in shown]
    words = f"With the k largest activations of a token alone the unexplained variance is {', '.join(parts)}"
    return f"{words}; it is least at k = {ks[best]:,}." if best < len(ks) - 1 else f"{words}."
