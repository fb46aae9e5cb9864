"""What turns features back into a volume, into words, and into a map of labels."""

from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mg3d.types import Pyramid


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


def patches(volume: Float[Tensor, "B 1 D H W"], side: int) -> Float[Tensor, "B N voxels"]:
    """Cut into cubes of `side` voxels, which must divide the size; d slowest, as tokens are."""
    d, h, w = (n // side for n in volume.shape[2:])
    x = volume[:, 0].unflatten(3, (w, side)).unflatten(2, (h, side)).unflatten(1, (d, side))
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)


def sine_positions(grid: tuple[int, int, int], width: int) -> Float[Tensor, "N E"]:
    """Fixed positions of the cells of a grid, d slowest: a sixth of the width for the sine and the cosine of each axis.

    Frequencies 10000^-(i / (width / 6)). Raises ValueError unless 6 divides the width.
    """
    if width % 6:
        raise ValueError(f"width={width}: positions on three axes need a multiple of 6")
    frequency = 10_000 ** -(torch.arange(width // 6) / (width // 6))
    axes = torch.cartesian_prod(*(torch.arange(n) for n in grid)).view(-1, 3, 1) * frequency
    return torch.cat([axes.sin(), axes.cos()], -1).flatten(1)


@final
class PatchDecoder(nn.Module):
    """The decoder of a masked autoencoder: tokens, a learned one in each hidden place -> the voxels of every patch.

    Linear to `width`, sine positions, pre-norm Transformer layers, LayerNorm, Linear to side^3 voxels (He et al., MAE,
    CVPR 2022). A head has 32 channels: 12 heads at a width of 384. Raises ValueError unless 6 and the number of heads
    divide the width.
    """

    def __init__(self, inputs: int, *, width: int, side: int, layers: int = 8):
        super().__init__()
        heads = max(1, width // 32)
        if width % heads or width % 6:
            raise ValueError(f"width={width}: take a multiple of 96, or of 6 below 64")
        self.enter = nn.Linear(inputs, width)
        self.hidden = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.hidden, std=0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.leave = nn.Linear(width, side**3)

    def forward(
        self, tokens: Float[Tensor, "B N E"], hidden: Bool[Tensor, "B N"], *, grid: tuple[int, int, int]
    ) -> Float[Tensor, "B N voxels"]:
        """Voxels of all patches, d slowest; what tokens hold in hidden places is not looked at."""
        x = self.enter(tokens)
        x = torch.where(hidden[..., None], self.hidden.to(x.dtype), x)
        x = x + sine_positions(grid, x.shape[-1]).to(x)
        for layer in self.layers:
            x = layer(x)
        return self.leave(self.norm(x))


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


@final
class ResidualBlock(nn.Module):
    """Two convolutions of 3^3, each with instance norm, leaky ReLU between them and after the sum with the input."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.conv1 = nn.Conv3d(width, out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv3d(out, out, 3, padding=1, bias=False)
        self.conv3 = nn.Conv3d(width, out, 1, bias=False) if width != out else None

    def forward(self, x: Float[Tensor, "B E D H W"]) -> Float[Tensor, "B F D H W"]:
        """Same grid, new width."""
        y = _norm(self.conv2(F.leaky_relu(_norm(self.conv1(x)), 0.01)))
        return F.leaky_relu(y + (x if self.conv3 is None else _norm(self.conv3(x))), 0.01)


def _norm(x: Tensor) -> Tensor:
    """Instance norm without weights, as LayerNorm over a channel's voxels, which takes a single voxel too."""
    return F.layer_norm(x, x.shape[2:])


@final
class Up(nn.Module):
    """A coarser map to `factor` times its size, beside a skip connection, and both mixed."""

    def __init__(self, width: int, out: int, *, factor: int):
        super().__init__()
        self.transposed = nn.ConvTranspose3d(width, out, factor, stride=factor, bias=False)
        self.mix = ResidualBlock(2 * out, out)

    def forward(self, x: Float[Tensor, "B E d h w"], skip: Float[Tensor, "B F D H W"]) -> Float[Tensor, "B F D H W"]:
        """On the grid of the skip; what lies beyond it is cut off."""
        return self.mix(torch.cat([_cut(self.transposed(x), skip.shape[2:]), skip], 1))


def _cut(x: Tensor, size: Sequence[int]) -> Tensor:
    d, h, w = size
    return x[:, :, :d, :h, :w]


@final
class UNetDecoder(nn.Module):
    """Logits [B, classes, D, H, W] of a volume and its pyramid, for an encoder of these `widths` and `strides`.

    The decoders of SwinUNETR and UNETR are one: from the coarsest map on, enlarge, set the skip connection of the next
    finer stride beside it, mix both. They differ in where the skips come from. The levels of Swin and UNet have strides
    of their own. Those of ViT are all at 16: from the deepest up, each is brought to half the stride of the one below
    (8, 4, 2) by transposed convolutions, as in UNETR. So a level is taken to the smaller of its own stride and half
    that of the next coarser one. Where that leaves no skip of stride 1, the volume makes it.

    Channels are `width` at strides 1 and 2 and double from there with the stride; by default a sixteenth of the
    coarsest level's, 48 for Swin-B. With Swin this is SwinUNETR's decoder, operation for operation. Raises ValueError
    where strides are no powers of two, or have more levels than halvings.
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[int], *, classes: int, width: int | None = None):
        super().__init__()
        base = max(1, widths[-1] // 16) if width is None else width
        self.strides = taken = targets(strides)
        channels = [base * max(1, stride // 2) for stride in taken]
        self.levels = nn.ModuleList(
            _level(inside, out, factor=own // stride)
            for inside, out, own, stride in zip(widths, channels, strides, taken, strict=True)
        )
        if len(widths) > 1 and (widths[-2], strides[-2]) == (channels[-2], taken[-2]):
            self.levels[-2] = nn.Identity()  # as in SwinUNETR, which takes this one as it is
        self.stem = ResidualBlock(1, base) if taken[0] > 1 else None
        fine = [(1, base)] if self.stem is not None else []
        steps = [*fine, *zip(taken, channels, strict=True)]
        self.ups = nn.ModuleList(Up(e, out, factor=t // s) for (s, out), (t, e) in pairwise(steps))
        self.logits = nn.Conv3d(base if self.stem is not None else channels[0], classes, 1)

    def forward(self, volume: Float[Tensor, "B 1 D H W"], pyramid: Pyramid) -> Float[Tensor, "B classes D H W"]:
        """From coarse to fine. What the encoder padded at the far sides is cut off, so that any size works."""
        skips = [] if self.stem is None else [self.stem(volume)]
        for level, x, stride in zip(self.levels, pyramid.levels, self.strides, strict=True):
            skips.append(_cut(level(x), [-(-n // stride) for n in volume.shape[2:]]))
        x = skips.pop()
        for up in reversed(self.ups):
            x = up(x, skips.pop())
        return self.logits(x)


def targets(strides: Sequence[int]) -> list[int]:
    """The stride that each level is taken to, fine to coarse: (16, 16, 16, 16) gives 2, 4, 8, 16."""
    if not strides or any(s < 1 or s & (s - 1) for s in strides):
        raise ValueError(f"strides={tuple(strides)}: powers of two are needed")
    taken = [strides[-1]]
    for stride in reversed(strides[:-1]):
        taken.insert(0, min(stride, taken[0] // 2))
    if taken[0] < 1:
        raise ValueError(f"strides={tuple(strides)}: more levels than halvings down to stride 1")
    return taken


def _level(width: int, out: int, *, factor: int) -> nn.Module:
    """What brings a level to its stride and width: a residual block, or UNETR's doublings, up to `factor` times."""
    if factor == 1:
        return ResidualBlock(width, out)
    blocks: list[nn.Module] = [nn.ConvTranspose3d(width, out, 2, stride=2, bias=False)]
    for _ in range(factor.bit_length() - 2):
        blocks += [nn.ConvTranspose3d(out, out, 2, stride=2, bias=False), ResidualBlock(out, out)]
    return nn.Sequential(*blocks)
