"""The phantom as a stand-in for each study: labels and masks say what its truth says, in the frame of its volumes."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mg3d.data.cohorts import COHORTS
from mg3d.data.cohorts import phantom as stand_ins
from mg3d.data.cohorts.phantom import MASS_MM, SEVERE, STAND_INS, extent, phantom_listing
from mg3d.data.corpora import cases
from mg3d.data.listing import Listing
from mg3d.data.phantom.cohort import load_truth, make
from mg3d.data.phantom.plan import LABELS, ORGANS

COUNTS = {"train": 24, "valid": 8, "test": 8}
MASKED = [name for name, row in STAND_INS.items() if row.mask]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("phantom"), **COUNTS, seed=1, shape=(30, 26, 34), workers=1, progress=False)


@pytest.fixture(scope="module")
def listing(folder) -> Listing:
    return cases("phantom", folder)


@pytest.fixture(scope="module")
def truths(listing) -> dict:
    return {case.id: load_truth(case.truth) for case in listing.cases}


def of(listing: Listing, study: str) -> Listing:
    return phantom_listing(listing, study, workers=1, progress=False)


def test_every_study_has_a_stand_in_of_its_kind(listing):
    assert list(STAND_INS) == list(COHORTS)
    for name, row in STAND_INS.items():
        found = of(listing, name)
        assert found.problems == listing.problems
        assert {case.split for case in found.cases} == {"train", "valid", "test"}
        assert bool(row.classes) == bool(COHORTS[name].classes)
        assert len(row.labels) == len(COHORTS[name].labels)
        for case in found.cases:
            assert set(row.labels) <= set(case.labels)
            assert (case.mask is not None) == (name in MASKED)
            assert case.report


def test_labels_of_classification(listing):
    before = {case.id: case.labels for case in listing.cases}
    pneumonia = {case.id: case.labels for case in of(listing, "cc-ccii").cases}
    nodule = {case.id: case.labels for case in of(listing, "luna16").cases}
    assert pneumonia.keys() == nodule.keys() == before.keys()
    for id_, labels in before.items():
        opacity, consolidation = labels["Lung opacity"], labels["Consolidation"]
        assert pneumonia[id_] == {"class": 1 if consolidation else 2 * opacity}
        assert nodule[id_] == {"nodule": labels["Lung nodule"]}
    assert {labels["class"] for labels in pneumonia.values()} == {0, 1, 2}


def test_prompts_reports_and_gallery_are_the_phantoms_own(listing):
    for name in ("ctrg-report", "ctrate-vocabfine", "ctrate-retrieval"):
        assert of(listing, name).cases == listing.cases
    assert STAND_INS["ctrate-vocabfine"].labels == LABELS == tuple(listing.cases[0].labels)


def test_severity_is_the_extent_of_opacities(listing, truths, monkeypatch):
    found = of(listing, "stoic").cases
    for case in found:
        truth = truths[case.id]
        opaque = np.zeros(truth.organs.shape, bool)
        for finding, mask in zip(truth.plan.findings, truth.masks, strict=True):
            if finding.label in ("Lung opacity", "Consolidation"):
                opaque |= mask
        lungs = (truth.organs == ORGANS.index("left lung")) | (truth.organs == ORGANS.index("right lung"))
        share = opaque.sum() / (lungs | opaque).sum()
        assert extent(truth) == pytest.approx(share)
        assert case.labels == {"covid": int(opaque.any()), "severe": int(share > SEVERE)}
    monkeypatch.setattr(stand_ins, "SEVERE", 0.0)
    assert all(case.labels["covid"] == case.labels["severe"] for case in of(listing, "stoic").cases)
    assert 0 < sum(case.labels["covid"] for case in found) < len(found)


@pytest.mark.parametrize("study", MASKED)
def test_masks_lie_in_the_frame_of_their_volumes(listing, study):
    for case in of(listing, study).cases:
        mask, volume = nib.load(case.mask), nib.load(case.volume)
        assert mask.get_data_dtype() == np.uint8
        assert mask.shape == volume.shape
        assert (mask.affine == volume.affine).all()
        assert case.mask.parent == case.truth.parent


def values(case) -> np.ndarray:
    return np.asarray(nib.load(case.mask).dataobj)


@pytest.mark.parametrize(
    ("study", "labels"), [("msd06", ("Lung nodule",)), ("covid19-20", ("Lung opacity", "Consolidation"))]
)
def test_lesion_masks_are_the_findings_of_cases_that_have_them(listing, truths, study, labels):
    found = {case.id: case for case in of(listing, study).cases}
    for id_, truth in truths.items():
        chosen = [i for i, finding in enumerate(truth.plan.findings) if finding.label in labels]
        large = study != "msd06" or any(truth.plan.findings[i].size_mm >= MASS_MM for i in chosen)
        assert (id_ in found) == bool(chosen and large)
        if id_ in found:
            assert (values(found[id_]) == sum(truth.masks[i].astype(int) for i in chosen).clip(0, 1)).all()


def test_structures_are_three_organs(listing, truths):
    assert STAND_INS["acdc"].classes == ("background", "heart", "aorta", "pulmonary artery")
    for case in of(listing, "acdc").cases:
        mask, organs = values(case), truths[case.id].organs
        for value, name in enumerate(STAND_INS["acdc"].classes[1:], start=1):
            assert ((mask == value) == (organs == ORGANS.index(name))).all()
        assert set(np.unique(mask)) == {0, 1, 2, 3}


def test_masks_are_made_once_and_whole(folder, listing, monkeypatch):
    one = of(listing, "acdc")
    files = {path: path.stat().st_mtime_ns for path in (folder / "truth").iterdir()}
    assert of(listing, "acdc") == one
    lost = one.cases[5].mask
    lost.unlink()
    made = []
    monkeypatch.setattr(stand_ins, "write_atomic", lambda path, content: made.append((path, content)))
    of(listing, "acdc")
    assert [path for path, _ in made] == [lost]
    monkeypatch.undo()
    of(listing, "acdc")
    assert lost.read_bytes() == made[0][1]  # no date in it
    again = {path: path.stat().st_mtime_ns for path in (folder / "truth").iterdir()}
    assert again.keys() == files.keys()
    assert all(again[path] == files[path] for path in files if path != lost)
    assert make(folder, **COUNTS, seed=1, shape=(30, 26, 34), progress=False) == folder  # a cohort with masks is whole
    assert cases("phantom", folder) == listing


def test_what_is_no_phantom_is_refused(listing):
    with pytest.raises(ValueError, match="unknown study 'lidc'; valid: cc-ccii"):
        of(listing, "lidc")
    stranger = replace(listing.cases[0], truth=None)
    with pytest.raises(ValueError, match=f"no ground truth: {stranger.id}"):
        of(Listing([stranger]), "luna16")
    plain = [case for case in listing.cases if not case.labels["Consolidation"] and not case.labels["Lung opacity"]]
    with pytest.raises(ValueError, match=f"none of the {len(plain)} phantoms is a case of covid19-20"):
        of(Listing(plain), "covid19-20")
