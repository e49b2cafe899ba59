"""Tokens per second of one TopK training step: ours (sparse), plain dense autograd, and ours through Lightning.

All rows do the same work in one run: forward, backward, projected gradients, Adam (fused), unit rows. The first two
take turns, so that a busy machine slows both.

    python experiments/benchmarks/sae_step.py                                     # d_in 768, d_sae 6144, k 32
    python experiments/benchmarks/sae_step.py --d-in 128 --d-sae 1024 --k 16      # the demo's size
    python experiments/benchmarks/sae_step.py --device cuda --repeats 50 --save   # writes results/sae_step-*.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from infoscope.sae.activations import TopK
from infoscope.sae.config import TopKConfig
from infoscope.sae.losses import TopKObjective, compute_energy, compute_fvu
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.train import train_sae

RESULTS = Path(__file__).parent / "results"


def make_tokens(n_tokens: int, d_in: int, seed: int = 0) -> Tensor:
    """Return sums of 24 of 2048 random directions plus noise: low-dimensional enough for TopK to have work."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(2048, d_in, generator=generator)
    chosen = torch.randint(2048, (n_tokens, 24), generator=generator)
    weights = torch.rand(n_tokens, 24, generator=generator)
    x = torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=weights, mode="sum")
    x += 0.05 * torch.randn(n_tokens, d_in, generator=generator)
    x -= x.mean(0)
    return x * (d_in**0.5 / x.norm(dim=1).mean())


def compute_sparse_loss(sae: SparseAutoencoder, x_n: Tensor, k: int) -> Tensor:
    dead = torch.zeros(sae.d_sae, dtype=torch.bool, device=x_n.device)
    return TopKObjective(k, aux_k=0, aux_coef=0.0)(sae, x_n, dead).loss


def compute_dense_loss(sae: SparseAutoencoder, x_n: Tensor, k: int) -> Tensor:
    pre_acts = torch.addmm(sae.b_enc, x_n - sae.b_dec, sae.W_enc)
    values, indices = pre_acts.topk(k, dim=-1, sorted=False)
    latent_acts = torch.zeros_like(pre_acts).scatter(-1, indices, values.relu())
    return compute_fvu(x_n - (latent_acts @ sae.W_dec + sae.b_dec), compute_energy(x_n))


def make_step(loss: Callable[[SparseAutoencoder, Tensor, int], Tensor], options: argparse.Namespace) -> Callable:
    """Return a function that takes one whole training step on a batch."""
    sae = SparseAutoencoder(options.d_in, options.d_sae, TopK(options.k)).to(options.device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3, fused=True)

    def step(x_n: Tensor) -> None:
        with torch.autocast(x_n.device.type, torch.bfloat16, enabled=options.bf16):
            value = loss(sae, x_n, options.k)
        value.backward()
        sae.project_decoder_grad()
        optimizer.step()
        optimizer.zero_grad()
        sae.normalise_decoder()
        value.item()  # waits for the device

    return step


def time_steps(options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of each repeat, after two that do not count."""
    batches = [make_tokens(options.tokens, options.d_in, seed).to(options.device) for seed in range(3)]
    steps = {"sparse": make_step(compute_sparse_loss, options), "dense": make_step(compute_dense_loss, options)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(options.repeats + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step(batches[repeat % 3])
            seconds[name].append(time.perf_counter() - start)
    return {name: values[2:] for name, values in seconds.items()}


@dataclass
class Tokens:
    """Tokens as `train_sae` reads them."""

    patches: np.ndarray
    prefix: np.ndarray
    mean: np.ndarray
    scale: float = 1.0


class StepTimer(Callback):
    """Notes the time at the end of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.times.append(time.perf_counter())


def time_lightning(options: argparse.Namespace) -> list[float]:
    """Return the seconds of each step inside `train_sae`: token stream, logging and dead counts included."""
    patches = make_tokens(options.tokens * 4, options.d_in).view(-1, 16, options.d_in).numpy()
    cache = Tokens(patches, patches[:, :0], np.zeros(options.d_in, np.float32))
    config = TopKConfig(
        expansion_factor=options.d_sae // options.d_in,
        k=options.k,
        batch_tokens=options.tokens,
        n_tokens=options.tokens * (options.repeats + 3),
        dead_after_tokens=10**12,
        eval_tokens=16,
    )
    timer = StepTimer()
    with tempfile.TemporaryDirectory() as folder:
        train_sae(
            cache,
            config,
            0,
            folder,
            accelerator="gpu" if options.device == "cuda" else "cpu",
            precision="bf16-mixed" if options.bf16 else "32-true",
            callbacks=[timer],
        )
    return np.diff(timer.times[2:]).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=6144)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true", help="dense products in bfloat16 (autocast)")
    parser.add_argument("--save", action="store_true", help="write the figures and the hardware to results/")
    parser.add_argument("--tiny", action="store_true", help="take a second, and tell no more than that it runs")
    options = parser.parse_args()
    if options.tiny:
        vars(options).update(d_in=32, d_sae=64, k=4, tokens=64, repeats=2)
    torch.set_num_threads(options.threads)

    seconds = time_steps(options)
    seconds["sparse, train_sae"] = time_lightning(options)
    rows = [
        {
            "step": name,
            "median_s": statistics.median(values),
            "best_s": min(values),
            "tokens_per_s": options.tokens / statistics.median(values),
        }
        for name, values in seconds.items()
    ]
    print(f"{'step':20} {'median ms':>10} {'best ms':>10} {'tokens/s':>10}")
    for row in rows:
        times = f"{1e3 * row['median_s']:10.1f} {1e3 * row['best_s']:10.1f} {row['tokens_per_s']:10.0f}"
        print(f"{row['step']:20} {times}")
    if options.save:
        save(options, rows)


def save(options: argparse.Namespace, rows: list[dict]) -> None:
    """Write rows, settings, hardware and date to results/sae_step-<sizes>-<device>.json."""
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    settings = {name: value for name, value in vars(options).items() if name != "save"}
    result = {
        "settings": settings,
        "hardware": {"name": hardware, "n_cpus": os.cpu_count()},
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"sae_step-{options.d_in}-{options.d_sae}-{options.k}-{options.device}.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"saved to {file}")


if __name__ == "__main__":
    main()
