"""The encoder half of the 3-D UNet of Models Genesis, widened as in MG-3D's UNet.

Departs from the released model: its batch normalisation always used the statistics of the current batch. At one volume
a device, as it was trained, that is instance normalisation; we use that, so that a volume's features never depend on
what else is in the batch, and training can resume exactly. The names of weights and biases stay (`bn1`); running
statistics in a released file are not needed.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mg3d.encoders import Encoder, hide
from mg3d.types import Pyramid

STAGES = (64, 128, 256, 512)  # the released names of the stages, from a model two thirds as wide


class Convolution(nn.Module):
    """3x3x3 convolution, instance normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, kernel_size=3, padding=1)
        self.bn1 = nn.InstanceNorm3d(outputs, affine=True)

    def forward(self, x: Float[Tensor, "B E D H W"]) -> Float[Tensor, "B F D H W"]:
        """Same grid, new width."""
        return F.relu(self.bn1(self.conv1(x)))


class Down(nn.Module):
    """Two convolutions: inputs -> half the outputs -> outputs (but never narrower than the inputs)."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.ops = nn.Sequential(Convolution(inputs, middle), Convolution(middle, outputs))

    def forward(self, x: Float[Tensor, "B E D H W"]) -> Float[Tensor, "B F D H W"]:
        """Same grid, new width."""
        return self.ops(x)


class UNet(Encoder):
    """Maps at strides 1, 2, 4, 8, and the last one averaged to stride 32: the token grid of Swin.

    Widths feature * (2, 4, 8, 16, 16); 15.8 M parameters at feature 48. Grids round up; border cells pool what exists.
    """

    def __init__(self, feature: int = 48) -> None:
        super().__init__()
        if feature < 1:
            raise ValueError(f"feature={feature} must be at least 1")
        self.widths = tuple(feature * k for k in (2, 4, 8, 16, 16))
        self.strides = (1, 2, 4, 8, 32)
        for i, name in enumerate(STAGES):
            inputs = feature * 2**i if i else 1
            self.add_module(f"down_tr{name}", Down(inputs, feature * 2**i, feature * 2 ** (i + 1)))

    def forward(self, volume: Float[Tensor, "B 1 D H W"], mask: Bool[Tensor, "B d h w"] | None = None) -> Pyramid:
        """Encode a volume; where `mask` is True the voxels of that cell are hidden (zeroed) first.

        Raises ValueError for volumes of at most 8 voxels a side: nothing is left to normalise over.
        """
        if max(volume.shape[2:]) <= self.strides[3]:
            raise ValueError(f"a volume of {tuple(volume.shape[2:])} voxels is too small: one side must exceed 8")
        x, levels = hide(volume, mask), []
        for name in STAGES:
            x = F.max_pool3d(x, 2, ceil_mode=True) if levels else x
            x = self.get_submodule(f"down_tr{name}")(x)
            levels.append(x)
        d, h, w = (min(4, n) for n in x.shape[2:])
        levels.append(F.avg_pool3d(x, (d, h, w), stride=4, ceil_mode=True))
        return Pyramid(tuple(levels))
