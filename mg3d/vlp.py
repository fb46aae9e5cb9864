"""What methods share that learn from volumes and their reports: reading a batch, and wrong pairs."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mg3d.types import Batch, Report
from mg3d.views import noise

PAIRS = 101  # stream of the draws: which pairs are wrong


def told(batch: Batch, method: str) -> Report:
    """The reports of a batch. Raises ValueError, naming the method, where there are none."""
    if batch.report is None:
        raise ValueError(f"{method} learns from reports: this batch has none; take a corpus with reports")
    return batch.report


def wrong_pairs(seeds: Int[Tensor, "B"]) -> tuple[Int[Tensor, "B"], Bool[Tensor, "B"]]:
    """For image-text matching: whose volume each report gets, and whether that is its own.

    Half of the batch (rounded down), drawn by the seeds, trade volumes in a ring, so that none of them keeps its own;
    a single one takes that of another. A batch of one is right.
    """
    order = noise(seeds, 1, stream=PAIRS)[:, 0].argsort(stable=True)
    ring = order[: len(seeds) // 2]
    volume = torch.arange(len(seeds), device=seeds.device)
    volume[ring] = ring.roll(1) if len(ring) > 1 else order[1 : 1 + len(ring)]
    return volume, volume == torch.arange(len(seeds), device=seeds.device)
