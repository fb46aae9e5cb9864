"""Volumes as puzzles of 2x2x2 cubes: how they are cut, the orders that they are dealt in, and what reads them.

Cells are half of the volume a side. A cube is taken from a random place of its cell, smaller by the jitter, so that
neighbours do not match at their borders. Orders are chosen one by one, each the farthest from those before it by the
sum of Hamming distances (Noroozi and Favaro, ECCV 2016).
"""

import functools
import itertools
from typing import Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mg3d.views import noise

CUBES: Final = 8
CUBE_PLACE: Final = 20  # streams of noise
ORDER: Final = 21
SPINS: Final = 22
MASKED: Final = 23
COINS: Final = 24


@functools.cache
def orders(count: int = 100) -> Int[Tensor, "K 8"]:
    """The first `count` orders of 8 cubes, the first of them the right one; always the same."""
    free = torch.tensor(list(itertools.permutations(range(CUBES))))
    chosen, distance = [0], torch.zeros(len(free), dtype=torch.long)
    for _ in range(count - 1):
        distance += (free != free[chosen[-1]]).sum(1)
        distance[chosen[-1]] = -len(free) * CUBES  # never again
        chosen.append(int(distance.argmax()))
    return free[chosen]


def cubes(
    volume: Float[Tensor, "B 1 D H W"], seeds: Int[Tensor, "B"], *, jitter: tuple[float, float, float]
) -> Float[Tensor, "B 8 1 d h w"]:
    """The cubes in their right order, d slowest; `jitter` is the share of a cell's side that a cube lacks.

    Raises ValueError for volumes of fewer than two voxels a side.
    """
    if min(volume.shape[2:]) < 2:
        raise ValueError(f"a volume of {tuple(volume.shape[2:])} voxels cannot be cut into 2 x 2 x 2 cubes")
    cell = [n // 2 for n in volume.shape[2:]]
    side = [max(1, n - round(share * n)) for n, share in zip(cell, jitter, strict=True)]
    room = torch.tensor([n - s + 1 for n, s in zip(cell, side, strict=True)], device=seeds.device)
    offset = (noise(seeds, 3 * CUBES, stream=CUBE_PLACE).view(-1, CUBES, 3) * room).long().tolist()
    corners = list(itertools.product((0, 1), repeat=3))
    found = []
    for x, moves in zip(volume, offset, strict=True):
        for corner, move in zip(corners, moves, strict=True):
            i, j, k = (at * n + more for at, n, more in zip(corner, cell, move, strict=True))
            found.append(x[:, i : i + side[0], j : j + side[1], k : k + side[2]])
    return torch.stack(found).unflatten(0, (-1, CUBES))


def dealt(pieces: Float[Tensor, "B 8 1 d h w"], order: Int[Tensor, "B 8"]) -> Float[Tensor, "B 8 1 d h w"]:
    """Place i holds the cube order[i]."""
    return pieces[torch.arange(len(pieces), device=order.device)[:, None], order]


@final
class CubeReader(nn.Module):
    """Features of 8 cubes -> one vector: Linear to `features`, ReLU and batch norm of each, side by side."""

    def __init__(self, width: int, *, features: int = 64):
        super().__init__()
        self.each = nn.Sequential(nn.Linear(width, features), nn.ReLU(), nn.BatchNorm1d(features))
        self.width = CUBES * features

    def forward(self, pooled: Float[Tensor, "n E"]) -> Float[Tensor, "B F"]:
        """Cubes of a volume follow each other."""
        return self.each(pooled).unflatten(0, (-1, CUBES)).flatten(1)


def order_head(width: int, *, hidden: int, orders: int) -> nn.Sequential:
    """Features of 8 cubes -> logits of the orders, through two layers of `hidden` channels."""
    deep = nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
    return nn.Sequential(*deep, nn.Linear(hidden, orders))


def check_orders(orders: int) -> None:
    """Raise ValueError unless there are 2 orders or more to choose from, and at most 8! of them."""
    if not 2 <= orders <= 40_320:
        raise ValueError(f"orders={orders}: take 2 to 40320")
