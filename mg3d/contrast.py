"""What contrastive methods share: losses over a batch, a queue of past features, a teacher that follows its student.

    two_way    1/2 [CE(s V T^t) + CE(s T V^t)] over unit rows, the right column on the diagonal (Radford et al. 2021)
    nt_xent    -1/2B sum_i log exp(z_i.z_i'/tau) / sum_{k != i} exp(z_i.z_k/tau) over the 2B views (Chen et al. 2020)
    against    -1/B sum_i log exp(q_i.k_i/tau) / [exp(q_i.k_i/tau) + sum_n exp(q_i.n/tau)], n a queue (He et al. 2020)
    agreement  -1/2 [cos(p, sg z') + cos(p', sg z)] of a pair, sg stops the gradient      (Chen and He, SimSiam 2021)
    Teacher    t <- m t + (1 - m) s                                                                (He et al. 2020)

All rows are normalised here, and all is computed in float32 at least. What changes from step to step lies in buffers or
in parameters without a gradient, so that a checkpoint holds it.
"""

import copy
from collections.abc import Iterator
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mg3d.losses import in_float32

Scales = list[Float[Tensor, "n _"]]  # features of several levels


@in_float32
def two_way(
    volume: Float[Tensor, "B E"], text: Float[Tensor, "B E"], multiplier: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Volumes find their texts among the batch's and texts their volumes; cosines are multiplied by `multiplier`."""
    logits = multiplier * F.normalize(volume, dim=-1) @ F.normalize(text, dim=-1).T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


@in_float32
def nt_xent(first: Float[Tensor, "B E"], second: Float[Tensor, "B E"], *, tau: float) -> Float[Tensor, ""]:
    """Each of the 2B views finds the other view of its sample among all the others. With one sample it is 0."""
    z = F.normalize(torch.cat([first, second]), dim=-1)
    logits = z @ z.T / tau
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(first)))


@in_float32
def against(
    query: Float[Tensor, "B E"], key: Float[Tensor, "B E"], others: Float[Tensor, "Q E"], *, tau: float
) -> Float[Tensor, ""]:
    """Each query finds its own key among it and the `others`. A mean over the queries: parts of a batch average."""
    q, k, n = (F.normalize(x, dim=-1) for x in (query, key, others))
    logits = torch.cat([torch.einsum("be,be->b", q, k)[:, None], q @ n.T], 1) / tau
    return F.cross_entropy(logits, logits.new_zeros(len(q), dtype=torch.long))


@in_float32
def agreement(
    z_one: Float[Tensor, "B E"], p_one: Float[Tensor, "B E"], z_two: Float[Tensor, "B E"], p_two: Float[Tensor, "B E"]
) -> Float[Tensor, "B"]:
    """How far two views' features z and what is predicted of them, p, are from each other, a pair a row; -1 at best."""
    return -(F.cosine_similarity(p_one, z_two.detach()) + F.cosine_similarity(p_two, z_one.detach())) / 2


def compared(one: list[Scales], two: list[Scales], k: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    """Mean agreement of two views' (z, p), features of several levels each, at a level k for each sample."""
    each = torch.stack([agreement(*level) for level in zip(*one, *two, strict=True)], 1)
    return each.gather(1, k[:, None]).mean()


def predictor(width: int) -> nn.Sequential:
    """SimSiam's head, z -> p: Linear to twice the width, batch norm, ReLU, Linear."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.BatchNorm1d(2 * width), nn.ReLU(), nn.Linear(2 * width, width))


@final
class FeatureQueue(nn.Module):
    """The last `size` features, unit rows of `width`; drawn at random until it has been filled once.

    `note` in the forward pass, with what `gather` returns; `advance` in `after_step`. So a step sees the queue of the
    steps before it, however many parts and processes it has.
    """

    rows: Tensor
    place: Tensor

    def __init__(self, size: int, width: int):
        """Raises ValueError for a size below 1."""
        super().__init__()
        if size < 1:
            raise ValueError(f"size={size}: a queue holds 1 feature or more")
        self.register_buffer("rows", F.normalize(torch.randn(size, width), dim=-1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))  # where the next one goes
        self._noted: Tensor | None = None

    @torch.no_grad()
    def note(self, features: Float[Tensor, "n E"]) -> None:
        """What `advance` will take in; in training alone, and of several calls the last one's."""
        if self.training:
            self._noted = F.normalize(features.detach().float(), dim=-1)

    @torch.no_grad()
    def advance(self) -> None:
        """The noted features replace the oldest ones; of more than there is room for, the last ones."""
        if self._noted is None:
            return
        size, noted = len(self.rows), self._noted[-len(self.rows) :]
        at = (self.place + torch.arange(len(noted), device=self.place.device)) % size
        self.rows[at] = noted.to(self.rows)
        self.place.copy_((self.place + len(noted)) % size)
        self._noted = None


@final
class Teacher(nn.Module):
    """A copy of a module that nobody trains: it follows its student by a moving average, `follow` in `after_step`.

    Its tensors are parameters without a gradient and buffers: part of a checkpoint, not of the optimiser. Floating
    buffers (running statistics) are averaged too, the others are copied.
    """

    def __init__(self, student: nn.Module, *, momentum: float = 0.999):
        """Raises ValueError for a momentum outside of [0, 1]."""
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum} is the share that stays: take a number from 0 to 1")
        self.momentum = momentum
        self.module = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the copy says, without a gradient."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """One step towards the student, a module of the same structure as the one that was copied."""
        for mine, its in zip(_tensors(self.module), _tensors(student), strict=True):
            if mine.is_floating_point():
                mine.lerp_(its.to(mine), 1 - self.momentum)
            else:
                mine.copy_(its)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, then buffers."""
    yield from module.parameters()
    yield from module.buffers()
