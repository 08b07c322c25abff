"""Triton kernels compiled for GPUs that need not be there: `python -m retrv_kernels.aot`."""
