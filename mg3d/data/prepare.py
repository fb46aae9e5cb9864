"""From the volumes of a listing to a folder of prepared ones: read, orient, window, crop, resize, store.

    prepared = prepare(listing, spec=Spec(), folder=paths.cache() / "volumes" / "ctrate")

Each volume is one job of one process. A volume that cannot be used goes to the quarantine table with its reason, and
the run goes on. A run that was killed goes on where it was; what is prepared is found by its sidecar, and not read.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mg3d.data import BadVolume, store
from mg3d.data.frame import VERSION, Frame, Spec, prepare_mask, resample, to_source
from mg3d.data.listing import Listing, Problem, few
from mg3d.data.pool import cores, scatter
from mg3d.data.store import DamagedCache, Entry, Prepared
from mg3d.types import Case

__all__ = ["DamagedCache", "Entry", "Prepared", "Spec", "prepare", "prepare_case", "prepare_mask", "to_source"]

BINS = 80  # of the HU histogram that a sidecar keeps, over the window
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


def prepare(
    listing: Listing,
    *,
    spec: Spec,
    folder: Path,
    workers: int | None = None,
    reports: bool = True,
    progress: bool = True,
) -> Prepared:
    """Prepare every case of a listing into `folder`, with `workers` processes (default: one a core).

    Cases without a report are refused, unless `reports` is False. Writes `quarantine.csv`, the listing's own problems
    among them. Raises ValueError when two cases have one id and when nothing is left (with the commonest reasons), and
    OSError when the disk is full.
    """
    return prepare_all(
        listing,
        known=partial(_known, spec=spec, folder=folder, reports=reports),
        work=partial(prepare_case, spec=spec, folder=folder),
        folder=folder,
        workers=workers,
        progress=progress,
    )


def prepare_all(
    listing: Listing,
    *,
    known: Callable[[Case], Entry | Problem | None],
    work: Callable[[Case], Entry | Problem],
    folder: Path,
    workers: int | None,
    progress: bool,
) -> Prepared:
    """What can be said of each case without reading its volume (`known`), else what `work` makes of it in a process.

    Writes `quarantine.csv`; raises what `prepare` raises.
    """
    from tqdm import tqdm

    twice = [id_ for id_, n in Counter(case.id for case in listing.cases).items() if n > 1]
    if twice:
        raise ValueError(f"{len(twice)} ids name more than one case: {few(twice)}. Give each case its own id.")
    store.sweep(folder)
    with tqdm(total=len(listing.cases), desc="preparing", unit="volume", disable=not progress, mininterval=0.5) as bar:
        results: dict[str, Entry | Problem] = {}
        todo = []
        for case in listing.cases:
            result = known(case)
            if result is None:
                todo.append(case)
            else:
                results[case.id] = result
                bar.update()
        workers = min(workers or cores(), len(todo))
        for case, result in scatter(work, todo, lost=_lost, workers=workers):
            results[case.id] = result
            bar.update()
            bar.set_postfix(quarantine=sum(isinstance(r, Problem) for r in results.values()), refresh=False)
    found = [results[case.id] for case in listing.cases]
    entries = [r for r in found if isinstance(r, Entry)]
    quarantine = [*listing.problems, *(r for r in found if isinstance(r, Problem))]
    table = store.write_quarantine(quarantine, folder)
    if not entries:
        raise ValueError(f"no volume could be prepared: {_commonest(quarantine)}. See {table}.")
    return Prepared(entries, quarantine, folder)


def prepare_case(case: Case, *, spec: Spec, folder: Path) -> Entry | Problem:
    """Prepare one volume, or say why it cannot be used. Raises OSError when the disk is full."""
    from mg3d.data.reading import read_volume

    try:
        before = store.stamp(case.volume)
        image = read_volume(case.volume, rescale=case.rescale)
        content = store.content_hash(case.volume)
        frame = Frame.of(image.affine, image.hu.shape, shape=spec.shape, crop=spec.crop)
        with one_thread():
            hu = resample(image.hu, frame, window_hu=spec.window_hu)
        if store.stamp(case.volume) != before:
            raise BadVolume("unreadable", case.volume, "it changed while it was read. Prepare again.")
    except BadVolume as bad:
        return Problem(case.id, bad.path, bad.reason, bad.detail)
    except OSError as error:
        return Problem(case.id, str(case.volume), *fault(error))
    except MemoryError:
        return Problem(case.id, str(case.volume), "memory", "too large for the memory. Prepare with fewer workers.")
    low, high = spec.window_hu
    volume = torch.from_numpy(hu).sub_(low).div_(high - low).clamp_(0, 1).half().numpy()
    affine = frame.affine(image.affine)
    record = {
        "content": content,
        "source": {"path": str(case.volume.absolute()), **before},
        "source_shape": image.hu.shape,
        "source_affine": image.affine.tolist(),
        "source_spacing_mm": spacing_of(image.affine),
        "rescale": case.rescale,
        "hu_from": image.hu_from,
        "spec": {"shape": spec.shape, "crop": spec.crop, "window_hu": spec.window_hu},
        "spec_hash": spec.hash,
        "version": VERSION,
        "affine": affine.tolist(),
        "spacing_mm": spacing_of(affine),
        "hu": _statistics(volume, spec),
    }
    return store.write(volume, record, case=case, spec=spec, folder=folder)


def _known(case: Case, *, spec: Spec, folder: Path, reports: bool) -> Entry | Problem | None:
    """What can be said of a case without reading its volume."""
    if reports and not case.report.strip():
        return Problem(
            case.id, str(case.volume), "empty-report", "the report has no text. Give it one, or drop the row."
        )
    try:
        return store.find(case, spec, folder)
    except OSError as error:
        return Problem(case.id, str(case.volume), *fault(error))


def fault(error: OSError) -> tuple[str, str]:
    """Reason and detail for a source that cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return "missing", "no such file or folder. Correct the path, or get the volume."
    return "unreadable", f"{error.strerror}. Check the disk and the permissions."


