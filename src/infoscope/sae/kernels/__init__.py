"""Triton kernels of SAEs. Nothing but kernels: these modules import triton, and only who runs kernels imports them."""
