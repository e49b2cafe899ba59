"""The section on masking: its table, what it says of the curves, its figure."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infoscope.analyses.masking import CLASS, RANDOM, Mask, MaskingResult
from infoscope.pipeline.context import Context
from infoscope.report.figure_style import save_figure
from infoscope.runtime.errors import InputError
from infoscope.stages.masking import stage
from infoscope.stages.masking.section import make_masking_section, name_mask
from infoscope.stages.masking.stage import Masking
from tests.support.pipeline_samples import Recorder, make_tiny_config

D_SAE, NUMBERS = 64, (1, 10)
N_IMAGES = np.array([40, 60, 0])
TOP1 = {CLASS: {1: 0.5, 10: 0.9, D_SAE: 0.8}, RANDOM: {1: 0.3, 10: 0.3}, "high": {1: 0.3, 10: 0.4, D_SAE: 0.6}}
TOP1["low"] = {1: 0.5, 10: 0.8, D_SAE: 0.7}
"""Share that is predicted right while so many latents are kept alone; dropped: 1 minus it."""


def make_result(seed: int, errors: tuple[bool, ...] = (True, False), ranked_on: str = "train") -> MaskingResult:
    """Numbers that hardly differ from seed to seed."""
    rng = np.random.default_rng(seed)
    masks, shares = [], []
    for curve, by_number in TOP1.items():
        for draw in range(3) if curve == RANDOM else [None]:
            for n, share in by_number.items():
                for keeps in (True, False):
                    for error in errors:
                        masks.append(Mask(curve, draw, n, keeps, error, min(n, 7), 2 * (n == 10), 2 * n))
                        shares.append((share if keeps else 1 - share) - 0.1 * (not error))
    wobbling = np.array(shares)[:, None] + rng.normal(0, 0.004, (len(shares), 1))
    right = np.round(100 * wobbling * N_IMAGES).astype(np.int64)
    facts = (("ball", "cube", "ring"), D_SAE, ranked_on, 0.0)
    return MaskingResult(tuple(masks), *facts, np.array([7, 7, 0]), 100 * N_IMAGES, right, right / 2.0)


RESULTS = {seed: make_result(seed) for seed in range(3)}


def test_a_row_for_each_number_and_means_over_seeds_and_draws() -> None:
    table = make_masking_section(RESULTS).tables["masking"]
    records = table.records()
    assert [record["section"] for record in records[::3]] == [
        "kept alone, the SAE's error stays",
        "kept alone, decoded",
        "dropped, the SAE's error stays",
        "dropped, decoded",
    ]
    assert [record["latents"] for record in records[:3]] == ["1", "10", "all"]
    row = records[1]
    of = [i for i, mask in enumerate(RESULTS[0].masks) if (mask.curve, mask.n_latents) == (RANDOM, 10) and mask.keeps]
    expected = [result.top1(place) for result in RESULTS.values() for place in of if result.masks[place].error_kept]
    assert row["top1_random"] == pytest.approx(np.mean(expected))
    assert row["top1_random_sd"] == pytest.approx(np.std(expected, ddof=1))
    assert row["top1_random_n"] == 9
    assert row["true_prob_low"] == pytest.approx(0.4, abs=0.01)
    assert row["n_chosen_class"] == 7
    assert records[2]["top1_random"] is None  # all random latents are all latents
    text = table.to_markdown()
    assert "this measures where the information on classes lies, and is no classifier" in text
    assert "these are 2 classes at 10 (the class's), 2 classes at 10 (its high-scope), 2 classes at 10 (its low" in text
    assert "1 class has no image among these and is left out" in text
    assert "masking.sae_bias" not in text


def test_findings_follow_the_numbers() -> None:
    found = make_masking_section(RESULTS).findings
    assert "guessing gives 33.3%" in found[0]
    assert "are no classifier" in found[0]
    assert "the commonest class alone 60.0%" in found[0]
    assert re.fullmatch(
        r"With 10 latents kept alone, top-1 is (9|8)\d\.\d% if they are the class's own, \d+\.\d% if they are random"
        r" ones, \d+\.\d% if they are its high-scope ones, \d+\.\d% if they are its low-scope ones\. Without the SAE's"
        r" error it is, in the same order, (7|8)\d\.\d%, .*, .*, .*%\.",
        found[1],
    )
    assert found[2].startswith("With 10 latents dropped, top-1 is ")
    assert "within 1 point of the top-1 of the original tokens: 10 (the SAE's error stays), 10 (decoded)." in found[4]
    assert found[3].startswith(
        "The 10 latents of each of the 3 classes are together so many different ones: 20 (the class's), 20 (random)"
    )
    text = " ".join(found)
    assert (
        "The class's latents against as many random ones, the SAE's error kept (95% intervals over SAE seeds): kept"
        " alone, top-1 is higher at n = 1, 10 and lower at no number; dropped, top-1 is higher at no number and lower"
        " at n = 1, 10."
    ) in text
    assert "Its low-scope latents against its high-scope ones" in text
    assert not any("Warning" in finding for finding in found)
    alone = make_masking_section({0: RESULTS[0]}).findings
    assert not any("intervals" in finding for finding in alone)  # one seed has no spread


def test_a_head_that_guesses_tells_nothing() -> None:
    guessing = {seed: replace(one, n_right=np.zeros_like(one.n_right)) for seed, one in RESULTS.items()}
    text = " ".join(make_masking_section(guessing).findings)
    assert "no better than naming one class for all images" in text
    assert "within 1 point" not in text


def test_labels_that_leak_are_said_first() -> None:
    found = make_masking_section({0: make_result(0, ranked_on="test")}).findings
    assert found[0].startswith("Warning: the latents of each class were ranked on the images that are predicted")
    assert "so that their labels leak twice" in found[0]


def test_a_constant_that_is_added_is_noted() -> None:
    table = make_masking_section({0: replace(RESULTS[0], sae_bias=0.1051)}).tables["masking"]
    assert "0.1051 is added to each coordinate of decoded tokens" in table.to_markdown()


def test_a_constant_is_refused_where_no_token_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("model=scenes_clip", "model.pretrained=random", "stage=masking", "masking.sae_bias=0.1")
    ctx = Context(make_tiny_config(tmp_path, *given), Recorder())
    Masking().check(ctx, 0)
    monkeypatch.setattr(stage, "has_free_scale", lambda _: True)
    with pytest.raises(InputError, match=r"^masking\.sae_bias is added to decoded tokens, .*: drop it\.$"):
        Masking().check(ctx, 0)


def test_one_way_of_treating_the_error_has_half_of_the_table_and_of_the_figure(tmp_path: Path) -> None:
    section = make_masking_section({seed: make_result(seed, (True,)) for seed in range(2)})
    assert [part.title for part in section.tables["masking"].sections] == [
        "kept alone, the SAE's error stays",
        "dropped, the SAE's error stays",
    ]
    assert "reconstruction" not in section.findings[0]
    assert "error" not in section.findings[1]
    assert len(section.figures["masking"].draw().axes) == 2


def test_the_figure_has_a_panel_for_each_way_and_a_line_for_each_curve(tmp_path: Path) -> None:
    drawn = make_masking_section(RESULTS).figures["masking"]
    figure = drawn.draw()
    ways = ("the SAE's error stays", "decoded")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"{of}, {way}" for of in ("kept alone", "dropped") for way in ways]
    curves = [line for line in figure.axes[0].lines if np.size(line.get_xdata()) > 1 and line.get_marker() == "o"]
    assert [np.size(line.get_xdata()) for line in curves] == [3, 2, 3, 3]  # random ones have no point for all
    np.testing.assert_allclose(np.asarray(curves[0].get_ydata()), [50, 90, 80], atol=1)
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["1", "10", "all"]
    assert all(path.stat().st_size > 1000 for path in save_figure(drawn.draw, "masking", tmp_path))


def test_masks_have_names() -> None:
    mask = RESULTS[0].masks[0]
    assert name_mask(mask, D_SAE) == "1 latent kept (the class's, error kept)"
    other = replace(mask, curve="band 1 of 4", n_latents=D_SAE, keeps=False, error_kept=False)
    assert name_mask(other, D_SAE) == "all latents dropped (its band 1 of 4 (lowest CDS), error dropped)"


def test_a_class_without_images_is_neither_best_nor_worst() -> None:
    last = make_masking_section(RESULTS).findings[-1]
    assert "ring" not in last
    assert math.isnan(RESULTS[0].class_top1(0)[2])
