"""M3D-CLIP: the contrastive stage of M3D, volumes with their reports (Bai et al., arXiv 2404.00578).

    v_b = W_I pooled_b,   t_b = W_T [CLS]_b                                       both to 768, with a bias
    L = 1/2 [CE(s cos(v, t)) + CE(s cos(t, v))],   s = ln(1/0.07) = 2.659 at the start, learned as it is

CLIP keeps the logarithm of its factor and starts at 14.3; the released M3D takes the logarithm itself as the factor,
and so do we. A volume is changed before it is encoded: with p = 0.5 turned by 1 to 3 quarters in the axial plane, with
p = 0.1 mirrored along each axis, with p = 0.5 each multiplied by and shifted by up to 0.1.

**Departs from the original.** The text encoder is frozen and shared (there BERT-base, trained along; variant "words"
takes its words' mean for [CLS] and starts at a factor of 10, "words-plain" changes no volume, either), and reports that
are too long lose their last sentences (there random ones, but the first). The volume encoder is the shared one, with
the mean of its tokens for the [CLS] of M3D's ViT. A plane that is not square is resampled to its own shape after a
quarter turn. Validation sees volumes as they are.
"""

import math
from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mg3d import contrast
from mg3d.encoders import Encoder
from mg3d.objectives import Objective, TextEncoder
from mg3d.types import Batch, Losses, Report
from mg3d.views import noise
from mg3d.vlp import summed_up, told

AUGMENT = 111  # stream of the draws


@dataclass(frozen=True)
class M3DCLIPConfig:
    """Constants of the original. Raises ValueError for a probability outside of [0, 1]."""

    width: int = 768  # of both latents
    scale: float = math.log(1 / 0.07)  # s at the start
    words: bool = False  # True: a report is the mean of its words, not its [CLS]
    turn: float = 0.5  # probability of a turn in the axial plane
    mirror: float = 0.1  # of a mirrored axis, each
    intensity: float = 0.5  # of a factor, and of a shift
    strength: float = 0.1  # of either, at most

    def __post_init__(self) -> None:
        for name in ("turn", "mirror", "intensity"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a probability: take a number from 0 to 1")


PAPER = M3DCLIPConfig()
# what a frozen text encoder asks for: its [CLS] hardly differs between reports, times a small factor
_WORDS = M3DCLIPConfig(words=True, scale=10.0)
_AS_IT_IS = {"turn": 0.0, "mirror": 0.0, "intensity": 0.0}
VARIANTS = {
    "paper": PAPER,
    "plain": replace(PAPER, **_AS_IT_IS),
    "words": _WORDS,
    "words-plain": replace(_WORDS, **_AS_IT_IS),
}


@final
class M3DCLIP(Objective):
    """The method, for volumes of any size."""

    text: TextEncoder

    def __init__(
        self, encoder: Encoder, text: TextEncoder, config: M3DCLIPConfig = PAPER, *, shape: tuple[int, int, int]
    ):
        super().__init__()
        self.config, self.encoder = config, encoder
        object.__setattr__(self, "text", text)  # frozen: neither a submodule nor in the state
        self.from_volume = nn.Linear(encoder.widths[-1], config.width)
        self.from_text = nn.Linear(text.width, config.width)
        self.scale = nn.Parameter(torch.tensor(config.scale))

    def forward(self, batch: Batch) -> Losses:
        """`clip`, over the batch of all processes. Raises ValueError without reports."""
        report = told(batch, "M3D-CLIP")
        seen = augment(batch.volume, batch.seeds, config=self.config) if self.training else batch.volume
        volume, text = self.gather(self._volume(seen)), self.gather(self._report(report))
        return {"clip": self.once(contrast.two_way, volume, text, self.scale)}

    @torch.no_grad()
    def embed(self, batch: Batch) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E"]]:
        """Both latents, each of its own modality alone: what zero-shot scores and retrieval compare."""
        return self._volume(batch.volume).float(), self._report(told(batch, "M3D-CLIP")).float()

    def _volume(self, volume: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B E"]:
        return self.from_volume(self.encoder(volume).pooled)

    def _report(self, report: Report) -> Float[Tensor, "B E"]:
        return self.from_text(summed_up(self.text.word_features(report), report, words=self.config.words))


def augment(
    volume: Float[Tensor, "B 1 D H W"], seeds: Int[Tensor, "B"], *, config: M3DCLIPConfig
) -> Float[Tensor, "B 1 D H W"]:
    """Turned, mirrored, brighter or darker: each volume by its own seed."""
    c, draws = config, noise(seeds, 9, stream=AUGMENT)
    factor, shift = ((draws[:, i] < c.intensity) * c.strength * (2 * draws[:, i + 1] - 1) for i in (5, 7))
    moved = [_moved(x, row, c) for x, row in zip(volume, draws[:, :5].tolist(), strict=True)]
    return torch.stack(moved) * (1 + factor).view(-1, 1, 1, 1, 1) + shift.view(-1, 1, 1, 1, 1)


def _moved(x: Float[Tensor, "1 D H W"], draws: list[float], c: M3DCLIPConfig) -> Float[Tensor, "1 D H W"]:
    """One volume by five numbers: whether and how far it is turned, and which axes are mirrored."""
    quarters = 1 + int(3 * draws[1]) if draws[0] < c.turn else 0
    turned = x.rot90(quarters, (2, 3))
    if turned.shape != x.shape:
        turned = F.interpolate(turned[None], size=x.shape[1:], mode="trilinear", align_corners=False)[0]
    return turned.flip([axis for axis, draw in enumerate(draws[2:], 1) if draw < c.mirror])
