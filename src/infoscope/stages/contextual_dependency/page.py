"""What a notebook shows of scores: numbers, groups, the histogram, and how to go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from infoscope.report.figure_style import house_style, write_png
from infoscope.runtime import notebook
from infoscope.scope.config import RankBy
from infoscope.scope.examples import choose_example_latents
from infoscope.scope.partition import name_group, order_groups
from infoscope.stages.score.figures import draw_cds_histograms
from infoscope.stages.score.result import ScopeResult
from infoscope.stages.score.tables import compute_mass_share

if TYPE_CHECKING:
    from infoscope.stages.contextual_dependency.found import ContextualDependency

N_EXAMPLES = 6
HISTOGRAM_PX = 720
CHOSEN_BY = {
    RankBy.max: "that excite a latent most",
    RankBy.mean: "of a latent's largest mean activation",
    RankBy.drawn: "drawn from those on which a latent fires",
}


def write_found(found: ContextualDependency, scope: ScopeResult) -> str:
    """Return HTML of what was found, with the groups of `scope`."""
    with house_style():
        histogram = write_png(draw_cds_histograms({"": [scope]}))
    scored, ranking = np.isfinite(found.cds), found.ranking
    title = f"{scored.sum():,} of {ranking.d_sae:,} latents scored on {ranking.n_images:,} images"
    return notebook.join(
        notebook.write_title("ContextualDependency", title),
        notebook.write_facts(_list_facts(found)),
        notebook.write_table(("group", "latents", "undecided", "share of mass", "CDS"), _list_groups(scope)),
        notebook.write_picture(histogram, "Histogram of the CDS", HISTOGRAM_PX),
        _write_next(scope),
    )


def _list_facts(found: ContextualDependency) -> dict[str, str]:
    images = f"{found.ranking.n_images:,}"
    if found.n_held_out:
        images += f", and {found.n_held_out:,} held out"
    if skipped := found.skipped:
        name, reason = next(iter(skipped.items()))
        images += f"; {len(skipped):,} could not be read and are in .skipped, first {name} ({reason})"
    return {
        "CDS": _summarise(found.cds),
        "by chance": _summarise(found.chance),
        "images": images,
        "SAE reads": f"the tokens after block {found.layer}",
        "score": f"mean over the {found.k_cds} images {CHOSEN_BY[found.ranking.rank_by]} (k_cds)",
    }


def _summarise(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    if not len(known):
        return "no latent has one"
    low, middle, high = np.quantile(known, (0.1, 0.5, 0.9))
    return f"median {middle:.3f}; a tenth lie below {low:.3f}, a tenth above {high:.3f}"


def _list_groups(scope: ScopeResult) -> list[tuple[str, ...]]:
    """Return a row per group, those of low scores first, and those of the latents without a score."""
    rows = []
    for name in order_groups(scope.partition.groups):
        members = scope.partition.groups[name]
        scores = scope.cds[members]
        span = f"{scores.min():.3f} to {scores.max():.3f}" if len(scores) else ""
        n_undecided = int((scope.undecided & members).sum())
        share = compute_mass_share(scope, members)
        rows.append((name_group(name), f"{members.sum():,}", f"{n_undecided:,}", f"{share:.1%}", span))
    fires = scope.firing_rate > 0
    for name, members in (("no score", scope.partition.unscored & fires), ("never fire", ~fires)):
        rows.append((name, f"{members.sum():,}", "", f"{compute_mass_share(scope, members):.1%}", ""))
    return rows


def _write_next(scope: ScopeResult) -> str:
    """Return how to go on, with some latents to look at."""
    k = scope.k_cds
    chosen = choose_example_latents(scope.scores.cds(k), scope.partition, scope.undecided, N_EXAMPLES, k)
    named = [f"{name_group(name)} {', '.join(map(str, latents))}" for name, latents in chosen.items()]
    latent = next((latents[0] for latents in reversed(chosen.values()) if latents), 0)
    examples = f" Some to look at: {'; '.join(named)}." if named else ""
    return notebook.write_line(
        f"draws a latent's top images.{examples}", f"found.show({latent})"
    ) + notebook.write_line("gives a row per latent; .divide(gamma=0.1) other groups.", "found.to_pandas()")
