"""Rubik++: a puzzle of cubes that are also turned and masked (Zhu et al., Rubik's Cube+, Medical Image Analysis 2020).

    L = CE(order) + BCE(hor) + BCE(ver) + BCE(mask)                                       weights 1, 1, 1, 1

The cubes and the 100 orders are those of Jigsaw. Each cube by itself is turned by 180 degrees about one axis (it is
mirrored along the other two): with 1/3 about the first, hor = 1; with 1/3 about the last, ver = 1; else not. Then, with
1/2, its voxels are multiplied by coins of 1/2, mask = 1. Four heads of 1024 channels read the 8 x 64 of the cubes.

Departs from the original: volumes are those that all methods get. "First" and "last" are our D and W, from feet to head
and across. The name stands for Rubik's Cube+ (order, rotation, masking), not for the restoration by Tao et al.
"""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mg3d.encoders import Encoder
from mg3d.objectives import Objective, TextEncoder
from mg3d.puzzles import COINS, CUBES, MASKED, ORDER, SPINS, CubeReader, check_orders, cubes, dealt, order_head, orders
from mg3d.types import Batch, Losses
from mg3d.views import flip, noise, pick

TERMS = ("order", "hor", "ver", "mask")


@dataclass(frozen=True)
class RubikConfig:
    """Weights and sizes. ValueError unless there are 2 orders or more to choose from, and at most 8! of them."""

    order: float = 1.0
    hor: float = 1.0
    ver: float = 1.0
    mask: float = 1.0
    orders: int = 100
    jitter_slices: float = 5 / 37  # of a cell's side along D
    jitter_plane: float = 10 / 138  # along H and W
    features: int = 64  # of a cube
    hidden: int = 1024
    masked: float = 0.5  # share of the cubes, and of a masked one's voxels

    def __post_init__(self) -> None:
        check_orders(self.orders)


PAPER = RubikConfig()
VARIANTS = {"paper": PAPER}


@final
class RubikPlus(Objective):
    """Reads no reports; works with every encoder."""

    orders: Tensor

    def __init__(
        self,
        encoder: Encoder,
        text: TextEncoder | None = None,
        config: RubikConfig = PAPER,
        *,
        shape: tuple[int, int, int],
    ):
        super().__init__()
        c = self.config = config
        self.encoder = encoder
        self.register_buffer("orders", orders(c.orders).clone())
        self.reader = CubeReader(encoder.widths[-1], features=c.features)
        wide = self.reader.width
        heads: dict[str, nn.Module] = {"order": order_head(wide, hidden=c.hidden, orders=c.orders)}
        for name in TERMS[1:]:
            heads[name] = nn.Sequential(nn.Linear(wide, c.hidden), nn.ReLU(), nn.Linear(c.hidden, CUBES))
        self.heads = nn.ModuleDict(heads)

    def forward(self, batch: Batch) -> Losses:
        """The four terms, weighted."""
        losses: Losses = {}
        for name, (logits, label) in self.guess(batch).items():
            yes_no = F.binary_cross_entropy_with_logits
            term = F.cross_entropy(logits, label) if name == "order" else yes_no(logits, label.to(logits))
            losses[name] = getattr(self.config, name) * term
        return losses

    def guess(self, batch: Batch) -> dict[str, tuple[Float[Tensor, "B K"], Int[Tensor, "B *eight"]]]:
        """Logits of each head, and what is right."""
        pieces, labels = self.view(batch)
        read = self.reader(self.encoder(pieces.flatten(0, 1)).pooled)
        return {name: (self.heads[name](read), labels[name]) for name in TERMS}

    def view(self, batch: Batch) -> tuple[Float[Tensor, "B 8 1 d h w"], dict[str, Tensor]]:
        """The dealt, turned and masked cubes, and the labels: an order, and 0 or 1 for each place."""
        c, seeds = self.config, batch.seeds
        order = pick(seeds, c.orders, stream=ORDER)
        pieces = cubes(batch.volume, seeds, jitter=(c.jitter_slices, c.jitter_plane, c.jitter_plane))
        x = dealt(pieces, self.orders[order]).flatten(0, 1)
        spin = noise(seeds, CUBES, stream=SPINS) * 3
        hor, ver = spin < 1, (spin >= 1) & (spin < 2)
        x = flip(x, torch.stack([ver, hor | ver, hor], -1).flatten(0, 1))
        mask = noise(seeds, CUBES, stream=MASKED) < c.masked
        coins = noise(seeds, x[:CUBES].numel(), stream=COINS).view_as(x) < c.masked
        x = x * (coins | ~mask.view(-1, 1, 1, 1, 1))
        return x.unflatten(0, (-1, CUBES)), {"order": order, "hor": hor.long(), "ver": ver.long(), "mask": mask.long()}

    @torch.no_grad()
    def accuracy(self, batch: Batch) -> dict[str, float]:
        """Share told right by each head; by chance 0.01, 0.67, 0.67 and 0.5."""
        found = {}
        for name, (logits, label) in self.guess(batch).items():
            said = logits.argmax(1) if name == "order" else (logits > 0).long()
            found[name] = (said == label).float().mean().item()
        return found
