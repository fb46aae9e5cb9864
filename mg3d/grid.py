"""What a table is made of: rows, columns, and the runs of each cell (mg3d/tables.py has the tables).

    how = dict(scale="phantom", seeds=(0, 1, 2))
    TABLES["III"].jobs(**how)         what to run, in order: Recipes and Transfers
    TABLES["III"].frame(**how)        a row a cell: ours, the paper's, the difference, or what to run for it
    TABLES["III"].contrasts(**how)    a row a claim: how much better is a row than the one it is held against

A row is a way to pre-train, a column a study and its metric. `scale` is `demo` or `phantom`, whose synthetic patients
stand in for every cohort, or `real`: then each row has the data that the paper gave it, and each study its own cohort.
On the phantom each seed is a pre-training of its own. In real cohorts a seed is one of the paper's three divisions, and
all of them start from one pre-training, that of the first seed.

Further fields: `pretraining` of every Recipe, `finetuning` of every Transfer. With `finetuning={"study": "findings"}`
all rows answer this question in place of the paper's columns; the metric is then that of the study.
"""

import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from mg3d import paths
from mg3d.metrics import Interval
from mg3d.paper import PRINTED, RUNS, Printed
from mg3d.recipe import SCALES, SMALLER, Recipe, one_of
from mg3d.runs import Run
from mg3d.transfer import REAL, STUDIES, Transfer

if TYPE_CHECKING:
    import pandas as pd

SEEDS = (0, 1, 2)
SYNTHETIC = "synthetic patients: another question than the paper's"
OFFICIAL = "official weights, which are not read here"
NO_TEXT = "this method has no feature of a whole report"
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
        return [job for job in _once(self.jobs) if not _run(job).done]

    @property
    def runs(self) -> dict[int, Run]:
        """The finished fine-tuning of each seed that has one."""
        found = {transfer.seed: _run(transfer) for _, transfer in self.jobs}
        return {seed: run for seed, run in found.items() if run.done}


@dataclass(frozen=True)
class Table:
    """Rows, columns, and claims: pairs of rows, of which the first is said to be the better one."""

    name: str
    title: str
    rows: Mapping[str, Row]
    columns: Mapping[str, Column]
    claims: Sequence[tuple[str, str]] = ()

    def cells(
        self,
        *,
        scale: str = "demo",
        seeds: Sequence[int] = SEEDS,
        pretraining: Fields = NOTHING,
        finetuning: Fields = NOTHING,
    ) -> list[Cell]:
        """Every cell, row by row. Raises ValueError for a scale, study or field that does not exist."""
        one_of("scale of a table", scale, (*SMALLER, REAL))
        for kind, given in ((Recipe, pretraining), (Transfer, finetuning)):
            for name in given:
                one_of(f"field of {kind.__name__}", name, [f.name for f in fields(kind)])
        rows = {name: row for name, row in self.rows.items() if row.data or scale in SMALLER}
        columns = _asked(finetuning["study"]) if "study" in finetuning else self.columns
        found = []
        for (name, row), (title, column) in itertools.product(rows.items(), columns.items()):
            printed = PRINTED.get(self.name, {}).get(name, {}).get(title)
            why = OFFICIAL if row.official else NO_TEXT if column.reads and row.method not in ("mg3d", "") else ""
            jobs = []
            for seed in () if why else seeds:
                once = seed if scale in SMALLER else seeds[0]
                recipe = row.recipe(scale=scale, seed=once, pretraining=pretraining)
                start = {"init": f"run:{recipe.id}"} if recipe else {"encoder": row.encoder}
                given = {"study": column.study, "scale": scale, "seed": seed, **start, **finetuning}
                jobs.append((recipe, Transfer(**given)))
            apart = column.apart or (SYNTHETIC if scale in SMALLER else "")
            found.append(Cell(name, title, column.metric, printed, tuple(jobs), why, apart))
        return found

    def jobs(self, **how: Any) -> list[Recipe | Transfer]:
        """What to run for all cells, each once, an init before what starts from it. Takes what `cells` takes."""
        return list(_once(pair for cell in self.cells(**how) for pair in cell.jobs))

    def frame(self, **how: Any) -> "pd.DataFrame":
        """A row a cell: row, column, ours, low, high, runs, paper, deviation, difference, says. In %.

        `low` and `high` are a 95 % interval over cases and runs (`compare.score`), `runs` how many of how many are
        done. `difference` is ours - paper, an interval in words, or why there is none; `missing` the first thing to
        run, and how many more. Takes what `cells` takes.
        """
        import pandas as pd

        return pd.DataFrame([_line(cell) for cell in self.cells(**how)])

    def contrasts(self, **how: Any) -> "pd.DataFrame":
        """A row a claim and column: row, against, column, ours, low, high, runs, paper, says. In %.

        `ours` is the mean over the seeds that both rows have of row - against, with its interval over cases and runs
        (`compare.difference`); `paper` the difference of the printed numbers; `says` whether both point the same way:
        agrees, opposes, no difference (0 lies in our interval), or what to run. Takes what `cells` takes.
        """
        import pandas as pd

        cells = {(cell.row, cell.column): cell for cell in self.cells(**how)}
        columns = list(dict.fromkeys(column for _, column in cells))
        rows = {row for row, _ in cells}
        pairs = [
            (cells[one, column], cells[other, column])
            for one, other in self.claims
            if {one, other} <= rows
            for column in columns
        ]
        return pd.DataFrame([_claim(cell, other) for cell, other in pairs])


def wide(frame: "pd.DataFrame") -> "pd.DataFrame":
    """What `Table.frame` gives, rows x columns as in the paper: "ours (low to high) | paper", "-" for nothing."""
    ours = [f"{r.ours:.1f} ({r.low:.1f} to {r.high:.1f})" if r.ours == r.ours else "-" for r in frame.itertuples()]
    paper = [
        "-" if r.paper != r.paper else f"{r.paper:.2f}" + (f"±{r.deviation:.2f}" if r.deviation == r.deviation else "")
        for r in frame.itertuples()
    ]
    cells = frame.assign(cell=[" | ".join(pair) for pair in zip(ours, paper, strict=True)])
    rows, columns = frame["row"].unique(), frame["column"].unique()
    return cells.pivot(index="row", columns="column", values="cell").reindex(index=rows, columns=columns)


def command(job: Recipe | Transfer) -> str:
    """The shell command that runs a job: what differs from the defaults, as words."""
    words = [f"{f.name}={getattr(job, f.name)}" for f in fields(job) if getattr(job, f.name) != f.default]
    return shlex.join(["python", "-m", "mg3d.train" if isinstance(job, Recipe) else "mg3d.tune", *words])


def _asked(study: str) -> dict[str, Column]:
    """The one column of a study that stands in for a table's own."""
    one_of("study", study, STUDIES)
    row = STUDIES[study]
    return {row.title: Column(study, row.metric, reads=row.task in ("align", "retrieve"))}


def _once(pairs: Iterable[tuple[Recipe | None, Transfer]]) -> list[Recipe | Transfer]:
    """The jobs of pairs, each once, in order."""
    return list({job.id: job for pair in pairs for job in pair if job is not None}.values())


def _run(job: Recipe | Transfer) -> Run:
    return Run(paths.runs() / job.id)


def _line(cell: Cell) -> dict[str, Any]:
    """A row of `Table.frame`."""
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


def _claim(cell: Cell, other: Cell) -> dict[str, Any]:
    """A row of `Table.contrasts`."""
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
