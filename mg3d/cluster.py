"""Jobs on a cluster, by submitit: as job arrays of Slurm, or each in a process of this machine with a GPU of its own.

A job that is about to be taken away (its time is up, or somebody goes before) is queued again and goes on from the last
checkpoint of its run. The folder of the runs, MG3D_HOME, must be seen by all nodes. Logs: runs/.jobs.
"""

import os
import queue
import secrets
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from mg3d import paths
from mg3d.jobs import DESK, Busy, Execute, Outcome, attempt, finished, lacking, needs, ordered
from mg3d.recipe import Plan
from mg3d.runs import Run

REQUEUES = 100  # of a job whose time was up
MONTH_MIN = 60.0 * 24 * 30  # on one machine no job's time is up
LAG = 30.0  # seconds until a shared file system shows what a node wrote


@final
@dataclass(frozen=True)
class Asked:
    """What is asked of a cluster for a job."""

    hours: float = 24.0
    gpus: int | None = None  # None: what the plan says, one
    cpus: int = 8
    more: Mapping[str, str] = field(default_factory=dict)  # options of sbatch: partition, account, mem ...

    def gpus_of(self, plan: Plan) -> int:
        """GPUs of one job."""
        return getattr(plan, "gpus", 1) if self.gpus is None else self.gpus


@final
@dataclass(frozen=True)
class Remote:
    """A job as it is sent: called on its node."""

    execute: Execute
    plan: Plan
    home: str

    def __call__(self) -> Outcome:
        """The outcome; "busy" when another process has the job."""
        os.environ["MG3D_HOME"] = self.home
        if "SLURM_CPUS_PER_TASK" in os.environ:
            os.environ.setdefault("OMP_NUM_THREADS", os.environ["SLURM_CPUS_PER_TASK"])
        if why := lacking(self.plan):
            return Outcome(self.plan, "skipped", why=why)
        return attempt(self.plan, self.execute)

    def checkpoint(self) -> Any:
        """What submitit queues again: the same, since the run's own checkpoint says how far it is."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


# one machine -------------------------------------------------------------------------------------------------------


@final
class Local:
    """Executes a job in a process of its own on this machine, with as many GPUs as it asks for to itself.

    Such a process outlives the one that started it. Jobs wait for GPUs; where there are none they run without.
    """

    def __init__(self, execute: Execute, *, asked: Asked | None = None, gpus: Sequence[int] | None = None):
        """`gpus` are the numbers of the GPUs to use; default: all that this process sees."""
        self.execute, self.asked = execute, asked or Asked()
        self.gpus = seen() if gpus is None else list(gpus)
        self._free: queue.Queue[int] = queue.Queue()
        for gpu in self.gpus:
            self._free.put(gpu)
        self._taking = threading.Lock()

    def __call__(self, plan: Plan) -> Outcome:
        """The outcome of a job. Raises Busy, ValueError for more GPUs than there are, and what submitit raises."""
        from submitit import LocalExecutor

        count = self.asked.gpus_of(plan) if self.gpus else 0
        if count > len(self.gpus):
            raise ValueError(f"{plan.id} asks for {count} GPUs, and {len(self.gpus)} are there")
        with self._taking:  # one after the other, or two would wait for each other's
            mine = [self._free.get() for _ in range(count)]
        try:
            executor = LocalExecutor(paths.runs() / DESK / plan.id / secrets.token_hex(4), max_num_timeout=REQUEUES)
            executor.update_parameters(timeout_min=MONTH_MIN, gpus_per_node=count, visible_gpus=tuple(mine))
            outcome = executor.submit(Remote(self.execute, plan, str(paths.home()))).result()
        finally:
            for gpu in mine:
                self._free.put(gpu)
        if outcome.status == "busy":
            raise Busy(outcome.why)
        return outcome


def seen() -> list[int]:
    """The numbers of the GPUs that this process sees, as CUDA_VISIBLE_DEVICES counts."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [int(word) for word in named.split(",") if word.strip()]
    import torch

    return list(range(torch.cuda.device_count()))


# Slurm -------------------------------------------------------------------------------------------------------------


