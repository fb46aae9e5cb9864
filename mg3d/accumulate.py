"""A step in parts with the gradient of the whole batch, after GradCache (Gao et al., RepL4NLP 2021), for any method.

A loss that is a mean over samples is the mean of its parts. One that compares samples needs the features of all of
them at once, but the activations of one part only:

    first pass   without gradient: what each part hands to `gather` is kept, a few vectors a sample
    second pass  part by part: `gather` gives the whole batch, in which the part's own slice has a gradient

Each of the K parts counts 1/K and knows the gradient of its own slice alone, so that is taken K times: as
`distributed.gather` does for processes. The two compose: a part's features are those of all processes, and the parts,
one after the other, are the batch in the loader's order. `once` computes a loss of gathered features with its gradient
for the first part, and the others take it from there.

Both passes must see the same features. Views come from `Batch.seeds` and dropout from a seed for each part; a method
that draws in another way is stopped. A norm over the batch sees a part, as it sees the share of a process.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor

from mg3d import distributed
from mg3d.types import Batch, Losses, Trainable

_Solved = tuple[Tensor, tuple[Tensor, ...]]  # a value, and its gradients

SPREAD = 0x9E3779B1  # between the seeds of a step's parts: the golden ratio of 32 bits, odd
DRIFT = 0.02  # what the passes' features may differ by, of the largest; bfloat16 rounds at 0.004


@final
class Parts:
    """Takes each step of a model in `parts` parts; `forward(batch, last)` runs the model on one of them.

    Whether a method compares samples shows in its first step. One that does not takes a single pass from then on.
    """

    def __init__(self, model: Trainable, *, parts: int, forward: Callable[[Batch, bool], Losses]):
        self.model, self.parts, self._forward = model, parts, forward
        self._compares = parts > 1

    def backward(self, read: Callable[[int], Iterable[Batch]], *, seed: int) -> list[tuple[Losses, tuple[str, ...]]]:
        """Add the gradient of a step to that of the parameters; returns losses and cases of each part.

        `read(k)` yields the step's parts from the k-th on; it is asked again for each pass, so that they need not be
        held. Raises RuntimeError for a method whose calls of `gather`, or whose features, change between passes.
        """
        whole = self._first_pass(read, seed) if self._compares else None
        self._compares = whole is not None
        found = []
        for part, batch in enumerate(read(0)):
            torch.manual_seed(seed + part * SPREAD)
            with self._comparing(whole, part):
                losses = self._forward(batch, part == self.parts - 1)
            (torch.stack(list(losses.values())).sum() / self.parts).backward()
            found.append(({name: value.detach() for name, value in losses.items()}, batch.ids))
        if whole is not None:
            whole.check()
        return found

    @torch.no_grad()
    def _first_pass(self, read: Callable[[int], Iterable[Batch]], seed: int) -> "_Whole | None":
        """The features of all parts but the first, which adds its own in the second pass; None where there are none."""
        whole = _Whole(self.parts)
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        for part, batch in enumerate(read(1), start=1):
            torch.manual_seed(seed + part * SPREAD)
            with whole.part(part), _set(self.model, gather=whole.keep, once=_later, only_gathers=True):
                self._forward(batch, False)
            if not whole.calls:
                break
        for buffer, before in buffers:  # a running mean moves once a step
            buffer.copy_(before)
        return whole if whole.calls else None

    @contextmanager
    def _comparing(self, whole: "_Whole | None", part: int) -> Iterator[None]:
        """What `gather` and `once` are in the second pass, or in the only one."""
        if whole is not None:
            with whole.part(part), _set(self.model, gather=whole.gather, once=whole.once):
                yield
        elif self.parts > 1:
            with _set(self.model, gather=_refuse):
                yield
        else:
            yield


class _Whole:
    """What the parts of a step gather."""

    def __init__(self, parts: int):
        self.parts = parts
        self.calls = 0  # of `gather`, by each part
        self.kept: list[deque[Tensor]] = [deque() for _ in range(1, parts)]  # by part, from the second on, and call
        self.joined: list[Tensor] = []  # by call
        self.known: list[_Solved] = []  # by call of `once`
        self.apart: list[Tensor] = []  # largest differences between the passes

    @contextmanager
    def part(self, number: int) -> Iterator[None]:
        """Count the calls of a part. RuntimeError when another part made more or fewer."""
        self.number, self.gathers, self.onces = number, 0, 0
        yield
        self.calls = self.calls or self.gathers
        if self.gathers != self.calls:
            raise _unequal()

    def keep(self, x: Tensor) -> Tensor:
        """`gather` of the first pass."""
        x = distributed.gather(x)
        self.kept[self.number - 1].append(x)
        self.gathers += 1
        return x

    def gather(self, x: Tensor) -> Tensor:
        """`gather` of the second pass: x of all parts, this one's with a gradient."""
        x, call = distributed.gather(x), self.gathers
        self.gathers += 1
        if call >= self.calls:
            raise _unequal()
        if self.number == 0:
            self.joined.append(_join([x.detach(), *(features.popleft() for features in self.kept)]))
        whole, first = self.joined[call], self.number * len(x)
        if not x.requires_grad:
            return whole
        own = _own(whole, x.shape, first)
        self.apart.append((own - x.detach()).abs().amax() / own.abs().amax().clamp_min(1e-12))
        return _Slice.apply(x, whole, first, self.parts)

    def once(self, loss: Callable[..., Tensor], *inputs: Tensor, **options: Any) -> Tensor:
        """`once` of the second pass."""
        if self.number == 0:
            self.known.append(_solve(loss, inputs, options))
        value, gradients = self.known[self.onces]
        self.onces += 1
        return _Known.apply(value, gradients, *(x for x in inputs if x.requires_grad))

    def check(self) -> None:
        """RuntimeError when a feature of the second pass was not that of the first."""
        worst = float(torch.stack(self.apart).amax()) if self.apart else 0.0
        if worst > DRIFT:
            raise RuntimeError(
                f"the features of a part changed by {worst:.0%} between the two passes of a step: the method draws "
                "random numbers that neither Batch.seeds nor torch.manual_seed decides, or draws fewer when "
                "`only_gathers` is set; mend that, or train with accumulate=1"
            )


