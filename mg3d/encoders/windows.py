"""Attention inside the (shifted) windows of a Swin Transformer, without rolling, padding or masking anything.

MONAI pads the grid to whole windows, rolls it by half a window and masks the pairs that the roll made neighbours. The
same numbers follow from a smaller computation. Along each axis a grid falls into segments: whole windows and, at the
ends, what the border, the shift or the padding cut off. A box of three segments attends to nothing but itself, so no
mask is left. Padded cells are all zero before the projection: their keys and values are the projection's bias, so any
number of them acts as *one* more key b_k whose position bias is log(sum of exp) of theirs,

    sum_j exp(q.b_k + B_ij) = exp(q.b_k + log sum_j exp B_ij).

At 128x96x128 voxels that leaves two thirds of the scores. Boxes of one kind (`Boxes`) are computed together.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import ceil

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mg3d.encoders.flash import attend

WINDOW = 7  # cells a side, in every model that this package knows
Size = tuple[int, int, int]


@dataclass(frozen=True)
class Segments:
    """`count` neighbouring segments of one axis, equal in everything but their place."""

    start: int  # first cell
    length: int  # real cells in each
    count: int
    place: int  # where in its window a segment begins
    padded: int  # cells of padding that share its window and its side of the shift


@dataclass(frozen=True, eq=False)
class Boxes:
    """All boxes of one kind: the product of one kind of segments along each axis.

    `pairs` [n, n] are the rows of the bias table for the n real cells of a box, `padding` [n, p] those for its p padded
    keys; both None-free: p is 0 for a box without padding.
    """

    axes: tuple[Segments, Segments, Segments]
    pairs: Int[Tensor, "n n"]
    padding: Int[Tensor, "n p"]

    @property
    def padded(self) -> bool:
        """Whether a box has padded cells."""
        return self.padding.shape[1] > 0

    def split(self, x: Tensor) -> Tensor:
        """View the part of x [B, D, H, W, ...] that these boxes tile as [B, counts (3), lengths (3), ...]."""
        for axis, a in enumerate(self.axes):  # axis 1 is split into places 1 and 2, then axis 3, then axis 5
            x = x.narrow(2 * axis + 1, a.start, a.count * a.length).unflatten(2 * axis + 1, (a.count, a.length))
        return x.permute(0, 1, 3, 5, 2, 4, 6, *range(7, x.ndim))


def segments(size: int, window: int, shift: int) -> list[Segments]:
    """Cut an axis of `size` cells into runs of equal segments. An axis not longer than a window is one segment."""
    if size <= window:
        return [Segments(0, size, 1, 0, 0)]
    padded = window * ceil(size / window)
    cuts = [(a, min(b, padded), 0) for a, b in pairwise(range(shift, padded + window + 1, window)) if a < padded]
    if shift:  # the last window of the rolled grid holds the axis's end and, at its own end, the axis's beginning
        cuts = [(0, shift, window - shift), *cuts]
    runs: list[Segments] = []
    for start, end, place in cuts:
        real = min(end, size) - start
        old = runs[-1] if runs else None
        if old and (old.length, old.place, old.padded) == (real, place, end - start - real):
            runs[-1] = Segments(old.start, real, old.count + 1, place, old.padded)
        elif real > 0:
            runs.append(Segments(start, real, 1, place, end - start - real))
    return runs


@lru_cache(maxsize=256)
def boxes(size: Size, shifted: bool, window: int, device: torch.device) -> tuple[Boxes, ...]:
    """Every kind of box that a grid of `size` cells falls into."""
    _, height, width = (min(n, window) for n in size)  # a window wider than the grid is clipped to it
    index, kinds = relative_position_index(window), []
    for axes in product(*(segments(n, window, window // 2 if shifted else 0) for n in size)):
        real, padding = [], []
        for d, h, w in product(*(range(a.place, a.place + a.length + a.padded) for a in axes)):
            inside = all(c < a.place + a.length for c, a in zip((d, h, w), axes, strict=True))
            (real if inside else padding).append((d * height + h) * width + w)
        kinds.append(Boxes(axes, index[real][:, real].to(device), index[real][:, padding].to(device)))
    return tuple(kinds)


@lru_cache(maxsize=8)
def relative_position_index(window: int) -> Int[Tensor, "n n"]:
    """Row of the bias table for every pair of cells of a window: (2 * window - 1)^3 rows for window^3 cells."""
    cells = torch.cartesian_prod(*[torch.arange(window)] * 3)
    span = 2 * window - 1
    difference = cells[:, None] - cells[None] + window - 1
    return (difference * torch.tensor([span * span, span, 1])).sum(-1)


def position_bias(kind: Boxes, table: Float[Tensor, "rows heads"]) -> Float[Tensor, "heads q k"]:
    """The bias of a kind's queries towards its keys: the real cells, then one column for all padded ones, if any."""
    bias = F.embedding(kind.pairs, table)
    if kind.padded:
        bias = torch.cat([bias, F.embedding(kind.padding, table).logsumexp(1, keepdim=True)], 1)
    return bias.permute(2, 0, 1)


class WindowAttention(nn.Module):
    """Multi-head attention inside windows with a learned bias per relative position (Liu et al., Swin Transformer).

    Where the grid is narrower than a window, the bias of cell i is the one that raster position i has in the *whole*
    window, as in MONAI and therefore in all released weights.
    """

    def __init__(self, width: int, heads: int, window: int = WINDOW) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 3, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window).clone())  # part of the format
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B D H W E"], shifted: bool) -> Float[Tensor, "B D H W E"]:
        """Mix every cell with those of its (shifted) window."""
        d, h, w = x.shape[1:4]
        kinds = boxes((d, h, w), shifted, self.window, x.device)
        biases = [position_bias(kind, self.relative_position_bias_table) for kind in kinds]
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        padding = self.qkv.bias.unflatten(0, (3, self.heads, -1)).to(qkv.dtype)
        return self.proj(attend(qkv, padding, kinds, biases).flatten(-2))
