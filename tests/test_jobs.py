"""Lists of jobs: their order, what is skipped and why, one process a job, their costs, where lists come from."""

import argparse
import json
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
from toy_jobs import BAD_SEED, STEPS, execute, journal, recipe, train

from mg3d import costs, lists
from mg3d.jobs import Busy, Outcome, claim, ordered, threads, work
from mg3d.recipe import Recipe
from mg3d.runs import Run
from mg3d.transfer import Transfer


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MG3D_HOME", str(tmp_path))
    return tmp_path


def after(plan: Recipe, **fields) -> Transfer:
    """A transfer from the run of a recipe."""
    return Transfer(init=f"run:{plan.id}", steps=STEPS, checkpoint=3, **fields)


def carried_out(plans, *, jobs: int = 1, how=execute) -> tuple[dict[str, Outcome], list[str]]:
    said: list[str] = []
    found = work(plans, how, jobs=jobs, say=said.append)
    return {o.plan.id: o for o in found}, said


# order and outcomes ------------------------------------------------------------------------------------------------


def test_what_is_needed_comes_first_and_nothing_twice(home):
    a, b = recipe(0), recipe(1)
    plans = [after(b), after(a), a, b, a, replace(a, gpus=2)]
    assert [p.id for p in ordered(plans)] == [b.id, after(b).id, a.id, after(a).id]


def test_a_list_goes_on_and_never_starts_again(home):
    with pytest.raises(ValueError, match="resume=False: a list of jobs goes on"):
        ordered([replace(recipe(0), resume=False)])


@pytest.mark.parametrize("jobs", [1, 3])
def test_each_job_is_done_once_and_the_same_list_again_does_nothing(home, jobs):
    a, b = recipe(0), recipe(1)
    plans = [after(a), a, b, after(b), after(b, seed=1)]
    found, said = carried_out(plans, jobs=jobs)
    assert {o.status for o in found.values()} == {"done"}
    assert list(found) == [p.id for p in ordered(plans)]
    assert len(journal(home)) == len(set(journal(home))) == 5 * STEPS
    assert [line.split("]")[0] for line in said] == [f"[{n}/5" for n in range(1, 6)]
    found, said = carried_out(plans, jobs=jobs)
    assert {o.status for o in found.values()} == {"was done"}
    assert len(journal(home)) == 5 * STEPS


def test_a_failure_keeps_its_traceback_and_stops_only_what_starts_from_it(home):
    bad, good, lost = recipe(BAD_SEED), recipe(0), Transfer(init="run:elsewhere")
    found, said = carried_out([bad, after(bad), lost, good, after(good)])
    assert [found[p.id].status for p in (bad, after(bad), lost, good, after(good))] == [
        *("failed", "skipped", "skipped", "done", "done")
    ]
    assert found[bad.id].why == "ValueError: this seed brings bad luck"
    assert "in train" in found[bad.id].traceback.read_text()
    assert found[after(bad).id].why == f"it starts from {bad.id}, which is not done (failed)"
    assert found[lost.id].why == "it starts from elsewhere, which is not done (not in this list)"
    assert any(line.endswith(f"{bad.id}: failed after 0:00 min: {found[bad.id].why}") for line in said)
    told = costs.report(list(found.values()))
    assert told.startswith("5 jobs: 1 failed, 2 skipped, 2 done")
    assert str(found[bad.id].traceback) in told


def test_a_job_that_failed_is_tried_again_next_time(home):
    plan, calls = recipe(0), []

    def once_bad(plan, **_):
        calls.append(plan.id)
        if len(calls) == 1:
            raise OSError("the disk is full")
        return execute(plan)

    assert carried_out([plan], how=once_bad)[0][plan.id].status == "failed"
    assert carried_out([plan], how=once_bad)[0][plan.id].status == "done"


def test_a_run_that_was_cut_off_goes_on_from_its_checkpoint(home, monkeypatch):
    plan = recipe(0)
    whole = Run.log

    def cut(run, line):
        whole(run, line)
        if line["step"] == 8:
            raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", cut)
        assert carried_out([plan])[0][plan.id].status == "failed"
    assert carried_out([plan])[0][plan.id].status == "done"
    assert [int(line.split()[1]) for line in journal(home)] == [*range(1, 9), *range(7, 13)]
    assert list(Run.of(plan).metrics["step"]) == list(range(1, 13))


