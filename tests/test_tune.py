"""Fine-tuning: what it starts from, how it goes on after a kill, and that the test split has no say in it."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from toy import Toy, ToyEncoder
from trained import trained

import mg3d.studies
import mg3d.tune
from mg3d import Recipe, Run, Transfer, find, finetune
from mg3d.divisions import divisions
from mg3d.encoders import ENCODERS
from mg3d.fit import Best
from mg3d.recipe import Scale
from mg3d.runs import DamagedRun
from mg3d.studies import check_labels, few_shot, material
from mg3d.train import pretrain
from mg3d.tune import begin, load, main, predict, results, source_of
from mg3d.types import Case

TINY = Scale("phantom", 24, 8, 1, 2, (48, 32, 48), shrink=16, lr=1e-3, lr_fusion=1e-3, test=8)
STEPS = 6
FIELDS = {"encoder": "toy", "scale": "tinier", "steps": STEPS, "batch": 4, "lr": 1e-3, "lr_head": 1e-2, "checkpoint": 2}
FILES = ("model.safetensors", "results.json", "predictions.npz")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "toy", lambda shrink, shape: ToyEncoder())
        with trained(tmp_path_factory.mktemp("home"), TINY, variant="clip", encoder="toy") as run:
            yield run


@pytest.fixture(scope="module")
def scratch(run):
    return finetune(made())


def made(**fields) -> Transfer:
    return Transfer(**FIELDS | fields)


def tuned(run: Run, **fields) -> Transfer:
    return made(init=f"run:{run.path.name}", **{"encoder": ""} | fields)


def contents(run: Run) -> dict[str, bytes]:
    return {name: (run.path / name).read_bytes() for name in FILES}


def cases(n: int) -> list[Case]:
    return [Case(f"v{i}", f"p{i // 2}", "train", Path("x"), "r", {"a": i % 2}) for i in range(n)]


def test_a_finished_run_says_everything(run, scratch):
    assert scratch.done
    assert list(scratch.metrics["step"]) == list(range(1, STEPS + 1))
    said = results(scratch)
    kept = np.load(scratch.path / "predictions.npz")
    assert list(kept) == ["ids", "patients", "predictions", "targets"]
    assert kept["predictions"].shape == kept["targets"].shape == (8, 18)
    both = [i for i in range(18) if len(set(kept["targets"][:, i])) == 2]
    macro = np.mean([roc_auc_score(kept["targets"][:, i], kept["predictions"][:, i]) for i in both])
    auroc = said["test"]["auroc"]
    assert auroc["value"] == pytest.approx(macro)
    assert auroc["low"] <= auroc["value"] <= auroc["high"]
    assert said["test"]["undefined"]["value"] == 18 - len(both)
    validated = scratch.metrics.set_index("step")["valid_auroc"]
    assert said["valid"] == {"metric": "auroc", "value": validated.max(), "step": validated.idxmax()}
    assert said["cases"] == said["patients"] == {"train": 24, "valid": 8, "test": 8}
    assert said["init"] == "scratch"
    assert said["start"]["loaded"] is None
    assert len(said["protocol_hash"]) == 12
    assert [r.path for r in find(Transfer, study="findings", **FIELDS, seed=0)] == [scratch.path]
    assert scratch.plan(Transfer) == made()
    before = contents(scratch)
    assert finetune(made()).path == scratch.path
    assert contents(scratch) == before
    assert [r.path for r in find(variant="clip")] == [run.path]


def test_the_loaded_task_gives_the_predictions_that_were_kept(scratch):
    task = load(scratch)
    assert not task.training
    found = predict(task, material(made()).batches("test"), plan=made())
    kept = np.load(scratch.path / "predictions.npz")
    assert found.ids == list(kept["ids"])
    np.testing.assert_allclose(np.stack(found.predictions), kept["predictions"], atol=1e-6)


def test_an_encoder_comes_from_its_run_whole_or_not_at_all(run, tmp_path):
    start, task, _ = begin(material(tuned(run)), source_of(tuned(run)))
    for name, value in run.weights("encoder").items():
        assert torch.equal(task.encoder.state_dict()[name], value)
    assert start["loaded"] == {"matched": len(task.encoder.state_dict()), "missing": (), "unexpected": ()}
    start, other, _ = begin(material(made()), source_of(made()))
    assert start["loaded"] is None
    pairs = zip(task.encoder.parameters(), other.encoder.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ValueError, match=r"encoder='unet', but mg3d-clip-toy.* has learnt with 'toy'"):
        finetune(tuned(run, encoder="unet"))
    with pytest.raises(FileNotFoundError, match=r"no run mg3d-x .*mg3d-clip-toy"):
        finetune(made(init="run:mg3d-x"))
    weights = run.path / "encoder.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:2000])
    try:
        with pytest.raises(ValueError, match="damaged or no safetensors"):
            finetune(tuned(run))
    finally:
        weights.write_bytes(whole)
    unfinished = Run.open(Recipe(scale="tinier", text="tiny", encoder="toy", seed=9))
    with pytest.raises(DamagedRun, match="has no weights yet"):
        finetune(tuned(unfinished))
    assert not (run.path.parent / tuned(unfinished).id).exists()


def test_few_weights_are_an_error(run):
    from safetensors.torch import save_file

    other = pretrain(Recipe(scale="tinier", text="tiny", encoder="toy", variant="no-mlm"))
    some = dict(list(other.weights("encoder").items())[:3])
    save_file(some, other.path / "encoder.safetensors")
    with pytest.raises(ValueError, match=r"gives 3 of \d+ tensors of ToyEncoder"):
        finetune(tuned(other))


def relabel(patch: pytest.MonkeyPatch, change) -> None:
    """Change the labels of the test split, as seen by a study."""
    listed = mg3d.studies.train.listed

    def changed(recipe, **how):
        found = listed(recipe, **how)
        cases = [
            replace(c, labels={n: change(v) for n, v in c.labels.items()}) if c.split == "test" else c
            for c in found.cases
        ]
        return replace(found, cases=cases)

    patch.setattr(mg3d.studies.train, "listed", changed)


class Stop(Exception):
    """A test's interruption."""


