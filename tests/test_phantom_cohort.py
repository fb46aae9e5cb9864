"""The phantom on disk: the layout of CT-RATE, truth in the stored axes, the same bytes each time, interruptions."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mg3d import paths
from mg3d.data.corpora import cases
from mg3d.data.phantom import cohort
from mg3d.data.phantom.cohort import load_truth, make, organ_masks, sentence_masks
from mg3d.data.phantom.plan import LABELS, ORGANS, draw
from mg3d.data.phantom.render import render
from mg3d.data.phantom.report import write
from mg3d.text import split

SHAPE = (30, 26, 34)  # D, H, W: three different sides, so that a swapped axis shows
COUNTS = {"train": 5, "valid": 2, "test": 2}
OPTIONS = {**COUNTS, "seed": 4, "shape": SHAPE, "progress": False}
TABLES = (
    *(f"radiology_text_reports/{name}_reports.csv" for name in ("train", "validation", "test")),
    *(f"multi_abnormality_labels/{name}_predicted_labels.csv" for name in ("train", "valid", "test")),
    *(f"metadata/{name}_metadata.csv" for name in ("train", "validation", "test")),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("phantom"), **OPTIONS, workers=1)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def truths(folder) -> list:
    return [load_truth(path) for path in sorted((folder / "truth").glob("*.json"))]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def in_frame(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A stored array [X, Y, Z] as [D, H, W], by nibabel's own reading of the affine."""
    target = nib.orientations.axcodes2ornt("LPS")
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), target)
    return nib.orientations.apply_orientation(array, turn).transpose(2, 1, 0)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_layout_is_that_of_ct_rate(folder):
    names = {f"{s}_{i}" for s, n in COUNTS.items() for i in range(1, n + 1)}
    expected = {"cohort.json", *(f"dataset/{table}" for table in TABLES)}
    for name in names:
        expected.add(f"dataset/{name.split('_')[0]}/{name}/{name}_a/{name}_a_1.nii.gz")
        expected |= {f"truth/{name}_a_1.json", f"truth/{name}_a_1.npz"}
    assert set(digests(folder)) == expected


def test_tables(folder):
    dataset = folder / "dataset"
    plans = {f"train_{i}_a_1.nii.gz": draw(i, split="train", seed=4) for i in range(1, 6)}
    reports, labels, metadata = (rows(dataset / TABLES[i]) for i in (0, 3, 6))
    assert [row["VolumeName"] for row in reports] == list(plans)
    assert list(reports[0]) == ["VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN"]
    assert list(labels[0]) == ["VolumeName", *LABELS]
    for row in labels:
        assert {label: int(row[label]) for label in LABELS} == plans[row["VolumeName"]].labels
    for row in metadata:
        patient = plans[row["VolumeName"]].patient
        assert [row["Rows"], row["Columns"], row["NumberofSlices"]] == ["26", "34", "30"]
        assert [float(row["RescaleSlope"]), float(row["RescaleIntercept"]), row["RescaleType"]] == [1, 0, "HU"]
        assert (row["PatientAge"], row["PatientSex"]) == (f"{patient.age:03d}Y", patient.sex[0].upper())
        image = nib.load(dataset / "train" / row["VolumeName"][:7] / row["VolumeName"][:9] / row["VolumeName"])
        zooms = image.header.get_zooms()
        np.testing.assert_allclose([*json.loads(row["XYSpacing"]), float(row["ZSpacing"])], zooms, rtol=1e-5)


def test_the_corpus_reader_takes_it_whole(folder, truths):
    listing = cases("phantom", folder)
    assert listing.problems == []
    assert Counter(case.split for case in listing.cases) == COUNTS
    by_id = {truth.plan.id: truth for truth in truths}
    for case in listing.cases:
        truth = by_id[case.id]
        assert case.truth == folder / "truth" / f"{case.id}.json"
        assert dict(case.labels) == truth.labels
        assert case.rescale == (1, 0)
        assert split(case.report) == [sentence.text for sentence in truth.sentences]


