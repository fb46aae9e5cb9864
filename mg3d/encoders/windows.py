"""Attention inside the (shifted) windows of a Swin Transformer, without rolling, padding or masking anything.

MONAI pads the grid to whole windows, rolls it by half a window and masks the pairs that the roll made neighbours. The
same numbers follow from a smaller computation. Along each axis a grid falls into segments: whole windows and, at the
ends, what the border, the shift or the padding cut off. A box of three segments attends to nothing but itself, so no
mask is left. Padded cells are all zero before the projection: their keys and values are the projection's bias, so any
number of them acts as *one* more key b_k whose position bias is log(sum of exp) of theirs,

    sum_j exp(q.b_k + B_ij) = exp(q.b_k + log sum_j exp B_ij).

At 128x96x128 voxels that leaves two thirds of the scores. Equal boxes (a `Kind`) are computed together.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

WINDOW = 7  # cells a side, in every published model
Size = tuple[int, int, int]


@dataclass(frozen=True)
class Segments:
    """`count` neighbouring segments of one axis, equal in everything but their place."""

    start: int  # first cell
    length: int  # real cells in each
    count: int
    place: int  # where in its window a segment begins
    padded: int  # cells of padding that share its window and its side of the shift

    @property
    def cells(self) -> Int[Tensor, "count length"]:
        """The cells of each segment."""
        return self.start + torch.arange(self.count * self.length, device="cpu").view(self.count, self.length)


@dataclass(frozen=True, eq=False)
class Kind:
    """Equal boxes of a grid: which cells they hold, and where in a window these are, in raster order."""

    rows: Int[Tensor, "count n"]  # cells of each box, numbered through the grid
    real: Int[Tensor, "n"]  # where in their window these cells are
    padded: Int[Tensor, "p"]  # and where those are that share its window and are no cells of the grid

    @property
    def keys(self) -> int:
        """Keys of a box: its cells, and one for all padded ones."""
        return len(self.real) + bool(len(self.padded))

    def bias(self, window: Float[Tensor, "heads w w"]) -> Float[Tensor, "heads n k"]:
        """The bias of a box's queries towards its keys, of the bias of each pair of cells of a window."""
        rows = window.index_select(1, self.real)
        bias = rows.index_select(2, self.real)
        if not len(self.padded):
            return bias
        return torch.cat([bias, rows.index_select(2, self.padded).logsumexp(2, keepdim=True)], 2)

    def bias_back(
        self, d_window: Float[Tensor, "heads w w"], window: Float[Tensor, "heads w w"], d: Float[Tensor, "heads n k"]
    ) -> None:
        """Add the gradient of `window` where that of `bias` is d."""
        n, queries = len(self.real), self.real[:, None]
        d_window[:, queries, self.real] += d[..., :n]
        if len(self.padded):
            d_window[:, queries, self.padded] += d[..., n:] * window[:, queries, self.padded].softmax(2)


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


