"""How precise the products of SAEs are; the backbone's are those of `model.precision`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path


class Precision(Enum):
    """Of the products with an SAE's weights, which are float32 themselves; named as Lightning names it.

    auto: bf16 where the work runs on CUDA, 32 on CPUs: known before there is a processor, and so fit for a key.
    32: float32. bf16: products of training in bfloat16, and of a trained SAE's encoder in TF32 on CUDA.
    """

    auto = "auto"
    vars()["32"] = 32
    bf16 = "bf16"

    @property
    def is_bf16(self) -> bool:
        """Whether it is bf16 for certain."""
        return self is Precision.bf16

    @property
    def for_lightning(self) -> str:
        """What Lightning's trainer calls it: master weights in float32 either way."""
        assert self is not Precision.auto
        return "bf16-mixed" if self.is_bf16 else "32-true"

    def resolve(self, device_type: str) -> Precision:
        """Return what it is on a device of this type, "cpu" or "cuda": never auto."""
        if self is not Precision.auto:
            return self
        return Precision.bf16 if device_type == "cuda" else Precision["32"]


def is_bf16_fast(cpu_info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bfloat16 by itself, or is not known; where it does not, float32 is faster."""
    try:
        words = set(cpu_info.read_text(encoding="utf-8").split())
    except OSError:
        return True
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


@contextmanager
def tf32_products(is_on: bool) -> Iterator[None]:
    """Let float32 products on CUDA be rounded to TF32 inside the block, if that is wanted."""
    import torch  # which the configuration, that knows `Precision`, does without

    if not is_on:
        yield
        return
    settings = torch.backends.cuda.matmul
    before, settings.allow_tf32 = settings.allow_tf32, True
    try:
        yield
    finally:
        settings.allow_tf32 = before
