"""Classification of whole volumes: findings that may occur together, one that is there or not, or exclusive classes.

The head is linear on the encoder's pooled feature, with a LayerNorm in between, as the released code has it, or a fixed
standardisation of the channels: a linear probe must not learn another feature, and pooled features of one encoder
differ little from case to case.
"""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mg3d.encoders import Encoder
from mg3d.metrics import Interval, auroc, average_precision, bootstrap, macro_interval, multiclass, multilabel
from mg3d.tasks import Task
from mg3d.types import Batch, Losses


@final
class Standardise(nn.Module):
    """(x - mean) / deviation of each channel, over the cases that `fit` saw; a constant to the optimiser."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def fit(self, features: Float[Tensor, "n E"]) -> None:
        """Take mean and deviation from features; a channel that is constant is only centred."""
        deviation = features.std(0, correction=0)
        self.mean.copy_(features.mean(0))
        self.deviation.copy_(torch.where(deviation > 1e-6 * features.abs().mean(), deviation, 1.0))

    def forward(self, x: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        """Standardised features."""
        return (x - self.mean) / self.deviation


@final
class Classify(Task):
    """Pooled feature, norm, linear head. `batch.target` is [B, L]: 0 or 1 for each name, or [B, 1]: a class's number.

    `names` are the labels, or the classes where `exclusive`. `standardise` puts a fixed standardisation where the
    LayerNorm is. `among` names a label whose positives get an AUROC of their own for each other label: severity among
    the infected. Raises ValueError for no name, for one class, and for an `among` that is no label.
    """

    metric = "auroc"  # the macro mean; it needs no threshold, so a small validation split can tell models apart

    def __init__(
        self,
        encoder: Encoder,
        *,
        names: Sequence[str],
        exclusive: bool = False,
        standardise: bool = False,
        among: str = "",
    ):
        super().__init__()
        if len(names) < 1 + exclusive or (among and (exclusive or among not in names)):
            raise ValueError(f"names={tuple(names)}, exclusive={exclusive}, among={among!r}: nothing to tell apart")
        self.names, self.exclusive, self.among = tuple(names), exclusive, among
        self.encoder = encoder
        width = encoder.widths[-1]
        self.norm = Standardise(width) if standardise else nn.LayerNorm(width)
        self.head = nn.Linear(width, len(names))

    def logits(self, batch: Batch) -> Float[Tensor, "B L"]:
        """In single precision also under autocast: scores that bfloat16 rounds to one value would tie."""
        pooled = self.encoder(batch.volume).pooled.float()
        with torch.autocast(pooled.device.type, enabled=False):
            return self.head(self.norm(pooled))

    def forward(self, batch: Batch) -> Losses:
        """Binary cross-entropy, mean over labels, or cross-entropy, each a mean over the batch."""
        if batch.target is None:
            raise ValueError("a batch without targets: classification learns from labels")
        logits = self.logits(self.seen(batch))
        if self.exclusive:
            return {"ce": F.cross_entropy(logits, batch.target[:, 0].long())}
        return {"bce": F.binary_cross_entropy_with_logits(logits, batch.target)}

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[np.ndarray]:
        """Probabilities of the labels, or of the classes, float64 [L] a case."""
        logits = self.logits(batch).double()
        return list((logits.softmax(1) if self.exclusive else logits.sigmoid()).cpu().numpy())

    def score(self, predictions: Sequence[Any], targets: Sequence[Any]) -> dict[str, float]:
        """`metrics.multilabel` or `metrics.multiclass`, and "auroc/<label> among <among>" where both classes occur.

        Raises ValueError where no label (no class) has an AUROC.
        """
        scores, true = self._tables(predictions, targets)
        if self.exclusive:
            return multiclass(scores, true[:, 0], names=self.names)
        line = multilabel(scores, true, names=self.names)
        for name, (kept, column) in self._among(true).items():
            line[name] = float(auroc(scores[kept, column], true[kept, column]))
        return line

    def intervals(
        self, predictions: Sequence[Any], targets: Sequence[Any], *, cases: Sequence[str]
    ) -> dict[str, Interval]:
        """Intervals over cases (patients) of what `score` gives: AUROC, and accuracy, F1 or average precision."""
        scores, true = self._tables(predictions, targets)
        if self.exclusive:
            each = true == np.arange(len(self.names))
            right = (scores.argmax(1) == true[:, 0]).astype(float)
            found = {"accuracy": bootstrap(lambda w: (w @ right) / w.sum(1), cases)}
            found["f1"] = bootstrap(
                lambda w: _f1(scores.argmax(1)[:, None] == np.arange(len(self.names)), each, w), cases
            )
            return found | {"auroc": macro_interval(auroc, scores, each, names=self.names, cases=cases)}
        found = {
            "auroc": macro_interval(auroc, scores, true, names=self.names, cases=cases),
            "average_precision": macro_interval(average_precision, scores, true, names=self.names, cases=cases),
            "f1": bootstrap(lambda w: _f1(scores >= 0.5, true == 1, w), cases),
        }
        each = bootstrap(lambda w: auroc(scores, true, w), cases)
        for i, name in enumerate(self.names):
            value, low, high = (float(np.asarray(x)[i]) for x in each)
            if not np.isnan(value):
                found[f"auroc/{name}"] = Interval(value, low, high)
        names = np.array(cases)
        for name, (kept, column) in self._among(true).items():
            some, which = scores[kept, column], true[kept, column]
            found[name] = bootstrap(lambda w, s=some, t=which: auroc(s, t, w), names[kept])
        return found

    def _tables(self, predictions: Sequence[Any], targets: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        return np.stack(predictions), np.stack(targets).astype(int)

    def _among(self, true: np.ndarray) -> dict[str, tuple[np.ndarray, int]]:
        """The positives of `among`, and the column of each other label that has both classes there."""
        if not self.among:
            return {}
        kept = true[:, self.names.index(self.among)] == 1
        columns = {n: i for i, n in enumerate(self.names) if n != self.among and len(set(true[kept, i].tolist())) == 2}
        return {f"auroc/{n} among {self.among}": (kept, i) for n, i in columns.items()}


def _f1(says: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Macro F1 [R] of tables [n, L] under weights [R, n]; labels that are nowhere positive are left out."""
    both = weights @ (says & true)
    total = weights @ says.astype(float) + weights @ true.astype(float)
    fine = total > 0
    each = np.where(fine, 2 * both / np.where(fine, total, 1), 0)
    return each.sum(1) / np.where(fine.any(1), fine.sum(1), np.nan)
