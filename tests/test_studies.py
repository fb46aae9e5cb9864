"""All studies on a tiny phantom: each ends in its metric with an interval, from scratch and from a run."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import cohort_trees
import numpy as np
import pytest
import torch
from nibabel.nifti1 import Nifti1Image
from toy import ToyEncoder
from trained import trained
from volumes import AFFINE, SHAPE, chest, write_nifti

from mg3d import Transfer, finetune
from mg3d.data.cohorts import COHORTS, MissingCorpus
from mg3d.data.patches import PatchSpec
from mg3d.data.phantom.plan import NUISANCE
from mg3d.data.phantom.space import FIELD_OF_VIEW_MM
from mg3d.divisions import divisions, main
from mg3d.encoders import ENCODERS
from mg3d.heads import words_of
from mg3d.recipe import Scale
from mg3d.studies import GRIDS, material
from mg3d.transfer import STUDIES
from mg3d.tune import begin, load, predict, results

TINY = Scale("phantom", 20, 12, 1, 2, (48, 32, 48), shrink=16, lr=1e-3, lr_fusion=1e-3, test=12)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "toy", lambda shrink, shape: ToyEncoder())
        patch.setitem(GRIDS, "tinier", (12.5, 32))
        with trained(tmp_path_factory.mktemp("home"), TINY, variant="clip", encoder="toy") as run:
            yield run


def transfer(study: str, run=None, **fields) -> Transfer:
    how: dict[str, Any] = {"steps": 2} if STUDIES[study].budget.steps else {}
    how |= {"encoder": "toy", "text": "tiny"} if run is None else {"init": f"run:{run.path.name}"}
    return Transfer(study=study, scale="tinier", batch=4, lr=1e-3, lr_head=1e-2, **how | fields)


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_from_a_run(run, study):
    this = transfer(study, run)
    done = finetune(this)
    said = results(done)
    assert "undefined" not in said
    line = said["test"][said["metric"]]
    assert line["low"] <= line["value"] <= line["high"]
    assert (said["valid"] is None) == (not STUDIES[study].budget.steps)
    kept = np.load(done.path / "predictions.npz")
    assert len(kept["ids"]) == len(kept["patients"]) == said["cases"]["test"]
    task, test = load(done), material(this, progress=False)
    protocol = test.protocol | task.asked
    assert said["protocol"] == protocol
    assert protocol.keys() >= {"study", "split_seed", "share", "names", "selection", "cases"}
    text = json.dumps(protocol, sort_keys=True).encode()
    assert said["protocol_hash"] == hashlib.sha256(text).hexdigest()[:12]
    words = words_of(STUDIES[study].task, said["start"]["text"])
    batches = test.batches("test", tokenise=words and words[1])
    found = predict(task, batches, plan=this, reports=test.reports("test"))
    again = task.score(found.predictions, found.targets)
    assert again[said["metric"]] == pytest.approx(line["value"], abs=1e-6)


def test_projections_come_from_the_run_that_trained_them(run):
    _, task, batches = begin(material(transfer("ctrate-vocabfine", run), progress=False), run)
    for name, value in run.weights("model").items():
        if name.startswith("from_text."):
            assert torch.equal(task.get_submodule("embedder").state_dict()[name], value)
    assert {type(b).__name__ for b in batches.values()} == {"Loader"}
    with pytest.raises(ValueError, match=r"text='minilm', but mg3d-clip-toy.* has learnt with 'tiny': leave it out"):
        finetune(transfer("ctrate-vocabfine", run, text="minilm"))


def test_a_run_as_it_is_beats_no_run_only_by_what_it_takes(run):
    """Without a step, results are those of the weights: another seed changes nothing from a run, all from scratch."""
    same = [results(finetune(transfer("ctrate-zeroshot", run, seed=s)))["test"] for s in (0, 1)]
    assert same[0] == same[1]
    other = [results(finetune(transfer("ctrate-zeroshot", seed=s)))["test"] for s in (0, 1)]
    assert other[0] != other[1]


def test_a_report_is_written_from_the_training_vocabulary(run):
    this = transfer("ctrg-report", share=0.2)
    done = finetune(this)
    said, found = results(done), material(this, progress=False)
    longest = said["start"]["options"]["longest"]
    assert 10 < longest < 512
    assert said["cases"]["train"] == 4
    written = np.load(done.path / "predictions.npz")["predictions"]
    assert written.shape == (12,)
    words = words_of("generate", said["start"]["text"])
    assert words is not None
    pieces, _ = found.vocabulary(words[1])
    assert load(done).get_buffer("pieces").tolist() == [0, *pieces]


@pytest.fixture
def tumours(tmp_path, monkeypatch):
    """MSD06 in its layout, with a cube that is a tumour in each volume."""
    folder = cohort_trees.msd06(tmp_path / "msd06", volumes=10)
    mask = np.zeros(SHAPE, np.uint8)
    mask[20:28, 10:18, 8:16] = 1
    for i in range(10):
        write_nifti(folder / f"Task06_Lung/imagesTr/lung_{i:03d}.nii.gz", chest(seed=i))
        write_nifti(folder / f"Task06_Lung/labelsTr/lung_{i:03d}.nii.gz", mask)
    spec = PatchSpec((10.0, 8.0, 8.0), (-175.0, 250.0), (16, 16, 16))
    monkeypatch.setitem(COHORTS, "msd06", replace(COHORTS["msd06"], spec=spec))
    return folder


def test_a_real_cohort_is_segmented_in_the_frame_of_its_files(run, tumours):
    fields: dict[str, Any] = {"study": "msd06", "scale": "real", "data": str(tumours), "init": f"run:{run.path.name}"}
    done = finetune(Transfer(steps=2, batch=2, seed=1, **fields))
    said = results(done)
    assert said["protocol"]["cohort"] == "msd06"
    assert said["cases"] == {"train": 7, "valid": 1, "test": 2}
    files = sorted((done.path / "masks").iterdir())
    kept = np.load(done.path / "predictions.npz")
    assert [f.name.removesuffix(".nii.gz") for f in files] == sorted(kept["ids"])
    assert kept["dice"].shape == (2, 1)
    for file in files:
        picture = Nifti1Image.from_filename(file)
        assert picture.affine is not None
        assert picture.shape == SHAPE
        np.testing.assert_allclose(picture.affine, AFFINE)
    other = material(Transfer(seed=2, **fields), progress=False)
    assert other.protocol["cases"]["test"] != said["protocol"]["cases"]["test"]  # another fold


def test_three_divisions_give_a_mean_a_deviation_and_an_interval(run, tumours, capsys):
    fields = {"study": "msd06", "scale": "real", "data": str(tumours), "init": f"run:{run.path.name}", "steps": 2}
    found = divisions(Transfer(batch=2, **fields))
    runs = [finetune(Transfer(batch=2, seed=seed, **fields)) for seed in range(3)]  # done: looked up
    values = [results(one)["test"]["dice"]["value"] for one in runs]
    line = found["dice"]
    assert line.mean == pytest.approx(np.mean(values))
    assert line.deviation == pytest.approx(np.std(values, ddof=1))
    assert line.low < line.mean < line.high
    assert (line.runs, line.tests) == (3, 3)
    assert len({results(one)["protocol_hash"] for one in runs}) == 3
    assert found.keys() >= {"dice", "dice/tumour", "nsd"}
    main([f"{name}={value}" for name, value in {**fields, "batch": 2}.items()])
    said = capsys.readouterr().out
    assert f"test dice {line.mean:.3f} ± {line.deviation:.3f}, {line.low:.3f} to {line.high:.3f}" in said
    assert "over 3 runs, 3 test splits" in said
    with pytest.raises(ValueError, match="seeds=1: a deviation needs two divisions or more"):
        divisions(Transfer(batch=2, **fields), seeds=1)


def test_what_is_not_there_says_where_to_get_it(run):
    with pytest.raises(MissingCorpus, match=r"msd06.*medicaldecathlon"):
        finetune(Transfer(study="msd06", scale="real", encoder="toy"))
    with pytest.raises(ValueError, match="no ground truth"):
        material(Transfer(study="luna16", scale="folder", data=str(csv_of(run))))


def csv_of(run):
    """Two volumes of the phantom as a corpus of one's own."""
    cases = [e.case for e in material(transfer("findings", run), progress=False).entries["train"][:2]]
    rows = [f"{c.id},{c.volume},there is nothing,{c.patient}" for c in cases]
    file = run.path.parent / "own.csv"
    file.write_text("\n".join(["id,volume,report,patient", *rows]))
    return file


