"""Prepared pairs of volume and mask on disk, in one folder.

    <content>-<key>.npy         float16 [D, H, W] in [0, 1]; <content> hashes volume and mask, <key> the rest
    <content>-<key>.mask.npy    uint8 [D, H, W]
    <content>-<key>.places.npy  int32 [n, 4], label and place of at most PLACES voxels a class: where patches are drawn
    <id>-<hash>.json            sidecar, written last, so that it means that all are whole

As in `store`: all is written atomically, and what differs has another name. The sidecar notes size and time of the
sources; when they change, they are read again.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mg3d import paths
from mg3d.data import store
from mg3d.data.patches import VERSION, PatchSpec, mask_path, places_path
from mg3d.data.store import Entry
from mg3d.types import Case

PLACES = 1024


def stamps(case: Case) -> dict[str, dict[str, Any]]:
    """Path, size and time of the files of a case. Raises OSError."""
    files = {"volume": case.volume, "mask": case.mask}
    return {name: {"path": str(p.absolute()), **store.stamp(p)} for name, p in files.items() if p is not None}


def find(case: Case, spec: PatchSpec, folder: Path, *, classes: int) -> Entry | None:
    """The entry of a case that is prepared and whose sources have not changed; reads the sidecar alone.

    One that holds a label from `classes` on is read again, to say so. Raises OSError where a source is gone.
    """
    path, sources = store.sidecar(case, spec, folder, case.mask), stamps(case)
    try:
        record = json.loads(path.read_text())
        whole = all((folder / name).stat().st_size == size for name, size in record["files"].items())
        known = whole and record["sources"] == sources and len(record.get("voxels", [])) <= classes
        return Entry(case, folder / record["array"], path) if known else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write(
    volume: np.ndarray,
    labels: np.ndarray | None,
    record: dict[str, Any],
    *,
    case: Case,
    spec: PatchSpec,
    folder: Path,
) -> Entry:
    """Write the arrays, then the sidecar. Raises OSError, see `paths.write_atomic`."""
    array = folder / f"{record['content']}-{store.key(case, spec)}.npy"
    entry = Entry(case, array, store.sidecar(case, spec, folder, case.mask))
    arrays = {entry.array: volume}
    if labels is not None:
        arrays |= {mask_path(entry): labels, places_path(entry): _places(labels)}
    for path, values in arrays.items():
        store.write_array(path, values)
    files = {path.name: path.stat().st_size for path in arrays}
    full = {"case": case.id, "array": entry.array.name, "files": files, "version": VERSION, **record}
    paths.write_atomic(entry.sidecar, json.dumps(full, indent=1).encode())
    return entry


def _places(labels: np.ndarray) -> np.ndarray:
    """At most PLACES voxels of each class, [n, 4]: label and place; the same ones each time."""
    found = [np.zeros((0, 4), dtype=np.int32)]
    for label in range(1, int(labels.max(initial=0)) + 1):
        flat = np.flatnonzero(labels == label)
        if len(flat) > PLACES:
            flat = np.sort(np.random.default_rng(label).choice(flat, PLACES, replace=False))
        places = np.stack(np.unravel_index(flat, labels.shape), 1)
        found.append(np.insert(places, 0, label, axis=1).astype(np.int32))
    return np.concatenate(found)
