"""Ranking a data set as large as ImageNet for as many latents as a wide SAE has: memory, time, and exactness.

`measure_one` runs as it is, on a stand-in for an SAE that makes latents up: latent j fires on an image with a
probability of its own (log-uniform, 1e-5 to 0.1), with a uniform strength in 64 steps, so that ties are common. An
image is one token here: what an encoder adds while it works does not grow with the number of images
(`MAX_LATENT_VALUES`), and is not part of this. For some latents all values are kept aside (a third of a GB for
ImageNet), and their ranking is compared with a stable sort.

    python experiments/benchmarks/ranking.py                     # 1,281,167 images x 49,152 latents
    python experiments/benchmarks/ranking.py --images 100000 --latents 6144 --save
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infoscope.runtime.environment import describe_environment
from infoscope.sae.activations import ReLU
from infoscope.sae.origin import Origin
from infoscope.sae.passes import measure_one
from infoscope.scope.ranking import Ranking, measure_ranking
from infoscope.vision.backbone import Tokens
from infoscope.vision.tokens.source import TokenRows

RESULTS = Path(__file__).parent / "results"
N_STEPS = 64
N_CHECKED = 64


class MadeUpLatents:
    """What ranking asks of an SAE: `encode` returns made-up latents of the next images, whatever it is given."""

    def __init__(self, n_images: int, n_latents: int, seed: int) -> None:
        self.d_sae, self.W_enc, self.origin = n_latents, torch.zeros(1, n_latents), Origin()
        self.activation = ReLU()
        self.generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(n_latents, generator=self.generator)
        self.probability = 10 ** (-5 + 4 * uniform)
        self.checked = torch.linspace(0, n_latents - 1, min(N_CHECKED, n_latents)).long()
        self.kept, self.n_kept = torch.empty(n_images, len(self.checked)), 0

    def token_factor(self, tokens: Tensor) -> None:
        """There is no norm of each token."""

    def encode(self, tokens: Tensor) -> Tensor:
        """Return activations [n, 1, d_sae], and keep those of the checked latents."""
        drawn = torch.rand(len(tokens), self.d_sae, generator=self.generator)
        # below its probability a latent fires, and how far below says how strongly
        latents = drawn.div_(self.probability).neg_().add_(1).clamp_min_(0).mul_(N_STEPS).ceil_().div_(N_STEPS)
        self.kept[self.n_kept : self.n_kept + len(tokens)] = latents[:, self.checked]
        self.n_kept += len(tokens)
        return latents[:, None]


class NoTokens(TokenRows):
    """As many rows as there are images, and nothing in them."""

    def __init__(self, n_images: int) -> None:
        self.n_images = n_images

    @cached_property
    def image_index(self) -> np.ndarray:
        return np.arange(self.n_images)

    def __len__(self) -> int:
        return self.n_images

    def iterate(self, rows: np.ndarray, batch_images: int) -> Iterator[tuple[np.ndarray, Tokens]]:
        for start in range(0, len(rows), batch_images):
            batch = rows[start : start + batch_images]
            yield batch, Tokens(torch.zeros(0), torch.zeros(len(batch), 1, 1))


def count_wrong(ranking: Ranking, latents: MadeUpLatents) -> int:
    """Return for how many of the checked latents the ranking is not that of a stable sort."""
    values = latents.kept.numpy()
    wrong = 0
    for column, latent in enumerate(latents.checked.tolist()):
        order = np.argsort(-values[:, column], kind="stable")[: ranking.k_max]
        expected = np.where(values[order, column] > 0, order, -1)
        wrong += not np.array_equal(ranking.top_images[latent], expected)
    return wrong


def measure(options: argparse.Namespace) -> dict[str, Any]:
    latents, before = MadeUpLatents(options.images, options.latents, options.seed), peak_gb()
    start, told = time.perf_counter(), 0

    def tell(done: int) -> None:
        nonlocal told
        if done - told >= options.images // 20:
            told = done
            print(f"{done:>9} images, {time.perf_counter() - start:6.0f} s, peak {peak_gb():.2f} GB", flush=True)

    with TemporaryDirectory() as folder:
        wanted = measure_ranking(latents, options.ranks).kept_in(Path(folder) / "ranked")  # pyright: ignore
        ranking = measure_one(NoTokens(options.images), wanted, tell).compute()
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "images_per_s": options.images / seconds,
        "peak_gb": peak_gb(),
        "peak_before_gb": before,
        "all_latents_would_be_gb": options.images * options.latents * 4 / 1e9,
        "checked_latents": len(latents.checked),
        "wrong_latents": count_wrong(ranking, latents),
        "latents_with_every_rank": int((ranking.top_images >= 0).all(1).sum()),
    }


def peak_gb() -> float:
    """The largest resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--latents", type=int, default=49_152)
    parser.add_argument("--ranks", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="write the figures and the hardware to results/")
    parser.add_argument("--tiny", action="store_true", help="take a second, and tell no more than that it runs")
    options = parser.parse_args()
    if options.tiny:
        vars(options).update(images=200, latents=64)
    result = measure(options)
    print(json.dumps(result, indent=2))
    if options.save:
        settings = {name: value for name, value in vars(options).items() if name != "save"}
        date = datetime.date.today().isoformat()
        content = {"settings": settings, **describe_environment(), "date": date, **result}
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"ranking-{options.images}-{options.latents}-cpu.json"
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"saved to {file}")


if __name__ == "__main__":
    main()
