"""Layers of napari as plain tuples (data, keywords, kind): what `viewer` opens, built without napari and without Qt.

napari cuts along the axes of an array, so every array is first brought upright, and `scale` and `translate` place it in
the world. The world is the patient, its axes in the order
(head, back, left) in mm: an axial slice is in radiological display as it is, and a rendering in 3-D is not mirrored. In
the other two planes the head's axis must point up on the screen, which is the window's business (`viewer`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from widgets.geometry import box_mm, coarse
from widgets.live import preset
from widgets.panels import Window, in_hu
from widgets.verdict import colours_of

Layer = tuple[np.ndarray, dict[str, Any], str]  # what napari calls LayerData

AXES, UNITS = ("S", "P", "L"), ("mm",) * 3  # where the world's axes point
WORLD = np.array([[0.0, 0, 1, 0], [0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])  # RAS mm -> head, back, left


def attention_layers(
    volume: np.ndarray,
    affine: np.ndarray,
    *,
    maps: np.ndarray,
    sentence: int = 0,
    outline: np.ndarray | None = None,
    window: Window = "lung",
    window_hu: tuple[float, float] | None = None,
) -> list[Layer]:
    """CT, the map of one sentence over it (shares of its peak, on its own grid) and the border of the truth.

    Shapes as in `AttentionExplorer`. Raises ValueError for maps that are not [S, d, h, w] and a sentence without a map.
    """
    if maps.ndim != 4 or not 0 <= sentence < len(maps):
        raise ValueError(f"maps of shape {maps.shape} have no sentence {sentence}: [S, d, h, w] with 0 to S - 1")
    found = [ct_layer(volume, affine, window=window, window_hu=window_hu)]
    look = {"colormap": "inferno", "blending": "additive", "opacity": 0.6, "contrast_limits": (0.0, 1.0)}
    found.append(_placed("attention", share(maps[sentence]), volume, affine, "image", look))
    if outline is not None:
        found.append(_placed("truth", (outline > 0).astype(np.uint8), volume, affine, "labels", {"opacity": 0.9}))
    return found


def error_layers(
    volume: np.ndarray,
    affine: np.ndarray,
    *,
    codes: Mapping[str, np.ndarray],
    colours: str = "green, red, yellow",
    window: Window = "mediastinum",
    window_hu: tuple[float, float] | None = None,
) -> list[Layer]:
    """CT, and a layer of labels for each model, of which the first is visible: 1 correct, 2 wrong, 3 missing.

    `codes` come from `ErrorViewer.codes`, `colours` from `verdict.COLOURS`. Raises ValueError for unknown colours.
    """
    chosen = {None: "transparent", 0: "transparent"} | dict(enumerate(colours_of(colours), 1))
    found = [ct_layer(volume, affine, window=window, window_hu=window_hu)]
    for number, (model, one) in enumerate(codes.items()):
        look = {"colormap": chosen, "opacity": 0.55, "visible": number == 0}
        found.append(_placed(model, one.astype(np.uint8), volume, affine, "labels", look))
    return found


def ct_layer(
    volume: np.ndarray, affine: np.ndarray, *, window: Window, window_hu: tuple[float, float] | None = None
) -> Layer:
    """The volume in HU, grey by its window. Raises ValueError for an unknown window and a volume not 3-D."""
    if volume.ndim != 3:
        raise ValueError(f"volume: 3 axes are needed, this one has shape {volume.shape}")
    volume = in_hu(volume, window_hu)
    width, level = preset(window)
    look = {"colormap": "gray", "contrast_limits": (level - width / 2, level + width / 2), "blending": "translucent"}
    return _placed("CT", volume, volume, affine, "image", look)


def share(one: np.ndarray) -> np.ndarray:
    """A map as shares of its peak, float32; a map without any weight stays 0."""
    top = float(np.nanmax(one))
    return np.asarray(one / top if top > 0 else one, np.float32)


def world(point: Sequence[float] | np.ndarray) -> np.ndarray:
    """A point in RAS mm in the world of the layers."""
    return WORLD[:3, :3] @ np.asarray(point, float)


def upright(array: np.ndarray, affine: np.ndarray, *, order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An array in the order of the world's axes, the size of its voxels in mm and the place of its first one.

    Where the affine only permutes and flips it is the same voxels, without a copy; where it turns, they are sampled
    anew (`order` 0: the nearest, 1: linear; outside: the lowest value).
    """
    place = WORLD @ np.asarray(affine, float)
    linear = np.abs(place[:3, :3])
    if (np.sort(linear, axis=0)[:2] < 1e-3 * linear.max(0)).all():
        axes = linear.argmax(1)
        size = place[range(3), axes]
        turned = array.transpose(axes)[tuple(slice(None, None, 1 if step > 0 else -1) for step in size)]
        first = place[:3, 3] + np.minimum(size, 0) * (np.array(turned.shape) - 1)
        return turned, np.abs(size), first
    inverse = np.linalg.inv(place)
    low, high = box_mm(array.shape, place)
    across = 1 / np.linalg.norm(inverse[:3, :3], axis=0)
    shape = np.maximum(1, np.round((high - low) / across)).astype(int)
    size = (high - low) / shape
    first = low + size / 2
    matrix, offset = inverse[:3, :3] * size, inverse[:3, :3] @ first + inverse[:3, 3]
    return ndimage.affine_transform(array, matrix, offset, tuple(shape), order=order, cval=array.min()), size, first


def _placed(
    name: str, array: np.ndarray, volume: np.ndarray, affine: np.ndarray, kind: str, look: dict[str, Any]
) -> Layer:
    """The layer of an array of any grid over the volume's field of view."""
    here = coarse(np.asarray(affine, float), volume.shape, array.shape)
    data, scale, translate = upright(array, here, order=int(kind == "image"))
    return (
        data,
        look | {"name": name, "scale": scale, "translate": translate, "axis_labels": AXES, "units": UNITS},
        kind,
    )
