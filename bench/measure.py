"""How the benches measure: in turns (A B A B), medians, memory by the peak of a fresh process, one form of table."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import mg3d  # noqa: F401  before torch: it sets how long waiting threads spin, as in every run

HEAD = ("what", "goal", "measured", "met", "command")


@dataclass(frozen=True)
class Line:
    """A line of the table of goals; `met` is None where there is no goal."""

    what: str
    goal: str
    measured: str
    met: bool | None


def arguments(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with --repeats and --threads; `defaults` set these and whatever a bench adds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, help="turns; medians are taken over them")
    parser.add_argument("--threads", type=int)
    parser.set_defaults(**{"repeats": 3, "threads": 2, **defaults})
    return parser


def in_turns(rows: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each row, run A B C A B C ..., so that what slows the machine for a while slows all rows."""
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    for _ in range(repeats):
        for row, run in rows.items():
            start = time.perf_counter()
            run()
            seconds[row].append(time.perf_counter() - start)
    return {row: statistics.median(found) for row, found in seconds.items()}


def fresh(file: str, *words: object) -> Any:
    """What `python file words...` prints last, as JSON: a process of its own, whose peak memory is its own."""
    done = subprocess.run([sys.executable, file, *map(str, words)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{Path(file).name} {' '.join(map(str, words))} ended with {done.returncode} (-9: no memory)"
        )
    return json.loads(done.stdout.splitlines()[-1])


def peak_mb() -> float:
    """Most memory that this process has held so far, in MB, what the imports take included (Linux)."""
    status = Path("/proc/self/status").read_text()  # ru_maxrss would hold the parent's peak as well
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def machine(threads: int) -> str:
    """Processor, threads, versions, and how busy the machine is."""
    import torch

    names = [x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model n")]
    flags = Path("/proc/cpuinfo").read_text()
    half = "with" if "avx512_bf16" in flags or "amx_bf16" in flags else "without"
    load = f"load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores"
    return f"{names[0] if names else 'CPU'} ({half} bf16), {threads} threads, torch {torch.__version__}, {load}"


def phantom_report(number: int) -> list[str]:
    """The sentences of the report of a phantom case, 15 to 25 of them."""
    from mg3d.data.phantom.plan import draw
    from mg3d.data.phantom.report import write

    return [s.text for s in write(draw(number, split="train", seed=0))]


def table(lines: Sequence[Line], file: str) -> None:
    """Print lines of the table of goals, each with the command that gives it."""
    marks = {True: "yes", False: "no", None: ""}
    for line in lines:
        what, goal, measured, met = astuple(line)
        print("|", " | ".join((what, goal, measured, marks[met], f"`python bench/{Path(file).name}`")), "|", flush=True)
