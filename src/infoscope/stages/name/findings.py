"""What names are found, whether they are right, and what they are good for, in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from infoscope.analyses.concepts import QUANTILES, Search
from infoscope.analyses.config import NameConfig
from infoscope.report.tables import compute_stat, format_number, format_percent, format_signed
from infoscope.stages.name.numbers import (
    Bias,
    Found,
    Misled,
    compare_signs,
    join,
    mean_of,
    measure_bias,
    measure_misled,
    summarise,
)

WORDS = {
    "centred": "direction and text, each less its mean (ours)",
    "row": "decoder row and text (MSAE)",
    "shifted": "direction with the mean image, and text (MSAE)",
}
"""What a reading of `NameResult` compares."""


def say_names(found: Sequence[Found], config: NameConfig) -> Iterator[str]:
    """Yield what names are by `config`, over some SAE seeds."""
    yield from _say_valid(found, config)
    yield from _say_right(found)
    yield from _say_search(found, config)
    yield from _say_bias(found)
    yield from _say_misled(found)


def _say_valid(found: Sequence[Found], config: NameConfig) -> Iterator[str]:
    first = found[0].result
    parts = []
    for reading in first.readings:
        numbers = [summarise(one.result)[reading] for one in found]
        n, distinct = (_count([one[key] for one in numbers]) for key in ("n_valid", "n_distinct"))
        permuted, random = (
            format_number(compute_stat(one[key] for one in numbers).mean, 1) for key in ("n_permuted", "n_random")
        )
        parts.append(
            f"{n} by {WORDS[reading]}, {distinct} different ones (by chance {permuted} with the coordinates of the"
            f" words permuted, {random} of random directions)"
        )
    named = _count([summarise(one.result)[first.reading]["n_named"] for one in found])
    yield (
        f"Of {named} features so many have a valid name (cosine above {config.min_cosine:g}, {config.min_ratio:g} times"
        f" that with the next concept): {'; '.join(parts)}. MSAE's over 120 are of CLIP L/14 and a large vocabulary, so"
        " no number to hold these against."
    )
    lacking = join(found, lambda one: int((~one.is_named).sum()))
    if lacking.mean:
        yield (
            f"{format_number(lacking.mean, 0)} features fire in fewer than {first.n_top} training images, or have a row"
            " of zeros, and have no name."
        )


def _say_right(found: Sequence[Found]) -> Iterator[str]:
    results = [one.result for one in found]
    first = results[0]
    if not first.value_names:
        yield "The data know nothing of their images, so that nothing says whether names are right."
        return
    numbers = [summarise(one)[first.reading] for one in results]
    right, random, other, beyond, any_value = (
        format_percent(compute_stat(one[key] for one in numbers))
        for key in ("is_best", "is_best_random", "is_best_others", "is_beyond", "best_beyond")
    )
    if not any(math.isfinite(one["is_best"]) for one in numbers):
        yield "No valid name is one of the values that are known of the images, so that none can be held against them."
        return
    n_held = _count([float(np.isfinite(of.is_best[of.place, of.valid[of.place]]).sum()) for of in results])
    yield (
        f"{right} of the {n_held} valid names that can be held against the images are right: what most marks the"
        f" feature's top {first.n_top} test images (the same names at random over the features: {random}; names that"
        f" are not valid: {other}). {beyond}"
        " name a value that is over-represented there beyond chance; of"
        f" {any_value} of these features some value is."
    )


def _say_search(found: Sequence[Found], config: NameConfig) -> Iterator[str]:
    means = {name: join(found, lambda one, of=name: mean_of(one.get_searches(of))).mean for name in Search._fields}
    if not math.isfinite(means["restricted"]):
        return
    share = {name: format_percent(mean) for name, mean in means.items()}
    said = (
        f"Of the {config.n_nearest} nearest images of one with a concept {share['restricted']} have it too by its"
        f" features alone, against {share['plain']} by embedding and {share['base']} of all images."
    )
    if math.isfinite(means["zeroed"]):
        said += (
            f" Without these features it is {share['zeroed']}; raised in images without the concept,"
            f" {share['raised']} against {share['plain_without']}."
        )
    yield said


def _say_bias(found: Sequence[Found]) -> Iterator[str]:
    biases = [measure_bias(one.result) for one in found]
    if not any(math.isfinite(one.correlation) for one in biases):
        return
    mean = {key: compute_stat(getattr(one, key) for one in biases) for key in Bias._fields}
    n, n_coupled = (_count([getattr(one, key) for one in biases]) for key in ("n_concepts", "n_coupled"))
    said = (
        f"Bias of a linear classifier of the {len(found[0].result.class_names)} classes of {found[0].target!r}, while"
        f" the features of one of {n} other concepts are swept from silent to their {QUANTILES[-1]:.0%} quantile: the"
        f" change of a class's probability goes with how the data couple class and concept by"
        f" {format_signed(mean['correlation'].mean)} (Pearson, all pairs)."
    )
    if mean["n_coupled"].mean:
        coupled, other, random = (
            format_signed(mean[key].mean, 3) for key in ("slope_coupled", "slope_other", "slope_random")
        )
        top, by_chance = format_percent(mean["top"]), format_percent(biases[0].by_chance)
        said += (
            f" In the training images of {n_coupled} concepts a class has over twice its share: its probability changes"
            f" by {coupled}, with random features in the place of the concept's by {random}, that of the others by"
            f" {other}, and it rises most for {top} of these concepts (by chance {by_chance})."
        )
    yield said
    if len(found) > 1:
        (share, n_pairs), (random, _) = compare_signs(found), compare_signs(found, "slopes_random")
        if n_pairs:
            yield (
                f"In all {len(found)} SAE seeds the change has one sign for {format_percent(share)} of {n_pairs:,}"
                f" pairs of which every seed has the concept; with random features for {format_percent(random)}, by"
                f" chance {0.5 ** (len(found) - 1):.0%}."
            )


def _say_misled(found: Sequence[Found]) -> Iterator[str]:
    runs = [measure_misled(one.result) for one in found]
    if not any(one.n_pairs for one in runs):
        return
    mean = {key: compute_stat(getattr(one, key) for one in runs).mean for key in Misled._fields}
    whole, without, random, others = (
        format_signed(mean[key], 3) for key in ("whole", "without", "without_random", "others")
    )
    n_pairs = _count([one.n_pairs for one in runs])
    yield (
        f"A concept that goes with a class in the data ({n_pairs} pairs) changes the probability of that class in test"
        f" images of other classes by {whole}, other concepts by {others}. Without the features that are called by the"
        f" class it is {without}, without as many random ones {random}: {say_share(mean)}."
    )


def say_share(mean: Mapping[str, float]) -> str:
    """Say how much of what misleads is gone without the features of the class and not without random ones."""
    if not mean["whole"] > max(0, mean["others"]):
        return "no more than other concepts do"
    gone = (mean["without_random"] - mean["without"]) / mean["whole"]
    return f"what misleads goes {'mostly' if gone > 0.5 else 'in part' if gone > 0.1 else 'hardly'} through the former"


def _count(values: Sequence[float]) -> str:
    """Return the mean of a count over SAE seeds, with a decimal where there are several."""
    return format_number(compute_stat(values).mean, 1 if len(values) > 1 else 0)
