"""Prepared volumes on disk: one `.npy` and one JSON sidecar each, in one folder.

    <content>-<key>.npy   float16 [D, H, W] in [0, 1]; <content> hashes the source's bytes, <key> the spec, the version
                          of the preparation and the stated slope and intercept: what differs has another name
    <id>-<hash>.json      sidecar of a case; <hash> of id, source path and <key>, so that it is found without the source
    quarantine.csv        what could not be prepared, and why, of the last run

A sidecar is written after its array, both atomically, so that a sidecar means a whole array, whenever a run was killed.
It notes size and time of the source; when they change, the source is read again.
"""

import csv
import io
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mg3d import paths
from mg3d.data.frame import Spec
from mg3d.data.listing import Problem
from mg3d.types import Case

SAMPLED = 64 * 1024  # bytes of a block, where a hash takes samples
BLOCKS = 64  # samples of a file
STALE_S = 86_400  # a temporary file this old has no living writer


class DamagedCache(RuntimeError):
    """A prepared file that is missing, cut or no such file; the message names it and the mend."""

    def __init__(self, path: Path | str, detail: str):
        super().__init__(f"{path}: {detail}; delete it, if it is still there, and prepare again")
        self.path, self.detail = str(path), detail

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.detail)


@dataclass(frozen=True)
class Entry:
    """A case that is prepared."""

    case: Case
    array: Path
    sidecar: Path

    @property
    def record(self) -> dict[str, Any]:
        """The content of the sidecar. Raises DamagedCache."""
        try:
            return json.loads(self.sidecar.read_text())
        except (OSError, ValueError) as error:
            raise DamagedCache(self.sidecar, f"not readable ({error})") from error

    def load(self) -> np.ndarray:
        """The volume as a memory map, float16 [D, H, W]; writing into it changes no file. Raises DamagedCache."""
        try:
            volume = np.load(self.array, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DamagedCache(self.array, f"not readable ({error})") from error
        if volume.dtype != np.float16 or volume.ndim != 3:
            raise DamagedCache(self.array, f"{volume.dtype} of shape {volume.shape} is no prepared volume")
        return volume


@dataclass(frozen=True)
class Prepared:
    """What `prepare` has made: entries and problems in the order of the listing."""

    entries: list[Entry]
    quarantine: list[Problem]
    folder: Path


@runtime_checkable
class Hashed(Protocol):
    """What a store needs of a spec: eight hex digits of all that it says."""

    @property
    def hash(self) -> str:
        """The digits."""
        ...


def key(case: Case, spec: Hashed) -> str:
    """Eight hex digits of all that shapes the numbers, the source apart."""
    return sha256(f"{spec.hash} {case.rescale and tuple(map(float, case.rescale))}".encode()).hexdigest()[:8]


def sidecar(case: Case, spec: Hashed, folder: Path, *others: Path | None) -> Path:
    """The path of the sidecar of a case; `others` are the files that it is made of beside its volume."""
    name = re.sub(r"[^\w.-]", "_", case.id)[:80]
    files = (str(path and path.absolute()) for path in (case.volume, *others))
    digest = sha256("\0".join((case.id, *files, key(case, spec))).encode())
    return folder / f"{name}-{digest.hexdigest()[:12]}.json"


def stamp(source: Path) -> dict[str, int]:
    """Size in bytes and time of the last change of a file, or of all files of a folder together. Raises OSError."""
    if not source.is_dir():
        found = source.stat()
        return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}
    found = [entry.stat() for entry in os.scandir(source) if entry.is_file()]
    return {"size": sum(f.st_size for f in found), "mtime_ns": max((f.st_mtime_ns for f in found), default=0)}


def content_hash(source: Path) -> str:
    """Sixteen hex digits of the bytes of a file, or of the names and bytes of a folder's files. Raises OSError.

    Of a gzip file: of its length, its last block, which holds the CRC-32 of all that it packs, and 63 blocks that are
    spread over it. A change that this misses would have to keep the CRC too. It costs a fiftieth of inflating the file.
    """
    digest = sha256()
    files = sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else [source]
    for path in files:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{path.name if source.is_dir() else ''}\0{size}\0".encode())
            packed = file.read(2) == b"\x1f\x8b" and size > 2 * BLOCKS * SAMPLED
            for start in np.linspace(0, size - SAMPLED, BLOCKS, dtype=int) if packed else [0]:
                file.seek(int(start))
                digest.update(file.read(SAMPLED if packed else -1))
    return digest.hexdigest()[:16]


def find(case: Case, spec: Spec, folder: Path) -> Entry | None:
    """The entry of a case that is prepared already and whose source has not changed since. Raises OSError without one.

    Reads the sidecar alone.
    """
    path = sidecar(case, spec, folder)
    found = stamp(case.volume)
    try:
        record = json.loads(path.read_text())
        array = folder / record["array"]
        whole = array.stat().st_size == record["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Entry(case, array, path) if whole and record["source"].items() >= found.items() else None


def write(volume: np.ndarray, record: Mapping[str, Any], *, case: Case, spec: Spec, folder: Path) -> Entry:
    """Write array, then sidecar. `record` holds at least `content`. Raises OSError, see `paths.write_atomic`."""
    array = folder / f"{record['content']}-{key(case, spec)}.npy"
    write_array(array, volume)
    full = {
        "case": case.id,
        "array": array.name,
        "bytes": array.stat().st_size,
        "voxels_sha256": sha256(volume.data).hexdigest(),
        **record,
    }
    path = paths.write_atomic(sidecar(case, spec, folder), json.dumps(full, indent=1).encode())
    return Entry(case, array, path)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a `.npy`. Raises OSError, see `paths.write_atomic`."""
    packed = io.BytesIO()  # np.save to a file on a full disk raises an error that does not say so
    np.save(packed, array, allow_pickle=False)
    paths.write_atomic(path, packed.getvalue())


def write_quarantine(problems: Sequence[Problem], folder: Path) -> Path:
    """`quarantine.csv` of the folder: id, path, reason, detail; a header alone when there is no problem."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["id", "path", "reason", "detail"])
    writer.writerows([p.id, p.path, p.reason, p.detail] for p in problems)
    return paths.write_atomic(folder / "quarantine.csv", table.getvalue().encode())


def sweep(folder: Path) -> None:
    """Remove the temporary files that runs killed a day ago or earlier have left."""
    for path in folder.glob(f".*{paths.TEMPORARY}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_S:
                path.unlink()
