"""Eight faults, eight named tests: each fault is planted in one function, and its test must turn red.

The eighth, gamma from test data, needs a finished run: `test_a_planted_fault_turns_the_gamma_test_red` in
tests/pipeline/test_run.py.
"""

import math
from functools import partial

import numpy as np
import pytest

from infoscope.probes import metrics
from infoscope.sae import edit
from infoscope.sae.activations import TopK
from infoscope.scope import cds, crops, emd, maps, top_images
from tests.probes.test_metrics import test_ignored_pixels_do_not_count as ignored_pixels_test
from tests.sae.test_edit import SCALE
from tests.sae.test_edit import test_edit_is_rescaled_to_raw_units as edit_test
from tests.scope.test_crops import test_shared_region_holds_the_same_pixels as shared_region_test
from tests.scope.test_emd import test_maps_are_normalised_before_emd as normalisation_test
from tests.scope.test_ranking import test_ranking_equals_a_full_sort as ranking_test
from tests.scope.test_scoring import test_last_incomplete_batch_is_scored as last_batch_test
from tests.scope.test_scoring import test_planted_jump_scores_its_offset_over_d_grid as d_grid_test


def swapped(grid, shift_patches, crop):
    return slice(shift_patches, grid) if crop == 2 else slice(0, grid - shift_patches)


def centre_to_edge(grid, shift_patches):
    return math.sqrt(2) * (grid - shift_patches)


def not_normalised(maps):
    return maps.reshape(len(maps), -1).astype(np.float64)


best_first, read, sum_decoder_rows = top_images.best_first, maps._read, edit.sum_decoder_rows


def one_rank_late(values, images, k):
    values, images = best_first(values, images, k + 1)
    return values[:, -k:], images[:, -k:]


def whole_batches_only(reader, parts, n_at_once):
    return (b for b in read(reader, parts, n_at_once) if len(b.index) == n_at_once)


def normalised_units(acts, W_dec):
    return sum_decoder_rows(acts, W_dec) * SCALE


@pytest.mark.parametrize(
    ("module", "name", "fault", "test"),
    [
        (crops, "shared_slice", swapped, shared_region_test),
        (cds, "compute_d_grid", centre_to_edge, d_grid_test),
        (emd, "normalise_maps", not_normalised, normalisation_test),
        (top_images, "best_first", one_rank_late, ranking_test),
        (edit, "sum_decoder_rows", normalised_units, partial(edit_test, TopK(5))),
        (metrics, "IGNORE_LABEL", 254, ignored_pixels_test),
        (maps, "_read", whole_batches_only, last_batch_test),
    ],
    ids=["alignment", "d_grid", "normalisation", "ranks", "edit_scale", "ignored_pixels", "last_batch"],
)
def test_a_planted_fault_turns_its_test_red(module, name, fault, test, monkeypatch):
    test()
    monkeypatch.setattr(module, name, fault)
    with pytest.raises((AssertionError, ValueError)):  # maps that nobody made leave arrays of different lengths
        test()
