"""The curve of reconstruction over the number of activations that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from infoscope.analyses.quality import QualityResult
from infoscope.report.figure_style import FAINT, LOW, colour_groups, draw_means, make_panels
from infoscope.report.tables import compute_stat

PANELS = {"fvu": "unexplained variance", "cosine_raw": "cosine of token and reconstruction"}


def draw_progressive(curves: Mapping[str, Sequence[QualityResult]]) -> Figure:
    """Draw FVU and cosine against k, a line for each SAE (mean over its seeds).

    Args:
        curves: the results of the seeds of each SAE, by name; one without a name has no legend.
    """
    figure, panels = make_panels(len(PANELS), 2.9 + 0.16 * (len(curves) > 1) * len(curves))
    colours = {"": LOW} if list(curves) == [""] else colour_groups(list(curves))
    for panel, (measure, words) in zip(panels, PANELS.items(), strict=True):
        for name, results in curves.items():
            ks = results[0].ks.tolist()
            stats = [compute_stat(float(getattr(one, measure)[place]) for one in results) for place in range(len(ks))]
            draw_means(panel, ks, stats, 1, colours[name], label=name)
        shown = max((results[0].ks.tolist() for results in curves.values()), key=len)
        panel.set_xscale("log", base=2)
        panel.set_xticks(shown[::2], [f"{k:,}" for k in shown[::2]])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(axis="y", color=FAINT, linewidth=0.6)
        panel.set_title(words, fontsize=8.5)
        panel.set_xlabel("largest activations kept")
    panels[0].set_ylim(0, min(1.5, max(panels[0].get_ylim()[1], 1)))
    if len(curves) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
