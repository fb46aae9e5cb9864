"""Jigsaw: in which of 100 orders were the volume's 2x2x2 cubes dealt? (Noroozi and Favaro, ECCV 2016; in 3-D Taleb et
al., NeurIPS 2020.)

    L = CE(order)

Each cube, jittered in its cell, goes through the encoder; its pooled feature becomes 64 channels (Linear, ReLU, batch
norm); the 8 x 64 channels become 1024, 1024 and 100 logits. The original cuts cells of 138 x 138 x 37 voxels and takes
128 x 128 x 32 of them; we take the same shares, so a volume of 128 x 96 x 128 gives cubes of 55 x 45 x 59.

Departs from the original: volumes are those that all methods get, already centre-cropped. The orders are built in the
same way, greedily by Hamming distance, but from the right order on, so they are other ones.
"""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mg3d.encoders import Encoder
from mg3d.objectives import Objective, TextEncoder
from mg3d.puzzles import ORDER, CubeReader, check_orders, cubes, dealt, order_head, orders
from mg3d.types import Batch, Losses
from mg3d.views import pick


@dataclass(frozen=True)
class JigsawConfig:
    """ValueError unless there are 2 orders or more to choose from, and at most 8! of them."""

    orders: int = 100
    jitter_slices: float = 5 / 37  # of a cell's side along D
    jitter_plane: float = 10 / 138  # along H and W
    features: int = 64  # of a cube
    hidden: int = 1024

    def __post_init__(self) -> None:
        check_orders(self.orders)


PAPER = JigsawConfig()
VARIANTS = {"paper": PAPER}


@final
class Jigsaw(Objective):
    """Reads no reports; works with every encoder."""

    orders: Tensor

    def __init__(
        self,
        encoder: Encoder,
        text: TextEncoder | None = None,
        config: JigsawConfig = PAPER,
        *,
        shape: tuple[int, int, int],
    ):
        super().__init__()
        c = self.config = config
        self.encoder = encoder
        self.register_buffer("orders", orders(c.orders).clone())
        self.reader = CubeReader(encoder.widths[-1], features=c.features)
        self.order = order_head(self.reader.width, hidden=c.hidden, orders=c.orders)

    def forward(self, batch: Batch) -> Losses:
        """Cross-entropy of the order."""
        logits, label = self.guess(batch)
        return {"order": F.cross_entropy(logits, label)}

    def guess(self, batch: Batch) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B"]]:
        """Logits of the orders, and the right one."""
        pieces, label = self.view(batch)
        return self.order(self.reader(self.encoder(pieces.flatten(0, 1)).pooled)), label

    def view(self, batch: Batch) -> tuple[Float[Tensor, "B 8 1 d h w"], Int[Tensor, "B"]]:
        """The dealt cubes, and the number of their order."""
        c = self.config
        pieces = cubes(batch.volume, batch.seeds, jitter=(c.jitter_slices, c.jitter_plane, c.jitter_plane))
        label = pick(batch.seeds, c.orders, stream=ORDER)
        return dealt(pieces, self.orders[label]), label

    @torch.no_grad()
    def accuracy(self, batch: Batch) -> float:
        """Share of the volumes whose order is told right; by chance a hundredth."""
        logits, label = self.guess(batch)
        return (logits.argmax(1) == label).float().mean().item()
