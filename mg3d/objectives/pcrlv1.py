"""PCRLv1: contrast with a slow teacher, and restoration of what was mixed, turned and painted over (Zhou et al., 2021).

    L = 1/2 [NCE(f_o, f_m) + NCE(f_o, f_h)] + 1/3 sum_v |r_v - T_v(x_v)|^2       v = o, m, h
    x_h = a x_o + (1 - a) x_m      a = max(b, 1 - b), b ~ U(0, 1)      levels of h = a levels of o + (1 - a) levels of m

x_o and x_m are two crops that overlap (IoU > 0.25). The encoder sees x_o, its moving average (0.999) sees x_m, both
painted over (0.9; one in five inside, the rest outside) and blurred (0.4). f has 128 channels: mean, Linear, ReLU,
Linear. NCE is InfoNCE at 0.2 against a queue of 16,384 features of the teacher. One decoder with skips restores all
three; T_v mirrors each axis at 1/2 and turns slices by 0, 90, 180 or 270 degrees, and its code of 3 + 4 bits gates the
channels of the coarsest level: sigmoid(Linear(ReLU(Linear(code)))), 256 wide.

Departs from the original: the softmax of InfoNCE instead of NCE with a fixed normaliser; one a for target and features;
one pair a volume and step instead of 16; crops in voxels of prepared volumes (at 128 voxels a side), none refused for
dense tissue, and two tokens a side at least in a slice. No encoder here has a batch norm, so there is none to shuffle.
"""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mg3d.contrast import FeatureQueue, Teacher, against
from mg3d.decoders import UNetDecoder
from mg3d.encoders import Encoder
from mg3d.objectives import Objective, TextEncoder
from mg3d.pairs import blurred, global_pair, large, painted, sample
from mg3d.types import Batch, Losses, Pyramid
from mg3d.views import FLIPS, TURNS, branch, flip, noise, pick, turn

SIZES = ((32, 64, 64), (48, 96, 96), (96, 96, 96), (16, 32, 32), (64, 112, 112))
MIX, CORRUPT = 41, 42  # streams of noise


@dataclass(frozen=True)
class PCRLv1Config:
    """Weights and sizes."""

    contrast: float = 1.0
    restored: float = 1.0
    tau: float = 0.2
    queue: int = 16_384
    momentum: float = 0.999
    features: int = 128
    iou: float = 0.25  # of the two crops, at least


PAPER = PCRLv1Config()
VARIANTS = {"paper": PAPER}


@dataclass(frozen=True)
class Views:
    """What PCRLv1 makes of a batch."""

    clean: tuple[Float[Tensor, "B 1 d h h"], Float[Tensor, "B 1 d h h"]]  # x_o, x_m
    seen: tuple[Float[Tensor, "B 1 d h h"], Float[Tensor, "B 1 d h h"]]  # painted and blurred
    alpha: Float[Tensor, "B"]
    flips: tuple[Bool[Tensor, "B 3"], ...]  # of T_o, T_m, T_h
    turns: tuple[Int[Tensor, "B"], ...]


@final
class PCRLv1(Objective):
    """Reads no reports; works with every encoder whose strides are powers of two."""

    def __init__(
        self,
        encoder: Encoder,
        text: TextEncoder | None = None,
        config: PCRLv1Config = PAPER,
        *,
        shape: tuple[int, int, int],
    ):
        super().__init__()
        c = self.config = config
        self.encoder = encoder
        width = encoder.widths[-1]
        self.head = nn.Sequential(nn.Linear(width, c.features), nn.ReLU(), nn.Linear(c.features, c.features))
        self.teacher = Teacher(encoder, momentum=c.momentum)
        self.teacher_head = Teacher(self.head, momentum=c.momentum)
        self.queue = FeatureQueue(c.queue, c.features)
        self.decoder = UNetDecoder(encoder.widths, encoder.strides, classes=1)
        self.gate = nn.Sequential(nn.Linear(7, 256), nn.ReLU(), nn.Linear(256, width), nn.Sigmoid())

    def forward(self, batch: Batch) -> Losses:
        """Both terms, weighted."""
        c, x = self.config, self.views(batch)
        slow = self.teacher(x.seen[1])
        key = self.teacher_head(slow.pooled)
        self.queue.note(self.gather(key))
        if self.only_gathers:
            return {"contrast": key.sum() * 0}
        own = self.encoder(x.seen[0])
        levels = (mixed(a, b, x.alpha) for a, b in zip(own.levels, slow.levels, strict=True))
        both = Pyramid(tuple(levels))
        query, hybrid = self.head(own.pooled), self.head(both.pooled)
        negatives = self.queue.rows.clone()
        contrast = torch.stack([against(query, k, negatives, tau=c.tau) for k in (key, hybrid)]).mean()
        sights = (*x.seen, mixed(*x.seen, x.alpha)), (*x.clean, mixed(*x.clean, x.alpha))
        errors = []
        for seen, clean, pyramid, flips, turns in zip(*sights, (own, slow, both), x.flips, x.turns, strict=True):
            rebuilt = self.restore(seen, pyramid, flips, turns)
            errors.append(F.mse_loss(rebuilt, turn(flip(clean, flips), turns)))
        return {"contrast": c.contrast * contrast, "restored": c.restored * torch.stack(errors).mean()}

    def views(self, batch: Batch) -> Views:
        """Crops, what is seen of them, how they are mixed and what the targets are turned by."""
        seeds, size = batch.seeds, batch.volume.shape[2:]
        out = large(size, self.encoder.strides[-1])
        clean, seen, flips, turns = [], [], [], []
        for view, box in enumerate(global_pair(seeds, size, least=self.config.iou, sizes=SIZES)):
            own = branch(seeds, view)
            clean.append(sample(batch.volume, own, box, out=out))
            paints, blurs, sigma = noise(own, 3, stream=CORRUPT).unbind(1)
            x = torch.where((paints < 0.9).view(-1, 1, 1, 1, 1), painted(clean[-1], own, inside=0.2), clean[-1])
            seen.append(blurred(x, torch.where(blurs < 0.4, 2 * sigma, 0.0)))
        for view in range(3):
            own = branch(seeds, 2 + view)
            flips.append(noise(own, 3, stream=FLIPS) < 0.5)
            turns.append(pick(own, 4, stream=TURNS))
        b = noise(seeds, 1, stream=MIX)[:, 0]
        return Views((clean[0], clean[1]), (seen[0], seen[1]), torch.maximum(b, 1 - b), tuple(flips), tuple(turns))

    def restore(
        self, seen: Float[Tensor, "B 1 d h h"], pyramid: Pyramid, flips: Bool[Tensor, "B 3"], turns: Int[Tensor, "B"]
    ) -> Float[Tensor, "B 1 d h h"]:
        """The crop whole and turned as it is told to."""
        gate = self.gate(torch.cat([flips, F.one_hot(turns, 4)], 1).to(seen.dtype))
        coarsest = pyramid.levels[-1] * gate[..., None, None, None]
        return self.decoder(seen, Pyramid((*pyramid.levels[:-1], coarsest))).sigmoid()

    def after_step(self) -> None:
        """The teacher follows, the queue takes in what it said."""
        self.teacher.follow(self.encoder)
        self.teacher_head.follow(self.head)
        self.queue.advance()


def mixed(one: Tensor, two: Tensor, alpha: Float[Tensor, "B"]) -> Tensor:
    """alpha one + (1 - alpha) two, sample by sample."""
    return torch.lerp(two, one, alpha.to(one.dtype).view(-1, *[1] * (one.dim() - 1)))
