"""Volumes with masks: what is prepared, what is refused, and predictions that lie where their volume lies."""

import csv
import os
import re
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from chest import chest, write_nifti
from scipy.ndimage import binary_erosion

from mg3d.data.listing import Listing, Problem
from mg3d.data.masks import prepare_masks, prepare_pair, to_source
from mg3d.data.nifti import read_nifti
from mg3d.data.patches import PatchSpec, load_mask
from mg3d.data.reading import REASONS
from mg3d.types import Case

SPEC = PatchSpec(spacing_mm=(20.0, 18.0, 18.0), window_hu=(-1000.0, 1000.0), patch=(8, 8, 8))
CLASSES = ("background", "right lung", "left lung")
PLAIN = np.diag([-9.0, -9.0, 10.0, 1.0])  # LPS: the first axis runs to the left
SHAPE = (36, 32, 28)


def lungs(hu: np.ndarray) -> np.ndarray:
    """1 for the lung that lies first along the first axis, 2 for the other; in PLAIN that axis runs to the left."""
    mask = (hu < -600) & (hu > -930)
    return (mask * np.where(np.arange(hu.shape[0]) < hu.shape[0] / 2, 1, 2)[:, None, None]).astype(np.uint8)


def case(folder: Path, i: int = 0, *, mask: np.ndarray | None = None, affine: np.ndarray = PLAIN) -> Case:
    hu = chest(i)
    volume = write_nifti(folder / f"case_{i}.nii.gz", hu, affine)
    labels = write_nifti(folder / f"case_{i}_seg.nii.gz", lungs(hu) if mask is None else mask, affine)
    return Case(f"case_{i}", f"p{i}", "train", volume, "", mask=labels)


def run(cases, folder: Path, **options):
    options = {"classes": CLASSES, "spec": SPEC, "workers": 1, "progress": False} | options
    return prepare_masks(Listing(list(cases)), folder=folder, **options)


def turned(voxels: np.ndarray, affine: np.ndarray, order, flips) -> tuple[np.ndarray, np.ndarray]:
    """The same volume stored with other axes."""
    out, lies = voxels.transpose(order), affine[:, [*order, 3]].copy()
    for a, f in enumerate(flips):
        if f < 0:
            lies[:, 3] += lies[:, a] * (out.shape[a] - 1)
            lies[:, a] *= -1
    return out[tuple(slice(None, None, f) for f in flips)], lies


def oblique(degrees: float = 20.0) -> np.ndarray:
    """PLAIN turned about two axes, and moved."""
    a, b = np.radians([degrees, degrees / 2])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = PLAIN.copy()
    affine[:3, :3] = about_x @ about_z @ PLAIN[:3, :3]
    affine[:3, 3] = (31.0, -12.5, 7.25)
    return affine


FRAMES = {
    "LPS": ((0, 1, 2), (1, 1, 1)),
    "RAS": ((0, 1, 2), (-1, -1, 1)),
    "LAS": ((0, 1, 2), (1, -1, 1)),
    "SRA": ((2, 0, 1), (1, -1, -1)),
}


def test_what_is_stored(tmp_path):
    spec = replace(SPEC, spacing_mm=(21.0, 17.0, 19.0))  # no centre lies half way between two voxels
    entry = run([case(tmp_path, 0, affine=oblique())], tmp_path / "cache", spec=spec).entries[0]
    volume, mask, record = entry.load(), load_mask(entry), entry.record
    assert volume.dtype == np.float16
    assert volume.min() >= 0
    assert volume.max() <= 1
    assert mask.dtype == np.uint8
    assert volume.shape == mask.shape == (14, 17, 18)  # whole voxels that cover 28 x 10, 32 x 9, 36 x 9 mm
    assert record["spacing_mm"] == [21, 17, 19]
    # the label at the centre of each prepared voxel, looked up through the patient
    affine, source = np.array(record["affine"]), lungs(chest(0))
    index = np.stack(np.meshgrid(*map(np.arange, mask.shape), [1], indexing="ij"), -1).reshape(-1, 4)
    there = np.rint(np.linalg.solve(oblique(), affine @ index.T)[:3]).astype(int)
    wanted = source[tuple(np.clip(x, 0, n - 1) for x, n in zip(there, SHAPE, strict=True))]
    np.testing.assert_array_equal(mask.ravel(), wanted)
    assert record["voxels"] == np.bincount(wanted).tolist()
    assert record["source_voxels"] == np.bincount(source.ravel()).tolist()
    # so is the volume: lung where the mask says so, a voxel away from its border
    inside = binary_erosion(mask > 0)
    assert inside.sum() > 20
    assert np.abs(-1000 + 2000 * volume[inside].astype(float) + 850).max() < 60
    right, left = (np.argwhere(mask == k)[:, 2].mean() for k in (1, 2))
    assert right < left  # W runs to the patient's left


