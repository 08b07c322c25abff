"""Operations that exist only because of Retrv-R1; `retrv_kernels.ops` is the public surface."""
