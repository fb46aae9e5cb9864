"""The paper's "three bootstrapping iterations": a study on three divisions of its cohort, and one line for them.

    divisions(Transfer(study="msd06", scale="real", init="run:mg3d-paper-swin_b-ctrg-1234abcd"))["dice"]
    python -m mg3d.divisions study=msd06 scale=real init=run:mg3d-paper-swin_b-ctrg-1234abcd

In a real cohort each seed is a division of the patients (mg3d/data/cohorts/splits.py). The phantom has one test split:
there seeds draw the head and the order alone, and `tests` is 1.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mg3d import compare, tune
from mg3d.runs import Run
from mg3d.transfer import Transfer

SEEDS = 3  # divisions, from the transfer's own seed on


class Line(NamedTuple):
    """A test metric over runs."""

    mean: float
    deviation: float  # of the runs about their mean, with n - 1
    low: float  # of a 95 % interval over cases (bootstrap) and runs: `compare.score`
    high: float
    runs: int
    tests: int  # different test splits among them


def divisions(transfer: Transfer, *, seeds: int = SEEDS) -> dict[str, Line]:
    """Fine-tune and test on each division, what is done is skipped, and give every metric that all of them have.

    Raises ValueError for fewer than two seeds, and where a division leaves the study's own metric undefined, naming the
    run and why; what `tune.finetune` raises.
    """
    if seeds < 2:
        raise ValueError(f"seeds={seeds}: a deviation needs two divisions or more")
    runs = [tune.finetune(replace(transfer, seed=transfer.seed + n)) for n in range(seeds)]
    said = [tune.results(run) for run in runs]
    for run, line in zip(runs, said, strict=True):
        if transfer.row.metric not in line["test"]:
            why = line.get("undefined", "this task does not give it")
            raise ValueError(f"{run.path.name}: {transfer.row.metric} is undefined on its test split: {why}")
    tests = len({line["protocol"]["cases"]["test"] for line in said})
    shared = [name for name in said[0]["test"] if all(name in line["test"] for line in said)]
    values = {name: [line["test"][name]["value"] for line in said] for name in shared}
    return {name: _line(runs, name, values[name], tests=tests) for name in shared}


def _line(runs: Sequence[Run], metric: str, values: Sequence[float], *, tests: int) -> Line:
    mean, low, high = map(float, compare.score(runs, metric))
    return Line(mean, float(np.std(values, ddof=1)), low, high, len(runs), tests)


def main(arguments: Sequence[str]) -> None:
    """`python -m mg3d.divisions field=value ...` or `@transfer.json`."""
    transfer = Transfer.from_shell(arguments)
    for metric, line in divisions(transfer).items():
        print(f"test {metric} {line.mean:.3f} ± {line.deviation:.3f}, {line.low:.3f} to {line.high:.3f}")
    print(f"mean ± deviation and 95 % interval over {line.runs} runs, {line.tests} test splits")


if __name__ == "__main__":
    main(sys.argv[1:])
