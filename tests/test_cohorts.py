"""Cohorts in their published layouts: counts, labels, masks and splits, what is put aside, and what stops the run."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cohort_trees as trees
import numpy as np
import pytest
import volumes
from cohort_trees import TREES, edit, touch

from mg3d.data.cohorts import COHORTS, Leak, MissingCorpus, reports
from mg3d.data.cohorts.splits import fill, split
from mg3d.data.frame import Spec
from mg3d.data.hu import EIGHT_BIT
from mg3d.data.listing import BadTable, Listing
from mg3d.data.masks import prepare_masks
from mg3d.data.patches import PatchSpec, load_mask
from mg3d.data.phantom.labels import LABELS
from mg3d.data.reading import REASONS
from mg3d.types import Case

SHARED = Path(__file__).parents[2] / "shared" / "data"
real = pytest.mark.skipif(not SHARED.exists(), reason="no published split files beside the clone")


def counts(listing: Listing) -> dict[str, int]:
    return dict(Counter(case.split for case in listing.cases))


def patients_tested(listing: Listing) -> set[str]:
    return {case.patient for case in listing.cases if case.split == "test"}


# what holds for every row


@pytest.mark.parametrize("name", COHORTS)
def test_every_cohort_is_listed_whole_from_its_layout(tmp_path, name):
    tree, n = TREES[name]
    cohort = COHORTS[name]
    for seed in range(4):
        listing = cohort.read(tree(tmp_path), seed=seed)
        assert listing.problems == []
        assert len(listing.cases) == len({case.id for case in listing.cases}) == n
        assert set(counts(listing)) == {"train", "valid", "test"}
        assert listing == cohort.read(str(tmp_path), seed=seed)
        for case in listing.cases:
            assert case.volume.exists()
            assert all(case.labels[label] in (0, 1) for label in cohort.labels)
            if isinstance(cohort.spec, PatchSpec):
                assert case.mask is not None
                assert case.mask.exists()
            elif cohort.classes:
                assert case.labels["class"] in range(len(cohort.classes))


@pytest.mark.parametrize("name", COHORTS)
def test_a_cohort_that_is_not_there_says_what_where_and_how(tmp_path, name):
    with pytest.raises(MissingCorpus) as caught:
        COHORTS[name].read(tmp_path / "nowhere", seed=0)
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert COHORTS[name].get in str(caught.value)


@pytest.mark.parametrize("name", COHORTS)
def test_a_cohort_without_its_volumes_is_missing(tmp_path, name):
    tree, _ = TREES[name]
    tree(tmp_path)
    for pattern in ("*.nii.gz", "*.mha", "*.raw"):
        for path in tmp_path.rglob(pattern):
            path.unlink()
    for folder in (tmp_path / "Normal", tmp_path / "CP", tmp_path / "NCP"):
        shutil.rmtree(folder, ignore_errors=True)
    with pytest.raises(MissingCorpus, match="Where to get it"):
        COHORTS[name].read(tmp_path, seed=0)


@pytest.mark.parametrize("name", COHORTS)
def test_rows_are_complete(name):
    cohort = COHORTS[name]
    assert cohort.title
    assert len(set(cohort.labels)) == len(cohort.labels)
    if isinstance(cohort.spec, Spec):
        assert all(n % 32 == 0 for n in cohort.spec.shape)
    else:
        assert all(n % 32 == 0 for n in cohort.spec.patch)
        assert cohort.classes[0] == "background"


@pytest.mark.parametrize("name", ["covid19-20", "acdc"])
def test_what_is_listed_can_be_prepared(tmp_path, name):
    """Real files in two of the trees: a chest, and a heart without units, each with all labels of its cohort."""
    tree, n = TREES[name]
    cohort = COHORTS[name]
    listing = cohort.read(tree(tmp_path), seed=0)
    hu, affine = volumes.chest()[::2, ::2, ::2], volumes.AFFINE @ np.diag([2, 2, 2, 1])
    if name == "acdc":
        hu, affine = hu + 1100, np.diag([1.5, 1.5, 10.0, 1.0])
    mask = np.zeros(hu.shape, np.uint8)
    mask[5:9, 5:9, 2 : 2 + len(cohort.classes)] = range(len(cohort.classes))
    for case in listing.cases:
        assert case.mask is not None
        volumes.write_nifti(case.volume, hu, affine=affine)
        volumes.write_nifti(case.mask, mask, affine=affine)
    assert isinstance(cohort.spec, PatchSpec)
    spec = replace(cohort.spec, spacing_mm=(20.0, 16.0, 16.0) if name == "covid19-20" else cohort.spec.spacing_mm)
    folder = tmp_path / "cache"
    made = prepare_masks(listing, classes=cohort.classes, spec=spec, folder=folder, workers=1, progress=False)
    assert made.quarantine == []
    assert len(made.entries) == n
    assert all(set(np.unique(load_mask(entry))) == set(range(len(cohort.classes))) for entry in made.entries)


# splits


def test_three_seeds_are_three_splits_of_patients(tmp_path):
    trees.stoic(tmp_path)
    listings = [COHORTS["stoic"].read(tmp_path, seed=seed) for seed in range(3)]
    for listing in listings:
        assert counts(listing) == {"train": 36, "valid": 4, "test": 10}
    assert len({frozenset(patients_tested(listing)) for listing in listings}) == 3


def test_fill_meets_the_count_and_parts_no_patient():
    patients = [f"p{i // 3}" for i in range(30)] + [f"q{i}" for i in range(5)]
    for seed in range(20):
        chosen = fill(patients, 17, seed=seed)
        assert sum(patient in chosen for patient in patients) == 17
    assert fill(patients, 17, seed=1) == fill(patients[::-1], 17, seed=1)
    assert fill(["a", "a", "b", "b"], 3, seed=0) in ({"a"}, {"b"})


def test_validation_comes_out_of_training_alone():
    cases = [Case(f"{p}{i}", f"p{p}", "test" if p < 4 else "train", Path("v"), "") for p in range(24) for i in range(2)]
    listing = split(Listing(cases), seed=0, share=0.5)
    assert counts(listing) == {"test": 8, "train": 36, "valid": 4}
    held_out = {case.patient for case in listing.cases if case.split == "valid"}
    assert len(held_out) == 2
    assert not held_out & patients_tested(listing)
    assert counts(split(Listing(cases[:9]), seed=0, share=0.5)) == {"test": 8, "train": 1}  # too few to hold any out


# CC-CCII


def test_cc_ccii_takes_the_published_folds(tmp_path):
    trees.cc_ccii(tmp_path)
    cohort = COHORTS["cc-ccii"]
    for seed in range(3):
        listing = cohort.read(tmp_path, seed=seed)
        assert counts(listing) == {"train": 36, "valid": 4, "test": 20}
        assert patients_tested(listing) == {str(1000 + p) for p in range(30) if p % 3 == seed}
    found = {case.id: case for case in listing.cases}
    assert found["p1012-s25"] == Case(
        id="p1012-s25",
        patient="1012",
        split=found["p1012-s24"].split,
        volume=tmp_path / "CP" / "1012" / "25",
        report="",
        labels={"class": 1},
        rescale=EIGHT_BIT,
    )
    assert Counter(case.labels["class"] for case in listing.cases) == {0: 20, 1: 20, 2: 20}
    drawn = cohort.read(tmp_path, seed=7)
    assert counts(drawn) == {"train": 36, "valid": 4, "test": 20}
    assert patients_tested(drawn) != patients_tested(listing)


@pytest.mark.parametrize("zips", [False, True])
def test_cc_ccii_without_tables_takes_the_folders(tmp_path, zips):
    listing = COHORTS["cc-ccii"].read(trees.cc_ccii(tmp_path, folds=(), zips=zips), seed=0)
    assert counts(listing) == {"train": 36, "valid": 4, "test": 20}
    assert [case.id for case in listing.cases[:3]] == ["p1000-s0", "p1000-s1", "p1001-s2"]
    assert listing.cases[20].labels == {"class": 1}


def test_cc_ccii_as_arrays(tmp_path):
    trees.cc_ccii(tmp_path)
    for name in trees.CLASSES:
        shutil.rmtree(tmp_path / name)
    path = touch(tmp_path / "npy" / "p1012-s25.npy")
    listing = COHORTS["cc-ccii"].read(tmp_path, seed=0)
    assert [case.volume for case in listing.cases] == [path]
    assert {p.reason for p in listing.problems} == {"missing"}
    assert len(listing.problems) == 59


def test_cc_ccii_problems(tmp_path):
    trees.cc_ccii(tmp_path, folds=(0,))
    shutil.rmtree(tmp_path / "NCP" / "1029" / "58")
    table = tmp_path / "csv" / "CC_CCII_fold0_train.csv"
    edit(table, "Normal-1.zip,0,Normal,1001,2,", "Normal-1.zip,0,Flu,1001,2,")
    edit(table, "Normal-1.zip,0,Normal,1001,3,", "Normal-1.zip,2,Normal,1001,3,")
    listing = COHORTS["cc-ccii"].read(tmp_path, seed=0)
    assert {p.id: p.reason for p in listing.problems} == {
        "p1029-s58": "missing",
        "p1001-s2": "no-label",
        "p1001-s3": "no-label",
    }
    assert "class 'Flu'" in listing.problems[0].detail
    assert f"line 2 of {table}; valid: Normal, CP, NCP" in listing.problems[0].detail
    assert len(listing.cases) == 57
    assert {p.reason for p in listing.problems} <= REASONS.keys()


def test_cc_ccii_leaks_and_faults(tmp_path):
    tables = trees.cc_ccii(tmp_path, folds=(0,)) / "csv"
    edit(tables / "CC_CCII_fold0_valid.csv", "1000,0,", "1001,0,")
    touch(tmp_path / "Normal" / "1001" / "0" / "0000.png")
    with pytest.raises(
        Leak, match=r"fold0_train.*1 patient is in more than one split: 1001 \(test, train\).*take that file away"
    ):
        COHORTS["cc-ccii"].read(tmp_path, seed=0)
    edit(tables / "CC_CCII_fold0_valid.csv", "1001,0,", "1000,2,")
    with pytest.raises(Leak, match="scan 2 is in both"):
        COHORTS["cc-ccii"].read(tmp_path, seed=0)
    (tables / "CC_CCII_fold0_valid.csv").unlink()
    with pytest.raises(BadTable, match="Get both"):
        COHORTS["cc-ccii"].read(tmp_path, seed=0)


@real
def test_cc_ccii_as_published(tmp_path):
    """The real tables; empty arrays stand for the scans."""
    (tmp_path / "csv").symlink_to(SHARED / "splits")
    everywhere = set()
    for name in ("train", "valid"):
        for line in (SHARED / "splits" / f"CC_CCII_fold0_{name}.csv").read_text().splitlines()[1:]:
            cells = line.split(",")
            everywhere.add(f"p{cells[3]}-s{cells[4]}.npy")
    for file in everywhere:
        (tmp_path / file).touch()
    for seed, (train, valid, test) in enumerate([(2254, 260, 1664), (2243, 272, 1663), (2277, 240, 1661)]):
        listing = COHORTS["cc-ccii"].read(tmp_path, seed=seed)
        assert listing.problems == []
        assert counts(listing) == {"train": train, "valid": valid, "test": test}
    assert len(everywhere) == 4178
    assert counts(COHORTS["cc-ccii"].read(tmp_path, seed=3))["test"] == 4178 - 2785


# LUNA16


def test_luna16_takes_the_subsets(tmp_path):
    trees.luna16(tmp_path)
    for seed, subsets in ((0, (7, 8, 9)), (1, (4, 5, 6)), (2, (1, 2, 3))):
        listing = COHORTS["luna16"].read(tmp_path, seed=seed)
        assert counts(listing) == {"train": 18, "valid": 3, "test": 9}
        assert {case.volume.parent.name for case in listing.cases if case.split == "test"} == {
            f"subset{n}" for n in subsets
        }
    first = COHORTS["luna16"].read(tmp_path, seed=0)
    assert {c.volume.parent.name for c in first.cases if c.split == "valid"} == {"subset6"}
    assert [case.labels["nodule"] for case in first.cases[:3]] == [1, 1, 0]
    assert counts(COHORTS["luna16"].read(tmp_path, seed=3)) == {"train": 19, "valid": 2, "test": 9}


def test_luna16_by_candidates(tmp_path):
    trees.luna16(tmp_path)
    (tmp_path / "annotations.csv").unlink()
    with pytest.raises(MissingCorpus, match="table of nodules"):
        COHORTS["luna16"].read(tmp_path, seed=0)
    rows = [["seriesuid", "coordX", "coordY", "coordZ", "class"]]
    rows += [[trees.UID.format(10 * n), 1, 2, 3, n % 2] for n in range(10)]
    trees.write_csv(tmp_path / "CSVFILES" / "candidates.csv", rows)
    listing = COHORTS["luna16"].read(tmp_path, seed=0)
    assert sum(case.labels["nodule"] for case in listing.cases) == 5


def test_luna16_problems(tmp_path):
    trees.luna16(tmp_path)
    raw = tmp_path / "subset0" / f"{trees.UID.format(2)}.raw"
    raw.unlink()
    shutil.rmtree(tmp_path / "subset9")
    listing = COHORTS["luna16"].read(tmp_path, seed=0)
    gone = {trees.UID.format(n) for n in (90, 91)}  # 92 has no nodule, so that no table names it
    assert {p.id: p.reason for p in listing.problems} == dict.fromkeys([trees.UID.format(2), *gone], "missing")
    assert listing.problems[0].path == str(raw)
    assert len(listing.cases) == 26


@real
def test_luna16s_table_as_published(tmp_path):
    trees.luna16(tmp_path)
    (tmp_path / "annotations.csv").unlink()
    (tmp_path / "annotations.csv").symlink_to(SHARED / "splits" / "luna16_annotations.csv")
    uid = "1.3.6.1.4.1.14519.5.2.1.6279.6001.100225287222365663678666836860"
    for end in (".mhd", ".raw"):
        touch(tmp_path / "subset0" / f"{uid}{end}")
    listing = COHORTS["luna16"].read(tmp_path, seed=0)
    assert {case.id: case.labels["nodule"] for case in listing.cases}[uid] == 1
    assert sum(case.labels["nodule"] for case in listing.cases) == 1
    assert len(listing.problems) == 600


# STOIC


def test_stoic_labels_and_problems(tmp_path):
    trees.stoic(tmp_path)
    table = tmp_path / "metadata" / "reference.csv"
    edit(table, "\n7,0,0", "\n7,,0")
    edit(table, "\n8,1,0", "\n8,1,2")
    edit(table, "\n10,1,1", "\n10,1.0,1.0")
    (tmp_path / "data" / "mha" / "9.mha").unlink()
    touch(tmp_path / "data" / "mha" / "777.mha")
    listing = COHORTS["stoic"].read(tmp_path, seed=0)
    assert {p.id: p.reason for p in listing.problems} == {
        "7": "no-label",
        "8": "no-label",
        "9": "missing",
        "777": "no-label",
    }
    found = {case.id: case for case in listing.cases}
    assert found["10"].labels == {"covid": 1, "severe": 1}
    assert found["12"].labels == {"covid": 1, "severe": 0}
    assert found["13"].labels == {"covid": 0, "severe": 0}
    assert found["10"].volume == tmp_path / "data" / "mha" / "10.mha"
    edit(table, "\n11,", "\n10,")
    with pytest.raises(BadTable, match="the same PatientID comes more than once"):
        COHORTS["stoic"].read(tmp_path, seed=0)


# MSD Task06


def test_msd06_takes_the_published_folds(tmp_path):
    trees.msd06(tmp_path)
    for seed in range(5):
        listing = COHORTS["msd06"].read(tmp_path, seed=seed)
        assert counts(listing) == {"train": 14, "valid": 2, "test": 4}
        assert patients_tested(listing) == {f"lung_{i:03d}" for i in range(20) if i % 5 == seed}
    first, root = listing.cases[0], tmp_path / "Task06_Lung"
    assert (first.id, first.patient) == ("lung_000", "lung_000")
    assert first.volume == root / "imagesTr" / "lung_000.nii.gz"
    assert first.mask == root / "labelsTr" / "lung_000.nii.gz"
    drawn = COHORTS["msd06"].read(tmp_path, seed=5)
    assert counts(drawn) == {"train": 14, "valid": 2, "test": 4}


@pytest.mark.parametrize("inner", ["", "Task06_Lung"])
def test_msd06_by_its_own_table(tmp_path, inner):
    trees.msd06(tmp_path, folds=False)
    listing = COHORTS["msd06"].read(tmp_path / inner, seed=0)
    assert len(listing.cases) == 20
    (tmp_path / "Task06_Lung" / "labelsTr" / "lung_003.nii.gz").unlink()
    (tmp_path / "Task06_Lung" / "imagesTr" / "lung_004.nii.gz").unlink()
    listing = COHORTS["msd06"].read(tmp_path / inner, seed=0)
    assert {p.id: (p.reason, p.detail) for p in listing.problems} == {
        "lung_003": ("missing", "the mask of lung_003 is not there"),
        "lung_004": ("missing", "the volume of lung_004 is not there"),
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "no list training"),
        ('{"training": [{"image": "a.nii.gz"}]}', "entry 0 of training: each needs image, label"),
        ('{"training": [{"image": "/a.nii.gz", "label": "b"}]}', "paths below the folder"),
        ('{"training": [{"image": "a", "label": "../b"}]}', "paths below the folder"),
        ('{"training": [{"image": "a", "label": "b"}, {"image": "a", "label": "c"}]}', "more than once in training: a"),
    ],
)
def test_faults_in_a_json_stop(tmp_path, content, words):
    trees.msd06(tmp_path, folds=False)
    (tmp_path / "Task06_Lung" / "dataset.json").write_text(content)
    with pytest.raises(BadTable, match=words):
        COHORTS["msd06"].read(tmp_path, seed=0)


@real
def test_msd06_and_covid19_20_as_published(tmp_path):
    """The real folds; empty files stand for volumes and masks."""
    for name, file, most in (
        ("msd06", "10_Decathlon_Task06_Lung_folds.json", [(45, 5, 13)] * 3 + [(46, 5, 12)] * 2),
        ("covid19-20", "Covid19_20_folds.json", [(143, 16, 40)] * 4 + [(144, 16, 39)]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / file).symlink_to(SHARED / "splits" / file)
        for row in json.loads((SHARED / "splits" / file).read_text())["training"]:
            touch(folder / row["image"])
            touch(folder / row["label"])
        for seed, (train, valid, test) in enumerate(most):
            listing = COHORTS[name].read(folder, seed=seed)
            assert listing.problems == []
            assert counts(listing) == {"train": train, "valid": valid, "test": test}


# COVID-19-20


@pytest.mark.parametrize("inner", ["", "COVID-19-20_v2", "COVID-19-20_v2/Train"])
def test_covid19_20_keeps_the_scans_of_a_patient_together(tmp_path, inner):
    trees.covid19_20(tmp_path, folds=False)
    for seed in range(6):
        listing = COHORTS["covid19-20"].read(tmp_path / inner, seed=seed)
        found = {case.id: case for case in listing.cases}
        one, two = found["volume-covid19-A-0003"], found["volume-covid19-A-0003_1"]
        assert one.patient == two.patient == "volume-covid19-A-0003"
        assert one.split == two.split
        assert two.mask == two.volume.with_name("volume-covid19-A-0003_1_seg.nii.gz")
        assert counts(listing)["test"] == 4


def test_covid19_20_folds_and_faults(tmp_path):
    path = trees.covid19_20(tmp_path) / "Covid19_20_folds.json"
    listing = COHORTS["covid19-20"].read(tmp_path, seed=3)
    assert patients_tested(listing) == {f"volume-covid19-A-{i:04d}" for i in range(20) if i % 5 == 3}
    (tmp_path / "COVID-19-20_v2" / "Train" / "volume-covid19-A-0007_seg.nii.gz").unlink()
    assert [p.id for p in COHORTS["covid19-20"].read(tmp_path, seed=3).problems] == ["volume-covid19-A-0007"]
    edit(path, '{"fold": 3, "image": "volume-covid19-A-0003_1_ct', '{"fold": 4, "image": "volume-covid19-A-0003_1_ct')
    with pytest.raises(Leak, match="volume-covid19-A-0003 "):
        COHORTS["covid19-20"].read(tmp_path, seed=3)
    edit(path, "volume-covid19-A-0001_ct", "covid-1")
    with pytest.raises(BadTable, match="a volume has a name such as"):
        COHORTS["covid19-20"].read(tmp_path, seed=3)


# ACDC


def test_acdc_keeps_the_frames_of_a_patient_together(tmp_path):
    trees.acdc(tmp_path)
    for seed in range(6):
        listing = COHORTS["acdc"].read(tmp_path, seed=seed)
        assert counts(listing) == {"train": 14, "valid": 2, "test": 4}
        assert len(patients_tested(listing)) == 2
    case = listing.cases[3]
    root = tmp_path / "database" / "training" / "patient002"
    assert (case.id, case.patient) == ("patient002_frame12", "patient002")
    assert case.volume == root / "patient002_frame12.nii.gz"
    assert case.mask == root / "patient002_frame12_gt.nii.gz"


def test_acdc_refuses_a_fold_that_parts_a_patient(tmp_path):
    trees.acdc(tmp_path)
    trees.acdc_fold(tmp_path, tested=("patient001", "patient002"))
    assert patients_tested(COHORTS["acdc"].read(tmp_path, seed=0)) == {"patient001", "patient002"}
    path = trees.acdc_fold(tmp_path, tested=("patient001", "patient002_frame01"))
    with pytest.raises(Leak, match="patient002") as caught:
        COHORTS["acdc"].read(tmp_path, seed=0)
    assert str(path) in str(caught.value)
    assert counts(COHORTS["acdc"].read(tmp_path, seed=1)) == {"train": 14, "valid": 2, "test": 4}  # no file of fold 1


def test_acdc_problems(tmp_path):
    root = trees.acdc(tmp_path) / "database" / "training"
    (root / "patient001" / "Info.cfg").unlink()
    (root / "patient002" / "Info.cfg").write_text("Group: DCM\nED: one\n")
    (root / "patient003" / "patient003_frame13_gt.nii.gz").unlink()
    (root / "patient004" / "patient004_frame01.nii.gz").unlink()
    listing = COHORTS["acdc"].read(tmp_path, seed=0)
    assert {p.id: p.reason for p in listing.problems} == {
        "patient001": "missing",
        "patient002": "no-label",
        "patient003_frame13": "missing",
        "patient004_frame01": "missing",
    }
    assert len(listing.cases) == 14
    trees.acdc_fold(tmp_path, tested=("patient009",), patients=9)
    named = {p.id for p in COHORTS["acdc"].read(tmp_path, seed=0).problems}
    assert {"patient010_frame01", "patient010_frame20"} <= named


@real
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_acdcs_folds_as_published_leak(tmp_path, seed):
    file = SHARED / "splits" / f"ACDC_fold{seed}.json"
    told = json.loads(file.read_text())
    frames = {}
    for row in told["training"] + told["validation"]:
        patient, frame = Path(row["image"]).name.split("_")[:2]
        root = tmp_path / "training" / patient
        touch(root / f"{patient}_{frame}.nii.gz")
        touch(root / f"{patient}_{frame}_gt.nii.gz")
        frames.setdefault(patient, []).append(int(frame.removeprefix("frame")))
    for patient, (one, two) in frames.items():
        (tmp_path / "training" / patient / "Info.cfg").write_text(f"ED: {min(one, two)}\nES: {max(one, two)}\n")
    listing = COHORTS["acdc"].read(tmp_path, seed=seed)
    assert counts(listing) == {"train": 144, "valid": 16, "test": 40}
    assert listing.problems == []
    (tmp_path / file.name).symlink_to(file)
    with pytest.raises(Leak, match=f"{30 if seed == 0 else 40} patients are in more than one split"):
        COHORTS["acdc"].read(tmp_path, seed=seed)


# CTRG-Chest and CT-RATE


def test_ctrg_has_one_split(tmp_path):
    trees.ctrg(tmp_path)
    one, two = (COHORTS["ctrg-report"].read(tmp_path, seed=seed) for seed in (0, 1))
    assert one == two
    assert counts(one) == {"train": 38, "valid": 2, "test": 8}
    assert one.cases[0].report == "Findings 0. Fatty liver."


def test_ctrate_draws_patients_that_train_and_tests_on_valid(tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "FINE_TUNED", 20)
    monkeypatch.setattr(reports, "VALID", 6)
    trees.ctrate(tmp_path, train=40)
    for name in ("ctrate-vocabfine", "ctrate-retrieval"):
        one, two = (COHORTS[name].read(tmp_path, seed=seed) for seed in (0, 1))
        assert counts(one) == counts(two) == {"train": 20, "valid": 6, "test": 12}
        assert patients_tested(one) == patients_tested(two) == {f"valid_{p}" for p in range(1, 7)}
        trained = [{case.patient for case in x.cases if case.split == "train"} for x in (one, two)]
        assert trained[0] != trained[1]
        assert list(one.cases[0].labels) == list(LABELS)


def test_ctrate_needs_labels_for_prompts_alone(tmp_path):
    trees.ctrate(tmp_path)
    table = tmp_path / "dataset" / "multi_abnormality_labels" / "valid_predicted_labels.csv"
    edit(table, "valid_1_a_1.nii.gz,0", "valid_1_a_1.nii.gz,2")
    edit(table, "valid_1_a_2.nii.gz", "valid_9_a_2.nii.gz")
    problems = COHORTS["ctrate-vocabfine"].read(tmp_path, seed=0).problems
    assert {p.id: p.reason for p in problems} == dict.fromkeys(("valid_1_a_1", "valid_1_a_2"), "no-label")
    assert "neither 0 nor 1: Medical material" in problems[0].detail
    assert COHORTS["ctrate-retrieval"].read(tmp_path, seed=0).problems == []
