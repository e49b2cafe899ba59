"""Ranking the images of each latent: how fast from tokens, and whether a data set as large as ImageNet fits.

Time: images ranked by a TopK SAE from tokens in memory, in turns by `measure_one` as it is, from dense codes [images,
patches, latents] as infoscope did before, and the limit, the encoder's product alone. Tokens are noise, and so are the
weights: which latents fire changes nothing of what is timed.

Memory and exactness: `measure_one` on a stand-in for an SAE that makes latents up: latent j fires on an image with a
probability of its own (log-uniform, 1e-5 to 0.1), with a uniform strength in 64 steps, so that ties are common. An
image is one token here: what an encoder adds while it works does not grow with the number of images (`MAX_PRE_ACTS`,
`MAX_LATENT_VALUES`), and is not part of this. For some latents all values are kept aside (a third of a GB for
ImageNet), and their ranking is compared with a stable sort.

    python experiments/benchmarks/ranking.py                     # both; memory: 1,281,167 images x 49,152 latents
    python experiments/benchmarks/ranking.py --only time --save
    python experiments/benchmarks/ranking.py --only memory --images 100000 --latents 6144 --save
"""

from __future__ import annotations

import argparse
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
from harness import make_parser, make_rows, print_rows, save, take_turns
from torch import Tensor

from infoscope.sae.activation import Entries, list_dense
from infoscope.sae.activations import ReLU, TopK
from infoscope.sae.model import MAX_PRE_ACTS, SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.sae.passes import BATCH_IMAGES, MAX_LATENT_VALUES, measure_one
from infoscope.scope.ranking import Ranking, measure_ranking
from infoscope.scope.top_images import TopImages
from infoscope.vision.backbone import Tokens
from infoscope.vision.tokens.source import TokenRows

N_STEPS = 64
N_CHECKED = 64


class MadeUpLatents:
    """What ranking asks of an SAE: `encode_entries` makes up latents of the next images, whatever it is given."""

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

    def encode_entries(self, tokens: Tensor) -> Entries:
        """Return activations of tokens, and keep those of the checked latents."""
        drawn = torch.rand(len(tokens), self.d_sae, generator=self.generator)
        # below its probability a latent fires, and how far below says how strongly
        latents = drawn.div_(self.probability).neg_().add_(1).clamp_min_(0).mul_(N_STEPS).ceil_().div_(N_STEPS)
        self.kept[self.n_kept : self.n_kept + len(tokens)] = latents[:, self.checked]
        self.n_kept += len(tokens)
        return list_dense(latents)


class TokensInMemory(TokenRows):
    """Patch tokens [n_images, n_patches, d_in]."""

    def __init__(self, patches: Tensor) -> None:
        self.patches = patches

    @cached_property
    def image_index(self) -> np.ndarray:
        return np.arange(len(self))

    def __len__(self) -> int:
        return len(self.patches)

    def iterate(self, rows: np.ndarray, batch_images: int) -> Iterator[tuple[np.ndarray, Tokens]]:
        for start in range(0, len(rows), batch_images):
            batch = rows[start : start + batch_images]
            yield batch, Tokens(torch.zeros(0), self.patches[batch[0] : batch[-1] + 1])


