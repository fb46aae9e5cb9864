"""Preparation: what is stored, what is found again, what goes to quarantine, and what a kill leaves."""

import csv
import errno
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chest import SPEC, chest, listing, write_nifti

from mg3d import paths
from mg3d.data import BadVolume, store
from mg3d.data.frame import Spec
from mg3d.data.listing import Listing, Problem
from mg3d.data.prepare import Entry, prepare, prepare_case, to_source


def run(found: Listing, folder: Path, *, spec: Spec = SPEC, workers: int = 1, **options):
    return prepare(found, spec=spec, folder=folder, workers=workers, progress=False, **options)


def content(folder: Path) -> dict[str, bytes]:
    """Every file but temporary ones, by name."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.endswith(paths.TEMPORARY)}


@pytest.fixture
def source(tmp_path) -> Path:
    return tmp_path / "source"


def test_what_is_stored(source, tmp_path):
    found = listing(source, 2)
    prepared = run(found, tmp_path / "cache")
    assert [e.case for e in prepared.entries] == found.cases
    assert prepared.quarantine == []
    entry = prepared.entries[1]
    volume, record = entry.load(), entry.record
    assert volume.shape == SPEC.shape
    assert volume.dtype == np.float16
    hu = -1000 + 2000 * volume.astype(np.float64)
    assert record["hu"]["mean"] == pytest.approx(hu.mean(), abs=0.01)
    for p, value in record["hu"]["percentiles"].items():
        assert value == pytest.approx(np.percentile(hu, float(p), method="inverted_cdf"), abs=0.01)
    assert sum(record["hu"]["histogram"]) == volume.size
    np.testing.assert_array_equal(
        record["hu"]["histogram"], np.histogram(volume.astype(np.float64), bins=80, range=(0, 1))[0]
    )
    assert record["case"] == "case_1"
    assert record["source"] == {"path": str(source / "case_1.nii.gz"), **store.stamp(source / "case_1.nii.gz")}
    assert record["content"] == store.content_hash(source / "case_1.nii.gz")
    assert record["source_shape"] == [36, 32, 28]
    assert record["spec_hash"] == SPEC.hash
    np.testing.assert_allclose(record["spacing_mm"], [0.88 * 280 / 16, 0.66 * 288 / 12, 0.88 * 324 / 20])
    np.testing.assert_allclose(np.diag(record["source_affine"]), [-9, -9, 10, 1])
    assert "report" not in entry.sidecar.read_text()  # no patient's text outside the corpus
    assert to_source(volume, record).shape == (36, 32, 28)


@pytest.mark.parametrize(
    ("order", "flips"), [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, 1)), ((1, 2, 0), (1, -1, -1))]
)
def test_the_same_patient_in_any_axis_order_gives_the_same_volume(tmp_path, order, flips):
    hu = chest(0)
    hu[5:12, 20:30, 5:12] = 700  # nothing is symmetric
    plain = np.diag([-9.0, -9.0, 10.0, 1.0])
    turned = hu.transpose(order)[tuple(slice(None, None, f) for f in flips)]
    affine = plain[:, [*order, 3]]
    for a, f in enumerate(flips):
        if f < 0:
            affine[:, 3] += affine[:, a] * (turned.shape[a] - 1)
            affine[:, a] *= -1
    case = listing(tmp_path / "source", 1).cases[0]
    results = []
    for name, voxels, lies in (("a", hu, plain), ("b", turned, affine)):
        path = write_nifti(tmp_path / f"{name}.nii.gz", voxels, lies)
        results.append(prepare_case(replace(case, volume=path), spec=SPEC, folder=tmp_path / "cache"))
    a, b = (r.load().astype(float) for r in results)
    assert a.std() > 0.2
    np.testing.assert_allclose(a, b, atol=1e-3)
    np.testing.assert_allclose(results[0].record["affine"], results[1].record["affine"], atol=1e-9)


def test_a_second_run_reads_no_volume(source, tmp_path, monkeypatch):
    found = listing(source, 3)
    first = run(found, tmp_path / "cache")
    before = content(tmp_path / "cache")

    def never(*_, **__):
        raise AssertionError("a volume was read")

    monkeypatch.setattr("mg3d.data.reading.read_volume", never)
    monkeypatch.setattr("mg3d.data.store.content_hash", never)
    assert run(found, tmp_path / "cache") == first
    assert content(tmp_path / "cache") == before


def test_a_touched_source_is_read_again_and_a_changed_one_gets_another_array(source, tmp_path):
    found = listing(source, 2)
    first = run(found, tmp_path / "cache")
    os.utime(found.cases[0].volume, ns=(1, 1))
    second = run(found, tmp_path / "cache")
    assert second == first  # same content, same name
    assert second.entries[0].record["source"]["mtime_ns"] == 1
    write_nifti(found.cases[0].volume, chest(99))
    third = run(found, tmp_path / "cache")
    assert third.entries[0].array != first.entries[0].array
    assert third.entries[0].sidecar == first.entries[0].sidecar
    assert third.entries[1] == first.entries[1]
    assert not np.array_equal(third.entries[0].load(), first.entries[0].load())


@pytest.mark.parametrize("what", ["array", "sidecar"])
def test_a_lost_or_cut_file_is_made_again(source, tmp_path, what):
    found = listing(source, 1)
    entry = run(found, tmp_path / "cache").entries[0]
    whole = content(tmp_path / "cache")
    path = getattr(entry, what)
    for damage in (b"", path.read_bytes()[:-7], None):
        path.unlink() if damage is None else path.write_bytes(damage)
        run(found, tmp_path / "cache")
        assert content(tmp_path / "cache") == whole


def test_specs_and_stated_slopes_live_side_by_side(source, tmp_path):
    found = listing(source, 1)
    a = run(found, tmp_path / "cache").entries[0]
    b = run(found, tmp_path / "cache", spec=replace(SPEC, window_hu=(-1000.0, 200.0))).entries[0]
    stated = Listing([replace(found.cases[0], rescale=(1.0, 0.0))])
    c = run(stated, tmp_path / "cache").entries[0]
    assert len({a.array, b.array, c.array}) == len({a.sidecar, b.sidecar, c.sidecar}) == 3
    assert run(found, tmp_path / "cache").entries[0] == a
    assert b.record["spec"]["window_hu"] == [-1000, 200]
    np.testing.assert_allclose(  # 30 HU of soft tissue in either window
        [np.median(e.load()[e.load() > 0.4].astype(float)) for e in (a, b)], [0.515, 0.858], atol=0.02
    )


def test_two_cases_of_one_file_share_the_array(source, tmp_path):
    case = listing(source, 1).cases[0]
    a, b = run(Listing([case, replace(case, id="again/\\:*")]), tmp_path / "cache").entries
    assert a.array == b.array
    assert a.sidecar != b.sidecar
    assert b.record["case"] == "again/\\:*"
    assert b.sidecar.parent == tmp_path / "cache"


def spoil(case, how: str):
    """The case, its volume or report spoilt."""
    path, hu = case.volume, chest(50).astype(np.float32)
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif how == "nan":
        hu[3, 4, 5] = np.nan
        write_nifti(path, hu)
    elif how == "not-3d":
        write_nifti(path, np.stack([hu, hu], axis=-1))
    elif how == "constant":
        write_nifti(path, np.zeros_like(hu))
    elif how == "hu":
        write_nifti(path, hu - 1024)
    elif how == "empty-report":
        return replace(case, report=" \n")
    return case


FAULTS = ("missing", "truncated", "nan", "not-3d", "constant", "hu", "empty-report")


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_volumes_go_to_quarantine_and_the_run_goes_on(source, tmp_path, workers):
    found = listing(source, 10)
    cases = [spoil(case, how) for case, how in zip(found.cases, FAULTS, strict=False)] + found.cases[7:]
    known = Problem("case_x", "reports.csv", "no-report", "row 7")
    prepared = run(Listing(cases, [known]), tmp_path / "cache", workers=workers)
    assert [e.case.id for e in prepared.entries] == ["case_7", "case_8", "case_9"]
    assert [(p.id, p.reason) for p in prepared.quarantine] == [
        ("case_x", "no-report"),
        *((f"case_{i}", how) for i, how in enumerate(FAULTS)),
    ]
    with (tmp_path / "cache" / "quarantine.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["id"], r["path"], r["reason"], r["detail"]) for r in rows] == [
        (p.id, p.path, p.reason, p.detail) for p in prepared.quarantine
    ]
    write_nifti(cases[2].volume, chest(50))  # mended: taken, and gone from the table
    again = run(Listing(cases), tmp_path / "cache")
    assert "case_2" in {e.case.id for e in again.entries}
    assert "nan" not in (tmp_path / "cache" / "quarantine.csv").read_text()


def test_reports_may_be_absent_when_asked_for(source, tmp_path):
    cases = [replace(c, report="") for c in listing(source, 2).cases]
    assert len(run(Listing(cases), tmp_path / "cache", reports=False).entries) == 2
    with pytest.raises(ValueError, match="2 x empty-report"):
        run(Listing(cases), tmp_path / "cache")


def test_when_nothing_is_left_the_commonest_reasons_are_said(source, tmp_path):
    cases = [spoil(c, how) for c, how in zip(listing(source, 3).cases, ("missing", "nan", "missing"), strict=True)]
    with pytest.raises(ValueError, match=r"2 x missing \(e\.g\. .*case_0.*1 x nan.*quarantine\.csv"):
        run(Listing(cases), tmp_path / "cache")
    assert (tmp_path / "cache" / "quarantine.csv").exists()
    with pytest.raises(ValueError, match="the listing is empty"):
        run(Listing([]), tmp_path / "cache")


def test_an_id_twice_is_refused(source, tmp_path):
    cases = listing(source, 2).cases
    with pytest.raises(ValueError, match="case_0"):
        run(Listing([cases[0], replace(cases[1], id="case_0")]), tmp_path / "cache")


def test_a_source_that_changes_while_it_is_read_is_not_taken(source, tmp_path, monkeypatch):
    from mg3d.data import reading

    case, original = listing(source, 1).cases[0], reading.read_volume

    def slow(path, **options):
        image = original(path, **options)
        write_nifti(path, chest(77))
        return image

    monkeypatch.setattr(reading, "read_volume", slow)
    result = prepare_case(case, spec=SPEC, folder=tmp_path / "cache")
    assert (result.reason, "changed" in result.detail) == ("unreadable", True)


@pytest.mark.parametrize(
    ("error", "reason"), [(MemoryError(), "memory"), (OSError(errno.EIO, "I/O error"), "unreadable")]
)
def test_trouble_with_one_source_is_its_own(source, tmp_path, monkeypatch, error, reason):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("mg3d.data.reading.read_volume", fail)
    assert prepare_case(listing(source, 1).cases[0], spec=SPEC, folder=tmp_path / "cache").reason == reason


def test_a_full_disk_stops_the_run_and_leaves_what_is_done(source, tmp_path, monkeypatch):
    found, cache = listing(source, 4), tmp_path / "cache"
    room, original = iter(range(4)), os.fsync  # of file and folder, of array and sidecar: one case fits

    def fsync(handle):
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match=r"\.npy: no space left.*make room") as caught:
            run(found, cache)
    assert caught.value.errno == errno.ENOSPC
    left = content(cache)
    assert len(left) == len(list(cache.iterdir()))
    run(found, cache)
    assert left.items() <= content(cache).items()


def test_a_gzip_is_known_by_samples_and_its_checksum(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SAMPLED", 64)
    data = bytearray(random.Random(0).randbytes(60_000))
    path = tmp_path / "a.gz"
    hashes = set()
    for change in (0, 10, 29_999, 59_999):
        data[change] ^= 1 if change else 0
        path.write_bytes(gzip.compress(bytes(data), 6, mtime=0))
        assert path.stat().st_size > 2 * store.BLOCKS * 64  # so that it is sampled
        hashes.add(store.content_hash(path))
    assert len(hashes) == 4
    folder = tmp_path / "series"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(b"slice")
    one = store.content_hash(folder)
    (folder / "b").write_bytes(b"slicf")
    two = store.content_hash(folder)
    (folder / "b").rename(folder / "c")
    assert len({one, two, store.content_hash(folder)}) == 3


def test_parallel_equals_serial_to_the_byte(source, tmp_path):
    found = listing(source, 5)
    serial, parallel = (run(found, tmp_path / str(n), workers=n) for n in (1, 2))
    assert content(serial.folder) == content(parallel.folder)
    assert [e.array.name for e in serial.entries] == [e.array.name for e in parallel.entries]


def test_old_temporary_files_are_swept(source, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    old, new = (cache / f".{name}{paths.TEMPORARY}" for name in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    run(listing(source, 1), cache)
    assert not old.exists()
    assert new.exists()  # may have a living writer


@pytest.mark.skipif(os.name == "nt", reason="no process groups")
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_at_random_moments_leaves_nothing_half_written(source, tmp_path, workers):
    found, cache = listing(source, 20), tmp_path / "cache"
    whole = content(run(found, tmp_path / "undisturbed").folder)
    rng = random.Random(workers)
    for _ in range(3 if workers == 1 else 1):
        done = len(list(cache.glob("*"))) if cache.exists() else 0
        command = [sys.executable, str(Path(__file__).with_name("chest.py")), str(source), str(cache), str(workers)]
        process = subprocess.Popen(command, start_new_session=True, cwd=Path(__file__).parents[1])
        while process.poll() is None and (not cache.exists() or len(list(cache.glob("*"))) <= done):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        with suppress(ProcessLookupError):  # it was done before the kill
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        seen = content(cache)
        assert seen.items() <= whole.items()  # all that is there is as it should be
        arrays = {json.loads(text)["array"] for name, text in seen.items() if name.endswith(".json")}
        assert arrays <= seen.keys()  # no sidecar without its array
    run(found, cache)
    assert content(cache) == whole


def test_problems_cross_processes_whole():
    import pickle

    bad = pickle.loads(pickle.dumps(BadVolume("nan", "a.nii", "3 voxels")))
    assert (bad.reason, bad.path, str(bad)) == ("nan", "a.nii", "a.nii: 3 voxels")
    damaged = pickle.loads(pickle.dumps(store.DamagedCache("x.npy", "cut")))
    assert (damaged.path, damaged.detail) == ("x.npy", "cut")


REAL = Path(__file__).parents[2] / "shared" / "data" / "ct"


@pytest.mark.skipif(not REAL.exists(), reason="no real volumes beside the clone")
@pytest.mark.parametrize("name", ["lung1-001", "cip-ct64", "c3n-00247"])
def test_real_volumes_come_out_in_the_frame(tmp_path, name):
    case = replace(listing(tmp_path / "source", 1).cases[0], volume=REAL / f"{name}.nii.gz")
    entry = prepare_case(case, spec=Spec(), folder=tmp_path / "cache")
    assert isinstance(entry, Entry)
    volume = entry.load().astype(float)
    lung = volume < 0.25
    left, right = lung[:, :, 64:].mean(), lung[:, :, :64].mean()
    assert 0.3 < left / right < 3  # two lungs, one on each side
    assert lung[64:].mean() > 0
    bone = volume > 0.65
    assert bone[:, 48:].sum() > bone[:, :48].sum()  # the spine lies at the back
