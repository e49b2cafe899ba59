"""Multinomial logistic regression on cached vectors by L-BFGS, its L2 strength searched for on images held out.

Source: the linear probes of CLIP (Radford et al. 2021, arXiv 2103.00020, appendix A.3): L-BFGS, at most 1,000
iterations; the strength by a "parametric binary search" that starts with seven strengths from 1e-6 to 1e6 and halves
the interval around the peak until there are 8 steps per decade; the chosen one is fitted again to all training images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.probes.config import LBFGSRecipe
from infoscope.probes.heads import LinearMaps, Standardisation
from infoscope.probes.rates import choose_rates
from infoscope.probes.vectors import TrainingImages, iterate_blocks, measure_top1, standardise_vectors
from infoscope.runtime.parts import Checkpoint

TOLERANCE = 1e-5
"""Converged: the largest entry of the gradient is below this share of what it is at weights 0 (ours)."""
HISTORY = 10
"""Steps that the curvature is read from, as scipy's and scikit-learn's L-BFGS."""


class Solution(NamedTuple):
    """weight, bias: of the vectors as they are standardised. converged: within the iterations that were allowed."""

    weight: Float[Tensor, "d n_classes"]
    bias: Float[Tensor, " n_classes"]
    converged: bool


class LogisticRegression:
    """The cross-entropy of some images, in blocks, so that memory does not grow with their number.

    Args:
        vectors: of all images of one variant.
        rows, labels: which of the images, and their classes.
        standardisation: of the vectors (of one variant); None: read them as they are.
    """

    def __init__(
        self,
        vectors: Float[Tensor, "n d"],
        rows: Int[Tensor, " n_some"],
        labels: Int[Tensor, " n_some"],
        n_classes: int,
        standardisation: Standardisation | None = None,
    ) -> None:
        self.vectors, self.rows, self.labels, self.n_classes = vectors, rows, labels, n_classes
        self.standardisation = standardisation

    @torch.no_grad()
    def evaluate(
        self, weight: Float[Tensor, "d n_classes"], bias: Float[Tensor, " n_classes"]
    ) -> tuple[float, Float[Tensor, "d n_classes"], Float[Tensor, " n_classes"]]:
        """Return the mean cross-entropy (summed in float64) and its gradient by weight and bias."""
        loss, of_weight, of_bias = 0.0, torch.zeros_like(weight), torch.zeros_like(bias)
        for block in iterate_blocks(len(self.rows), 8 * sum(weight.shape)):
            x, labels = self.vectors.index_select(0, self.rows[block]), self.labels[block, None]
            if self.standardisation is not None:
                x = (x - self.standardisation.mean) / self.standardisation.std
            log_share = F.log_softmax(torch.addmm(bias, x, weight), dim=1)
            loss -= log_share.gather(1, labels).sum(dtype=torch.float64).item()
            of_logits = log_share.exp_()
            of_logits.scatter_add_(1, labels, torch.full_like(of_logits[:, :1], -1.0))
            of_weight.addmm_(x.T, of_logits)
            of_bias += of_logits.sum(0)
        n = len(self.rows)
        return loss / n, of_weight / n, of_bias / n

    def solve(self, strength: float, max_iterations: int, start: Solution | None = None) -> Solution:
        """Return the minimum of sum of cross-entropies + strength / 2 * |W|^2 (the bias is not penalised).

        What is minimised is that divided by the number of images.

        Args:
            start: where to begin, such as the solution for a strength nearby; None: at 0.
        """
        shapes = (self.vectors.shape[1], self.n_classes), (self.n_classes,)
        at_zero = [self.vectors.new_zeros(shape) for shape in shapes]
        _, *gradient = self.evaluate(*at_zero)
        largest = max(part.abs().max().item() for part in gradient)
        weight, bias = (part.clone() for part in (at_zero if start is None else start[:2]))
        penalty = strength / len(self.rows)

        def closure() -> float:
            loss, of_weight, of_bias = self.evaluate(weight, bias)
            weight.grad, bias.grad = of_weight.add_(weight, alpha=penalty), of_bias
            return loss + penalty / 2 * weight.square().sum(dtype=torch.float64).item()

        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=max_iterations,
            max_eval=20 * max_iterations,
            tolerance_grad=TOLERANCE * largest,
            tolerance_change=1e-10,
            history_size=HISTORY,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(closure)  # pyright: ignore[reportArgumentType] # a float serves, and keeps 64 bits
        n_iterations = optimizer.state[weight]["n_iter"]
        return Solution(weight, bias, n_iterations < max_iterations)

    def fold(self, solution: Solution) -> LinearMaps:
        """Return a solution as a map of raw vectors, for one variant."""
        weight, bias = solution.weight, solution.bias
        if self.standardisation is not None:
            weight = weight / self.standardisation.std[:, None]
            bias = bias - self.standardisation.mean @ weight
        return LinearMaps(weight[None], bias[None])


def search_strength(
    task: str,
    vectors: Float[Tensor, "n d"],
    images: TrainingImages,
    config: LBFGSRecipe,
    on_solved: Callable[[], object] = lambda: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[LinearMaps, dict[str, Any]]:
    """Return the head of one variant, fitted to all images at the strength that is best on held-out ones, and a record.

    Solutions begin at the one of the nearest strength that is solved already, the largest strength first.

    Args:
        task: its name in the record's errors.
        vectors: of one variant; `images.fit` and `images.held_out` together are all of them.
        on_solved: called after every regression.
        checkpoint: where what is solved is kept; where there is something, the search goes on from it, and ends as if
            it had never stopped. An interruption costs the regression in hand.

    Returns:
        The record is that of `choose_rates`, strengths in place of rates, and {"unconverged": strengths for which the
        iterations did not suffice, "refit_converged": bool}.
    """
    _, held_out, labels, n_classes = images
    checkpoint, device, max_iterations = checkpoint or Checkpoint(None), vectors.device, config.lbfgs_max_iterations
    problem, everything = _make_problems(vectors, images, config)
    kept = (checkpoint.load() or {}).get("solved", [])
    solved: dict[float, Solution] = {}
    top1: dict[float, Tensor] = {}

    def add(strengths: Sequence[float]) -> tuple[int, list[float], dict[str, Any]]:
        """Solve some strengths; return the place of the best among all, all of them, and the record."""
        for strength in sorted(strengths, reverse=True):
            if len(solved) < len(kept):
                one = kept[len(solved)]  # they were kept in the order in which they were solved
                assert one["strength"] == strength
                top1[strength] = one["top1"].to(device)
                solved[strength] = Solution(one["weight"].to(device), one["bias"].to(device), one["converged"])
            else:
                solved[strength] = problem.solve(strength, max_iterations, _find_nearest(solved, strength))
                maps = problem.fold(solved[strength])
                top1[strength] = measure_top1(maps, vectors[None], held_out, labels[held_out], n_classes)
                if checkpoint.is_due():
                    order = [{"strength": s, "top1": top1[s], **solved[s]._asdict()} for s in solved]
                    checkpoint.save({"solved": order})
            on_solved()
        ordered = sorted(solved)
        (best,), (record,) = choose_rates(task, ordered, torch.cat([top1[s] for s in ordered], dim=1), True)
        return int(best), ordered, record

    best, strengths, record = add(config.classification_l2)
    for _ in range(config.classification_l2_halvings):
        around = strengths[max(0, best - 1) : best + 2]
        best, strengths, record = add([math.sqrt(low * high) for low, high in pairwise(around)])
    final = everything.solve(strengths[best], max_iterations, _find_nearest(solved, strengths[best]))
    on_solved()
    unconverged = [f"{strength:g}" for strength in strengths if not solved[strength].converged]
    return everything.fold(final), {**record, "unconverged": unconverged, "refit_converged": final.converged}


def _make_problems(
    vectors: Float[Tensor, "n d"], images: TrainingImages, config: LBFGSRecipe
) -> tuple[LogisticRegression, LogisticRegression]:
    """Return the regression on the images to fit, and that on all images, standardised alike."""
    standardisation = None
    if config.classification_batch_norm:
        standardisation = Standardisation(*(part[0] for part in standardise_vectors(vectors[None], images.fit)))
    fit, everything = (
        LogisticRegression(vectors, rows, images.labels[rows], images.n_classes, standardisation)
        for rows in (images.fit, torch.arange(len(vectors), device=vectors.device))
    )
    return fit, everything


def _find_nearest(solved: Mapping[float, Solution], strength: float) -> Solution | None:
    near = min(solved, key=lambda other: abs(math.log(other / strength)), default=None)
    return None if near is None else solved[near]


def count_regressions(config: LBFGSRecipe) -> int:
    """Return how many regressions one head takes at most."""
    return len(config.classification_l2) + 2 * config.classification_l2_halvings + 1
