"""Jobs over processes, where one that is killed (as Linux kills what eats the memory) costs its own job alone."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def scatter(
    work: Callable[[Job], Result], jobs: Sequence[Job], *, lost: Callable[[Job], Result], workers: int
) -> Iterator[tuple[Job, Result]]:
    """Yield each job with `work(job)` as they get done, in any order. `work` and the jobs must pickle.

    With one worker all is done in this process. When a process dies, each job that was under way is tried again in a
    process of its own; the one that kills that too gives `lost(job)`. What `work` raises is raised here, with a note
    that names the job. Raises RuntimeError when no process can be started.
    """
    if workers <= 1:
        for job in jobs:
            with _named(job):
                result = work(job)
            yield job, result
        return
    waiting = deque(jobs)
    while waiting:
        running: dict[Future, Job] = {}
        try:
            with _processes(workers) as pool:
                while waiting or running:
                    while waiting and len(running) < workers:
                        job = waiting.popleft()
                        running[pool.submit(work, job)] = job
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        with _named(running[future]):
                            result = future.result()
                        yield running.pop(future), result
        except BrokenProcessPool:
            for job in running.values():
                yield job, _alone(work, job, lost)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _alone(work: Callable[[Job], Result], job: Job, lost: Callable[[Job], Result]) -> Result:
    """The result of a suspect job in a process of its own."""
    with _processes(1) as pool:
        try:
            with _named(job):
                return pool.submit(work, job).result()
        except BrokenProcessPool:
            return lost(job)


@contextmanager
def _named(job: object) -> Iterator[None]:
    """Say in a note to an error which job it is of."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while working on {getattr(job, 'id', job)}")  # never a report's text
        raise


def _processes(workers: int) -> ProcessPoolExecutor:
    """Worker processes that are known to start. Never forked from this one, whose threads a copy would not have."""
    kinds = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["mg3d.data.prepare", "mg3d.data.reading"])  # torch is imported once
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start)
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "no worker process could be started; in a script, put the call under `if __name__ == '__main__':`, "
            "or pass workers=1"
        ) from error
    return pool


def _start() -> None:
    """In a worker: one thread, and an end as soon as the parent is gone, even if it was killed."""
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent) -> None:
    parent.join()
    os._exit(1)
