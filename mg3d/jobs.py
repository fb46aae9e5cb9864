"""Jobs: a list of plans, carried out in the order of what they need, each once, whatever is killed in between.

A job is a plan, a Recipe or a Transfer; its record is the notebook executed for it, in the folder of its run. It is
done when both are. What is known of a list of jobs is what its runs' folders say, and nothing else: who starts the same
list again, after a kill or beside another process, goes on with it. How a job is executed is the caller's: see
mg3d.batch.
"""

import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from mg3d import paths
from mg3d.recipe import Plan, Recipe
from mg3d.runs import Run
from mg3d.transfer import REAL, Transfer

NOTEBOOK = {Recipe: "02_pretrain.ipynb", Transfer: "05_downstream.ipynb"}
DESK = ".jobs"  # in the folder of the runs: locks of jobs, and what a cluster writes
PATIENCE = 5.0  # seconds; the kernel of a killed process sees within one that it is alone, and ends
POLL = 0.5  # seconds between two looks
BUSY = 5.0  # seconds until a job that another process has is asked for again


class Busy(RuntimeError):
    """Another process has this job."""


@final
@dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    plan: Plan
    status: str  # done | was done | failed | skipped | busy
    seconds: float = 0.0
    why: str = ""  # in one line
    traceback: Path | None = None

    def __str__(self) -> str:
        took = f" in {clock(self.seconds)}" if self.status == "done" else ""
        took = f" after {clock(self.seconds)}" if self.status == "failed" else took
        return f"{self.status}{took}{self.why and ': ' + self.why}"


Execute = Callable[[Plan], Outcome]  # raises Busy


def needs(plan: Plan) -> str:
    """The id of the run that a plan starts from, "" for none."""
    return plan.run if isinstance(plan, Transfer) else ""


def finished(plan: Plan) -> bool:
    """Whether a job is done: its run is, and its notebook is executed."""
    run = Run.of(plan)
    return run.done and (run.path / NOTEBOOK[type(plan)]).exists()


def lacking(plan: Plan) -> str:
    """Why a plan cannot start, "" when it can."""
    need = needs(plan)
    if not need or Run(paths.runs() / need).done:
        return ""
    return f"it starts from {need}, which is not done"


def ordered(plans: Iterable[Plan]) -> list[Plan]:
    """Each plan once, as they come, but none before the one that it starts from. ValueError for resume=False."""
    by_id = {plan.id: plan for plan in plans}
    found: dict[str, Plan] = {}
    for plan in by_id.values():
        if not plan.resume:
            raise ValueError(f"{plan.id}: resume=False: a list of jobs goes on with what is there; run this one alone")
        for one in (by_id.get(needs(plan)), plan):
            if one is not None:
                found.setdefault(one.id, one)
    return list(found.values())


@contextmanager
def claim(plan: Plan) -> Iterator[Run]:
    """Hold a job for this process, if nobody trains its run. Raises Busy."""
    desk, run = Run(paths.runs() / DESK / plan.id), Run.of(plan)
    desk.path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        _hold(held, desk, seconds=0.0)
        if run.path.exists():
            with ExitStack() as tried:
                _hold(tried, run, seconds=PATIENCE)
        yield run


def _hold(held: ExitStack, run: Run, *, seconds: float) -> None:
    """Take the lock of a run, which may take some seconds to get free. Raises Busy."""
    until = time.monotonic() + seconds
    while True:
        try:
            held.enter_context(run.lock())
        except RuntimeError as error:
            if time.monotonic() >= until:
                raise Busy("another process is working on it") from error
            time.sleep(POLL)
        else:
            return


# carrying out ------------------------------------------------------------------------------------------------------


