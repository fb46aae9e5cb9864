"""SwinMM: masked volumes seen from several sides must agree (Wang et al., MICCAI 2023).

    L = CE(rotation) + NT-Xent(z, z') at T = 0.5 + M(r_1, x) + M(r_2, x')              views 1 and 2, masked
      + M(r_3, x) + M(r_4, x')                                                          3 and 4: their axes swapped
      + M(r_3, r_1)                                                                     what two sides say, mutually
    M(r, x) = mean over all voxels of hidden |r - x|^2, divided by the hidden share

Two cubes of 64 of the volume's 128 voxels; of each two views x, x', turned by 0, 90, 180 or 270 degrees in their last
two axes, and half of their blocks of 16^3 voxels set to zero. Views 3 and 4 are the masked ones with two axes exchanged
(W with H or with D, at random); r_3 and r_4 are put back. A target has mean 0 and variance 1 over its cube. M of two
views is the mean of both. As in SwinUNETR's pre-training the rotation is read off the first token, z (512) off the
second. Nothing stops the gradient of the mutual term.

Departs from the original: `mask_ratio` is the hidden share; its helper hides the rest of it, the same at 0.5. The last
two axes are those of an axial slice. Cubes are of two tokens a side at least. The optional mutual term of r_4 is left
out. Encoders of local tokens may rather be read by their mean: variant "pooled".
"""

from dataclasses import dataclass, replace
from typing import Literal, final, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mg3d.contrast import nt_xent
from mg3d.decoders import VoxelDecoder
from mg3d.encoders import Encoder, hide, voxels
from mg3d.losses import in_float32
from mg3d.objectives import Objective, TextEncoder
from mg3d.types import Batch, Losses, Pyramid
from mg3d.views import SWAPS, TURNS, block_mask, branch, crops, cube_side, pick, swap, turn

Reading = Literal["tokens", "mean"]
TERMS = ("rotation", "contrast", "rebuilt", "swapped", "mutual")


@dataclass(frozen=True)
class SwinMMConfig:
    """Weights and sizes. ValueError for a reading that does not exist, and for a share that is none."""

    rotation: float = 1.0
    contrast: float = 1.0
    rebuilt: float = 1.0
    swapped: float = 1.0
    mutual: float = 1.0
    tau: float = 0.5
    features: int = 512  # that are contrasted
    crop: float = 0.5  # side, of the longest side of a volume: 64 of 128 voxels
    crops: int = 2
    mask_cube: int = 16  # voxels a side
    mask_ratio: float = 0.5  # hidden
    reads: Reading = "tokens"

    def __post_init__(self) -> None:
        if self.reads not in get_args(Reading):
            raise ValueError(f"reads={self.reads!r}; valid: {', '.join(get_args(Reading))}")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio} is the hidden share: take a number between 0 and 1")


PAPER = SwinMMConfig()
VARIANTS = {"paper": PAPER, "pooled": replace(PAPER, reads="mean")}


@final
class SwinMM(Objective):
    """Reads no reports; works with every encoder whose coarsest stride is a power of two.

    Raises ValueError when volumes of `shape` are too small for cubes of two tokens a side.
    """

    def __init__(
        self,
        encoder: Encoder,
        text: TextEncoder | None = None,
        config: SwinMMConfig = PAPER,
        *,
        shape: tuple[int, int, int],
    ):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.least = 2 * encoder.strides[-1]  # of a single token the decoder's norm leaves nothing
        if cube_side(shape, config.crop, self.least) <= encoder.strides[-1]:
            raise ValueError(
                f"shape={shape}: its cubes are one token at stride {encoder.strides[-1]}, take larger volumes"
            )
        width = encoder.widths[-1]
        self.turns_of = nn.Linear(width, 4)
        self.contrasted = nn.Linear(width, config.features)
        self.decoder = VoxelDecoder(width, stride=encoder.strides[-1])

    def forward(self, batch: Batch) -> Losses:
        """The five terms, weighted."""
        c = self.config
        clean, mask, turns, which = self.views(batch)
        pyramid = self.encoder(hide(clean, mask))
        first, second = self.read(pyramid)
        pair = [self.gather(z) for z in self.contrasted(second).chunk(2)]
        terms = {"contrast": self.once(nt_xent, *pair, tau=c.tau)}
        if not self.only_gathers:
            d, h, w = clean.shape[2:]
            hidden, target = voxels(mask, (d, h, w)), normalised(clean)
            plain = self.decoder(pyramid.tokens, grid=pyramid.grid, size=(d, h, w))
            turned = self.encoder(swap(hide(clean, mask), which))
            back = swap(self.decoder(turned.tokens, grid=turned.grid, size=(d, h, w)), which)
            terms["rotation"] = F.cross_entropy(self.turns_of(first), turns)
            terms["rebuilt"] = hidden_error(plain, target, hidden, c.mask_ratio)
            terms["swapped"] = hidden_error(back, target, hidden, c.mask_ratio)
            one, its, seen = (x.chunk(2)[0] for x in (back, plain, hidden))
            terms["mutual"] = hidden_error(one, its, seen, c.mask_ratio)
        return {name: getattr(c, name) * terms[name] for name in TERMS if name in terms}

    def views(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "n 1 s s s"], Bool[Tensor, "n d h w"], Int[Tensor, "n"], Int[Tensor, "n"]]:
        """Views 1 and 2 of every cube, first all the first ones; their hidden blocks, turns, and the axes to swap."""
        c = self.config
        cubes, cube_seeds = crops(batch.volume, batch.seeds, count=c.crops, share=c.crop, least=self.least)
        d, h, w = cubes.shape[2:]
        seeds = torch.cat([branch(cube_seeds, view) for view in range(2)])
        turns = pick(seeds, 4, stream=TURNS)
        mask = block_mask(seeds, (d, h, w), cube=c.mask_cube, ratio=c.mask_ratio)
        return turn(cubes.repeat(2, 1, 1, 1, 1), turns), mask, turns, pick(seeds, 2, stream=SWAPS)

    def read(self, pyramid: Pyramid) -> tuple[Float[Tensor, "n E"], Float[Tensor, "n E"]]:
        """What the rotation and the contrasted feature are read off; of a single token both."""
        tokens = pyramid.tokens
        if self.config.reads == "mean":
            return pyramid.pooled, pyramid.pooled
        return tokens[:, 0], tokens[:, min(1, tokens.shape[1] - 1)]

    @torch.no_grad()
    def rotation_accuracy(self, batch: Batch) -> float:
        """Share of the masked views whose rotation is told right; by chance a fourth."""
        clean, mask, turns, _ = self.views(batch)
        first, _ = self.read(self.encoder(hide(clean, mask)))
        return (self.turns_of(first).argmax(1) == turns).float().mean().item()


def normalised(cubes: Float[Tensor, "n 1 s s s"]) -> Float[Tensor, "n 1 s s s"]:
    """Each with mean 0 and variance 1."""
    return F.layer_norm(cubes, cubes.shape[1:], eps=1e-6)


@in_float32
def hidden_error(
    rebuilt: Float[Tensor, "n 1 s s s"],
    target: Float[Tensor, "n 1 s s s"],
    hidden: Bool[Tensor, "n 1 s s s"],
    ratio: float,
) -> Float[Tensor, ""]:
    """M: the squared error of hidden voxels, as a mean over all voxels, divided by the hidden share."""
    return ((rebuilt - target).square() * hidden).mean() / ratio
