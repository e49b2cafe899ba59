import math
import re
from math import nan

import numpy as np
import pytest

from infoscope.report.figure_style import save_figure
from infoscope.report.tables import MISSING
from infoscope.scope.agreement import Agreement, IntervalSummary, bootstrap_cds
from infoscope.scope.cds import compute_cds
from infoscope.scope.stability import Kind, StabilityResult, Variation
from infoscope.stages.stability.section import MIN_FEATURES, collect_comparisons, draw_stability, make_stability_section

K = 8


def make_stability(seed=0, seeds=(0,), n_latents=200, gamma=0.15, base=None):
    """A mixture of local and global features; what is varied adds noise of its own, a larger shift also a bias."""
    rng = np.random.default_rng([seed, 5])
    base = np.where(rng.random(n_latents) < 0.8, rng.beta(2, 14, n_latents), rng.beta(8, 14, n_latents))
    emd = np.clip(base[:, None] + rng.normal(0, 0.07, (n_latents, 2 * K)), 0, 1)
    emd[: n_latents // 10] = np.nan
    cds = compute_cds(emd, K).values

    def vary(name, kind, setting, noise, bias=0.0, **more):
        values = np.clip(cds + bias + rng.normal(0, noise, n_latents), 0, 1)
        return Variation(name, kind, setting, values, **more)

    cosine = rng.uniform(0, 1, n_latents)
    variations = [
        *(vary(f"shift_{s}", Kind.shift, f"shift {s}", 0.02 * s, 0.03 * s) for s in (2, 3)),
        Variation("shift_11", Kind.shift, "shift 11", np.full(n_latents, np.nan), "it leaves too few patches"),
        vary("diagonal", Kind.diagonal, "other diagonal", 0.02),
        vary("held_out", Kind.images, "held-out images", 0.04),
        *(Variation(f"k_{k}", Kind.k_cds, f"k_CDS {k}", compute_cds(emd, k).values) for k in (1, 2, 4, 16)),
        vary("sinkhorn", Kind.solver, "Sinkhorn, blur 0.1", 0.002, 0.01),
        *(vary(f"seed_{s}", Kind.seed, f"SAE seed {s}", 0.06, cosine=cosine) for s in seeds if s != seed),
    ]
    interval = bootstrap_cds(emd, K, 200)
    configured = "shift 1, main diagonal, training images, k_CDS 8, exact EMD"
    return StabilityResult(seed, configured, K, gamma, cds, interval, 0.95, 200, 0.7, tuple(variations))


def make_empty():
    nan = np.full(6, np.nan)
    variations = (Variation("held_out", Kind.images, "held-out images", nan),)
    return StabilityResult(0, "shift 1", K, None, nan, bootstrap_cds(nan[:, None], 1), 0.95, 10, 0.7, variations)


def test_section_has_a_row_per_choice_and_finds_the_best_and_the_worst(tmp_path):
    results = [make_stability(seed, (0, 1, 2)) for seed in (0, 1, 2)]
    section = make_stability_section(results)
    (table,) = section.tables.values()
    assert (section.name, table.name) == ("stability", "stability")
    rows = {record["comparison"]: record for record in table.records()}
    assert len(rows) == 12
    held_out = [result.compare(result.variations[4]) for result in results]
    assert rows["held-out images"]["rank_correlation"] == pytest.approx(np.mean([a.rank_correlation for a in held_out]))
    assert rows["held-out images"]["rank_correlation_n"] == 3
    assert rows["held-out images"]["n_features"] == 180
    measured = {name: row["rank_correlation"] for name, row in rows.items() if math.isfinite(row["rank_correlation"])}
    first = section.findings[0]
    assert f"best under {max(measured, key=measured.get)}" in first
    assert f"worst under {min(measured, key=measured.get)}" in first
    assert re.fullmatch(r".* correlation is 0\.\d{3} \(shift 2\), 0\.\d{3} \(shift 3\)\.", section.findings[1])
    assert "Too few features, or not measured: shift 11." in section.findings
    text = table.to_markdown()
    assert "Not measured, shift 11: it leaves too few patches." in text
    assert MISSING in text
    assert "of 180 pairs lie above 0.7" in text
    alike = rows["two seeds, cosine > 0.7"]
    assert 40 < alike["n_features"] < 70
    assert alike["n_features"] < rows["two seeds, all pairs"]["n_features"]
    for name, figure in section.figures.items():
        (path,) = save_figure(figure.draw, name, tmp_path)
        assert path.stat().st_size > 20_000


def test_every_pair_of_seeds_counts_once():
    results = [make_stability(seed, (0, 1, 2)) for seed in (0, 1, 2)]
    rows = [row for row in collect_comparisons(results) if row.kind is Kind.seed]
    assert [(row.name, len(row.agreements)) for row in rows] == [("seeds", 3), ("seeds_all", 3)]


def test_few_features_are_marked_and_never_the_best():
    results = [make_stability(seed, (0, 1), n_latents=60) for seed in (0, 1)]
    rows = {row.name: row for row in collect_comparisons(results)}
    assert 2 < rows["seeds"].stat("n").mean < MIN_FEATURES
    section = make_stability_section(results)
    assert re.search(r"\| two seeds, cosine > 0.7 \| [0-9.± ]+ † \|", section.tables["stability"].to_markdown())
    assert "cosine > 0.7" not in section.findings[0]
    assert section.findings[-1].endswith("shift 11, two seeds, cosine > 0.7.")


def test_summary_has_the_means():
    summary = make_stability_section([make_stability()]).summary
    assert summary["shift_11"] == pytest.approx(Agreement(nan, nan, nan, 0)._asdict(), nan_ok=True)
    assert 0.5 < summary["held_out"]["rank_correlation"] < 1
    intervals = make_stability().intervals
    assert summary["intervals"] == dict(zip(intervals._fields, intervals, strict=True))
    assert "seeds" not in summary


def test_findings_say_what_is_not_known():
    found = " ".join(make_stability_section([make_stability(gamma=None)]).findings)
    assert "one SAE seed" in found
    assert "no gamma" in found
    with_gamma = make_stability()
    found = " ".join(make_stability_section([with_gamma]).findings)
    assert f"{with_gamma.intervals.undecided_share:.0%} of the scored features are undecided" in found
    assert f"(of those above gamma {with_gamma.intervals.undecided_share_high:.0%})." in found


def test_nothing_scored_is_said_and_drawn(tmp_path):
    section = make_stability_section([make_empty()])
    assert section.findings[0].startswith("No comparison has 20 features")
    assert any("No feature has a bootstrap interval" in finding for finding in section.findings)
    assert section.summary["intervals"] == pytest.approx(IntervalSummary(nan, nan, nan, 0)._asdict(), nan_ok=True)
    for name, figure in section.figures.items():
        assert save_figure(figure.draw, name, tmp_path)


def test_intervals_are_coloured_by_group_on_a_scale_that_shows_low_scores():
    result = make_stability()
    figure = draw_stability([result], collect_comparisons([result]))
    _, intervals = figure.axes
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["low-scope", "high-scope", "undecided", f"gamma, {result.gamma:.3f}"]
    bottom, middle, top = intervals.transData.transform([(0, y) for y in (0, 0.25, 1)])[:, 1]
    assert middle - bottom == pytest.approx((top - bottom) / 2)
    without = make_stability(gamma=None)
    assert not draw_stability([without], collect_comparisons([without])).legends
