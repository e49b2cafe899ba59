"""Whether numbers can be the mean and the standard deviation of RGB values in 0..1."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from infoscope.runtime.errors import InputError

SMALLEST = 0.01
"""Two or three of 255 levels; what models were trained with is a fifth of the scale and more."""
SCALE = "pixels are normalised on the scale 0..1, as (value / 255 - mean) / std"


class Preprocessing(NamedTuple):
    """What a model takes from the pixels: RGB mean and standard deviation, on the scale 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def is_close_to(self, other: Preprocessing) -> bool:
        """Whether they differ by rounding alone."""
        pairs = zip([*self.mean, *self.std], [*other.mean, *other.std], strict=True)
        return all(math.isclose(one, another, abs_tol=0.002) for one, another in pairs)

    def __str__(self) -> str:
        return f"mean {show_numbers(self.mean)}, std {show_numbers(self.std)}"


def check_preprocessing(mean: Any, std: Any, place: str) -> Preprocessing:
    """Return a mean and a std that can be those of RGB values in 0..1.

    Args:
        place: what comes before their names in sentences, such as "model.".

    Raises:
        InputError: one is missing, is not three finite numbers, or is on another scale; the two are swapped.
    """
    given = {name: value for name, value in (("mean", mean), ("std", std)) if value is not None}
    numbers = {name: _read_numbers(value, place + name) for name, value in given.items()}
    _check_scale(numbers, place)
    if len(numbers) < 2:
        have, lacks = ("mean", "std") if "mean" in numbers else ("std", "mean")
        raise InputError(f"{place}{have} comes without {place}{lacks}: they belong together, give both or neither.")
    found = Preprocessing(numbers["mean"], numbers["std"])
    if _are_swapped(*found):
        raise InputError(
            f"{place}mean={show_numbers(found.mean)} and {place}std={show_numbers(found.std)} are swapped: values in"
            f" 0..1 of this mean cannot spread so far; give {place}mean={show_numbers(found.std)} and"
            f" {place}std={show_numbers(found.mean)}."
        )
    return found


def show_numbers(values: Sequence[float]) -> str:
    """Return numbers as a setting takes them, rounded to four digits."""
    return f"[{','.join(f'{value:.4g}' for value in values)}]"


def _read_numbers(value: Any, name: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(one) for one in value)
        is_text = isinstance(value, str) or any(isinstance(one, str | bool) for one in value)
    except (TypeError, ValueError):
        numbers, is_text = (), True
    if len(numbers) != 3 or is_text:
        got = f"{len(numbers)}" if numbers and not is_text else repr(value)
        raise InputError(f"Expected {name} to hold three numbers (R, G, B) on the scale 0..1, got {got}.")
    if not all(math.isfinite(one) for one in numbers):
        raise InputError(f"Expected {name} to be finite numbers on the scale 0..1, got {show_numbers(numbers)}.")
    return numbers


def _check_scale(numbers: dict[str, tuple[float, ...]], place: str) -> None:
    off = {name: values for name, values in numbers.items() if not _is_on_scale(name, values)}
    if not off:
        return
    advice = ""
    for factor, words in ((1 / 255, "on the scale 0..255: divide by 255"), (255, "divided by 255 twice: multiply")):
        others = {name: tuple(value * factor for value in values) for name, values in off.items()}
        if all(_is_on_scale(name, other) and min(other) >= SMALLEST for name, other in others.items()):
            given = " ".join(f"{place}{name}={show_numbers(other)}" for name, other in others.items())
            advice = f"; they look {words}, {given}"
            break
    expected = {"mean": "in 0..1", "std": f"in {SMALLEST}..1"}
    wrong = [f"{place}{name} to be {expected[name]}, got {show_numbers(values)}" for name, values in off.items()]
    raise InputError(f"Expected {', and '.join(wrong)} ({SCALE}){advice}.")


def _is_on_scale(name: str, values: tuple[float, ...]) -> bool:
    """A mean may be 0: some models take values in 0..1 as they are."""
    if name == "mean":
        return all(0 <= value <= 1 for value in values) and not 0 < max(values) < SMALLEST
    return all(SMALLEST <= value <= 1 for value in values)


def _are_swapped(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Whether values in 0..1 can have such a mean and std (std^2 <= mean * (1 - mean)) the other way round alone."""

    def fits(mean: float, std: float) -> bool:
        return std**2 <= mean * (1 - mean) + 1e-9

    is_plausible = all(map(fits, mean, std)) or min(mean) < SMALLEST
    return not is_plausible and all(map(operator.lt, mean, std)) and all(map(fits, std, mean))