def test_a_segmentation_is_chosen_by_few_volumes(run, monkeypatch):
    monkeypatch.setattr("mg3d.studies.WATCHED", 5)
    found = material(transfer("acdc", run), progress=False)
    assert {s: len(entries) for s, entries in found.entries.items()} == {"train": 20, "valid": 5, "test": 12}


@pytest.mark.parametrize("study", ["covid19-20", "ctrate-vocabfine"])
def test_a_probe_leaves_the_encoder_as_it_is(run, study):
    done = finetune(transfer(study, run, probe=True))
    before, after = run.weights("encoder"), done.weights("model")
    assert all(torch.equal(after[f"encoder.{name}"], value) for name, value in before.items())
    assert len(done.metrics) == 2


def test_retrieval_can_be_trained_too(run):
    done = finetune(transfer("ctrate-retrieval", run, steps=2))
    assert len(done.metrics) == 2
    before, after = run.weights("encoder"), done.weights("model")
    assert any(not torch.equal(before[name], after[f"encoder.{name}"]) for name in before)
    assert results(done)["valid"]["metric"] == "report_to_volume/mrr"


@pytest.mark.parametrize("name", ["demo", "phantom"])
def test_a_patch_holds_any_phantom_whole(name):
    """Else the volumes that are a voxel too large would cost eight windows each."""
    mm, side = GRIDS[name]
    largest = FIELD_OF_VIEW_MM * max(nuisance.zoom[1] for nuisance in NUISANCE.values())
    assert round(largest / mm) <= side


def test_a_run_without_features_of_reports_lends_its_encoder_to_those_who_train(run, monkeypatch):
    """What takes the run's features as they are refuses it, and says what to take instead."""
    monkeypatch.setattr("mg3d.heads.mute", lambda recipe: "it is mute")
    with pytest.raises(ValueError, match=r"it is mute.*ctrate-vocabfine"):
        finetune(transfer("ctrate-retrieval", run, steps=0, seed=5))
    done = finetune(transfer("ctrate-vocabfine", run, seed=5))
    start = results(done)["start"]
    assert start["options"]["embedder"] == {}
    assert start["loaded"]["missing"] == []
    own, theirs = done.weights("model")["embedder.from_text.weight"], run.weights("model")["from_text.weight"]
    assert own.shape != theirs.shape or not torch.allclose(own, theirs, atol=0.1)
