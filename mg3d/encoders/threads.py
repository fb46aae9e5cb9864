"""Calls on as many threads as torch may use, each with products on one core.

Many small products are faster side by side than each cut into halves: the halves wait for one another after every one
of them, and for ever so long when another program has one of the cores.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

Result = TypeVar("Result")


def scatter(work: Sequence[Callable[[], Result]]) -> list[Result]:
    """The results of all calls, in order. They run without gradients and without autocast.

    torch releases Python's lock inside its operations, so threads suffice.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(work) == 1:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return [call() for call in work]
    torch.set_num_threads(1)  # for the libraries below torch this holds for all threads
    try:
        return [call.result() for call in [_pool(threads).submit(_alone, one) for one in work]]
    finally:
        torch.set_num_threads(threads)


def _alone(call: Callable[[], Result]) -> Result:
    """A call on a thread of the pool: modes and the number of cores are a thread's own."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    with torch.no_grad():
        return call()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="scatter")
