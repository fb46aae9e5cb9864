"""Classification: the losses are torch's, the scores are scikit-learn's, and what is undefined is said."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from toy import ToyEncoder

from mg3d.tasks.classify import Classify, Standardise
from mg3d.types import Batch

NAMES = ["a", "b", "c"]


def batch(target: torch.Tensor) -> Batch:
    n = len(target)
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(n, 1, 16, 16, 16, generator=generator)
    return Batch(volume, tuple(map(str, range(n))), torch.arange(n), target=target)


def made(**options) -> Classify:
    torch.manual_seed(0)
    return Classify(ToyEncoder(), names=NAMES, **options)


def drawn(n: int = 60, labels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 2, (n, labels))
    return np.clip(0.3 * true + rng.random((n, labels)) * 0.6, 0, 1).round(2), true


def test_labels_have_binary_cross_entropy_and_classes_cross_entropy():
    true = torch.tensor([[0.0, 1, 1], [1, 0, 1]])
    labels = batch(true)
    task = made()
    logits = task.head(task.norm(task.encoder(labels.volume).pooled))
    p = logits.sigmoid()
    by_hand = -(true * p.log() + (1 - true) * (1 - p).log()).mean()
    torch.testing.assert_close(task(labels)["bce"], by_hand)
    classes = batch(torch.tensor([[2.0], [0]]))
    exclusive = made(exclusive=True)
    torch.testing.assert_close(exclusive(classes)["ce"], F.cross_entropy(logits, torch.tensor([2, 0])))
    with pytest.raises(ValueError, match="without targets"):
        task(Batch(labels.volume, labels.ids, labels.seeds))


def test_predictions_are_probabilities_and_keep_their_order_under_bfloat16():
    some = batch(torch.zeros(6, 3))
    task = made()
    plain = np.stack(task.predict(some))
    assert plain.shape == (6, 3)
    assert plain.dtype == np.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = np.stack(task.predict(some))
    assert len(np.unique(rounded[:, 0])) == 6  # in bfloat16 the head would give ties
    np.testing.assert_allclose(np.stack(made(exclusive=True).predict(some)).sum(1), 1)


def test_scores_of_labels_are_those_of_scikit_learn():
    scores, true = drawn()
    line = made().score(list(scores), list(true.astype(np.float32)))
    assert line["auroc"] == pytest.approx(roc_auc_score(true, scores))
    assert line["auroc/b"] == pytest.approx(roc_auc_score(true[:, 1], scores[:, 1]))
    assert line["f1"] == pytest.approx(f1_score(true, scores >= 0.5, average="macro"))


def test_scores_of_classes_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    true = rng.integers(0, 3, 80)
    scores = rng.random((80, 3)) + np.eye(3)[true] * 0.4
    scores /= scores.sum(1, keepdims=True)
    task = made(exclusive=True)
    targets = list(true[:, None].astype(np.float32))
    line = task.score(list(scores), targets)
    assert line["accuracy"] == pytest.approx(accuracy_score(true, scores.argmax(1)))
    assert line["f1"] == pytest.approx(f1_score(true, scores.argmax(1), average="macro"))
    assert line["auroc"] == pytest.approx(roc_auc_score(true, scores, multi_class="ovr"))
    sure = task.intervals(list(scores), targets, cases=[str(i // 2) for i in range(80)])
    assert {n: i.value for n, i in sure.items()} == pytest.approx({n: line[n] for n in ("accuracy", "f1", "auroc")})
    assert all(i.low < i.value < i.high for i in sure.values())


def test_intervals_are_of_what_is_scored_and_repeat():
    scores, true = drawn()
    cases = [f"p{i // 2}" for i in range(60)]
    task = made()
    line = task.score(list(scores), list(true))
    sure = task.intervals(list(scores), list(true), cases=cases)
    for name, interval in sure.items():
        assert interval.value == pytest.approx(line[name]), name
        assert interval.low < interval.value < interval.high
    assert sure == task.intervals(list(scores), list(true), cases=cases)


def test_what_is_undefined_is_said_and_never_nan():
    scores, true = drawn()
    true[:, 1] = 0
    line = made().score(list(scores), list(true))
    assert line["undefined"] == 1
    assert "auroc/b" not in line
    assert not any(np.isnan(v) for v in line.values())
    assert "auroc/b" not in made().intervals(list(scores), list(true), cases=list(map(str, range(60))))
    with pytest.raises(ValueError, match=r"undefined for every label \(a, b, c\): this set has one class"):
        made().score(list(scores), list(true * 0))


def test_an_auroc_among_the_positives_of_another_label():
    scores, true = drawn()
    line = made(among="a").score(list(scores), list(true))
    kept = true[:, 0] == 1
    assert line["auroc/c among a"] == pytest.approx(roc_auc_score(true[kept, 2], scores[kept, 2]))
    assert "auroc/a among a" not in line
    true[kept, 2] = 1
    assert "auroc/c among a" not in made(among="a").score(list(scores), list(true))


@pytest.mark.parametrize("options", [{"among": "d"}, {"among": "a", "exclusive": True}])
def test_options_that_cannot_be(options):
    with pytest.raises(ValueError, match="nothing to tell apart"):
        made(**options)
    with pytest.raises(ValueError, match="nothing to tell apart"):
        Classify(ToyEncoder(), names=["only"], exclusive=True)


def test_standardising_is_that_of_the_cases_seen_and_no_parameter():
    x = torch.randn(50, 4) * torch.tensor([1e-4, 1.0, 100.0, 0.0]) + 5
    norm = Standardise(4)
    norm.fit(x)
    y = norm(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(4), atol=2e-2, rtol=0.0)
    torch.testing.assert_close(y.std(0, correction=0)[:3], torch.ones(3), atol=1e-3, rtol=0.0)
    assert torch.equal(y[:, 3], torch.zeros(50))
    assert not list(norm.parameters())
    assert set(made(standardise=True).state_dict()) >= {"norm.mean", "norm.deviation"}
