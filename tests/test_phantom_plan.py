"""The phantom's plans: prevalences and correlations, determinism, vocabulary, held-out nuisance factors."""

from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest

from mg3d.data.phantom.labels import PHI, PHI_ELSEWHERE, PREVALENCE, copula, draw_labels, joint
from mg3d.data.phantom.plan import FORMS, LABELS, MIDLINE, NUISANCE, PLACES, SIZES_MM, draw


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return draw_labels(20_000, 0)


@pytest.fixture(scope="module")
def plans() -> dict:
    return {split: [draw(i, split=split, seed=3) for i in range(1, 401)] for split in ("train", "valid", "test")}


def test_joint_is_the_orthant_probability():
    # Sheppard: P(z1 > 0, z2 > 0) = 1/4 + arcsin(r) / (2 pi)
    r = np.array([-0.9, -0.3, 0.0, 0.5, 0.9])
    np.testing.assert_allclose(joint(np.zeros(5), np.zeros(5), r), np.arcsin(r) / (2 * np.pi), atol=1e-9)


def test_joint_against_scipy():
    from scipy.stats import multivariate_normal, norm

    a, b, r = 0.56, 1.2, 0.9
    both = multivariate_normal(cov=[[1, r], [r, 1]]).cdf([-a, -b])
    found = joint(*(np.array([x]) for x in (a, b, r)))
    assert found[0] == pytest.approx(both - norm.sf(a) * norm.sf(b), abs=1e-6)


def test_prevalences(labels):
    np.testing.assert_allclose(labels.mean(0), list(PREVALENCE.values()), atol=0.012)
    assert labels.sum(1).mean() == pytest.approx(3.6, abs=0.05)
    assert 0.06 < (labels.sum(1) == 0).mean() < 0.12


def test_correlations(labels):
    phi = np.corrcoef(labels.T.astype(float))
    for one, two in combinations(LABELS, 2):
        wanted = PHI.get((one, two), PHI.get((two, one), 0 if "Lung nodule" in (one, two) else PHI_ELSEWHERE))
        assert phi[LABELS.index(one), LABELS.index(two)] == pytest.approx(wanted, abs=0.035), (one, two)


def test_latent_correlation_is_well_conditioned():
    _, factor = copula()
    assert np.linalg.eigvalsh(factor @ factor.T).min() > 0.02


def test_a_case_is_independent_of_the_cohort(labels):
    np.testing.assert_array_equal(draw_labels(7, 0), labels[:7])
    assert (draw_labels(50, 0) != draw_labels(50, 1)).any()
    assert (draw_labels(50, 0) != draw_labels(50, 0, split="test")).any()


def test_draw_has_the_labels_that_draw_labels_says(plans):
    for split, cases in plans.items():
        found = np.array([list(plan.labels.values()) for plan in cases], bool)
        np.testing.assert_array_equal(found, draw_labels(len(cases), 3, split=split))


def test_draw_repeats_itself(plans):
    assert draw(17, split="valid", seed=3) == plans["valid"][16]
    assert draw(17, split="valid", seed=4) != plans["valid"][16]
    plan = plans["test"][4]
    assert (plan.id, plan.patient_id, plan.split) == ("test_5_a_1", "test_5", "test")
    assert len({plan.seed for cases in plans.values() for plan in cases}) == 1200


@pytest.mark.parametrize(
    ("number", "split", "seed", "named"), [(0, "train", 0, "number"), (1, "dev", 0, "dev"), (1, "test", -1, "seed")]
)
def test_bad_arguments_are_named(number, split, seed, named):
    with pytest.raises(ValueError, match=named):
        draw(number, split=split, seed=seed)


def test_findings_keep_to_the_vocabulary(plans):
    for plan in (plan for cases in plans.values() for plan in cases):
        spots = [(f.label, f.side, f.place) for f in plan.findings if f.label != "Lung nodule"]
        assert len(spots) == len(set(spots)), plan
        for f in plan.findings:
            assert f.place in PLACES[f.label]
            assert f.form in FORMS.get(f.label, ("",))
            midline = f.label in MIDLINE or f.place in ("subcarinal", "sternum")
            assert f.side in (("",) if midline else ("left", "right"))
            assert (f.side, f.place) != ("left", "middle lobe")
            assert 0 <= f.severity <= 1
            low, high = SIZES_MM.get(f.label, (0, 0))
            assert low <= f.size_mm <= high
        if plan.labels["Medical material"]:
            device = {"pacemaker": "chest wall", "port catheter": "superior vena cava", "sternal wires": "sternum"}
            assert all(device[f.form] == f.place for f in plan.findings if f.label == "Medical material")


def test_heart_ratio_says_cardiomegaly(plans):
    for plan in (plan for cases in plans.values() for plan in cases):
        assert (plan.patient.heart_ratio >= 0.52) == bool(plan.labels["Cardiomegaly"])
        assert 0.42 <= plan.patient.heart_ratio <= 0.66


def test_nodule_sizes_are_skewed(plans):
    sizes = [f.size_mm for cases in plans.values() for p in cases for f in p.findings if f.label == "Lung nodule"]
    quantiles = np.quantile(sizes, [0.25, 0.75, 0.95])
    np.testing.assert_allclose(quantiles, [6, 10, 25], rtol=0.12)


def test_nuisance_is_independent_of_findings_but_for_age(plans):
    cases = plans["train"]
    found = np.array([list(plan.labels.values()) for plan in cases], float)
    scan = ("size", "fat_mm", "lung", "aorta_mm", "blood_hu", "kernel_mm", "noise_hu", "slice_mm", "tilt_deg", "zoom")
    values = np.array([[asdict(plan.patient)[name] for name in scan] for plan in cases])
    r = np.corrcoef(found.T, values.T)[:18, 18:]
    assert np.abs(r).max() < 0.2  # 180 correlations of 400 cases: 3.3 sigma is 0.17
    age = np.array([plan.patient.age for plan in cases], float)
    for label in ("Arterial wall calcification", "Coronary artery wall calcification", "Emphysema"):
        assert 0.2 < np.corrcoef(age, found[:, LABELS.index(label)])[0, 1] < 0.65


@pytest.mark.parametrize("name", ["kernel_mm", "noise_hu", "slice_mm", "zoom"])
def test_nuisance_of_the_test_split_reaches_beyond_training(plans, name):
    train, test = ([getattr(p.patient, name) for p in plans[split]] for split in ("train", "test"))
    low, high = getattr(NUISANCE["train"], name)
    assert low <= min(train)
    assert max(train) <= high
    beyond = np.mean([not low <= x <= high for x in test])
    assert 0.1 < beyond < 0.6  # extended, yet overlapping
    native = [np.mean([p.patient.blood_hu == 40 for p in plans[split]]) for split in ("train", "test")]
    assert native[0] > native[1] + 0.1
