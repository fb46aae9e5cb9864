"""Two views of each of a volume's cubes, and what reads them: SwinUNETR's pre-training and SwinMM are built on both.

Views are turned by 0, 90, 180 or 270 degrees in their last two axes. The rotation is read off the first token of the
coarsest level, the contrasted feature off the second, the cube off all of them.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mg3d.decoders import VoxelDecoder
from mg3d.encoders import Encoder
from mg3d.types import Batch, Pyramid
from mg3d.views import TURNS, branch, crops, cube_side, pick, turn

Reading = Literal["tokens", "mean"]


def check_reading(reads: str) -> None:
    """Raise ValueError for a reading that does not exist."""
    if reads not in get_args(Reading):
        raise ValueError(f"reads={reads!r}; valid: {', '.join(get_args(Reading))}")


class Views(NamedTuple):
    """First all the first views of all cubes, then all the second ones."""

    clean: Float[Tensor, "n 1 s s s"]
    turns: Int[Tensor, "n"]  # quarters of a turn
    seeds: Int[Tensor, "n"]


@final
class TwoViews(nn.Module):
    """Cuts and turns the views, and has the heads that read them.

    Raises ValueError when volumes of `shape` are too small for cubes of two tokens a side.
    """

    def __init__(self, encoder: Encoder, *, shape: tuple[int, int, int], share: float, features: int, reads: Reading):
        super().__init__()
        stride, width = encoder.strides[-1], encoder.widths[-1]
        self.share, self.reads = share, reads
        self.least = 2 * stride  # of a single token the decoder's norm leaves nothing
        if cube_side(shape, share, self.least) <= stride:
            raise ValueError(f"shape={shape}: its cubes are one token at stride {stride}, take larger volumes")
        self.turns_of = nn.Linear(width, 4)
        self.contrasted = nn.Linear(width, features)
        self.decoder = VoxelDecoder(width, stride=stride)

    def cut(self, batch: Batch, *, count: int) -> Views:
        """Both views of `count` cubes of each volume, of `share` of its longest side."""
        cubes, cube_seeds = crops(batch.volume, batch.seeds, count=count, share=self.share, least=self.least)
        seeds = torch.cat([branch(cube_seeds, view) for view in range(2)])
        turns = pick(seeds, 4, stream=TURNS)
        return Views(turn(cubes.repeat(2, 1, 1, 1, 1), turns), turns, seeds)

    def read(self, pyramid: Pyramid) -> tuple[Float[Tensor, "n 4"], Float[Tensor, "n F"]]:
        """Logits of the turns, and what is contrasted; of a single token, and of the mean, both."""
        tokens = pyramid.tokens
        if self.reads == "mean":
            first = second = pyramid.pooled
        else:
            first, second = tokens[:, 0], tokens[:, min(1, tokens.shape[1] - 1)]
        return self.turns_of(first), self.contrasted(second)

    def rebuilt(self, pyramid: Pyramid, size: Sequence[int]) -> Float[Tensor, "n 1 s s s"]:
        """The cube, of `size` voxels."""
        d, h, w = size
        return self.decoder(pyramid.tokens, grid=pyramid.grid, size=(d, h, w))
