"""What the precision of products has to do with an SAE's artifact: its key, its loading, and what users are told."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Handle, Key, NotBuiltYet
from infoscope.runtime.precision import Precision, is_bf16_fast
from infoscope.runtime.read_only import MissingArtifact
from infoscope.sae.checkpoint import load_sae
from infoscope.sae.model import SparseAutoencoder

_BF16: Key = {"precision": "bf16"}


def precision_key(ctx: Context) -> Key:
    """Return its part of an SAE's key: nothing for float32, so that what is older than the choice is found."""
    return _BF16 if ctx.precision.is_bf16 else {}


def load_frozen(ctx: Context, folder: Path) -> SparseAutoencoder:
    """Return the SAE of a folder to be read: on the device, without gradients, its encoder in the run's precision."""
    sae = load_sae(folder).to(ctx.device).requires_grad_(False)
    sae.uses_tf32 = ctx.precision.is_bf16
    return sae


def say_other_precision(ctx: Context, sae: Handle[SparseAutoencoder]) -> None:
    """Tell of an SAE that is missing here and exists in the other precision, where the device has chosen between them.

    So it is on a computer without a GPU, next to a cluster with GPUs.
    """
    if ctx.config.trainer.precision is not Precision.auto or sae.find() is not None:
        return
    with suppress(NotBuiltYet, MissingArtifact):
        key = {name: value for name, value in sae.spec.key.items() if name not in _BF16}
        here, other = ("bf16", "32") if ctx.precision.is_bf16 else ("32", "bf16")
        if ctx.store.find(replace(sae.spec, key=key if other == "32" else key | _BF16)) is not None:
            ctx.display.say(
                f"{sae.spec.name}: this SAE exists with trainer.precision={other}, which finds it; trainer.precision="
                f"auto is {here} on this machine, which makes another."
            )


@once
def say_slow_bf16(ctx: Context) -> None:
    """Warn of bfloat16 on a processor or a GPU that computes in float32 alone."""
    if not ctx.precision.is_bf16:
        return
    if ctx.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        ctx.display.say(
            f"Warning: {torch.cuda.get_device_name()} has no products in bfloat16, so that"
            " trainer.precision=bf16 (auto) is slower than 32."
        )
    if ctx.device.type == "cpu" and not is_bf16_fast():
        ctx.display.say(
            "Warning: this processor has no products in bfloat16 (avx512_bf16 or amx_bf16), so that"
            " trainer.precision=bf16 is slower than 32."
        )