@pytest.mark.parametrize("validations", [1, 2, 5])
def test_stopped_and_continued_is_bit_equal(scratch, monkeypatch, validations):
    transfer = made()
    whole, aside = contents(scratch), scratch.path.with_name(f".whole-{validations}")
    scratch.path.rename(aside)
    score, calls = mg3d.tune.Validation.__call__, iter(range(100))

    def stopping(self, model):
        if next(calls) == validations:
            raise Stop
        return score(self, model)

    with monkeypatch.context() as patch:
        patch.setattr(mg3d.tune.Validation, "__call__", stopping)
        with pytest.raises(Stop):
            finetune(transfer)
    assert not scratch.done
    assert contents(finetune(transfer)) == whole
    old, new = Run(aside).metrics, scratch.metrics
    assert new.drop(columns="seconds").equals(old.drop(columns="seconds"))


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from toy import ToyEncoder
from mg3d.encoders import ENCODERS
from mg3d import SCALES, Transfer, finetune
from mg3d.data.loader import Loader
from mg3d.recipe import Scale
ENCODERS["toy"] = lambda shrink, shape: ToyEncoder()
SCALES["tinier"] = Scale(*{scale!r})
read = Loader._read
Loader._read = lambda *a: time.sleep(0.1) or read(*a)
finetune(Transfer(**{fields!r}))
"""


def test_kill_9_is_bit_equal(scratch, run):
    whole = contents(scratch)
    scratch.path.rename(scratch.path.with_name(".whole-killed"))
    code = KILLED.format(tests=str(Path(__file__).parent), scale=tuple(vars(TINY).values()), fields=FIELDS)
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(scratch.path.glob("checkpoints/*.json")):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9, "it was done before it could be killed"
    assert not scratch.done
    assert scratch.step
    assert contents(finetune(made())) == whole


def test_the_test_split_has_no_say_in_training(scratch, monkeypatch):
    relabel(monkeypatch, lambda value: 1 - value)
    other = finetune(made(resume=False))
    honest = next(scratch.path.parent.glob(f".old-*-{scratch.path.name}"))
    assert (other.path / "model.safetensors").read_bytes() == (honest / "model.safetensors").read_bytes()
    one, two = (json.loads((p / "results.json").read_text()) for p in (honest, other.path))
    assert one["valid"] == two["valid"]
    assert one["test"]["auroc"]["value"] == pytest.approx(1 - two["test"]["auroc"]["value"])


def test_a_test_split_of_one_class_is_said(run, monkeypatch, capsys):
    relabel(monkeypatch, lambda value: 0)
    main(["encoder=toy", "scale=tinier", "steps=1", "batch=2", "seed=4"])
    assert "test auroc undefined: undefined for every label" in capsys.readouterr().out
    said = results(find(Transfer, seed=4)[0])
    assert said["test"] == {}
    assert "one class" in said["undefined"]
    with pytest.raises(ValueError, match=r"findings-.*: auroc is undefined on its test split: .*one class"):
        divisions(made(steps=1, batch=2, lr=0.0, lr_head=0.0, seed=4), seeds=2)


def test_a_probe_learns_its_head_alone_on_features_encoded_once(run, monkeypatch):
    transfer = tuned(run, probe=True, steps=30, lr_head=1e-2)
    seen, forward = [], ToyEncoder.forward

    def counting(self, volume, mask=None):
        seen.append(len(volume))
        return forward(self, volume, mask)

    with monkeypatch.context() as patch:
        patch.setattr(ToyEncoder, "forward", counting)
        probed = finetune(transfer)
        assert sum(seen) == 24 + 8 + 8
        finetune(tuned(run, probe=True, steps=3, lr_head=1e-2, seed=2))  # the same volumes, the same encoder
        assert sum(seen) == 24 + 8 + 8
        finetune(tuned(run, probe=True, steps=3, lr_head=1e-2, share=0.5))
        assert sum(seen) == 24 + 8 + 8 + 12
        next((run.path.parents[1] / "cache" / "features").iterdir()).write_bytes(b"")
        again = finetune(tuned(run, probe=True, steps=30, lr_head=1e-2, resume=False))
        assert sum(seen) > 24 + 8 + 8 + 12
    assert again.path == probed.path
    task, before = load(probed), run.weights("encoder")
    for name, value in task.encoder.state_dict().items():
        assert torch.equal(value, before[name])
    assert probed.metrics["bce"].iloc[-1] < probed.metrics["bce"].iloc[0]
    found = predict(task, material(transfer).batches("test"), plan=transfer)
    kept = np.load(probed.path / "predictions.npz")
    np.testing.assert_allclose(np.stack(found.predictions), kept["predictions"], atol=1e-5)
    with pytest.raises(ValueError, match="accumulate=2"):
        finetune(replace(transfer, accumulate=2))


def test_full_fine_tuning_moves_the_encoder_and_takes_parts(run):
    done = finetune(tuned(run, steps=2, accumulate=2))
    before, after = run.weights("encoder"), load(done).encoder.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    assert results(done)["start"]["loaded"]["matched"] == len(after)


def test_patience_ends_a_run_that_gets_no_better(run):
    patient = finetune(made(patience=2, lr=1e-9, lr_head=1e-9, seed=5))
    assert list(patient.metrics["step"]) == [1, 2, 3]
    assert results(patient)["valid"]["step"] == 1


def test_best_keeps_the_earliest_of_equals():
    model, best = Toy(), Best()
    for step, score in enumerate([0.5, 0.7, 0.7, 0.6, 0.8], start=1):
        torch.nn.init.constant_(model.head.weight, step)
        best = best.after(score, step, model)
        if step == 4:
            assert best.model is not None
            assert (best.step, best.worse, best.model["head.weight"][0, 0].item()) == (2, 2, 2.0)
    assert (best.step, best.score, best.worse) == (5, 0.8, 0)


def test_shares_are_nested_by_patient_and_drawn_by_the_seed():
    everyone = cases(200)
    chosen = [{c.id for c in few_shot(everyone, share=s, seed=1)} for s in (0.001, 0.1, 0.5, 1.0)]
    assert [len(c) for c in chosen] == [2, 20, 100, 200]
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3]
    assert {c.id for c in few_shot(everyone[::-1], share=0.1, seed=1)} == chosen[1]
    assert {c.id for c in few_shot(everyone, share=0.1, seed=2)} != chosen[1]


def test_a_share_trains_on_its_patients_alone(run):
    some, whole = material(made(share=0.5, seed=3)), material(made(seed=3))
    assert [len(some.entries[s]) for s in ("train", "valid", "test")] == [12, 8, 8]
    assert some.protocol["cases"]["test"] == whole.protocol["cases"]["test"]
    assert some.protocol != whole.protocol
    seen = {i for batch in some.batches("train").steps(0, 10) for i in batch.ids}
    assert seen == {e.case.id for e in some.entries["train"]}


def test_labels_that_cannot_be_learnt_are_named():
    good = cases(4)
    with pytest.raises(ValueError, match="have no labels"):
        check_labels({"train": good}, [])
    odd = [*good, replace(good[0], id="odd", labels={"a": 2})]
    with pytest.raises(ValueError, match="case odd: label 'a' is 2; 0 or 1"):
        check_labels({"train": good, "valid": good, "test": odd}, ["a"])
    with pytest.raises(ValueError, match=r"case v0: label 'b' is missing"):
        check_labels({"train": good, "valid": good}, ["a", "b"])
    with pytest.raises(ValueError, match=r"2 cases of 'train' have one class of every label .*larger share"):
        check_labels({"train": good[::2], "valid": good}, ["a"])
    with pytest.raises(ValueError, match="no checkpoint can be chosen"):
        check_labels({"train": good, "valid": good[:1]}, ["a"])
