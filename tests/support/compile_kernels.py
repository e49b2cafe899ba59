"""Compiles every kernel for GPUs that need not be there; run as a program, as Triton's interpreter must be off.

Prints one line for each kernel. The arguments have the types and settings with which the code launches the kernels.
"""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from infoscope.sae.kernels import selection, training

INDICES = {"latents_ptr", "offsets_ptr", "first_chunks_ptr", "latent_of_chunk_ptr", "extra_of_latent_ptr", "places_ptr"}
HALVES = {"gradients_ptr", "matrix_ptr", "W_dec_copy_ptr", "W_enc_copy_ptr", "extra_W_dec_ptr", "extra_W_enc_ptr"}
NUMBERS = {"rate", "eps", "beta1", "new1", "beta2", "new2", "root_correction2"}
SIZES = {"D": 768, "BLOCK": 128, "N_BLOCKS": 6}
SUMS = {"D": 768, "WIDTH": 1024, "CHUNK": 256}
DECODING = (training.decode_topk, training.decode_levels, training.multiply_rows)


def find_type(kernel: Any, name: str, is_half: bool) -> str:
    """Return the type of an argument, in Triton's words."""
    if not name.endswith("_ptr"):
        return "fp32" if name in NUMBERS else "i32"
    if name in INDICES or (name == "rows_ptr" and kernel is training.multiply_rows):
        return "*i64"
    if name in ("tokens_ptr", "rows_ptr"):
        return "*i32"
    if name == "maxima_ptr":
        return "*i16" if is_half else "*i32"
    is_read = name in HALVES or (name == "W_dec_ptr" and kernel in DECODING)
    is_read |= name == "x_ptr" and kernel not in DECODING
    is_read |= name == "values_ptr" and kernel is selection.select_largest
    return "*bf16" if is_half and is_read else "*fp32"


def compile_kernel(kernel: Any, is_half: bool, capability: int, num_warps: int, **constants: Any) -> None:
    types = {name: "constexpr" if name in constants else find_type(kernel, name, is_half) for name in kernel.arg_names}
    aligned: Any = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    options = {"num_warps": num_warps, "enable_fp_fusion": True}
    compiled = triton.compile(
        ASTSource(kernel, types, constants, aligned), target=GPUTarget("cuda", capability, 32), options=options
    )
    assert len(compiled.asm["cubin"]) > 0
    print(kernel.__name__, capability)


def main() -> None:
    for is_half, capability in ((True, 90), (False, 80)):
        shared = {"is_half": is_half, "capability": capability}
        rows = {"GROUP": 64, "IS_HALF": is_half}
        compile_kernel(selection.find_group_maxima, **shared, num_warps=4, **rows, ROWS=64)
        settings = {"K": 8, "N_GROUPS": 256, "HAS_TOPK": hasattr(triton.language, "topk")}
        compile_kernel(selection.select_largest, **shared, num_warps=4, **rows, **settings)
        compile_kernel(training.decode_topk, **shared, num_warps=1, **SIZES, K=8)
        compile_kernel(training.decode_levels, **shared, num_warps=1, D=768, BLOCK=128, UNROLL=8)
        compile_kernel(training.multiply_rows, **shared, num_warps=1, **SIZES, N=8)
        compile_kernel(training.sum_values, **shared, num_warps=1, N=256)
        compile_kernel(training.sum_chunks, **shared, num_warps=4, **SUMS, UNROLL=4)
        for is_applied in (True, False):
            settings = {"UNROLL": 2, "IS_APPLIED": is_applied, "HAS_COPIES": is_half}
            compile_kernel(training.update_latents, **shared, num_warps=4, **SUMS, **settings)


if __name__ == "__main__":
    main()
