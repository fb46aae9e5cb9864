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
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mg3d.contrast import nt_xent
from mg3d.encoders import Encoder, hide, voxels
from mg3d.losses import in_float32
from mg3d.objectives import Objective, TextEncoder
from mg3d.two_views import Reading, TwoViews, check_reading
from mg3d.types import Batch, Losses
from mg3d.views import SWAPS, block_mask, check_shares, pick, swap

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
        check_reading(self.reads)
        check_shares(self, "mask_ratio")


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
        self.two = TwoViews(encoder, shape=shape, share=config.crop, features=config.features, reads=config.reads)

    def forward(self, batch: Batch) -> Losses:
        """The five terms, weighted."""
        c = self.config
        clean, mask, turns, which = self.views(batch)
        pyramid = self.encoder(hide(clean, mask))
        said, contrasted = self.two.read(pyramid)
        pair = [self.gather(z) for z in contrasted.chunk(2)]
        terms = {"contrast": self.once(nt_xent, *pair, tau=c.tau)}
        if not self.only_gathers:
            d, h, w = clean.shape[2:]
            hidden, target = voxels(mask, (d, h, w)), normalised(clean)
            plain = self.two.rebuilt(pyramid, (d, h, w))
            back = swap(self.two.rebuilt(self.encoder(swap(hide(clean, mask), which)), (d, h, w)), which)
            terms["rotation"] = F.cross_entropy(said, turns)
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
        clean, turns, seeds = self.two.cut(batch, count=c.crops)
        d, h, w = clean.shape[2:]
        mask = block_mask(seeds, (d, h, w), cube=c.mask_cube, ratio=c.mask_ratio)
        return clean, mask, turns, pick(seeds, 2, stream=SWAPS)

    @torch.no_grad()
    def rotation_accuracy(self, batch: Batch) -> float:
        """Share of the masked views whose rotation is told right; by chance a fourth."""
        clean, mask, turns, _ = self.views(batch)
        said, _ = self.two.read(self.encoder(hide(clean, mask)))
        return (said.argmax(1) == turns).float().mean().item()


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
