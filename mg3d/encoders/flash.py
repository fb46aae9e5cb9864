"""Attention over boxes of cells, with exact gradients, in little memory.

On a processor the scores of a whole volume would be a gigabyte a tensor, written and read a dozen times a step. Here
they are made a few megabytes at a time, which stay in the cache, and made again in the backward pass. On other devices
the fused kernels of `scaled_dot_product_attention` do the same.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

SCORES = 2**20  # scores that are in work at a time: 4 MB each for scores, probabilities and their gradient


class Tiling(Protocol):
    """Equal boxes that tile a part of a grid (`windows.Boxes`)."""

    @property
    def padded(self) -> bool:
        """Whether a box has one more key, for its padded cells."""
        ...

    def split(self, x: Tensor) -> Tensor:
        """View the part of x [B, D, H, W, ...] as [B, counts (3), lengths (3), ...]."""
        ...


def attend(
    qkv: Float[Tensor, "B D H W 3 heads c"],
    padding: Float[Tensor, "3 heads c"],
    kinds: Sequence[Tiling],
    biases: Sequence[Float[Tensor, "heads _ _"]],
) -> Float[Tensor, "B D H W heads c"]:
    """Softmax(q k^T / sqrt(c) + bias) v inside every box of every kind; the kinds tile the whole grid.

    `padding` is query, key and value of a padded cell; the last column of a bias [heads, n, n + 1] belongs to it.
    """
    if qkv.device.type == "cpu":
        return _Attend.apply(qkv, padding, kinds, *biases)
    out = torch.empty_like(qkv[:, :, :, :, 0])
    for kind, bias in zip(kinds, biases, strict=True):
        q, k, v = kind.split(qkv).flatten(4, 6).flatten(0, 3).permute(2, 0, 3, 1, 4)  # each [boxes, heads, n, c]
        if kind.padded:
            k, v = (
                torch.cat([x, p[None, :, None].expand(len(x), -1, -1, -1)], 2)
                for x, p in ((k, padding[1]), (v, padding[2]))
            )
        mask = bias.to(q.dtype).expand(len(q), -1, -1, -1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        _scatter(kind, mixed.transpose(0, 1)[None], out[:, :, :, :, None])
    return out


def _gather(kind: Tiling, x: Tensor, padding: Tensor | None = None) -> Float[Tensor, "m heads boxes k c"]:
    """The cells of all boxes from x [B, D, H, W, m, heads, c], at least in float32; then the padded cell, if any."""
    part = kind.split(x).permute(7, 8, 0, 1, 2, 3, 4, 5, 6, 9)
    m, heads, b, nd, nh, nw, ld, lh, lw, c = part.shape
    n, extra = ld * lh * lw, int(padding is not None and kind.padded)
    dtype = torch.promote_types(x.dtype, torch.float32)
    out = torch.empty(m, heads, b * nd * nh * nw, n + extra, c, dtype=dtype, device=x.device)
    out[..., :n, :].unflatten(3, (ld, lh, lw)).unflatten(2, (b, nd, nh, nw)).copy_(part)
    if extra:
        out[..., n, :] = padding[:, :, None]
    return out


def _scatter(kind: Tiling, boxes: Float[Tensor, "m heads boxes n c"], x: Tensor) -> None:
    """Write the cells of all boxes to their places in x [B, D, H, W, m, heads, c]."""
    part = kind.split(x)
    part.copy_(boxes.unflatten(3, part.shape[4:7]).unflatten(2, part.shape[:4]).permute(2, 3, 4, 5, 6, 7, 8, 0, 1, 9))


def _chunks(heads: int, boxes: int, scores: int) -> Iterator[tuple[slice, slice]]:
    """Slices of heads and boxes with about `SCORES` scores: all boxes of some heads, or some boxes of one head."""
    some_heads = max(1, SCORES // (boxes * scores))
    some_boxes = boxes if some_heads > 1 else min(boxes, max(1, SCORES // scores))
    for h in range(0, heads, some_heads):
        for i in range(0, boxes, some_boxes):
            yield slice(h, h + some_heads), slice(i, i + some_boxes)


def _probabilities(q: Tensor, k: Tensor, bias: Float[Tensor, "heads n k"], scale: float) -> Float[Tensor, "m n k"]:
    """Softmax(scale * q k^T + bias) of one chunk, q [heads, boxes, n, c], k [heads, boxes, k, c]."""
    scores = bias[:, None].expand(-1, q.shape[1], -1, -1).flatten(0, 1)
    if scores.data_ptr() == bias.data_ptr():  # a single box: flatten made a view
        scores = scores.clone()
    return torch.softmax(scores.baddbmm_(q.flatten(0, 1), k.flatten(0, 1).mT, alpha=scale), -1)


class _Attend(torch.autograd.Function):
    """`attend` for processors: probabilities are made chunk by chunk, and made again in the backward pass."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, qkv: Tensor, padding: Tensor, kinds: Sequence[Tiling], *biases: Tensor) -> Tensor:
        out, scale = torch.empty_like(qkv[:, :, :, :, 0]), qkv.shape[-1] ** -0.5
        for kind, bias in zip(kinds, biases, strict=True):
            q, k, v = _gather(kind, qkv, padding)
            q = q[:, :, : bias.shape[1]]
            mixed = torch.empty_like(q)
            for h, i in _chunks(*q.shape[:2], bias[0].numel()):
                p = _probabilities(q[h, i], k[h, i], bias[h], scale)
                torch.bmm(p, v[h, i].flatten(0, 1), out=mixed[h, i].flatten(0, 1))
            _scatter(kind, mixed[None], out[:, :, :, :, None])
        ctx.kinds, ctx.scale = kinds, scale
        ctx.save_for_backward(qkv, padding, out, *biases)
        return out

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, padding, out, *biases = ctx.saved_tensors
        d_qkv, d_padding, d_biases = torch.empty_like(qkv), torch.zeros_like(padding), []
        for kind, bias in zip(ctx.kinds, biases, strict=True):
            n = bias.shape[1]
            qkv_boxes = _gather(kind, qkv, padding)
            o, d_o = _gather(kind, torch.stack([out, grad], 4))
            d_boxes, d_bias = _gradients(qkv_boxes, bias, o, d_o, ctx.scale)
            _scatter(kind, d_boxes[..., :n, :], d_qkv)
            if kind.padded:
                d_padding += d_boxes[..., n, :].sum(2)
            d_biases.append(d_bias)
        return d_qkv, d_padding, None, *d_biases


