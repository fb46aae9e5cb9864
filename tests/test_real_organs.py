"""Lungs and heart in real CT: all masks say the same, and the whole way from a folder to a prediction is walked."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from chest import chest, write_nifti

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return import_module("real_organs")


def test_what_belongs_to_either_lung_goes_to_the_nearer_one(bench):
    labels = np.array([[[4, 6, 8, 7, 0, 0, 8, 1, 3]]])
    _, values = bench.ORGANS["lungs"].sources["cip-ct64"]
    assert bench.drawn(labels, values).tolist() == [[[1, 1, 1, 0, 0, 0, 2, 2, 2]]]
    _, values = bench.ORGANS["heart"].sources["lung1-002"]
    assert bench.drawn(np.array([[[1, 3, 6, 3, 0]]]), values).tolist() == [[[0, 1, 0, 1, 0]]]


def test_what_the_body_encloses_is_the_body(bench):
    hu = np.full((9, 9, 3), -1000)
    hu[2:7, 2:7] = 0
    hu[4, 4] = -900  # a lung
    hu[0, 0] = 0  # the table
    inside = np.zeros_like(hu, bool)
    inside[2:7, 2:7] = True
    assert (bench.body(hu) == inside).all()


def test_a_folder_without_a_volume_to_learn_from_is_refused(bench, tmp_path):
    with pytest.raises(SystemExit, match="lung1-001 and at least one more of lung1-001, lung1-002, cip-ct64"):
        bench.main([str(tmp_path)])


def test_a_folder_gives_scores_a_mask_and_a_picture(bench, tmp_path, capsys):
    sources = bench.ORGANS["lungs"].sources
    for seed, (name, values) in enumerate({"lung1-001": (1, 2), "cip-ct64": (5, 2)}.items()):
        hu = chest(seed)
        right = np.arange(len(hu))[:, None, None] < len(hu) / 2  # the first voxels are the patient's right
        write_nifti(tmp_path / f"{name}.nii.gz", hu)
        mask = np.where(hu < -500, np.where(right, *values), 0) * (np.abs(hu + 850) < 75)
        write_nifti(tmp_path / f"{name}{sources[name][0]}.nii.gz", mask.astype(np.uint8))
    out = tmp_path / "out"
    bench.main([str(tmp_path), "--steps", "1", "--patch", "32", "--out", str(out)])
    said = capsys.readouterr().out
    assert "1 steps on cip-ct64: loss" in said
    assert "right lung  Dice 0." in said
    assert "of them outside the body" in said
    assert sorted(file.name for file in (out / "lungs").iterdir()) == ["lung1-001.nii.gz", "lung1-001.png"]
