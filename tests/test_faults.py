"""Whole runs over bad input: every fault is named, the good volumes go on, nothing half-written is taken for whole.

Single faults are tested where they are raised; here they meet in one corpus and in one home folder, as they would.
"""

import csv
import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from chest import chest, write_nifti

from mg3d import SCALES, Recipe, cohort, pretrain
from mg3d.data.listing import BadTable, Leak
from mg3d.recipe import Scale
from mg3d.runs import Run

TINY = Scale("folder", 0, 0, 3, 2, (64, 32, 64), shrink=16, lr=1e-3, lr_fusion=1e-3)
REPORT = "The heart is normal. A nodule of {} mm in the right upper lobe. No pleural effusion."


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MG3D_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(SCALES, "tiny", TINY)
    return tmp_path


def table(folder: Path, rows: list[dict], encoding: str = "utf-8") -> Path:
    """Write the CSV of a `folder` corpus."""
    path = folder / "volumes.csv"
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, ["id", "volume", "patient", "split", "report"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def good(folder: Path, n: int = 6) -> list[dict]:
    """Rows of sound volumes."""
    rows = []
    for i in range(n):
        write_nifti(folder / f"good{i}.nii.gz", chest(i))
        split = "valid" if i >= n - 2 else "train"
        rows.append({"id": f"good{i}", "volume": f"good{i}.nii.gz", "patient": f"p{i}", "split": split})
        rows[-1]["report"] = REPORT.format(i + 3)
    return rows


def spoil(folder: Path) -> dict[str, str]:
    """One volume of each kind of fault; name -> the reason it must be quarantined for."""
    hu = chest(99)
    whole = write_nifti(folder / "whole.nii.gz", hu).read_bytes()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    write_nifti(folder / "nan.nii.gz", np.where(hu == hu.max(), np.nan, hu).astype(np.float32))
    write_nifti(folder / "four.nii.gz", np.stack([hu, hu], -1))
    write_nifti(folder / "constant.nii.gz", np.full_like(hu, -500))
    write_nifti(folder / "twice.nii.gz", (hu.astype(np.int32) - 1024).astype(np.int16))  # intercept applied twice
    write_nifti(folder / "head.nii.gz", hu, np.diag([-1.0, -1.0, 1.0, 1.0]))  # 36 x 32 x 28 mm
    (folder / "text.nii.gz").write_bytes(gzip.compress(b"no volume at all" * 30))
    return {
        "truncated": "truncated",
        "nan": "nan",
        "four": "not-3d",
        "constant": "constant",
        "twice": "hu",
        "head": "not-chest",
        "text": "not-nifti",
        "gone": "missing",
        "silent": "empty-report",
    }


def test_every_bad_volume_is_quarantined_and_the_run_goes_on(home):
    rows, reasons = good(home), spoil(home)
    write_nifti(home / "silent.nii.gz", chest(7))
    for name in reasons:
        report = "" if name == "silent" else REPORT.format(5)
        row = {"id": name, "volume": f"{name}.nii.gz", "patient": name, "split": "train", "report": report}
        rows.append(row)
    rows[0]["report"] = " ".join(REPORT.format(i) for i in range(70))  # 210 sentences
    recipe = Recipe(scale="tiny", text="tiny", data=str(table(home, rows)))
    found = cohort(recipe, progress=False)
    assert {p.id: p.reason for p in found.prepared.quarantine} == reasons
    assert {e.case.id for e in found.prepared.entries} == {f"good{i}" for i in range(6)}
    page = str(found.audit())
    assert all(reason in page for reason in set(reasons.values()))
    run = pretrain(recipe)
    assert run.done
    assert np.isfinite(run.metrics["loss"]).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda rows: rows[1].update(id="good0"), BadTable, ["good0", "volumes.csv"]),
        (lambda rows: rows[5].update(patient="p0"), Leak, ["p0", "train", "valid"]),
        (lambda rows: rows[0].update(split="trian"), BadTable, ["trian", "train, valid"]),
        (lambda rows: [r.update(volume="") for r in rows], Exception, ["volumes.csv"]),
    ],
)
def test_a_fault_in_the_table_stops_before_any_work(home, change, error, words):
    rows = good(home)
    change(rows)
    with pytest.raises(error) as raised:
        pretrain(Recipe(scale="tiny", text="tiny", data=str(table(home, rows))))
    for word in words:
        assert word in str(raised.value)
    assert not (home / "home" / "runs").exists()