# other processes ---------------------------------------------------------------------------------------------------


def test_a_job_has_one_process(home):
    with claim(recipe(0)), pytest.raises(Busy, match="another process"), claim(recipe(0)):
        pass
    with claim(recipe(0)), claim(recipe(1)):
        pass


def test_nobody_takes_a_run_that_is_being_trained(home, monkeypatch):
    monkeypatch.setattr("mg3d.jobs.PATIENCE", 0.0)
    run = Run.open(recipe(0))
    with run.lock(), pytest.raises(Busy), claim(recipe(0)):
        pass
    with claim(recipe(0)) as found:
        assert found.path == run.path


def test_two_lists_at_once_share_the_work(home, monkeypatch):
    monkeypatch.setattr("mg3d.jobs.BUSY", 0.2)
    plans, said = [recipe(n) for n in range(4)], []
    how = partial(execute, seconds=0.01)
    other = threading.Thread(target=work, args=(plans, how), kwargs={"jobs": 2, "say": said.append})
    other.start()
    found, mine = carried_out(plans, jobs=2, how=how)
    other.join()
    assert len(journal(home)) == len(set(journal(home))) == 4 * STEPS
    assert all(o.status in ("done", "was done") for o in found.values())
    assert any("waits: another process is working on it" in line for line in said + mine)


def test_data_are_prepared_by_the_first_job_that_needs_them(home):
    """The others of that scale start when its plan's file is there: by then its data are."""
    begun: dict[str, float] = {}
    opened: dict[str, float] = {}

    def slow(plan):
        begun[plan.id] = time.monotonic()
        time.sleep(0.8)
        opened[plan.id] = time.monotonic()
        return Outcome(plan, "done") if train(plan, seconds=0.0).done else Outcome(plan, "failed")

    a, b, other = recipe(0), recipe(1), replace(recipe(0), scale="phantom")
    carried_out([a, b, other], jobs=3, how=slow)
    assert begun[b.id] >= opened[a.id]
    assert begun[other.id] < opened[a.id]


def test_cores_are_shared(monkeypatch):
    import os

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    with threads(3):
        assert os.environ["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with threads(2):
        assert os.environ["OMP_NUM_THREADS"] == "5"


# costs -------------------------------------------------------------------------------------------------------------


def logged(plan, seconds: float, steps: int = STEPS) -> Run:
    run = Run.open(plan)
    for step in range(1, steps + 1):
        run.log({"step": step, "seconds": seconds if step > 1 else 100.0})
    return run


def test_costs_come_from_the_logs_of_like_runs(home):
    a, b, other = recipe(0), replace(recipe(1), steps=120), replace(recipe(0), variant="no-ssm")
    assert costs.speeds([a, b]) == {}
    (logged(a, 30.0).path / "done.json").write_text("{}")
    told = costs.listing([a, b, other, after(a), after(b)], jobs=2).splitlines()
    assert [" ".join(line.split()) for line in told] == [
        f"{a.id} to be shown 12 steps 0:00 min",
        f"{b.id} new 120 steps 1.0 h",
        f"{other.id} new 12 steps about 6:00 min",
        f"{after(a).id} new 12 steps unknown",
        f"{after(b).id} new 12 steps unknown, after {b.id}",
        "5 jobs: 5 to do; 1.1 h of steps, and 2 of unknown cost; 2 at a time",
    ]
    Run.of(a).path.rename(home / "runs" / "made-of-other-numbers")
    assert "unknown" in costs.listing([b])
    logged(after(a), 2.0, steps=5)
    assert "0:24 min" in costs.listing([after(a, seed=1)])  # same encoder, same study


def test_costs_see_the_encoder_that_a_transfer_starts_from(home):
    small = replace(recipe(0), encoder="unet")
    (Run.open(small).path / "done.json").write_text("{}")
    logged(after(small), 2.0)
    assert costs.speeds([after(small, seed=1)])
    assert not costs.speeds([Transfer(steps=STEPS)])
    assert costs.speeds([Transfer(steps=STEPS, encoder="unet")])
    (Run.of(small).path / "recipe.json").write_text("{")  # a damaged one is like none
    assert "unknown" in costs.listing([replace(recipe(1), encoder="unet")])


def test_a_run_that_was_cut_off_costs_what_is_left(home):
    plan = recipe(0)
    run = logged(plan, 10.0, steps=6)
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "step-00000006.json").write_text("6")
    assert " ".join(costs.listing([plan]).split()).startswith(f"{plan.id} at step 6 12 steps 1:00 min")
    assert "nothing to do" in costs.listing([])
    assert "nothing to do" in costs.report([])


