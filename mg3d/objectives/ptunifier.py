"""PTUnifier: one model for volumes, reports and both, with prompts for what is missing (Chen et al., ICCV 2023).

    L = L_MLM + 0.5 L_ITM + 0.1 L_ITC

Two pools of 2048 rows, N(0, 0.02), stand in for a missing modality. Without a report the mean of the volume tokens asks
the language pool: [CLS], its 32 nearest rows by dot product and [SEP] are the words. Without a volume the mean of the
words asks the visual pool: its 49 nearest rows are the tokens. All go through the same 6 layers of co-attention
(`vlp.Joint`). ITC: both poolers of the volume alone and of the report alone, each LayerNorm, Linear to 768
without a bias, unit length, find each other in the batch at a temperature of 0.1. MLM hides 15 % of the words; ITM
tells wrong pairs, half of the batch. A report is one of its sentences, drawn at each step, of 48 tokens at most.

**Departs from the original.** Follows the paper where the released code does not: prompts are trained (rows that are
drawn get a gradient; the choice of them gets none), and ITC is on. The text encoder is frozen and shared (there
RoBERTa, trained along), and the volume encoder takes no tokens, so prompts join where both modalities enter the
co-attention: the original's go through the encoders. The mean of the tokens stands for an image's [CLS]. Norms come
before the sub-layers. Features of whole reports (`embed`) read all sentences.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mg3d import losses
from mg3d.attention import masked_mean
from mg3d.encoders import Encoder
from mg3d.objectives import Objective, TextEncoder
from mg3d.types import Batch, Losses, Report
from mg3d.views import check_shares
from mg3d.vlp import Joint, one_sentence, sentence_maps, told, wrong_pairs


@dataclass(frozen=True)
class PTUnifierConfig:
    """Constants of the original. Raises ValueError for more prompts than a pool has rows."""

    layers: int = 6  # of co-attention
    heads: int = 12
    pool: int = 2048  # rows, of each
    prompts: int = 32  # rows that stand for a report
    cells: int = 49  # rows that stand for a volume
    word_ratio: float = 0.15
    sentence: bool = True  # one sentence of a report at a step; False: all of it
    words: int = 48  # tokens of that sentence at most
    width: int = 768  # of the features that ITC compares
    tau: float = 0.1
    mlm: float = 1.0
    itm: float = 0.5
    itc: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < max(self.prompts, self.cells) <= self.pool:
            raise ValueError(f"prompts={self.prompts}, cells={self.cells}: a pool has {self.pool} rows")
        check_shares(self, "word_ratio")


PAPER = PTUnifierConfig()
VARIANTS = {
    "paper": PAPER,
    "whole": replace(PAPER, sentence=False),
    "shallow": replace(PAPER, layers=2),  # MG-3D's runs have 2 layers
}


@final
class PTUnifier(Objective):
    """The method, with every encoder whose last width the heads divide."""

    text: TextEncoder

    def __init__(
        self, encoder: Encoder, text: TextEncoder, config: PTUnifierConfig = PAPER, *, shape: tuple[int, int, int]
    ):
        super().__init__()
        c, width = config, encoder.widths[-1]
        self.config, self.encoder = c, encoder
        object.__setattr__(self, "text", text)  # frozen: neither a submodule nor in the state
        self.joint = Joint(width, text, layers=c.layers, heads=c.heads)
        self.language, self.visual = (nn.Parameter(torch.empty(c.pool, width)) for _ in range(2))
        for pool in (self.language, self.visual):
            nn.init.normal_(pool, std=0.02)
        self.compare_volume, self.compare_report = (
            nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, c.width, bias=False)) for _ in range(2)
        )

    def forward(self, batch: Batch) -> Losses:
        """`mlm`, `itm`, `itc`, weighted; `itc` over the batch of all processes. Raises ValueError without reports."""
        c, report, joint = self.config, told(batch, "PTUnifier"), self.joint
        if c.sentence:
            report = one_sentence(report, batch.seeds, longest=c.words)
        volume, words, terms = joint.tokens(self.encoder(batch.volume)), joint.read(report.words), {}
        if not self.only_gathers:
            masked, labels = joint.masked(report, batch.seeds, ratio=c.word_ratio)
            chosen, right = wrong_pairs(batch.seeds)
            terms["mlm"] = c.mlm * joint.mlm(joint(volume, masked, real=report.real), labels)
            terms["itm"] = c.itm * joint.itm(joint(volume[chosen], words, real=report.real), right)
        both = self.gather(self._volume_alone(volume, report)), self.gather(self._report_alone(words, report.real))
        terms["itc"] = c.itc * self.once(losses.clip, *both, tau=c.tau)
        return terms

    @torch.no_grad()
    def embed(self, batch: Batch) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E"]]:
        """What ITC compares, each of its own modality alone; of a whole report."""
        report = told(batch, "PTUnifier")
        volume = self._volume_alone(self.joint.tokens(self.encoder(batch.volume)), report)
        return volume.float(), self._report_alone(self.joint.words(report), report.real).float()

    @torch.no_grad()
    def maps(self, batch: Batch) -> tuple[Float[Tensor, "B layers heads S N"], tuple[int, int, int]]:
        """Where each sentence looks: the mean of its words' cross-attention, each layer; and the grid of the tokens."""
        report, pyramid = told(batch, "PTUnifier"), self.encoder(batch.volume)
        fused = self.joint(self.joint.tokens(pyramid), self.joint.words(report), real=report.real)
        return sentence_maps(fused.maps, report), pyramid.grid

    def _volume_alone(self, volume: Float[Tensor, "B N E"], report: Report) -> Float[Tensor, "B F"]:
        """The feature of a volume without its report, of which the ids of [CLS] and [SEP] alone are taken."""
        last = report.words[0, report.real[0].sum() - 1]
        ends = self.joint.read(torch.stack([report.words[0, 0], last])[None])
        first, last = ends.expand(len(volume), -1, -1).split(1, 1)
        words = torch.cat([first, nearest(self.language, volume.mean(1), self.config.prompts), last], 1)
        real = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)
        return self.compare_volume(self.joint(volume, words, real=real).pooled)

    def _report_alone(self, words: Float[Tensor, "B L E"], real: Bool[Tensor, "B L"]) -> Float[Tensor, "B F"]:
        """The feature of a report without its volume."""
        volume = nearest(self.visual, masked_mean(words, real), self.config.cells)
        return self.compare_report(self.joint(volume, words, real=real).pooled)


def nearest(pool: Float[Tensor, "P E"], query: Float[Tensor, "B E"], count: int) -> Float[Tensor, "B count E"]:
    """The rows of a pool with the largest dot products, the largest first; the choice has no gradient."""
    return pool[(query.detach() @ pool.detach().T.to(query.dtype)).topk(count).indices]