def test_a_table_that_is_not_utf8_names_row_and_mend(home):
    rows = good(home)
    rows[2]["report"] = "Größe des Herzens normal."
    with pytest.raises(BadTable, match=r"volumes\.csv.*UTF-8"):
        cohort(Recipe(scale="tiny", data=str(table(home, rows, encoding="latin-1"))))


@pytest.fixture
def small_disk(home, monkeypatch):
    """MG3D_HOME on a file system of 2 MB."""
    place = home / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip("needs the right to mount a small file system")
    monkeypatch.setenv("MG3D_HOME", str(place))
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(home, small_disk):
    recipe = Recipe(scale="tiny", text="tiny", data=str(table(home, good(home, 12))))
    with pytest.raises(OSError, match=r"(?i)no space left"):
        pretrain(recipe)
    assert not list(small_disk.rglob("*.tmp"))
    for array in small_disk.rglob("*.npy"):
        assert np.load(array).shape == TINY.shape  # what is there is whole


PRETRAIN = f"""
import sys
import torch
from mg3d import SCALES, Recipe, pretrain
from mg3d.recipe import Scale
if __name__ == "__main__":
    torch.set_num_threads(1)
    SCALES["tiny"] = {TINY!r}
    print("started", flush=True)
    print(pretrain(Recipe(scale="tiny", text="tiny", data=sys.argv[1], steps=12, checkpoint=2)).path)
"""


def test_kill_9_anywhere_in_a_whole_run_is_bit_equal(home):
    """Preparation, text features and training: killed at several moments, the home folder still ends the same."""
    data, script = str(table(home, good(home))), home / "run.py"
    script.write_text(PRETRAIN)

    def start(place: str) -> subprocess.Popen:
        environment = {**os.environ, "MG3D_HOME": str(home / place)}
        command = [sys.executable, str(script), data]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    begun = time.perf_counter()
    assert start("whole").wait(timeout=200) == 0
    seconds = time.perf_counter() - begun
    for share in (0.5, 0.7, 0.85):
        process = start("killed")
        time.sleep(share * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    assert start("killed").wait(timeout=200) == 0
    whole, killed = (Run(next((home / place / "runs").glob("mg3d-*"))) for place in ("whole", "killed"))
    assert (whole.path / "model.safetensors").read_bytes() == (killed.path / "model.safetensors").read_bytes()
    assert whole.metrics.drop(columns="seconds").equals(killed.metrics.drop(columns="seconds"))


def test_a_cut_cached_volume_is_made_again(home):
    recipe = Recipe(scale="tiny", text="tiny", data=str(table(home, good(home))))
    entry = cohort(recipe, progress=False).prepared.entries[0]
    content = entry.array.read_bytes()
    entry.array.write_bytes(content[: len(content) // 2])
    assert pretrain(recipe).done
    assert entry.array.read_bytes() == content


def test_a_volume_that_needs_its_affine_is_read_by_it(home):
    """The same patient stored in two orientations gives the same prepared volume."""
    hu = chest(3)
    write_nifti(home / "a.nii.gz", hu)
    image = nib.load(home / "a.nii.gz")
    turned = nib.as_closest_canonical(image)
    assert not np.allclose(turned.affine, image.affine)
    turned.to_filename(home / "b.nii.gz")
    rows = [
        {"id": n, "volume": f"{n}.nii.gz", "patient": n, "split": "train", "report": REPORT.format(4)}
        for n in ("a", "b")
    ]
    a, b = cohort(Recipe(scale="tiny", text="tiny", data=str(table(home, rows))), progress=False).prepared.entries
    np.testing.assert_allclose(np.load(a.array), np.load(b.array), atol=2e-3)
