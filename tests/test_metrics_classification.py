"""Classification metrics against scikit-learn, by hand, and where they are undefined."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn import metrics as sk

from mg3d.metrics import (
    accuracy,
    auroc,
    average_precision,
    brier,
    calibration_error,
    f1,
    macro,
    macro_interval,
    multiclass,
    multilabel,
    sensitivity_at,
)

NAMES = ["a", "b", "c"]


def some(n: int = 80, *, levels: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels, three of them, with some skill; `levels` makes ties."""
    rng = np.random.default_rng(seed)
    targets = rng.random((n, 3)) < [0.5, 0.2, 0.8]
    p = np.clip(rng.random((n, 3)) * 0.7 + 0.25 * targets, 0, 1)
    return (np.round(p * levels) / levels if levels else p), targets


@pytest.mark.parametrize("levels", [0, 4])
def test_ranking_metrics_are_those_of_scikit_learn(levels):
    p, y = some(levels=levels)
    assert auroc(p, y) == pytest.approx(sk.roc_auc_score(y, p, average=None), rel=1e-12)
    assert average_precision(p, y) == pytest.approx(sk.average_precision_score(y, p, average=None), rel=1e-12)
    for limit in (0.0, 0.05, 0.1, 0.5, 1.0):
        slow = []
        for column in range(3):
            fpr, tpr, _ = sk.roc_curve(y[:, column], p[:, column], drop_intermediate=False)
            slow.append(tpr[fpr <= limit].max())
        assert sensitivity_at(p, y, false_positive_rate=limit) == pytest.approx(slow)


@pytest.mark.parametrize("metric", [auroc, average_precision, lambda *a: sensitivity_at(*a, false_positive_rate=0.2)])
def test_weights_are_repeated_samples(metric):
    p, y = some(40, levels=5)
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, 40, (6, 40))
    weights = np.stack([np.bincount(row, minlength=40) for row in drawn]).astype(float)
    slow = np.stack([metric(p[row], y[row]) for row in drawn])
    assert metric(p, y, weights) == pytest.approx(slow, nan_ok=True)
    assert metric(p[:, 0], y[:, 0], weights) == pytest.approx(slow[:, 0], nan_ok=True)


def test_decisions_are_those_of_scikit_learn():
    p, y = some()
    says = p >= 0.5
    assert f1(says, y) == pytest.approx(sk.f1_score(y, says, average=None))
    assert accuracy(says, y) == pytest.approx([(a == b).mean() for a, b in zip(says.T, y.T, strict=True)])
    assert brier(p, y) == pytest.approx([sk.brier_score_loss(a, b) for a, b in zip(y.T, p.T, strict=True)])


def test_numbers_known_by_hand():
    p, y = np.array([0.9, 0.6, 0.6, 0.2]), np.array([1, 0, 1, 0])
    assert auroc(p, y) == pytest.approx((2 + 1.5) / 4)
    assert average_precision(p, y) == pytest.approx((1 + 2 / 3) / 2)
    assert sensitivity_at(p, y, false_positive_rate=0.4) == 0.5  # to call 0.6 positive costs half of the negatives
    assert sensitivity_at(p, y, false_positive_rate=0.5) == 1
    assert f1(p >= 0.5, y) == pytest.approx(0.8)
    assert brier(p, y) == pytest.approx((0.01 + 0.36 + 0.16 + 0.04) / 4)
    # bins of a half: (0, .5] holds 0.2, (.5, 1] the other three with mean 0.7 and two thirds positive
    assert calibration_error(p, y, bins=2) == pytest.approx(0.25 * 0.2 + 0.75 * abs(0.7 - 2 / 3))


@pytest.mark.parametrize("bins", [5, 15])
def test_calibration_error_slowly(bins):
    p, y = some(300)
    p[:2] = [[0, 1, 0.2], [1, 0, 0.4]]
    edges = np.arange(bins + 1) / bins
    for column in range(3):
        gap = 0.0
        for k, (low, high) in enumerate(pairwise(edges)):
            q = p[:, column]
            inside = ((q > low) | ((k == 0) & (q == 0))) & (q <= high)
            if inside.any():
                gap += inside.mean() * abs(q[inside].mean() - y[inside, column].mean())
        assert calibration_error(p, y, bins=bins)[column] == pytest.approx(gap)


