"""One read of the rows, spread over torch's threads."""

from __future__ import annotations

import torch
from torch import Tensor

from retrv_kernels import native


def row_inverse_rms(features: Tensor, eps: float) -> Tensor:
    features = features.contiguous()
    rows, width = features.shape
    out = torch.empty(rows, dtype=torch.float32)
    native.function("row_inverse_rms")(
        features.data_ptr(),
        native.DTYPES[features.dtype],
        rows,
        width,
        eps,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out
