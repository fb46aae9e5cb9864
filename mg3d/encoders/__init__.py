"""Volume encoders behind one contract, and the table of them.

A new encoder is one file and one row of `ENCODERS`; the tests are parametrised over the table.
"""

from abc import ABC, abstractmethod

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mg3d.types import Pyramid


class Encoder(nn.Module, ABC):
    """Volume in, pyramid of feature maps out.

    `widths[i]` and `strides[i]` are the channels and the stride (voxels per cell) of level i, fine to coarse. Any input
    size of at least one cell is allowed; a level then has ceil(size / stride) cells a side.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]

    @abstractmethod
    def forward(self, volume: Float[Tensor, "B 1 D H W"], mask: Bool[Tensor, "B d h w"] | None = None) -> Pyramid:
        """Encode a volume; where `mask` is True the voxels of that cell are hidden (zeroed) first."""


def voxels(mask: Bool[Tensor, "B d h w"], size: tuple[int, int, int]) -> Bool[Tensor, "B 1 D H W"]:
    """Spread the cells of a mask over the voxels of a volume of `size` (nearest; exact where sizes divide)."""
    return F.interpolate(mask[:, None].float(), size=size, mode="nearest") > 0.5


def hide(volume: Float[Tensor, "B 1 D H W"], mask: Bool[Tensor, "B d h w"] | None) -> Float[Tensor, "B 1 D H W"]:
    """The volume with its masked cells set to zero, as the paper masks: in voxel space, without a mask token."""
    if mask is None:
        return volume
    d, h, w = volume.shape[2:]
    return volume.masked_fill(voxels(mask, (d, h, w)), 0)
