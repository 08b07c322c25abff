"""What content tokens say of an answer before a language model has compared the candidates.

A small language model copies the label of one candidate well and says little of the others, whose
order the content tokens know. Two numbers of each candidate are added to its label's logit, with
weights that are fitted on validation lists (:class:`~retrv_r1.model.calibration.ModeCalibration`):

    likeness = cos(t_q, t_c), less its mean over the candidates
    recall   = log(ε + p(t_q) · p(t_c)),    p(t) = softmax(t·P / (|t| τ))

P are the prototypes of the compressor's memory: recall is high where query and candidate remind it
of the same thing, however that is drawn or called. Both numbers are ours, and not the paper's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retrv_r1.model.icm import Contents

_FLOOR = 1e-3
"""The ε under recall's logarithm."""


@torch.no_grad()
def resemblance(contents: Contents) -> Tensor:
    """What the content tokens of a query, the first, and of its candidates say of the answer.

    Returns:
        float32 ``[k, 2]``: likeness and recall, which is 0 without a memory.
    """
    normed = nn.functional.normalize(contents.pooled.float(), dim=-1)
    likeness = normed[1:] @ normed[0]
    # Pictures are more alike than a picture and its name, whatever they show.
    likeness = likeness - likeness.mean()
    recall = torch.zeros_like(likeness)
    if contents.reminds is not None:
        reminds = contents.reminds.float()
        recall = (reminds[1:] @ reminds[0] + _FLOOR).log()
    return torch.stack([likeness, recall], -1)
