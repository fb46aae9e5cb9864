"""All studies on a tiny phantom: each ends in its metric with an interval, from scratch and from a run."""

import numpy as np
import pytest
from toy import ToyEncoder
from trained import trained

from mg3d import Transfer, finetune
from mg3d.encoders import ENCODERS
from mg3d.heads import words_of
from mg3d.recipe import Scale
from mg3d.studies import material
from mg3d.transfer import STUDIES
from mg3d.tune import load, predict, results

TINY = Scale("phantom", 20, 12, 1, 2, (48, 32, 48), shrink=16, lr=1e-3, lr_fusion=1e-3, test=12)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "toy", lambda shrink, shape: ToyEncoder())
        patch.setattr("mg3d.studies.PATCH", (48, 48, 48))
        patch.setattr("mg3d.studies.SPACING_MM", (7.5, 7.5, 7.5))
        with trained(tmp_path_factory.mktemp("home"), TINY, variant="clip", encoder="toy") as run:
            yield run


def transfer(study: str, run=None, **fields) -> Transfer:
    steps = {"steps": 2} if STUDIES[study].budget.steps else {}
    origin = {"encoder": "toy", "text": "tiny"} if run is None else {"init": f"run:{run.path.name}"}
    return Transfer(study=study, scale="tinier", batch=4, lr=1e-3, lr_head=1e-2, **steps, **origin, **fields)


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
    words = words_of(STUDIES[study].task, said["start"]["text"])
    batches = test.batches("test", tokenise=words and words[1])
    found = predict(task, batches, plan=this, reports=test.reports("test"))
    again = task.score(found.predictions, found.targets)
    assert again[said["metric"]] == pytest.approx(line["value"], abs=1e-6)
