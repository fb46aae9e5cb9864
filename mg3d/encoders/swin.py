"""Swin Transformer for volumes, tensor for tensor the encoder of SwinUNETR and of MG-3D's Swin-B and Swin-L.

Names and shapes of all 126 tensors are MONAI's (`SwinUNETR.swinViT`), so published weights load strictly; the attention
is our own (`windows`): equal results in a ninth of MONAI's memory and in less time (`bench/swin.py` measures both).

Departs from MONAI 1.6: patches are merged in the order of MONAI up to 1.4, which all published weights were trained
with (`MERGE`); pairs of cells that a shift made neighbours are excluded, not discouraged by -100. Departs from MONAI up
to 1.4: an odd axis is padded at its own end (there at another axis's end, which fails unless all three are odd).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mg3d.encoders import Encoder, hide
from mg3d.encoders.boxwise import Weights, boxwise
from mg3d.encoders.perceptron import Perceptron
from mg3d.encoders.windows import WINDOW, WindowAttention, kinds
from mg3d.types import Pyramid

HEADS = 3  # of the first stage, doubled by each further one
STAGES = 4
SCORES = 3 * 3 * 343**2  # attention scores in work at a time and core: 4 MB a tensor
DEPTH = 2  # blocks a stage; the second one has shifted windows
# The 2x2x2 neighbours as they are concatenated before the merging projection. Two occur twice and two never (110, 011):
# an old slip that became part of every published weight (MONAI issue 8284).
MERGE = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


def pad_even(x: Float[Tensor, "B D H W E"]) -> Float[Tensor, "B D2 H2 W2 E"]:
    """Append a cell of zeros to each odd axis."""
    d, h, w = (n % 2 for n in x.shape[1:4])
    return F.pad(x, (0, 0, 0, w, 0, h, 0, d)) if d or h or w else x


class PatchEmbedding(nn.Module):
    """2x2x2 voxels -> a cell: a strided convolution, computed as the matrix product that it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(1, width, kernel_size=2, stride=2)

    def forward(self, volume: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B d h w E"]:
        """Channels last; odd axes are padded with a zero voxel."""
        x = pad_even(volume[:, 0, ..., None])[..., 0]
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 5, 2, 4, 6)
        return F.linear(x.flatten(4), self.proj.weight.flatten(1), self.proj.bias)


class PatchMerging(nn.Module):
    """Eight neighbouring cells -> one of twice the width: LayerNorm, then a projection without bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(8 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(8 * width)

    def forward(self, x: Float[Tensor, "B D H W E"]) -> Float[Tensor, "B d h w E2"]:
        """Halve the grid (rounding up)."""
        x = pad_even(x).unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        neighbours = x.permute(2, 4, 6, 0, 1, 3, 5, 7).flatten(0, 2).unbind()  # 000, 001, 010, ... 111
        return self.reduction(self.norm(torch.cat([neighbours[4 * i + 2 * j + k] for i, j, k in MERGE], -1)))


class Block(nn.Module):
    """Window attention and perceptron, each with LayerNorm before it and a residual around it."""

    def __init__(self, width: int, heads: int, shifted: bool, window: int = WINDOW) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Perceptron(width)

    def forward(self, x: Float[Tensor, "B D H W E"]) -> Float[Tensor, "B D H W E"]:
        """One Transformer block; `shifted` moves its windows by half their side."""
        return self.by_boxes(x) if x.device.type == "cpu" else self.over_grid(x)

    def over_grid(self, x: Float[Tensor, "B D H W E"]) -> Float[Tensor, "B D H W E"]:
        """All boxes at once, as GPUs like it."""
        x = x + self.attn(self.norm1(x), self.shifted)
        return x + self.mlp(self.norm2(x))

    def by_boxes(self, x: Float[Tensor, "B D H W E"]) -> Float[Tensor, "B D H W E"]:
        """The same, a few boxes at a time."""
        b, d, h, w, _ = x.shape
        a, p = self.attn, self.mlp
        boxes = kinds((d, h, w), self.shifted, a.window, x.device)
        volumes = d * h * w * torch.arange(b).view(-1, 1, 1)  # the first row of each volume
        pieces = [
            (rows, i)
            for i, kind in enumerate(boxes)
            for rows in (volumes + kind.rows)
            .flatten(0, 1)
            .split(max(1, SCORES // (a.heads * len(kind.real) * kind.keys)))
        ]
        layers = (self.norm1, a.qkv, a.proj, self.norm2, p.linear1, p.linear2)
        weights = Weights(*(t for layer in layers for t in (layer.weight, layer.bias)))
        return boxwise(x.flatten(0, 3), boxes, pieces, a.bias(), weights).view_as(x)


class Stage(nn.Module):
    """Two blocks, windows plain and shifted, then a merge."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, i % 2 == 1, window) for i in range(DEPTH))
        self.downsample = PatchMerging(width)

    def forward(self, x: Float[Tensor, "B D H W E"], recompute: bool = False) -> Float[Tensor, "B d h w E2"]:
        """With `recompute`, a block's inner tensors are dropped and computed again in the backward pass."""
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return self.downsample(x)


class Swin(Encoder):
    """Five maps at strides 2, 4, 8, 16, 32 and widths feature * (1, 2, 4, 8, 16), each normalised over its channels.

    `feature` is 48 for Swin-B (8.06 M parameters) and 96 for Swin-L (31.6 M). The stages have `heads` * (1, 2, 4, 8)
    heads; a window has `window` cells a side. `recompute` trades a third more time for a fraction of the memory. Raises
    ValueError when the widths cannot be split into the heads.
    """

    def __init__(self, feature: int = 48, *, heads: int = HEADS, window: int = WINDOW, recompute: bool = False) -> None:
        super().__init__()
        if feature < heads or feature % heads:
            raise ValueError(f"feature={feature} does not split into {heads} heads; use a multiple of {heads}")
        self.recompute = recompute
        self.widths = tuple(feature * 2**i for i in range(5))
        self.strides = (2, 4, 8, 16, 32)
        self.patch_embed = PatchEmbedding(feature)
        for i in range(STAGES):  # MONAI's names: layers1.0 ... layers4.0
            self.add_module(f"layers{i + 1}", nn.ModuleList([Stage(feature * 2**i, heads * 2**i, window)]))

    def forward(self, volume: Float[Tensor, "B 1 D H W"], mask: Bool[Tensor, "B d h w"] | None = None) -> Pyramid:
        """Encode a volume; where `mask` is True the voxels of that cell are hidden (zeroed) first."""
        x = self.patch_embed(hide(volume, mask))
        maps = [x]
        for i in range(STAGES):
            stage = self.get_submodule(f"layers{i + 1}.0")
            x = stage(x, recompute=bool(self.recompute) and torch.is_grad_enabled())
            maps.append(x)
        return Pyramid(tuple(F.layer_norm(m, m.shape[-1:]).movedim(-1, 1) for m in maps))