def test_voxels_and_masks_lie_where_the_affine_says(folder, truths):
    seen = Counter()
    for truth in truths:
        plan = truth.plan
        image = nib.load(next((folder / "dataset").rglob(f"{plan.id}.nii.gz")))
        drawn = render(plan, shape=SHAPE)
        assert image.get_data_dtype() == np.int16
        np.testing.assert_allclose(image.affine, truth.affine, atol=1e-4)
        np.testing.assert_array_equal(image.get_qform(), image.get_sform())
        np.testing.assert_array_equal(in_frame(np.asarray(image.dataobj), image.affine), drawn.hu)
        np.testing.assert_array_equal(in_frame(truth.organs, image.affine), drawn.organs)
        for mask, wanted in zip(truth.masks, drawn.masks, strict=True):
            np.testing.assert_array_equal(in_frame(mask, image.affine), wanted)
        centre = truth.affine @ [*((np.array(truth.organs.shape) - 1) / 2), 1]
        np.testing.assert_allclose(centre, [0, 0, 0, 1], atol=1e-9)
        seen["".join(nib.aff2axcodes(image.affine))] += 1
    assert set(seen) == {"LPS", "RAS", "LAS"}


def test_the_right_lung_is_on_the_right(truths):
    for truth in truths:
        centres = [np.argwhere(truth.organs == ORGANS.index(f"{side} lung")).mean(0) for side in ("right", "left")]
        right, left = (truth.affine @ [*centre, 1] for centre in centres)
        assert right[0] > left[0] + 50  # RAS: x grows towards the patient's right hand


def test_truth_is_what_was_drawn_and_written(truths):
    for truth in truths:
        plan = draw(int(truth.plan.id.split("_")[1]), split=truth.plan.split, seed=4)
        assert truth.plan == plan
        assert (*truth.preamble, *truth.sentences) == write(plan)
        assert {s.section for s in truth.preamble} == {"history", "technique"}


def test_sentence_masks_are_unions_of_findings(truths):
    shared = 0
    for truth in truths:
        masks, organs = sentence_masks(truth), organ_masks(truth)
        assert masks.shape == organs.shape == (len(truth.sentences), *truth.organs.shape)
        for sentence, mask, organ in zip(truth.sentences, masks, organs, strict=True):
            union = np.zeros(truth.organs.shape, bool)
            for i in sentence.findings:
                union |= truth.masks[i]
            np.testing.assert_array_equal(mask, union)
            assert mask.any() == (sentence.kind == "present")
            assert organ.any() == (sentence.kind != "distractor")
            np.testing.assert_array_equal(
                organ, np.isin(truth.organs, [ORGANS.index(name) for name in sentence.organs])
            )
            shared += len(sentence.findings) > 1
    assert shared


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_seed_gives_the_same_bytes(folder, tmp_path, workers):
    assert digests(make(tmp_path / "again", **OPTIONS, workers=workers)) == digests(folder)


def test_another_seed_gives_other_bytes(folder, tmp_path):
    other = digests(make(tmp_path / "other", train=1, valid=0, test=0, seed=5, shape=SHAPE, progress=False))
    name = "dataset/train/train_1/train_1_a/train_1_a_1.nii.gz"
    assert other[name] != digests(folder)[name]
    assert not any("valid" in path for path in other)


