"""A linear probe encodes each volume once: a frozen encoder gives the same each time. Its steps then see all of them.

small, batches = held(task, batches, plan=transfer)       the head of `task` on features that are kept
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from mg3d import distributed, paths
from mg3d.encoders import Encoder
from mg3d.fit import Batches, autocast
from mg3d.recipe import Plan
from mg3d.tasks.classify import Classify, Standardise
from mg3d.types import Batch, Pyramid


@final
class Given(Encoder):
    """An encoder of what is encoded already: a "volume" [B, 1, E, 1, 1] is a map of one cell, E wide."""

    def __init__(self, width: int):
        super().__init__()
        self.widths, self.strides = (width,), (1,)

    def forward(self, volume: Tensor, mask: Tensor | None = None) -> Pyramid:
        """The features, whatever the mask."""
        return Pyramid((volume.transpose(1, 2),))


@final
class Held:
    """All cases of a split in one batch, for every step."""

    def __init__(self, batch: Batch):
        self.batch = batch

    @property
    def count(self) -> int:
        """How many cases the batch has."""
        return len(self.batch.ids)

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """The batch, for each step."""
        return (self.batch for _ in range(start, stop))

    def all(self) -> Iterator[Batch]:
        """The batch, once."""
        yield self.batch


def held(task: Classify, batches: Mapping[str, Batches], *, plan: Plan) -> tuple[Classify, dict[str, Batches]]:
    """A task with the same head on features that are kept, and those of each split; the head's norm is set by train.

    Raises ValueError for `accumulate` above 1: the one batch of a probe is not cut into parts.
    """
    if plan.accumulate > 1:
        raise ValueError(f"accumulate={plan.accumulate}: a probe takes its one batch of features as a whole")
    encoder = task.encoder.to(distributed.device()).eval()
    kept: dict[str, Batches] = {split: Held(_features(encoder, some, plan=plan)) for split, some in batches.items()}
    small = Classify(Given(encoder.widths[-1]), names=task.names, exclusive=task.exclusive, among=task.among)
    small.norm, small.head = task.norm, task.head
    if isinstance(task.norm, Standardise):
        task.norm.fit(next(kept["train"].all()).volume[:, 0, :, 0, 0])
    return small, kept


@torch.no_grad()
def _features(encoder: Encoder, batches: Batches, *, plan: Plan) -> Batch:
    """One batch of a split whose volumes are the pooled features, encoded if they are not kept."""
    device = next(encoder.parameters()).device
    place = _place(encoder, batches, plan=plan)
    known = _kept(place)
    pooled: list[Tensor] = []
    parts: list[Batch] = []
    for batch in batches.all():
        if known is None:
            with autocast(plan, device):
                pooled.append(encoder(batch.volume.to(device)).pooled.float().cpu())
        parts.append(batch)
    targets = [b.target for b in parts if b.target is not None]
    ids = tuple(i for b in parts for i in b.ids)
    features = torch.cat(pooled) if known is None else torch.from_numpy(known)
    if known is None:
        buffer = io.BytesIO()
        np.save(buffer, features.numpy())
        paths.write_atomic(place, buffer.getvalue())
    return Batch(
        volume=features[:, None, :, None, None],
        ids=ids,
        seeds=torch.cat([b.seeds for b in parts]),
        target=torch.cat(targets) if targets else None,
    )


def _place(encoder: Encoder, batches: Batches, *, plan: Plan) -> Path:
    """Where the features of a split are kept: named by all that they are computed from."""
    digest = hashlib.sha256(f"{type(encoder).__name__} {plan.precision} {plan.filled.batch}".encode())
    for name, value in encoder.state_dict().items():
        digest.update(f"{name} {value.device.type} {tuple(value.shape)}".encode())
        digest.update(value.cpu().numpy().tobytes())
    for entry in getattr(batches, "entries"):  # noqa: B009  (of a Loader)
        digest.update(entry.array.name.encode())
    return paths.cache() / "features" / f"{digest.hexdigest()[:24]}.npy"


def _kept(place: Path) -> np.ndarray | None:
    """Features that are there and whole."""
    try:
        return np.load(place, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
