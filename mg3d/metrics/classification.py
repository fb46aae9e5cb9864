"""Scores against labels: ranking (AUROC, average precision, sensitivity), decisions (accuracy, F1), calibration.

Scores and targets are [n] or [n, L], one column a label; a result has one number a label. A label with one class has no
AUROC, no average precision and no sensitivity: its number is NaN, `macro` leaves it out and names it, and raises when
no label is left. `weights` [R, n] say how often each sample was drawn (see `resampling.bootstrap`); the result then is
[R, L], and all resamples cost one sort a label.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from mg3d.metrics.resampling import Interval, bootstrap, mean_of_defined

Scores = Float[np.ndarray, "n *L"]
Targets = Shaped[np.ndarray, "..."]  # of the same shape; 0 or 1, or bool
Weights = Float[np.ndarray, "R n"] | None
PerLabel = Float[np.ndarray, "..."]

BINS = 15  # of the calibration error: as in Guo et al. 2017


class Macro(NamedTuple):
    """A mean over labels, and the labels that have no number."""

    value: float
    undefined: tuple[str, ...]


def auroc(scores: Scores, targets: Targets, weights: Weights = None) -> PerLabel:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counted half. NaN for a label
    with one class."""

    def one(cut: "Cuts") -> np.ndarray:
        below = cut.negatives - (cut.from_negative + cut.above_negative) / 2
        return _ratio((cut.positive * below).sum(1), cut.positives * cut.negatives, cut)

    return _per_label(one, scores, targets, weights)


def average_precision(scores: Scores, targets: Targets, weights: Weights = None) -> PerLabel:
    """Mean over the positives of the precision at their score, as scikit-learn has it. NaN for a label with one
    class."""

    def one(cut: "Cuts") -> np.ndarray:
        everything = np.maximum(cut.from_positive + cut.from_negative, 1e-300)  # 0 where no sample was drawn
        return _ratio((cut.positive * cut.from_positive / everything).sum(1), cut.positives, cut)

    return _per_label(one, scores, targets, weights)


def sensitivity_at(
    scores: Scores, targets: Targets, weights: Weights = None, *, false_positive_rate: float
) -> PerLabel:
    """The largest sensitivity of a threshold with at most this share of the negatives called positive (no
    interpolation; 0 if only the threshold above all scores has). NaN for a label with one class."""
    if not 0 <= false_positive_rate <= 1:
        raise ValueError(f"false_positive_rate={false_positive_rate}: a share from 0 to 1 is needed")

    def one(cut: "Cuts") -> np.ndarray:
        allowed = cut.from_negative <= false_positive_rate * cut.negatives * (1 + 1e-12)
        return _ratio(np.where(allowed, cut.from_positive, 0).max(1, initial=0), cut.positives, cut)

    return _per_label(one, scores, targets, weights)


def accuracy(predicted: Shaped[np.ndarray, "n *L"], targets: Targets) -> PerLabel:
    """The share of equal values, for bools or class numbers."""
    _same(predicted, targets)
    return np.asarray((predicted == targets).mean(0))


def f1(predicted: Shaped[np.ndarray, "n *L"], targets: Targets) -> PerLabel:
    """2 TP / (2 TP + FP + FN) of 0/1 predictions. NaN where nothing is positive, neither predicted nor true."""
    _same(predicted, targets)
    says, true = _binary(predicted, "predictions"), _binary(targets, "targets")
    total = says.sum(0) + true.sum(0)
    return np.where(total > 0, 2 * (says & true).sum(0) / np.maximum(total, 1), np.nan)


def brier(probabilities: Scores, targets: Targets) -> PerLabel:
    """Mean squared difference of probability and outcome."""
    return np.asarray(((_probabilities(probabilities, targets) - _binary(targets, "targets")) ** 2).mean(0))


def calibration_error(probabilities: Scores, targets: Targets, *, bins: int = BINS) -> PerLabel:
    """Expected calibration error: |mean probability - share of positives| in bins of equal width, weighted by their
    samples. Bin k holds (k/bins, (k+1)/bins], the first one 0 too."""
    p = _probabilities(probabilities, targets).reshape(len(probabilities), -1)
    y = _binary(targets, "targets").reshape(p.shape)
    place = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1) + bins * np.arange(p.shape[1])
    gap = np.bincount(place.ravel(), weights=(p - y).ravel(), minlength=bins * p.shape[1])
    return (np.abs(gap).reshape(-1, bins).sum(1) / len(p)).reshape(probabilities.shape[1:])


def macro(values: Float[np.ndarray, " L"], names: Sequence[str]) -> Macro:
    """The mean over the labels that have a number, and the names of those without. ValueError when none has one."""
    if len(values) != len(names):
        raise ValueError(f"{len(values)} values and {len(names)} names: one name a label is needed")
    fine = ~np.isnan(values)
    if not fine.any():
        raise ValueError(
            f"undefined for every label ({', '.join(names)}): this set has one class only, take a larger one"
        )
    return Macro(float(values[fine].mean()), tuple(n for n, good in zip(names, fine, strict=True) if not good))


def macro_interval(
    metric: Callable[[Scores, Targets, Weights], PerLabel],
    scores: Float[np.ndarray, "n L"],
    targets: Shaped[np.ndarray, "n L"],
    *,
    names: Sequence[str],
    cases: Sequence | None = None,
    **how,
) -> Interval:
    """The macro mean of a metric and its interval over cases, over the labels that are defined on the whole set.

    A label that a resample leaves with one class is left out of that resample's mean. Raises what `macro` raises.
    """
    undefined = set(macro(metric(scores, targets, None), names).undefined)
    kept = np.array([name not in undefined for name in names])
    some, true = scores[:, kept], targets[:, kept]

    return bootstrap(lambda w: mean_of_defined(metric(some, true, w)), cases, samples=len(scores), **how)