@torch.inference_mode()
def rank_dense(sae: SparseAutoencoder, patches: Tensor, n_ranks: int) -> TopImages:
    """Rank from dense codes, some images at a time; what else a ranking holds is computed too, and dropped."""
    top = TopImages(sae.d_sae, n_ranks, patches.device)
    n_firing, act_sum = torch.zeros(2, sae.d_sae, dtype=torch.float64, device=patches.device)
    n_at_once = max(1, MAX_LATENT_VALUES // (patches.shape[1] * sae.d_sae))
    for start in range(0, len(patches), n_at_once):
        codes = sae.encode(patches[start : start + n_at_once])
        peaks, flat = codes.amax(1), codes.flatten(0, 1)
        tokens, latents = (flat > 0).nonzero(as_tuple=True)
        values = flat[tokens, latents].double()
        counts = values.new_zeros(len(codes) * sae.d_sae)
        counts.index_add_(0, tokens // patches.shape[1] * sae.d_sae + latents, torch.ones_like(values))
        n_firing += counts.view(peaks.shape).sum(0)
        act_sum += codes.sum(1).sum(0, dtype=torch.float64)
        top.update(torch.arange(start, start + len(codes)), peaks)
        del codes, flat
    return top


@torch.inference_mode()
def multiply(sae: SparseAutoencoder, patches: Tensor) -> None:
    """Only make pre-activations, as many at a time as a pass does."""
    for part in patches.flatten(0, 1).split(max(1, MAX_PRE_ACTS // sae.d_sae)):
        sae.pre_acts(part)


def measure_time(options: argparse.Namespace) -> dict[str, Any]:
    """Time all sides on the same tokens; tell for how many ranks two of them name the same image."""
    sae = SparseAutoencoder(options.d_in, options.latents, TopK(options.k), seed=options.seed)
    sae = sae.requires_grad_(False).to(options.device)
    generator = torch.Generator().manual_seed(options.seed)
    patches = torch.randn(options.time_images, options.patches, options.d_in, generator=generator).to(options.device)
    wanted = measure_ranking(sae, options.ranks)
    found: dict[str, Any] = {}
    sides = {
        "infoscope": lambda: found.update(ours=measure_one(TokensInMemory(patches), wanted).compute()),
        "dense codes": lambda: found.update(dense=rank_dense(sae, patches, options.ranks)),
        "limit: the encoder's product": lambda: multiply(sae, patches),
    }
    rows = make_rows(take_turns(sides, options.repeats), options.time_images, "images")
    same = found["ours"].top_images == found["dense"].images.cpu().numpy()
    return {"rows": rows, "same_images": float(same.mean())}


def count_wrong(ranking: Ranking, latents: MadeUpLatents) -> int:
    """Return for how many of the checked latents the ranking is not that of a stable sort."""
    values = latents.kept.numpy()
    wrong = 0
    for column, latent in enumerate(latents.checked.tolist()):
        order = np.argsort(-values[:, column], kind="stable")[: ranking.k_max]
        expected = np.where(values[order, column] > 0, order, -1)
        wrong += not np.array_equal(ranking.top_images[latent], expected)
    return wrong


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Rank made-up latents; tell how long it takes, what it holds, and how many latents are ranked wrongly."""
    latents, before = MadeUpLatents(options.images, options.latents, options.seed), peak_gb()
    start, told = time.perf_counter(), 0

    def tell(done: int) -> None:
        nonlocal told
        if done - told >= options.images // 20:
            told = done
            print(f"{done:>9} images, {time.perf_counter() - start:6.0f} s, peak {peak_gb():.2f} GB", flush=True)

    with TemporaryDirectory() as folder:
        wanted = measure_ranking(latents, options.ranks).kept_in(Path(folder) / "ranked")  # pyright: ignore
        ranking = measure_one(TokensInMemory(torch.zeros(options.images, 1, 1)), wanted, tell).compute()
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
    parser = make_parser(__doc__)
    parser.add_argument("--only", choices=["time", "memory"])
    parser.add_argument("--images", type=int, default=1_281_167, help="of made-up latents")
    parser.add_argument("--latents", type=int, default=49_152)
    parser.add_argument("--ranks", type=int, default=16)
    parser.add_argument("--time-images", type=int, default=BATCH_IMAGES, help="whose tokens are timed")
    parser.add_argument("--patches", type=int, default=196)
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.tiny:
        vars(options).update(images=200, latents=64, time_images=20, patches=4, d_in=8, k=4, repeats=1)
    if options.only != "memory":
        result = measure_time(options)
        title = f"{options.time_images} images of {options.patches} tokens, {options.d_in} -> {options.latents}"
        print_rows(result["rows"], f"{title}, k {options.k}: {result['same_images']:.4%} of the images the same")
        if options.save:
            save(f"ranking-{options.d_in}-{options.latents}-{options.k}", options, **result)
    if options.only != "time":
        result = measure_memory(options)
        print(json.dumps(result, indent=2))
        if options.save:
            save(f"ranking-{options.images}-{options.latents}", options, **result)


if __name__ == "__main__":
    main()
