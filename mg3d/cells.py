"""What stands in a cell of a table: a way to pre-train met by a study, its runs, and what they say.

A `Row` makes the Recipe, a `Column` names the study and its metric, a `Cell` is both for every seed. What is done is
read from the folders of the runs; what is not says what to run.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mg3d.metrics import Interval
from mg3d.paper import RUNS, Printed
from mg3d.recipe import SCALES, SMALLER, Recipe
from mg3d.runs import Run
from mg3d.transfer import Transfer

Fields = Mapping[str, Any]
NOTHING: Fields = {}
UNKNOWN = Interval(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Column:
    """A study, and which of its test metrics is printed."""

    study: str
    metric: str
    reads: bool = False  # whether it compares the volume with a whole report
    apart: str = ""  # why our number never stands beside the printed one
    given: Fields = field(default_factory=dict)  # further fields of the Transfer


@dataclass(frozen=True)
class Row:
    """A way to pre-train: from scratch (no method), by a method, or by others (`official`: published weights)."""

    method: str = "mg3d"  # a row of objectives.METHODS; "" = none
    encoder: str = "swin_b"
    variant: str = "paper"
    data: str = "ctrg"  # the scale of the paper's run; "" = the paper has none
    less: int | None = None  # on the phantom: which of its nested sizes, from the smallest; None = the whole
    halved: bool = False  # the released optimiser: half of both learning rates, next to no weight decay
    official: bool = False

    def recipe(self, *, scale: str, seed: int, pretraining: Fields = NOTHING) -> Recipe | None:
        """What pre-trains this row, None where nothing does."""
        if not self.method or self.official:
            return None
        if scale in SMALLER:
            scale = scale if self.less is None else f"{scale}-{SMALLER[scale][self.less]}"
        else:
            scale = self.data
        size = SCALES[scale]
        given = {"lr": size.lr / 2, "lr_fusion": size.lr_fusion / 2, "weight_decay": 1e-8} if self.halved else {}
        given |= {"method": self.method, "encoder": self.encoder, "scale": scale, "seed": seed}
        return Recipe(**{**given, "variant": self.variant, **pretraining})


@dataclass(frozen=True)
class Cell:
    """What stands where a row meets a column: one Transfer a seed, after its Recipe; or why there is none."""

    row: str
    column: str
    metric: str
    printed: Printed | None
    jobs: tuple[tuple[Recipe | None, Transfer], ...]
    why: str = ""  # why it is empty
    apart: str = ""  # why ours and the paper's are not subtracted

    @property
    def missing(self) -> list[Recipe | Transfer]:
        """What is still to run, in order."""
        return [job for job in once(self.jobs) if not Run.of(job).done]

    @property
    def runs(self) -> dict[int, Run]:
        """The finished fine-tuning of each seed that has one."""
        found = {transfer.seed: Run.of(transfer) for _, transfer in self.jobs}
        return {seed: run for seed, run in found.items() if run.done}


def command(job: Recipe | Transfer) -> str:
    """The shell command that runs a job: what differs from the defaults, as words."""
    words = [f"{name}={value}" for name, value in job.changed.items()]
    return shlex.join(["python", "-m", "mg3d.train" if isinstance(job, Recipe) else "mg3d.tune", *words])


def once(pairs: Iterable[tuple[Recipe | None, Transfer]]) -> list[Recipe | Transfer]:
    """The jobs of pairs, each once, in order."""
    return list({job.id: job for pair in pairs for job in pair if job is not None}.values())


def line(cell: Cell) -> dict[str, Any]:
    """A row of `grid.Table.frame`: this cell beside the paper's."""
    from mg3d import compare

    ours, said, missing, printed = UNKNOWN, cell.why, cell.missing, cell.printed
    if cell.runs:
        try:
            ours = _percent(compare.score(list(cell.runs.values()), cell.metric))
        except ValueError as error:  # a test split that leaves the metric undefined
            said = str(error)
    if printed and np.isfinite(ours.value):
        said = cell.apart or compare.says(_from(ours, printed), scale=1.0)
    return {
        "row": cell.row,
        "column": cell.column,
        "ours": ours.value,
        "low": ours.low,
        "high": ours.high,
        "runs": f"{len(cell.runs)} of {len(cell.jobs)}",
        "paper": printed.value if printed else np.nan,
        "deviation": printed.deviation if printed else np.nan,
        "difference": said,
        "missing": command(missing[0]) + (f"  # and {len(missing) - 1} more" if missing[1:] else "") if missing else "",
    }


def claim(cell: Cell, other: Cell) -> dict[str, Any]:
    """A row of `grid.Table.contrasts`: how much better one cell is than another of its column."""
    from mg3d import compare

    seeds = [seed for seed in cell.runs if seed in other.runs]
    found, said = UNKNOWN, cell.why or other.why
    paper = cell.printed.value - other.printed.value if cell.printed and other.printed else np.nan
    if seeds:
        try:
            ones, others = ([c.runs[seed] for seed in seeds] for c in (cell, other))
            found = _percent(compare.difference(ones, others, cell.metric))
            said = compare.says(found, scale=1.0)
        except ValueError as error:
            said = str(error)
    elif not said:
        said = "missing: " + command([*other.missing, *cell.missing][0])
    if found.low * found.high > 0 and np.isfinite(paper):
        said = "as in the paper" if found.value * paper > 0 else "against the paper"
    return {
        "row": cell.row,
        "against": other.row,
        "column": cell.column,
        "ours": found.value,
        "low": found.low,
        "high": found.high,
        "runs": f"{len(seeds)} of {len(cell.jobs)}",
        "paper": paper,
        "says": said,
    }


def _percent(found: Interval) -> Interval:
    return Interval(*(100 * float(x) for x in found))


def _from(ours: Interval, printed: Printed) -> Interval:
    """Ours less the paper's. Its ± is the deviation of three divisions, so that Student's interval of two degrees of
    freedom belongs to its mean; where there is none, only ours is uncertain."""
    from scipy.stats import t

    theirs = 0.0 if np.isnan(printed.deviation) else float(t.ppf(0.975, RUNS - 1)) * printed.deviation / np.sqrt(RUNS)
    value = float(ours.value) - printed.value
    half = float(np.hypot((float(ours.high) - float(ours.low)) / 2, theirs))
    return Interval(value, value - half, value + half)
