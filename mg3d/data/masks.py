"""From volumes and their masks to a folder of prepared pairs, and from a prediction back to a file.

    prepared = prepare_masks(listing, classes=("background", "tumour"), spec=PatchSpec(...), folder=folder)
    to_source(labels, entry.record, path)

A volume is oriented to the frame of `mg3d.types` and resampled to the spacing of the spec (see `frame`: what becomes
coarser is antialiased), then windowed to [0, 1]; its mask goes to the same grid by nearest neighbour, so that labels
stay labels. Nothing is cropped. `classes` names the values of a mask from 0, the background, on.

A pair that cannot be used goes to `quarantine.csv` with a reason of `reading.REASONS`.
"""

from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from mg3d import paths
from mg3d.data import BadVolume, Image, frame, pairs, store
from mg3d.data.frame import Frame
from mg3d.data.listing import Listing, Problem, few
from mg3d.data.nifti import Stored, read_nifti
from mg3d.data.patches import BY_PERCENTILES, PERCENTILES, PatchSpec
from mg3d.data.prepare import fault, one_thread, prepare_all, spacing_of
from mg3d.data.reading import bounds_of, check_geometry, read_volume
from mg3d.data.store import Entry, Prepared
from mg3d.types import Case

APART = 0.1  # of a voxel, that the corners of volume and mask may lie apart
WHOLE = 1e-3  # how near a label is to a whole number: slope and intercept of a header leave rounding errors


def prepare_masks(
    listing: Listing,
    *,
    classes: Sequence[str],
    spec: PatchSpec,
    folder: Path,
    workers: int | None = None,
    masks: bool = True,
    progress: bool = True,
) -> Prepared:
    """Prepare every case of a listing into `folder`, with `workers` processes (default: one a core).

    Cases without a mask are refused, unless `masks` is False. Writes `quarantine.csv`, the listing's own problems among
    them. Raises ValueError when two cases have one id, when nothing is left (with the commonest reasons), and when a
    class is in no mask of the training split; OSError when the disk is full.
    """
    given = {"classes": tuple(classes), "spec": spec, "folder": folder, "masks": masks}
    known, work = partial(_known, **given), partial(prepare_pair, **given)
    prepared = prepare_all(listing, known=known, work=work, folder=folder, workers=workers, progress=progress)
    _check_classes(prepared.entries, classes)
    return prepared


def prepare_pair(case: Case, *, classes: Sequence[str], spec: PatchSpec, folder: Path, masks: bool) -> Entry | Problem:
    """Prepare one volume and its mask, or say why they cannot be used; what is prepared already is found by its
    sidecar. Raises OSError when the disk is full."""
    known = _known(case, classes=classes, spec=spec, folder=folder, masks=masks)
    if known is not None:
        return known
    try:
        before = pairs.stamps(case)
        image = read_volume(case.volume, rescale=case.rescale) if _has_units(spec) else read_scan(case.volume)
        mask = None if case.mask is None else read_mask(case.mask, image=image, classes=classes)
        content = "".join(store.content_hash(p) for p in (case.volume, case.mask) if p is not None)
        volume, labels, record = _resampled(image, mask, spec, case.volume)
        if pairs.stamps(case) != before:
            raise BadVolume("unreadable", case.volume, "it changed while it was read. Prepare again.")
    except BadVolume as bad:
        return Problem(case.id, bad.path, bad.reason, bad.detail)
    except OSError as error:
        return Problem(case.id, str(error.filename or case.volume), *fault(error))
    except MemoryError:
        return Problem(case.id, str(case.volume), "memory", "too large for the memory. Prepare with fewer workers.")
    record |= {"content": sha256(content.encode()).hexdigest()[:16], "sources": before}
    return pairs.write(volume, labels, record, case=case, spec=spec, folder=folder)


def _known(case: Case, *, classes: Sequence[str], spec: PatchSpec, folder: Path, masks: bool) -> Entry | Problem | None:
    """What can be said of a pair without reading it."""
    if case.mask is None and masks:
        return Problem(case.id, str(case.volume), "no-mask", "there is nothing to learn from. Get the mask.")
    try:
        return pairs.find(case, spec, folder, classes=len(classes))
    except OSError as error:
        return Problem(case.id, str(error.filename or case.volume), *fault(error))


def read_scan(path: Path) -> Image:
    """A NIfTI volume whose values have no unit, as MRI: nothing is known of them but that they are finite and not all
    equal. Raises BadVolume with a reason of reading.REASONS."""
    stored = read_nifti(path)
    check_geometry(stored.affine, path)
    bounds_of(stored.voxels, path)
    return Image(_scaled(stored), stored.affine, "none")


def read_mask(path: Path, *, image: Image, classes: Sequence[str]) -> Shaped[np.ndarray, "I J K"]:
    """Labels on the grid of `image`, uint8. Raises BadVolume: what `read_nifti` raises, mask-grid, mask-labels."""
    stored = read_nifti(path)
    if stored.voxels.shape != image.hu.shape:
        detail = f"shape {stored.voxels.shape}, its volume has {image.hu.shape}. Take the mask that was drawn on it."
        raise BadVolume("mask-grid", path, detail)
    apart = _apart(stored.affine, image.affine, image.hu.shape)
    if not apart <= APART:
        detail = f"it lies {apart:.3g} voxels beside its volume. Correct the affine, or resample it to the volume."
        raise BadVolume("mask-grid", path, detail)
    values = _scaled(stored)
    labels = np.rint(values)
    wrong = ~((np.abs(values - labels) < WHOLE) & (labels >= 0) & (labels < len(classes)))  # NaN is wrong too
    if wrong.any():
        names = ", ".join(f"{k} {name}" for k, name in enumerate(classes))
        found = few(f"{v:g}" for v in np.unique(values[wrong]))
        detail = f"values {found}; known are {names}. Correct the mask or the classes."
        raise BadVolume("mask-labels", path, detail)
    return labels.astype(np.uint8)


