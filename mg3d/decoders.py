"""What turns fused features back into a volume and into words."""

from itertools import pairwise
from typing import final

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


@final
class DoublingBlock(nn.Module):
    """Convolution of 3^3, instance norm, leaky ReLU; then twice the size, trilinear.

    The convolution has no bias, since the norm takes it away. The norm is LayerNorm over the voxels of a channel: that
    is InstanceNorm3d, but it also takes a map of a single voxel.
    """

    def __init__(self, width: int, out: int):
        super().__init__()
        self.convolution = nn.Conv3d(width, out, 3, padding=1, bias=False)

    def normed(self, x: Float[Tensor, "B E d h w"]) -> Float[Tensor, "B F d h w"]:
        """The block before it doubles the size."""
        x = self.convolution(x)
        return F.leaky_relu(F.layer_norm(x, x.shape[2:]), 0.01)

    def forward(self, x: Float[Tensor, "B E d h w"]) -> Float[Tensor, "B F D H W"]:
        """The block whole."""
        return double(self.normed(x))


def double(x: Tensor) -> Tensor:
    """Twice the size, trilinear; a constant stays that constant."""
    return F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)


@final
class VoxelDecoder(nn.Module):
    """Volume tokens -> voxels (I_REC of Eq. 2): as many doubling blocks as the stride has factors of two, then 1x1x1.

    The width is halved by each of the first four blocks: 768 -> 384, 192, 96, 48, 48 for a stride of 32. The last 1x1x1
    convolution is applied before the last doubling: both are linear and the doubling's weights add up to 1, so the
    result is the same, with one channel instead of 48 at full size. Raises ValueError unless the stride is a power of
    two from 2 on, and the width allows the halving.
    """

    def __init__(self, width: int, *, stride: int):
        super().__init__()
        blocks = stride.bit_length() - 1
        if stride < 2 or stride != 1 << blocks:
            raise ValueError(
                f"stride={stride} is no power of two from 2 on: the decoder doubles the size block by block"
            )
        widths = [width >> min(i, 4) for i in range(blocks + 1)]
        if widths[-1] < 1:
            raise ValueError(f"width={width} cannot be halved {min(blocks, 4)} times: take 16 or more")
        *first, self.last = (DoublingBlock(a, b) for a, b in pairwise(widths))
        self.first = nn.Sequential(*first)
        self.voxel = nn.Conv3d(widths[-1], 1, 1)

    def forward(
        self, tokens: Float[Tensor, "B N E"], *, grid: tuple[int, int, int], size: tuple[int, int, int]
    ) -> Float[Tensor, "B 1 D H W"]:
        """Voxels of a volume of `size`, from its tokens on `grid` (d slowest).

        An encoder pads at the far sides where the size is no multiple of the stride; what lies there is cut off.
        """
        x = self.last.normed(self.first(tokens.transpose(1, 2).unflatten(2, grid)))
        d, h, w = size
        return double(self.voxel(x))[:, :, :d, :h, :w]


@final
class ReportDecoder(nn.Module):
    """Word features -> logits over the vocabulary (p_MLM of Eq. 4): Linear, GELU, LayerNorm, Linear.

    Only the hidden words are decoded: about one in seven of the products with the vocabulary, the largest here.
    """

    def __init__(self, width: int, *, vocabulary: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, vocabulary)
        )

    def forward(self, words: Float[Tensor, "B L E"], hidden: Bool[Tensor, "B L"]) -> Float[Tensor, "M V"]:
        """Logits of the M hidden words, in order."""
        return self.layers(words[hidden])
