"""The field of view of a volume, cut plane after plane fast enough for a slider, and pixels as pictures.

`geometry.cut` for viewers: the place of each pixel in the array is computed once a plane and kept, and a picture has at
most a given number of pixels a side. Planes are the patient's; any affine will do.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any, Literal, final

import contourpy
import numpy as np
from PIL import Image
from scipy import ndimage

from widgets.geometry import PLANES, Slice, box_mm, coarse

Lines = tuple[list[float | None], list[float | None]]  # x and y, None between one line and the next


@final
class Frame:
    """All slices that a volume of `shape` [D, H, W] has in the patient; `count` of them along each axis of RAS.

    Slice 1 is that at the head (axial), in front (coronal), on the right (sagittal).
    """

    def __init__(self, shape: Sequence[int], affine: np.ndarray, *, pixels: int) -> None:
        self.shape, self.affine = tuple(shape), affine
        self.low, self.high = box_mm(shape, affine)
        self._inverse = np.linalg.inv(affine)
        across = 1 / np.linalg.norm(self._inverse[:3, :3], axis=0)  # mm along each axis that cross one voxel
        self.count = np.maximum(1, np.round((self.high - self.low) / across)).astype(int)
        self._thick = (self.high - self.low) / self.count
        self._pixels = pixels
        self._kept: dict[tuple[str, tuple[int, ...]], tuple[np.ndarray, np.ndarray]] = {}

    def size_mm(self, plane: str) -> tuple[float, float]:
        """Height and width of a plane."""
        row, column, _ = PLANES[plane]
        side = self.high - self.low
        return float(side[row]), float(side[column])

    def size(self, plane: str) -> tuple[int, int]:
        """Rows and columns of a plane's picture."""
        row, column, _ = PLANES[plane]
        return min(int(self.count[row]), self._pixels), min(int(self.count[column]), self._pixels)

    def step(self, plane: str) -> tuple[float, float]:
        """Height and width of a pixel in mm."""
        (high, wide), (rows, columns) = self.size_mm(plane), self.size(plane)
        return high / rows, wide / columns

    def snapped(self, at: np.ndarray) -> np.ndarray:
        """The point moved to the middle of the slices that it lies in, inside the field of view."""
        number = np.floor((self.high - at) / self._thick)
        return self.high - self._thick * (np.clip(number, 0, self.count - 1) + 0.5)

    def number(self, plane: str, at: np.ndarray) -> int:
        """Which slice a point lies in, from 1."""
        return int(self.numbers(plane, at))

    def numbers(self, plane: str, points: np.ndarray) -> np.ndarray:
        """Which slice each of some points [..., 3] lies in, from 1."""
        axis = PLANES[plane][2]
        number = (self.high[axis] - points[..., axis]) // self._thick[axis]
        return np.clip(number, 0, self.count[axis] - 1).astype(int) + 1

    def numbered(self, plane: str, at: np.ndarray, number: int) -> np.ndarray:
        """The point moved into a slice."""
        axis, new = PLANES[plane][2], np.array(at, float)
        new[axis] = self.high[axis] - self._thick[axis] * (number - 0.5)
        return new

    def place(self, plane: str, at: np.ndarray) -> tuple[float, float]:
        """Where a point lies in the picture: mm from its upper and from its left edge."""
        row, column, _ = PLANES[plane]
        return float(self.high[row] - at[row]), float(self.high[column] - at[column])

    def point(self, plane: str, at: np.ndarray, *, y: float, x: float) -> np.ndarray:
        """The point of the patient at a place of the picture, in the slice through `at`."""
        row, column, _ = PLANES[plane]
        new = np.array(at, float)
        new[row], new[column] = self.high[row] - y, self.high[column] - x
        return new

    def value(self, array: np.ndarray, at: np.ndarray) -> Any:
        """Of the nearest voxel of an array over the same field of view; `array` [..., d, h, w] gives them all."""
        index = np.linalg.inv(coarse(self.affine, self.shape, array.shape[-3:])) @ [*at, 1.0]
        nearest = np.clip(np.rint(index[:3]), 0, np.array(array.shape[-3:]) - 1).astype(int)
        return array[(..., *nearest)]

    def cut(self, array: np.ndarray, *, plane: str, at: np.ndarray, order: Literal[0, 1]) -> Slice:
        """A plane of an array of any grid over this field of view; NaN outside. `order` as in `geometry.cut`."""
        row, column, through = PLANES[plane]
        fixed, along = self._rays(plane, array.shape)
        index = fixed + (along * at[through])[:, None]
        size = np.reshape(array.shape, (3, 1))
        inside = ((index > -0.501) & (index < size - 0.499)).all(0)
        if order:
            pixels = ndimage.map_coordinates(array, index, output=np.float32, order=1, mode="nearest")
        else:
            i, j, k = np.clip(np.rint(index), 0, size - 1).astype(np.intp)
            pixels = array[i, j, k].astype(np.float32)
        pixels[~inside] = np.nan
        extent = (float(self.high[column]), float(self.low[column]), float(self.low[row]), float(self.high[row]))
        return Slice(plane, pixels.reshape(self.size(plane)), extent, float(at[through]))

    def _rays(self, plane: str, grid: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """The array index [3, pixels] of each pixel at 0 mm along the line of sight, and what one mm adds to it."""
        if (plane, grid) not in self._kept:
            row, column, through = PLANES[plane]
            (rows, columns), (high, wide) = self.size(plane), self.step(plane)
            inverse = np.linalg.inv(coarse(self.affine, self.shape, grid))
            points = np.zeros((3, rows, columns))
            points[row] = (self.high[row] - high * (np.arange(rows) + 0.5))[:, None]
            points[column] = self.high[column] - wide * (np.arange(columns) + 0.5)
            fixed = inverse[:3, :3] @ points.reshape(3, -1) + inverse[:3, 3:]
            self._kept[plane, grid] = fixed, inverse[:3, through]
        return self._kept[plane, grid]


def png(pixels: np.ndarray, palette: np.ndarray | None = None) -> str:
    """A data URL of uint8 pixels [rows, columns]: greys, or indices of a palette [n, 4] of red, green, blue, alpha."""
    image = Image.fromarray(pixels)
    more: dict[str, Any] = {}
    if palette is not None:
        image.putpalette(palette[:, :3].tobytes())
        more["transparency"] = palette[:, 3].tobytes()
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=3, **more)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def border(mask: np.ndarray, step: tuple[float, float]) -> Lines:
    """The lines around a mask [rows, columns], mm from its left and upper edge; `step`: a pixel's height and width."""
    inside = np.pad(np.nan_to_num(mask), 1)
    x: list[float | None] = []
    y: list[float | None] = []
    if inside.max() > 0.5:
        for line in contourpy.contour_generator(z=inside).lines(0.5):
            places = np.round((np.asarray(line) - 0.5) * [step[1], step[0]], 2)
            x += [*places[:, 0].tolist(), None]
            y += [*places[:, 1].tolist(), None]
    return x, y
