"""What is told of a model and the adapted one, in numbers: of an SAE seed, of a group of latents, of a class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from scipy.stats import spearmanr

from infoscope.analyses.adaptation import ACROSS, ADAPTED, BASE, HALVES, SAME, Adaptation, Changes
from infoscope.analyses.fidelity import FidelityResult
from infoscope.report.tables import Value, compute_stat
from infoscope.stages.score.result import ScopeResult
from infoscope.stages.score.tables import Quantity

CHANGES = {"remapped": "remapped", "new": "new", "gone": "gone"}


class Found(NamedTuple):
    """What was found of one SAE seed.

    fidelity: on test tokens of the model, and of the adapted one.
    class_names: of the labels; empty without any.
    n_images: in which a latent must fire to be compared.
    factor: by which the rate of a new latent rises.
    """

    scope: ScopeResult
    adaptation: Adaptation
    fidelity: tuple[FidelityResult, FidelityResult]
    class_names: Sequence[str]
    n_images: int
    factor: float

    @property
    def changes(self) -> Changes:
        """The latents that changed."""
        return self.adaptation.find_changes(self.n_images, self.factor)

    @property
    def has_predictions(self) -> bool:
        """Whether both models' own heads were asked."""
        return all(one.has_predictions for one in self.fidelity)

    def group(self, name: str) -> Bool[np.ndarray, " d_sae"]:
        """Return the latents of a group; none where it is empty."""
        return self.scope.partition.groups.get(name, np.zeros(len(self.scope.cds), dtype=bool))


def make_quantities(found: Sequence[Found]) -> dict[str, list[Quantity]]:
    """Return the rows of the table by section: those that the data of all seeds can give."""
    first = found[0]
    sections = {
        "firing rates on training tokens": [
            Quantity("n_both", "latents that fire in both", lambda f: int(_fires(f).all(0).sum()), 0),
            Quantity("n_base", "in the model alone", lambda f: int((_fires(f)[BASE] & ~_fires(f)[ADAPTED]).sum()), 0),
            Quantity(
                "n_adapted", "in the adapted one alone", lambda f: int((_fires(f)[ADAPTED] & ~_fires(f)[BASE]).sum()), 0
            ),
            Quantity("rate_correlation", "rank correlation of the rates (Spearman)", compute_rate_correlation),
            Quantity("rate_change", "change of the rate, median of |log2 ratio|", compute_rate_change),
            Quantity("n_changed", f"changed by more than a factor of {first.factor:g}", _count_changed, 0),
        ],
        "the SAE on test tokens": [
            Quantity("fvu", "FVU, model", lambda f: f.fidelity[BASE].fvu),
            Quantity("fvu_adapted", "FVU, adapted", lambda f: f.fidelity[ADAPTED].fvu),
            Quantity("l0", "L0, model", lambda f: f.fidelity[BASE].l0, 1),
            Quantity("l0_adapted", "L0, adapted", lambda f: f.fidelity[ADAPTED].l0, 1),
        ],
    }
    if first.adaptation.has_labels:
        sections |= _class_quantities()
    if all(one.has_predictions for one in found):
        sections["zero-shot top-1 on test images, each with its own head (%)"] = [
            Quantity("top1", "model", lambda f: f.fidelity[BASE].top1("tokens"), 1, 100),
            Quantity("top1_adapted", "adapted", lambda f: f.fidelity[ADAPTED].top1("tokens"), 1, 100),
            Quantity("top1_sae", "model, through the SAE", lambda f: f.fidelity[BASE].top1("reconstruction"), 1, 100),
            Quantity(
                "top1_sae_adapted",
                "adapted, through the SAE",
                lambda f: f.fidelity[ADAPTED].top1("reconstruction"),
                1,
                100,
            ),
        ]
    return sections