def multilabel(
    probabilities: Float[np.ndarray, "n L"],
    targets: Shaped[np.ndarray, "n L"],
    *,
    names: Sequence[str],
    threshold: float = 0.5,
    false_positive_rate: float = 0.1,
) -> dict[str, float]:
    """One flat line of results: macro means, `auroc/<label>` for each label, and `undefined`, the labels without one.

    Keys: auroc, average_precision, accuracy, f1, sensitivity, brier, calibration_error.
    """
    says = probabilities >= threshold
    found = {
        "auroc": auroc(probabilities, targets),
        "average_precision": average_precision(probabilities, targets),
        "accuracy": accuracy(says, _binary(targets, "targets")),
        "f1": f1(says, targets),
        "sensitivity": sensitivity_at(probabilities, targets, false_positive_rate=false_positive_rate),
        "brier": brier(probabilities, targets),
        "calibration_error": calibration_error(probabilities, targets),
    }
    line = {name: macro(values, names).value for name, values in found.items()}
    each = {f"auroc/{n}": float(v) for n, v in zip(names, found["auroc"], strict=True) if not np.isnan(v)}
    return line | each | {"undefined": float(np.isnan(found["auroc"]).sum())}


def multiclass(
    scores: Float[np.ndarray, "n C"], target: Int[np.ndarray, " n"], *, names: Sequence[str]
) -> dict[str, float]:
    """Results for classes that exclude each other: accuracy, macro F1 and macro AUROC (one against the rest), and
    `undefined`, the classes without an AUROC. Raises ValueError for a class number without a score."""
    if target.min() < 0 or target.max() >= scores.shape[1]:
        raise ValueError(f"classes {target.min()} to {target.max()}, but scores for 0 to {scores.shape[1] - 1}")
    guess = scores.argmax(1)
    which = np.arange(scores.shape[1])
    area = macro(auroc(scores, target[:, None] == which), names)
    return {
        "accuracy": float((guess == target).mean()),
        "f1": macro(f1(guess[:, None] == which, target[:, None] == which), names).value,
        "auroc": area.value,
        "undefined": float(len(area.undefined)),
    }


class Cuts(NamedTuple):
    """Of one label: what a threshold at the score of each of its P positives calls positive. Arrays [R, P]."""

    positive: np.ndarray  # weight of the positive
    from_positive: np.ndarray  # positives with this score or a higher one
    from_negative: np.ndarray  # negatives likewise
    above_negative: np.ndarray  # negatives with a higher score
    positives: np.ndarray  # [R, 1] of all
    negatives: np.ndarray

    @classmethod
    def of(cls, score: np.ndarray, target: np.ndarray, weights: np.ndarray) -> "Cuts":
        """Sort once, then sums from the top; equal scores are one threshold."""
        order = np.argsort(score)
        score, target, weights = score[order], target[order], weights[:, order]
        first, after = (np.searchsorted(score, score[target], side) for side in ("left", "right"))
        p, n = (
            np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights * which, 1)], 1)
            for which in (target, ~target)
        )
        all_p, all_n = p[:, -1:], n[:, -1:]
        return cls(weights[:, target], all_p - p[:, first], all_n - n[:, first], all_n - n[:, after], all_p, all_n)


def _ratio(above: np.ndarray, below: np.ndarray, cut: Cuts) -> np.ndarray:
    """above / below [R, 1]; NaN where a resample has one class."""
    both = ((cut.positives > 0) & (cut.negatives > 0))[:, 0]
    return np.where(both, above / np.where(both, below[:, 0], 1), np.nan)


def _per_label(
    one: Callable[[Cuts], np.ndarray], scores: np.ndarray, targets: np.ndarray, weights: Weights
) -> np.ndarray:
    """A number a label, and a resample if there are weights."""
    _same(scores, targets)
    _finite(scores)
    true = _binary(targets, "targets").reshape(len(targets), -1)
    columns = scores.reshape(len(scores), -1)
    drawn = np.ones((1, len(scores))) if weights is None else weights
    values = np.stack([one(Cuts.of(s, t, drawn)) for s, t in zip(columns.T, true.T, strict=True)], 1)
    values = values.reshape(len(drawn), *scores.shape[1:])
    return np.asarray(values[0]) if weights is None else values


def _binary(values: np.ndarray, what: str) -> np.ndarray:
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        odd = np.unique(values[~np.isin(values, (0, 1))])[:3].tolist()
        raise ValueError(f"{what} must be 0 or 1, there is {', '.join(map(str, odd))}")
    return values.astype(bool)


def _probabilities(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    _same(values, targets)
    _finite(values)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"values from {values.min():g} to {values.max():g} are no probabilities: take a sigmoid first")
    return values.astype(np.float64)


def _finite(scores: np.ndarray) -> None:
    bad = np.logical_not(np.isfinite(scores.reshape(len(scores), -1)).all(1))
    if bad.any():
        raise ValueError(f"scores of sample {int(bad.argmax())} ({int(bad.sum())} of {len(bad)}) are NaN or infinite")


def _same(one: np.ndarray, other: np.ndarray) -> None:
    if one.shape != other.shape or not one.size:
        raise ValueError(f"scores of shape {one.shape} and targets of {other.shape}: equal, and not empty, is needed")
