"""Where a voxel lies in the patient: planes of the patient sampled from a volume by its affine.

    affine [4, 4]  voxel indices (i, j, k, 1) of an array -> millimetres in RAS (x to the right, y front, z head)

Pictures are in radiological display: the patient's right on the left, the head up, the front on top (axial) or on the
left (sagittal). Since a plane is sampled in patient space, the order of the array cannot turn a picture: permuted,
flipped and oblique volumes come out the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

PLANES = {  # patient axes (0 = right, 1 = front, 2 = head) of a picture's rows, columns and of the line of sight
    "axial": (1, 0, 2),
    "coronal": (2, 0, 1),
    "sagittal": (2, 1, 0),
}
_LETTERS = ("RL", "AP", "SI")  # letter of the positive and of the negative end of each patient axis

Point = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Slice:
    """One plane through a volume, rows from top to bottom, columns from left to right of the picture."""

    plane: str
    pixels: np.ndarray  # [rows, columns] float32; NaN outside the volume
    extent_mm: tuple[float, float, float, float]  # left, right, bottom, top edge in RAS mm, as imshow wants it
    position_mm: float  # along the line of sight, RAS

    @property
    def letters(self) -> tuple[str, str, str, str]:
        """Where in the patient the left, right, top and bottom edge lie."""
        row, column, _ = PLANES[self.plane]
        (left, right), (top, bottom) = _LETTERS[column], _LETTERS[row]  # from the positive to the negative end
        return left, right, top, bottom

    @property
    def position(self) -> str:
        """The position in words, e.g. "S 12.5 mm"."""
        ends = _LETTERS[PLANES[self.plane][2]]
        return f"{ends[self.position_mm < 0]} {abs(self.position_mm):.1f} mm"


def cut(volume: np.ndarray, affine: np.ndarray, *, plane: str, at: Point, order: int = 1) -> Slice:
    """Sample the `plane` of the patient (not of the array) through the point `at` (RAS mm).

    Pixels have the spacing of the voxels; for an axis-aligned affine they are the voxels themselves. `order` 0 takes
    the nearest voxel, 1 interpolates linearly. Raises ValueError for an unknown plane.
    """
    if plane not in PLANES:
        raise ValueError(f"unknown plane {plane!r}; valid: {', '.join(PLANES)}")
    row, column, through = PLANES[plane]
    inverse = np.linalg.inv(affine)
    low, high = box_mm(volume.shape, affine)
    step = 1 / np.linalg.norm(inverse[:3, :3], axis=0)  # mm along each patient axis that cross one voxel
    count = np.maximum(1, np.round((high - low) / step)).astype(int)
    step = (high - low) / count
    millimetres = [high[axis] - step[axis] * (np.arange(count[axis]) + 0.5) for axis in (row, column)]
    points = np.empty((3, count[row], count[column]))
    points[row], points[column], points[through] = millimetres[0][:, None], millimetres[1], at[through]
    index = np.tensordot(inverse[:3, :3], points, 1) + inverse[:3, 3, None, None]
    pixels = ndimage.map_coordinates(volume, index, output=np.float32, order=order, mode="nearest")
    size = np.reshape(volume.shape, (3, 1, 1))
    pixels[((index < -0.501) | (index > size - 0.499)).any(0)] = np.nan
    extent = (float(high[column]), float(low[column]), float(low[row]), float(high[row]))
    return Slice(plane, pixels, extent, float(at[through]))


def to_mm(index: ArrayLike, affine: np.ndarray) -> np.ndarray:
    """The point in RAS mm of a voxel index."""
    return affine[:3, :3] @ np.asarray(index, float) + affine[:3, 3]


def coarse(affine: np.ndarray, shape: Sequence[int], grid: Sequence[int]) -> np.ndarray:
    """The affine of a grid of cells that covers the field of view of a volume of `shape`."""
    step = np.asarray(shape) / np.asarray(grid)
    cells = np.diag([*step, 1.0])
    cells[:3, 3] = (step - 1) / 2
    return affine @ cells


def box_mm(shape: Sequence[int], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest RAS mm of the volume's corners, edges of voxels included."""
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in shape], indexing="ij")).reshape(3, -1)
    millimetres = affine[:3, :3] @ corners + affine[:3, 3, None]
    return millimetres.min(1), millimetres.max(1)
