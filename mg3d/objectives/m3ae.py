"""M3AE: a masked autoencoder of volumes and reports at once (Chen et al., MICCAI 2022).

    L = L_MLM + L_MIM + L_ITM                                                           weights 1

Three passes through 6 layers of co-attention (`vlp.Joint`) at each step. MLM: 15 % of the words are hidden, the
volume is whole. MIM: 75 % of the cubes of 16^3 voxels are hidden, the report is whole; the volume tokens that have gone
through 3 layers rebuild the hidden cubes, each at mean 0 and variance 1, where 0 all over has an error of 1. ITM: half
of the pairs are wrong; [both poolers] -> right or wrong.

**Departs from the original.** The text encoder is frozen and shared (there RoBERTa, trained along), and reads reports
of the recipe's length (there 64 tokens). The volume encoder is the shared one: it sees zeros where the original's ViT
drops tokens, and the mean of its tokens stands for an image's [CLS]. Where cells have 16 voxels a side (ViT) the
decoder is the original's (4 layers, 384 wide, half of the encoder); elsewhere it is convolutional, since a token of
Swin covers several cubes. Norms come before the sub-layers. MLM is a mean over a report, then over reports. The wrong
volume of a pair is of the same part of the batch.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mg3d.encoders import Encoder
from mg3d.objectives import Objective, TextEncoder
from mg3d.types import Batch, Losses, Report
from mg3d.views import block_mask, check_shares
from mg3d.vlp import CubeDecoder, Joint, check_cubes, cube_error, sentence_maps, told, wrong_pairs


@dataclass(frozen=True)
class M3AEConfig:
    """Constants of the original. Raises ValueError for a share that hides nothing or all, and a depth beyond all."""

    layers: int = 6  # of co-attention
    depth: int = 3  # layers after which the volume is rebuilt
    heads: int = 12
    mask_cube: int = 16  # voxels a side
    mask_ratio: float = 0.75  # of the cubes
    word_ratio: float = 0.15

    def __post_init__(self) -> None:
        check_shares(self, "mask_ratio", "word_ratio")
        if not 1 <= self.depth <= self.layers:
            raise ValueError(f"depth={self.depth}: take 1 to layers={self.layers}")


PAPER = M3AEConfig()
VARIANTS = {"paper": PAPER, "shallow": replace(PAPER, layers=2, depth=2)}  # MG-3D's runs have 2 layers


@final
class M3AE(Objective):
    """The method, with every encoder whose last width the heads divide."""

    text: TextEncoder

    def __init__(self, encoder: Encoder, text: TextEncoder, config: M3AEConfig = PAPER, *, shape: tuple[int, int, int]):
        super().__init__()
        c, width, stride = config, encoder.widths[-1], encoder.strides[-1]
        check_cubes(shape, cube=c.mask_cube, ratio=c.mask_ratio)
        self.config, self.encoder = c, encoder
        object.__setattr__(self, "text", text)  # frozen: neither a submodule nor in the state
        self.joint = Joint(width, text, layers=c.layers, heads=c.heads)
        self.voxel_decoder = CubeDecoder(width, stride=stride, cube=c.mask_cube, layers=4)

    def forward(self, batch: Batch) -> Losses:
        """`mlm`, `mim`, `itm`. Raises ValueError without reports."""
        c, report, joint = self.config, told(batch, "M3AE"), self.joint
        volume, words = joint.tokens(self.encoder(batch.volume)), joint.words(report)
        masked, labels = joint.masked(report, batch.seeds, ratio=c.word_ratio)
        rebuilt, hidden = self._rebuilt(batch, words, report)
        chosen, right = wrong_pairs(batch.seeds)
        return {
            "mlm": joint.mlm(joint(volume, masked, real=report.real), labels),
            "mim": cube_error(rebuilt, batch.volume, hidden),
            "itm": joint.itm(joint(volume[chosen], words, real=report.real), right),
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> tuple[Float[Tensor, "B layers heads S N"], tuple[int, int, int]]:
        """Where each sentence looks: the mean of its words' cross-attention, each layer; and the grid of the tokens."""
        report, pyramid = told(batch, "M3AE"), self.encoder(batch.volume)
        fused = self.joint(self.joint.tokens(pyramid), self.joint.words(report), real=report.real)
        return sentence_maps(fused.maps, report), pyramid.grid

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> tuple[Float[Tensor, "B 1 D H W"], Bool[Tensor, "B d h w"]]:
        """What is rebuilt, each cube on its own scale, and which cubes were hidden."""
        report = told(batch, "M3AE")
        return self._rebuilt(batch, self.joint.words(report), report)

    def _rebuilt(
        self, batch: Batch, words: Float[Tensor, "B L E"], report: Report
    ) -> tuple[Float[Tensor, "B 1 D H W"], Bool[Tensor, "B d h w"]]:
        """The volume from the cubes that are left and the whole report, and which cubes were hidden."""
        c, (d, h, w) = self.config, batch.volume.shape[2:]
        hidden = block_mask(batch.seeds, (d, h, w), cube=c.mask_cube, ratio=c.mask_ratio)
        seen = self.encoder(batch.volume, mask=hidden)
        tokens = self.joint(self.joint.tokens(seen), words, real=report.real, depth=c.depth).middle
        return self.voxel_decoder(tokens, hidden, grid=seen.grid, size=(d, h, w)), hidden