# lists -------------------------------------------------------------------------------------------------------------


def test_fields_give_all_combinations():
    found = lists.of_fields("recipe", ["variant=paper,no-ssm", "seed=0,1", "lr=1e-4"])
    assert found == [Recipe(variant=v, seed=s, lr=1e-4) for v in ("paper", "no-ssm") for s in (0, 1)]
    assert lists.of_fields("transfer", []) == [Transfer()]


def test_a_file_gives_recipes_and_transfers(tmp_path):
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps([{"recipe": {"seed": 1}}, {"transfer": {"study": "msd06"}}]))
    assert lists.of_file(file) == [Recipe(seed=1), Transfer(study="msd06")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no list of jobs"),
        ('{"recipe": {}}', "no list of jobs"),
        ('[{"recipe": {}}, {"recipy": {}}]', "entry 2: a recipe or transfer"),
        ('[{"recipe": {"sead": 1}}]', r"entry 1: unknown parameter 'sead' \(did you mean seed"),
        ("[3]", "entry 1"),
    ],
)
def test_a_file_that_is_no_list_says_where(tmp_path, content, message):
    file = tmp_path / "jobs.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        lists.of_file(file)


def test_a_table_gives_its_jobs():
    from mg3d.tables import TABLES

    found = lists.of_table("III", ["scale=phantom", "seeds=0,2"])
    assert found == TABLES["III"].jobs(scale="phantom", seeds=(0, 2))
    assert ordered(found) == found
    assert {p.scale for p in found} == {"phantom"}
    few = lists.of_table("III", ["rows=scratch", "seeds=1", "finetuning.study=findings", "finetuning.probe=true"])
    assert few == [Transfer(study="findings", probe=True, seed=1, encoder="swin_b")]
    (plan, _) = lists.of_table("III", ["rows=word", "seeds=1", "pretraining.steps=7"])
    alike = lists.of_table("III", ["rows=word", "scale=phantom", "pretraining.batch=12", "pretraining.accumulate=12"])
    assert [p.accumulate for p in alike if isinstance(p, Recipe)] == [12, 12, 12]  # at demo 8 would not divide
    assert plan == Recipe(variant="word", steps=7, seed=1)


@pytest.mark.parametrize(
    ("table", "word", "message"),
    [
        ("IX", "scale=demo", r"unknown table 'IX'.*valid: I, II"),
        ("III", "seed=1", r"unknown word of table III 'seed' \(did you mean seeds\?\)"),
        ("III", "pretraining.stepps=1", r"unknown parameter 'stepps' \(did you mean steps\?\)"),
        ("III", "pretraining.steps=many", "steps='many': expected int"),
        ("III", "pretraining=1", "unknown word of table III 'pretraining'"),
        ("III", "seeds=a", "seeds=a: expected whole numbers"),
        ("III", "phantom", "expected name=value, got 'phantom'"),
    ],
)
def test_a_wrong_word_of_a_table_is_named(table, word, message):
    with pytest.raises(ValueError, match=message):
        lists.of_table(table, [word])


def test_the_command_line_names_one_source():
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("-p", nargs=2)
    parser.set_defaults(out=None, again=False)
    lists.options(parser)
    assert lists.listed(parser.parse_args(["some.ipynb"])) is None
    assert lists.listed(parser.parse_args(["--transfers", "seed=0,1"])) == [Transfer(seed=0), Transfer(seed=1)]
    with pytest.raises(SystemExit):
        parser.parse_args(["--recipes", "--table", "III"])
    with pytest.raises(ValueError, match="--dry-run and --cluster are for lists of jobs"):
        lists.listed(parser.parse_args(["some.ipynb", "--dry-run"]))
    with pytest.raises(ValueError, match="-p, --out and --again are for notebooks"):
        lists.listed(parser.parse_args(["--recipes", "-p", "seed", "1"]))
