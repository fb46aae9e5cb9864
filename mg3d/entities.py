"""What reports speak of, as an open stand-in for UMLS: entities by a lexicon, relations by who stands beside whom.

The lexicon names the 18 findings of CT-RATE, words that radiologists use for them, and the anatomy of a chest. It is
matched on token ids at whole words, the longest term first. Two entities are related when a sentence has named both;
the counts are a buffer that grows from step to step. Entity embeddings pass two layers of graph attention (Velickovic
et al., ICLR 2018): a_ij = softmax_j LeakyReLU(l.W e_i + r.W e_j) over the related j, and i itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mg3d.attention import FusionLayer
from mg3d.types import Report

FINDINGS = """medical material|arterial wall calcification|cardiomegaly|pericardial effusion|
coronary artery wall calcification|hiatal hernia|lymphadenopathy|emphysema|atelectasis|lung nodule|lung opacity|
pulmonary fibrotic sequela|pleural effusion|mosaic attenuation pattern|peribronchial thickening|consolidation|
bronchiectasis|interlobular septal thickening|nodule|nodules|opacity|opacities|ground glass|effusion|calcification|
mass|cyst|hernia|fibrosis|thickening|pneumonia|fracture|metastasis|pneumothorax|edema|catheter|stent|pacemaker"""
ANATOMY = """right upper lobe|right middle lobe|right lower lobe|left upper lobe|left lower lobe|lingula|lung|lungs|
trachea|main bronchi|bronchus|heart|aorta|pulmonary artery|coronary artery|pericardium|pleura|mediastinum|hilum|
esophagus|thyroid|lymph nodes|liver|spleen|kidney|adrenal gland|gallbladder|pancreas|stomach|vertebra|vertebrae|rib|
ribs|sternum|chest wall|breast|axilla|diaphragm"""
TERMS = tuple(term.strip() for term in f"{FINDINGS}|{ANATOMY}".split("|"))


def terms(source: str = "") -> tuple[str, ...]:
    """The lexicon: ours, or the lines of a file, a term each (what follows a tab is not read).

    Raises ValueError for "umls", whose licence allows no copy here, and for a file without terms.
    """
    if source.lower() == "umls":
        raise ValueError(
            "entities='umls': UMLS needs a licence of your own (https://uts.nlm.nih.gov). Write the terms you want "
            "into a file, one a line, and give its path as `entities`; or leave it empty for the open lexicon"
        )
    if not source:
        return TERMS
    lines = Path(source).expanduser().read_text(encoding="utf-8").splitlines()
    found = tuple(dict.fromkeys(term for line in lines if (term := line.split("\t")[0].strip())))
    if not found:
        raise ValueError(f"{source}: no terms; write one a line")
    return found


@dataclass(frozen=True)
class Mentions:
    """The entities that B reports name, in order, Z at most a report."""

    entity: Int[Tensor, "B Z"]  # -1 where there is none
    spans: Bool[Tensor, "B Z L"]  # the tokens of each

    @property
    def real(self) -> Bool[Tensor, "B Z"]:
        """Which exist."""
        return self.entity >= 0

    def named(self, count: int) -> Float[Tensor, "B K"]:
        """1 for each of `count` entities that a report names, else 0."""
        hits = torch.zeros(len(self.entity), count + 1, device=self.entity.device)
        return hits.scatter_(1, self.entity.where(self.real, count), 1.0)[:, :count]


@final
class Lexicon:
    """Finds terms in token ids. ValueError for a text encoder without a tokenizer."""

    def __init__(self, text: Any, names: Sequence[str] = TERMS, *, most: int = 24):
        tokenizer = getattr(text, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("entities are found by token ids: take a text encoder with a tokenizer")
        self.names, self.most = tuple(names), most
        ids = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in self.names]
        lengths = sorted({len(i) for i in ids if i}, reverse=True)
        self.tables = [
            (
                torch.tensor([i for i in ids if len(i) == n]),
                torch.tensor([k for k, i in enumerate(ids) if len(i) == n]),
            )
            for n in lengths
        ]

    def __call__(self, report: Report) -> Mentions:
        """The mentions of a report, the longest term at each place, no token twice."""
        words, number = report.words, F.pad(report.word, (1, 1), value=-1)
        starts, stops = number[:, 1:-1] != number[:, :-2], number[:, 1:-1] != number[:, 2:]
        taken = report.word < 0
        found: list[tuple[int, int, int, int]] = []
        for table, entity in self.tables:
            n = table.shape[1]
            if n > words.shape[1]:
                continue
            same = (words.unfold(1, n, 1)[:, :, None] == table.to(words)).all(-1)
            fits = same.any(-1) & starts[:, : same.shape[1]] & stops[:, n - 1 :] & ~taken.unfold(1, n, 1).any(-1)
            for b, place in fits.nonzero().tolist():
                if not taken[b, place : place + n].any():
                    taken[b, place : place + n] = True
                    found.append((b, place, int(entity[int(same[b, place].int().argmax())]), n))
        return self._table(sorted(found), words)

    def _table(self, found: list[tuple[int, int, int, int]], words: Tensor) -> Mentions:
        entity = torch.full((len(words), self.most), -1)
        spans = torch.zeros(len(words), self.most, words.shape[1], dtype=torch.bool)
        used = [0] * len(words)
        for b, place, number, n in found:
            if used[b] < self.most:
                entity[b, used[b]], spans[b, used[b], place : place + n] = number, True
                used[b] += 1
        return Mentions(entity.to(words.device), spans.to(words.device))


def together(mentions: Mentions, report: Report, count: int) -> Float[Tensor, "K K"]:
    """How many sentences of a batch name both of two entities."""
    sentences = report.alone.shape[1]
    place = mentions.spans.int().argmax(-1)
    number = report.sentence.gather(1, place).where(mentions.real, sentences).long()
    hits = torch.zeros(len(place), sentences + 1, count + 1, device=place.device)
    b = torch.arange(len(place), device=place.device)[:, None]
    hits[b, number, mentions.entity.where(mentions.real, count)] = 1
    hits = hits[:, :sentences, :count].flatten(0, 1)
    return hits.T @ hits


def as_units(report: Report, named: Mentions) -> Int[Tensor, "B L"]:
    """Numbers of the whole words, those of an entity's words being one."""
    first = report.word.gather(1, named.spans.int().argmax(-1))
    owner = named.spans.int().argmax(1)
    return torch.where(named.spans.any(1), first.gather(1, owner), report.word)


