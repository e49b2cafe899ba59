"""Training: it learns, resumes bit for bit, revives dead latents, and says plainly what is wrong."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from infoscope.runtime import files, parts
from infoscope.runtime.errors import InputError
from infoscope.sae.checkpoint import WEIGHTS_NAME, save_sae
from infoscope.sae.config import KINDS, TokenChoice
from infoscope.sae.module import SAEModule, compute_lr_factor
from infoscope.sae.train import make_normalisation, split_tokens, train_sae
from infoscope.tracking.log import Log
from infoscope.tracking.tracker import Tracker, TrackerLogger
from tests.support.quick_processes import get_quick_context
from tests.support.sae_samples import CONFIG, Stop, Tokens, as_kind, assert_same


@pytest.mark.parametrize("how", ["signal", "raise_before", "raise_after"])
def test_resumed_run_equals_an_undisturbed_one_bit_for_bit(cache: Tokens, tmp_path: Path, how: str) -> None:
    handler = signal.getsignal(signal.SIGINT)
    whole = Stop()
    _, expected = train_sae(cache, CONFIG, 5, tmp_path / "whole", callbacks=[whole])
    with pytest.raises(KeyboardInterrupt):
        train_sae(cache, CONFIG, 5, tmp_path / "cut", callbacks=[Stop(7, how)])
    assert signal.getsignal(signal.SIGINT) is handler
    checkpoint = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 7
    resumed = Stop()
    _, figures = train_sae(cache, CONFIG, 5, tmp_path / "cut", callbacks=[resumed])
    assert resumed.end["0.step"] == 20
    assert_same(resumed.end, whole.end)
    assert figures == expected


def test_periodic_checkpoint_is_enough_to_resume(cache: Tokens, tmp_path: Path) -> None:
    whole, resumed = Stop(), Stop()
    train_sae(cache, CONFIG, 5, tmp_path, callbacks=[whole])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 18
    train_sae(cache, CONFIG, 5, tmp_path, callbacks=[resumed])
    assert_same(resumed.end, whole.end)


def test_a_resumed_run_logs_the_steps_that_follow(cache: Tokens, tmp_path: Path) -> None:
    class Steps(Log):
        def __init__(self) -> None:
            self.losses: dict[int, float] = {}

        def log_point(self, curve: str, numbers: Mapping[str, float], step: int) -> None:
            self.losses[step] = numbers["train_sae/seed5/fvu"]

    def train(folder: str, *callbacks: Callback) -> dict[int, float]:
        log = Steps()
        logger = TrackerLogger(Tracker(lambda action: action(log), "train_sae/seed5"))
        try:
            train_sae(cache, CONFIG, 5, tmp_path / folder, callbacks=callbacks, logger=logger)
        except KeyboardInterrupt:
            assert callbacks
        return log.losses

    whole, before, after = train("whole"), train("cut", Stop(7)), train("cut")
    assert list(whole) == [4, 9, 14, 19]
    assert list(before) == [4, 6], "and where it was stopped"
    assert list(after) == [9, 14, 19]
    assert whole.items() <= (before | after).items()


def test_a_checkpoint_is_also_due_after_a_time(cache: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SAVE_EVERY_S", 0.0)
    with pytest.raises(ValueError, match="a bug"):
        train_sae(cache, replace(CONFIG, checkpoint_every_n_steps=1000), 5, tmp_path, callbacks=[Stop(7, "bug")])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 7


def test_whoever_handles_a_signal_decides_how_training_ends(cache: Tokens, tmp_path: Path) -> None:
    """A launcher that queues the job again leaves by SystemExit: that is no Ctrl-C."""

    def queue_again(signum: int, frame: object) -> None:
        raise SystemExit(75)

    handlers = {number: signal.signal(number, queue_again) for number in (signal.SIGTERM, signal.SIGUSR2)}
    whole = Stop()
    train_sae(cache, CONFIG, 5, tmp_path / "whole", callbacks=[whole])
    try:
        for number in handlers:
            with pytest.raises(SystemExit) as ended:
                train_sae(cache, CONFIG, 5, tmp_path / number.name, callbacks=[Stop(8, number.name)])
            assert ended.value.code == 75
            assert signal.getsignal(number) is queue_again
            assert torch.load(tmp_path / number.name / "last.ckpt", weights_only=True)["global_step"] == 8
            resumed = Stop()
            train_sae(cache, CONFIG, 5, tmp_path / number.name, callbacks=[resumed])
            assert_same(resumed.end, whole.end)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def train_and_die(cache: Tokens, folder: Path, n_threads: int) -> None:
    """Train until the second checkpoint is written, but not yet in its place."""
    torch.set_num_threads(n_threads)
    fsync, n_written = os.fsync, 0

    def die_at_the_second(file: int) -> None:
        nonlocal n_written
        n_written += 1
        if n_written == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)

    files.os.fsync = die_at_the_second  # pyright: ignore
    train_sae(cache, CONFIG, 5, folder)


@pytest.mark.long
def test_a_run_after_kill_9_ends_with_the_same_bytes(cache: Tokens, tmp_path: Path) -> None:
    process = get_quick_context().Process(target=train_and_die, args=(cache, tmp_path / "cut", torch.get_num_threads()))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    part = f".last.ckpt.{process.pid}.part"
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {"last.ckpt", part}
    assert torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)["global_step"] == 6
    (tmp_path / "cut" / part).write_bytes(b"PK but not whole")
    for name in ("whole", "cut"):
        sae, _ = train_sae(cache, CONFIG, 5, tmp_path / name)
        save_sae(tmp_path / f"{name}_sae", sae)
    assert (tmp_path / "cut_sae" / WEIGHTS_NAME).read_bytes() == (tmp_path / "whole_sae" / WEIGHTS_NAME).read_bytes()


def test_checkpoint_of_another_run_or_a_damaged_one_is_refused(cache: Tokens, tmp_path: Path) -> None:
    train_sae(cache, CONFIG, 5, tmp_path)
    with pytest.raises(InputError, match="another seed"):
        train_sae(cache, CONFIG, 6, tmp_path)
    with pytest.raises(InputError, match="another config"):
        train_sae(cache, replace(CONFIG, lr=1e-4), 5, tmp_path)
    (tmp_path / "last.ckpt").write_bytes(b"PK but not whole")
    with pytest.raises(InputError, match="damaged"):
        train_sae(cache, CONFIG, 5, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.long
def test_training_learns_and_keeps_unit_rows(cache: Tokens, tmp_path: Path, kind: str) -> None:
    own = {"l1": 0.02} if kind == "relu" else {}
    config = as_kind(CONFIG, kind, n_tokens=300 * 64, checkpoint_every_n_steps=1000, **own)
    sae, figures = train_sae(cache, config, 0, tmp_path)
    learnt = kind in ("topk", "relu", "matryoshka_k")  # the others spend their few steps on thresholds too
    assert figures["fvu"] < (0.25 if learnt else 0.32)
    assert figures["cosine"] > (0.85 if learnt else 0.77)
    assert figures["l0"] <= {"relu": 48, "topk": 3, "matryoshka_k": 3}.get(kind, 4.5)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48))
    assert not sae.training
    assert all(parameter.device.type == "cpu" for parameter in sae.parameters())


class KillHalf(Callback):
    """Puts half of the latents out of reach before training; counts at the end how many of them fire."""

    def on_train_start(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        with torch.no_grad():
            pl_module.sae.b_enc[::2] = -4.0

    def on_train_end(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        self.revived_share = float((pl_module.tokens_since_fired[::2] < 1000).float().mean())


@pytest.mark.long
def test_auxk_revives_dead_latents(cache: Tokens, tmp_path: Path) -> None:
    config = replace(CONFIG, n_tokens=200 * 64, checkpoint_every_n_steps=1000, lr=1e-2)
    revived = {}
    for aux_coef in (0.0, 1 / 32):
        kill_half = KillHalf()
        train_sae(cache, replace(config, aux_coef=aux_coef), 0, tmp_path / str(aux_coef), callbacks=[kill_half])
        revived[aux_coef] = kill_half.revived_share
    assert revived[0.0] == 0
    assert revived[1 / 32] > 0.05


def test_same_seed_same_sae_other_seed_another(cache: Tokens, tmp_path: Path) -> None:
    first, again, other = (
        train_sae(cache, CONFIG, seed, tmp_path / name)[0] for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert torch.equal(first.W_dec, again.W_dec)
    assert not torch.equal(first.W_dec, other.W_dec)


def test_figures_are_logged_and_nothing_is_printed(
    cache: Tokens, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = CSVLogger(tmp_path / "logs", name="", version="")
    train_sae(cache, CONFIG, 5, tmp_path / "progress", logger=logger)
    header, *rows = (tmp_path / "logs" / "metrics.csv").read_text().splitlines()
    assert {"loss", "fvu", "l0", "cosine", "dead_share", "lr", "step"} <= set(header.split(","))
    assert len(rows) == 4
    assert capfd.readouterr() == ("", "")


def test_nan_tokens_end_training_with_a_sentence(cache: Tokens, tmp_path: Path) -> None:
    patches = cache.patches.copy()
    patches[3, 2, 1] = np.nan
    with pytest.raises(InputError, match=r"loss became nan at step \d+: expected finite tokens"):
        train_sae(replace(cache, patches=patches), CONFIG, 0, tmp_path)


def test_held_out_images_are_never_trained_on(cache: Tokens) -> None:
    training, evaluation = split_tokens(cache, CONFIG)
    assert evaluation.images.tolist() == [0, 10, 20, 30, 40, 50]  # spread: images may be sorted by class
    assert sorted([*training.images, *evaluation.images]) == list(range(60))
    training, evaluation = split_tokens(cache, replace(CONFIG, tokens=TokenChoice.cls), held_out=cache)
    assert (training.n_tokens, evaluation.n_tokens) == (60, 60)
    with pytest.raises(InputError, match="at least 2 images"):
        split_tokens(replace(cache, patches=cache.patches[:1]), CONFIG)


def test_patches_keep_the_normalisation_of_the_cache_and_other_tokens_get_their_own(cache: Tokens) -> None:
    prefix = np.random.default_rng(1).normal(3.0, 2.0, size=(60, 2, 12)).astype(np.float32)
    cache = replace(cache, prefix=prefix)
    trained = np.flatnonzero(np.arange(60) % 10)
    for choice, tokens in ((TokenChoice.cls, prefix[trained, 0]), (TokenChoice.all, None)):
        if tokens is None:
            tokens = np.concatenate([prefix[trained], cache.patches[trained]], axis=1).reshape(-1, 12)
        config = replace(CONFIG, tokens=choice, eval_tokens=10_000)
        mean, scale = make_normalisation(cache, split_tokens(cache, config)[0], config.tokens, config.batch_tokens)
        np.testing.assert_allclose(mean.numpy(), tokens.mean(0), rtol=1e-4)
        assert scale * np.linalg.norm(tokens - tokens.mean(0), axis=1).mean() == pytest.approx(12**0.5, rel=1e-5)
    mean, scale = make_normalisation(cache, split_tokens(cache, CONFIG)[0], CONFIG.tokens, CONFIG.batch_tokens)
    assert (mean.tolist(), scale) == (cache.mean.tolist(), cache.scale)


@pytest.mark.parametrize("spread", [0.0, 3e-7])
def test_tokens_that_differ_by_rounding_alone_are_refused(cache: Tokens, spread: float) -> None:
    patches = np.float32(3) + np.float32(spread) * cache.patches
    mean = patches.reshape(-1, 12).mean(axis=0)
    distance = float(np.linalg.norm(patches - mean, axis=-1).mean())
    alike = replace(cache, patches=patches, mean=mean, scale=12**0.5 / distance if spread else math.inf)
    with pytest.raises(InputError, match="Expected finite tokens that differ, got a mean distance of"):
        make_normalisation(alike, split_tokens(alike, CONFIG)[0], CONFIG.tokens, CONFIG.batch_tokens)


def test_only_what_decides_the_weights_is_determining() -> None:
    assert CONFIG.cache_key_fields() == replace(CONFIG, log_every_n_steps=1).cache_key_fields()
    assert CONFIG.cache_key_fields() != replace(CONFIG, k=4).cache_key_fields()
    relu = as_kind(CONFIG, "relu")
    assert relu.cache_key_fields() == replace(relu, dead_after_tokens=4, checkpoint_every_n_steps=1).cache_key_fields()
    assert relu.cache_key_fields() != replace(relu, l1=9.0).cache_key_fields()
    assert relu.cache_key_fields()["kind"] == "relu"


def test_learning_rate_warms_up_and_decays() -> None:
    config = replace(CONFIG, warmup_steps=4, decay_share=0.5)
    factors = [compute_lr_factor(step, config) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:11] == [1.0] * 7
    assert factors[11:] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert compute_lr_factor(19, replace(CONFIG, warmup_steps=0, decay_share=0.0)) == 1.0


def test_the_rate_follows_the_number_of_latents_unless_it_is_given(cache, tmp_path):
    follows = replace(CONFIG, lr=None)
    assert [follows.choose_lr(d_sae) for d_sae in (2**14, 2**12, 2**16)] == pytest.approx([1e-3, 2e-3, 5e-4])
    assert CONFIG.choose_lr(7) == CONFIG.lr
    given = replace(CONFIG, lr=follows.choose_lr(CONFIG.expansion_factor * cache.patches.shape[-1]))
    one, other = (train_sae(cache, config, 5, tmp_path / str(config.lr))[0] for config in (follows, given))
    assert torch.equal(one.W_enc, other.W_enc)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, r"sae\.k to be at least 1"),
        ({"lr": 0.0}, r"sae\.lr to be above 0"),
        ({"decay_share": 1.5}, r"sae\.decay_share to be in 0\.\.1"),
        ({"aux_k": -1}, r"sae\.aux_k to be at least 0"),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes)
