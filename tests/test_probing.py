"""The probe finds what features know and nothing more; retrieval counts equal findings as right."""

import numpy as np
import pytest
from trained import trained

from mg3d.probing import _groups, features, linear, probe, retrieve
from mg3d.recipe import Scale
from mg3d.train import choose, cohort
from mg3d.types import Case

TINY = Scale("phantom", 40, 12, 1, 2, (48, 32, 48), shrink=16, lr=1e-3, lr_fusion=1e-3, test=12)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with trained(tmp_path_factory.mktemp("home"), TINY, variant="clip") as run:
        yield run


def test_a_probe_finds_what_is_there_and_nothing_where_there_is_nothing():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (600, 2))
    x = rng.normal(0, 1, (600, 20)) * 50 + 7
    x[:, 3] += 200 * y[:, 0]  # one label in one feature, the other one nowhere
    parts = slice(0, 300), slice(300, 400), slice(400, 600)
    scores = linear(x[parts[0]], y[parts[0]], x[parts[1]], y[parts[1]], x[parts[2]])
    from sklearn.metrics import roc_auc_score

    assert roc_auc_score(y[parts[2]][:, 0], scores[:, 0]) > 0.97
    assert 0.35 < roc_auc_score(y[parts[2]][:, 1], scores[:, 1]) < 0.65


def test_rows_of_a_probe(run, monkeypatch):
    frequent = {"Lung nodule", "Lung opacity", "Lymphadenopathy"}  # both classes among so few

    def fewer(recipe, **how):
        found = cohort(recipe, **how)
        for entry in found.prepared.entries:
            for name in set(entry.case.labels) - frequent:
                del entry.case.labels[name]
        return found

    monkeypatch.setattr("mg3d.probing.train.cohort", fewer)
    rows = probe(run)
    assert [(r["encoder"], r["label"]) for r in rows] == [
        (encoder, label) for encoder in ("pretrained", "untrained") for label in (*sorted(frequent), "macro")
    ]
    for encoder in ("pretrained", "untrained"):
        *labels, macro = [r for r in rows if r["encoder"] == encoder]
        assert macro["auroc"] == pytest.approx(np.mean([r["auroc"] for r in labels]))
        assert macro["low"] <= macro["auroc"] <= macro["high"]
    assert rows != probe(run, share=0.5)
    with pytest.raises(ValueError, match="share=0"):
        probe(run, share=0.0)
    with pytest.raises(ValueError, match="1 training volumes have one class of Lung"):
        probe(run, share=0.01)


def test_a_label_that_is_missing_is_not_taken_for_health(run, monkeypatch):
    def gap(recipe, **how):
        found = cohort(recipe, **how)
        del found.prepared.entries[3].case.labels["Lung nodule"]
        return found

    monkeypatch.setattr("mg3d.probing.train.cohort", gap)
    with pytest.raises(ValueError, match="label 'Lung nodule' is missing"):
        probe(run)


def test_features_keep_the_order_of_the_cases(run):
    cases = [e.case for e in cohort(run.recipe, progress=False).prepared.entries if e.case.split == "test"]
    forth, back = features(run, cases), features(run, cases[::-1])
    for a, b in zip(forth, back, strict=True):
        assert len(a) == len(cases)
        np.testing.assert_allclose(a, b[::-1], atol=1e-5)
    assert not np.allclose(forth.pooled, features(run, cases, untrained=True).pooled)


def test_retrieval_of_a_run(run):
    line = retrieve(run)
    assert line["cases"] == 12
    assert 0 <= line["report_to_volume/recall@5"] <= 1
    assert 0.41 < line["chance/recall@5"] < 1
    assert line != retrieve(run, untrained=True)


def test_cases_with_the_same_findings_are_equally_right(tmp_path):
    cases = [
        Case(str(i), str(i), "test", tmp_path, "", labels)
        for i, labels in enumerate([{"a": 1, "b": 0}, {"b": 0, "a": 1}, {"a": 0, "b": 0}, {}, {}])
    ]
    assert _groups(cases).tolist() == [0, 0, 1, 2, 3]
    assert choose(cases, volumes=0) == cases
