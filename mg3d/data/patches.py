"""Volumes seen through patches, for segmentation: how they are prepared (at a spacing), and batches of patches.

As with whole volumes nothing is random but a pure function of the seed and of the step: epoch e is a permutation of the
entries, and where in its volume the k-th sample of a run lies is drawn from (seed, k). `masks.py` prepares.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Int, Shaped

from mg3d.data import frame
from mg3d.data.loader import IN_ORDER, ahead, seeds
from mg3d.data.store import DamagedCache, Entry
from mg3d.types import Batch

VERSION = 1  # of the numbers that preparation gives; raise it when they change, so that old caches are not taken
BY_PERCENTILES = (0.0, 0.0)  # the window of what has no units, as MRI: each volume's own percentiles
PERCENTILES = (0.5, 99.5)  # these


@dataclass(frozen=True)
class PatchSpec:
    """How volumes and masks are prepared, in the order D, H, W.

    `spacing_mm` of a prepared voxel; the window in HU, or (0, 0) for each volume's own percentiles 0.5 to 99.5 (MRI);
    the voxels of a `patch`; the share of patches that are drawn to hold `foreground`.
    """

    spacing_mm: tuple[float, float, float]
    window_hu: tuple[float, float]
    patch: tuple[int, int, int]
    foreground: float = 0.5

    def __post_init__(self) -> None:
        if len(self.spacing_mm) != 3 or not min(self.spacing_mm) > 0:
            raise ValueError(f"spacing_mm={self.spacing_mm}: three lengths (D, H, W) above 0 are needed")
        if len(self.patch) != 3 or min(self.patch) < 1:
            raise ValueError(f"patch={self.patch}: three numbers of voxels (D, H, W) are needed")
        if tuple(self.window_hu) != BY_PERCENTILES and not self.window_hu[0] < self.window_hu[1]:
            raise ValueError(
                f"window_hu={self.window_hu}: the lower bound must lie below the upper one, or (0, 0) for percentiles"
            )
        if not 0 <= self.foreground <= 1:
            raise ValueError(f"foreground={self.foreground}: a share from 0 to 1 is needed")

    @property
    def hash(self) -> str:
        """Eight hex digits of what shapes the prepared numbers (not of the patches); the same on every machine."""
        fields = (tuple(map(float, self.spacing_mm)), tuple(map(float, self.window_hu)), VERSION, frame.VERSION)
        return sha256(repr(fields).encode()).hexdigest()[:8]


def mask_path(entry: Entry) -> Path:
    """Where the prepared mask of an entry lies: uint8 [D, H, W]."""
    return entry.array.with_suffix(".mask.npy")


def places_path(entry: Entry) -> Path:
    """Where an entry keeps voxels of its foreground: int32 [n, 4], each a label and its place d, h, w."""
    return entry.array.with_suffix(".places.npy")


def load_mask(entry: Entry) -> Shaped[np.ndarray, "D H W"]:
    """The prepared mask as a memory map, uint8. Raises DamagedCache."""
    return _load(mask_path(entry), np.uint8, 3)


@final
class PatchLoader:
    """Batches of patches for training (`steps`), and whole volumes one by one for validation and testing (`all`).

    `batch` is the number of patches a rank and a step, each of another volume as long as there are enough. A patch that
    is to hold foreground is any that contains a voxel of a class drawn among the classes of its volume; of a class, one
    voxel among those kept. The others lie anywhere. What a volume is smaller than the patch is padded on both sides
    with the lowest value and with background. Raises ValueError when there is no entry.
    """

    def __init__(
        self, entries: Sequence[Entry], *, spec: PatchSpec, batch: int, seed: int, rank: int = 0, world: int = 1
    ):
        if not entries:
            raise ValueError("there is no entry to load; prepare a cohort first, and see its quarantine.csv")
        if batch < 1 or not 0 <= rank < world:
            raise ValueError(f"batch={batch}, rank={rank}, world={world}: batch >= 1 and 0 <= rank < world are needed")
        self.entries, self.spec = list(entries), spec
        self.size, self.seed, self.rank, self.world = batch, seed, rank, world
        self._epoch = lru_cache(maxsize=4)(self._permutation)

    @property
    def count(self) -> int:
        """How many entries `all` reads."""
        return len(self.entries)

    def batch(self, step: int) -> Batch:
        """The patches of a step (from 0 on) on this rank: volume [B, 1, *patch], target int64 [B, *patch].

        Raises DamagedCache, which names the file and the mend.
        """
        first = (step * self.world + self.rank) * self.size
        samples = np.arange(first, first + self.size)
        epochs, places = np.divmod(samples, len(self.entries))
        chosen = [self.entries[int(self._epoch(int(e))[p])] for e, p in zip(epochs, places, strict=True)]
        drawn = seeds(self.seed, samples)
        volume = torch.zeros(len(chosen), 1, *self.spec.patch)
        target = torch.zeros(len(chosen), *self.spec.patch, dtype=torch.int64)
        for i, entry in enumerate(chosen):
            found, mask = entry.load(), load_mask(entry)
            if found.shape != mask.shape:
                raise DamagedCache(mask_path(entry), f"shape {mask.shape}, its volume has {found.shape}")
            corner = self._corner(entry, found.shape, np.random.default_rng(int(drawn[i])))
            there, here = _overlap(corner, found.shape, self.spec.patch)
            volume[i, 0][here] = torch.from_numpy(found[there].astype(np.float32))
            target[i][here] = torch.from_numpy(mask[there].astype(np.int64))
        return Batch(volume, tuple(entry.case.id for entry in chosen), drawn, target=target)

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches number start ... stop - 1. One thread reads ahead; what it raises is raised here."""
        return ahead(self.batch, range(start, stop))

    def all(self) -> Iterator[Batch]:
        """Every entry once, whole, one a batch, in order, whatever the rank: volume [1, 1, D, H, W], target uint8
        [1, D, H, W], or None where the case has no mask."""
        return ahead(self._whole, range(len(self.entries)))

    def _whole(self, place: int) -> Batch:
        entry = self.entries[place]
        target = None if entry.case.mask is None else torch.from_numpy(load_mask(entry).copy())[None]
        volume = torch.from_numpy(entry.load().astype(np.float32))[None, None]
        return Batch(volume, (entry.case.id,), seeds(self.seed, np.array([place + IN_ORDER])), target=target)

    def _permutation(self, epoch: int) -> Int[np.ndarray, " n"]:
        return np.random.default_rng([self.seed % 2**64, epoch]).permutation(len(self.entries))

    def _corner(self, entry: Entry, shape: tuple[int, ...], rng: np.random.Generator) -> list[int]:
        """The first voxel of a patch in its volume; negative where the volume is smaller."""
        wanted = rng.random() < self.spec.foreground
        places = _load(places_path(entry), np.int32, 2)
        voxel = None
        if wanted and len(places):
            some = places[places[:, 0] == rng.choice(np.unique(places[:, 0]))]
            voxel = some[rng.integers(len(some)), 1:].tolist()
        corner = []
        for axis, (n, p) in enumerate(zip(shape, self.spec.patch, strict=True)):
            low, high = (0, n - p) if voxel is None else (max(0, voxel[axis] - p + 1), min(voxel[axis], n - p))
            corner.append(int(rng.integers(low, high + 1)) if n > p else -((p - n) // 2))
        return corner


def _overlap(
    corner: Sequence[int], shape: Sequence[int], patch: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What a patch at `corner` shares with its volume: there, and in the patch."""
    ends = [(max(0, c), min(n, c + p)) for c, n, p in zip(corner, shape, patch, strict=True)]
    there = tuple(slice(a, b) for a, b in ends)
    return there, tuple(slice(a - c, b - c) for c, (a, b) in zip(corner, ends, strict=True))


def _load(path: Path, kind: type, axes: int) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DamagedCache(path, f"not readable ({error})") from error
    if found.dtype != kind or found.ndim != axes:
        raise DamagedCache(path, f"{found.dtype} of shape {found.shape} is no such file")
    return found
