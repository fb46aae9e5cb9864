"""SwinUNETR's pre-training: inpainting, rotation and contrast (Tang et al., CVPR 2022).

    L = CE(rotation, both views) + NT-Xent(z, z') at T = 0.5 + L1(rebuilt, turned clean view)        weights 1, 1, 1

Two cubes of 96 of the volume's 128 voxels; of each two views, turned by 0, 90, 180 or 270 degrees in their last two
axes. A view is corrupted twice: boxes of noise, then boxes of another cube, each up to U(0, 0.3) of it. The rotation is
read off the first token of the coarsest level, the contrasted feature (512) off the second, the cube off all of them.

Departs from the original: boxes are pasted from the other cube of the same volume, not from any sample of the batch, so
that a view does not depend on what else is in the batch (nor on the number of processes). Cubes are of two tokens a
side at least, if the volume is large enough. The last two axes are those
of an axial slice. An encoder whose tokens see only their surroundings may rather be read by its mean: variant "pooled".
"""

from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mg3d.contrast import nt_xent
from mg3d.encoders import Encoder
from mg3d.objectives import Objective, TextEncoder
from mg3d.two_views import Reading, TwoViews, check_reading
from mg3d.types import Batch, Losses
from mg3d.views import NOISE_BOXES, PASTE_BOXES, boxes, gaussian

TERMS = ("rotation", "contrast", "inpainting")


@dataclass(frozen=True)
class SwinUNETRConfig:
    """Weights and sizes. ValueError for a reading that does not exist, and for fewer than two cubes."""

    rotation: float = 1.0
    contrast: float = 1.0
    inpainting: float = 1.0
    tau: float = 0.5
    features: int = 512  # that are contrasted
    crop: float = 0.75  # side, of the longest side of a volume: 96 of 128 voxels
    crops: int = 2
    drop: float = 0.3  # of a view, at most, by each corruption
    reads: Reading = "tokens"

    def __post_init__(self) -> None:
        check_reading(self.reads)
        if self.crops < 2:
            raise ValueError(
                f"crops={self.crops}: what is pasted comes from another cube of the volume, take 2 or more"
            )


PAPER = SwinUNETRConfig()
VARIANTS = {"paper": PAPER, "pooled": replace(PAPER, reads="mean")}


@final
class SwinUNETR(Objective):
    """Reads no reports; works with every encoder whose coarsest stride is a power of two.

    Raises ValueError when volumes of `shape` are too small for cubes of two tokens a side.
    """

    def __init__(
        self,
        encoder: Encoder,
        text: TextEncoder | None = None,
        config: SwinUNETRConfig = PAPER,
        *,
        shape: tuple[int, int, int],
    ):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.two = TwoViews(encoder, shape=shape, share=config.crop, features=config.features, reads=config.reads)

    def forward(self, batch: Batch) -> Losses:
        """The three terms, weighted."""
        c = self.config
        clean, corrupted, turns = self.views(batch)
        pyramid = self.encoder(corrupted)
        said, contrasted = self.two.read(pyramid)
        pair = [self.gather(z) for z in contrasted.chunk(2)]
        terms = {"contrast": self.once(nt_xent, *pair, tau=c.tau)}
        if not self.only_gathers:
            terms["rotation"] = F.cross_entropy(said, turns)
            terms["inpainting"] = F.l1_loss(self.two.rebuilt(pyramid, clean.shape[2:]), clean)
        return {name: getattr(c, name) * terms[name] for name in TERMS if name in terms}

    def views(self, batch: Batch) -> tuple[Float[Tensor, "n 1 s s s"], Float[Tensor, "n 1 s s s"], Int[Tensor, "n"]]:
        """Both views of every cube, first all the first ones: turned, corrupted too, and how often they were turned."""
        c = self.config
        clean, turns, seeds = self.two.cut(batch, count=c.crops)
        d, h, w = clean.shape[2:]
        noisy = boxes(seeds, (d, h, w), stream=NOISE_BOXES, most=c.drop)
        corrupted = torch.where(noisy, gaussian(seeds, (d, h, w)).to(clean), clean)
        pasted = boxes(seeds, (d, h, w), stream=PASTE_BOXES, most=c.drop)
        other = torch.cat([view.roll(len(batch.volume), 0) for view in clean.chunk(2)])
        return clean, torch.where(pasted, other, corrupted), turns

    @torch.no_grad()
    def rotation_accuracy(self, batch: Batch) -> float:
        """Share of the views whose rotation is told right; by chance a fourth."""
        _, corrupted, turns = self.views(batch)
        said, _ = self.two.read(self.encoder(corrupted))
        return (said.argmax(1) == turns).float().mean().item()
