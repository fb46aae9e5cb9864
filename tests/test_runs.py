"""Runs: a folder that says exactly how far it is, whatever was killed, damaged or started twice."""

import json

import pandas as pd
import pytest
import torch

from mg3d import runs
from mg3d.objectives import METHODS
from mg3d.objectives.readings import VARIANTS
from mg3d.recipe import Recipe
from mg3d.runs import DamagedRun, Run


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.setenv("MG3D_HOME", str(tmp_path))
    return Run.open(Recipe(steps=10))


def state(value: float) -> dict:
    return {"model": {"w": torch.full((3,), value)}, "optimiser": {"state": {}, "step": int(value)}}


def test_the_same_recipe_is_the_same_folder(run):
    again = Run.open(Recipe(steps=10, gpus=2))
    assert again.path == run.path
    assert again.recipe == Recipe(steps=10)
    assert Run.open(Recipe(steps=11)).path != run.path


def test_checkpoints_round_trip_and_the_last_two_stay(run):
    assert run.restore() is None
    for step in (2, 4, 6):
        run.save(step, state(step))
    step, content = run.restore()
    assert step == run.step == 6
    assert torch.equal(content["model"]["w"], torch.full((3,), 6.0))
    assert len(list((run.path / "checkpoints").glob("*.pt"))) == runs.KEEP


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "record"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(run, damage):
    run.save(2, state(2))
    run.save(4, state(4))
    file = run.path / "checkpoints" / "step-00000004.pt"
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        file.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif damage == "gone":
        file.unlink()
    else:
        file.with_suffix(".json").write_text("{")
    with pytest.warns(UserWarning, match="step-00000004.pt: damaged"):
        step, content = run.restore()
    assert step == 2
    assert content["model"]["w"][0] == 2


def test_no_whole_checkpoint_left_is_an_error_with_its_mend(run):
    run.save(2, state(2))
    (run.path / "checkpoints" / "step-00000002.pt").write_bytes(b"half")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(DamagedRun, match=r"no whole checkpoint left; delete"),
    ):
        run.restore()


def test_a_checkpoint_without_its_record_is_no_checkpoint(run):
    run.save(2, state(2))
    run.save(4, state(4))
    (run.path / "checkpoints" / "step-00000004.json").unlink()  # killed between the two writes
    assert run.restore()[0] == 2


def test_metrics_survive_a_cut_line_and_are_rewound(run):
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 1 / step})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert list(run.metrics["step"]) == [1, 2, 3]
    run.rewind(2)
    assert isinstance(run.metrics, pd.DataFrame)
    assert [json.loads(x)["step"] for x in (run.path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_finish_writes_weights_strictly_and_forgets_checkpoints(run):
    run.save(10, state(10))
    run.finish({"model": {"w": torch.arange(6.0).reshape(2, 3).T}}, {"steps": 10})
    assert run.done
    assert not (run.path / "checkpoints").exists()
    assert torch.equal(run.weights("model")["w"], torch.arange(6.0).reshape(2, 3).T)
    with pytest.raises(DamagedRun, match=r"encoder\.safetensors"):
        run.weights("encoder")
    file = run.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DamagedRun, match=r"model.safetensors.*resume=False"):
        run.weights("model")


def test_one_process_at_a_time(run):
    with run.lock(), pytest.raises(RuntimeError, match="another process"), Run(run.path).lock():
        pass
    with run.lock():  # freed again
        pass


def test_resume_false_puts_the_old_run_aside(run):
    run.log({"step": 1})
    fresh = Run.open(Recipe(steps=10, resume=False))
    assert fresh.path == run.path
    assert fresh.metrics.empty
    assert [r.path for r in runs.find()] == [fresh.path]
    assert len(list(fresh.path.parent.glob(".old-0-*/metrics.jsonl"))) == 1


def test_find_selects_by_field(run):
    other = Run.open(Recipe(steps=10, variant="released"))
    assert [r.path for r in runs.find(variant="released")] == [other.path]
    assert len(runs.find(steps=10)) == 2


def test_a_run_knows_what_its_variant_meant(run):
    run.check_readings(VARIANTS["paper"])  # a run of old wrote nothing down
    run.keep_readings(VARIANTS["paper"])
    run.check_readings(VARIANTS["paper"])
    with pytest.raises(ValueError, match=r"'paper' has changed .*: ssm was 0\.1, is 0\.0; .* resume=False"):
        run.check_readings(VARIANTS["no-ssm"])
    file = run.path / "readings.json"
    kept = json.loads(file.read_text())
    del kept["sharp"], kept["keys"]  # as if they had been invented since
    file.write_text(json.dumps(kept))
    run.check_readings(VARIANTS["paper"])
    with pytest.raises(ValueError, match=r": keys was 'tokens', is 'pooled'; "):
        run.check_readings(VARIANTS["pooled"])
    file.write_text("{")
    with pytest.raises(DamagedRun, match=r"readings\.json"):
        run.check_readings(VARIANTS["paper"])


def test_every_variant_can_be_kept_and_checked(run):
    for method in METHODS.values():
        for variant in method.variants.values():
            run.keep_readings(variant)
            run.check_readings(variant)


def test_an_unreadable_recipe_is_named(run):
    (run.path / "recipe.json").write_text("not json")
    with pytest.raises(DamagedRun, match=r"recipe.json"):
        _ = run.recipe
