"""MRM: a volume and its report are rebuilt from what is left of both (Zhou et al., ICLR 2023).

    L = L_image + L_report                                                              weights 1

The encoder sees the volume at half its resolution with 75 % of the cubes of 16^3 voxels hidden; a decoder rebuilds the
hidden cubes at full resolution (32^3 voxels), each at mean 0 and variance 1, where 0 all over has an error of 1. Each
word of the report is hidden with a chance of 1/2. A BERT of 6 layers, 384 wide and 6 heads, is trained from scratch;
the mean of the volume's tokens, taken to its width, is added to the embedding of every word; the cross-entropy counts
at all of 100 places, words that are not hidden and padding included.

**Departs from the original.** The report decoder has the tokenizer of the shared text encoder, whose weights it does
not use, no dropout, and its norms in front. The volume encoder is the shared one: it sees zeros where the original's
ViT drops tokens, so the mean is over all of its tokens. Where cells have 16 voxels a side (ViT) the volume decoder is
the original's (4 layers; half as wide as the encoder, there as wide), with 32^3 voxels a token; elsewhere it is
convolutional. Resampling is trilinear (there bicubic, of pictures). Of a volume so small that half of its resolution
would be a single token, of which a convolutional decoder can make nothing, the encoder sees the full one.
"""

import math
from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mg3d.encoders import Encoder
from mg3d.losses import in_float32
from mg3d.objectives import Objective, TextEncoder
from mg3d.types import Batch, Losses, Report
from mg3d.views import WORDS, block_mask, check_shares, noise
from mg3d.vlp import CubeDecoder, check_cubes, cube_error, told


@dataclass(frozen=True)
class MRMConfig:
    """Constants of the original. Raises ValueError for a share that hides nothing or all."""

    shrink: int = 2  # how much coarser the encoder sees the volume; 1: what it rebuilds is what it sees
    mask_cube: int = 16  # voxels a side, of what the encoder sees
    mask_ratio: float = 0.75  # of the cubes
    word_ratio: float = 0.5  # chance of a word
    words: int = 100  # tokens of a report that are read
    width: int = 384  # of the report decoder
    layers: int = 6
    heads: int = 6

    def __post_init__(self) -> None:
        check_shares(self, "mask_ratio", "word_ratio")
        if self.shrink not in (1, 2):
            raise ValueError(f"shrink={self.shrink}: take 2, or 1 for the resolution that the encoder sees")


PAPER = MRMConfig()
VARIANTS = {"paper": PAPER, "plain": replace(PAPER, shrink=1)}


@final
class MRM(Objective):
    """The method, with every encoder. The text encoder lends its ids alone.

    Raises ValueError for volumes of a `shape` whose cubes are too few to hide some and see some, or that are one token.
    """

    text: TextEncoder

    def __init__(self, encoder: Encoder, text: TextEncoder, config: MRMConfig = PAPER, *, shape: tuple[int, int, int]):
        super().__init__()
        c = self.config = config
        stride = encoder.strides[-1]
        some = [k for k in (c.shrink, 1) if math.prod(math.ceil(n // k / stride) for n in shape) > 1]
        if not some:
            raise ValueError(f"shape={shape} is one token at stride {stride}: take larger volumes or a finer encoder")
        self.shrink, cube = some[0], some[0] * c.mask_cube
        check_cubes(shape, cube=cube, ratio=c.mask_ratio)
        self.encoder = encoder
        object.__setattr__(self, "text", text)  # frozen: neither a submodule nor in the state
        self.voxel_decoder = CubeDecoder(encoder.widths[-1], stride=self.shrink * stride, cube=cube, layers=4)
        self.embedding = nn.Embedding(text.vocabulary, c.width)
        self.positions = nn.Parameter(torch.empty(c.words, c.width))
        for table in (self.embedding.weight, self.positions):
            nn.init.normal_(table, std=0.02)
        self.from_volume = nn.Linear(encoder.widths[-1], c.width)
        layer = nn.TransformerEncoderLayer(
            c.width, c.heads, 4 * c.width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.reader = nn.TransformerEncoder(layer, c.layers, nn.LayerNorm(c.width), enable_nested_tensor=False)
        self.vocabulary = nn.Linear(c.width, text.vocabulary)

    def forward(self, batch: Batch) -> Losses:
        """`image`, `report`. Raises ValueError without reports."""
        report = told(batch, "MRM")
        rebuilt, hidden, seen = self._rebuilt(batch)
        labels, masked = self._masked(report, batch.seeds)
        return {
            "image": cube_error(rebuilt, batch.volume, hidden),
            "report": every_place(self.vocabulary(self._read(masked, seen, report.pad)), labels),
        }

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> tuple[Float[Tensor, "B 1 D H W"], Bool[Tensor, "B d h w"]]:
        """What is rebuilt, each cube on its own scale, and which cubes were hidden."""
        return self._rebuilt(batch)[:2]

    def _rebuilt(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "B 1 D H W"], Bool[Tensor, "B d h w"], Float[Tensor, "B E"]]:
        """The volume, which cubes of it were hidden, and the pooled feature of what was left."""
        c, (d, h, w) = self.config, batch.volume.shape[2:]
        coarse = batch.volume
        if self.shrink > 1:
            size = [max(1, n // self.shrink) for n in (d, h, w)]
            coarse = F.interpolate(coarse, size=size, mode="trilinear", align_corners=False)
        hidden = block_mask(batch.seeds, (d, h, w), cube=self.shrink * c.mask_cube, ratio=c.mask_ratio)
        seen = self.encoder(coarse, mask=hidden)
        return self.voxel_decoder(seen.tokens, hidden, grid=seen.grid, size=(d, h, w)), hidden, seen.pooled

    def _masked(self, report: Report, seeds: Int[Tensor, "B"]) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """Ids at `words` places, padded or cut, and the same with words hidden, each with all its pieces."""
        room = self.config.words
        words, number = placed(report.words, room, report.pad), placed(report.word, room, -1)
        draws = noise(seeds, room, stream=WORDS).gather(1, number.clamp_min(0).long())
        return words, words.masked_fill((draws < self.config.word_ratio) & (number >= 0), self.text.mask_id)

    def _read(self, words: Int[Tensor, "B L"], seen: Float[Tensor, "B E"], pad: int) -> Float[Tensor, "B L F"]:
        """Features of masked words, each of which has seen the volume."""
        x = self.embedding(words) + self.positions + self.from_volume(seen)[:, None]
        return self.reader(x, src_key_padding_mask=words == pad)


def placed(x: Int[Tensor, "B L"], room: int, fill: int) -> Int[Tensor, "B room"]:
    """`room` places of each report: cut, or padded with `fill`."""
    return F.pad(x, (0, max(0, room - x.shape[1])), value=fill)[:, :room]


@in_float32
def every_place(logits: Float[Tensor, "B L V"], labels: Int[Tensor, "B L"]) -> Float[Tensor, ""]:
    """Cross-entropy at every place: hidden words, others, and padding."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten().long())
