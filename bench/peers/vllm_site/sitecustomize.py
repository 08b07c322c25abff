"""Makes torchvision importable in every process of vLLM.

The published torchvision has no operators beside the PyTorch that vLLM's CPU build wants, and asks
for two of them at import; vLLM needs neither.
"""

import importlib.abc
import sys


class _Declares(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for op in ("nms", "qnms"):
                self.library.define(
                    f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            # Or they would go with it.
            sys.torchvision_operators = self.library  # type: ignore[attr-defined]


sys.meta_path.insert(0, _Declares())
