"""Training by several processes: the SAE of one process but for rounding, whatever the kind; and the same in each."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.sae.config import KINDS, TokenChoice, TopKConfig
from infoscope.sae.stream import TokenStream
from infoscope.sae.token_sets import make_token_set
from infoscope.sae.train import train_sae
from infoscope.vision.tokens import source
from infoscope.vision.tokens.extract import extract_tokens
from infoscope.vision.tokens.source import LiveTokens
from tests.support.live_samples import N as N_LIVE
from tests.support.live_samples import PixelBackbone, read_images
from tests.support.quick_processes import quick_sharing
from tests.support.sae_samples import Tokens, as_kind

pytestmark = pytest.mark.long

CONFIG = TopKConfig(
    expansion_factor=4,
    k=3,
    n_tokens=20 * 64,
    batch_tokens=64,
    pool_images=25,
    warmup_steps=4,
    lr=3e-3,
    dead_after_tokens=128,
    eval_tokens=100,
    log_every_n_steps=5,
    checkpoint_every_n_steps=12,
)
KIND_CONFIGS = {kind: as_kind(CONFIG, kind) for kind in KINDS}
KIND_CONFIGS["jumprelu"] = as_kind(CONFIG, "jumprelu", initial_threshold=0.3)
LIVE = replace(CONFIG, n_tokens=12 * 32, batch_tokens=32, pool_images=8, tokens_per_image=4, expansion_factor=2)


def make_tokens() -> Tokens:
    """Tokens that are sums of some of 20 directions, off centre; those of some images are faint."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(20, 12))
    codes = rng.uniform(0.5, 1.5, size=(60, 9, 20)) * (rng.random((60, 9, 20)) < 0.15)
    codes[:20] *= 0.1
    patches = (codes @ directions + 2.0).astype(np.float32)
    mean = patches.mean((0, 1))
    return Tokens(patches, patches[:, :1].copy(), mean, float(12**0.5 / np.linalg.norm(patches - mean, axis=-1).mean()))


class Watch(Callback):
    """Keeps the state at the end and what AuxK had to do; sends one process a Ctrl-C before a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.n_dead, self.end = stop_at, 0, {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: object) -> None:
        self.n_dead += int(pl_module._dead().sum())
        if trainer.global_step == self.stop_at and processes.current().rank == processes.current().size - 1:
            os.kill(os.getpid(), signal.SIGINT)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        optimizer = trainer.optimizers[0].state_dict()["state"]
        moments = {f"{i}.{name}": value for i, state in optimizer.items() for name, value in state.items()}
        self.end = {name: tensor.clone() for name, tensor in (pl_module.state_dict() | moments).items()}


def train_every_kind(folder: Path, live_folder: Path) -> dict[str, Any]:
    """What every process does; it keeps what it found in a file of its own."""
    here = processes.current()
    found: dict[str, Any] = {}
    for kind in KINDS:
        watch, logger = Watch(), CSVLogger(folder / "logs", kind, "") if processes.is_main() else False
        config = KIND_CONFIGS[kind]
        _, figures = train_sae(make_tokens(), config, 5, folder / kind, callbacks=[watch], logger=logger)
        found[kind] = {"state": watch.end, "figures": figures, "n_dead": watch.n_dead}
    source.BATCH_IMAGES = 2
    backbone = PixelBackbone()
    live = LiveTokens(live_folder, backbone, read_images)
    tokens = make_token_set(live, TokenChoice.all, np.arange(1, N_LIVE))
    found["batches"] = list(TokenStream(tokens, 48, 30, seed=2, pool_images=7, tokens_per_image=3, first_step=4))
    found["n_encoded"] = backbone.n_images_encoded
    watch = Watch()
    train_sae(live, replace(LIVE, tokens=TokenChoice.all), 3, folder / "live", callbacks=[watch])
    found["live"] = {"state": watch.end}
    try:
        train_sae(make_tokens(), CONFIG, 5, folder / "stopped", callbacks=[Watch(stop_at=6)])
    except KeyboardInterrupt:
        processes.barrier()  # the main process writes the checkpoint
        found["stopped_at"] = torch.load(folder / "stopped" / "last.ckpt", weights_only=True)["global_step"]
    watch = Watch()
    train_sae(make_tokens(), CONFIG, 5, folder / "stopped", callbacks=[watch])
    found["resumed"] = {"state": watch.end}
    found["refused"] = find_refusal(lambda: train_sae(make_tokens(), replace(CONFIG, batch_tokens=63), 5, folder / "b"))
    spoilt = make_tokens()
    spoilt.patches[3, 2, 1] = np.nan
    found["spoilt"] = find_refusal(lambda: train_sae(spoilt, CONFIG, 5, folder / "spoilt"))
    torch.save(found, folder / f"{here.rank}.pt")
    return found


def find_refusal(work: Callable[[], Any]) -> str:
    try:
        work()
    except InputError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process found, and the two of another job."""
    folder = tmp_path_factory.mktemp("processes")
    for name in ("live_tokens", "alone", "together"):
        (folder / name).mkdir()
    extract_tokens(PixelBackbone(), read_images, N_LIVE, 0, folder / "live_tokens", None, batch_images=8)
    n_live = source.BATCH_IMAGES
    try:
        alone = train_every_kind(folder / "alone", folder / "live_tokens")
        with quick_sharing(), processes.sharing(2, train_every_kind, folder / "together", folder / "live_tokens"):
            first = train_every_kind(folder / "together", folder / "live_tokens")
    finally:
        source.BATCH_IMAGES = n_live
    second = torch.load(folder / "together" / "1.pt", weights_only=True)
    watch = Watch()
    train_sae(make_tokens(), KIND_CONFIGS["jumprelu"], 5, folder / "together" / "jumprelu", callbacks=[watch])
    alone["resumed_alone"] = {"state": watch.end}
    return [alone, first, second]


