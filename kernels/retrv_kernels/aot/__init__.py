"""Compiles Triton kernels for GPUs that need not be present: `python -m retrv_kernels.aot`."""
