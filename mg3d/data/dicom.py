"""One DICOM series, one volume. Slices are sorted by where they lie along the normal, never by number or file name."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mg3d.data import BadVolume
from mg3d.data.listing import few
from mg3d.data.nifti import Stored

if TYPE_CHECKING:
    from pydicom import Dataset

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
SAME_MM = 0.01  # two slices closer than this lie at one place
UNEVEN = 0.05  # how far a step may be from the median step, as a share of it (or 0.05 mm: positions are rounded)
GAP = 1.5  # a step of this many median steps: slices are missing
DRIFT_MM = 0.5  # how far the slices may wander from the normal over the whole stack
PARALLEL = 1e-4  # how far the direction cosines of two slices may differ

CT_IMAGES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1")  # CT Image Storage, Enhanced CT Image Storage
DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg (or decompress the files: gdcmconv --raw)"


@dataclass(frozen=True)
class _Slice:
    """One image of a series: a file, or a frame of an enhanced multi-frame file."""

    file: str
    frame: int | None  # of a multi-frame file
    dataset: "Dataset"
    series: str
    origin: np.ndarray  # centre of the first pixel, LPS mm
    rows_cols: np.ndarray  # [2, 3] directions along a row and along a column, LPS
    spacing_mm: tuple[float, float]  # between rows, between columns
    shape: tuple[int, int]  # rows, columns
    slope: float
    intercept: float

    @property
    def normal(self) -> np.ndarray:
        """Unit vector from slice to slice."""
        return np.cross(self.rows_cols[0], self.rows_cols[1])


def read_dicom(folder: Path) -> Stored:
    """Read the one series in `folder` (its sub-folders are not looked into), already rescaled, slice by slice.

    Voxels are [column, row, slice], int16 where slope 1 and whole intercepts allow it, else float32. Classic files and
    enhanced multi-frame files. Raises BadVolume: no-dicom, truncated, geometry and the dicom-* reasons of
    mg3d.data.reading.REASONS.
    """
    slices = [s for path in sorted(folder.iterdir()) for s in _read(path)]
    if not slices:
        raise BadVolume("no-dicom", folder, "no DICOM image in the folder. Give the folder that holds the slices.")
    _check_series(slices, folder)
    _check_orientation(slices, folder)
    normal = slices[0].normal
    slices.sort(key=lambda s: float(s.origin @ normal))
    step = _step(slices, normal, folder)
    rows_mm, cols_mm = slices[0].spacing_mm
    along_row, along_column = slices[0].rows_cols
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ np.stack([along_row * cols_mm, along_column * rows_mm, step], axis=1)
    affine[:3, 3] = LPS_TO_RAS @ slices[0].origin
    return Stored(_voxels(slices, folder), affine, None)


def _read(path: Path) -> list[_Slice]:
    """The images in one file: none if it is no DICOM image, several if it has frames."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return []
    try:
        return _slices(path, pydicom.dcmread(path))
    except InvalidDicomError:
        return []
    except BadVolume:
        raise
    except Exception as error:  # pydicom reads a tag when it is asked for, and a damaged one fails in many ways
        raise BadVolume("truncated", path, f"cut or damaged ({error}). Copy the file again.") from None


def _slices(path: Path, dataset: "Dataset") -> list[_Slice]:
    if "Rows" not in dataset or "Columns" not in dataset:
        if dataset.file_meta.get("MediaStorageSOPClassUID") in CT_IMAGES:
            raise BadVolume("truncated", path, "cut before its pixels. Copy the file again.")
        return []  # a report, a presentation state, an RT structure set
    if dataset.get("Modality", "CT") != "CT":
        raise BadVolume("dicom-modality", path, f"{dataset.Modality}, not CT. Keep the CT series alone in the folder.")
    if "PixelData" not in dataset or "TransferSyntaxUID" not in dataset.file_meta:
        raise BadVolume("truncated", path, "no pixels in the file, or no word of how they are coded. Copy it again.")
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if not frames and int(dataset.get("NumberOfFrames") or 1) > 1:
        raise BadVolume("geometry", path, "several frames without positions. Export the series as one file a slice.")
    return [_slice(path, dataset, i) for i in (range(len(frames)) if frames else (None,))]


def _slice(path: Path, dataset: "Dataset", frame: int | None) -> _Slice:
    def value(keyword: str, macro: str, default: Any = None) -> Any:
        """A tag of the file, or of the frame's functional group, or of the group that all frames share."""
        if frame is None:
            return dataset.get(keyword, default)
        shared = dataset.get("SharedFunctionalGroupsSequence") or [{}]
        for group in (dataset.PerFrameFunctionalGroupsSequence[frame], shared[0]):
            found = group.get(macro)
            if found and found[0].get(keyword) is not None:
                return found[0].get(keyword)
        return default

    origin = value("ImagePositionPatient", "PlanePositionSequence")
    cosines = value("ImageOrientationPatient", "PlaneOrientationSequence")
    spacing = value("PixelSpacing", "PixelMeasuresSequence")
    if _is_localiser(dataset):
        raise BadVolume("dicom-localiser", path, "a localiser (scout), no slice of the volume. Take the file out.")
    named = {"ImagePositionPatient": (origin, 3), "ImageOrientationPatient": (cosines, 6), "PixelSpacing": (spacing, 2)}
    missing = [tag for tag, (found, n) in named.items() if not found or len(found) != n]
    if missing:
        raise BadVolume("geometry", path, f"no {few(missing)}. Take the file out, or export the series again.")
    rows_cols = np.array(cosines, dtype=np.float64).reshape(2, 3)
    if np.abs(rows_cols @ rows_cols.T - np.eye(2)).max() > 1e-3:
        raise BadVolume("geometry", path, f"directions {list(cosines)} are not orthonormal. Export the series again.")
    slope = value("RescaleSlope", "PixelValueTransformationSequence", 1)
    intercept = value("RescaleIntercept", "PixelValueTransformationSequence", 0)
    return _Slice(
        file=path.name,
        frame=frame,
        dataset=dataset,
        series=str(dataset.get("SeriesInstanceUID", "")),
        origin=np.array(origin, dtype=np.float64),
        rows_cols=rows_cols,
        spacing_mm=(float(spacing[0]), float(spacing[1])),
        shape=(int(dataset.Rows), int(dataset.Columns)),
        slope=float(slope),
        intercept=float(intercept),
    )