def _gradients(qkv: Tensor, bias: Tensor, out: Tensor, grad: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Gradients of the boxes' queries, keys and values, [3, heads, boxes, k, c], and of their bias, [heads, n, k].

    With P the probabilities and dP = dO V^T: dS = P * (dP - rowsum(dO * O)), dV = P^T dO, dQ = dS K, dK = dS^T Q.
    """
    q, k, v = qkv
    n = bias.shape[1]
    d_qkv, d_bias = torch.zeros_like(qkv), torch.zeros_like(bias)
    delta = (out * grad).sum(-1, keepdim=True)
    for h, i in _chunks(*q.shape[:2], bias[0].numel()):
        p = _probabilities(q[h, i, :n], k[h, i], bias[h], scale)
        d_o = grad[h, i].flatten(0, 1)
        d_q, d_k, d_v = (x[h, i].flatten(0, 1) for x in d_qkv)
        torch.bmm(p.mT, d_o, out=d_v)
        d_s = torch.bmm(d_o, v[h, i].flatten(0, 1).mT).sub_(delta[h, i].flatten(0, 1)).mul_(p)
        d_bias[h] += d_s.unflatten(0, (-1, p.shape[0] // d_bias[h].shape[0])).sum(1)
        d_q[:, :n].baddbmm_(d_s, k[h, i].flatten(0, 1), beta=0, alpha=scale)
        d_k.baddbmm_(d_s.mT, q[h, i, :n].flatten(0, 1), beta=0, alpha=scale)
    return d_qkv, d_bias