def _class_quantities() -> dict[str, list[Quantity]]:
    def mean(of: str, row: int) -> Callable[[Found], float]:
        return lambda f: compute_stat(getattr(f.adaptation, of)[row]).mean

    return {
        "latents of a class, Jaccard (mean over classes)": [
            Quantity("jaccard", "model and adapted, same images", mean("jaccard", SAME)),
            Quantity("jaccard_across", "model and adapted, across halves", mean("jaccard", ACROSS)),
            Quantity("jaccard_halves", "model, halves of its images", mean("jaccard", HALVES)),
        ],
        "profile of a class, KL in nats (mean over classes)": [
            Quantity("divergence", "adapted from model, same images", mean("divergence", SAME)),
            Quantity("divergence_across", "adapted from model, across halves", mean("divergence", ACROSS)),
            Quantity("divergence_halves", "model, halves of its images", mean("divergence", HALVES)),
        ],
        "latents": [
            Quantity("n_comparable", "whose class can be compared", lambda f: int(_comparable(f).sum()), 0),
            Quantity("n_remapped", "remapped: another class", lambda f: int(f.changes.remapped.sum()), 0),
            Quantity(
                "n_remapped_halves",
                "the same between halves of the model's images",
                lambda f: f.adaptation.count_remapped_halves(f.n_images),
                1,
            ),
            Quantity("n_new", "new", lambda f: int(f.changes.new.sum()), 0),
            Quantity("n_gone", "gone", lambda f: int(f.changes.gone.sum()), 0),
        ],
    }


def summarise_found(found: Found) -> dict[str, Value]:
    """Return the table's numbers of one seed by key; None where there is none."""
    numbers: dict[str, Value] = {}
    for quantities in make_quantities([found]).values():
        for one in quantities:
            value = one.compute(found)
            numbers[one.key] = None if isinstance(value, float) and not math.isfinite(value) else value
    return numbers


class GroupChanges(NamedTuple):
    """What changed in a group of latents.

    n: latents that fire; n_comparable: whose class can be compared.
    rate_change: median of |log2 ratio| of the rates.
    found, expected: changed latents by kind of change, and how many there were if all groups changed alike.
    """

    n: int
    n_comparable: int
    rate_change: float
    found: dict[str, int]
    expected: dict[str, float]


def count_group(found: Found, members: Bool[np.ndarray, " d_sae"]) -> GroupChanges:
    """Count what changed in a group: remapped ones are expected among comparable latents, others among those that
    fire."""
    fires, comparable = _fires(found).any(0), _comparable(found)
    among = {"remapped": comparable, "new": fires, "gone": fires}
    changed, n_found, expected = found.changes._asdict(), {}, {}
    for name, of in among.items():
        n_found[name] = int((changed[name] & members).sum())
        share = (of & members).sum() / of.sum() if of.any() else math.nan
        expected[name] = float(changed[name].sum() * share)
    rates = _log_ratio(found)[members & fires]
    n_members, n_comparable = int((members & fires).sum()), int((members & comparable).sum())
    return GroupChanges(n_members, n_comparable, _median(np.abs(rates)), n_found, expected)


def count_moves(found: Found) -> Counter[tuple[int, int]]:
    """Return how many comparable latents are of each pair of classes, in the model and in the adapted one."""
    before, after = found.adaptation.top_class[:, _comparable(found)].tolist()
    return Counter(zip(before, after, strict=True))


def compute_rate_correlation(found: Found) -> float:
    """Return the rank correlation of the rates of latents that fire in either; NaN for fewer than three."""
    fires = _fires(found).any(0)
    return float(spearmanr(*found.adaptation.token_rate[:, fires]).statistic) if fires.sum() > 2 else math.nan  # pyright: ignore[reportAttributeAccessIssue]


def compute_rate_change(found: Found) -> float:
    """Return the median of |log2 ratio| over latents that fire in either."""
    return _median(np.abs(_log_ratio(found)))


def _count_changed(found: Found) -> int:
    return int((np.abs(_log_ratio(found)) > math.log2(found.factor)).sum())


def _log_ratio(found: Found) -> np.ndarray:
    return np.log2(found.adaptation.rate_ratio)


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


def _fires(found: Found) -> Bool[np.ndarray, "2 d_sae"]:
    return found.adaptation.tokens_on > 0


def _comparable(found: Found) -> Bool[np.ndarray, " d_sae"]:
    return found.adaptation.find_comparable(found.n_images)
