"""The section on a model and the adapted one: what its tables and sentences say of planted changes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from infoscope.analyses.adaptation import Adaptation
from infoscope.analyses.fidelity import FidelityResult
from infoscope.report.page import Page, print_report, write_report
from infoscope.report.tables import Stat
from infoscope.stages.adapt.figures import draw_adaptation
from infoscope.stages.adapt.numbers import Found, summarise_found
from infoscope.stages.adapt.section import make_adapt_section
from tests.support.report_samples import make_scope_result, make_unscored_result

NAMES = ("cat", "dog", "fox")
N_IMAGES, N_PATCHES = 100, 16


def make_fidelity(fvu: float, top1: float) -> FidelityResult:
    right = np.zeros((4, 10), dtype=bool)
    right[:, : round(10 * top1)] = True
    return FidelityResult(160, fvu, fvu, 0.9, 0.9, 8.0, 1.0, 3, np.arange(10), np.ones((4, 10), np.float32), right)


def make_found(seed: int = 0, has_labels: bool = True, is_scored: bool = True) -> Found:
    """Latents fire alike for the first class, but: one of low scope moves to the second one, one is new, one gone."""
    scope = make_scope_result(seed) if is_scored else make_unscored_result()
    n = len(scope.cds)
    low = np.flatnonzero(scope.partition.groups["low"])[:3] if is_scored else np.arange(3)
    on = np.full((2, n), 20)
    on[0, low[1]] = on[1, low[2]] = 0
    n_classes = 3 * has_labels
    top, settled = np.zeros((2, n), int), np.ones((2, n))
    top[1, low[0]] = 1
    settled[0, low[0]] = 0.9
    class_latents = np.full((2, n_classes, 2), low[0])
    class_latents[1, :, 1], class_latents[0, :, 1] = low[1], low[2]
    jaccard = np.array([[0.2, 0.5, np.nan], [0.8, 0.9, np.nan], [0.3, 0.4, np.nan]])[:, :n_classes]
    class_images = np.array([60, 40, 0])[:n_classes]
    adaptation = Adaptation(
        *(N_IMAGES, N_PATCHES, on, 2 * on, class_images, class_latents, top, settled, jaccard, 1 - jaccard)
    )
    fidelity = make_fidelity(0.1, 0.9), make_fidelity(0.2 + seed / 10, 0.5)
    return Found(scope, adaptation, fidelity, NAMES[:n_classes], 10, 2.0)


def test_tables_hold_the_changes() -> None:
    section = make_adapt_section([make_found(0), make_found(1)])
    numbers = summarise_found(make_found())
    expected = {"n_remapped": 1, "n_new": 1, "n_gone": 1, "n_both": 198, "n_base": 1, "n_adapted": 1}
    assert {key: numbers[key] for key in expected} == expected
    assert numbers["n_remapped_halves"] == pytest.approx(0.1)
    assert (numbers["jaccard"], numbers["jaccard_halves"]) == (pytest.approx(0.35), pytest.approx(0.85))
    groups = {row["group"]: row for row in section.tables["adapt_groups"].records()}
    low, high = groups["low-scope"], groups["high-scope"]
    assert (low["n_remapped"], low["n_new"], low["n_gone"], high["n_remapped"]) == (1, 1, 1, 0)
    scopes = [make_found(seed).scope.partition.groups["low"].sum() for seed in (0, 1)]
    assert low["expected_new"] == pytest.approx(np.mean(scopes) / 200)
    classes = section.tables["adapt_classes"].records()
    assert [row["class"] for row in classes] == ["cat", "dog"]  # the least overlap first; no number, no row
    assert "2 of 3 classes, 1 without images" in section.tables["adapt_classes"].title
    (move,) = section.tables["adapt_moves"].records()
    assert (move["from"], move["to"], move["n"]) == ("cat", "dog", 1)
    latents = section.tables["adapt_latents"].records()
    assert [row["change"] for row in latents] == ["remapped", "new", "gone"]
    assert [(row["from"], row["to"]) for row in latents] == [("cat", "dog"), ("cat", "cat"), ("cat", "cat")]
    assert latents[1]["rate"] == 0


def test_findings_follow_the_numbers(tmp_path: Path) -> None:
    section = make_adapt_section([make_found(0), make_found(1)])
    fit, overlap, changed, moved, profile, scope, top1 = section.findings
    assert "leaves 25.0 ± 7.1% of the variance of the adapted model's test tokens unexplained, and 10.0%" in fit
    assert overlap.startswith("Of the 2 latents of a class, both models share a Jaccard index of 0.35 on the same")
    assert "it is 0.35, and 0.85 where both halves are seen by the model" in overlap
    assert changed.startswith("1 of 198 latents whose class can be compared are remapped to another class (0.1 between")
    assert (
        "1 are new (latents of a class in the adapted model alone, firing over 2 times as often), 1 are gone" in changed
    )
    assert moved == "Of the remapped ones most were of cat (1.0 of 1.0), and most are now of dog (1.0)."
    assert profile == "The profile of cat changes most (KL 0.800 nats), that of dog least (0.500)."
    assert scope.startswith("By scope, remapped are 1.0 low-scope ones (0.")
    assert top1 == "Zero-shot top-1 on 10 test images is 90.0% with the model and 50.0% with the adapted one."
    files = write_report(page := Page("Adapted", {}, sections=[section]), tmp_path)
    assert files.figures.keys() == {"adapted_rates"}
    print_report(page, files, console := Console(file=io.StringIO(), width=1000))
    assert isinstance(console.file, io.StringIO)
    assert all(finding in console.file.getvalue().splitlines() for finding in section.findings)
    assert isinstance(section.summary[0]["fvu"], float)


def test_both_marks_of_a_class_are_overlaps_across_halves() -> None:
    _, axes = draw_adaptation([make_found(0), make_found(1)], [1, 0]).axes
    marks = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    assert marks == {"model and model": [0.9, 0.8], "model and adapted": [0.4, 0.3]}


def test_no_comparable_latent_is_a_sentence() -> None:
    bare = make_found()
    bare.adaptation.settled[:] = 0
    findings = make_adapt_section([bare]).findings
    assert any(finding.startswith("No latent has a class that can be compared; 1 are new") for finding in findings)
    assert not any("By scope, remapped" in finding or "0 of 0" in finding for finding in findings)


def test_without_labels_or_scores_it_says_so(tmp_path: Path) -> None:
    section = make_adapt_section([make_found(has_labels=False, is_scored=False)], "There are no classes.")
    assert section.tables.keys() == {"adapt", "adapt_groups"}
    assert "no labels, so there are rates alone" in section.findings[1]
    titles = [part.title for part in section.tables["adapt"].sections]
    assert not any("class" in title for title in titles)
    write_report(Page("Adapted", {}, sections=[section]), tmp_path)
    bare = make_found()
    blind = bare._replace(fidelity=(bare.fidelity[0], make_blind()))
    assert make_adapt_section([blind], "It has no text tower.").findings[-1] == (
        "Zero-shot predictions were not compared: It has no text tower."
    )
    assert isinstance(make_adapt_section([blind]).tables["adapt"].rows[0][1].value, int | Stat)


def make_blind() -> FidelityResult:
    """A model whose head was not asked."""
    return FidelityResult(
        160, 0.2, 0.2, 0.9, 0.9, 8.0, 1.0, 0, np.arange(0), np.zeros((4, 0), np.float32), np.zeros((4, 0), bool)
    )
