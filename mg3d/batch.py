"""Run notebooks with checked parameters, one by one or as the jobs of a table, and keep what came out.

    python -m mg3d.batch notebooks/00_tour.ipynb notebooks/01_data.ipynb --out demo -p scale demo --html
    python -m mg3d.batch --table III scale=phantom seeds=0,1,2 --jobs 2 --dry-run

An unknown parameter stops everything before it starts. A notebook that fails does not stop the others. One that is done
with the same source and the same parameters is skipped. In the folder lie then

    00_tour.ipynb  00_tour.html        executed whole
    00_tour.failed.ipynb  00_tour.traceback.txt    executed up to the cell that failed, and why

The folder of a job (see mg3d.jobs) is that of its run; `--cluster` gives jobs to mg3d.cluster.
"""

import argparse
import asyncio
import hashlib
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mg3d import costs, lists, paths
from mg3d.html import to_html
from mg3d.jobs import NOTEBOOK, Execute, Outcome, claim, clock, finished, threads, work
from mg3d.parameters import check
from mg3d.recipe import Plan

STARTS = 3  # attempts to start a kernel
_PORT_TAKEN = "Kernel died before replying"  # two kernels that start at once can choose the same port; no cell has run
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_DRAWS = threading.Lock()  # a page's formulas are drawn by matplotlib, which is for one thread at a time
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"

Say = Callable[[str], object]


@dataclass(frozen=True)
class Result:
    """What became of one notebook."""

    notebook: Path
    status: str  # done | skipped | failed
    seconds: float
    output: Path  # the executed notebook; of a failed one, up to the cell that failed
    error: str = ""  # in one line
    traceback: Path | None = None


def run(
    notebooks: Sequence[Path | str],
    *,
    out: Path | str,
    parameters: Mapping[str, Any] | None = None,
    html: bool = True,
    again: bool = False,
    jobs: int = 1,
) -> list[Result]:
    """Execute `notebooks` into the folder `out`, `jobs` at a time; results in the order of the notebooks.

    Raises FileNotFoundError for a notebook that is not there and ValueError for a parameter that one of them does not
    have, before anything runs. `again` runs also what is done.
    """
    files = [Path(n) for n in notebooks]
    given = [check(file, parameters or {}) for file in files]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)

    def one(file: Path, values: dict[str, Any]) -> Result:
        say = partial(print, f"{file.stem}:", flush=True)
        return _run(file, values, out=out, html=html, again=again, say=say)

    if jobs == 1:
        return [one(file, values) for file, values in zip(files, given, strict=True)]
    pool = ThreadPoolExecutor(jobs)  # threads wait; each notebook has a kernel, which is a process
    try:
        with threads(jobs):
            return list(pool.map(one, files, given))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def job(plan: Plan, *, notebooks: Path = NOTEBOOKS, html: bool = False) -> Outcome:
    """Execute the notebook of a plan into the folder of its run, unless that is done. Raises Busy.

    A run that was cut off goes on from its checkpoint. What fails leaves its traceback in the folder.
    """
    name = NOTEBOOK[type(plan)]
    with claim(plan) as run:
        if finished(plan):
            return Outcome(plan, "was done")
        run.path.mkdir(parents=True, exist_ok=True)
        logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of fields that the first cell does not name
        result = _run(notebooks / name, plan.changed, out=run.path, html=html, again=True)
        if result.status == "failed":
            return Outcome(plan, "failed", result.seconds, result.error, result.traceback)
        if not run.done:
            raise RuntimeError(
                f"{notebooks / name} was executed, but {run.path} is not done: is it the plan's notebook?"
            )
        return Outcome(plan, "done", result.seconds)


