"""What moves between two maps: exact against POT, and the distance that is kept of the same maps."""

from __future__ import annotations

import numpy as np
import pytest

from infoscope.explorer.format import pack_maps
from infoscope.scope.cds import compute_d_grid
from infoscope.scope.config import Diagonal
from infoscope.scope.crops import shared_region
from infoscope.scope.emd import compute_emd

FLOW = """([ones, others, side]) => ones.map((one, i) => {
    const found = infoscope.flow(one, others[i], side);
    return found && { cost: found.cost, moved: found.moved, kept: Array.from(found.kept), moves: found.moves };
})"""


@pytest.fixture(scope="module")
def page(browser, sample):
    """One page for all: nothing changes it."""
    page = browser.new_page()
    page.goto(sample.as_uri())
    page.wait_for_selector("main")
    yield page
    page.close()


def _ask(page, ones, others):
    n, side = len(ones), ones.shape[-1]
    return page.evaluate(FLOW, [ones.reshape(n, -1).tolist(), others.reshape(n, -1).tolist(), side])


def test_flow_is_an_optimal_plan(page):
    for side, share in [(2, 1.0), (7, 0.1), (7, 1.0), (15, 0.12), (24, 0.3)]:
        ones, others = _draw_maps(side, share)
        found = _ask(page, ones, others)
        np.testing.assert_allclose([one["cost"] for one in found], compute_emd(ones, others), atol=1e-9)
        assert found[4]["cost"] == pytest.approx(np.sqrt(2) * (side - 1))
        for one, start, end in zip(found, ones, others, strict=True):
            left, arrived = np.array([one["kept"], one["kept"]], dtype=float)
            for move in one["moves"]:
                left[move["from"]] += move["mass"]
                arrived[move["to"]] += move["mass"]
            np.testing.assert_allclose(left, start.ravel() / start.sum(), atol=1e-12)
            np.testing.assert_allclose(arrived, end.ravel() / end.sum(), atol=1e-12)


def _draw_maps(side, share):
    draw, one_patch = np.random.default_rng([side, int(100 * share)]), np.zeros((side, side))
    maps = draw.random((2, 7, side, side)) ** 3 * (draw.random((2, 7, side, side)) < share)
    maps[:, :, 0, 1] += 0.1
    maps[:, 1] = np.ceil(maps[:, 1])  # ties
    maps[1, 2] = 5 * maps[0, 2]  # equal but for their sum
    one_patch[0, 0] = 2
    maps[0, 3] = one_patch
    maps[:, 4] = one_patch, one_patch[::-1, ::-1]  # from corner to corner
    return maps


def test_silent_map_has_no_flow(page):
    maps = np.zeros((1, 3, 3))
    assert _ask(page, maps, maps + 1) == [None]


def test_distance_of_packed_maps_is_the_kept_one(page):
    """Crops are cut to their shared region as scoring cuts them; steps of packed maps cost little."""
    draw, grid, shift = np.random.default_rng(3), 9, 2
    for diagonal in Diagonal:
        maps = draw.random((24, grid, grid)) * (draw.random((24, grid, grid)) < 0.2)
        shared = [shared_region(maps[crop - 1 :: 2], shift, crop, diagonal) for crop in (1, 2)]
        found = page.evaluate(
            """([packed, view]) => {
                const maps = infoscope.unpackMaps(packed), pair = (i) => [maps[2 * i], maps[2 * i + 1]];
                return Array.from({ length: 12 }, (_, i) => infoscope.pairFlow(view, ...pair(i), 1e-5).emd);
            }""",
            [pack_maps(maps), {"grid": grid, "shift": shift, "diagonal": diagonal.name}],
        )
        np.testing.assert_allclose(found, compute_emd(*shared) / compute_d_grid(grid, shift), atol=1e-5)
