"""Read one CT volume, whatever it lies in, or say in one word why it cannot be used.

The one rule: refuse rather than guess. A flipped, doubled, cut or wrongly scaled volume trains without complaint and
spoils everything after it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mg3d.data import BadVolume, Image
from mg3d.data.dicom import read_dicom
from mg3d.data.hu import Evidence, Scale, to_hu
from mg3d.data.metaimage import read_metaimage
from mg3d.data.nifti import Stored, read_nifti
from mg3d.data.pictures import pictures, read_pictures

REASONS = {
    "missing": "no such file or folder",
    "unreadable": "the disk or the permissions",
    "truncated": "cut or damaged: gzip stream, voxels or DICOM file",
    "not-nifti": "another format, or voxels that are no plain numbers",
    "not-3d": "not one 3-D volume",
    "geometry": "where the volume lies in the patient is unset, singular, sheared or contradictory",
    "nan": "voxels that are not finite",
    "constant": "all voxels are equal",
    "hu": "the voxels are no HU, under no or under more than one stated slope and intercept",
    "not-chest": "far from the size of a chest, too few slices, or no lung in view",
    "no-dicom": "a folder without a DICOM image",
    "dicom-modality": "not CT",
    "dicom-mixed-series": "more than one series in the folder",
    "dicom-localiser": "a localiser (scout) among the slices",
    "dicom-orientation": "slices of more than one orientation, matrix or pixel spacing",
    "dicom-duplicate": "two slices at one place",
    "dicom-gap": "missing slices, or uneven spacing",
    "dicom-tilt": "gantry tilt: slices shifted against each other",
    "dicom-compressed": "a compression for which no decoder is installed",
    "no-report": "corpus: no row of the reports table names the volume",
    "empty-report": "corpus: a row without text",
    "no-label": "cohort: a row without a label of the study, or a volume without a row",
    "no-mask": "segmentation: a case without a mask",
    "mask-grid": "segmentation: a mask of another shape, or at another place, than its volume",
    "mask-labels": "segmentation: a mask with values that are no label of the study",
    "memory": "preparation: too large for the memory",
    "killed": "preparation: its process was killed, twice",
}
FORMATS = {".mhd": read_metaimage, ".mha": read_metaimage, ".npy": read_pictures}  # any other file is NIfTI
SHEAR = 0.01  # largest cosine between two axes of the volume; 0.01 is 0.6 degrees


@dataclass(frozen=True)
class Limits:
    """What passes for a chest CT. Wide on purpose: slabs and crops of a chest pass, a head or a leg does not."""

    slices: int = 8  # along the shortest axis
    side_mm: tuple[float, float] = (100.0, 900.0)  # the two longest sides
    thin_mm: float = 10.0  # the shortest side
    lung: float = 0.0008  # share of voxels inside lung (measured: chest CTs from 0.014, phantoms from 0.0016)


LIMITS = Limits()


def read_volume(path: Path, *, rescale: Scale | None = None, limits: Limits = LIMITS) -> Image:
    """A NIfTI file (.nii, .nii.gz) or a folder that holds one DICOM series, as HU with its RAS affine.

    MetaImage (.mhd, .mha) is read too, and, with `rescale` EIGHT_BIT, a folder of pictures or a .npy file of them.

    `rescale` is the slope and intercept that a metadata table states; whether it still applies is decided from the
    voxels (see mg3d.data.hu). EIGHT_BIT says that the voxels were windowed to 0..255. Raises BadVolume with a reason of
    REASONS.
    """
    if not path.exists():
        raise BadVolume("missing", path, "no such file or folder. Correct the path, or get the volume.")
    stored = _stored(path)
    check_geometry(stored.affine, path)
    _check_size(stored, limits, path)
    bounds = bounds_of(stored.voxels, path)
    hu, hu_from, seen = to_hu(stored.voxels, header=stored.scale, rescale=rescale, bounds=bounds, path=path)
    if hu_from != "8-bit":  # those came from pictures: no scanner geometry, no HU
        _check_placed(stored.affine, path)
        _check_lung(seen, limits, path)
    return Image(hu, stored.affine, hu_from)


def _stored(path: Path) -> Stored:
    if path.is_dir():
        return read_pictures(path) if pictures(path) else read_dicom(path)
    return FORMATS.get(path.suffix.lower(), read_nifti)(path)


def check_geometry(affine: np.ndarray, path: Path) -> None:
    """Raise BadVolume where an affine is singular, sheared or not finite."""
    axes = affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or (spacing < 1e-6).any():
        raise BadVolume("geometry", path, "the affine is singular or not finite. Convert the original again.")
    cosines = (axes / spacing).T @ (axes / spacing) - np.eye(3)
    if np.abs(cosines).max() > SHEAR:
        angle = np.degrees(np.arcsin(np.abs(cosines).max().clip(max=1)))
        raise BadVolume("geometry", path, f"sheared by {angle:.1f} degrees (gantry tilt). Resample to a straight grid.")


def _check_size(stored: Stored, limits: Limits, path: Path) -> None:
    shape = np.array(stored.voxels.shape)
    side_mm = shape * np.linalg.norm(stored.affine[:3, :3], axis=0)
    if shape.min() < limits.slices:
        raise BadVolume("not-chest", path, f"{shape.min()} slices; at least {limits.slices} are needed.")
    thin, *long = sorted(side_mm)
    if thin < limits.thin_mm or long[0] < limits.side_mm[0] or long[1] > limits.side_mm[1]:
        size = " x ".join(f"{mm:.0f}" for mm in side_mm)
        raise BadVolume("not-chest", path, f"{size} mm is no chest. Correct the spacing in the header.")


def bounds_of(voxels: np.ndarray, path: Path) -> tuple[float, float]:
    """Smallest and largest stored value. NaN spreads through min and max, so that two passes find every fault."""
    low, high = float(voxels.min()), float(voxels.max())
    if not np.isfinite([low, high]).all():
        n = int(np.size(voxels) - np.isfinite(voxels).sum())
        raise BadVolume("nan", path, f"{n} voxels are not finite. Convert the original again.")
    if low == high:
        raise BadVolume("constant", path, f"every voxel is {low:g}. Convert the original again.")
    return low, high


def _check_placed(affine: np.ndarray, path: Path) -> None:
    """An affine that is the identity to the last digit was written by a program that knew none."""
    if np.array_equal(affine, np.eye(4)):
        raise BadVolume(
            "geometry",
            path,
            "the affine is the identity: 1 mm voxels, origin at voxel 0. It was lost in a conversion, so left, right "
            "and spacing are unknown. Convert the original again.",
        )


def _check_lung(seen: Evidence, limits: Limits, path: Path) -> None:
    if seen.lung < limits.lung:
        shown, least = 100 * seen.lung, 100 * limits.lung
        detail = f"{shown:.2f} % of the voxels lie inside lung, less than {least:g} %: another part of the body."
        raise BadVolume("not-chest", path, f"{detail} Take the row out.")