def assert_same(ours: dict, theirs: dict, rtol: float = 0.0, atol: float = 0.0) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=rtol, atol=atol, msg=lambda text, of=name: f"{of}: {text}"
        )


@pytest.mark.parametrize("name", [*KINDS, "live"])
def test_two_processes_train_the_sae_of_one(found: list[dict[str, Any]], name: str) -> None:
    alone, first, second = (each[name] for each in found)
    assert_same(first["state"], second["state"])
    assert_same(first["state"], alone["state"], rtol=1e-4, atol=1e-5)
    if name != "live":
        assert first["figures"] == second["figures"] == pytest.approx(alone["figures"], rel=1e-4)
        assert alone["n_dead"] == first["n_dead"]
        assert (alone["n_dead"] > 0) == (name not in ("relu", "jumprelu")), "AuxK had something to do"


def test_parts_of_a_batch_are_the_batch_and_images_are_encoded_once(found: list[dict[str, Any]]) -> None:
    alone, first, second = found
    for whole, *parts in zip(alone["batches"], first["batches"], second["batches"], strict=True):
        assert torch.equal(torch.cat(parts), whole)
    assert first["n_encoded"] + second["n_encoded"] == alone["n_encoded"]
    assert abs(first["n_encoded"] - second["n_encoded"]) < 0.2 * alone["n_encoded"]


def test_ctrl_c_of_one_process_stops_all_and_they_go_on_bit_for_bit(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert_same(each["resumed"]["state"], each["topk"]["state"])
    assert [each["stopped_at"] for each in found] == [7, 7, 7]


def test_one_process_goes_on_from_the_checkpoint_of_two(found: list[dict[str, Any]]) -> None:
    assert_same(found[0]["resumed_alone"]["state"], found[0]["jumprelu"]["state"], rtol=1e-4, atol=1e-5)


def test_what_is_wrong_ends_every_process(found: list[dict[str, Any]]) -> None:
    assert [each["refused"] for each in found[1:]] == [
        "Expected sae.batch_tokens to be a multiple of the 2 processes that share each batch, got 63."
    ] * 2
    for each in found:
        assert each["spoilt"].startswith("The SAE's loss became nan at step")
        assert each["spoilt"] == found[0]["spoilt"]


def test_figures_are_logged_once_and_are_the_whole_batchs(found: list[dict[str, Any]], tmp_path_factory: Any) -> None:
    root = next(path for path in Path(tmp_path_factory.getbasetemp()).glob("processes*"))
    for kind in KINDS:
        tables = [
            np.genfromtxt(root / job / "logs" / kind / "metrics.csv", delimiter=",") for job in ("alone", "together")
        ]
        np.testing.assert_allclose(tables[0], tables[1], rtol=1e-4, atol=1e-6)
