"""CT-CLIP: a volume finds its report in the batch, and a report its volume (Hamamci et al., arXiv 2403.17834).

    v_b = W_I vec(mean_d tokens[d, h, w]),   t_b = W_T [CLS]_b                    both to 512, without a bias
    L = 1/2 [CE(e^tau cos(v, t)) + CE(e^tau cos(t, v))],   tau = 1 at the start, learned: a factor of 2.718

Volume tokens are averaged over the axial axis d alone; the rest is flattened, so W_I knows where in the slice a token
lies. No augmentation, no other term.

**Departs from the original.** The text encoder is frozen and shared (there CXR-BERT, trained along); variant "words"
takes its words' mean for [CLS] and starts at a factor of 10. The volume encoder is the shared one, not CT-ViT with its
vector quantisation, so tokens are those of its coarsest map. Optimiser and input are the recipe's (there 1.25e-6,
batches of 8, volumes of 240x480x480 in [-1, 1]).
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mg3d import contrast
from mg3d.encoders import Encoder
from mg3d.objectives import Objective, TextEncoder
from mg3d.types import Batch, Losses, Report
from mg3d.vlp import summed_up, told


@dataclass(frozen=True)
class CTCLIPConfig:
    """Constants of the original. Raises ValueError for a width below 1."""

    width: int = 512  # of both latents
    tau: float = 1.0  # at the start; cosines are multiplied by e^tau
    pooled: bool = False  # True: tokens are averaged over all axes, for volumes of any size
    words: bool = False  # True: a report is the mean of its words, not its [CLS]

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width={self.width}: take a number above 0")


VARIANTS = {
    "paper": CTCLIPConfig(),
    "pooled": CTCLIPConfig(pooled=True),
    # what a frozen text encoder asks for: its [CLS] hardly differs between reports, times a factor of e
    "words": CTCLIPConfig(words=True, tau=math.log(10)),
}


@final
class CTCLIP(Objective):
    """The method; volumes must have `shape`, unless they are `pooled`."""

    text: TextEncoder

    def __init__(
        self,
        encoder: Encoder,
        text: TextEncoder,
        config: CTCLIPConfig = VARIANTS["paper"],
        *,
        shape: tuple[int, int, int],
    ):
        super().__init__()
        self.config, self.encoder = config, encoder
        object.__setattr__(self, "text", text)  # frozen: neither a submodule nor in the state
        _, h, w = (math.ceil(side / encoder.strides[-1]) for side in shape)
        self.cells = (1, 1) if config.pooled else (h, w)
        self.from_volume = nn.Linear(math.prod(self.cells) * encoder.widths[-1], config.width, bias=False)
        self.from_text = nn.Linear(text.width, config.width, bias=False)
        self.tau = nn.Parameter(torch.tensor(config.tau))

    def forward(self, batch: Batch) -> Losses:
        """`clip`, over the batch of all processes. Raises ValueError without reports."""
        report = told(batch, "CT-CLIP")
        volume, text = self.gather(self._volume(batch)), self.gather(self._report(report))
        return {"clip": self.once(contrast.two_way, volume, text, self.tau.exp())}

    @torch.no_grad()
    def embed(self, batch: Batch) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E"]]:
        """Both latents, each of its own modality alone: what zero-shot scores and retrieval compare."""
        return self._volume(batch).float(), self._report(told(batch, "CT-CLIP")).float()

    def _volume(self, batch: Batch) -> Float[Tensor, "B E"]:
        pyramid = self.encoder(batch.volume)
        if self.config.pooled:
            return self.from_volume(pyramid.pooled)
        if pyramid.grid[1:] != self.cells:
            raise ValueError(
                f"volumes of {tuple(batch.volume.shape[2:])} give {pyramid.grid[1:]} tokens a slice, but the latent is "
                f"made for {self.cells}: prepare them at the training's shape, or take variant='pooled'"
            )
        return self.from_volume(pyramid.levels[-1].mean(2).flatten(1))

    def _report(self, report: Report) -> Float[Tensor, "B E"]:
        return self.from_text(summed_up(self.text.word_features(report), report, words=self.config.words))
