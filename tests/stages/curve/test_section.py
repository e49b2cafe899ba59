"""The section on the removal curve: its rows, what is counted against random orders, and the figure's points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infoscope.scope.config import By
from infoscope.scope.curve import ORDERS, name_orders, name_part
from infoscope.stages.curve.section import draw_curve, list_curve_excess, make_curve_section, make_curve_table
from tests.support.report_samples import make_result

SHARES = (0.2, 0.6)
LOSS = {"low": 0.5, "high": 0.05, "random": 0.2}
"""Of mIoU for all of the mass."""


def make_runs(n_seeds: int = 3, n_draws: int = 2) -> list[dict[str, Any]]:
    runs = []
    for seed in range(n_seeds):
        original = make_result(seed, "original")
        runs += [original, make_result(seed, "all")]
        for share in SHARES:
            for end in ORDERS:
                for draw in range(n_draws) if end == "random" else [None]:
                    run = make_result(seed, "original")
                    measured = {
                        "role": "part",
                        "group": name_part(end, share),
                        "draw": draw,
                        "mass_share": share + 0.01,
                    }
                    run["variant"] |= {"energy_share": 0.5 * share, "n_latents": 7} | measured
                    noise = 0.001 * (seed * (1 + [*ORDERS].index(end)) + (draw or 0))
                    run["metrics"]["segmentation"] = {"miou": 0.6 - share * LOSS[end] + noise}
                    runs.append(run)
    return runs


def test_rows_are_shares_and_orders() -> None:
    table = make_curve_table(make_runs(), SHARES)
    assert [section.title for section in table.sections] == ["", "20% of the mass", "60% of the mass", ""]
    orders = name_orders(By.cds).values()
    assert [row[0].value for row in table.rows] == ["nothing", *orders, *orders, "all"]
    row = table.records()[1]
    assert row["mass_share"] == pytest.approx(0.21)
    assert row["miou"] == pytest.approx(0.6 - 0.2 * 0.5 + 0.001)


def test_differences_are_against_the_random_orders_of_the_same_seed() -> None:
    excess = list_curve_excess(make_runs(), SHARES)
    wanted = ("low", "random", "miou")
    (low,) = (one for one in excess[0.6] if (one.group, one.control, one.metric.column.key) == wanted)
    assert low.by_seed == pytest.approx({seed: -0.6 * 0.3 - 0.0005 - 0.002 * seed for seed in range(3)})


def test_findings_count_the_shares() -> None:
    section = make_curve_section(make_runs(), SHARES)
    (miou,) = (text for text in section.findings if text.startswith("mIoU: "))
    assert miou == (
        "mIoU: lowest CDS first against random order costs more at 2 (20, 60% of the mass), less at none; highest CDS"
        " first against random order costs more at none, less at 2 (20, 60% of the mass); lowest CDS first against"
        " highest CDS first costs more at 2 (20, 60% of the mass), less at none."
    )
    assert len(section.summary) == 2 * 3 * 4


def test_one_seed_has_no_interval() -> None:
    (only,) = make_curve_section(make_runs(1), SHARES).findings
    assert only.startswith("One SAE seed: ")


def test_without_random_orders_the_ends_are_compared() -> None:
    section = make_curve_section(make_runs(3, n_draws=0), SHARES)
    (miou,) = (text for text in section.findings if text.startswith("mIoU: "))
    assert miou.startswith("mIoU: lowest CDS first against highest CDS first costs more at 2 (")


def test_points_stand_at_the_mass_that_was_removed() -> None:
    panels = draw_curve(make_runs(), SHARES).axes
    (miou,) = (axes for axes in panels if axes.get_title() == "mIoU (%)")
    x, y = np.asarray(miou.lines[0].get_data(), float)
    np.testing.assert_allclose(x, [0, 21, 61, 100])
    np.testing.assert_allclose(y[1:3], [50.1, 30.1])
    (depth,) = (axes for axes in panels if axes.get_title() == "depth RMSE (m)")
    assert depth.yaxis_inverted()


def test_nothing_to_draw_is_said() -> None:
    (axes,) = draw_curve([], SHARES).axes
    assert axes.texts[0].get_text() == "Nothing was removed."
