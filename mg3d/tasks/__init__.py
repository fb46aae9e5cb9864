"""Clinical tasks: what a pre-trained encoder is fine-tuned for. Four classes, nine studies.

A task is a `Trainable` with a prediction and a score: `fit` trains it like any objective, and what it says about the
validation split alone chooses the checkpoint that is tested.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from mg3d.encoders import Encoder
from mg3d.types import Batch, Losses, Trainable
from mg3d.views import jittered


class Task(Trainable):
    """An encoder with a head, a loss, a prediction and a score."""

    metric: ClassVar[str]  # the score that chooses a checkpoint; more is better

    encoder: Encoder
    augment: bool = False  # train on volumes in seeded other poses and lights

    def seen(self, batch: Batch) -> Batch:
        """What a training step sees of a batch; as it is in evaluation."""
        return jittered(batch) if self.augment and self.training else batch

    @property
    def asked(self) -> dict[str, Any]:
        """What its scores depend on beside weights and cases (words, tolerances): plain values, for the protocol."""
        return {}

    @abstractmethod
    def forward(self, batch: Batch) -> Losses:
        """Named losses, means over the batch; `batch.target` holds what is to be predicted."""

    @abstractmethod
    def predict(self, batch: Batch) -> Sequence[Any]:
        """One prediction a case of the batch, on the CPU: scores, a mask, a text."""

    @abstractmethod
    def score(self, predictions: Sequence[Any], targets: Sequence[Any]) -> dict[str, float]:
        """Metrics of a split, `metric` among them, from what `predict` gave and the targets of the same cases.

        A metric that the targets leave undefined (AUROC of one class) is left out, never NaN; ValueError when that is
        `metric` itself, naming what is missing.
        """

    def judged(self, predictions: Sequence[Any], targets: Sequence[Any]) -> dict[str, float]:
        """What a validation during training needs of `score`: `metric` at least, where more would cost much."""
        return self.score(predictions, targets)