def test_a_finished_cohort_is_left_alone(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    make(copy, **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


@pytest.mark.parametrize("pattern", ["train_2_a_1.nii.gz", "train_2_a_1.json", "valid_1_a_1.npz"])
def test_what_is_missing_is_made_again(folder, copy, pattern):
    next(copy.rglob(pattern)).unlink()
    make(copy, **OPTIONS)
    assert digests(copy) == digests(folder)


def test_a_killed_run_goes_on(folder, tmp_path):
    code = f"from mg3d.data.phantom.cohort import make; make({str(tmp_path / 'killed')!r}, **{OPTIONS!r}, workers=1)"
    process = subprocess.Popen([sys.executable, "-c", code])
    truth = tmp_path / "killed" / "truth"
    while process.poll() is None and len(list(truth.glob("*.json"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= len(list(truth.glob("*.json"))) < sum(COUNTS.values())
    assert not json.loads((tmp_path / "killed" / "cohort.json").read_bytes())["complete"]
    make(tmp_path / "killed", **OPTIONS)
    for left in (tmp_path / "killed").rglob(f".*{paths.TEMPORARY}"):  # what a kill may leave; nothing reads it
        left.unlink()
    assert digests(tmp_path / "killed") == digests(folder)


def test_a_full_disk_is_told_and_leaves_nothing_half(folder, tmp_path, monkeypatch):
    calls, sync = Counter(), os.fsync

    def full(handle: int) -> None:
        calls["fsync"] += 1
        if calls["fsync"] > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(paths.os, "fsync", full)
        with pytest.raises(OSError, match="no space left on its disk"):
            make(tmp_path, **OPTIONS, workers=1)
    whole = digests(tmp_path)
    assert all(digests(folder)[name] == digest for name, digest in whole.items() if name != "cohort.json")
    make(tmp_path, **OPTIONS, workers=1)
    assert digests(tmp_path) == digests(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 5}, "seed 4 there, 5 asked for"),
        ({"train": 6}, "'train': 5.*'train': 6"),
        ({"shape": (30, 26, 30)}, r"shape \[30, 26, 34\] there, \[30, 26, 30\] asked for"),
    ],
)
def test_a_folder_with_other_parameters_is_refused(folder, change, told):
    before = digests(folder)
    with pytest.raises(ValueError, match=told):
        make(folder, **(OPTIONS | change))
    assert digests(folder) == before


def test_another_version_is_refused(folder, monkeypatch):
    monkeypatch.setattr(cohort, "VERSION", 999)
    with pytest.raises(ValueError, match=r"version \d+ there, 999 asked for"):
        make(folder, **OPTIONS)


def test_a_foreign_dataset_is_refused(tmp_path):
    (tmp_path / "dataset" / "train").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="choose another folder"):
        make(tmp_path, **OPTIONS)


def test_a_damaged_mark_is_named(copy):
    (copy / "cohort.json").write_text('{"version": 1')
    with pytest.raises(ValueError, match=r"cohort\.json is damaged"):
        make(copy, **OPTIONS)


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 2, 2)])
def test_bad_counts_are_refused(tmp_path, counts):
    with pytest.raises(ValueError, match="numbers of cases"):
        make(tmp_path, **dict(zip(("train", "valid", "test"), counts, strict=True)))


@pytest.mark.parametrize("suffix", [".json", ".npz"])
@pytest.mark.parametrize("keep", [0, 40])
def test_damaged_truth_is_named(copy, suffix, keep):
    path = copy / "truth" / "train_1_a_1.json"
    damaged = path.with_suffix(suffix)
    damaged.write_bytes(damaged.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"train_1_a_1\.json or the \.npz beside it is damaged"):
        load_truth(path)


def test_missing_truth_is_named(copy):
    path = copy / "truth" / "train_1_a_1.json"
    path.with_suffix(".npz").unlink()
    with pytest.raises(FileNotFoundError, match="train_1_a_1"):
        load_truth(path)
    with pytest.raises(FileNotFoundError, match="train_99_a_1"):
        load_truth(copy / "truth" / "train_99_a_1.json")


def test_a_killed_worker_is_named(tmp_path):
    job = cohort.Job(tmp_path, 3, "train", 0, SHAPE)
    with pytest.raises(RuntimeError, match=r"train_3_a_1\.nii\.gz.*workers=1"):
        cohort._lost(job)


def test_the_package_hands_out_its_verbs_lazily():
    code = (
        "import sys, mg3d.data.phantom as p\n"
        "assert not any(name.startswith('mg3d.data.phantom.') for name in sys.modules)\n"
        "from mg3d.data.phantom.cohort import make, load_truth\n"
        "assert p.make is make and p.load_truth is load_truth and all(callable(getattr(p, n)) for n in p.__all__)\n"
        "assert not hasattr(p, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
