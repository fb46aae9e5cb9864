"""Run notebooks one after the other, with checked parameters, and keep what came out.

    python -m mg3d.batch notebooks/00_tour.ipynb notebooks/01_data.ipynb --out demo -p scale demo --html

An unknown parameter stops everything before it starts. A notebook that fails does not stop the others. One that is done
with the same source and the same parameters is skipped. In the folder lie then

    00_tour.ipynb  00_tour.html        executed whole
    00_tour.failed.ipynb  00_tour.traceback.txt    executed up to the cell that failed, and why
"""

import argparse
import ast
import difflib
import hashlib
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mg3d import paths
from mg3d.html import to_html

STARTS = 3  # attempts to start a kernel
_PORT_TAKEN = "Kernel died before replying"  # two kernels that start at once can choose the same port; no cell has run
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


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
    one = partial(_run, out=out, html=html, again=again)
    if jobs == 1:
        return [one(file, values) for file, values in zip(files, given, strict=True)]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(one, files, given))


def parameters_of(notebook: Path) -> dict[str, type]:
    """Names and types of what the cell tagged `parameters` assigns."""
    import nbformat

    found: dict[str, type] = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", ()):
            for node in ast.parse(cell.source).body:
                target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
                if isinstance(target, ast.Name):
                    found[target.id] = type(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    return found


def check(notebook: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the types of the notebook's own; ValueError, listing the valid names, for an unknown one."""
    if not notebook.is_file():
        raise FileNotFoundError(f"{notebook}: no such notebook")
    known = parameters_of(notebook)
    for name in parameters:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"{notebook}: unknown parameter {name!r}{hint}; valid: {', '.join(known) or 'none'}")
    return {name: _typed(value, known[name]) for name, value in parameters.items()}


def _typed(value: Any, kind: type) -> Any:
    """A word of the command line as bool, int or float where the notebook has one; what is none stays as it is."""
    if not isinstance(value, str) or kind is str:
        return value
    if kind is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    try:
        return kind(value)
    except ValueError:
        return value  # the notebook's own check names the field


def _run(notebook: Path, parameters: dict[str, Any], *, out: Path, html: bool, again: bool) -> Result:
    """Execute one notebook, unless it is done."""
    import nbformat

    target = out / notebook.name
    key = hashlib.sha256(notebook.read_bytes() + json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    done = None if again else _done(target, key)
    begun = time.perf_counter()
    if done is None:
        _say(notebook, "starts")
        executed, error = _execute(notebook, target.with_suffix(".running.ipynb"), parameters)
        seconds = time.perf_counter() - begun
        if error is not None:
            return _failed(notebook, target, executed, error, seconds)
        executed.metadata["mg3d"] = {"key": key, "parameters": parameters}
        paths.write_atomic(target, nbformat.writes(executed).encode())
        for left in (target.with_suffix(".failed.ipynb"), target.with_suffix(".traceback.txt")):
            left.unlink(missing_ok=True)
    if html and (done is None or not target.with_suffix(".html").exists()):
        paths.write_atomic(target.with_suffix(".html"), to_html(executed if done is None else done).encode())
    seconds = time.perf_counter() - begun
    _say(notebook, "is done already" if done is not None else f"done in {_clock(seconds)}")
    return Result(notebook, "done" if done is None else "skipped", seconds, target)


def _done(target: Path, key: str) -> Any | None:
    """The executed notebook when it was made of this source and these parameters."""
    import nbformat

    try:
        executed = nbformat.read(target, as_version=4)
    except (OSError, ValueError):
        return None
    return executed if executed.metadata.get("mg3d", {}).get("key") == key else None


def _execute(notebook: Path, running: Path, parameters: dict[str, Any]) -> tuple[Any, BaseException | None]:
    """Run a notebook in a kernel of this very environment; returns it as far as it came, and what stopped it.

    Widget states are not kept (megabytes each), and a stream's refreshed lines are made one.
    """
    import nbformat
    import papermill

    def tell(cell: Any, cell_index: int) -> None:
        if cell.cell_type == "code":
            first = next((line for line in cell.source.splitlines() if line.strip()), "")
            _say(notebook, f"[{cell_index + 1}] {first}")

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
                stderr_file=sys.stderr,
                on_cell_start=tell,
                extra_arguments=["--IPKernelApp.log_level=50"],  # the kernel warns of its local sockets at every start
            )
            error = None
        except Exception as stopped:  # whatever stops one notebook must not stop the next
            error = stopped
        if _PORT_TAKEN not in str(error):
            break
        _say(notebook, f"its kernel did not start (attempt {attempt + 1} of {STARTS})")
    executed = nbformat.read(running, as_version=4) if running.exists() else None
    running.unlink(missing_ok=True)
    return executed, error


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
    _say(notebook, f"failed after {_clock(seconds)}: {line}")
    return Result(notebook, "failed", seconds, kept, line, text)


def _say(notebook: Path, text: str) -> None:
    print(f"{notebook.stem}: {text}", flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def report(results: Sequence[Result], out: Path) -> str:
    """A line a notebook, what failed and where its traceback is, and the folder."""
    wide = max(len(r.notebook.stem) for r in results)
    rows = [f"  {r.notebook.stem:<{wide}}  {r.status:<7}  {_clock(r.seconds)}" for r in results]
    faults = [f"\n{r.notebook.name}: {r.error}\n  traceback: {r.traceback}" for r in results if r.status == "failed"]
    return "\n".join([*rows, *faults, f"\nAll of it lies in {out.resolve()}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, 1 when a notebook failed, 2 when none was started."""
    parser = argparse.ArgumentParser(prog="python -m mg3d.batch", description="Run notebooks with checked parameters.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the executed notebooks")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    parser.add_argument("--html", action="store_true", help="also write each as a page that needs no network")
    parser.add_argument("--jobs", type=int, default=1, help="notebooks at a time")
    parser.add_argument("--again", action="store_true", help="run also what is done")
    given = parser.parse_args(arguments)
    try:
        results = run(
            given.notebooks,
            out=given.out,
            parameters=dict(given.p),
            html=given.html,
            again=given.again,
            jobs=given.jobs,
        )
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n" + report(results, given.out))
    return int(any(r.status == "failed" for r in results))


if __name__ == "__main__":
    sys.exit(main())
