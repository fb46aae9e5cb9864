"""Apply a function box by box, a cacheful at a time, and again in the backward pass instead of remembering its insides.

Everything in a Swin block happens inside a box of cells. Done for a whole volume at once, the scores alone are a
gigabyte a tensor and a dozen tensors of that kind are written and read; done for a few boxes at a time, all of it stays
in the cache, and nothing but the block's input must be kept. On a processor that is both the faster and the smaller
way, although the forward pass is computed twice.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Piece = tuple[Int[Tensor, "_ _"], int]  # the rows of m boxes of n cells, and the number of their bias


def boxwise(
    f: Callable[[Float[Tensor, "m n E"], Float[Tensor, "heads n k"]], Float[Tensor, "m n E"]],
    x: Float[Tensor, "R E"],
    pieces: Sequence[Piece],
    biases: Sequence[Float[Tensor, "heads _ _"]],
    parameters: Sequence[nn.Parameter],
) -> Float[Tensor, "R E"]:
    """f applied to every piece; the pieces' rows must be a permutation of x's, `parameters` all that f uses.

    The gradients are those of f; weight gradients of reduced precision (autocast) are summed in the weights' precision.
    """
    return _Boxwise.apply(f, pieces, len(biases), x, *biases, *(p for p in parameters if p.requires_grad))


def _take(x: Float[Tensor, "R E"], rows: Int[Tensor, "m n"]) -> Float[Tensor, "m n E"]:
    return x.index_select(0, rows.flatten()).view(*rows.shape, -1)


def _put(x: Float[Tensor, "R E"], rows: Int[Tensor, "m n"], y: Float[Tensor, "m n E"]) -> None:
    x.index_copy_(0, rows.flatten(), y.flatten(0, 1).to(x.dtype))


class _Boxwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Callable, pieces: Sequence[Piece], kinds: int, x: Tensor, *rest: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for rows, kind in pieces:
            _put(out, rows, f(_take(x, rows), rest[kind]))
        ctx.f, ctx.pieces, ctx.kinds = f, pieces, kinds
        ctx.dtype, ctx.enabled = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
        ctx.save_for_backward(x, *rest)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        biases, parameters = rest[: ctx.kinds], rest[ctx.kinds :]
        d_x, d_biases, d_parameters = (
            torch.empty_like(x),
            *([torch.zeros_like(t) for t in ts] for ts in (biases, parameters)),
        )
        with torch.enable_grad(), torch.autocast("cpu", dtype=ctx.dtype, enabled=ctx.enabled):
            for rows, kind in ctx.pieces:
                part, bias = _take(x, rows).requires_grad_(), biases[kind].detach().requires_grad_()
                out = ctx.f(part, bias)
                d_part, d_bias, *ds = torch.autograd.grad(out, (part, bias, *parameters), _take(grad, rows))
                _put(d_x, rows, d_part)
                d_biases[kind] += d_bias
                if ds:
                    torch._foreach_add_(d_parameters, ds)  # pyright: ignore[reportPrivateImportUsage]
        return None, None, None, d_x, *d_biases, *d_parameters
