"""Report generation: what a volume shows, in sentences (CTRG-Chest; BLEU-1 to BLEU-4).

The paper has "a knowledge-enhanced report generator with a transformer layer" (Sec. IV-B.2). Ours: one encoder layer
over the volume tokens, a base of knowledge that they ask (`writer.Knowledge`), one decoder layer. It writes the word
pieces of the text encoder's tokenizer that occur in the training reports, and no others.

    L = mean over reports of the mean over pieces of -log P(piece | volume, pieces before it)

BLEU rewards what all reports say: no table is without the report that is the same for everybody (`constant_report`) and
the one of the most similar training volume (`nearest_reports`).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mg3d.encoders import Encoder
from mg3d.metrics import (
    Gallery,
    Interval,
    bleu_interval,
    finding_scores,
    mean_interval,
    meteor_exact,
    report_scores,
    rouge_l,
)
from mg3d.metrics.text import ORDER, words
from mg3d.tasks import Task
from mg3d.tasks.tokens import VolumeTokens
from mg3d.tasks.writer import NOTHING, Knowledge, Writer
from mg3d.types import Batch, Losses, Report

BEGIN, END = 1, 2  # ids of the compact vocabulary


def vocabulary(reports: Iterable[Report]) -> tuple[int, ...]:
    """The pieces that training reports have, as ids of their tokenizer: [CLS], [SEP], then the others in order."""
    found, first, last = torch.empty(0, dtype=torch.long), -1, -1
    for report in reports:
        found = torch.cat([found, report.words[report.real]]).unique()
        first, last = int(report.words[0, 0]), int(report.words[0][report.real[0]][-1])
    return (first, last, *(i for i in found.tolist() if i not in (first, last)))


@final
class Generate(Task):
    """Writes a report for each volume. `batch.report` is what it learns from; predictions and targets are strings.

    `pieces` is the `vocabulary` of the training reports and `decode` turns ids of their tokenizer into text (its
    `decode`). `width` 0 is the encoder's. At most `longest` pieces are read and written; `beams` 1 is greedy; `block` n
    lets no report say n pieces in a row twice (the released code: 3 words). `knowledge` "none" leaves the base out.
    """

    metric = "bleu4"

    def __init__(
        self,
        encoder: Encoder,
        *,
        pieces: Sequence[int],
        decode: Callable[[list[int]], str],
        width: int = 0,
        level: int = -1,
        layers: int = 1,
        heads: int = 8,
        dropout: float = 0.1,
        knowledge: Literal["learned", "none"] = "learned",
        longest: int = 512,
        beams: int = 3,
        block: int = 0,
    ):
        super().__init__()
        if len(pieces) < 3 or longest < 2 or beams < 1:
            raise ValueError(
                f"{len(pieces)} pieces, longest={longest}, beams={beams}: give the vocabulary of the training reports, "
                "2 pieces or more, and 1 beam or more"
            )
        self.encoder, self.decode = encoder, decode
        self.beams, self.block = beams, block
        width = width or encoder.widths[-1]
        self.tokens = VolumeTokens(encoder, width=width, level=level)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.look = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.knowledge = Knowledge(width, heads=heads) if knowledge == "learned" else nn.Identity()
        self.writer = Writer(
            width, pieces=len(pieces) + 1, longest=longest, layers=layers, heads=heads, dropout=dropout
        )
        self.register_buffer("pieces", torch.tensor([NOTHING, *pieces]))
        compact = torch.zeros(max(pieces) + 2, dtype=torch.long)  # the last place is for all larger ids
        compact[torch.tensor(pieces)] = torch.arange(1, len(pieces) + 1)
        self.register_buffer("compact", compact)

    def forward(self, batch: Batch) -> Losses:
        """`words`, the cross-entropy of a report's next piece. Raises ValueError without reports."""
        if batch.report is None:
            raise ValueError("report generation learns from reports: this batch has none; take a cohort with reports")
        text = self.shorten(batch.report)
        logits = self.writer(self._memory(self.seen(batch)), text[:, :-1])
        nats = F.cross_entropy(logits.transpose(1, 2).float(), text[:, 1:], ignore_index=NOTHING, reduction="none")
        real = text[:, 1:] != NOTHING
        return {"words": (nats.sum(1) / real.sum(1).clamp_min(1)).mean()}

    def shorten(self, report: Report) -> Int[Tensor, "B T"]:
        """Ids of the compact vocabulary, cut at `longest`; pieces that training never saw are NOTHING, as padding."""
        ids = report.words[:, : self.writer.longest]
        compact = self.get_buffer("compact")
        real = torch.where(ids != report.pad, ids, len(compact) - 1).clamp(max=len(compact) - 1)
        return compact[real]

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[str]:
        """A report for each volume. Deterministic in eval mode."""
        found = self.writer.write(self._memory(batch), begin=BEGIN, end=END, beams=self.beams, block=self.block)
        ids = self.get_buffer("pieces")[found].cpu()
        said = (found > END).cpu()  # neither the first nor the last piece, nor padding
        return [tidy(self.decode(row[real].tolist())) for row, real in zip(ids, said, strict=True)]

    def score(self, predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
        """`metrics.report_scores`, whose errors it raises, and `metrics.finding_scores`."""
        return report_scores(predictions, targets) | finding_scores(predictions, targets)

    def intervals(
        self, predictions: Sequence[str], targets: Sequence[str], *, cases: Sequence[str]
    ) -> dict[str, Interval]:
        """Intervals over cases of BLEU-1 to BLEU-4, of the whole corpus each time, ROUGE-L and METEOR."""
        value, low, high = map(np.asarray, bleu_interval(predictions, targets, cases=cases))
        found = {f"bleu{n + 1}": Interval(float(value[n]), float(low[n]), float(high[n])) for n in range(ORDER)}
        each = {"rouge_l": rouge_l(predictions, targets), "meteor_exact": meteor_exact(predictions, targets)}
        return found | {name: mean_interval(values, cases=cases) for name, values in each.items()}

    def _memory(self, batch: Batch) -> Float[Tensor, "B K E"]:
        return self.knowledge(self.look(self.tokens(self.encoder(batch.volume))))


def tidy(text: str) -> str:
    """Decoded word pieces as one writes: "9. 3 mm" is 9.3 mm, "ground - glass" has no spaces, sentences begin large."""
    text = re.sub(r"(?<=\d)\s?\.\s(?=\d)", ".", text)
    text = re.sub(r"(?<=\w)\s?([-/])\s?(?=\w)", r"\1", text)
    text = re.sub(r"\(\s+|\s+(?=[).,;:?!])", lambda m: m[0].strip(), text)
    return re.sub(r"(^|[.?!]\s+)([a-z])", lambda m: m[1] + m[2].upper(), text.strip())


def constant_report(train: Sequence[str]) -> str:
    """The training report that is nearest to all of them: the largest mean cosine of counts of 1- to 4-grams.

    Raises ValueError when no report has words.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import normalize

    of_grams: Any = {"analyzer": grams, "dtype": np.float64}
    unit: Any = normalize(CountVectorizer(**of_grams).fit_transform(words(text) for text in train))
    return train[int(np.argmax(unit @ np.asarray(unit.mean(0)).ravel()))]


def grams(text: list[str]) -> list[str]:
    """All runs of one to four words."""
    return [" ".join(run) for n in range(1, ORDER + 1) for run in zip(*(text[i:] for i in range(n)), strict=False)]


def nearest_reports(
    features: Float[np.ndarray, "n E"], *, train: Float[np.ndarray, "m E"], reports: Sequence[str]
) -> list[str]:
    """For each row of features the report of the training row of the largest cosine.

    Raises ValueError for features that are zero or not finite, and unless there is one report a training row.
    """
    if len(train) != len(reports):
        raise ValueError(f"{len(train)} rows of training features and {len(reports)} reports: one each is needed")
    gallery = Gallery(train)
    return [reports[int(gallery.search(row, 1)[0][0])] for row in features]
