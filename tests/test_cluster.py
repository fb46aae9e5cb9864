"""Jobs by submitit: in processes of this machine, and as arrays of a Slurm that runs for the test alone."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import one_node
import pytest
from toy_jobs import BAD_SEED, STEPS, execute, journal, notebooks, recipe

from mg3d import cluster, paths
from mg3d.cluster import Asked, Local, Remote
from mg3d.jobs import DESK, Busy, claim, finished, work
from mg3d.recipe import Recipe
from mg3d.runs import Run
from mg3d.transfer import Transfer

pytest.importorskip("submitit")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MG3D_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the processes import toy_jobs
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    return tmp_path / "home"


def after(plan, **fields) -> Transfer:
    return Transfer(init=f"run:{plan.id}", steps=STEPS, checkpoint=3, **fields)


def until(true, seconds: float = 60.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# one machine -------------------------------------------------------------------------------------------------------


def test_jobs_in_processes_of_this_machine(home):
    good, bad, said = recipe(0), recipe(BAD_SEED), []
    plans = [good, after(good), bad, after(bad)]
    found = work(plans, Local(execute, gpus=[3, 5]), jobs=2, say=said.append)
    assert [o.status for o in found] == ["done", "done", "failed", "skipped"]
    assert "this seed brings bad luck" in found[2].traceback.read_text()
    lines = journal(home)
    assert len(lines) == len(set(lines)) == 2 * STEPS
    assert {line.split(" by ")[1] for line in lines} <= {"3", "5"}  # a GPU to itself
    assert len(said) == 4


def test_a_job_that_is_taken_away_comes_back_and_goes_on(home):
    from submitit import LocalExecutor

    plan = recipe(0)
    executor = LocalExecutor(paths.runs() / DESK / "log")
    executor.update_parameters(timeout_min=60)
    job = executor.submit(Remote(partial(execute, seconds=0.15), plan, str(home)))
    until(lambda: Run.of(plan).step >= 6)
    (task,) = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)  # what a cluster sends before it takes a node away
    assert job.result().status == "done"
    steps = [int(line.split()[1]) for line in journal(home)]
    cut = steps.index(STEPS) - STEPS + 1  # steps taken twice: at most those since the checkpoint, and the one cut off
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    assert 0 < cut <= 3
    assert "Caught signal SIGUSR2" in job.stderr()


def test_a_job_that_another_process_has_is_not_done_twice(home):
    with claim(recipe(0)), pytest.raises(Busy):
        Local(execute, gpus=[])(recipe(0))
    assert Remote(execute, after(recipe(0)), str(home))().status == "skipped"


def test_what_a_machine_has(monkeypatch, home):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert cluster.seen() == [2, 3]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cluster.seen() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert cluster.seen() == [0, 1]
    with pytest.raises(ValueError, match="asks for 4 GPUs, and 1 are there"):
        Local(execute, gpus=[0])(replace(recipe(0), gpus=4))


# Slurm -------------------------------------------------------------------------------------------------------------


def test_plans_share_an_array_unless_they_wait_for_different_runs(home):
    a, b, large = recipe(0), recipe(1), replace(recipe(2), gpus=4)
    paths.write_atomic(Run.of(b).path / "done.json", b"{}")
    plans = [after(a), a, b, after(b), large, after(a, seed=1)]
    arrays = cluster._arrays(plans, Asked())
    assert arrays == [[a, b, after(b)], [large], [after(a), after(a, seed=1)]]
    assert cluster._arrays(plans, Asked(gpus=0))[0] == [a, b, large, after(b)]


def test_without_slurm_it_says_so(home, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match="squeue is not there"):
        cluster.slurm([recipe(0)], execute)


@pytest.fixture
def slurm(home, tmp_path_factory, monkeypatch):
    if why := one_node.lacking():
        pytest.skip(why)
    with one_node.slurm(tmp_path_factory.mktemp("slurm")) as conf:
        monkeypatch.setenv("SLURM_CONF", str(conf))
        yield conf


def test_jobs_as_arrays_of_slurm(home, slurm):
    """Arrays in the order of what they need; a second call finds what is queued, and sends nothing again."""
    good, bad, said = recipe(0), recipe(BAD_SEED), []
    plans = [good, recipe(1), after(good), bad, after(bad), Transfer(init="run:elsewhere")]
    how = {"execute": partial(execute, seconds=0.1), "asked": Asked(gpus=0, cpus=1), "poll": 0.3}

    class Enough(Exception):
        pass

    def stop(line: str) -> None:
        if "with Slurm" in line:
            raise Enough

    with pytest.raises(Enough):
        cluster.slurm(plans, say=stop, jobs=2, **how)
    sent = {p.id: cluster._sent(p) for p in plans}
    assert cluster._alive() == {number for number in sent.values() if number}
    assert [sent[p.id].partition("_")[2] for p in (good, recipe(1), bad)] == ["0", "1", "2"]  # one array
    found = cluster.slurm(plans, say=said.append, jobs=2, **how)
    assert {p.id: cluster._sent(p) for p in plans} == sent
    by_id = {o.plan.id: o for o in found}
    assert [by_id[p.id].status for p in plans] == ["done", "done", "done", "failed", "skipped", "skipped"]
    assert by_id[bad.id].why == "ValueError: this seed brings bad luck"
    lines = journal(home)
    assert len(lines) == len(set(lines)) == 3 * STEPS
    assert all(finished(p) for p in (good, recipe(1), after(good)))
    assert [o.status for o in cluster.slurm(plans[:3], say=said.append, **how)] == ["was done"] * 3


@pytest.mark.parametrize("where", ["local", "slurm"])
def test_notebooks_from_the_command_line(home, where, tmp_path, request, monkeypatch):
    if where == "slurm":
        request.getfixturevalue("slurm")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = ["--recipes", f"steps={STEPS}", "seed=0,1", "--notebooks", str(notebooks(tmp_path / "notebooks"))]
    words += ["--cluster", where, "--jobs", "2", "--gpus", "0", "--cpus", "1", "--slurm", "comment=two recipes"]
    command = [sys.executable, "-m", "mg3d.batch", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 jobs: 2 done" in done.stdout
    assert all(Run.of(Recipe(steps=STEPS, seed=seed)).done for seed in (0, 1))
    assert len(journal(home)) == len(set(journal(home))) == 2 * STEPS


def test_a_controller_that_does_not_answer_is_asked_again(home, slurm, monkeypatch):
    answers, said, ask = iter([None, RuntimeError("squeue: timed out")]), [], cluster._alive

    def shaky():
        if error := next(answers, None):
            raise error
        return ask()

    monkeypatch.setattr(cluster, "_alive", shaky)
    (found,) = cluster.slurm([recipe(0)], execute, asked=Asked(gpus=0, cpus=1), poll=0.3, say=said.append)
    assert found.status == "done"
    assert "squeue: timed out" in said


def test_a_job_that_slurm_takes_away_comes_back_and_goes_on(home, slurm):
    """What a queued job waits for (two minutes, so that a node can be cleaned up) is cut short."""
    from submitit import SlurmJob

    plan = recipe(0)

    def interrupt(line: str) -> None:
        if "with Slurm" in line:
            until(lambda: Run.of(plan).step >= 3)
            number = cluster._sent(plan)
            SlurmJob(paths.runs() / DESK / "%j", number)._interrupt(timeout=True)
            look = ["squeue", "--noheader", "--format", "%T"]
            until(lambda: subprocess.run(look, capture_output=True, text=True, check=True).stdout == "PENDING\n")
            subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], check=True)

    how = {"asked": Asked(gpus=0, cpus=1), "poll": 0.3, "say": interrupt}
    (found,) = cluster.slurm([plan], partial(execute, seconds=0.5), **how)
    assert found.status == "done"
    steps = [int(line.split()[1]) for line in journal(home)]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    assert 0 <= len(steps) - STEPS <= 3
    assert list(Run.of(plan).metrics["step"]) == list(range(1, STEPS + 1))


def test_a_job_that_slurm_lost_is_named_and_sent_again(home, slurm, monkeypatch):
    monkeypatch.setattr(cluster, "LAG", 0.5)
    plan, how = recipe(0), {"asked": Asked(gpus=0, cpus=1), "poll": 0.2}

    def cancel(line: str) -> None:
        if "with Slurm" in line:
            until(lambda: Run.of(plan).step >= 3)
            subprocess.run(["scancel", "--signal=KILL", cluster._sent(plan)], check=True)

    (lost,) = cluster.slurm([plan], partial(execute, seconds=2.0), say=cancel, **how)
    assert lost.status == "failed"
    assert f"its run is at step {Run.of(plan).step} and goes on next time" in lost.why
    assert lost.traceback.exists()
    (found,) = cluster.slurm([plan], execute, say=lambda _: None, **how)
    assert found.status == "done"
    assert list(Run.of(plan).metrics["step"]) == list(range(1, STEPS + 1))