def to_source(labels: Shaped[np.ndarray, "D H W"], record: dict[str, Any], path: Path) -> Path:
    """Write labels on a prepared grid as a NIfTI file on the grid of the source: its shape, axes and affine, uint8.

    `record` is the sidecar's content. By nearest neighbour. Raises ValueError when the shape is not the prepared one.
    """
    import nibabel

    placed = frame.to_source(labels.astype(np.uint8), record, nearest=True)
    affine = np.array(record["source_affine"])
    picture = nibabel.Nifti1Image(placed, affine)
    picture.header.set_xyzt_units("mm")
    for name in ("set_sform", "set_qform"):
        getattr(picture, name)(affine, code=1)
    content = picture.to_bytes()
    if path.name.endswith(".gz"):
        import gzip

        content = gzip.compress(content, 6, mtime=0)  # the same bytes each time
    return paths.write_atomic(path, content)


def grid_of(
    affine: Float[np.ndarray, "4 4"], source: Sequence[int], *, spacing_mm: tuple[float, float, float]
) -> Frame:
    """The prepared grid that covers a source of this shape and affine, with voxels of exactly `spacing_mm` (D, H, W),
    about the same centre."""
    axes, signs = frame.orientation(affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size = tuple(int(source[a]) for a in axes)
    scale = tuple(float(mm / spacing[a]) for a, mm in zip(axes, spacing_mm, strict=True))
    shape = tuple(int(np.ceil(n / s - 1e-6)) for n, s in zip(size, scale, strict=True))  # 1e-6: rounding, no voxel
    return Frame(axes, signs, size, shape, scale)


def _resampled(
    image: Image, mask: np.ndarray | None, spec: PatchSpec, path: Path
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """Volume and mask on the prepared grid, and what is to be known of both."""
    grid = grid_of(image.affine, image.hu.shape, spacing_mm=spec.spacing_mm)
    low, high = map(float, spec.window_hu if _has_units(spec) else np.percentile(image.hu, PERCENTILES))
    if not low < high:
        raise BadVolume("constant", path, f"99 % of the voxels are {low:g}. Convert the original again.")
    with one_thread():
        values = frame.resample(image.hu, grid, window_hu=(low, high))
    affine = grid.affine(image.affine)
    record = {
        "source_shape": image.hu.shape,
        "source_affine": image.affine.tolist(),
        "source_spacing_mm": spacing_of(image.affine),
        "spec": {  # shape and crop make Frame.of_record give this very grid
            "shape": grid.shape,
            "crop": [s * m / n for s, m, n in zip(grid.scale, grid.shape, grid.size, strict=True)],
            "window_hu": (low, high),
        },
        "affine": affine.tolist(),
        "spacing_mm": spacing_of(affine),
        "hu_from": image.hu_from,
    }
    volume = np.clip((values - low) / (high - low), 0, 1).astype(np.float16)
    if mask is None:
        return volume, None, record
    labels = mask.transpose(grid.axes)[np.ix_(*map(_nearest, grid.centres(), grid.size))]
    counts = {"voxels": labels, "source_voxels": mask}
    return volume, labels, record | {k: np.bincount(v.ravel()).tolist() for k, v in counts.items()}


def _nearest(x: Float[np.ndarray, " M"], size: int) -> Int[np.ndarray, " M"]:
    """The voxel of a source axis that is nearest to each centre, of two the one that is nearer to the axis's middle.

    Halves are common (1.25 mm to 2.5): rounded all one way they would shift a mask by half a voxel.
    """
    middle = (size - 1) / 2
    return np.clip(np.rint(middle + (x - middle) * (1 - 1e-9)), 0, size - 1).astype(int)


def _has_units(spec: PatchSpec) -> bool:
    return tuple(spec.window_hu) != BY_PERCENTILES


def _scaled(stored: Stored) -> np.ndarray:
    """Voxels with the header's slope and intercept applied."""
    if stored.scale is None:
        return stored.voxels
    slope, intercept = stored.scale
    return stored.voxels * np.float32(slope) + np.float32(intercept)


def _apart(a: np.ndarray, b: np.ndarray, shape: Sequence[int]) -> float:
    """How far the corners of two grids lie apart at most, in voxels (of the shortest side of `b`)."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
    return float(np.linalg.norm(corners @ (a - b).T, axis=1).max() / np.linalg.norm(b[:3, :3], axis=0).min())


def _check_classes(entries: Sequence[Entry], classes: Sequence[str]) -> None:
    """Raise ValueError when no mask of the training split has a class: it could not be learnt."""
    counts = [entry.record["voxels"] for entry in entries if entry.case.split == "train" and entry.case.mask]
    missing = [name for k, name in enumerate(classes) if k and not any(sum(n[k : k + 1]) for n in counts)]
    if counts and missing:
        raise ValueError(
            f"no mask of the {len(counts)} training cases holds {', '.join(missing)}. Correct the classes or the masks."
        )
