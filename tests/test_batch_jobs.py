"""Jobs as notebooks: into the folders of their runs, through any kill, from the command line."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from toy_jobs import BAD_SEED, EVERY, STEPS, journal, notebooks, recipe

from mg3d import batch
from mg3d.jobs import finished
from mg3d.recipe import Recipe
from mg3d.runs import Run
from mg3d.transfer import Transfer


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MG3D_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def file_of(folder: Path, *plans) -> Path:
    """A file of jobs."""
    entries = [{type(p).__name__.lower(): p.changed} for p in plans]
    (folder / "jobs.json").write_text(json.dumps(entries))
    return folder / "jobs.json"


def test_a_notebook_is_given_what_is_not_the_default():
    assert Recipe().changed == {}
    plan = Transfer(study="msd06", probe=True, share=0.1, lr=1e-4)
    assert plan.changed == {"study": "msd06", "probe": True, "share": 0.1, "lr": 1e-4}


def test_jobs_from_the_command_line(home, tmp_path, capsys):
    good, bad = recipe(0), recipe(BAD_SEED)
    plan = Transfer(init=f"run:{good.id}", steps=STEPS, lr_head=1e-4)
    words = ["--jobs-file", str(file_of(tmp_path, plan, good, bad)), "--jobs", "2", "--html"]
    words += ["--notebooks", str(notebooks(tmp_path / "notebooks"))]
    assert batch.main([*words, "--dry-run"]) == 0
    assert "3 jobs: 3 to do; 0:00 min of steps, and 3 of unknown cost; 2 at a time" in capsys.readouterr().out
    assert not home.exists()
    assert batch.main(words) == 1
    said = capsys.readouterr().out
    assert said.count("] ") == 3
    assert f"{bad.id} failed after 0:" in said
    for one, name in ((good, "02_pretrain"), (plan, "05_downstream")):
        executed = nbformat.read(Run.of(one).path / f"{name}.ipynb", as_version=4)
        assert executed.metadata["mg3d"]["parameters"] == one.changed
        assert (Run.of(one).path / f"{name}.html").exists()
    folder = Run.of(bad).path
    assert "this seed brings bad luck" in (folder / "02_pretrain.traceback.txt").read_text()
    assert (folder / "02_pretrain.failed.ipynb").exists()
    assert not (folder / "02_pretrain.ipynb").exists()
    assert len(journal(home)) == 2 * STEPS
    assert batch.main([*words[:1], str(file_of(tmp_path, plan, good)), *words[2:]]) == 0
    assert "2 jobs: 2 was done" in capsys.readouterr().out
    assert len(journal(home)) == 2 * STEPS


def test_a_notebook_that_does_something_else_is_found_out(home, tmp_path):
    folder = notebooks(tmp_path / "notebooks")
    file = folder / "02_pretrain.ipynb"
    other = nbformat.read(file, as_version=4)
    other.cells = other.cells[:3]
    nbformat.write(other, file)
    with pytest.raises(RuntimeError, match="is it the plan's notebook"):
        batch.job(recipe(0), notebooks=folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name notebooks, and a folder for them with --out; or a list of jobs"),
        (["--recipes", "sead=1"], "unknown parameter 'sead' (did you mean seed?)"),
        (["--recipes", "resume=false"], "resume=False: a list of jobs goes on"),
        (["--jobs-file", "nosuch.json"], "nosuch.json: no list of jobs"),
    ],
)
def test_a_list_that_cannot_be_read_stops_before_anything_runs(home, words, message, capsys):
    assert batch.main(words) == 2
    assert message in capsys.readouterr().err
    assert not home.exists()


def test_killed_at_any_moment_and_started_again_nothing_is_lost_or_repeated(home, tmp_path):
    """kill -9, and once Ctrl-C: while kernels start, within runs and between them, a random while after a step."""
    first, second = recipe(0), recipe(1)
    plans = [first, Transfer(init=f"run:{first.id}", steps=STEPS, checkpoint=EVERY), second]
    command = [sys.executable, "-m", "mg3d.batch", "--jobs-file", str(file_of(tmp_path, *plans)), "--jobs", "2"]
    command += ["--notebooks", str(notebooks(tmp_path / "notebooks", seconds=0.1))]
    kills, draw = 0, random.Random(8)
    for moment in (0, 1, STEPS - 2, STEPS + 5, 2 * STEPS + 1):  # steps in the journal
        how = signal.SIGINT if moment == 1 else signal.SIGKILL
        with subprocess.Popen(command, env=os.environ | {"PYTHONWARNINGS": "ignore"}) as process:
            while process.poll() is None and len(journal(home)) < moment + kills:
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.3))
            kills += process.poll() is None
            process.send_signal(how)
        assert process.returncode in (0, 130 if how == signal.SIGINT else -9)
    assert kills >= 4
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(finished(p) for p in plans)
    lines = journal(home)
    for plan in plans:
        steps = [int(line.split()[1]) for line in lines if line.startswith(plan.id)]
        assert list(Run.of(plan).metrics["step"]) == list(range(1, STEPS + 1))  # each once, in order
        again = len(steps) - STEPS
        assert 0 <= again <= kills * EVERY  # of a cut run, what came after its checkpoint
        jumps = [(a, b) for a, b in itertools.pairwise(steps) if b != a + 1]
        assert all(b % EVERY == 1 and a - b < EVERY for a, b in jumps)
    assert not list((home / "runs").rglob("*.running.ipynb"))
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "3 jobs: 3 was done" in again.stdout
    assert journal(home) == lines
