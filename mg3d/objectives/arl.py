"""ARL: align, reason and learn, volumes and reports with the knowledge of what is named (Chen et al., ACM MM 2022).

    L = 0.1 L_ITM + L_MLM + L_MIM + L_ALIGN

M3AE's terms, with three uses of entities (`entities`): their embeddings are a table of 256 numbers each that has passed
graph attention. Align: the pooled volume and [CLS], each Linear ReLU Linear ReLU to 256, tell by dot products which
entities the report names (binary cross-entropy, both added). Reason: up to 24 entities of a report are a third stream,
with self-attention, cross-attention to the volume (4 heads) and a feed-forward layer of 1024 in every layer but the
last, where no loss would hear it; what they found is added to the words that name them, before the words' own
feed-forward. Learn: MLM hides an entity's words together, and an entity with a hidden word leaves the stream.

**Departs from the original.** Entities come from an open lexicon of findings and anatomy, relations from sentences that
name two (there UMLS by scispaCy, with its triples; embeddings pre-trained by TransE, here N(0, 0.02)); of several
processes the first one's reports count. Text and volume encoder, norms, decoders, the mean over volume tokens for
[CLS] and the mean of MLM are as in our M3AE; there are no weights of METER to start from.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mg3d.encoders import Encoder
from mg3d.entities import Knowledge, Lexicon, Mentions, Reasoning, as_units, terms, together, without
from mg3d.losses import in_float32
from mg3d.objectives import Objective, TextEncoder
from mg3d.types import Batch, Losses, Report
from mg3d.views import block_mask, check_shares
from mg3d.vlp import CubeDecoder, Fused, Joint, check_cubes, cube_error, sentence_maps, told, wrong_pairs


@dataclass(frozen=True)
class ARLConfig:
    """Constants of the original. Raises ValueError for a share that hides nothing or all, and a depth beyond all."""

    entities: str = ""  # a file of terms, one a line; "": the open lexicon
    width: int = 256  # of an entity
    most: int = 24  # entities of a report
    entity_heads: int = 4
    layers: int = 6  # of co-attention
    depth: int = 3  # layers after which the volume is rebuilt
    heads: int = 12
    mask_cube: int = 16  # voxels a side
    mask_ratio: float = 0.75  # of the cubes
    word_ratio: float = 0.15
    itm: float = 0.1

    def __post_init__(self) -> None:
        check_shares(self, "mask_ratio", "word_ratio")
        if not 1 <= self.depth <= self.layers or self.layers < 2:
            raise ValueError(f"depth={self.depth}: take 1 to layers={self.layers}, and 2 layers or more")


PAPER = ARLConfig()
VARIANTS = {"paper": PAPER, "shallow": replace(PAPER, layers=2, depth=2)}  # MG-3D's runs have 2 layers


@final
class ARL(Objective):
    """The method, with every encoder whose last width the heads divide, and a text encoder that has a tokenizer."""

    text: TextEncoder

    def __init__(self, encoder: Encoder, text: TextEncoder, config: ARLConfig = PAPER, *, shape: tuple[int, int, int]):
        super().__init__()
        c, width = config, encoder.widths[-1]
        check_cubes(shape, cube=c.mask_cube, ratio=c.mask_ratio)
        self.config, self.encoder = c, encoder
        object.__setattr__(self, "text", text)  # frozen: neither a submodule nor in the state
        self.lexicon = Lexicon(text, terms(c.entities), most=c.most)
        self.knowledge = Knowledge(len(self.lexicon.names), width=c.width)
        self.joint = Joint(width, text, layers=c.layers, heads=c.heads)
        self.reason = Reasoning(c.width, words=width, layers=c.layers - 1, heads=c.entity_heads)
        self.align_volume, self.align_report = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, c.width), nn.ReLU()) for _ in range(2)
        )
        self.voxel_decoder = CubeDecoder(width, stride=encoder.strides[-1], cube=c.mask_cube, layers=4)

    def forward(self, batch: Batch) -> Losses:
        """`itm`, `mlm`, `mim`, `align`, weighted. Raises ValueError without reports."""
        c, report, joint = self.config, told(batch, "ARL"), self.joint
        named = self.lexicon(report)
        if not self.only_gathers:
            self.knowledge.note(together(named, report, len(self.lexicon.names)))
        table, volume, words = self.knowledge(), joint.tokens(self.encoder(batch.volume)), joint.words(report)
        units = replace(report, word=as_units(report, named))
        masked, labels = joint.masked(units, batch.seeds, ratio=c.word_ratio)
        fused = self._fused(volume, masked, report, table, without(named, labels != -100))
        d, h, w = batch.volume.shape[2:]
        hidden = block_mask(batch.seeds, (d, h, w), cube=c.mask_cube, ratio=c.mask_ratio)
        seen = self.encoder(batch.volume, mask=hidden)
        middle = self._fused(joint.tokens(seen), words, report, table, named).middle
        rebuilt = self.voxel_decoder(middle, hidden, grid=seen.grid, size=(d, h, w))
        chosen, right = wrong_pairs(batch.seeds)
        there = named.named(len(table))
        both = self.align_volume(volume.mean(1)), self.align_report(words[:, 0])
        return {
            "itm": c.itm * joint.itm(self._fused(volume[chosen], words, report, table, named), right),
            "mlm": joint.mlm(fused, labels),
            "mim": cube_error(rebuilt, batch.volume, hidden),
            "align": naming(both[0], table, there) + naming(both[1], table, there),
        }

    def after_step(self) -> None:
        """Relations of the step's reports are known from now on."""
        self.knowledge.grow()

    @torch.no_grad()
    def embed(self, batch: Batch) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E"]]:
        """What ALIGN compares with the entities, each of its own modality alone."""
        volume, words = self.joint.tokens(self.encoder(batch.volume)), self.joint.words(told(batch, "ARL"))
        return self.align_volume(volume.mean(1)).float(), self.align_report(words[:, 0]).float()

    @torch.no_grad()
    def maps(self, batch: Batch) -> tuple[Float[Tensor, "B layers heads S N"], tuple[int, int, int]]:
        """Where each sentence looks: the mean of its words' cross-attention, each layer; and the grid of the tokens."""
        report, pyramid = told(batch, "ARL"), self.encoder(batch.volume)
        volume, words = self.joint.tokens(pyramid), self.joint.words(report)
        fused = self._fused(volume, words, report, self.knowledge(), self.lexicon(report))
        return sentence_maps(fused.maps, report), pyramid.grid

    def _fused(
        self,
        volume: Float[Tensor, "B N E"],
        words: Float[Tensor, "B L E"],
        report: Report,
        table: Float[Tensor, "K F"],
        named: Mentions,
    ) -> Fused:
        """Co-attention with the third stream."""
        also = self.reason(table, named)
        return self.joint(volume, words, real=report.real, depth=self.config.depth, also=also)


@in_float32
def naming(feature: Float[Tensor, "B E"], table: Float[Tensor, "K E"], there: Float[Tensor, "B K"]) -> Tensor:
    """Binary cross-entropy of a feature's dot products with all entities."""
    return F.binary_cross_entropy_with_logits(feature @ table.T, there)