def _is_localiser(dataset: "Dataset") -> bool:
    kinds = dataset.get("ImageType") or []
    return any(str(kind).upper() in ("LOCALIZER", "SCOUT") for kind in kinds)


def _check_series(slices: list[_Slice], folder: Path) -> None:
    files = Counter(s.series for s in slices)
    if len(files) > 1:
        shown = few(f"{uid} ({n} images)" for uid, n in files.most_common())
        raise BadVolume(
            "dicom-mixed-series", folder, f"{len(files)} series: {shown}. Sort the files into one folder a series."
        )


def _check_orientation(slices: list[_Slice], folder: Path) -> None:
    """All slices share direction, matrix and pixel spacing; else the few that differ from the many are named."""
    groups = defaultdict(list)
    for s in slices:
        geometry = (*np.round(s.rows_cols / PARALLEL).ravel(), *np.round(s.spacing_mm, 4))
        groups[(*geometry, *s.shape)].append(s)
    if len(groups) > 1:
        many = max(groups.values(), key=len)[0]
        odd = [s for s in slices if not _alike(s, many)]
        if odd:
            raise BadVolume(
                "dicom-orientation",
                folder,
                f"{len(odd)} of {len(slices)} slices differ from the rest in orientation, matrix or pixel spacing: "
                f"{few(s.file for s in odd)}. Take them out.",
            )


def _alike(a: _Slice, b: _Slice) -> bool:
    return (
        bool(np.abs(a.rows_cols - b.rows_cols).max() <= PARALLEL)
        and bool(np.allclose(a.spacing_mm, b.spacing_mm, atol=1e-4))
        and a.shape == b.shape
    )


def _step(slices: list[_Slice], normal: np.ndarray, folder: Path) -> np.ndarray:
    """The vector from slice to slice (LPS mm) of sorted slices; raises for duplicates, gaps and tilt."""
    if len(slices) == 1:
        raise BadVolume("not-chest", folder, "a single slice. Give the folder that holds the whole series.")
    origins = np.stack([s.origin for s in slices])
    along = origins @ normal
    steps = np.diff(along)
    same = np.flatnonzero(steps < SAME_MM)
    if len(same):
        shown = few(f"{slices[i].file} and {slices[i + 1].file} at {along[i]:.2f} mm" for i in same)
        raise BadVolume("dicom-duplicate", folder, f"two slices at one place: {shown}. Take one of each out.")
    sideways = origins - origins[0] - np.outer(along - along[0], normal)
    if np.abs(sideways).max() > DRIFT_MM:
        angle = np.degrees(np.arctan2(np.linalg.norm(sideways[-1]), along[-1] - along[0]))
        raise BadVolume(
            "dicom-tilt",
            folder,
            f"slices are shifted against each other, {angle:.1f} degrees from the normal (gantry tilt). "
            "Resample to a straight grid.",
        )
    usual = float(np.median(steps))
    odd = np.flatnonzero(np.abs(steps - usual) > max(UNEVEN * usual, 0.05))
    if len(odd):
        shown = few(f"{steps[i]:.2f} mm between {slices[i].file} and {slices[i + 1].file}" for i in odd)
        what = "slices are missing" if steps.max() > GAP * usual else "uneven spacing"
        raise BadVolume("dicom-gap", folder, f"{what}: {shown}; {usual:.2f} mm elsewhere. Export the series again.")
    return normal * (along[-1] - along[0]) / (len(slices) - 1)


def _voxels(slices: list[_Slice], folder: Path) -> np.ndarray:
    """Rescaled voxels [column, row, slice] of sorted slices."""
    exact = all(s.slope == 1 and s.intercept == int(s.intercept) for s in slices)
    out = np.empty((len(slices), *slices[0].shape), dtype=np.int16 if exact else np.float32)
    for k, (s, pixels) in enumerate((s, _pixels(s, folder)) for s in slices):
        if exact and (pixels.min() + s.intercept < -(2**15) or pixels.max() + s.intercept >= 2**15):
            raise BadVolume(
                "hu", folder / s.file, f"values {pixels.min()} to {pixels.max()} are no CT. Export it again."
            )
        np.multiply(pixels, out.dtype.type(s.slope), out=out[k], casting="unsafe")
        out[k] += out.dtype.type(s.intercept)
    return out.T


def _pixels(s: _Slice, folder: Path) -> np.ndarray:
    from pydicom.pixels.utils import pixel_array

    syntax = s.dataset.file_meta.TransferSyntaxUID
    try:
        pixels = pixel_array(s.dataset, index=s.frame)
    except Exception as error:  # too few bytes, a damaged stream, or no decoder
        missing = isinstance(error, RuntimeError) and syntax.is_transfer_syntax and syntax.is_compressed
        detail = f"{syntax.name}: no decoder is installed. {DECODERS}"
        if not missing:
            detail = f"its pixels cannot be read ({error}). Copy it again."
        raise BadVolume("dicom-compressed" if missing else "truncated", folder / s.file, detail) from None
    if pixels.ndim != 2:
        raise BadVolume("not-3d", folder / s.file, f"pixels of shape {pixels.shape}: a grey slice is needed.")
    return pixels