def without(named: Mentions, hidden: Bool[Tensor, "B L"]) -> Mentions:
    """The entities of which no word is hidden."""
    return replace(named, entity=named.entity.masked_fill((named.spans & hidden[:, None]).any(-1), -1))


@final
class GraphAttention(nn.Module):
    """One layer over related entities; `heads` features of `out` side by side."""

    def __init__(self, width: int, out: int, *, heads: int):
        super().__init__()
        self.project = nn.Linear(width, out * heads, bias=False)
        self.left, self.right = (nn.Parameter(torch.empty(heads, out)) for _ in range(2))
        for vector in (self.left, self.right):
            nn.init.xavier_uniform_(vector)

    def forward(self, x: Float[Tensor, "K E"], related: Bool[Tensor, "K K"]) -> Float[Tensor, "K F"]:
        """New embeddings; each entity is related to itself at least."""
        h = self.project(x).unflatten(-1, (len(self.left), -1))
        left, right = (torch.einsum("khf,hf->hk", h, v) for v in (self.left, self.right))
        scores = F.leaky_relu(left[:, :, None] + right[:, None], 0.2)
        weights = scores.masked_fill(~related, torch.finfo(scores.dtype).min).softmax(-1)
        return torch.einsum("hij,jhf->ihf", weights, h).flatten(1)


@final
class Knowledge(nn.Module):
    """Embeddings of K entities that know their relations: LayerNorm, dropout 0.2, attention (8 x 64), ELU, attention.

    `note` in the forward pass and `grow` in `after_step` count relations; until then an entity knows itself alone.
    """

    counts: Tensor

    def __init__(self, count: int, *, width: int = 256, heads: int = 8, dropout: float = 0.2):
        super().__init__()
        self.table = nn.Parameter(torch.randn(count, width) * 0.02)
        self.enter = nn.Sequential(nn.LayerNorm(width), nn.Dropout(dropout))
        self.first = GraphAttention(width, 64, heads=heads)
        self.second = GraphAttention(64 * heads, width, heads=1)
        self.register_buffer("counts", torch.zeros(count, count))
        self._noted: Tensor | None = None

    def forward(self) -> Float[Tensor, "K E"]:
        """All embeddings."""
        related = (self.counts > 0) | torch.eye(len(self.counts), dtype=torch.bool, device=self.counts.device)
        return self.second(F.elu(self.first(self.enter(self.table), related)), related)

    def note(self, counts: Float[Tensor, "K K"]) -> None:
        """Relations of a part of a step, in training alone."""
        if self.training:
            self._noted = counts if self._noted is None else self._noted + counts

    def grow(self) -> None:
        """Take in what was noted."""
        if self._noted is not None:
            self.counts += self._noted
            self._noted = None


@final
class Reasoning(nn.Module):
    """The stream of entities z beside `layers` layers of words, `words` wide, and volume tokens as wide.

    z <- z + SelfAttention(z),   z <- z + CrossAttention(z, W volume),   z <- z + FFN(z),   words += U z at its span
    """

    def __init__(self, width: int, *, words: int, layers: int, heads: int):
        super().__init__()
        self.layers = nn.ModuleList(
            FusionLayer(width, mode="classical", heads=heads, self_heads=heads) for _ in range(layers)
        )
        self.shown = nn.ModuleList(nn.Linear(words, width) for _ in range(layers))
        self.told = nn.ModuleList(nn.Linear(width, words) for _ in range(layers))

    def forward(self, table: Float[Tensor, "K E"], named: Mentions) -> Callable[[int, Tensor], Tensor | None]:
        """What the entities named, layer by layer from the first, add to the words that name them; None beyond all."""
        z = table[named.entity.clamp_min(0)] * named.real[..., None]
        spans = (named.spans & named.real[..., None]).transpose(1, 2)

        def also(layer: int, volume: Tensor) -> Tensor | None:
            nonlocal z
            if layer >= len(self.layers):
                return None
            z, _ = self.layers[layer](z, self.shown[layer](volume), x_real=named.real)
            told = self.told[layer](z)
            return spans.to(told.dtype) @ told

        return also
