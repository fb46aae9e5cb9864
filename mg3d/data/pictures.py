"""CT that was published as grey pictures: a folder of slices, or one array of them (CC-CCII).

Such slices were windowed to 0..255 and hold no HU, and nothing says how large a pixel is or how far apart the slices
lie. Preparation cuts and resizes by shares of each axis, so only the order of the axes matters: rows from front to
back, columns from the patient's right to the left, slices from head to feet, as slices are numbered and drawn. Lengths
are those of a common scan: SIDE_MM in the plane and HEIGHT_MM along the body, whatever the number of slices.
"""

import re
from pathlib import Path

import numpy as np

from mg3d.data import BadVolume
from mg3d.data.listing import few
from mg3d.data.nifti import Stored

ENDS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
GREY = ("L", "RGB", "RGBA", "P")  # modes of pictures that are, or were made of, eight-bit grey
SIDE_MM, HEIGHT_MM = 350.0, 300.0


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their numbers (9.png before 10.png), empty where there are none."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in ENDS and not p.name.startswith(".")]
    return sorted(found, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.stem)], p.name))


def read_pictures(path: Path) -> Stored:
    """A folder of pictures, or a .npy file [slice, row, column], as voxels [column, row, slice] in 0..255.

    To be read with rescale = hu.EIGHT_BIT. Raises BadVolume: unreadable, truncated, not-nifti (no eight-bit grey),
    not-3d (slices of more than one size, or another number of axes).
    """
    slices = _stack(path) if path.is_dir() else _array(path)
    if slices.ndim != 3 or slices.dtype != np.uint8:
        reason = "not-nifti" if slices.ndim == 3 else "not-3d"
        raise BadVolume(reason, path, f"{slices.dtype} {slices.shape}: uint8 [slice, row, column] is needed.")
    n, rows, columns = slices.shape
    step = np.array([-SIDE_MM / columns, -SIDE_MM / rows, -HEIGHT_MM / n])  # towards left, back, feet
    return Stored(slices.T, np.diag([*step, 1.0]), None)


def _stack(folder: Path) -> np.ndarray:
    files = pictures(folder)
    if not files:
        raise BadVolume("missing", folder, f"no picture ({', '.join(ENDS)}) in the folder. Unpack the scan again.")
    slices = [_slice(path) for path in files]
    shapes = [s.shape for s in slices]
    if len(set(shapes)) > 1:
        usual = max(set(shapes), key=shapes.count)
        odd = few(f"{p.name} {s}" for p, s in zip(files, shapes, strict=True) if s != usual)
        raise BadVolume("not-3d", folder, f"slices are {usual}, but {odd}. Take them out.")
    return np.stack(slices)


def _slice(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            if picture.mode not in GREY:
                raise BadVolume("not-nifti", path, f"a picture of mode {picture.mode}: eight-bit grey is needed.")
            return np.asarray(picture.convert("L"))
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise BadVolume("truncated", path, f"not readable as a picture ({error}). Copy it again.") from None


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadVolume("truncated", path, f"not readable as an array ({error}). Copy it again.") from None
