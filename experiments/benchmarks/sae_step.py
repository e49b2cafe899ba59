"""Tokens per second of one TopK training step: ours, plain dense autograd, other toolkits, and the encoder's product.

All sides take turns in one run, in float32 and with products in bfloat16, and do the same work: forward, backward,
Adam, the decoder's rows (projected gradients and unit norm, as far as a toolkit has them). `train_sae` is the whole
training loop, with token stream, logs and counts; other toolkits take the steps of their own trainers. No latent is
dead, so nobody computes an AuxK. The limit is the encoder's product alone: no step can do without it.

    python experiments/benchmarks/sae_step.py                                     # d_in 768, d_sae 6144, k 32
    python experiments/benchmarks/sae_step.py --d-in 128 --d-sae 1024 --k 16      # the demo's size
    python experiments/benchmarks/sae_step.py --d-sae 49152 --tokens 16384 --repeats 20 --save
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle
from typing import Any

import lightning as L
import numpy as np
import torch
from harness import find_peer, make_parser, make_rows, print_rows, save, take_turns
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from infoscope.runtime.precision import Precision
from infoscope.sae.activations import TopK
from infoscope.sae.choose_step import choose_step
from infoscope.sae.config import TopKConfig
from infoscope.sae.losses import TopKObjective, compute_energy, compute_fvu
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.train import train_sae

LR, NEVER = 1e-3, 10**12
Step = Callable[[Tensor], object]
Loss = Callable[[SparseAutoencoder, Tensor, int], Tensor]


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


# -- ours, and plain autograd ------------------------------------------------------------------------------------------


def compute_sparse_loss(sae: SparseAutoencoder, x_n: Tensor, k: int) -> Tensor:
    return TopKObjective(k, aux_k=0, aux_coef=0.0)(sae, x_n, None).loss


def compute_dense_loss(sae: SparseAutoencoder, x_n: Tensor, k: int) -> Tensor:
    pre_acts = torch.addmm(sae.b_enc, x_n - sae.b_dec, sae.W_enc)
    values, indices = pre_acts.topk(k, dim=-1, sorted=False)
    latent_acts = torch.zeros_like(pre_acts).scatter(-1, indices, values.relu())
    return compute_fvu(x_n - (latent_acts @ sae.W_dec + sae.b_dec), compute_energy(x_n))


def make_step(loss: Loss, options: argparse.Namespace, is_bf16: bool) -> Step:
    """Return a function that takes one whole training step on a batch."""
    sae = SparseAutoencoder(options.d_in, options.d_sae, TopK(options.k)).to(options.device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR, fused=True)

    def step(x_n: Tensor) -> None:
        with torch.autocast(x_n.device.type, torch.bfloat16, enabled=is_bf16):
            value = loss(sae, x_n, options.k)
        value.backward()
        sae.project_decoder_grad()
        optimizer.step()
        optimizer.zero_grad()
        sae.normalise_decoder()

    return step


def make_fused_step(options: argparse.Namespace, is_bf16: bool) -> Step:
    """Return ours in kernels, as training takes it on CUDA; where it cannot be, the plain one."""
    sae = SparseAutoencoder(options.d_in, options.d_sae, TopK(options.k)).to(options.device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR, fused=True)
    with torch.autocast(options.device, torch.bfloat16, enabled=is_bf16):
        fused = choose_step(sae, TopKObjective(options.k, aux_k=0, aux_coef=0.0))
    if fused is None:
        return make_step(compute_sparse_loss, options, is_bf16)

    def step(x_n: Tensor) -> None:
        with torch.autocast(x_n.device.type, torch.bfloat16, enabled=is_bf16):
            fused.compute(x_n, None)
        fused.update(optimizer)

    return step


def make_limit(options: argparse.Namespace, is_bf16: bool) -> Step:
    """Return the encoder's product alone, of weights that are in its precision already."""
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    W_enc = SparseAutoencoder(options.d_in, options.d_sae, TopK(options.k)).W_enc.detach().to(options.device, dtype)
    return lambda x_n: x_n.to(dtype) @ W_enc


# -- the whole training ------------------------------------------------------------------------------------------------


@dataclass
class Tokens:
    """Tokens as `train_sae` reads them."""

    patches: np.ndarray
    prefix: np.ndarray
    mean: np.ndarray
    scale: float = 1.0


class Turn(Callback):
    """Lets a training in a thread of its own go on by one step at a time."""

    def __init__(self) -> None:
        self.may_go, self.is_done, self.must_end = threading.Semaphore(0), threading.Semaphore(0), False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.is_done.release()
        self.may_go.acquire()
        trainer.should_stop = self.must_end

    def take(self, _: object = None) -> None:
        """Let it take one step, and wait for it."""
        self.may_go.release()
        self.is_done.acquire()


