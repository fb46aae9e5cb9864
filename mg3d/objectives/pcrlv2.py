"""PCRLv2: crops of a patient, two large and six small, agree at several scales and are restored (Zhou et al., 2023).

    L = |r(x_1) - g_1|^2 + beta |s_k(x_1) - g_1|^2 + C_k(x_1, x_2) + 1/12 sum_{l, i} C_k(x_l, x_i)
    C_k(a, b) = -1/2 [cos(p_k(a), sg z_k(b)) + cos(p_k(b), sg z_k(a))]       beta = 1/2 (1 + cos(pi step / steps))

From the deepest level a decoder without skips doubles the size block by block. Each of its last three has a map s_k, a
feature z_k (mean over voxels, batch norm) and a predictor p_k (Linear to twice the width, batch norm, ReLU, Linear); k
is drawn for each patient and pair, sg stops the gradient. g_1 is the crop x_1 before its voxels are changed: blurred,
made noisy, gamma, and, of the two large ones, patches exchanged. Sizes of crops are drawn; see `mg3d.pairs`.

Departs from the original: inputs keep their window [0, 1] instead of mean 0 and variance 1, as all tasks give them;
crops are in voxels of prepared volumes (at 128 voxels a side), in a slice two tokens a side at least, none refused for
dense tissue; k is drawn for each patient; decoder blocks have a group norm of one group, no batch norm; beta falls over
`steps`, those of the run. Our UNet is read at stride 8, before the mean that makes its tokens. AdamW scales a step by
the whole gradient, SGD does not: for small batches, where C_k rules it, `balanced` weighs both comparisons a tenth.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mg3d.contrast import Scales, compared, predictor
from mg3d.encoders import Encoder
from mg3d.objectives import Objective, TextEncoder
from mg3d.pairs import large_and_small
from mg3d.types import Batch, Losses
from mg3d.views import branch, pick

LEVELS = 3  # of the decoder, from the finest on, that are compared
LEVEL = 40  # stream of noise


@dataclass(frozen=True)
class PCRLv2Config:
    """Weights and sizes. ValueError for fewer than one local crop or step."""

    restored: float = 1.0
    middle: float = 1.0  # times beta
    compared: float = 1.0
    local: float = 1.0
    locals: int = 6
    iou: float = 0.3  # of the two large crops, at least
    steps: int = 100_000  # over which beta falls to 0; a run's are its own

    def __post_init__(self) -> None:
        if min(self.locals, self.steps) < 1:
            raise ValueError(f"locals={self.locals}, steps={self.steps}: take 1 or more of each")


PAPER = PCRLv2Config()
VARIANTS = {"paper": PAPER, "balanced": replace(PAPER, compared=0.1, local=0.1)}


@final
class PCRLv2(Objective):
    """Reads no reports; works with every encoder of a deepest stride of 8 or more. Batches of 2 or more a process."""

    step: Tensor

    def __init__(
        self,
        encoder: Encoder,
        text: TextEncoder | None = None,
        config: PCRLv2Config = PAPER,
        *,
        shape: tuple[int, int, int],
    ):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.level = deepest(encoder)
        self.stride = encoder.strides[self.level]
        if self.stride < 2**LEVELS:
            raise ValueError(f"strides={encoder.strides}: PCRLv2 needs a deepest stride of {2**LEVELS} or more")
        widths = [max(4, encoder.widths[-1] >> min(i, 4)) for i in range(self.stride.bit_length())]
        self.ups = nn.ModuleList(_block(a, b) for a, b in pairwise(widths))
        last = widths[-LEVELS:]
        self.maps = nn.ModuleList(nn.Conv3d(w, 1, 1) for w in last)
        self.normed = nn.ModuleList(nn.BatchNorm1d(w) for w in last)
        self.predict = nn.ModuleList(predictor(w) for w in last)
        self.restore = nn.Conv3d(last[-1], 1, 1)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, batch: Batch) -> Losses:
        """The four terms, weighted. ValueError in training for a single volume: nothing to normalise over."""
        c, seeds, n = self.config, batch.seeds, len(batch.volume)
        if self.training and n < 2:
            raise ValueError("PCRLv2 normalises over the batch: give each process and part 2 volumes or more")
        views = large_and_small(batch.volume, seeds, least=c.iou, count=c.locals, stride=self.stride)
        (first, target), (second, _), local = views
        maps, *one = self.scales(first)
        _, *two = self.scales(second, maps=False)
        _, *small = self.scales(local, maps=False)
        k = pick(branch(seeds, 99), LEVELS, stream=LEVEL)
        middle = torch.stack([(m.sigmoid() - target).square().mean((1, 2, 3, 4)) for m in maps[:LEVELS]], 1)
        terms = {
            "restored": (maps[-1].sigmoid() - target).square().mean(),
            "middle": self.beta * middle.gather(1, k[:, None]).mean(),
            "compared": compared(one, two, k),
        }
        pairs = []
        for i in range(c.locals):
            part = [[x[i * n : (i + 1) * n] for x in kind] for kind in small]
            for j, large in enumerate((one, two)):
                pairs.append(compared(part, large, pick(branch(seeds, 100 + 2 * i + j), LEVELS, stream=LEVEL)))
        terms["local"] = torch.stack(pairs).mean()
        return {name: getattr(c, name) * term for name, term in terms.items()}

    @property
    def beta(self) -> float:
        """Weight of the maps in the middle: from 1 to 0."""
        return (1 + math.cos(math.pi * min(1.0, self.step.item() / self.config.steps))) / 2

    def after_step(self) -> None:
        """Count."""
        self.step += 1

    def scales(self, x: Float[Tensor, "n 1 d h w"], *, maps: bool = True) -> tuple[list[Tensor], Scales, Scales]:
        """Logits at full size (side maps, then the restored crop), z and p of the last three blocks."""
        (d, h, w), y = x.shape[2:], self.encoder(x).levels[self.level]
        found: tuple[list[Tensor], Scales, Scales] = ([], [], [])
        for i, up in enumerate(self.ups, LEVELS - len(self.ups)):
            y = up(y)
            if i >= 0:
                z = self.normed[i](y.mean((2, 3, 4)))
                found[1].append(z)
                found[2].append(self.predict[i](z))
                if maps:
                    whole = F.interpolate(self.maps[i](y), scale_factor=2 ** (LEVELS - 1 - i), mode="nearest")
                    found[0].append(whole[:, :, :d, :h, :w])
        if maps:
            found[0].append(self.restore(y)[:, :, :d, :h, :w])
        return found


def deepest(encoder: Encoder) -> int:
    """The level that is decoded: the last, or the one before where the last is but a mean of it (UNet, stride 8)."""
    widths, strides = encoder.widths, encoder.strides
    return -2 if len(widths) > 1 and widths[-2] == widths[-1] and 2 * strides[-2] < strides[-1] else -1


def _block(width: int, out: int) -> nn.Module:
    """Twice the size, convolution, norm."""
    up = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)
    return nn.Sequential(up, nn.Conv3d(width, out, 3, padding=1), nn.GroupNorm(1, out), nn.LeakyReLU(0.01))