@lru_cache(maxsize=64)
def kinds(size: Size, shifted: bool, window: int, device: torch.device) -> tuple[Kind, ...]:
    """Every kind of box that a grid of `size` cells falls into; together they hold each cell once."""
    clipped = [min(n, window) for n in size]  # a window wider than the grid is clipped to it
    found = []
    for axes in product(*(segments(n, window, window // 2 if shifted else 0) for n in size)):
        d, h, w = (a.cells for a in axes)  # each [count, length], to be spread over [counts (3), lengths (3)]
        d, h, w = d[:, None, None, :, None, None], h[None, :, None, None, :, None], w[None, None, :, None, None, :]
        rows = ((d * size[1] + h) * size[2] + w).flatten(3).flatten(0, 2)
        real, padding = [], []
        for d, h, w in product(*(range(a.place, a.place + a.length + a.padded) for a in axes)):
            inside = all(c < a.place + a.length for c, a in zip((d, h, w), axes, strict=True))
            (real if inside else padding).append((d * clipped[1] + h) * clipped[2] + w)
        found.append(
            Kind(rows.to(device), *(torch.tensor(c, dtype=torch.long, device=device) for c in (real, padding)))
        )
    return tuple(found)


@lru_cache(maxsize=64)
def order(size: Size, shifted: bool, window: int, device: torch.device) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
    """The cells of a grid, kind after kind and box after box; and the inverse of that permutation."""
    rows = torch.cat([kind.rows.flatten() for kind in kinds(size, shifted, window, device)])
    return rows, rows.argsort()


@lru_cache(maxsize=8)
def relative_position_index(window: int) -> Int[Tensor, "n n"]:
    """Row of the bias table for every pair of cells of a window: (2 * window - 1)^3 rows for window^3 cells."""
    cells = torch.cartesian_prod(*[torch.arange(window, device="cpu")] * 3)
    span = 2 * window - 1
    difference = cells[:, None] - cells[None] + window - 1
    return (difference * torch.tensor([span * span, span, 1], device="cpu")).sum(-1)


class _Permute(torch.autograd.Function):
    """x[:, there], with the gradient grad[:, back] of inverse permutations: no scatter, so equal on every device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(there, back)
        return x.index_select(1, there)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        there, back = ctx.saved_tensors
        return _Permute.apply(grad, back, there), None, None


class WindowAttention(nn.Module):
    """Multi-head attention inside windows with a learned bias per relative position (Liu et al., Swin Transformer).

    Where the grid is narrower than a window, the bias of cell i is the one that raster position i has in the *whole*
    window, as in MONAI and therefore in all released weights.
    """

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int = WINDOW) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 3, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        index = relative_position_index(window).to(torch.get_default_device(), copy=True)
        self.register_buffer("relative_position_index", index)  # as in the format
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def bias(self) -> Float[Tensor, "heads w w"]:
        """The bias of each pair of cells of a window."""
        bias = F.embedding(self.relative_position_index, self.relative_position_bias_table)
        return bias.permute(2, 0, 1)

    def split(self, qkv: Float[Tensor, "m n E3"], bias: Float[Tensor, "heads n k"]) -> Float[Tensor, "3 heads m _ c"]:
        """Queries, keys and values of m equal boxes; where bias has a column more, a padded cell is appended."""
        qkv = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 3, 0, 1, 4)
        if bias.shape[2] == bias.shape[1]:
            return qkv
        cell = self.qkv.bias.to(qkv.dtype).view(3, self.heads, 1, 1, -1)
        return torch.cat([qkv, cell.expand(-1, -1, qkv.shape[2], -1, -1)], 3)

    def mix(self, qkv: Float[Tensor, "m n E3"], bias: Float[Tensor, "heads n k"]) -> Float[Tensor, "m n E"]:
        """Softmax(q k^T / sqrt(c) + bias) v within each of m equal boxes."""
        q, k, v = self.split(qkv, bias)
        q = q[:, :, : bias.shape[1]]
        return _fused(q, k, v, bias).permute(1, 2, 0, 3).flatten(2)

    def forward(self, x: Float[Tensor, "B D H W E"], shifted: bool) -> Float[Tensor, "B D H W E"]:
        """Mix every cell of a grid with those of its (shifted) window."""
        b, d, h, w, e = x.shape
        there, back = order((d, h, w), shifted, self.window, x.device)
        qkv, parts, start = _Permute.apply(self.qkv(x).flatten(1, 3), there, back), [], 0
        window = self.bias()
        for kind in kinds((d, h, w), shifted, self.window, x.device):
            cells = qkv[:, start : start + kind.rows.numel()].unflatten(1, kind.rows.shape).flatten(0, 1)
            parts.append(self.mix(cells, kind.bias(window)).view(b, -1, e))
            start += kind.rows.numel()
        return self.proj(_Permute.apply(torch.cat(parts, 1), back, there).view(b, d, h, w, e))


def _fused(
    q: Float[Tensor, "heads m n c"],
    k: Float[Tensor, "heads m k c"],
    v: Float[Tensor, "heads m k c"],
    bias: Float[Tensor, "heads n k"],
) -> Float[Tensor, "heads m n c"]:
    """Softmax(q k^T / sqrt(c) + bias) v by PyTorch's fused kernels, which differentiate the bias on GPUs."""
    q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    mask = bias.to(q.dtype).expand(len(q), -1, -1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)
