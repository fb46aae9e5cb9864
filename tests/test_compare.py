"""Scores and differences of finished runs, with intervals over cases and runs."""

import numpy as np
import pytest
from finished import finetuned
from sklearn.metrics import roc_auc_score

from mg3d.compare import difference, says, score, scored
from mg3d.metrics import Interval, bleu, runs_and_cases, seeds_and_cases
from mg3d.transfer import Transfer

IDS = [f"v{i}" for i in range(60)]
WHO = {"ids": IDS, "patients": [f"p{i // 2}" for i in range(60)]}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MG3D_HOME", str(tmp_path))


def labelled(rng, *, signal: float = 1.0, seed: int = 0, **fields):
    true = np.random.default_rng(5).integers(0, 2, (60, 2))
    scores = true * signal + rng.normal(size=true.shape)
    value = float(np.mean([roc_auc_score(t, s) for t, s in zip(true.T, scores.T, strict=True)]))
    kept = WHO | {"predictions": scores, "targets": true}
    return finetuned(Transfer(seed=seed, **fields), {"auroc": (value, value - 0.1, value + 0.1)}, **kept)


def once(run, metric: str) -> float:
    return float(scored(run, metric).statistic(np.ones((1, 60)))[0])


def test_each_kind_of_study_is_scored_as_it_was():
    rng = np.random.default_rng(0)
    run = labelled(rng)
    assert once(run, "auroc") == pytest.approx(score([run], "auroc").value)
    kept = np.load(run.path / "predictions.npz")
    assert once(run, "auroc/b") == pytest.approx(roc_auc_score(kept["targets"][:, 1], kept["predictions"][:, 1]))

    asked = kept["predictions"][:, None] + np.array([0, 1])[:, None] * rng.normal(size=(60, 2, 2))  # two templates
    run = finetuned(Transfer(study="ctrate-zeroshot"), {}, predictions=asked, targets=kept["targets"], **WHO)
    assert once(run, "auroc/b") == pytest.approx(roc_auc_score(kept["targets"][:, 1], kept["predictions"][:, 1]))

    classes, true = rng.normal(size=(60, 3)), rng.integers(0, 3, (60, 1))
    options = {"names": ("x", "y", "z"), "exclusive": True}
    run = finetuned(Transfer(study="cc-ccii"), {}, options=options, predictions=classes, targets=true, **WHO)
    assert once(run, "accuracy") == pytest.approx((classes.argmax(1) == true[:, 0]).mean())
    each = [roc_auc_score(true[:, 0] == k, classes[:, k]) for k in range(3)]
    assert once(run, "auroc") == pytest.approx(np.mean(each))

    values = rng.random((60, 2))
    values[:7, 0] = np.nan  # neither drawn nor predicted
    run = finetuned(Transfer(study="msd06"), {}, classes=["t", "u"], dice=values, **WHO)
    assert once(run, "dice") == pytest.approx(np.nanmean(values, 0).mean())
    assert once(run, "dice/t") == pytest.approx(np.nanmean(values[:, 0]))

    said = [f"There is a nodule of {i} mm in the left lobe." for i in range(60)]
    meant = [f"There is a nodule of {i % 7} mm in the right lobe." for i in range(60)]
    run = finetuned(Transfer(study="ctrg-report"), {}, predictions=said, targets=meant, **WHO)
    assert [once(run, f"bleu{n}") for n in (1, 4)] == pytest.approx(list(bleu(said, meant)[[0, 3]]))

    pairs = rng.normal(size=(60, 2, 8))
    run = finetuned(Transfer(study="ctrate-retrieval"), {}, predictions=pairs, targets=IDS, **WHO)
    assert 0 < once(run, "report_to_volume/mrr") < once(run, "volume_to_report/recall@50") <= 1


def test_equal_runs_do_not_differ_and_better_ones_do():
    rng = np.random.default_rng(1)
    good = [labelled(rng, signal=3.0, seed=s) for s in range(3)]
    bad = [labelled(rng, signal=0.3, seed=s, share=0.5) for s in range(3)]
    same = difference(good, good, "auroc")
    assert same == (0, 0, 0)
    assert says(same) == "no difference"
    found = difference(good, bad, "auroc")
    assert found.value == pytest.approx(score(good, "auroc").value - score(bad, "auroc").value)
    assert 0 < found.low < found.value < found.high
    assert says(found).startswith(f"{100 * found.value:+.1f} (+")
    assert difference(good[:1], bad[:1], "auroc").low > 0


def test_pairs_cancel_what_both_share():
    """The same scores with a little noise: the interval of the difference is far narrower than that of a score."""
    rng = np.random.default_rng(2)
    one = labelled(rng, signal=1.0)
    kept = dict(np.load(one.path / "predictions.npz"))
    kept["predictions"] = kept["predictions"] + 0.05 * rng.normal(size=(60, 2))
    other = finetuned(Transfer(share=0.5), {"auroc": (0.7,)}, **kept)
    paired = difference([one], [other], "auroc")
    assert paired.high - paired.low < 0.1 * (score([one], "auroc").high - score([one], "auroc").low)


def test_intervals_over_runs_and_cases_hold_the_truth():
    """Coverage of three runs on one test set, when runs and cases both vary, is about what it says."""
    rng, held = np.random.default_rng(3), 0
    for _ in range(400):
        case, run = rng.normal(size=50), 0.15 * rng.normal(size=3)
        values = run[:, None] + case + 0.2 * rng.normal(size=(3, 50))
        error = float(values.mean(0).std(ddof=1) / np.sqrt(50))
        found = runs_and_cases(values.mean(1), error=error)
        held += found.low <= 0 <= found.high
    assert 0.92 < held / 400 <= 0.99


def test_one_run_has_an_interval_over_cases_alone_and_three_equal_ones_too():
    single = runs_and_cases(np.array([0.5]), error=0.1)
    assert single == pytest.approx((0.5, 0.5 - 0.196, 0.5 + 0.196), abs=1e-3)
    assert runs_and_cases(np.full(3, 0.5), error=0.1) == pytest.approx(single)
    wide = runs_and_cases(np.array([0.4, 0.5, 0.6]), error=0.0)
    assert wide.high - 0.5 == pytest.approx(4.303 * 0.1 / np.sqrt(3), rel=1e-3)
    crossed = seeds_and_cases(np.array([0.4, 0.5, 0.6]), seeds=[0, 1, 2], cases=[0, 0, 0])
    assert crossed.high - crossed.low < wide.high - wide.low


def test_refusals():
    rng = np.random.default_rng(4)
    one, other = labelled(rng), labelled(rng, share=0.5)
    with pytest.raises(ValueError, match="gives no 'f1'; it gives auroc"):
        score([one], "f1")
    with pytest.raises(ValueError, match="no difference is made of 'f1', but of auroc"):
        difference([one], [other], "f1")
    with pytest.raises(ValueError, match="pairs are needed"):
        difference([one], [], "auroc")
    kept = dict(np.load(one.path / "predictions.npz")) | {"ids": IDS[::-1]}
    with pytest.raises(ValueError, match="different cases"):
        difference([one], [finetuned(Transfer(share=0.2), {}, **kept)], "auroc")
    with pytest.raises(ValueError, match="finite numbers"):
        runs_and_cases(np.array([0.5, np.nan]), error=0.1)
    assert says(Interval(-0.02, -0.03, -0.01)) == "-2.0 (-3.0 to -1.0)"
