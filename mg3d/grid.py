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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from mg3d.cells import NOTHING, Cell, Column, Fields, Row, claim, line, once
from mg3d.paper import PRINTED
from mg3d.recipe import SMALLER, Recipe, one_of
from mg3d.transfer import REAL, STUDIES, Transfer

if TYPE_CHECKING:
    import pandas as pd

SEEDS = (0, 1, 2)
SYNTHETIC = "synthetic patients: another question than the paper's"
ANOTHER = "another question than the paper's"
INSTEAD = "; in the paper "  # between the title of a study and that of the column that it stands in for
OFFICIAL = "official weights, which are not read here"
NO_COHORT = "a question about the phantom: no cohort of its own"


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
        from mg3d.heads import mute

        one_of("scale of a table", scale, (*SMALLER, REAL))
        for kind, given in ((Recipe, pretraining), (Transfer, finetuning)):
            for name in given:
                one_of(f"field of {kind.__name__}", name, [f.name for f in fields(kind)])
        rows = {name: row for name, row in self.rows.items() if row.data or scale in SMALLER}
        columns = self._asked(finetuning["study"]) if "study" in finetuning else self.columns
        found = []
        for (name, row), (title, column) in itertools.product(rows.items(), columns.items()):
            printed = PRINTED.get(self.name, {}).get(name, {}).get(title.rpartition(INSTEAD)[2])
            why = OFFICIAL if row.official else ""
            if scale == REAL and not STUDIES[column.study].cohort:
                why = NO_COHORT
            jobs: list[tuple[Recipe | None, Transfer]] = []
            for seed in () if why else seeds:
                drawn = seed if scale in SMALLER else seeds[0]
                recipe = row.recipe(scale=scale, seed=drawn, pretraining=pretraining)
                start = {"init": f"run:{recipe.id}"} if recipe else {"encoder": row.encoder}
                given = {"study": column.study, "scale": scale, "seed": seed, **start, **column.given, **finetuning}
                jobs.append((recipe, Transfer(**given)))
            if column.reads and jobs and not jobs[0][1].filled.steps:  # it takes what the pre-training has
                why = mute(jobs[0][0]) if jobs[0][0] else ""
                jobs = [] if why else jobs
            apart = column.apart or (SYNTHETIC if scale in SMALLER else "")
            found.append(Cell(name, title, column.metric, printed, tuple(jobs), why, apart))
        return found

    def _asked(self, study: str) -> dict[str, Column]:
        """The one column of a study that stands in for a table's own; a single one's printed numbers stay beside it."""
        one_of("study", study, STUDIES)
        row, own = STUDIES[study], list(self.columns)
        title = row.title + (INSTEAD + own[0] if len(own) == 1 else "")
        return {title: Column(study, row.metric, reads=row.task in ("align", "retrieve"), apart=ANOTHER)}

    def only(self, *words: str) -> "Table":
        """The table with the rows whose names hold one of the words."""
        return replace(self, rows={name: row for name, row in self.rows.items() if any(w in name for w in words)})

    def jobs(self, **how: Any) -> list[Recipe | Transfer]:
        """What to run for all cells, each once, an init before what starts from it. Takes what `cells` takes."""
        return list(once(pair for cell in self.cells(**how) for pair in cell.jobs))

    def frame(self, **how: Any) -> "pd.DataFrame":
        """A row a cell: row, column, ours, low, high, runs, paper, deviation, difference, missing. In %.

        `low` and `high` are a 95 % interval over cases and runs (`compare.score`), `runs` how many of how many are
        done. `difference` is ours - paper, an interval in words, or why there is none; `missing` the first thing to
        run, and how many more. Takes what `cells` takes.
        """
        import pandas as pd

        return pd.DataFrame([line(cell) for cell in self.cells(**how)])

    def contrasts(self, **how: Any) -> "pd.DataFrame":
        """A row a claim and column: row, against, column, ours, low, high, runs, paper, says. In %.

        `ours` is the mean over the seeds that both rows have of row - against, with its interval over cases and runs
        (`compare.difference`); `paper` the difference of the printed numbers; `says` whether both point the same way:
        as in the paper, against the paper, no difference (0 lies in our interval), or what to run. Takes what `cells`
        takes.
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
        return pd.DataFrame([claim(cell, other) for cell, other in pairs])


def setting(recipe: Recipe, *, steps: int = 0) -> dict[str, Any]:
    """What `Table.cells` takes, as a notebook's recipe says it: its scale, its other fields, seeds from its own on.

    Three seeds, at scale demo one, and `steps` there where the recipe says 0. On the phantom every row answers one
    question, which its reports tell and which costs little: the 18 findings, by a linear probe. At the other scales
    each study has its own cohort. Raises ValueError for one of the nested sizes of the phantom, which are rows.
    """
    if recipe.size.corpus == "phantom":
        one_of("scale of a table", recipe.scale, tuple(SMALLER))
    toy, given = recipe.scale in SMALLER, {"steps": steps} if recipe.scale == "demo" else {}
    named = ("method", "encoder", "variant", "scale", "seed")
    given |= {name: value for name, value in recipe.changed.items() if name not in named}
    return {
        "scale": recipe.scale if toy else REAL,
        "seeds": tuple(recipe.seed + n for n in range(1 if recipe.scale == "demo" else len(SEEDS))),
        "pretraining": given,
        "finetuning": {"study": "findings", "probe": True} if toy else {},
    }


def wide(frame: "pd.DataFrame") -> "pd.DataFrame":
    """What `Table.frame` gives, rows x columns as in the paper: "ours (low to high) | paper", "-" for nothing."""
    shown = []
    for cell in frame.to_dict("records"):
        ours = "{ours:.1f} ({low:.1f} to {high:.1f})".format(**cell) if cell["ours"] == cell["ours"] else "-"
        spread = "" if cell["deviation"] != cell["deviation"] else "±{deviation:.2f}".format(**cell)
        shown.append(f"{ours} | " + ("-" if cell["paper"] != cell["paper"] else f"{cell['paper']:.2f}{spread}"))
    rows, columns = frame["row"].unique(), frame["column"].unique()
    table = frame.assign(shown=shown).pivot(index="row", columns="column", values="shown")
    return table.reindex(index=rows, columns=columns)
