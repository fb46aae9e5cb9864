"""Attention inside the (shifted) windows of a Swin Transformer, without rolling, padding or masking anything.

MONAI pads the grid to whole windows, rolls it by half a window and masks the pairs that the roll made neighbours. The
same numbers follow from a smaller computation. Along each axis a grid falls into segments: whole windows and, at the
ends, what the border, the shift or the padding cut off. A box of three segments attends to nothing but itself, so no
mask is left. Padded cells are all zero before the projection: their keys and values are the projection's bias, so any
number of them acts as *one* more key b_k whose position bias is log(sum of exp) of theirs,

    sum_j exp(q.b_k + B_ij) = exp(q.b_k + log sum_j exp B_ij).

At 128x96x128 voxels that leaves two thirds of the scores. `Box`es of equal shape are computed together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import ceil, prod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

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


@dataclass(frozen=True)
class Boxes:
    """All boxes of one kind: the product of one kind of segments along each axis."""

    axes: tuple[Segments, Segments, Segments]
    queries: tuple[int, ...]  # positions of the real cells in the window's raster, which the bias table is indexed by
    padding: tuple[int, ...]  # positions of the padded ones

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The part of the grid that these boxes tile."""
        d, h, w = (slice(a.start, a.start + a.count * a.length) for a in self.axes)
        return d, h, w

    def split(self, x: Tensor) -> Tensor:
        """View [B, D, H, W, ...] as [B, counts (3), lengths (3), ...]."""
        (nd, ld), (nh, lh), (nw, lw) = ((a.count, a.length) for a in self.axes)
        part = x[(slice(None), *self.slices)].unflatten(3, (nw, lw)).unflatten(2, (nh, lh)).unflatten(1, (nd, ld))
        rest = range(7, part.ndim)
        return part.permute(0, 1, 3, 5, 2, 4, 6, *rest)


def segments(size: int, window: int, shift: int) -> list[Segments]:
    """Cut an axis of `size` cells into runs of equal segments. An axis not longer than a window is one segment."""
    if size <= window:
        return [Segments(0, size, 1, 0, 0)]
    ends = [shift + window * i for i in range(ceil(size / window) + 1)]
    if not shift:
        cuts = [(a, b, 0) for a, b in pairwise(ends)]
    else:
        last = window * ceil(size / window)  # the padded size; the last window holds its end and the axis's beginning
        cuts = [(0, shift, window - shift), *((a, min(a + window, last), 0) for a in ends[:-1])]
    runs: list[Segments] = []
    for start, end, place in cuts:
        real = min(end, size) - start
        if real <= 0:
            continue
        new = Segments(start, real, 1, place, end - start - real)
        old = runs[-1] if runs else None
        if old and (old.length, old.place, old.padded) == (new.length, new.place, new.padded):
            runs[-1] = Segments(old.start, old.length, old.count + 1, old.place, old.padded)
        else:
            runs.append(new)
    return runs


@lru_cache(maxsize=256)
def boxes(size: Size, shifted: bool, window: int = WINDOW) -> tuple[Boxes, ...]:
    """Every kind of box that a grid of `size` cells falls into."""
    shift = window // 2 if shifted else 0
    raster = [min(n, window) for n in size]  # a window wider than the grid is clipped to it
    kinds = []
    for axes in product(*(segments(n, window, shift) for n in size)):
        cells = product(*(range(a.place, a.place + a.length + a.padded) for a in axes))
        real, padding = [], []
        for cell in cells:
            inside = all(c < a.place + a.length for c, a in zip(cell, axes, strict=True))
            (real if inside else padding).append((cell[0] * raster[1] + cell[1]) * raster[2] + cell[2])
        kinds.append(Boxes(axes, tuple(real), tuple(padding)))
    return tuple(kinds)


def relative_position_index(window: int = WINDOW) -> Int[Tensor, "n n"]:
    """Row of the bias table for every pair of cells of a window: 13^3 rows for 7^3 cells."""
    cells = torch.cartesian_prod(*[torch.arange(window)] * 3)
    span = 2 * window - 1
    difference = cells[:, None] - cells[None] + window - 1
    return (difference * torch.tensor([span * span, span, 1])).sum(-1)


def position_bias(kind: Boxes, full: Float[Tensor, "heads n n"]) -> Float[Tensor, "heads q k"]:
    """The bias of a kind's queries towards its keys: the real cells, then one column for all padded ones, if any."""
    q = torch.tensor(kind.queries, device=full.device)
    rows = full[:, q]
    bias = rows[:, :, q]
    if kind.padding:
        padded = rows[:, :, torch.tensor(kind.padding, device=full.device)].logsumexp(-1, keepdim=True)
        bias = torch.cat([bias, padded], -1)
    return bias


def attend(
    qkv: Float[Tensor, "B D H W 3 heads c"],
    padding: Float[Tensor, "3 heads c"],
    full: Float[Tensor, "heads n n"],
    kinds: Sequence[Boxes],
) -> Float[Tensor, "B D H W heads c"]:
    """Softmax(q k^T / sqrt(c) + bias) v inside every box; `padding` is what the projection makes of a padded cell."""
    out = torch.empty_like(qkv[:, :, :, :, 0])
    for kind in kinds:
        part = kind.split(qkv)  # [B, 3 counts, 3 lengths, 3, heads, c]
        q, k, v = part.flatten(4, 6).flatten(0, 3).permute(2, 0, 3, 1, 4)  # each [boxes, heads, cells, c]
        if kind.padding:
            k, v = (
                torch.cat([x, p[None, :, None].expand(len(x), -1, -1, -1)], 2)
                for x, p in zip((k, v), padding[1:], strict=True)
            )
        bias = position_bias(kind, full).to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(len(q), -1, -1, -1))
        target = kind.split(out)
        target.copy_(mixed.transpose(1, 2).unflatten(1, target.shape[4:7]).unflatten(0, target.shape[:4]))
    return out


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
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B D H W E"], shifted: bool) -> Float[Tensor, "B D H W E"]:
        """Mix every cell with those of its (shifted) window."""
        d, h, w = x.shape[1:4]
        kinds = boxes((d, h, w), shifted, self.window)
        n = prod(min(s, self.window) for s in (d, h, w))
        full = F.embedding(self.relative_position_index[:n, :n], self.relative_position_bias_table).permute(2, 0, 1)
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        padding = self.qkv.bias.unflatten(0, (3, self.heads, -1)).to(qkv.dtype)
        return self.proj(attend(qkv, padding, full, kinds).flatten(-2))
