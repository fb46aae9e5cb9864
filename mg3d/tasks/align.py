"""Volumes and texts on one scale: findings by prompts, and reports by their volumes (CT-RATE).

    P(X | volume) = softmax over the pair of s cos(F_I, F_T["X."]), s cos(F_I, F_T["not X."])       s = e^t, learned

Asked of a pre-trained run as it is, that is zero-shot; CT-VocabFine trains it: the text encoder is frozen, all else
learns from the cross-entropy over each pair (the released code takes the squared error, groups of six findings, and
leaves the volume encoder as it is). Retrieval takes the cosine of F_I and of the F_T of whole reports, as in the paper
(the released code sends each of the N^2 pairs through the fusion layers).

F_I and F_T are MG-3D's own, so that `Embedder.take` finds the weights of one of its runs.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, Protocol, final, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mg3d import losses
from mg3d.attention import AttentionPool, sentence_mean
from mg3d.encoders import Encoder
from mg3d.metrics import (
    Interval,
    auroc,
    bootstrap,
    macro_interval,
    mean_interval,
    multilabel,
    one_of_each,
    ranks,
    retrieval,
)
from mg3d.metrics.classification import macro
from mg3d.metrics.retrieval import KS
from mg3d.tasks import Task
from mg3d.tasks.prompts import TEMPLATES, pairs
from mg3d.tasks.tokens import VolumeTokens, take
from mg3d.types import Batch, Losses, Pyramid, Report


@runtime_checkable
class WordFeatures(Protocol):
    """What is needed of a frozen text encoder."""

    width: int

    def word_features(self, report: Report) -> Float[Tensor, "B L E"]:
        """F_T of a report: a constant."""
        ...


@final
class Embedder(nn.Module):
    """F_I [B, E], the mean of the volume tokens, and F_T [B, E], the attention-pooled sentences (or words) of a text.

    `width` 0 is the encoder's last one; `width`, `level`, `guidance` and `heads` (`self_heads` there) as in the run
    whose weights it is to take. The volume encoder stays with the task.
    """

    text: WordFeatures

    def __init__(
        self,
        encoder: Encoder,
        text: WordFeatures,
        *,
        width: int = 0,
        level: int = -1,
        guidance: Literal["sentence", "word"] = "sentence",
        heads: int = 8,
    ):
        super().__init__()
        object.__setattr__(self, "text", text)  # frozen: neither a submodule nor in the state
        self.guidance = guidance
        width = width or encoder.widths[-1]
        self.tokens = VolumeTokens(encoder, width=width, level=level)
        self.from_text = nn.Linear(text.width, width)
        self.pool_text = AttentionPool(width, heads=heads)

    def volume(self, pyramid: Pyramid) -> Float[Tensor, "B E"]:
        """F_I of encoded volumes."""
        return self.tokens(pyramid).mean(1)

    def report(self, report: Report) -> Float[Tensor, "B E"]:
        """F_T of tokenised texts."""
        return self.pooled(*self.told(report))

    @torch.no_grad()
    def told(self, report: Report) -> tuple[Float[Tensor, "B Q F"], Bool[Tensor, "B Q"]]:
        """The constant part of F_T: features of sentences or words as the text encoder gives them, and which exist."""
        words = self.text.word_features(report)
        if self.guidance == "word":
            return words, report.sentence >= 0
        return sentence_mean(words, report.sentence, report.alone.shape[1]), report.sentences

    def pooled(self, clues: Float[Tensor, "B Q F"], real: Bool[Tensor, "B Q"]) -> Float[Tensor, "B E"]:
        """F_T from its constant part."""
        return self.pool_text(self.from_text(clues), real)

    def take(self, state: Mapping[str, Tensor]) -> None:
        """The projections of an MG-3D run, from its weights ("model"). ValueError names what is missing or differs."""
        take(self.tokens, state)
        take(self.from_text, state, prefix="from_text.")
        take(self.pool_text, state, prefix="pool_text.")


@final
class Align(Task):
    """Probabilities of findings from prompts. `batch.target` is [B, L], 0 or 1 for each of `names`.

    The first template is the one that is trained and scored; under the others it is asked too. `tokenise` makes ids of
    texts. `tau` is 1/s at the start (MG-3D's). Raises ValueError without names and for an unknown template.
    """

    metric = "auroc"  # the macro mean

    def __init__(
        self,
        encoder: Encoder,
        embedder: Embedder,
        *,
        names: Sequence[str],
        tokenise: Callable[[Sequence[str]], Report],
        templates: Sequence[str] = tuple(TEMPLATES),
        tau: float = 0.1,
    ):
        super().__init__()
        self.encoder, self.embedder = encoder, embedder
        self.names, self.templates = tuple(names), tuple(templates)
        asked = [prompt for template in templates for side in pairs(names, template) for prompt in side]
        clues, real = embedder.told(tokenise(asked))
        self.register_buffer("clues", clues, persistent=False)  # constants of the text encoder, [T 2 L, Q, F]
        self.register_buffer("real", real, persistent=False)
        self.temperature = nn.Parameter(torch.tensor(-math.log(tau)))

    @property
    def asked(self) -> dict[str, Any]:
        """The pairs of prompts; the first template is the one that is scored."""
        return {"prompts": {template: list(TEMPLATES[template]) for template in self.templates}}

    def margins(self, batch: Batch) -> Float[Tensor, "T B L"]:
        """How much nearer each volume is to "X." than to "not X.", times s, under each template: the logit of P."""
        volume = self.embedder.volume(self.encoder(batch.volume))
        texts = self.embedder.pooled(self.get_buffer("clues"), self.get_buffer("real"))
        with torch.autocast(volume.device.type, enabled=False):
            cosine = F.normalize(volume.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
            present, absent = cosine.unflatten(1, (len(self.templates), 2, -1)).permute(2, 1, 0, 3)
            return self.temperature.exp() * (present - absent)

    def forward(self, batch: Batch) -> Losses:
        """`pairs`, the cross-entropy over each finding's pair of prompts. Raises ValueError without targets."""
        if batch.target is None:
            raise ValueError("a batch without targets: CT-VocabFine learns from labels")
        return {"pairs": F.binary_cross_entropy_with_logits(self.margins(self.seen(batch))[0], batch.target.float())}

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[np.ndarray]:
        """Probabilities under each template, float64 [T, L] a case."""
        return list(self.margins(batch).double().sigmoid().transpose(0, 1).cpu().numpy())

    def score(self, predictions: Sequence[Any], targets: Sequence[Any]) -> dict[str, float]:
        """`metrics.multilabel` under the first template, and the macro AUROC of each one (`auroc of <template>`), their
        mean, standard deviation and least (`auroc of templates/...`).

        Raises ValueError where no label has both classes.
        """
        p, true = self._tables(predictions, targets)
        line = multilabel(p[:, 0], true, names=self.names)
        each = [macro(auroc(p[:, t], true), self.names).value for t in range(len(self.templates))]
        line |= {f"auroc of {name}": value for name, value in zip(self.templates, each, strict=True)}
        over = {"mean": np.mean(each), "std": np.std(each), "least": np.min(each)}
        return line | {f"auroc of templates/{name}": float(value) for name, value in over.items()}

    def intervals(
        self, predictions: Sequence[Any], targets: Sequence[Any], *, cases: Sequence[str]
    ) -> dict[str, Interval]:
        """Intervals over cases of the AUROC, macro and of each label with both classes, under the first template."""
        p, true = self._tables(predictions, targets)
        found = {"auroc": macro_interval(auroc, p[:, 0], true, names=self.names, cases=cases)}
        each = bootstrap(lambda weights: auroc(p[:, 0], true, weights), cases)
        for i, name in enumerate(self.names):
            value, low, high = (float(np.asarray(x)[i]) for x in each)
            if not np.isnan(value):
                found[f"auroc/{name}"] = Interval(value, low, high)
        return found

    def _tables(self, predictions: Sequence[Any], targets: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        return np.stack(predictions), np.stack(targets).astype(int)


@final
class Retrieve(Task):
    """Finds the volume of a report, and the report of a volume. `batch.report` is read, in training and in prediction.

    Targets are what makes two cases one: their reports, or their patients' scans. Trained by the contrastive loss of
    CLIP between F_I and F_T at temperature `tau`; the paper takes a pre-trained run as it is.
    """

    metric = "report_to_volume/mrr"  # recall@50 says little of a small validation split

    def __init__(self, encoder: Encoder, embedder: Embedder, *, tau: float = 0.1, ks: Sequence[int] = KS):
        super().__init__()
        self.encoder, self.embedder, self.tau, self.ks = encoder, embedder, tau, tuple(ks)

    @property
    def asked(self) -> dict[str, Any]:
        """What is searched, and what is right."""
        return {
            "gallery": "the test split; a case is right for itself alone",
            "distinct": "the first case of each report",
            "ks": list(self.ks),
        }

    def forward(self, batch: Batch) -> Losses:
        """`clip`, over the batch of all processes. Raises ValueError without reports."""
        volume, text = (self.gather(x) for x in self._both(self.seen(batch)))
        return {"clip": self.once(losses.clip, volume, text, tau=self.tau)}

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[np.ndarray]:
        """F_T and F_I of each case, float32 [2, E]."""
        volume, text = self._both(batch)
        return list(torch.stack([text, volume], 1).float().cpu().numpy())

    def score(self, predictions: Sequence[Any], targets: Sequence[Hashable]) -> dict[str, float]:
        """`metrics.retrieval` where each case is right for itself alone (the paper's protocol), and, as "distinct/...",
        among the first case of each target: a de-duplicated gallery, whose size is `distinct/cases`."""
        texts, volumes = np.moveaxis(np.stack(predictions), 1, 0)
        kept = one_of_each(_numbers(targets))
        once = retrieval(texts[kept], volumes[kept], ks=self.ks)
        line = retrieval(texts, volumes, ks=self.ks)
        return line | {f"distinct/{k}": v for k, v in once.items()} | {"distinct/cases": float(len(kept))}

    def intervals(
        self, predictions: Sequence[Any], targets: Sequence[Hashable], *, cases: Sequence[str]
    ) -> dict[str, Interval]:
        """Intervals over the queries' cases of recall@k and MRR, both ways, in the gallery as it is."""
        texts, volumes = np.moveaxis(np.stack(predictions), 1, 0)
        found = {}
        for way, pair in {"report_to_volume": (texts, volumes), "volume_to_report": (volumes, texts)}.items():
            place = ranks(*pair)
            each = {f"recall@{k}": place.recall_at(k) for k in self.ks} | {"mrr": place.reciprocal}
            found |= {f"{way}/{name}": mean_interval(values, cases=cases) for name, values in each.items()}
        return found

    def _both(self, batch: Batch) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E"]]:
        if batch.report is None:
            raise ValueError("a batch without reports: nothing can be retrieved; take a cohort with reports")
        return self.embedder.volume(self.encoder(batch.volume)), self.embedder.report(batch.report)


def _numbers(targets: Sequence[Hashable]) -> Int[np.ndarray, " n"]:
    """Equal numbers for equal targets."""
    number = {target: i for i, target in enumerate(dict.fromkeys(targets))}
    return np.array([number[target] for target in targets])
