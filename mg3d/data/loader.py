"""From prepared volumes to batches: nothing random but the order, a pure function of the seed and of the step.

Epoch e is the permutation of the entries that (seed, e) draws, and the epochs, one after the other, are one endless
list of samples. With b samples a rank and w ranks, step t takes the samples b w t ... b w (t + 1) - 1, and rank r the
r-th b of them, so that w ranks see what one process with a batch of b w sees. There is no state to save: a run goes on
at step t by asking for step t.
"""

import math
import mmap
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mg3d.data.store import DamagedCache, Entry
from mg3d.types import Batch, Report

AHEAD = 2  # batches that are read before they are asked for
SERIAL = 2**15  # torch copies up to this many numbers in one thread; more would take cores from the training
FRESH = 2**25
IN_ORDER = 2**62  # samples that `all` yields count from here, so that they share no seed with training


@final
class Loader:
    """Batches of prepared volumes, with their tokenised reports and their targets.

    `batch` is the number of samples a rank and a step. `labels` names columns of `Case.labels` for `Batch.target`,
    float32 [B, len(labels)]; or `target` makes it from the entries of a batch. Raises ValueError when there is no
    entry, or when a case lacks a label.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        batch: int,
        seed: int,
        tokenise: Callable[[Sequence[str]], Report] | None = None,
        labels: Sequence[str] | None = None,
        target: Callable[[Sequence[Entry]], Tensor] | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        if not entries:
            raise ValueError("there is no entry to load; prepare a corpus first, and see its quarantine.csv")
        if batch < 1 or not 0 <= rank < world:
            raise ValueError(f"batch={batch}, rank={rank}, world={world}: batch >= 1 and 0 <= rank < world are needed")
        if labels is not None and target is not None:
            raise ValueError("give labels or target, not both")
        self.entries = list(entries)
        self.size, self.seed, self.rank, self.world = batch, seed, rank, world
        self._tokenise = tokenise
        self._target = _columns(self.entries, labels) if labels is not None else target
        self._epoch = lru_cache(maxsize=4)(self._permutation)

    @property
    def count(self) -> int:
        """How many entries `all` reads."""
        return len(self.entries)

    def batch(self, step: int) -> Batch:
        """The batch of a step (from 0 on) on this rank. Raises DamagedCache, which names the file and the mend."""
        first = (step * self.world + self.rank) * self.size
        samples = np.arange(first, first + self.size)
        epochs, places = np.divmod(samples, len(self.entries))
        return self._read([int(self._epoch(int(e))[p]) for e, p in zip(epochs, places, strict=True)], samples)

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches number start ... stop - 1. One thread reads ahead; what it raises is raised here."""
        return ahead(self.batch, range(start, stop))

    def all(self) -> Iterator[Batch]:
        """Every entry once, in order, whatever the rank; the last batch may be smaller."""
        return ahead(self._chunk, range(0, len(self.entries), self.size))

    def _chunk(self, first: int) -> Batch:
        places = np.arange(first, min(first + self.size, len(self.entries)))
        return self._read(places.tolist(), places + IN_ORDER)

    def _permutation(self, epoch: int) -> Int[np.ndarray, " n"]:
        return np.random.default_rng([self.seed % 2**64, epoch]).permutation(len(self.entries))

    def _read(self, places: list[int], samples: Int[np.ndarray, " B"]) -> Batch:
        chosen = [self.entries[p] for p in places]
        maps = [entry.load() for entry in chosen]
        volume = _room((len(chosen), 1, *maps[0].shape))
        for entry, found, out in zip(chosen, maps, volume, strict=True):
            if found.shape != maps[0].shape:
                detail = f"shape {found.shape} in a batch of {maps[0].shape}, prepared with another spec"
                raise DamagedCache(entry.array, detail)
            for a, b in zip(out.view(-1).split(SERIAL), torch.from_numpy(found).view(-1).split(SERIAL), strict=True):
                a.copy_(b)
        return Batch(
            volume=volume,
            ids=tuple(entry.case.id for entry in chosen),
            seeds=seeds(self.seed, samples),
            report=self._tokenise([entry.case.report for entry in chosen]) if self._tokenise else None,
            target=self._target(chosen) if self._target else None,
        )


def seeds(seed: int, samples: Int[np.ndarray, " B"]) -> Int[Tensor, "B"]:
    """A number below 2^63 for each sample of a run: splitmix64 of the run's seed and the sample's place."""
    run = _mix(np.array([seed % 2**64], dtype=np.uint64))
    return torch.from_numpy((_mix(run ^ samples.astype(np.uint64)) >> np.uint64(1)).astype(np.int64))


def _mix(x: np.ndarray) -> np.ndarray:
    """The output function of splitmix64 (Steele et al. 2014): a bijection of 64-bit numbers that leaves no pattern."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _room(shape: tuple[int, ...]) -> Tensor:
    """Memory for float32 numbers; a large block in pages of 2 MB, where Linux has them.

    The C library takes blocks of FRESH bytes from the system each time, and in pages of 4 kB that takes three times as
    long as to read the volumes; smaller blocks it uses again.
    """
    size = 4 * math.prod(shape)
    if size < FRESH or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape)
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without large pages
        room.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(room, dtype=torch.float32).view(shape)


def _columns(entries: Sequence[Entry], labels: Sequence[str]) -> Callable[[Sequence[Entry]], Float[Tensor, "B n"]]:
    """What makes the labels of a batch, once it is sure that every case has them."""
    for entry in entries:
        missing = [name for name in labels if name not in entry.case.labels]
        if missing:
            known = ", ".join(entry.case.labels) or "none"
            raise ValueError(f"case {entry.case.id} has no label {missing[0]!r}; it has: {known}")

    def target(chosen: Sequence[Entry]) -> Float[Tensor, "B n"]:
        return torch.tensor([[float(entry.case.labels[name]) for name in labels] for entry in chosen])

    return target


def ahead(read: Callable[[int], Batch], numbers: range) -> Iterator[Batch]:
    """`read(n)` for each n, in order, AHEAD of them under way in one thread, which ends with the iterator."""
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
        waiting = deque()
        try:
            for n in numbers:
                waiting.append(thread.submit(read, n))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
