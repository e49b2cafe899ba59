"""Loading an SAE of another toolkit: seconds and memory, next to the plain load of the same bytes.

Files of random numbers are written as toolkits store them. Each is then loaded in a fresh process, in turns by
`infoscope.load_sae` and by what its own format is read with: torch.load(weights_only=True), or safetensors' load_file,
which maps the file and reads nothing until it is used. Neither checks numbers, hashes the file, turns matrices round or
makes them float32. Memory is the rise of VmHWM (/proc/self/status, the largest resident memory of the process so far)
while it loads: above that of the process with everything imported. Files are read from the page cache, so the disk is
not measured. Medians of seconds and the largest rise are printed.

    python experiments/benchmarks/load_sae.py                           # 768 x 49,152: 302 MB in float32
    python experiments/benchmarks/load_sae.py --d-in 1024 --d-sae 65536 --save
"""

from __future__ import annotations

import argparse
import io
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch
from harness import make_parser, save
from safetensors.torch import load_file, save_file
from torch import Tensor

from infoscope.runtime.environment import count_usable_cores
from infoscope.sae.activations import TopK
from infoscope.sae.checkpoint import save_sae
from infoscope.sae.loading import load_sae
from infoscope.sae.model import SparseAutoencoder

MATRICES = ("W_enc", "b_enc", "W_dec", "b_dec")
K = 32

State = dict[str, Tensor]


@contextmanager
def patchsae_config() -> Iterator[type]:
    """Yield a class of the name that PatchSAE's files pickle; its modules exist only inside."""
    names = ("src", "src.sae_training", "src.sae_training.config")
    made = type("ViTSAERunnerConfig", (), {"__module__": names[-1]})
    sys.modules |= {name: ModuleType(name) for name in names}
    setattr(sys.modules[names[-1]], made.__name__, made)
    try:
        yield made
    finally:
        for name in names:
            del sys.modules[name]


def draw(d_in: int, d_sae: int) -> State:
    generator = torch.Generator().manual_seed(0)
    shapes = ((d_in, d_sae), (d_sae,), (d_sae, d_in), (d_in,))
    return {name: torch.randn(*shape, generator=generator) for name, shape in zip(MATRICES, shapes, strict=True)}


def write_saelens(folder: Path, state: State, dtype: torch.dtype = torch.float32) -> Path:
    d_in, d_sae = state["W_enc"].shape
    config = {"architecture": "topk", "k": K, "d_in": d_in, "d_sae": d_sae, "rescale_acts_by_decoder_norm": False}
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, folder / "sae_weights.safetensors")
    return folder / "sae_weights.safetensors"


def write_patchsae(folder: Path, state: State) -> Path:
    with patchsae_config() as make:
        config = make()
        config.__dict__.update(model_name="openai/clip-vit-base-patch16", block_layer=-2, module_name="resid")
        torch.save({"cfg": config, "state_dict": state}, folder / "sae.pt")
    return folder / "sae.pt"


def write_linear(folder: Path, state: State, dict_class: str = "AutoEncoderTopK") -> Path:
    """dictionary_learning: encoder [d_sae, d_in] and decoder [d_in, d_sae]."""
    trainer = {"dict_class": dict_class} | ({"k": K} if dict_class == "AutoEncoderTopK" else {})
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    b_dec = "b_dec" if dict_class == "AutoEncoderTopK" else "bias"
    linear = {"encoder.weight": state["W_enc"].T.contiguous(), "decoder.weight": state["W_dec"].T.contiguous()}
    torch.save(linear | {"encoder.bias": state["b_enc"], b_dec: state["b_dec"]}, folder / "ae.pt")
    return folder / "ae.pt"


def write_rescaled(folder: Path, state: State) -> Path:
    return write_linear(folder, state, "AutoEncoder")


def write_saev(folder: Path, state: State) -> Path:
    d_in, d_sae = state["W_enc"].shape
    activation = {"cls": "TopK", "params": {"top_k": K}}
    header = {"schema": 5, "cfg": {"d_model": d_in, "d_sae": d_sae, "activation": activation}}
    with (folder / "sae.pt").open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        torch.save(state, file)
    return folder / "sae.pt"