def test_a_perfectly_calibrated_forecast_has_no_error():
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    y = rng.random(200_000) < p
    assert calibration_error(p, y) < 0.01
    assert calibration_error(p**3, y) > 0.1
    assert brier(p, y) < brier(p**3, y)


@pytest.mark.parametrize("value", [0, 1])
def test_a_label_with_one_class_is_left_out_and_named(value):
    p, y = some()
    y[:, 1] = value
    for metric in (auroc, average_precision, lambda *a: sensitivity_at(*a, false_positive_rate=0.1)):
        assert np.isnan(metric(p, y)).tolist() == [False, True, False]
    found = macro(auroc(p, y), NAMES)
    assert found.undefined == ("b",)
    assert found.value == pytest.approx(sk.roc_auc_score(y[:, [0, 2]], p[:, [0, 2]]))
    line = multilabel(p, y, names=NAMES)
    assert line["undefined"] == 1
    assert "auroc/b" not in line
    assert np.isfinite(list(line.values())).all()


def test_no_label_left_is_an_error_that_names_them():
    p, y = some()
    with pytest.raises(ValueError, match=r"every label \(a, b, c\).*one class"):
        multilabel(p, np.zeros_like(y), names=NAMES)
    with pytest.raises(ValueError, match="one name a label"):
        macro(np.ones(2), NAMES)


def test_f1_of_nothing_is_undefined():
    nothing = np.zeros((4, 1), bool)
    assert np.isnan(f1(nothing, nothing)).all()
    assert f1(~nothing, nothing).tolist() == [0]


def test_a_macro_interval_holds_the_mean_and_tightens_with_cases():
    widths = []
    for n in (60, 600):
        p, y = some(n)
        y[:, 1] = 0
        found = macro_interval(auroc, p, y, names=NAMES, resamples=500)
        assert found.value == pytest.approx(macro(auroc(p, y), NAMES).value)
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < 0.5 * widths[0]


def test_an_interval_is_that_of_a_loop_over_resamples():
    p, y = some(150)
    found = macro_interval(auroc, p, y, names=NAMES, resamples=300, seed=4)
    rng = np.random.default_rng(4)
    weights = rng.multinomial(150, np.full(150, 1 / 150), size=300)
    slow = [np.mean([sk.roc_auc_score(y[:, c], p[:, c], sample_weight=w) for c in range(3)]) for w in weights]
    assert [found.low, found.high] == pytest.approx(np.percentile(slow, [2.5, 97.5]))


def test_classes_that_exclude_each_other():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 90)
    scores = rng.normal(size=(90, 3)) + 1.5 * np.eye(3)[target]
    line = multiclass(scores, target, names=NAMES)
    guess = scores.argmax(1)
    assert line["accuracy"] == pytest.approx(sk.accuracy_score(target, guess))
    assert line["f1"] == pytest.approx(sk.f1_score(target, guess, average="macro"))
    softmax = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    ranked = sk.roc_auc_score(target, softmax, multi_class="ovr")
    assert multiclass(softmax, target, names=NAMES)["auroc"] == pytest.approx(ranked)
    assert accuracy(guess, target) == pytest.approx(line["accuracy"])
    with pytest.raises(ValueError, match="classes 0 to 2, but scores for 0 to 1"):
        multiclass(scores[:, :2], target, names=NAMES[:2])


def test_bad_input_is_named():
    p, y = some()
    worse = p.copy()
    worse[7, 1] = np.nan
    for metric in (auroc, average_precision, brier, calibration_error):
        with pytest.raises(ValueError, match=r"sample 7 \(1 of 80\)"):
            metric(worse, y)
        with pytest.raises(ValueError, match="shape"):
            metric(p, y[:, :2])
        with pytest.raises(ValueError, match="targets must be 0 or 1, there is 2"):
            metric(p, y * 2)
    with pytest.raises(ValueError, match="sigmoid"):
        brier(p * 3, y)
    with pytest.raises(ValueError, match="false_positive_rate"):
        sensitivity_at(p, y, false_positive_rate=2.0)
