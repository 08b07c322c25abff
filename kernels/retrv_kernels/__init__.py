"""Operations that are specific to Retrv-R1. The public functions are in `retrv_kernels.ops`."""