def slurm(
    plans: Sequence[Plan],
    execute: Execute,
    *,
    asked: Asked | None = None,
    jobs: int = 1,
    say: Callable[[str], object] = print,
    poll: float = 10.0,
) -> list[Outcome]:
    """Send a list of jobs as job arrays, `jobs` of an array at a time, and wait, with a line for each as it ends.

    What starts from a run of the list is an array of its own, which Slurm holds back until that run's job has ended.
    Who stops waiting stops nothing: the same call finds what is queued, and sends the rest. Returns outcomes in the
    order of `mg3d.jobs.ordered`. Raises FileNotFoundError where Slurm's commands are missing.
    """
    plans = ordered(plans)
    found = {p.id: Outcome(p, "was done") for p in plans if finished(p)}
    queued = {p.id: job for p in plans if (job := _sent(p)) and p.id not in found}
    alive = _alive()
    queued = {i: job for i, job in queued.items() if job in alive}
    rest = [p for p in plans if p.id not in found and p.id not in queued]
    for plan in rest:
        if lacking(plan) and needs(plan) not in {p.id for p in plans}:
            found[plan.id] = Outcome(plan, "skipped", why=f"{lacking(plan)} (not in this list)")
    for group in _arrays([p for p in rest if p.id not in found], asked or Asked()):
        after = sorted({queued[needs(p)] for p in group if needs(p) in queued})
        queued |= _send(group, execute, asked=asked or Asked(), jobs=jobs, after=after)
    for number, outcome in enumerate(found.values(), start=1):
        say(f"[{number}/{len(plans)}] {outcome.plan.id}: {outcome}")
    if queued:
        say(f"with Slurm, {len(queued)} of them: {', '.join(sorted({j.split('_')[0] for j in queued.values()}))}")
    by_id = {p.id: p for p in plans}
    while queued:
        time.sleep(poll)
        try:
            alive = _alive()
        except RuntimeError as error:  # a busy controller does not always answer
            say(str(error))
            continue
        for name in [i for i, job in queued.items() if job not in alive]:
            found[name] = _outcome(by_id[name], queued.pop(name))
            say(f"[{len(found)}/{len(plans)}] {name}: {found[name]}")
    return [found[p.id] for p in plans]


def _arrays(plans: Sequence[Plan], asked: Asked) -> list[list[Plan]]:
    """Plans that go into one array: alike in what they ask for, first those that start from nothing in the list."""
    ids = {p.id for p in plans}
    groups: dict[tuple[str, int], list[Plan]] = {}
    for plan in sorted(plans, key=lambda p: needs(p) in ids):
        first = needs(plan) if lacking(plan) else ""
        groups.setdefault((first, asked.gpus_of(plan)), []).append(plan)
    return list(groups.values())


def _send(plans: Sequence[Plan], execute: Execute, *, asked: Asked, jobs: int, after: Sequence[str]) -> dict[str, str]:
    """Queue plans as one array that starts after other jobs; the number of each plan's job, noted on its desk."""
    from submitit import SlurmExecutor

    executor = SlurmExecutor(paths.runs() / DESK / "%j", max_num_timeout=REQUEUES)
    gpus = asked.gpus_of(plans[0])
    executor.update_parameters(
        job_name="mg3d",
        time=max(1, round(60 * asked.hours)),
        cpus_per_task=asked.cpus,
        array_parallelism=jobs,
        dependency=f"afterany:{':'.join(after)}" if after else None,
        gpus_per_node=gpus or None,
        additional_parameters={"requeue": True, **asked.more},
    )
    sent = executor.submit_array([Remote(execute, p, str(paths.home())) for p in plans])
    numbers = {p.id: job.job_id for p, job in zip(plans, sent, strict=True)}
    for name, number in numbers.items():
        paths.write_atomic(paths.runs() / DESK / name / "slurm", number.encode())
    return numbers


def _sent(plan: Plan) -> str:
    """The number of the job that a plan was last sent as, "" for never."""
    file = paths.runs() / DESK / plan.id / "slurm"
    return file.read_text() if file.exists() else ""


def _alive() -> set[str]:
    """Numbers of the jobs that Slurm has, each of an array by itself. Raises FileNotFoundError, RuntimeError."""
    command = ["squeue", "--noheader", "--array", "--user", str(os.getuid()), "--format", "%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise FileNotFoundError("squeue is not there: start this on a machine that can submit to Slurm") from None
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip()}; what was sent goes on")
    return set(done.stdout.split())


def _outcome(plan: Plan, number: str) -> Outcome:
    """What became of a job that Slurm no longer has."""
    from submitit import SlurmJob

    job: SlurmJob[Outcome] = SlurmJob(paths.runs() / DESK / "%j", number)
    until = time.monotonic() + LAG
    while not (job.paths.result_pickle.exists() or finished(plan)) and time.monotonic() < until:
        time.sleep(1)
    if job.paths.result_pickle.exists():
        return job.result()
    if finished(plan):
        return Outcome(plan, "done")
    why = f"job {number} left the queue without a word; its run is at step {Run.of(plan).step} and goes on next time"
    return Outcome(plan, "failed", why=why, traceback=job.paths.stderr)
