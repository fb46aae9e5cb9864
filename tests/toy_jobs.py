"""Notebooks that carry out a plan within a second or two: a run's folder, log, checkpoints and lock, but no network.

The journal, one line a step, says what was really computed, whatever was killed.
"""

import json
import os
import time
from pathlib import Path

from mg3d import paths
from mg3d.jobs import NOTEBOOK, Outcome, claim, finished
from mg3d.recipe import Plan, Recipe
from mg3d.runs import Run

STEPS, EVERY = 12, 3
CELLS = {"02_pretrain.ipynb": "Recipe", "05_downstream.ipynb": "Transfer"}
BAD_SEED = 13  # of a plan whose notebook fails


def train(plan: Plan, *, seconds: float) -> Run:
    """What `pretrain` and `finetune` do around a step: done runs are left alone, others go on from their checkpoint."""
    run = Run.open(plan)
    if run.done:
        return run
    if plan.seed == BAD_SEED:
        raise ValueError("this seed brings bad luck")
    with run.lock():
        run.rewind(run.step)
        for step in range(run.step + 1, plan.filled.steps + 1):
            with (Path(os.environ["MG3D_HOME"]) / "journal").open("a") as file:
                file.write(f"{plan.id} {step} by {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
            time.sleep(seconds)
            run.log({"step": step, "seconds": seconds})
            if step % plan.filled.checkpoint == 0:
                paths.write_atomic(run.path / "checkpoints" / f"step-{step:08d}.json", json.dumps(step).encode())
        paths.write_atomic(run.path / "done.json", b"{}")
    return run


def execute(plan: Plan, *, seconds: float = 0.0) -> Outcome:
    """Carry out a job without a notebook: what `mg3d.batch.job` does, in this very process."""
    with claim(plan) as run:
        if finished(plan):
            return Outcome(plan, "was done")
        train(plan, seconds=seconds)
        (run.path / NOTEBOOK[type(plan)]).write_text("{}")
    return Outcome(plan, "done")


def notebooks(folder: Path, *, seconds: float = 0.0) -> Path:
    """Write the two notebooks; `seconds` is what a step takes."""
    import nbformat  # half a second, which jobs on a cluster do not need

    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in CELLS.items():
        first = nbformat.v4.new_code_cell("# Parameters\nscale: str = 'demo'", metadata={"tags": ["parameters"]})
        second = f"from mg3d import {kind}\nplan = {kind}.from_notebook(globals())"
        third = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom toy_jobs import train"
        cells = [nbformat.v4.new_markdown_cell("# Toy"), first]
        cells += [nbformat.v4.new_code_cell(c) for c in (second, third, f"train(plan, seconds={seconds})")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / name)
    return folder


def recipe(seed: int) -> Recipe:
    """A recipe of the toy."""
    return Recipe(steps=STEPS, checkpoint=EVERY, seed=seed)


def journal(home: Path) -> list[str]:
    """The steps that were taken, in order: "<id> <step> by <GPUs>"."""
    file = home / "journal"
    return file.read_text().splitlines() if file.exists() else []
