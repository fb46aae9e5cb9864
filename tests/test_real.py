"""The main job on real chest CT volumes with real reports, where they lie beside the clone; pairs are arbitrary."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from mg3d import Recipe, cohort, load, pretrain

SHARED = Path(__file__).parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="no real volumes beside the clone")

CHESTS = ("lung1-001", "lung1-002", "4dlung-113", "c3n-00247", "cip-ct64", "cip-testinput")
MASKS = ("stoic-lungmask", "cip-10002k-lungmask")  # no CT: must end in quarantine
VALID = ("c3n-00247", "cip-ct64")


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """A CSV as a user would write it: real volumes, real reports of other patients, two masks by mistake."""
    with (SHARED / "reports" / "ctrate_reports_train.csv").open() as file:
        reports = [row["report_text"] for row in csv.DictReader(file)]
    path = tmp_path_factory.mktemp("own") / "volumes.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "volume", "patient", "split", "report"])
        for i, name in enumerate(CHESTS + MASKS):
            split = "valid" if name in VALID else "train"
            writer.writerow([name, SHARED / "ct" / f"{name}.nii.gz", name, split, reports[i]])
    return path


@pytest.fixture(scope="module")
def recipe(table, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MG3D_HOME", str(tmp_path_factory.mktemp("home")))
        yield Recipe(scale="folder", data=str(table), steps=2, batch=2)


def test_audit_and_preparation(recipe):
    found = cohort(recipe, progress=False)
    assert {e.case.id for e in found.prepared.entries} == set(CHESTS)
    assert {p.id for p in found.prepared.quarantine} == set(MASKS)
    for entry in found.prepared.entries:
        volume = np.load(entry.array)
        assert volume.shape == (128, 96, 128)
        assert volume.min() >= 0
        assert volume.max() <= 1
        sidecar = json.loads(entry.sidecar.read_text())
        assert np.linalg.det(np.array(sidecar["affine"])[:3, :3]) != 0
        # lungs are inside the crop: much air-like tissue, and soft tissue beside it
        assert 0.1 < (volume < 0.25).mean() < 0.9
        assert (np.abs(volume - 0.52) < 0.06).mean() > 0.1
    page = str(found.audit())
    assert "stoic-lungmask" in page or "quarantine" in page.lower()
    assert "Mediastinal" not in page  # no report text on the page


@pytest.mark.timeout(1800)  # Swin-B at full size: minutes on two cores that other tests use too
def test_pretraining_at_full_input_size(recipe):
    run = pretrain(recipe)
    metrics = run.metrics
    assert list(metrics["step"]) == [1, 2]
    names = ["mim", "mlm", "sfr", "cml", "ssm", "dfa"]
    assert np.isfinite(metrics[names].to_numpy()).all()
    assert (metrics[names].to_numpy() > 0).all()
    assert run.done
    model = load(run)
    assert sum(p.numel() for p in model.encoder.parameters()) == 8_062_002  # Swin-B, not a shrunken one
    assert pretrain(recipe).path == run.path  # done: skipped
