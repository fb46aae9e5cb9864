"""A Swin block on a processor: a few boxes at a time, forward and backward by hand, on all cores.

Everything in a Swin block happens inside a box of cells. Done for a whole volume at once, the scores alone are a
gigabyte a tensor and a dozen such tensors are written and read. Here a *piece* of a few equal boxes passes through the
whole block while it is in the cache, in buffers that are used again; what the backward pass needs is computed there
once more, but for the attention's output O and the logarithm of its denominator.

Attention in base two: a processor's exp2 is three times as fast as its exp. With Q = log2(e) q / sqrt(c) and B the bias
times log2(e); every "..., 1" is a column that lets the matrix product add what would be a pass over the scores:

    forward    S = Q K^T + B      z = rowsum(exp2(S))      O = exp2(S) V / z      l = log2 z
    backward   P = exp2([Q, -l] [K, 1]^T + B)                     dS = P * ([dO, -rowsum(dO * O)] [V, 1]^T)
               dV = P^T dO        dQ = dS K                       dK = dS^T Q            dB = sum over boxes of dS

Pieces are dealt out in groups to as many threads as torch may use, and each group keeps gradient sums of its own, added
up in the end in a fixed order: so the numbers depend on neither the number of threads nor their luck.
"""

import math
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from mg3d.encoders.threads import scatter
from mg3d.encoders.windows import Kind

LOG2E = math.log2(math.e)
SAFE = 100.0  # exp2 of scores up to this, summed over a box, stays finite; and exp2 of minus that stays above zero
GROUPS = 16  # of pieces: enough that no thread waits long for another
EPS = 1e-5  # of LayerNorm

Piece = tuple[Int[Tensor, "_ _"], int]  # the rows of m boxes of n cells, and the number of their kind


class Weights(NamedTuple):
    """The parameters of a block but for the bias table, or their gradients."""

    norm1: Tensor
    norm1_bias: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    proj: Tensor
    proj_bias: Tensor
    norm2: Tensor
    norm2_bias: Tensor
    linear1: Tensor
    linear1_bias: Tensor
    linear2: Tensor
    linear2_bias: Tensor


def boxwise(
    x: Float[Tensor, "R E"],
    kinds: Sequence[Kind],
    pieces: Sequence[Piece],
    window: Float[Tensor, "heads w w"],
    weights: Weights,
) -> Float[Tensor, "R E"]:
    """A block on rows x; the pieces' rows must be a permutation of x's. `window` is the bias of a window's pairs.

    Under autocast the products of weights, P and dS have reduced precision; residuals, norms, scores, the softmax and
    all sums over pieces have float32 at least.
    """
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    return _Boxwise.apply(x, tuple(kinds), tuple(pieces), low, window, *weights)


class _Boxwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kinds: tuple[Kind, ...],
        pieces: tuple[Piece, ...],
        low: torch.dtype | None,
        window: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        block = Block(kinds, low or window.dtype, window, Weights(*weights))
        out, mixed = torch.empty_like(x), torch.empty(x.shape, dtype=block.low)
        log_z = torch.empty(len(x), len(window), dtype=block.exact)
        ctx.kinds, ctx.groups, ctx.low = kinds, _groups(pieces), low
        scatter([partial(block.forward, x, out, mixed, log_z, group) for group in ctx.groups])
        ctx.save_for_backward(x, mixed, log_z, window, *weights)
        return out

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mixed, log_z, window, *weights = ctx.saved_tensors
        block = Block(ctx.kinds, ctx.low or window.dtype, window, Weights(*weights))
        d_x, grad = torch.empty_like(x), grad.contiguous()
        work = [partial(block.backward, x, grad, mixed, log_z, d_x, group) for group in ctx.groups]
        d_window, d_weights = torch.zeros_like(window), [torch.zeros_like(w) for w in weights]
        for d_biases, parts in scatter(work):
            for kind, d_bias in d_biases.items():
                ctx.kinds[kind].bias_back(d_window, window, d_bias)
            torch._foreach_add_(d_weights, list(parts))  # pyright: ignore[reportPrivateImportUsage]
        return d_x, None, None, None, d_window, *d_weights


