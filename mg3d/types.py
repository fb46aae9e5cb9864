"""The handful of types that every part shares, and the one legend of shape letters.

    B  batch            D H W  voxels of a volume (superior, posterior, left; see below)
    S  sentences        d h w  cells of a mask or of a token grid
    L  words of a report (tokens, with [CLS] and [SEP])
    T  words of one sentence by itself (with [CLS] and [SEP])
    N  volume tokens    E      width of a feature

**Frame of a prepared volume.** Axis D runs from feet to head, H from front to back, W from the patient's right to the
left. So `volume[k]` drawn with row 0 on top is an axial slice as radiologists read it (front on top, the patient's
right on the left of the picture), and `volume[::-1, j]` is a coronal one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Losses = dict[str, Tensor]  # named, weighted scalars; the training loop sums them


@dataclass(frozen=True)
class Case:
    """One volume with its report, as a corpus lists it. Nothing is read yet."""

    id: str
    patient: str
    split: str  # train | valid | test
    volume: Path  # a NIfTI file or a folder that holds one DICOM series
    report: str
    labels: Mapping[str, int] = field(default_factory=dict)
    rescale: tuple[float, float] | None = None  # slope and intercept that a metadata table states, if one does
    truth: Path | None = None  # the phantom's ground truth (JSON), else None
    mask: Path | None = None  # a NIfTI file of whole numbers on the volume's grid: what is to be segmented


@dataclass(frozen=True)
class Report:
    """B tokenised reports. Padding has the id `pad`; numbers are -1 where a token belongs to no word or sentence."""

    words: Int[Tensor, "B L"]  # token ids, [CLS] first, [SEP] last
    word: Int[Tensor, "B L"]  # number of the whole word that each token is a piece of
    sentence: Int[Tensor, "B L"]  # number of the sentence that each token belongs to
    alone: Int[Tensor, "B S T"]  # ids of each sentence by itself (Eq. 12)
    pad: int = 0

    @property
    def real(self) -> Bool[Tensor, "B L"]:
        """True on every token that is not padding."""
        return self.words != self.pad

    @property
    def sentences(self) -> Bool[Tensor, "B S"]:
        """True where a sentence exists."""
        return (self.alone != self.pad).any(-1)


@dataclass(frozen=True)
class Batch:
    """What every objective and every task gets. Views, masks and crops are made from it on the device."""

    volume: Float[Tensor, "B 1 D H W"]  # windowed to [0, 1]
    ids: tuple[str, ...]
    seeds: Int[Tensor, "B"]  # one number a sample, a pure function of (run seed, step, place in the global batch)
    report: Report | None = None
    target: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        report = self.report
        if report is not None:
            tensors = {f.name: getattr(report, f.name) for f in fields(report) if f.name != "pad"}
            report = replace(report, **{k: v.to(device, non_blocking=True) for k, v in tensors.items()})
        return replace(
            self,
            volume=self.volume.to(device, non_blocking=True),
            seeds=self.seeds.to(device, non_blocking=True),
            report=report,
            target=None if self.target is None else self.target.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Pyramid:
    """Feature maps of a volume encoder, fine to coarse, each [B, E_i, D_i, H_i, W_i]."""

    levels: tuple[Tensor, ...]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Shape (d, h, w) of the coarsest map."""
        d, h, w = self.levels[-1].shape[2:]
        return d, h, w

    @property
    def tokens(self) -> Float[Tensor, "B N E"]:
        """The coarsest map as N = d*h*w tokens, d slowest."""
        return self.levels[-1].flatten(2).transpose(1, 2)

    @property
    def pooled(self) -> Float[Tensor, "B E"]:
        """Mean over the coarsest map: the global volume feature of Sec. III-B."""
        return self.levels[-1].flatten(2).mean(-1)


def alone(x: Tensor) -> Tensor:
    """The gather of a single process: the batch itself."""
    return x


def now(loss: Callable[..., Tensor], *inputs: Tensor, **options: Any) -> Tensor:
    """The `once` of a step in one part: the loss itself."""
    return loss(*inputs, **options)


class Trainable(nn.Module, ABC):
    """Anything that the one training loop can fit: an objective or a task.

    `gather` concatenates a tensor [B, ...] over all processes along the batch, and over all parts of a step that is
    taken in parts, with exact gradients; `fit` sets it. Losses that compare samples call it, the same number of times
    for every batch, so that they see the whole batch; with one process and one part it is the identity.

    `once(loss, *gathered, **options)` is `loss(*gathered, **options)`, which `fit` computes once a step and not for
    each part: for losses that cost much. What it learns must be in its inputs, and those must come from `gather`.

    `only_gathers` is set where nothing but the calls of `gather` matters: terms that gather nothing may be left out.
    """

    encoder: nn.Module
    gather: Callable[[Tensor], Tensor] = staticmethod(alone)
    once: Callable[..., Tensor] = staticmethod(now)
    only_gathers: bool = False

    @abstractmethod
    def forward(self, batch: Batch) -> Losses:
        """Named, weighted scalar losses, each a mean over the local batch (or over the gathered one)."""

    def after_step(self) -> None:
        """Called once after each optimiser step: moving averages and queues live here."""