def _run(
    notebook: Path, parameters: dict[str, Any], *, out: Path, html: bool, again: bool, say: Say | None = None
) -> Result:
    """Execute one notebook, unless it is done. Without `say`, nothing is told of it but the result."""
    import nbformat

    target = out / notebook.name
    key = hashlib.sha256(notebook.read_bytes() + json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    done = None if again else _done(target, key)
    begun = time.perf_counter()
    if done is None:
        executed, error = _execute(notebook, target.with_suffix(".running.ipynb"), parameters, say=say)
        seconds = time.perf_counter() - begun
        if error is not None:
            result = _failed(notebook, target, executed, error, seconds)
            _tell(say, f"failed after {clock(seconds)}: {result.error}")
            return result
        executed.metadata["mg3d"] = {"key": key, "parameters": parameters}
        paths.write_atomic(target, nbformat.writes(executed).encode())
        for left in (target.with_suffix(".failed.ipynb"), target.with_suffix(".traceback.txt")):
            left.unlink(missing_ok=True)
    if html and (done is None or not target.with_suffix(".html").exists()):
        with _DRAWS:
            page = to_html(executed if done is None else done, notebook.parent)
        paths.write_atomic(target.with_suffix(".html"), page.encode())
    seconds = time.perf_counter() - begun
    _tell(say, "is done already" if done is not None else f"done in {clock(seconds)}")
    return Result(notebook, "done" if done is None else "skipped", seconds, target)


def _done(target: Path, key: str) -> Any | None:
    """The executed notebook when it was made of this source and these parameters."""
    import nbformat

    try:
        executed = nbformat.read(target, as_version=4)
    except (OSError, ValueError):
        return None
    return executed if executed.metadata.get("mg3d", {}).get("key") == key else None


def _execute(
    notebook: Path, running: Path, parameters: dict[str, Any], *, say: Say | None
) -> tuple[Any, BaseException | None]:
    """Run a notebook in a kernel of this very environment; returns it as far as it came, and what stopped it.

    Widget states are not kept (megabytes each), and a stream's refreshed lines are made one.
    """
    import nbformat
    import papermill

    def tell(cell: Any, cell_index: int) -> None:
        if cell.cell_type == "code":
            first = next((line for line in cell.source.splitlines() if line.strip()), "")
            _tell(say, f"[{cell_index + 1}] {first}")

    _tell(say, "starts")
    error = None
    for attempt in range(STARTS):
        try:
            papermill.execute_notebook(
                str(notebook),
                str(running),
                parameters=parameters,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                store_widget_state=False,
                coalesce_streams=True,
                stderr_file=sys.stderr if say else None,
                on_cell_start=tell,
                extra_arguments=["--IPKernelApp.log_level=50"],  # the kernel warns of its local sockets at every start
            )
            error = None
        except Exception as stopped:  # whatever stops one notebook must not stop the next
            error = stopped
        finally:
            _close_loop()
        if _PORT_TAKEN not in str(error):
            break
        _tell(say, f"its kernel did not start (attempt {attempt + 1} of {STARTS})")
    executed = nbformat.read(running, as_version=4) if running.exists() else None
    running.unlink(missing_ok=True)
    return executed, error


def _close_loop() -> None:
    """Close the event loop that papermill opens in a thread and leaves there."""
    if threading.current_thread() is not threading.main_thread():
        with suppress(RuntimeError):  # there is none
            asyncio.get_event_loop().close()


def _failed(notebook: Path, target: Path, executed: Any, error: BaseException, seconds: float) -> Result:
    """Keep what a failed notebook shows, and the traceback as plain text; an older whole result stays."""
    import nbformat

    kept, text = target.with_suffix(".failed.ipynb"), target.with_suffix(".traceback.txt")
    if executed is not None:
        paths.write_atomic(kept, nbformat.writes(executed).encode())
    lines = getattr(error, "traceback", None)  # of the kernel; strings, where papermill caught it
    whole = "\n".join(lines) if isinstance(lines, list) else f"{type(error).__name__}: {error}"
    paths.write_atomic(text, (_ANSI.sub("", whole) + "\n").encode())
    said = str(getattr(error, "evalue", error)).strip().partition("\n")[0]
    line = f"{getattr(error, 'ename', type(error).__name__)}: {said}"
    return Result(notebook, "failed", seconds, kept, line, text)


def _tell(say: Say | None, text: str) -> None:
    if say is not None:
        say(text)


def report(results: Sequence[Result], out: Path) -> str:
    """A line a notebook, what failed and where its traceback is, and the folder."""
    wide = max(len(r.notebook.stem) for r in results)
    rows = [f"  {r.notebook.stem:<{wide}}  {r.status:<7}  {clock(r.seconds)}" for r in results]
    faults = [f"\n{r.notebook.name}: {r.error}\n  traceback: {r.traceback}" for r in results if r.status == "failed"]
    return "\n".join([*rows, *faults, f"\nAll of it lies in {out.resolve()}"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mg3d.batch", description="Run notebooks, or a list of jobs.")
    add = parser.add_argument
    add("words", nargs="*", help="notebooks; of jobs, name=value")
    add("--out", type=Path, help="folder for the executed notebooks")
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter of notebooks")
    add("--html", action="store_true", help="also write each as a page that needs no network")
    add("--jobs", type=int, default=1, help="how many at a time")
    add("--again", action="store_true", help="run also notebooks that are done")
    lists.options(parser)
    return parser


def _carry_out(plans: list[Plan], given: argparse.Namespace) -> int:
    """Do a list of jobs, or say what there is to do; returns the exit status."""
    if given.dry_run:
        print(costs.listing(plans, jobs=given.jobs))
        return 0
    execute: Execute = partial(job, notebooks=(given.notebooks or NOTEBOOKS).absolute(), html=given.html)
    if given.cluster:
        from mg3d import cluster

        asked = cluster.Asked(given.hours, given.gpus, given.cpus, lists.fields(given.slurm))
    if given.cluster == "slurm":
        outcomes = cluster.slurm(plans, execute, asked=asked, jobs=given.jobs)
    else:
        with threads(given.jobs):
            outcomes = work(plans, cluster.Local(execute, asked=asked) if given.cluster else execute, jobs=given.jobs)
    print("\n" + costs.report(outcomes))
    return int(any(o.status not in ("done", "was done") for o in outcomes))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, 1 when something failed, 2 when nothing was started."""
    given = _parser().parse_args(arguments)
    try:
        plans = lists.listed(given)
        if plans is not None:
            return _carry_out(plans, given)
        if not given.words or given.out is None:
            raise ValueError("name notebooks, and a folder for them with --out; or a list of jobs, e.g. --table III")
        how = {"html": given.html, "again": given.again, "jobs": given.jobs}
        results = run(given.words, out=given.out, parameters=dict(given.p), **how)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where this one was", flush=True)
        os._exit(130)  # threads that wait for kernels would hold the process; the kernels see its end and end too
    print("\n" + report(results, given.out))
    return int(any(r.status == "failed" for r in results))


if __name__ == "__main__":
    from mg3d.batch import main as importable  # what is sent to a cluster must have its name from mg3d.batch

    sys.exit(importable())