def write_ours(folder: Path, state: State) -> Path:
    """In memory a latent's encoder column is contiguous, as in SAEs that infoscope trains."""
    W_enc = state["W_enc"].T.contiguous().T
    save_sae(folder, SparseAutoencoder.of(W_enc, state["b_enc"], state["W_dec"], state["b_dec"], TopK(K)))
    return folder / "sae.safetensors"


WRITERS: dict[str, Callable[[Path, State], Path]] = {
    "SAELens, safetensors": write_saelens,
    "SAELens, bfloat16": lambda folder, state: write_saelens(folder, state, torch.bfloat16),
    "SAELens, float16": lambda folder, state: write_saelens(folder, state, torch.float16),
    "PatchSAE, class pickled": write_patchsae,
    "dictionary_learning, linear layers": write_linear,
    "the same, rows made unit": write_rescaled,
    "saev, behind a line of JSON": write_saev,
    "infoscope's own": write_ours,
}


def load_plainly(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return load_file(file)
    with file.open("rb") as stream, patchsae_config() as config, torch.serialization.safe_globals([config]):
        if stream.peek(1).startswith(b"{"):  # as saev's own loader does
            stream.readline()
            return torch.load(io.BytesIO(stream.read()), weights_only=True)
        return torch.load(file, weights_only=True)


LOADERS: dict[str, Callable[[Path], Any]] = {"ours": load_sae, "plain": load_plainly}


def read_peak() -> int:
    """The largest resident memory of this process so far, in bytes. (That of getrusage may be its parent's.)"""
    match = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1])


def load_here(loader: str, file: str) -> dict[str, float]:
    """Load a file; return the seconds, and the rise of the peak in MB."""
    before, start = read_peak(), time.perf_counter()
    LOADERS[loader](Path(file))
    return {"seconds": time.perf_counter() - start, "peak_mb": (read_peak() - before) / 1e6}


def load_apart(loader: str, file: str, threads: int) -> dict[str, float]:
    """`load_here` in a fresh process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--load", loader, file, "--threads", str(threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    state, rows = draw(options.d_in, options.d_sae), []
    for name, write in WRITERS.items():
        with TemporaryDirectory(dir=options.folder) as folder:
            file = write(Path(folder), state)
            jobs = [(loader, str(file)) for _ in range(options.repeats) for loader in LOADERS]
            done = [load_here(*job) if options.tiny else load_apart(*job, options.threads) for job in jobs]
            row: dict[str, Any] = {"file": name, "file_mb": file.stat().st_size / 1e6}
        for loader in LOADERS:
            own = [one for (by, _), one in zip(jobs, done, strict=True) if by == loader]
            row[f"{loader}_s"] = statistics.median(one["seconds"] for one in own)
            row[f"{loader}_peak_mb"] = max(one["peak_mb"] for one in own)
        rows.append(row)
        print(
            f"{name:36} {row['file_mb']:8.0f} {row['ours_s']:8.2f} {row['ours_peak_mb']:10.0f}"
            f" {row['plain_s']:8.2f} {row['plain_peak_mb']:10.0f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = make_parser(__doc__)
    parser.set_defaults(repeats=3)
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=49_152)
    parser.add_argument("--threads", type=int, default=count_usable_cores())
    parser.add_argument("--folder", help="where the files are written, one at a time; by default a temporary one")
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = "cpu"  # where files are loaded, whatever is asked for
    torch.set_num_threads(options.threads)
    if options.load:
        print(json.dumps(load_here(*options.load)))
        return
    if options.tiny:
        vars(options).update(d_in=8, d_sae=64, repeats=1)
    print(f"{'':36} {'MB':>8} {'s':>8} {'peak (MB)':>10} {'plain: s':>8} {'peak (MB)':>10}")
    rows = measure(options)
    if options.save:
        for name in ("folder", "load"):
            vars(options).pop(name)
        save(f"load_sae-{options.d_in}-{options.d_sae}", options, rows=rows)


if __name__ == "__main__":
    main()