class _Slice(torch.autograd.Function):
    """The whole batch; the gradient of the part's own slice counts for every part."""

    @staticmethod
    def forward(ctx, x: Tensor, whole: Tensor, first: int, parts: int) -> Tensor:
        ctx.shape, ctx.first, ctx.parts = x.shape, first, parts
        return whole.detach()  # another tensor over the same numbers: each part has its own graph

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _own(grad, ctx.shape, ctx.first) * ctx.parts, None, None, None


class _Known(torch.autograd.Function):
    """A value whose gradients are known."""

    @staticmethod
    def forward(ctx, value: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.detach()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(grad * known for known in ctx.gradients)


def _own(whole: Tensor, shape: torch.Size, first: int) -> Tensor:
    """The slice of a part: its samples from `first` on, without the padding."""
    own = whole[first : first + shape[0]]
    return own[:, : shape[1]] if len(shape) > 1 else own


def _join(features: list[Tensor]) -> Tensor:
    """Concatenate the features of all parts; their lengths along dimension 1 may differ."""
    if features[0].dim() > 1:
        longest = max(x.shape[1] for x in features)
        features = [distributed.lengthened(x, longest) for x in features]
    return torch.cat(features)


def _solve(loss: Callable[..., Tensor], inputs: Sequence[Tensor], options: dict[str, Any]) -> _Solved:
    """Value and gradients of a loss. RuntimeError when it learns: its own gradient would be lost."""
    leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
    value = loss(*leaves, **options)
    wanted = [x for x in leaves if x.requires_grad]
    if not value.requires_grad:
        return value, ()
    if not _reached(value) <= {id(x) for x in wanted}:
        raise RuntimeError(
            f"once: {getattr(loss, '__name__', loss)} depends on parameters that are none of its inputs; call it as it "
            "is, on what `gather` returns"
        )
    return value.detach(), torch.autograd.grad(value, wanted, materialize_grads=True)


def _reached(value: Tensor) -> set[int]:
    """Identities of the tensors that a gradient of `value` ends in."""
    seen, waiting, found = set(), [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
            leaf = getattr(node, "variable", None)  # of a node that accumulates a gradient
            found |= set() if leaf is None else {id(leaf)}
    return found


def _later(loss: Callable[..., Tensor], *inputs: Tensor, **options: Any) -> Tensor:
    """`once` of the first pass: nobody asks for a loss yet."""
    return torch.zeros(())


def _refuse(x: Tensor) -> Tensor:
    """`gather` of a method that seemed to compare nothing."""
    raise RuntimeError(
        "a method gathers features that gathered none in the first step: it must do so in every step, or train with "
        "accumulate=1"
    )


def _unequal() -> RuntimeError:
    return RuntimeError(
        "a method gathers more features for one part of a step than for another: it must gather the same for "
        "every batch, or train with accumulate=1"
    )


@contextmanager
def _set(model: Trainable, **values: Any) -> Iterator[None]:
    """Members of a model for a while."""
    before = {name: getattr(model, name) for name in values}
    try:
        for name, value in values.items():
            setattr(model, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)