@contextmanager
def training(options: argparse.Namespace, precision: Precision) -> Iterator[Step]:
    """Run `train_sae` in a thread, and give what takes one of its steps."""
    patches = make_tokens(options.tokens * 4, options.d_in).view(-1, 16, options.d_in).numpy()
    cache: Any = Tokens(patches, patches[:, :0], np.zeros(options.d_in, np.float32))
    config = TopKConfig(
        expansion_factor=options.d_sae // options.d_in,
        k=options.k,
        batch_tokens=options.tokens,
        n_tokens=options.tokens * (options.repeats + 5),
        dead_after_tokens=NEVER,
        eval_tokens=16,
    )
    turn = Turn()

    def run() -> None:
        where = {"accelerator": "gpu" if options.device == "cuda" else "cpu", "precision": precision.for_lightning}
        try:
            train_sae(cache, config, 0, folder, callbacks=[turn], **where)
        finally:
            turn.is_done.release()  # whoever waits for a step that fails need not wait on

    with tempfile.TemporaryDirectory() as folder:
        thread = threading.Thread(target=run)
        thread.start()
        turn.is_done.acquire()  # the first step is there without being asked for
        try:
            yield turn.take
        finally:
            turn.must_end = True
            turn.may_go.release()
            thread.join()


# -- other toolkits ----------------------------------------------------------------------------------------------------


def make_sparsify_step(sparsify: Any, options: argparse.Namespace, is_bf16: bool) -> Step:
    """EleutherAI's, as its Trainer steps with optimizer=adam; on CUDA its forward is in bfloat16 either way."""
    config = sparsify.SparseCoderConfig(num_latents=options.d_sae, k=options.k)
    coder = sparsify.SparseCoder(options.d_in, config, device=options.device)
    optimizer = torch.optim.Adam(coder.parameters(), lr=LR, fused=True)

    def step(x_n: Tensor) -> None:
        with torch.autocast(x_n.device.type, torch.bfloat16, enabled=is_bf16):
            out = coder(x_n)
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        coder.set_decoder_norm_to_unit_norm()

    return step


def make_sae_lens_step(sae_lens: Any, options: argparse.Namespace, is_bf16: bool) -> Step:
    """SAELens' trainer and its settings: it clips gradients, and does without unit rows."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = sae_lens.TopKTrainingSAEConfig(d_in=options.d_in, d_sae=options.d_sae, k=options.k, device=options.device)
    settings = SAETrainerConfig(
        total_training_samples=NEVER,
        train_batch_size_samples=options.tokens,
        device=options.device,
        autocast=is_bf16,
        lr=LR,
        lr_end=LR,
        dead_feature_window=NEVER,
    )
    sae = sae_lens.TopKTrainingSAE(config).to(options.device)
    return SAETrainer(settings, sae, iter(())).step


def make_dictionary_learning_step(_: Any, options: argparse.Namespace, is_bf16: bool) -> Step:
    """dictionary_learning's trainer, under autocast as its training loop has it: it clips gradients too."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    sizes = {"activation_dim": options.d_in, "dict_size": options.d_sae, "k": options.k}
    trainer = TopKTrainer(steps=NEVER, **sizes, layer=0, lm_name="", lr=LR, device=options.device)
    numbers = count(1)  # step 0 alone would look for the tokens' geometric median

    def step(x_n: Tensor) -> None:
        with torch.autocast(x_n.device.type, torch.bfloat16, enabled=is_bf16):
            trainer.update(next(numbers), x_n)

    return step


PEERS = {
    "sparsify": make_sparsify_step,
    "sae_lens": make_sae_lens_step,
    "dictionary_learning": make_dictionary_learning_step,
}


def make_sides(options: argparse.Namespace, open_: ExitStack) -> dict[str, Step]:
    """Return what takes a step, by who and in which precision."""
    if options.device == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # which it looks at when it is imported
    peers = {name: (make, module) for name, make in PEERS.items() if (module := find_peer(name)) is not None}
    sides: dict[str, Step] = {}
    for precision in map(Precision.__getitem__, options.precisions):
        of, is_bf16 = f", {precision.name}", precision.is_bf16
        sides[f"ours{of}"] = make_step(compute_sparse_loss, options, is_bf16)
        if options.device == "cuda":
            sides[f"ours, in kernels{of}"] = make_fused_step(options, is_bf16)
        sides[f"ours, train_sae{of}"] = open_.enter_context(training(options, precision))
        sides[f"dense autograd{of}"] = make_step(compute_dense_loss, options, is_bf16)
        if options.device == "cuda" and not options.tiny:
            sides[f"dense autograd, compiled{of}"] = make_step(torch.compile(compute_dense_loss), options, is_bf16)
        for name, (make, module) in peers.items():
            sides[f"{name}{of}"] = make(module, options, is_bf16)
        sides[f"limit: the encoder's product{of}"] = make_limit(options, is_bf16)
    return sides


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=6144)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    parser.add_argument("--precisions", nargs="+", choices=["32", "bf16"], default=["32", "bf16"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.tiny:
        vars(options).update(d_in=32, d_sae=64, k=4, tokens=64, repeats=2)
    torch.set_num_threads(options.threads)
    batches = cycle([make_tokens(options.tokens, options.d_in, seed).to(options.device) for seed in range(3)])
    with ExitStack() as open_:
        sides = make_sides(options, open_)
        seconds = take_turns({name: partial(run_step, step, batches) for name, step in sides.items()}, options.repeats)
    rows = make_rows(seconds, options.tokens, "tokens")
    print_rows(rows, f"TopK step, {options.d_in} x {options.d_sae}, k {options.k}, {options.tokens} tokens")
    if options.save:
        save(f"sae_step-{options.d_in}-{options.d_sae}-{options.k}", options, rows=rows)


def run_step(step: Step, batches: Iterator[Tensor]) -> None:
    """Take one step on the next batch."""
    step(next(batches))


if __name__ == "__main__":
    main()