def work(
    plans: Iterable[Plan], execute: Execute, *, jobs: int = 1, say: Callable[[str], object] = print
) -> list[Outcome]:
    """Carry out a list of jobs, `jobs` at a time, with a line for each as it ends; outcomes in the order of `ordered`.

    A failure stops nothing but what starts from it. A job that another process has is asked for again until it is done.
    Of jobs on the same data, a second one starts when the first has prepared them.
    """
    floor = _Floor(ordered(plans), say)
    pool = ThreadPoolExecutor(jobs)
    while floor.waiting or floor.running:
        while len(floor.running) < jobs and (plan := floor.next()):
            floor.running[pool.submit(attempt, plan, execute)] = plan
        if floor.running:
            for future in wait(floor.running, timeout=POLL, return_when=FIRST_COMPLETED).done:
                floor.came_back(floor.running.pop(future), future.result())
        elif floor.waiting:
            time.sleep(POLL)
    pool.shutdown()
    return [floor.found[plan.id] for plan in floor.plans]


def attempt(plan: Plan, execute: Execute) -> Outcome:
    """The outcome of a job, whatever it raises: "busy", or "failed" with the traceback kept in the run's folder."""
    begun = time.perf_counter()
    try:
        return execute(plan)
    except Busy as busy:
        return Outcome(plan, "busy", why=str(busy))
    except Exception as error:  # whatever stops one job must not stop the next
        file = Run.of(plan).path / "job.traceback.txt"
        with suppress(OSError):
            paths.write_atomic(file, traceback.format_exc().encode())
        said = str(error).strip().partition("\n")[0]
        return Outcome(plan, "failed", time.perf_counter() - begun, f"{type(error).__name__}: {said}", file)


@final
class _Floor:
    """Which jobs wait, which run, what came of the others."""

    def __init__(self, plans: Sequence[Plan], say: Callable[[str], object]):
        self.plans, self.say = plans, say
        self.waiting = list(plans)
        self.running: dict[Future[Outcome], Plan] = {}
        self.found: dict[str, Outcome] = {}
        self.again: dict[str, float] = {}  # when to ask again for what another process has

    def next(self) -> Plan | None:
        """Take the first job that can start; those that are done, or never can, are settled on the way."""
        for plan in list(self.waiting):
            why = lacking(plan)
            if finished(plan):
                self.settle(Outcome(plan, "was done"))
            elif why and needs(plan) not in {p.id for p in (*self.waiting, *self.running.values())}:
                before = self.found.get(needs(plan))
                self.settle(Outcome(plan, "skipped", why=f"{why} ({before.status if before else 'not in this list'})"))
            elif not why and self.again.get(plan.id, 0.0) <= time.monotonic() and not self._in_preparation(plan):
                self.waiting.remove(plan)
                return plan
        return None

    def _in_preparation(self, plan: Plan) -> bool:
        """Whether a running job has yet to prepare the data that a plan needs: it writes its plan's file after that."""
        beside = [p for p in self.running.values() if _data_of(p) == _data_of(plan)]
        return any(not (Run.of(p).path / p.FILE).exists() for p in beside)

    def came_back(self, plan: Plan, outcome: Outcome) -> None:
        """Settle a job, or put it back when another process has it."""
        if outcome.status != "busy":
            return self.settle(outcome)
        if plan.id not in self.again:
            self.say(f"{plan.id} waits: {outcome.why}")
        self.again[plan.id] = time.monotonic() + BUSY
        return self.waiting.append(plan)

    def settle(self, outcome: Outcome) -> None:
        """Note what became of a job, and say it."""
        self.waiting = [p for p in self.waiting if p.id != outcome.plan.id]
        self.found[outcome.plan.id] = outcome
        self.say(f"[{len(self.found)}/{len(self.plans)}] {outcome.plan.id}: {outcome}")


def _data_of(plan: Plan) -> tuple[str, ...]:
    """What tells the data of two plans apart."""
    scale, data = getattr(plan, "scale", ""), getattr(plan, "data", "")
    return (scale, data, plan.row.cohort) if isinstance(plan, Transfer) and scale == REAL else (scale, data)


@contextmanager
def threads(jobs: int) -> Iterator[None]:
    """Share the cores among `jobs` processes started in the block, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" in os.environ or jobs == 1:
        yield
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores // jobs))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
