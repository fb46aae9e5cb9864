"""3-D Vision Transformer, ViT-B by default, with the tensor names of MONAI's ViT.

Pre-norm blocks, learned position embeddings, no class token: the pooled feature is the mean over the tokens.
"""

from math import ceil

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mg3d.encoders import Encoder, hide
from mg3d.encoders.perceptron import Perceptron
from mg3d.types import Pyramid

PATCH = 16  # voxels a side
LAYERS = 12
TAPS = (3, 6, 9, 12)  # layers whose tokens make the pyramid, as UNETR takes them
HEADS = 12


class PatchEmbedding(nn.Module):
    """16x16x16 voxels -> a token, plus the embedding of its position."""

    def __init__(self, width: int, grid: tuple[int, int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.patch_embeddings = nn.Conv3d(1, width, kernel_size=PATCH, stride=PATCH)
        self.position_embeddings = nn.Parameter(torch.empty(1, grid[0] * grid[1] * grid[2], width))
        nn.init.trunc_normal_(self.position_embeddings, std=0.02)

    def positions(self, grid: tuple[int, int, int]) -> Float[Tensor, "1 N E"]:
        """The learned embeddings, resampled trilinearly when the input's grid is another one."""
        learned = self.position_embeddings
        if grid == self.grid:
            return learned
        cube = learned.transpose(1, 2).unflatten(2, self.grid)
        return F.interpolate(cube, size=grid, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)

    def forward(self, volume: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B N E"]:
        """Tokens with d slowest; axes that 16 does not divide are padded with zeros at their end."""
        d, h, w = (-n % PATCH for n in volume.shape[2:])
        volume = F.pad(volume, (0, w, 0, h, 0, d))
        gd, gh, gw = (n // PATCH for n in volume.shape[2:])
        x = volume[:, 0].unflatten(3, (gw, PATCH)).unflatten(2, (gh, PATCH)).unflatten(1, (gd, PATCH))
        x = x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)
        tokens = F.linear(x, self.patch_embeddings.weight.flatten(1), self.patch_embeddings.bias)
        return tokens + self.positions((gd, gh, gw))


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """Mix the tokens of each volume."""
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention and perceptron, each with LayerNorm before it and a residual around it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Perceptron(width)

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """One Transformer layer."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(Encoder):
    """Four maps, all at stride 16 and `width`: the tokens after layers 3, 6, 9 and, normalised, 12.

    `shape` (voxels) is the input that the position embeddings are made for; any other size works too. Raises ValueError
    when `width` does not split into 12 heads.
    """

    def __init__(self, width: int = 768, *, shape: tuple[int, int, int] = (128, 96, 128)) -> None:
        super().__init__()
        if width < HEADS or width % HEADS:
            raise ValueError(f"width={width} does not split into {HEADS} heads; use a multiple of {HEADS}")
        self.widths = (width,) * len(TAPS)
        self.strides = (PATCH,) * len(TAPS)
        d, h, w = (ceil(n / PATCH) for n in shape)
        self.patch_embedding = PatchEmbedding(width, (d, h, w))
        self.blocks = nn.ModuleList(Block(width) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width)

    def forward(self, volume: Float[Tensor, "B 1 D H W"], mask: Bool[Tensor, "B d h w"] | None = None) -> Pyramid:
        """Encode a volume; where `mask` is True the voxels of that cell are hidden (zeroed) first."""
        grid = [ceil(n / PATCH) for n in volume.shape[2:]]
        x, taps = self.patch_embedding(hide(volume, mask)), []
        for layer, block in enumerate(self.blocks, 1):
            x = block(x)
            if layer in TAPS:
                taps.append(self.norm(x) if layer == LAYERS else x)
        return Pyramid(tuple(t.transpose(1, 2).unflatten(2, grid) for t in taps))