@pytest.mark.parametrize("frame", FRAMES)
def test_the_same_patient_in_any_frame_gives_the_same_pair(tmp_path, frame):
    found = []
    for name, (order, flips) in {"plain": FRAMES["LPS"], "turned": FRAMES[frame]}.items():
        hu, affine = turned(chest(3), oblique(), order, flips)
        mask, _ = turned(lungs(chest(3)), oblique(), order, flips)
        volume, labels = (tmp_path / f"{name}{end}.nii.gz" for end in ("", "_seg"))
        write_nifti(volume, hu, affine)
        write_nifti(labels, mask, affine)
        for spacing in ((21.0, 17.0, 19.0), SPEC.spacing_mm):  # the second: every centre half way between two voxels
            one = Case(name, name, "train", volume, "", mask=labels)
            found += run([one], tmp_path / "c", spec=replace(SPEC, spacing_mm=spacing)).entries
    for a, b in zip(found[:2], found[2:], strict=True):
        np.testing.assert_allclose(a.load().astype(float), b.load().astype(float), atol=2e-3)
        np.testing.assert_array_equal(load_mask(a), load_mask(b))
        np.testing.assert_allclose(a.record["affine"], b.record["affine"], atol=1e-3)


def test_a_mask_is_not_shifted(tmp_path):
    """A ball at the middle stays at the middle, and halves of voxels go both ways."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    ball = (np.linalg.norm(grid - (np.array(SHAPE) - 1) / 2, axis=-1) < 9).astype(np.uint8)
    (entry,) = run([case(tmp_path, 0, mask=ball)], tmp_path / "cache", classes=CLASSES[:2]).entries
    mask = load_mask(entry)
    np.testing.assert_allclose(np.argwhere(mask).mean(0), (np.array(mask.shape) - 1) / 2)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("affine", [PLAIN, oblique()], ids=["straight", "oblique"])
def test_a_prediction_goes_back_to_the_frame_of_its_volume(tmp_path, frame, affine):
    hu, lies = turned(chest(1), affine, *FRAMES[frame])
    mask, _ = turned(lungs(chest(1)), affine, *FRAMES[frame])
    volume, labels = write_nifti(tmp_path / "v.nii.gz", hu, lies), write_nifti(tmp_path / "m.nii.gz", mask, lies)
    one = Case("one", "p", "train", volume, "", mask=labels)
    for spacing, exact in (((10.0, 9.0, 9.0), True), ((5.0, 4.5, 4.5), True), ((14.0, 13.0, 12.0), False)):
        entry = run([one], tmp_path / "cache", spec=replace(SPEC, spacing_mm=spacing)).entries[0]
        path = to_source(np.array(load_mask(entry)), entry.record, tmp_path / "out.nii.gz")
        ours, theirs = nibabel.load(path), nibabel.load(labels)
        assert ours.shape == theirs.shape
        assert ours.get_data_dtype() == np.uint8
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
        found = np.asarray(ours.dataobj)
        if exact:
            np.testing.assert_array_equal(found, mask)
        else:
            assert 2 * ((found > 0) & (mask > 0)).sum() / ((found > 0).sum() + (mask > 0).sum()) > 0.8
        np.testing.assert_array_equal(read_nifti(path).voxels, found)  # sform and qform agree
    assert to_source(np.array(load_mask(entry)), entry.record, path).read_bytes() == path.read_bytes()
    plain = to_source(np.array(load_mask(entry)), entry.record, tmp_path / "out.nii")
    np.testing.assert_array_equal(nibabel.load(plain).dataobj, found)
    with pytest.raises(ValueError, match="shape"):
        to_source(np.zeros((2, 2, 2), np.uint8), entry.record, path)


def moved(affine: np.ndarray, mm: float) -> np.ndarray:
    out = affine.copy()
    out[0, 3] += mm
    return out


@pytest.mark.parametrize(
    ("reason", "message", "spoil"),
    [
        ("no-mask", "Get the mask", lambda c: replace(c, mask=None)),
        ("missing", "no such file", lambda c: replace(c, mask=c.mask.with_name("gone.nii.gz"))),
        ("mask-grid", r"shape \(36, 32, 27\)", lambda c: write_nifti(c.mask, lungs(chest(0))[..., 1:], PLAIN)),
        ("mask-grid", "1.11 voxels beside", lambda c: write_nifti(c.mask, lungs(chest(0)), moved(PLAIN, 10.0))),
        ("mask-grid", "voxels beside", lambda c: write_nifti(c.mask, lungs(chest(0)), PLAIN @ np.diag([-1, 1, 1, 1]))),
        (
            "mask-labels",
            "values 3; known are 0 background, 1 right",
            lambda c: write_nifti(c.mask, lungs(chest(0)) * 3 // 2),
        ),
        ("mask-labels", "values 0.5", lambda c: write_nifti(c.mask, lungs(chest(0)).astype(np.float32) / 2)),
        ("mask-labels", "values -2, -1", lambda c: write_nifti(c.mask, -lungs(chest(0)).astype(np.int16))),
        ("mask-labels", "values nan", lambda c: write_nifti(c.mask, np.full(SHAPE, np.nan, dtype=np.float32))),
        ("not-nifti", "no NIfTI header", lambda c: c.mask.write_bytes(b"x" * 400)),
        ("hu", "", lambda c: write_nifti(c.volume, lungs(chest(0)))),
    ],
)
def test_what_cannot_be_used_is_quarantined_with_its_reason(tmp_path, reason, message, spoil):
    good, bad = case(tmp_path, 1), case(tmp_path, 0)
    spoilt = spoil(bad)
    prepared = run([spoilt if isinstance(spoilt, Case) else bad, good], tmp_path / "cache")
    assert [e.case.id for e in prepared.entries] == ["case_1"]
    (problem,) = prepared.quarantine
    assert (problem.id, problem.reason) == ("case_0", reason)
    assert reason in REASONS
    assert re.search(message, problem.detail)
    with (tmp_path / "cache" / "quarantine.csv").open() as file:
        assert [row["reason"] for row in csv.DictReader(file)] == [reason]


def test_rounded_affines_are_the_same(tmp_path):
    one = case(tmp_path, 0, affine=oblique())
    write_nifti(one.mask, lungs(chest(0)), moved(oblique(), 0.3))  # a thirtieth of a voxel
    assert len(run([one], tmp_path / "cache").entries) == 1


def test_a_header_may_scale_a_mask(tmp_path):
    one = case(tmp_path, 0)
    image = nibabel.Nifti1Image(lungs(chest(0)).astype(np.int16) * 2, PLAIN)
    image.header.set_slope_inter(0.5, 0)
    nibabel.Nifti1Image(lungs(chest(0)).astype(np.float64), PLAIN, image.header).to_filename(one.mask)
    assert load_mask(run([one], tmp_path / "cache").entries[0]).max() == 2


def test_a_class_that_no_training_mask_holds_is_an_error(tmp_path):
    a, b = case(tmp_path, 0), case(tmp_path, 1)
    with pytest.raises(ValueError, match="no mask of the 2 training cases holds heart"):
        run([a, b], tmp_path / "cache", classes=(*CLASSES, "heart"))
    tests = [replace(c, split="test") for c in (a, b)]  # to be predicted: nothing is learnt from them
    assert len(run(tests, tmp_path / "cache", classes=(*CLASSES, "heart")).entries) == 2
    with pytest.raises(ValueError, match="1 ids name more than one case: case_0"):
        run([a, a], tmp_path / "cache")
    with pytest.raises(ValueError, match=r"no volume could be prepared: 1 x no-mask.*quarantine.csv"):
        run([replace(a, mask=None)], tmp_path / "cache")


def test_volumes_alone_are_prepared_when_asked(tmp_path):
    one = replace(case(tmp_path, 0), mask=None)
    (entry,) = run([one], tmp_path / "cache", masks=False).entries
    assert entry.load().shape == (14, 16, 18)
    assert "voxels" not in entry.record
    again = run([case(tmp_path, 0)], tmp_path / "cache").entries[0]
    assert again.array != entry.array


def test_a_second_run_reads_nothing_until_a_source_changes(tmp_path, monkeypatch):
    cases = [case(tmp_path, i) for i in range(2)]
    first = run(cases, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr("mg3d.data.masks.read_nifti", None)
        patch.setattr("mg3d.data.masks.read_volume", None)
        assert run(cases, tmp_path / "cache") == first
    swapped = 3 - lungs(chest(1))
    write_nifti(cases[1].mask, np.where(swapped == 3, 0, swapped).astype(np.uint8))
    os.utime(cases[1].mask, ns=(1, 1))
    second = run(cases, tmp_path / "cache")
    assert second.entries[0] == first.entries[0]
    assert second.entries[1].array != first.entries[1].array
    np.testing.assert_array_equal(load_mask(second.entries[1]) == 1, load_mask(first.entries[1]) == 2)
    fewer = prepare_pair(cases[0], classes=CLASSES[:2], spec=SPEC, folder=tmp_path / "cache", masks=True)
    assert isinstance(fewer, Problem)  # a label that another study knew
    assert fewer.reason == "mask-labels"
    second.entries[0].array.write_bytes(b"cut")
    assert run(cases, tmp_path / "cache").entries[0].load().shape == (14, 16, 18)


def test_mri_is_windowed_by_its_own_percentiles(tmp_path):
    one = case(tmp_path, 0)
    values = np.abs(np.random.default_rng(0).normal(300, 90, SHAPE)).astype(np.float32)
    values[0, 0, 0] = 9000
    write_nifti(one.volume, values)
    spec = replace(SPEC, window_hu=(0.0, 0.0), spacing_mm=(10.0, 9.0, 9.0))
    entry = run([one], tmp_path / "cache", spec=spec).entries[0]
    low, high = np.percentile(values, (0.5, 99.5))
    np.testing.assert_allclose(entry.record["spec"]["window_hu"], (low, high))
    wanted = np.clip((values - low) / (high - low), 0, 1).transpose(2, 1, 0)
    np.testing.assert_allclose(entry.load(), wanted, atol=1e-3)
    assert np.array_equal(entry.load()[:, :, 0] == 1, wanted[:, :, 0] == 1)
    write_nifti(one.volume, (np.arange(36 * 32 * 28).reshape(SHAPE) == 0).astype(np.int16))
    problem = prepare_pair(one, classes=CLASSES, spec=spec, folder=tmp_path / "cache", masks=True)
    assert (problem.reason, problem.path) == ("constant", str(one.volume))


def test_processes_give_the_same(tmp_path):
    cases = [case(tmp_path, i) for i in range(3)]
    a, b = (run(cases, tmp_path / name, workers=n) for name, n in (("a", 1), ("b", 2)))
    for x, y in zip(a.entries, b.entries, strict=True):
        assert x.array.name == y.array.name
        assert x.array.read_bytes() == y.array.read_bytes()
        assert x.record == y.record


SHARED = Path(__file__).parents[2] / "shared" / "data" / "ct"
REAL = ("background", "right lung", "left lung", "heart", "oesophagus", "cord", "tumour", "lymph node")
LIKE = {"lung1-001": 0.97, "lung1-002": 0.97, "4dlung-113": 0.9}  # Dice after 2.5 mm -> 3 mm -> 2.5 mm, all labels


@pytest.mark.skipif(not SHARED.exists(), reason="no real volumes beside the clone")
def test_real_masks_come_back_where_they_were(tmp_path):
    cases = [Case(n, n, "train", SHARED / f"{n}.nii.gz", "", mask=SHARED / f"{n}_seg.nii.gz") for n in LIKE]
    spec = replace(SPEC, spacing_mm=(3.0, 3.0, 3.0))
    for entry in run(cases, tmp_path / "cache", classes=REAL, spec=spec).entries:
        volume, mask = entry.load().astype(np.float32), np.array(load_mask(entry))
        back = np.asarray(nibabel.load(to_source(mask, entry.record, tmp_path / "back.nii.gz")).dataobj) > 0
        true = np.asarray(nibabel.load(entry.case.mask).dataobj) > 0
        assert 2 * (back & true).sum() / (back.sum() + true.sum()) > LIKE[entry.case.id]
        if (mask == 1).any():
            assert volume[(mask == 1) | (mask == 2)].mean() < 0.25 < volume[mask > 2].mean()  # air; soft tissue
            assert np.argwhere(mask == 1)[:, 2].mean() < np.argwhere(mask == 2)[:, 2].mean()  # right before left
            assert np.argwhere(mask == 5)[:, 1].mean() > np.argwhere(mask == 1)[:, 1].mean()  # the cord lies behind
