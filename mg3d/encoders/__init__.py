"""Volume encoders behind one contract, and the table of them.

A new encoder is one file and one row of `ENCODERS`; the tests are parametrised over the table.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mg3d.types import Pyramid

THIN_WINDOW = 4  # cells a side: what the grids of the small scales divide into


class Encoder(nn.Module, ABC):
    """Volume in, pyramid of feature maps out.

    `widths[i]` and `strides[i]` are the channels and the stride (voxels per cell) of level i, fine to coarse. Any input
    size of at least one cell is allowed; a level then has ceil(size / stride) cells a side.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    recompute: bool | None = None  # True: inner tensors are dropped and computed again (gradient checkpointing)

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


def _swin_b(shrink: int, shape: tuple[int, int, int]) -> Encoder:
    return _thin_swin(48, shrink)


def _swin_l(shrink: int, shape: tuple[int, int, int]) -> Encoder:
    return _thin_swin(96, shrink)


def _thin_swin(feature: int, shrink: int) -> Encoder:
    """A Swin, thinner by `shrink`. The time of a thin one goes with heads and windows, so these shrink too."""
    from mg3d.encoders.swin import Swin

    return Swin(feature=narrow(feature, shrink), heads=max(1, 3 // shrink), window=7 if shrink == 1 else THIN_WINDOW)


def _unet(shrink: int, shape: tuple[int, int, int]) -> Encoder:
    from mg3d.encoders.unet import UNet

    return UNet(feature=narrow(48, shrink))


def _vit_b(shrink: int, shape: tuple[int, int, int]) -> Encoder:
    from mg3d.encoders.vit import ViT

    return ViT(width=narrow(768, shrink), shape=shape)


def narrow(width: int, shrink: int) -> int:
    """`width / shrink`. Raises ValueError when it does not divide."""
    if shrink < 1 or width % shrink:
        raise ValueError(f"shrink={shrink} does not divide the width {width}")
    return width // shrink


ENCODERS: dict[str, Callable[[int, tuple[int, int, int]], Encoder]] = {
    "swin_b": _swin_b,  # the paper's main encoder: 8.06 M parameters, tokens of 32 voxels a side, 768 wide
    "swin_l": _swin_l,  # twice as wide: 31.6 M, tokens 1536 wide
    "unet": _unet,  # Models Genesis' encoder, widened: 15.8 M, tokens as swin_b
    "vit_b": _vit_b,  # 12 layers: 89 M, tokens of 16 voxels a side, 768 wide
}


def build(
    name: str, *, shrink: int = 1, shape: tuple[int, int, int] = (128, 96, 128), recompute: bool = False
) -> Encoder:
    """A fresh encoder of the table, every width divided by `shrink` (the demo's encoders are thin).

    `shape` (voxels) matters to `vit_b` alone, whose position embeddings are learned at that size; every encoder takes
    any size. Raises ValueError for an unknown name, for a `shrink` that widths or heads cannot be divided by, and for
    `recompute` where the encoder does not offer it.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown encoder {name!r}; there are {', '.join(ENCODERS)}")
    encoder = ENCODERS[name](shrink, shape)
    if recompute:
        if encoder.recompute is None:
            raise ValueError(f"recompute: {name} does not offer it; take swin_b or swin_l, or a smaller batch")
        encoder.recompute = True
    return encoder
