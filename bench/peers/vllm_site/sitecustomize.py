"""Makes torchvision importable in every process of vLLM.

With the PyTorch that vLLM's CPU build needs, the published torchvision cannot load its operators,
and its import fails without two of them. vLLM uses neither.
"""

import importlib.abc
import sys


class _DeclareOperators(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for op in ("nms", "qnms"):
                self.library.define(
                    f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            # Kept, because the operators are removed with the library.
            sys.torchvision_operators = self.library  # type: ignore[attr-defined]


sys.meta_path.insert(0, _DeclareOperators())
