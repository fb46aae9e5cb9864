"""MetaImage, the format of LUNA16 (.mhd with a .raw or .zraw beside it) and STOIC-2021 (.mha, one file).

A header of lines `Key = Value`, the last of which, ElementDataFile, says where the voxels are: LOCAL, or a file beside.
The lines of TransformMatrix are the directions of the axes x, y, z in the patient, left-posterior-superior, so that

    RAS = diag(-1, -1, 1) (Offset + TransformMatrix^T diag(ElementSpacing) index)
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mg3d.data import BadVolume
from mg3d.data.nifti import Stored

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
LAST = "ElementDataFile"  # after this line come the voxels
HEADER = 64 * 1024  # bytes within which the header must end
SAME = (  # names of one field, by age of the writer
    ("Offset", "Position", "Origin"),
    ("TransformMatrix", "Rotation", "Orientation"),
    ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"),
)


def read_metaimage(path: Path) -> Stored:
    """Read a .mhd or .mha file: voxels [x, y, z] and their RAS affine.

    Raises BadVolume: unreadable, truncated, not-nifti (no MetaImage, or voxels that are no plain numbers), not-3d,
    geometry (spacing or directions are not stated).
    """
    content = _bytes(path)
    fields, start = _header(content, path)
    shape = _shape(fields, path)
    dtype = _dtype(fields, path)
    voxels = _voxels(fields, content[start:], math.prod(shape) * dtype.itemsize, path)
    array = np.frombuffer(voxels, dtype, math.prod(shape)).reshape(shape, order="F")
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    return Stored(array, _affine(fields, path), None)


def _bytes(path: Path) -> memoryview:
    try:
        return memoryview(path.read_bytes())
    except FileNotFoundError:
        raise BadVolume("missing", path, "the header names it; it is not there. Get the file.") from None
    except OSError as error:
        raise BadVolume("unreadable", path, f"{error.strerror}. Check the disk and the permissions.") from None


def _header(content: memoryview, path: Path) -> tuple[dict[str, str], int]:
    """The fields by their first name in SAME, and where the header ends."""
    text, fields, start = bytes(content[:HEADER]), {}, 0
    while LAST not in fields:
        end = text.find(b"\n", start)
        line = text[start : len(text) if end < 0 else end].decode("latin-1")
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            raise BadVolume("not-nifti", path, f"no MetaImage: its header has no line {LAST}. Get the file again.")
        fields[next((names[0] for names in SAME if key in names), key)] = value
        start = len(text) if end < 0 else end + 1
    return fields, start


def _numbers(fields: Mapping[str, str], key: str, count: int, path: Path) -> np.ndarray:
    try:
        values = np.array(fields[key].split(), dtype=np.float64)
    except (KeyError, ValueError):
        values = np.zeros(0)
    if len(values) != count or not np.isfinite(values).all():
        raise BadVolume("geometry", path, f"{key}: {count} numbers are needed. Convert the original again.")
    return values


def _shape(fields: Mapping[str, str], path: Path) -> tuple[int, int, int]:
    words = fields.get("DimSize", "").split()
    shape = tuple(int(word) for word in words) if all(word.isdigit() for word in words) else ()
    if len(shape) != 3 or min(shape) < 1 or fields.get("ElementNumberOfChannels", "1") != "1":
        raise BadVolume("not-3d", path, f"DimSize {' '.join(words)}: one 3-D volume of one channel is needed.")
    return shape


def _dtype(fields: Mapping[str, str], path: Path) -> np.dtype:
    kind = fields.get("ElementType", "")
    if kind not in TYPES or not _says(fields, "BinaryData", default=True):
        raise BadVolume("not-nifti", path, f"voxels of type {kind or '?'}, or as text: binary numbers are needed.")
    return np.dtype(TYPES[kind]).newbyteorder(">" if _says(fields, "BinaryDataByteOrderMSB", default=False) else "<")


def _says(fields: Mapping[str, str], key: str, *, default: bool) -> bool:
    return fields.get(key, str(default)).lower() in ("true", "1")


def _voxels(fields: Mapping[str, str], rest: memoryview, size: int, path: Path) -> memoryview:
    """The bytes of the voxels, inflated, `size` of them."""
    from isal import isal_zlib

    name = fields[LAST]
    if len(name.split()) != 1 or name == "LIST" or fields.get("HeaderSize", "0") != "0":
        raise BadVolume("not-nifti", path, f"{LAST} = {name}: one file of voxels without a header is needed.")
    if name != "LOCAL":
        path = path.parent / name
        rest = _bytes(path)
    if _says(fields, "CompressedData", default=False):
        try:
            rest = memoryview(isal_zlib.decompress(rest, bufsize=size))
        except Exception as error:  # isal's own class
            raise BadVolume("truncated", path, f"the stream is cut or damaged ({error}). Copy it again.") from None
    if len(rest) < size:
        raise BadVolume("truncated", path, f"{len(rest)} of {size} bytes of voxels. Copy the file again.")
    return rest


def _affine(fields: Mapping[str, str], path: Path) -> np.ndarray:
    axes = _numbers(fields, "TransformMatrix", 9, path).reshape(3, 3).T
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ axes @ np.diag(_numbers(fields, "ElementSpacing", 3, path))
    affine[:3, 3] = LPS_TO_RAS @ _numbers(fields, "Offset", 3, path)
    return affine
