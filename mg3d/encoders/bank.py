"""Features of a frozen text encoder, computed once per distinct row of token ids and kept in memory-mapped fp16 files.

An item is one row of ids, without padding; it owns one or more rows of features (one for a sentence, one per token for
a whole report). Items are found by two 64-bit polynomial hashes of their ids, so a look-up is a sorted search and a
gather. Which items share a file depends on the items alone: a fill that is killed and started again ends with the same
files, bit for bit.
"""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int, UInt64

from mg3d import paths

BASES = np.array([0x9E3779B97F4A7C15, 0xD1B54A32D192ED03], dtype=np.uint64)  # odd, so that powers never vanish
SHARD_BYTES = 32 << 20
SHARDS = 256  # at most, since each open file keeps a descriptor

Encode = Callable[[list[np.ndarray]], list[np.ndarray]]  # id rows of one length -> features [rows, E] of each, fp16


def fingerprints(ids: Int[np.ndarray, "n L"], *, pad: int) -> UInt64[np.ndarray, "n 2"]:
    """Two 64-bit hashes of each row of ids; padding at its end does not count.

    h_k = sum_i (id_i + 1) b_k^i modulo 2^64 for i = 1 ... L, then mixed.
    """
    powers = np.multiply.accumulate(np.broadcast_to(BASES, (ids.shape[1], 2)), axis=0)
    values = np.where(ids != pad, ids + 1, 0).astype(np.uint64)
    h = np.stack([(values * powers[:, k]).sum(1, dtype=np.uint64) for k in range(2)], axis=1)
    h = (h ^ (h >> np.uint64(31))) * BASES[::-1]
    return h ^ (h >> np.uint64(29))


def distinct(
    ids: Int[np.ndarray, "n L"], *, pad: int
) -> tuple[list[np.ndarray], UInt64[np.ndarray, "m 2"], Int[np.ndarray, " n"]]:
    """The m distinct rows without padding, their hashes, and which of them each row is."""
    keys, first, copy = np.unique(fingerprints(ids, pad=pad), axis=0, return_index=True, return_inverse=True)
    return [row[row != pad].astype(np.int32) for row in ids[first]], keys, copy.reshape(-1)


@final
class Bank:
    """Features of one kind ("words" or "sentences"). Empty until it is filled; then it still computes what it lacks."""

    def __init__(self, kind: str, width: int, *, group: int):
        """`group` items of one length are encoded at a time; each item has `width` numbers a row."""
        self.kind, self.width, self.group = kind, width, group
        self.keys = np.empty((0, 2), dtype=np.uint64)  # sorted by the first hash
        self.place = np.empty((0, 3), dtype=np.int64)  # of each key: number of its file, first row there, rows
        self.files: list[np.ndarray] = []

    def recall(self, ids: Int[np.ndarray, "n L"], *, pad: int, encode: Encode) -> Float[np.ndarray, "R E"]:
        """Features of n padded items, one after the other, fp16: read, or computed where they are not kept."""
        place = self._find(fingerprints(ids, pad=pad))
        if (place >= 0).all():
            return self._read(place)
        rows, keys, copy = distinct(ids, pad=pad)
        place = self._find(keys)
        new = np.flatnonzero(place < 0)
        parts = dict(zip(new, in_groups([rows[i] for i in new], encode, self.group), strict=True))
        parts |= {i: self._read(place[i : i + 1]) for i in np.flatnonzero(place >= 0)}
        return np.concatenate([parts[i] for i in copy])

    def fill(
        self, rows: list[np.ndarray], keys: UInt64[np.ndarray, "n 2"], *, encode: Encode, folder: Path, bar: Any
    ) -> None:
        """Compute the items that no file in `folder` holds yet, and know all of them from now on.

        rows, keys: the ids of each item without padding, and their hashes; one item may come many times. `encode` gets
        `group` items of one length, so that each is computed in the same shape whatever else is kept.
        `bar` is a progress bar of tqdm.
        Two items with the same first hash share a place that only one can have; the other is computed when asked for.
        """
        order = np.lexsort(keys.T[::-1])
        order = order[np.unique(keys[order, 0], return_index=True)[1]]
        order = order[self._find(keys[order]) < 0]
        bar.reset(len(order))

        size = np.array([len(rows[i]) if self.kind == "words" else 1 for i in order], dtype=np.int64)
        shards = min(SHARDS, 1 << (int(size.sum()) * self.width * 2 // SHARD_BYTES).bit_length())
        bucket = keys[order, 0] % np.uint64(shards)
        place = np.empty((len(order), 3), dtype=np.int64)
        for number in np.unique(bucket):
            mine = np.flatnonzero(bucket == number)
            place[mine] = np.stack([np.full_like(mine, len(self.files)), starts(size[mine]), size[mine]], axis=1)
            self.files.append(self._file([rows[i] for i in order[mine]], int(size[mine].sum()), encode, folder, bar))
        self.keys, self.place = np.concatenate([self.keys, keys[order]]), np.concatenate([self.place, place])
        known = np.unique(self.keys[:, 0], return_index=True)[1]  # the older one of two stays
        self.keys, self.place = self.keys[known], self.place[known]

    def _find(self, keys: UInt64[np.ndarray, "n 2"]) -> Int[np.ndarray, " n"]:
        """Number of each key among those that are kept, else -1."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        found = np.searchsorted(self.keys[:, 0], keys[:, 0]).clip(max=len(self.keys) - 1)
        return np.where((self.keys[found] == keys).all(1), found, -1)

    def _read(self, found: Int[np.ndarray, " n"]) -> Float[np.ndarray, "R E"]:
        shard, first, size = self.place[found].T
        out = np.empty((int(size.sum()), self.width), dtype=np.float16)
        source = np.repeat(first - starts(size), size) + np.arange(len(out))
        shard = np.repeat(shard, size)
        for number in np.unique(shard):  # a loop over files, not over items
            mine = shard == number
            out[mine] = self.files[number][source[mine]]
        return out

    def _file(self, rows: list[np.ndarray], size: int, encode: Encode, folder: Path, bar: Any) -> np.ndarray:
        """The features of these items from their file, which is made if it is missing or damaged."""
        content = sha256(np.concatenate(rows).astype("<i4").tobytes())
        content.update(np.array(list(map(len, rows)), dtype="<i4").tobytes())
        path = folder / f"{self.kind}-{content.hexdigest()[:20]}.npy"
        try:
            features = np.load(path, mmap_mode="r")
            if features.shape == (size, self.width) and features.dtype == np.float16:
                bar.update(len(rows))
                return features
        except (OSError, ValueError, EOFError):  # missing, or not what was written: made again
            pass
        table = np.concatenate(in_groups(rows, encode, self.group, advance=bar.update))
        paths.write_atomic(path, lambda file: np.save(file, table))
        return np.load(path, mmap_mode="r")


def in_groups(
    rows: list[np.ndarray], encode: Encode, group: int, advance: Callable[[int], object] = int
) -> list[np.ndarray]:
    """Features of each item, in the order given; encoded `group` items of one length at a time, repeats filling up.

    So each is encoded without padding and in one shape: its bits do not depend on its company.
    """
    out: dict[int, np.ndarray] = {}
    lengths = np.array(list(map(len, rows)))
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length)
        for start in range(0, len(places), group):
            some = places[start : start + group]
            features = encode([rows[i] for i in np.resize(some, group)])
            out |= dict(zip(some.tolist(), features, strict=False))
            advance(len(some))
    return [out[i] for i in range(len(rows))]


def starts(size: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Where each of n stretches begins when they lie one after the other."""
    return np.cumsum(size) - size
