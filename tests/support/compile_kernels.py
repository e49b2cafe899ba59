"""Compiles every kernel for GPUs that need not be there, with the arguments that the code launches it with.

Run as a program, as Triton's interpreter must be off. It takes steps on CPU tensors, of which the kernels are compiled
and not run. Prints a line for each kernel and capability.
"""

from __future__ import annotations

from typing import Any

import torch
from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from infoscope.sae.activations import TopK
from infoscope.sae.fused_step import FusedStep
from infoscope.sae.losses import BatchTopKObjective, TopKObjective
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.topk import plan_groups, run_kernels

D_IN, D_SAE, K, N = 768, 256, 8, 4


class Device:
    """A GPU of this capability, as far as compiling for it needs one."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
    compiled = launch(kernel, *args, grid=grid, warmup=True, **options)
    assert len(compiled.asm["cubin"]) > 0
    print(kernel.__name__, driver.active.get_current_device())
    return compiled


launch, JITFunction.run = JITFunction.run, compile_only


def take_step(objective: TopKObjective, dtype: torch.dtype, is_shared: bool) -> None:
    sae = SparseAutoencoder(D_IN, D_SAE, TopK(K))
    step = FusedStep(sae, objective, dtype, is_shared)
    step.compute(torch.randn(N, D_IN), torch.arange(D_SAE) < 3)
    step.update(torch.optim.Adam(sae.parameters(), fused=True))


def main() -> None:
    plan = plan_groups(D_SAE, K)
    assert plan is not None
    for dtype, capability in ((torch.bfloat16, 90), (torch.float32, 80)):
        driver.set_active(Device(capability))
        run_kernels(torch.randn(N, D_SAE).to(dtype), K, plan)
        take_step(TopKObjective(K, 2, 1.0), dtype, False)
        take_step(BatchTopKObjective(K, 2, 1.0, prefix_sizes=[9, D_SAE]), dtype, True)


if __name__ == "__main__":
    main()
