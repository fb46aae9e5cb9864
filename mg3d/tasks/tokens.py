"""Volume tokens at the width of a task's head, under the names that a pre-trained objective has for its own."""

from collections.abc import Mapping
from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mg3d.encoders import Encoder
from mg3d.types import Pyramid


@final
class VolumeTokens(nn.Module):
    """F_I: the cells of one level of a pyramid, each with those of the coarser levels that it lies in.

    `level` counts from the coarsest one, -1. Weights are named as in MG-3D, so that `take` finds them in its runs.
    Raises ValueError when the encoder has no such level.
    """

    def __init__(self, encoder: Encoder, *, width: int, level: int = -1):
        super().__init__()
        if not -len(encoder.widths) <= level < 0:
            raise ValueError(f"level={level}: the encoder has the levels -1 (coarsest) to {-len(encoder.widths)}")
        self.level = level
        self.from_volume, *coarser = (nn.Linear(w, width) for w in encoder.widths[level:])
        self.from_coarser = nn.ModuleList(coarser)

    def forward(self, pyramid: Pyramid) -> Float[Tensor, "B N E"]:
        """Tokens of the level, d slowest."""
        first, *coarser = pyramid.levels[self.level :]
        d, h, w = first.shape[2:]
        x = self.from_volume(first.movedim(1, -1))
        for layer, cells in zip(self.from_coarser, coarser, strict=True):
            above = layer(cells.movedim(1, -1)).movedim(-1, 1)
            x = x + F.interpolate(above, size=(d, h, w), mode="nearest").movedim(1, -1)
        return x.flatten(1, 3)


def take(module: nn.Module, state: Mapping[str, Tensor], *, prefix: str = "") -> None:
    """Load a module strictly from the weights of a larger one, `prefix` before its names there.

    Raises ValueError naming the first weight that is not there, or has another shape.
    """
    own = module.state_dict()
    for name, tensor in own.items():
        found = state.get(prefix + name)
        if found is None or found.shape != tensor.shape:
            there = "is not among the weights" if found is None else f"has the shape {tuple(found.shape)} there"
            raise ValueError(
                f"{prefix}{name} {there}, {tuple(tensor.shape)} is needed: give the task the width and level of the run"
            )
    module.load_state_dict({name: state[prefix + name] for name in own})
