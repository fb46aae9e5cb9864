"""A toy objective and toy batches: the smallest things that the training loop accepts.

Run as a program (`python toy.py <home> <seconds a step>`) it fits the toy, so that a test can kill it.
"""

import os
import sys
import time
from collections.abc import Iterator

import torch
from torch import nn

from mg3d.encoders import Encoder
from mg3d.recipe import Recipe
from mg3d.types import Batch, Losses, Pyramid, Trainable

STEPS = 12


class ToyEncoder(Encoder):
    """Two convolutions of stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.widths, self.strides = (4, 16), (4, 16)
        self.a, self.b = nn.Conv3d(1, 4, 4, 4), nn.Conv3d(4, 16, 4, 4)

    def forward(self, volume, mask=None) -> Pyramid:
        fine = torch.tanh(self.a(volume))
        return Pyramid((fine, torch.tanh(self.b(fine))))


class Toy(Trainable):
    """Predicts the mean of the volume; `poison` makes the loss of one case not finite or huge."""

    def __init__(self, poison: dict[str, float] | None = None) -> None:
        super().__init__()
        self.encoder = ToyEncoder()
        self.head = nn.Linear(16, 1)
        self.dropout = nn.Dropout(0.2)  # a method with its own randomness must resume exactly too
        self.poison = poison or {}
        self.steps_seen = 0

    def forward(self, batch: Batch) -> Losses:
        guess = self.head(self.dropout(self.encoder(batch.volume).pooled))[:, 0]
        bad = [self.poison.get(i, 0.0) for i in batch.ids]
        return {"mean": (guess - batch.volume.mean((1, 2, 3, 4))).square().mean() + sum(bad)}

    def after_step(self) -> None:
        self.steps_seen += 1


class ToyBatches:
    """Four volumes a step, a pure function of the step's number."""

    def __init__(self, size: int = 4, seed: int = 0, seconds: float = 0.0) -> None:
        self.size, self.seed, self.seconds = size, seed, seconds

    @property
    def count(self) -> int:
        return 3 * self.size

    def batch(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(self.seed * 1000 + step)
        volume = torch.rand(self.size, 1, 16, 16, 16, generator=generator)
        return Batch(volume, tuple(f"case{step}-{i}" for i in range(self.size)), torch.arange(self.size) + step)

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            time.sleep(self.seconds)
            yield self.batch(step)

    def all(self) -> Iterator[Batch]:
        yield from (self.batch(s) for s in range(1000, 1003))


def main(home: str, seconds: float) -> None:
    """Fit the toy for STEPS steps in `home`, a checkpoint every third step."""
    os.environ["MG3D_HOME"] = home
    from mg3d.fit import fit
    from mg3d.runs import Run

    torch.set_num_threads(1)
    recipe = Recipe(steps=STEPS, checkpoint=3, lr=1e-2, lr_fusion=1e-2)
    run = Run.open(recipe)
    torch.manual_seed(0)
    model = Toy()
    print("started", flush=True)
    with run.lock():
        last = fit(model, run, recipe=recipe, train=ToyBatches(seconds=seconds), valid=ToyBatches())
        run.finish({"model": model.state_dict()}, {"last": last})


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
