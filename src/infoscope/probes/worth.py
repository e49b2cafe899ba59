"""What a latent is worth to a task, predicted from what is known of it, by weights fitted on other images. Ours.

A latent's worth is the rank of its effect (`latent_effects`) among the latents of its SAE. It is predicted from ranks
of columns of the table of latents and the squares of these: so weights carry over to another SAE and other images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from infoscope.runtime.errors import InputError
from infoscope.runtime.files import atomic_write

COUNTS = ("strong_rate", "top_class_share", "n_classes_held")
"""What is counted of class-level latents."""
BASE = ("firing_rate", "ms", *COUNTS)
COLUMNS = (*BASE, "cds")
"""What weights may be of, by column of the table of latents."""
WITHOUT, WITH, ALONE = "base", "base_cds", "cds"
RULES = {WITHOUT: BASE, WITH: COLUMNS, **{name: (name,) for name in COLUMNS}}
"""The columns that each rule reads."""
RIDGE = 0.01
"""The penalty for each latent that is fitted: of the size of what a correlation of 0.01 explains, so that it decides
between columns that say the same alone."""
FORMAT, VERSION = "infoscope worth of latents", 2

Values = Float[np.ndarray, " d_sae"]
Members = Bool[np.ndarray, " d_sae"]
Pair = tuple[float, float]
"""The weights of a column's rank and of its square."""


class Known(NamedTuple):
    """What is known of the latents of an SAE.

    columns: by name; NaN: a latent has none. members: those that are predicted, and among which ranks are taken.
    """

    columns: Mapping[str, Values]
    members: Members


def make_terms(known: Known, name: str) -> Float[np.ndarray, "2 n_members"]:
    """Return a column as it is weighed: its rank among the members, and the square of that, of mean 0 and variance 1.

    Equal values share their mean rank. A member without a value is taken for average: both terms are 0.
    """
    values = np.asarray(known.columns[name], dtype=np.float64)[known.members]
    terms, has = np.zeros((2, len(values))), np.isfinite(values)
    if has.any():
        centred = rank_evenly(values[has])
        terms[:, has] = centred, (centred**2 - np.mean(centred**2)) * math.sqrt(5) / 2
    return terms


def rank_evenly(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the ranks of finite values, stretched evenly over ±sqrt(3): mean 0, and variance 1 without ties."""
    return ((rankdata(values) - 0.5) / len(values) - 0.5) * math.sqrt(12)


def fit_weights(known: Sequence[Known], effects: Sequence[Values], columns: Sequence[str]) -> dict[str, Pair]:
    """Return the weights of some columns that predict the ranks of effects best, by least squares with a small penalty.

    Args:
        known, effects: of each SAE; ranks are taken within each, the fit is over all of them.

    Raises:
        InputError: too few latents for so many columns.
    """
    terms = np.concatenate([np.concatenate([make_terms(one, name) for name in columns]) for one in known], axis=1)
    targets = [
        rank_evenly(np.asarray(effect, dtype=np.float64)[one.members])
        for one, effect in zip(known, effects, strict=True)
    ]
    n = terms.shape[1]
    if n <= len(terms):
        raise InputError(f"Expected more than {len(terms)} scored latents to fit as many weights to, got {n}.")
    penalised = terms @ terms.T + RIDGE * n * np.eye(len(terms))
    found = np.linalg.solve(penalised, terms @ np.concatenate(targets))
    return {name: (float(a), float(b)) for name, (a, b) in zip(columns, found.reshape(-1, 2), strict=True)}


def predict_worth(known: Known, weights: Mapping[str, Pair]) -> Values:
    """Return the predicted worth of each member, in standard deviations of ranks; NaN for the other latents."""
    worth = np.full(len(known.members), np.nan)
    worth[known.members] = sum(np.array(pair) @ make_terms(known, name) for name, pair in weights.items())
    return worth


@dataclass(frozen=True)
class Weights:
    """Weights by rule, one of `RULES`, and task: {rule: {task: {column: weights of its rank and of the square}}}.

    target: what classification predicts. images: a hash for each image that the effects were measured on, so that the
    same ones are not probed. fitted_on: for people.
    """

    rules: Mapping[str, Mapping[str, Mapping[str, Pair]]]
    target: str
    images: Sequence[str]
    fitted_on: str = ""

    @property
    def tasks(self) -> list[str]:
        """The tasks that some rule predicts."""
        return list(dict.fromkeys(task for of in self.rules.values() for task in of))

    def save(self, path: Path) -> None:
        """Write a JSON file, whole or not at all."""
        content = {"format": FORMAT, "version": VERSION, **vars(self)}
        with atomic_write(path) as unfinished:
            unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Weights:
        """Read what `save` wrote.

        Raises:
            InputError: it is not there, not such a file, of another version, or holds columns that are not known.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"Expected select.weights={path} to be a file, but: {error.strerror}.") from error
        except ValueError as error:
            raise InputError(f"Expected select.weights={path} to be JSON, got something else: {error}.") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(
                f"Expected select.weights={path} to be written by experiments/select_features.py, which says"
                f' "format": "{FORMAT}"; this file does not.'
            )
        if content.get("version") != VERSION:
            raise InputError(
                f"Expected select.weights={path} of version {VERSION}, got {content.get('version')!r}: fit them again"
                " with this infoscope."
            )
        try:
            rules = {
                str(rule): {
                    str(task): {str(name): _read_pair(pair) for name, pair in of.items()} for task, of in tasks.items()
                }
                for rule, tasks in content["rules"].items()
            }
            images = [str(one) for one in content["images"]]
            found = cls(rules, str(content["target"]), images, str(content["fitted_on"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"Expected select.weights={path} to hold target, images, fitted_on and rules, two finite numbers for"
                " each rule, task and column, got something else: fit them again."
            ) from error
        for rule, tasks in rules.items():
            if rule not in RULES:
                raise InputError(f"Expected rules of select.weights={path} among {', '.join(RULES)}, got {rule!r}.")
            if unknown := sorted({name for of in tasks.values() for name in of} - {*RULES[rule]}):
                raise InputError(
                    f"Expected the rule {rule} of select.weights={path} to weigh {', '.join(RULES[rule])}, got"
                    f" {', '.join(unknown)} as well."
                )
        return found


def _read_pair(given: Any) -> Pair:
    a, b = (float(number) for number in given)
    if not (math.isfinite(a) and math.isfinite(b)):
        raise ValueError("not finite")
    return a, b
