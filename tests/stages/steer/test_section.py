"""The section on steering: its tables, and what it says of removals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infoscope.analyses.steering import SteeringResult
from infoscope.analyses.suppression import CHOSEN, CONTROL, Suppressed, SuppressionResult
from infoscope.report.page import Page, write_report
from infoscope.stages.score.result import ScopeResult
from infoscope.stages.steer.figures import draw_effects
from infoscope.stages.steer.numbers import Found, Spurious
from infoscope.stages.steer.section import make_steering_section
from tests.support.report_samples import make_scope_result

N = 400


def make_steering(scope: ScopeResult) -> SteeringResult:
    """High-scope latents steer to the second word, random directions and others nowhere."""
    measured = np.arange(0, len(scope.cds), 2)
    high = scope.partition.groups["high"][measured]
    both = np.stack([high, np.zeros_like(high)])
    return SteeringResult(
        words=("cat", "dog"),
        min_effect=1.0,
        min_share=0.8,
        n_images=10,
        d_sae=len(scope.cds),
        before=0.1,
        measured=measured,
        levels=np.ones(len(measured)),
        word=both.astype(np.int64),
        effect=np.where(both, 3.0, 0.2),
        consistency=np.where(both, 0.9, 0.1),
        specificity=np.where(both, 0.05, -0.01),
        taken=np.where(both, 0.8, 0.3),
        taken_before=np.full(both.shape, 0.3),
    )


def make_removals(seed: int, right: float = 0.9, mass: float = 0.1, random: float = 0.1) -> SuppressionResult:
    """Half of the images that are not typical are right, without the chosen latents a share; random ones do nothing.

    Args:
        mass: of the chosen latents. random: of the random ones.
    """
    rng = np.random.default_rng(seed)
    typical, original = rng.random(N) < 0.5, rng.random(N)
    before = np.where(typical, True, original < 0.5)
    chosen = np.where(typical, True, original < right)
    controls = (Suppressed(CONTROL, 5, i, 9, random) for i in range(2))
    variants = (Suppressed(), Suppressed(CHOSEN, 5, -1, 5, mass), *controls)
    return SuppressionResult(
        "place",
        ("land", "water"),
        np.array([0, 1]),
        np.arange(5),
        np.arange(N),
        np.arange(N) % 2,
        typical,
        variants,
        np.stack([before, chosen, before, before]),
    )


PLACE = Spurious("the place", "the typical place", "another place", "The typical place is where most are.")
SCOPES = [make_scope_result(seed) for seed in range(2)]
FOUND = [Found(scope, make_steering(scope), make_removals(7)) for scope in SCOPES]


def test_the_tables_hold_shares_by_scope_and_accuracies(tmp_path: Path) -> None:
    section = make_steering_section(FOUND, 5, PLACE)
    rows = {str(record["features"]): record for record in section.tables["steering"].records()}
    assert rows["high-scope"]["steerable"] == 1
    assert rows["low-scope"]["steerable"] == 0
    assert rows["all measured"]["steerable_random"] == 0
    words = {str(record["word"]): record for record in section.tables["steering_words"].records()}
    high = [one.groups()["high-scope"].sum() for one in FOUND]
    assert words["dog"]["n_latents"] == pytest.approx(np.mean(high))
    assert "Zero-shot top-1 is " in section.findings[-2]
    assert "of images with the typical place, " in section.findings[-2]
    assert "of images with another place (" in section.findings[-2]
    assert section.tables["suppression"].notes[0].startswith("400 test images, ")
    assert "The typical place is where most are." in section.tables["suppression"].notes[0]
    removed = {str(record["removed"]): record for record in section.tables["suppression"].records()}
    assert removed["nothing"]["others"] == pytest.approx(0.5, abs=0.06)
    assert removed["chosen, 5"]["others"] == pytest.approx(0.9, abs=0.06)
    assert removed["random, mass of 5"]["others"] == removed["nothing"]["others"]
    write_report(Page("a title", {}, sections=[section]), tmp_path)
    assert (tmp_path / "figures" / "suppression.png").exists()
    assert json.loads((tmp_path / "summary.json").read_text())


@pytest.mark.parametrize(
    ("right", "verdict"),
    [(0.9, "That is above random"), (0.5, "That is not told from random"), (0.1, "That is below random")],
)
def test_what_removal_does_is_held_against_random_removal(right: float, verdict: str) -> None:
    found = [Found(scope, make_steering(scope), make_removals(3, right)) for scope in SCOPES]
    assert any(verdict in finding for finding in make_steering_section(found, 5, PLACE).findings)


@pytest.mark.parametrize(
    ("mass", "random", "is_equal"), [(0.7, 0.25, False), (0.1, 0.092, True), (0.1, 0.085, False), (0.01, 0.013, False)]
)
def test_random_removal_of_another_mass_is_no_control(mass: float, random: float, is_equal: bool) -> None:
    of_mass = make_removals(3), make_removals(3, mass=mass, random=random)  # in one of two seeds
    found = [Found(scope, make_steering(scope), one) for scope, one in zip(SCOPES, of_mass, strict=True)]
    section = make_steering_section(found, 5, PLACE)
    removed = [record["removed"] for record in section.tables["suppression"].records()]
    assert removed == ["nothing", "chosen, 5", *["random, mass of 5"] * is_equal]
    left_out = section.tables["suppression"].notes[-1] == "Random features are left out beside the chosen 5."
    assert left_out != is_equal
    said = section.findings[-1]
    assert ("random features of about equal mass" in said) == is_equal
    assert ("No random features are held against that: none drawn have about its mass" in said) != is_equal
    section.figures["suppression"].draw()


def test_all_the_others_are_no_random_features() -> None:
    """Chosen and random ones make up all mass: whatever was drawn, it is the same."""
    found = [Found(SCOPES[0], make_steering(SCOPES[0]), make_removals(3, mass=0.447, random=0.46))]
    assert "of about equal mass" in make_steering_section(found, 5, PLACE).findings[-1]
    found = [Found(SCOPES[0], make_steering(SCOPES[0]), make_removals(3, mass=0.553, random=0.447))]
    section = make_steering_section(found, 5, PLACE)
    assert [record["removed"] for record in section.tables["suppression"].records()] == ["nothing", "chosen, 5"]
    assert "beside its mass (55.3%) there is none to choose them from" in section.findings[-1]


@pytest.mark.parametrize(
    ("n_removed", "words"),
    [
        (0, "No feature carries the place more than the class, so that none of 5 is removed."),
        (1, "Removing the feature that carries most of the place"),
        (3, "Removing the 3 features that carry most of the place"),
    ],
)
def test_what_is_said_to_be_removed_is_what_was(n_removed: int, words: str) -> None:
    removed = make_removals(3)
    chosen = Suppressed(CHOSEN, 5, -1, n_removed, 0.1)
    removed = replace(removed, variants=(removed.variants[0], chosen, *removed.variants[2:]))
    section = make_steering_section([Found(SCOPES[0], make_steering(SCOPES[0]), removed)], 5, PLACE)
    findings, table = section.findings, section.tables["suppression"]
    rows = [record["removed"] for record in table.records()]
    assert rows == ["nothing", f"chosen, {n_removed} of 5", f"random, mass of {n_removed} of 5"]
    assert not any("left out beside" in note for note in table.notes)
    assert any(finding.startswith(words) for finding in findings)
    assert sum(finding.startswith("Removing") for finding in findings) == int(n_removed > 0)


def test_without_scores_or_what_misleads_there_is_less() -> None:
    section = make_steering_section([Found(None, make_steering(SCOPES[0]))], 5)
    assert section.tables.keys() == {"steering", "steering_words"}
    assert [record["features"] for record in section.tables["steering"].records()] == ["all measured"]
    assert not any("scope" in finding for finding in section.findings)
    assert "is set to a high value in the embedding)" in section.findings[0]
    assert section.tables["steering"].title == "Features set to a high value"  # beside those set on all patches
    section.figures["steering"].draw()


@pytest.mark.parametrize(
    ("lost", "words"),
    [(0.0004, "as decided as before"), (0.0006, "more decided than before"), (-0.0006, "less decided than before")],
)
def test_predictions_are_more_decided_only_where_the_number_says_so(lost: float, words: str) -> None:
    steering = make_steering(SCOPES[0])
    steering = replace(steering, specificity=np.full_like(steering.specificity, lost))
    assert any(words in one for one in make_steering_section([Found(SCOPES[0], steering)], 5).findings)


def test_points_that_overlap_do_not_look_steerable() -> None:
    """No point is translucent, and the two kinds differ in colour and in form."""
    still, steerable, *_ = draw_effects([FOUND[0]]).axes[0].collections
    assert (still.get_facecolor()[:, 3] == 1).all()
    assert (steerable.get_facecolor()[:, 3] == 1).all()
    assert not np.allclose(still.get_facecolor(), steerable.get_facecolor())
    assert len(still.get_paths()[0]) != len(steerable.get_paths()[0])
