"""A convolutional vision tower, for models that are trained from scratch on a CPU.

It has the interface of a Qwen2.5-VL tower: it takes the processor's patches, and its last map has
one row for each merge of patches, so positions, prompts and caches do not know the difference. From
a million pictures it learns more than a transformer of its cost (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import prod

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel


class ConvTowerConfig(PretrainedConfig):
    """Shape of a convolutional tower.

    Args:
        widths: channels at each scale; every scale halves the sides. The last scale has a row for
            ``patch_size * spatial_merge_size`` pixels, so there are ``log2`` of that many scales.
        blocks: residual blocks at each scale.
        narrow: whether the blocks of the last scale go through half the channels.
        out_hidden_size: width of the rows, the language model's.
        patch_size, spatial_merge_size: pixels of the processor's patches, and patches along the
            side of a row.
    """

    model_type = "retrv_r1_conv_tower"

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256),
        blocks: Sequence[int] = (0, 1, 2, 3),
        narrow: bool = True,
        out_hidden_size: int = 256,
        patch_size: int = 8,
        spatial_merge_size: int = 2,
        **kwargs: object,
    ) -> None:
        self.widths, self.blocks, self.narrow = list(widths), list(blocks), narrow
        self.out_hidden_size = out_hidden_size
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        # What every vision tower's config has; the cost of a patch is estimated from them.
        self.in_channels, self.temporal_patch_size = 3, 1
        self.hidden_size = self.intermediate_size = max(self.widths)
        if len(self.widths) != len(self.blocks):
            raise ValueError(f"{len(self.widths)} widths need as many blocks")
        if 2 ** len(self.widths) != patch_size * spatial_merge_size:
            raise ValueError(
                f"{len(self.widths)} scales make rows of {2 ** len(self.widths)} pixels, but a "
                f"patch of {patch_size} merged by {spatial_merge_size} has another size"
            )
        super().__init__(**kwargs)


class _Block(nn.Module):
    """A residual block of two convolutions, or of three through half the channels."""

    def __init__(self, width: int, narrow: bool) -> None:
        super().__init__()
        inner = width // 2 if narrow else width
        sizes = [1, 3, 1] if narrow else [3, 3]
        widths = [width, *[inner] * (len(sizes) - 1), width]
        layers: list[nn.Module] = []
        for size, before, after in zip(sizes, widths[:-1], widths[1:], strict=True):
            layers += [*_convolution(before, after, size), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


def _convolution(before: int, after: int, size: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, size, stride, size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(after)]


class ConvTower(PreTrainedModel):
    """Pictures to rows; each picture alone, of any size whose sides are whole rows."""

    config_class = ConvTowerConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ConvTowerConfig) -> None:
        super().__init__(config)
        self.spatial_merge_size, self.patch_size = config.spatial_merge_size, config.patch_size
        layers: list[nn.Module] = []
        before = config.in_channels
        last = len(config.widths) - 1
        for scale, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            layers += [*_convolution(before, width, 3, 2), nn.ReLU()]
            layers += [_Block(width, config.narrow and scale == last) for _ in range(blocks)]
            before = width
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(before, config.out_hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initializes for residual branches that begin at zero; uses functions of ``nn.init``."""
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            nn.init.zeros_(module.running_mean)  # type: ignore[arg-type]
            nn.init.ones_(module.running_var)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, _Block):
            nn.init.zeros_(module.layers[-1].weight)  # type: ignore[arg-type]

    @property
    def spatial_merge_unit(self) -> int:
        """Patches of one row."""
        return self.spatial_merge_size**2

    def rows(self, pictures: Tensor) -> Tensor:
        """Rows of pictures of one size: ``[b, 3, h, w]``, normalized → ``[b, rows, d]``."""
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        return self.out(self.layers(pictures).flatten(2).transpose(1, 2))

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Rows of packed pictures, ``[v, d]``.

        Args:
            pixel_values: flattened patches in the processor's order, ``[p, patch_dim]``.
            image_grid_thw: patch grid (t, h, w) of each picture, ``[i, 3]``, preferably on the CPU.
        """
        grids = [tuple(grid) for grid in image_grid_thw.tolist()]
        runs = [(grid, len(list(same))) for grid, same in groupby(grids)]
        parts = pixel_values.split([prod(grid) * count for grid, count in runs])
        rows = [
            self.rows(self._pictures(part, grid, count)).flatten(0, 1)
            for part, (grid, count) in zip(parts, runs, strict=True)
        ]
        return torch.cat(rows)

    def _pictures(self, patches: Tensor, grid: tuple[int, ...], count: int) -> Tensor:
        """Pictures ``[count, 3, h, w]`` from their patches, the inverse of the processor."""
        frames, height, width = grid
        if frames != 1:
            raise ValueError(f"a convolutional tower reads pictures, not {frames} frames")
        merge, patch = self.spatial_merge_size, self.patch_size
        shape = (count, height // merge, width // merge, merge, merge, 3, patch, patch)
        x = patches.view(shape).permute(0, 5, 1, 3, 6, 2, 4, 7)
        return x.reshape(count, 3, height * patch, width * patch)


AutoConfig.register(ConvTowerConfig.model_type, ConvTowerConfig)
