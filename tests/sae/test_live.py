"""Training straight from images: batches are those of a cache, and a resumed run is bit for bit the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenChoice, TopKConfig
from infoscope.sae.stream import TokenStream
from infoscope.sae.token_sets import make_token_set
from infoscope.sae.train import make_normalisation, split_tokens, train_sae
from infoscope.vision.tokens.extract import TokenCache, extract_tokens
from infoscope.vision.tokens.source import LiveTokens
from tests.support.live_samples import N, PixelBackbone, read_images

CONFIG = TopKConfig(
    expansion_factor=2,
    k=2,
    n_tokens=30 * 32,
    batch_tokens=32,
    pool_images=8,
    tokens_per_image=4,
    warmup_steps=2,
    eval_tokens=27,
    checkpoint_every_n_steps=7,
)


@pytest.fixture
def stored(tmp_path: Path) -> TokenCache:
    (tmp_path / "stored").mkdir()
    return extract_tokens(PixelBackbone(), read_images, N, 0, tmp_path / "stored", batch_images=8)


@pytest.fixture
def live(tmp_path: Path) -> LiveTokens:
    (tmp_path / "live").mkdir()
    extract_tokens(PixelBackbone(), read_images, N, 0, tmp_path / "live", None, batch_images=8)
    return LiveTokens(tmp_path / "live", PixelBackbone(), read_images)


@pytest.mark.parametrize("choice", list(TokenChoice))
@pytest.mark.parametrize("per_image", [None, 4])
def test_batches_are_those_of_a_cache(
    stored: TokenCache, live: LiveTokens, choice: TokenChoice, per_image: int | None
) -> None:
    def make_stream(source: TokenCache | LiveTokens) -> TokenStream:
        tokens = make_token_set(source, choice, np.arange(3, N))
        return TokenStream(tokens, 50, 12, seed=2, pool_images=8, tokens_per_image=per_image)

    for ours, theirs in zip(make_stream(live), make_stream(stored), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("choice", list(TokenChoice))
def test_tokens_in_order_and_their_mean_and_scale(stored: TokenCache, live: LiveTokens, choice: TokenChoice) -> None:
    ours, theirs = (make_token_set(source, choice, np.array([5, 30, 2])) for source in (live, stored))
    for batch_tokens, n_tokens in ((4, None), (7, 12), (100, None), (3, 3)):
        pairs = zip(ours.iterate(batch_tokens, n_tokens), theirs.iterate(batch_tokens, n_tokens), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b)
    config = replace(CONFIG, tokens=choice)
    (mean, scale), (mean_stored, scale_stored) = (
        make_normalisation(source, split_tokens(source, config)[0], config.tokens, config.batch_tokens)
        for source in (live, stored)
    )
    torch.testing.assert_close(mean, mean_stored)
    assert scale == pytest.approx(scale_stored, rel=1e-4)


class Stop(Callback):
    """Interrupts before a step; else remembers how training ended."""

    def __init__(self, step: int | None = None) -> None:
        self.step = step
        self.end: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}


@pytest.mark.parametrize(("step", "per_image"), [(5, 4), (17, 3)])  # a batch is a pool, or parts of two
def test_a_resumed_training_is_bit_for_bit_the_same(
    live: LiveTokens, tmp_path: Path, step: int, per_image: int
) -> None:
    whole, resumed, config = Stop(), Stop(), replace(CONFIG, tokens_per_image=per_image)
    _, expected = train_sae(live, config, 3, tmp_path / "whole", callbacks=[whole])
    with pytest.raises(KeyboardInterrupt):
        train_sae(live, config, 3, tmp_path / "cut", callbacks=[Stop(step)])
    _, figures = train_sae(live, config, 3, tmp_path / "cut", callbacks=[resumed])
    assert figures == expected
    assert whole.end.keys() == resumed.end.keys()
    assert all(torch.equal(tensor, resumed.end[name]) for name, tensor in whole.end.items())


def test_images_are_encoded_no_more_than_is_needed(live: LiveTokens) -> None:
    """30 batches of 32 tokens at 4 an image are 240 images."""
    training = make_token_set(live, TokenChoice.patch, np.arange(32))
    list(TokenStream(training, 32, 30, seed=0, pool_images=8, tokens_per_image=4))
    assert live.backbone.n_images_encoded == 240


def test_a_model_without_cls_has_none_to_train_on(live: LiveTokens) -> None:
    live.meta["n_prefix"] = 0
    with pytest.raises(InputError, match=r"sae\.tokens=cls"):
        make_token_set(live, TokenChoice.cls)
