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
from torch.autograd.function import once_differentiable

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

    @property
    def cells(self) -> Int[Tensor, "count length"]:
        """The cells of each segment."""
        return self.start + torch.arange(self.count * self.length, device="cpu").view(self.count, self.length)


@dataclass(frozen=True, eq=False)
class Kind:
    """Equal boxes of a grid: which cells they hold, and which rows of the bias table belong to their pairs of cells."""

    rows: Int[Tensor, "count n"]  # cells of each box, numbered through the grid
    pairs: Int[Tensor, "n n"]  # for each real cell and each real cell
    padding: Int[Tensor, "n p"]  # for each real cell and each padded one; p is 0 where nothing is padded


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
    index, found = relative_position_index(window), []
    for axes in product(*(segments(n, window, window // 2 if shifted else 0) for n in size)):
        d, h, w = (a.cells for a in axes)  # each [count, length], to be spread over [counts (3), lengths (3)]
        d, h, w = d[:, None, None, :, None, None], h[None, :, None, None, :, None], w[None, None, :, None, None, :]
        rows = ((d * size[1] + h) * size[2] + w).flatten(3).flatten(0, 2)
        real, padding = [], []
        for d, h, w in product(*(range(a.place, a.place + a.length + a.padded) for a in axes)):
            inside = all(c < a.place + a.length for c, a in zip((d, h, w), axes, strict=True))
            (real if inside else padding).append((d * clipped[1] + h) * clipped[2] + w)
        found.append(Kind(rows.to(device), index[real][:, real].to(device), index[real][:, padding].to(device)))
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

    def __init__(self, width: int, heads: int, window: int = WINDOW) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 3, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        index = relative_position_index(window).to(torch.get_default_device(), copy=True)
        self.register_buffer("relative_position_index", index)  # not needed, but part of the format
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def bias(self, kind: Kind) -> Float[Tensor, "heads n k"]:
        """The bias of a box's queries towards its keys: the real cells, then one for all padded ones, if any."""
        bias = F.embedding(kind.pairs, self.relative_position_bias_table)
        if kind.padding.shape[1]:
            padded = F.embedding(kind.padding, self.relative_position_bias_table).logsumexp(1, keepdim=True)
            bias = torch.cat([bias, padded], 1)
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
        kernel = _Attend.apply if qkv.device.type == "cpu" else _fused
        return kernel(q, k, v, bias).permute(1, 2, 0, 3).flatten(2)

    def over_boxes(self, x: Float[Tensor, "m n E"], bias: Float[Tensor, "heads n k"]) -> Float[Tensor, "m n E"]:
        """Mix the cells of each of m equal boxes."""
        return self.proj(self.mix(self.qkv(x), bias))

    def forward(self, x: Float[Tensor, "B D H W E"], shifted: bool) -> Float[Tensor, "B D H W E"]:
        """Mix every cell of a grid with those of its (shifted) window."""
        b, d, h, w, e = x.shape
        there, back = order((d, h, w), shifted, self.window, x.device)
        qkv, parts, start = _Permute.apply(self.qkv(x).flatten(1, 3), there, back), [], 0
        for kind in kinds((d, h, w), shifted, self.window, x.device):
            cells = qkv[:, start : start + kind.rows.numel()].unflatten(1, kind.rows.shape).flatten(0, 1)
            parts.append(self.mix(cells, self.bias(kind)).view(b, -1, e))
            start += kind.rows.numel()
        return self.proj(_Permute.apply(torch.cat(parts, 1), back, there).view(b, d, h, w, e))


class _Attend(torch.autograd.Function):
    """Softmax(q k^T / sqrt(c) + bias) v on processors: few passes over the scores, and none but P kept.

    With dP = dO V^T and delta = rowsum(dO * O): dS = P * (dP - delta), dV = P^T dO, dQ = dS K, dK = dS^T Q. Products
    have the precision of q, k and v; bias, softmax and the sum of the bias's gradient at least float32.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        (heads, m), scale = q.shape[:2], q.shape[-1] ** -0.5
        q, k, v = (t.flatten(0, 1) for t in (q, k, v))
        if q.dtype == bias.dtype:
            scores = torch.empty(heads, m, *bias.shape[1:], dtype=q.dtype).copy_(bias[:, None]).flatten(0, 1)
            scores.baddbmm_(q, k.mT, alpha=scale)
        else:
            scores = torch.add(bias[:, None], torch.bmm(q, k.mT).unflatten(0, (heads, m)), alpha=scale).flatten(0, 1)
        p = scores.softmax(-1).to(q.dtype)
        out = torch.bmm(p, v)
        ctx.heads, ctx.scale, ctx.exact = heads, scale, bias.dtype
        ctx.save_for_backward(q, k, v, p, out)
        return out.unflatten(0, (heads, m))

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, p, out = ctx.saved_tensors
        grad = grad.flatten(0, 1)
        d_s = torch.bmm(grad, v.mT).sub_((grad * out).sum(-1, keepdim=True)).mul_(p)
        d_q, d_k, d_v = torch.bmm(d_s, k).mul_(ctx.scale), torch.bmm(d_s.mT, q).mul_(ctx.scale), torch.bmm(p.mT, grad)
        d_s, d_q, d_k, d_v = (t.unflatten(0, (ctx.heads, -1)) for t in (d_s, d_q, d_k, d_v))
        return d_q, d_k, d_v, d_s.sum(1, dtype=ctx.exact)


def _fused(
    q: Float[Tensor, "heads m n c"],
    k: Float[Tensor, "heads m k c"],
    v: Float[Tensor, "heads m k c"],
    bias: Float[Tensor, "heads n k"],
) -> Float[Tensor, "heads m n c"]:
    """The same by PyTorch's fused kernels, which differentiate the bias on GPUs."""
    q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    mask = bias.to(q.dtype).expand(len(q), -1, -1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)
