"""The compiled module (csrc/bindings.cpp). Internal: use `retrv_kernels.ops`."""

def isas() -> list[int]: ...
def row_inverse_rms(
    isa: int,
    features: int,
    dtype: int,
    rows: int,
    width: int,
    eps: float,
    out: int,
    threads: int,
    /,
) -> None: ...
