"""What is said and shown of seeds that are aligned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infoscope.analyses.alignment import MATCHINGS, Alignment
from infoscope.pipeline.context import Context
from infoscope.stages.describe import alignment
from infoscope.stages.describe.alignment import Aligned, make_alignment_table, say_alignment
from tests.support.pipeline_samples import Recorder, make_tiny_config


def make_pair(value: float, d_sae: int = 10) -> Alignment:
    """By activation two of ten latents have no partner, and two have another one than by the other ways."""
    partner = np.tile(np.arange(d_sae), (4, 1))
    partner[2, [0, 1, 2, 3]] = [-1, -1, 3, 2]
    values = np.where(partner >= 0, np.float32(value), np.nan)
    values[0, 0] = 1
    return Alignment(partner, values, np.array([d_sae, d_sae, d_sae - 2, d_sae]), np.full(4, 0.25), 500, d_sae)


def test_a_row_per_way_over_pairs_of_seeds() -> None:
    table = make_alignment_table({(0, 1): make_pair(0.8), (0, 2): make_pair(0.6), (1, 2): make_pair(0.4)})
    rows = {record["matching"]: record for record in table.records()}
    assert list(rows) == list(MATCHINGS.values())
    decoder, activation = rows["decoder rows"], rows["activation"]
    assert decoder["mean"] == pytest.approx((0.9 * (0.8 + 0.6 + 0.4) + 3 * 0.1) / 3)
    assert decoder["shared"] == pytest.approx((1 + 0.1 + 0.1) / 3)
    assert decoder["alike"] == pytest.approx(0.1)
    assert decoder["agreement"] is None
    assert [activation[key] for key in ("n_pairs", "chance", "agreement")] == [8, 0.25, 0.75]
    assert activation["shared"] == pytest.approx(1 / 3)
    assert "3 pairs of SAE seeds" in table.notes[0]
    assert "Hungarian" in table.notes[0]


def test_sentences_say_how_far_seeds_agree() -> None:
    assert say_alignment({(0, 1): make_pair(0.8)}) == [
        "Latents of two SAE seeds, matched one to one by their decoder rows, have a cosine of 0.82 on average (chance"
        " 0.25), above 0.7 for 100.0% of the latents; by their activations on the same images, 0.80 on average (chance"
        " 0.25), above 0.7 for 100.0% of the latents. Both ways name the same partner for 75.0% of the latents."
    ]
    assert "one SAE seed alone" in say_alignment({})[0]


def test_large_saes_are_said_to_be_matched_by_nearest_latents() -> None:
    (note,) = make_alignment_table({(0, 1): make_pair(0.5, 4097)}).notes
    assert "each other's nearest" in note
    assert "drawn at random" not in note
    assert "2,048 of them, drawn at random" in make_alignment_table({(0, 1): make_pair(0.5, 16385)}).notes[0]


def test_the_key_says_of_how_many_latents_chance_is_where_these_are_not_all(tmp_path: Path, monkeypatch) -> None:
    """So that what was made of all of them, before some were drawn, is not taken for it."""

    def find_key() -> dict:
        return Aligned.at(Context(make_tiny_config(tmp_path, "seeds=[0,1]"), Recorder()), 0, 1).spec.key

    assert find_key().keys() == {"codes"}
    monkeypatch.setattr(alignment, "MAX_MATCHED", 31)
    assert find_key()["n_sampled"] == 2048