class Block:
    """One block's arithmetic on pieces. Reads shared tensors, writes only the rows of its pieces: safe on many threads.

    `low` is the precision of the large products, `exact` that of all else.
    """

    def __init__(self, kinds: Sequence[Kind], low: torch.dtype, window: Tensor, weights: Weights):
        self.heads, self.low, self.exact = len(window), low, window.dtype
        self.width = weights.proj.shape[0]
        self.channels = self.width // self.heads
        self.biases = [(LOG2E * kind.bias(window)).contiguous() for kind in kinds]
        self.w = Weights(*(t if name.startswith("norm") else t.to(low) for name, t in weights._asdict().items()))

    def forward(self, x: Tensor, out: Tensor, mixed: Tensor, log_z: Tensor, group: Sequence[Piece]) -> None:
        """Fill the rows of `out`, of `mixed` (the output O of attention) and of `log_z` (log2 of its denominator)."""
        for rows, kind in group:
            flat = rows.flatten()
            part = x.index_select(0, flat).to(self.exact)
            q, k, v = self.split(self.linear("qkv", self.norm("norm1", part)[0]), rows.shape, kind)
            o, z = self.attend(q, k, v, kind)
            mixed.index_copy_(0, flat, o)
            log_z.index_copy_(0, flat, z)
            part += self.linear("proj", o)
            hidden = self.linear("linear1", self.norm("norm2", part)[0])
            part += self.linear("linear2", F.gelu(hidden))
            out.index_copy_(0, flat, part.to(out.dtype))

    def backward(
        self, x: Tensor, grad: Tensor, mixed: Tensor, log_z: Tensor, d_x: Tensor, group: Sequence[Piece]
    ) -> tuple[dict[int, Tensor], Weights]:
        """Fill the rows of `d_x`; return the sums of the gradients of the biases met here, and of the weights."""
        d_biases: dict[int, Tensor] = {}
        d = Weights(*(torch.zeros_like(t, dtype=self.exact) for t in self.w))
        for rows, kind in group:
            flat = rows.flatten()
            part, g, o = (t.index_select(0, flat) for t in (x, grad, mixed))
            part, g = part.to(self.exact), g.to(self.exact)
            y, *moments = self.norm("norm1", part)
            middle = part + self.linear("proj", o)
            g += self.perceptron_back(d, middle, g)
            d_o = self.linear_back("proj", d, o, g)
            if kind not in d_biases:
                d_biases[kind] = torch.zeros(self.biases[kind].shape, dtype=self.exact)
            d_qkv, d_s = self.attend_back(y, d_o, o, log_z.index_select(0, flat), rows.shape, kind, d)
            for one in d_s.unbind(1):  # no pass but this over dS: twice as fast as its sum, four times in bf16
                d_biases[kind] += one
            g += self.norm_back("norm1", d, part, moments, self.linear_back("qkv", d, y, d_qkv))
            d_x.index_copy_(0, flat, g.to(d_x.dtype))
        return d_biases, d

    def perceptron_back(self, d: Weights, middle: Tensor, g: Tensor) -> Tensor:
        """The gradient that passes through the second half of the block."""
        y, *moments = self.norm("norm2", middle)
        hidden = self.linear("linear1", y)
        d_hidden = self.linear_back("linear2", d, F.gelu(hidden), g)
        d_hidden = torch.ops.aten.gelu_backward(d_hidden, hidden)
        return self.norm_back("norm2", d, middle, moments, self.linear_back("linear1", d, y, d_hidden))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, kind: int) -> tuple[Tensor, Tensor]:
        """The output O [r, E] of attention, and log2 of its denominator, [r, heads]."""
        c, s = self.channels, self.scores(q[..., : self.channels], k[..., : self.channels], kind)
        low, high = s.aminmax()
        shift = s.amax(-1, keepdim=True) if max(high.item(), -low.item()) > SAFE else None
        p = (s if shift is None else s.sub_(shift)).exp2_()
        z = p.sum(-1, keepdim=True)
        o = torch.bmm(self.lowered("p", p), v[..., :c]).div_(z)
        z.log2_()
        log_z = z if shift is None else z.add_(shift)
        return self.joined(o), self.joined(log_z)

    def attend_back(
        self, y: Tensor, d_o: Tensor, o: Tensor, log_z: Tensor, shape: torch.Size, kind: int, d: Weights
    ) -> tuple[Tensor, Tensor]:
        """Gradients of q, k and v, [r, 3E], and dS [heads, m, n, keys]; `d` gets what falls to padded cells."""
        (m, n), h, c = shape, self.heads, self.channels
        q, k, v = self.split(self.linear("qkv", y), shape, kind)
        q.view(h, m, n, -1)[..., c] = -log_z.view(m, n, h).permute(2, 0, 1)
        p = self.scores(q, k, kind).exp2_()
        g = self.buffer("g", h, m, n, c + 1, dtype=self.low)
        g[..., :c] = d_o.view(m, n, h, c).permute(2, 0, 1, 3)
        torch.sum((d_o * o).view(m, n, h, c).permute(2, 0, 1, 3), -1, out=g[..., c]).neg_()
        g, p = g.flatten(0, 1), self.lowered("p", p)
        d_s = torch.bmm(g, v.mT, out=self.buffer("d_s", *p.shape, dtype=self.low)).mul_(p)
        d_v = torch.bmm(p.mT, g[..., :c])
        d_k = torch.bmm(d_s.mT, self.lowered("q", q[..., :c])).mul_(1 / LOG2E)
        d_q = torch.bmm(d_s, self.lowered("k", k[..., :c])).mul_(c**-0.5)
        d_qkv = torch.empty(m, n, 3, h, c, dtype=self.low)
        for i, t in enumerate((d_q, d_k, d_v)):
            d_qkv[:, :, i] = t.view(h, m, -1, c)[:, :, :n].permute(1, 2, 0, 3)
        if k.shape[1] > n:
            for i, t in ((1, d_k), (2, d_v)):
                d.qkv_bias.view(3, h, c)[i] += t.view(h, m, -1, c)[:, :, n].sum(1, dtype=self.exact)
        return d_qkv.view(m * n, -1), d_s.view(h, m, n, -1)

    def split(self, qkv: Tensor, shape: torch.Size, kind: int) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K and V [heads * m, n, c + 1] of qkv [r, 3E], a padded cell appended where the bias has a column for it.

        Q is log2(e) q / sqrt(c); the last columns are 0, 1 and 1.
        """
        (m, n), h, c, keys = shape, self.heads, self.channels, self.biases[kind].shape[2]
        parts = qkv.view(m, n, 3, h, c).permute(2, 3, 0, 1, 4)
        cell = self.w.qkv_bias.view(3, h, 1, c)
        out = []
        for i, (name, dtype) in enumerate((("q", self.exact), ("k", self.exact), ("v", self.low))):
            t = self.buffer(name, h, m, n if i == 0 else keys, c + 1, dtype=dtype)
            t[:, :, :n, :c] = parts[i]
            if t.shape[2] > n:
                t[:, :, n, :c] = cell[i]
            t[..., c] = float(i > 0)
            out.append(t.flatten(0, 1))
        out[0].mul_(LOG2E * c**-0.5)
        return tuple(out)

    def scores(self, q: Tensor, k: Tensor, kind: int) -> Tensor:
        """S = Q K^T + B, [heads * m, n, keys]."""
        bias = self.biases[kind]
        s = self.buffer("s", self.heads, len(q) // self.heads, *bias.shape[1:], dtype=self.exact)
        return s.copy_(bias[:, None]).flatten(0, 1).baddbmm_(q, k.mT)

    def joined(self, t: Tensor) -> Tensor:
        """[heads * m, n, c] -> [m * n, heads * c]."""
        return t.unflatten(0, (self.heads, -1)).permute(1, 2, 0, 3).flatten(2).flatten(0, 1)

    def lowered(self, name: str, t: Tensor) -> Tensor:
        """t in the precision of the products."""
        return t if self.low == self.exact else self.buffer(f"low {name}", *t.shape, dtype=self.low).copy_(t)

    def norm(self, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A LayerNorm, with its moments."""
        weight, bias = getattr(self.w, name), getattr(self.w, f"{name}_bias")
        y, mean, rstd = torch.native_layer_norm(x, (self.width,), weight, bias, EPS)
        return y.to(self.low), mean, rstd

    def norm_back(self, name: str, d: Weights, x: Tensor, moments: Sequence[Tensor], g: Tensor) -> Tensor:
        """The gradient of x; adds those of weight and bias to `d`."""
        weight, bias = getattr(self.w, name), getattr(self.w, f"{name}_bias")
        d_x, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
            g.to(self.exact), x, (self.width,), *moments, weight, bias, (True, True, True)
        )
        getattr(d, name).add_(d_weight)
        getattr(d, f"{name}_bias").add_(d_bias)
        return d_x

    def linear(self, name: str, x: Tensor) -> Tensor:
        """A projection."""
        return F.linear(x.to(self.low), getattr(self.w, name), getattr(self.w, f"{name}_bias"))

    def linear_back(self, name: str, d: Weights, x: Tensor, g: Tensor) -> Tensor:
        """The gradient of x; adds those of weight and bias to `d`."""
        g = g.to(self.low)
        getattr(d, name).add_(g.T @ x)
        getattr(d, f"{name}_bias").add_(g.sum(0, dtype=self.exact))
        return g @ getattr(self.w, name)

    def buffer(self, name: str, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory of this thread, left over from its last piece."""
        size, old = math.prod(shape), _memory.held.get((name, dtype))
        if old is None or old.numel() < size:
            old = _memory.held[name, dtype] = torch.empty(size, dtype=dtype)
        return old[:size].view(shape)


class _Memory(threading.local):
    """Buffers of a thread."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], Tensor] = {}


_memory = _Memory()


def _groups(pieces: Sequence[Piece]) -> list[Sequence[Piece]]:
    """Runs of neighbouring pieces, about equal in their number of scores."""
    costs = torch.tensor([rows.numel() * rows.shape[1] for rows, _ in pieces], dtype=torch.float64).cumsum(0)
    place = ((costs - costs[0] / 2) / costs[-1] * GROUPS).long().clamp(0, GROUPS - 1).tolist()
    return [[p for p, j in zip(pieces, place, strict=True) if j == i] for i in sorted(set(place))]