def _lost(case: Case) -> Problem:
    """What is said of a volume whose process did not come back."""
    detail = "the process that prepared it was killed, twice (memory?). Prepare it with workers=1 on a larger machine."
    return Problem(case.id, str(case.volume), "killed", detail)


def _commonest(problems: Sequence[Problem]) -> str:
    """The three commonest reasons, each with its number and an example."""
    if not problems:
        return "the listing is empty"
    counts = Counter(p.reason for p in problems).most_common(3)
    example = {p.reason: p for p in reversed(problems)}
    return "; ".join(f"{n} x {reason} (e.g. {example[reason].path}: {example[reason].detail})" for reason, n in counts)


def spacing_of(affine: np.ndarray) -> list[float]:
    """Millimetres a voxel along each axis, as a sidecar keeps them."""
    return [round(float(mm), 6) for mm in np.linalg.norm(affine[:3, :3], axis=0)]


def _statistics(volume: np.ndarray, spec: Spec) -> dict:
    """Mean, percentiles and histogram of a prepared volume in HU, exact for its float16 values."""
    one = np.float16(1).view(np.uint16)  # the half-precision numbers from 0 to 1 are the bit patterns 0 to 15360
    counts = np.bincount(volume.view(np.uint16).ravel(), minlength=int(one) + 1)
    values = np.arange(int(one) + 1, dtype=np.uint16).view(np.float16).astype(np.float64)
    low, high = spec.window_hu
    rank = np.searchsorted(np.cumsum(counts), np.array(PERCENTILES) / 100 * volume.size)
    histogram = np.bincount(np.minimum((values * BINS).astype(int), BINS - 1), weights=counts)
    return {
        "mean": round(low + (high - low) * float(counts @ values) / volume.size, 3),
        "percentiles": {
            str(p): round(low + (high - low) * float(values[r]), 2) for p, r in zip(PERCENTILES, rank, strict=True)
        },
        "histogram": histogram.astype(int).tolist(),
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Products by one thread: the parallel runs over volumes, and the sums keep their order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
