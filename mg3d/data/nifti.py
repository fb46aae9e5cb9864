"""NIfTI-1 and NIfTI-2 single files, inflated in one pass; the voxels are a view of the inflated bytes, never a copy."""

import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mg3d.data import BadVolume
from mg3d.data.hu import Scale

GZIP = b"\x1f\x8b"
DICOM = b"DICM"  # at byte 128
SAME_DIRECTION = 0.999  # cosine between the axes of sform and qform, above which they agree


@dataclass(frozen=True)
class Stored:
    """A volume as stored: voxels [i, j, k] of any number type, RAS affine [4, 4] in mm, and the header's scale."""

    voxels: np.ndarray
    affine: np.ndarray
    scale: Scale | None


def read_nifti(path: Path) -> Stored:
    """Read a .nii or .nii.gz file (told apart by content, not by name).

    Raises BadVolume: unreadable, truncated, not-nifti, not-3d (a fourth axis of length 1 is dropped), geometry (no
    valid sform or qform, or two that contradict each other).
    """
    content = inflate(path)
    header = _header(content, path)
    shape = _shape(header, path)
    try:
        dtype = header.get_data_dtype()
    except Exception as error:  # nibabel's own class, for a type code that no NIfTI has
        raise BadVolume("not-nifti", path, f"unknown voxel type ({error}). Convert the original again.") from None
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise BadVolume("not-nifti", path, f"voxels of type {dtype}: plain numbers are needed. Convert the original.")
    start = float(header["vox_offset"])
    if not 348 <= start < math.inf:
        raise BadVolume(
            "not-nifti", path, f"voxels start at byte {start:g}, says the header. Convert the original again."
        )
    offset, count = int(start), math.prod(shape)
    if offset + count * dtype.itemsize > len(content):
        have = max(0, len(content) - offset)
        raise BadVolume("truncated", path, f"{have} of {count * dtype.itemsize} bytes of voxels. Copy the file again.")
    voxels = np.frombuffer(content, dtype, count, offset).reshape(shape, order="F")
    if not dtype.isnative:
        voxels = voxels.astype(dtype.newbyteorder("="))
    return Stored(voxels, _affine(header, path), _scale(header, path))


def inflate(path: Path) -> bytes:
    """The bytes of a file, inflated if it is gzip (several members too). Raises BadVolume: unreadable, truncated."""
    from isal import igzip, isal_zlib

    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadVolume("unreadable", path, f"{error.strerror}. Check the disk and the permissions.") from None
    if content[:2] != GZIP:
        return content
    try:
        # The last four bytes tell the inflated size: the output is allocated once. Deflate packs at most 1:1032.
        size = min(struct.unpack("<I", content[-4:])[0], 1032 * len(content))
        inflated = isal_zlib.decompress(content, wbits=31, bufsize=size + 1)
        # A file of several members ends elsewhere than its first one.
        return inflated if len(inflated) == size else igzip.decompress(content)
    except Exception as error:  # isal raises classes of its own, EOFError and OSError, by what is damaged
        raise BadVolume(
            "truncated", path, f"the gzip stream is cut or damaged ({error}). Copy the file again."
        ) from None


def _header(content: bytes, path: Path):  # a nibabel header; nibabel has no types
    import nibabel

    if content[128:132] == DICOM:
        raise BadVolume("not-nifti", path, "one DICOM file. Give the folder that holds the whole series.")
    if not content:
        raise BadVolume("truncated", path, "the file is empty. Copy it again.")
    size = content[:4]
    kinds = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
    n = next((n for n in kinds if size in (struct.pack("<i", n), struct.pack(">i", n))), None)
    if n is None:
        raise BadVolume("not-nifti", path, "no NIfTI header. Give a .nii or .nii.gz file, or a folder of DICOM files.")
    if len(content) < n:
        raise BadVolume("truncated", path, f"{len(content)} bytes, less than a header. Copy the file again.")
    header = kinds[n].from_fileobj(io.BytesIO(content[:n]), check=False)
    if bytes(header["magic"])[:2] != b"n+":
        raise BadVolume("not-nifti", path, "the header of a .hdr/.img pair. Convert the pair to one .nii.gz file.")
    return header


def _shape(header, path: Path) -> tuple[int, int, int]:
    n = int(header["dim"][0])
    shape = tuple(int(x) for x in header["dim"][1 : n + 1]) if 1 <= n <= 7 else ()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise BadVolume("not-3d", path, f"shape {shape}: one 3-D volume is needed. Split the file, or take one frame.")
    return shape


def _affine(header, path: Path) -> np.ndarray:
    forms = {}
    if header["sform_code"] > 0:
        forms["sform"] = header.get_sform()
    if header["qform_code"] > 0:
        try:
            forms["qform"] = header.get_qform()
        except Exception as error:  # nibabel's own class, for a quaternion longer than 1
            raise BadVolume("geometry", path, f"the qform is broken ({error}). Convert the original again.") from None
    if not forms:
        raise BadVolume(
            "geometry",
            path,
            "neither sform nor qform is set, so left and right are unknown. Convert the original again (CT-RATE: take "
            "the volumes of train_fixed and valid_fixed).",
        )
    if len(forms) == 2:
        s, q = (m[:3, :3] / np.maximum(np.linalg.norm(m[:3, :3], axis=0), 1e-12) for m in forms.values())
        if np.isfinite(s).all() and ((s * q).sum(axis=0) < SAME_DIRECTION).any():
            raise BadVolume(
                "geometry", path, "sform and qform point in different directions. Convert the original again."
            )
    return np.asarray(next(iter(forms.values())), dtype=np.float64)  # the sform, where both are set


def _scale(header, path: Path) -> Scale | None:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope) or (slope, intercept) == (1.0, 0.0):  # 0 and NaN mean: not scaled
        return None
    if not np.isfinite(intercept):
        raise BadVolume("hu", path, f"scl_slope {slope:g} with scl_inter {intercept:g}. Convert the original again.")
    return slope, intercept
