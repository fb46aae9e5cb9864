"""Cases against methods, as in the paper's Fig. 7: a slice of each case, and in it what each method got right or wrong.

Regions are filled faintly and outlined: green correct, red wrong, yellow missing, or colours for every colour vision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from widgets.figures import STYLE, Picture
from widgets.geometry import PLANES, Point, Slice, coarse, cut, to_mm
from widgets.panels import LIGHT, Window, caption, contour, draw, named, panels, size_mm
from widgets.verdict import COLOURS, KINDS, codes_of, dice_of, palette_of

_FINER = 4  # outlines follow the edges of the pixels


@dataclass(frozen=True)
class Segmented:
    """A volume with a true mask and what methods predicted, all over one field of view.

    `volume` in HU with its `affine`; `truth` and each of `predictions` a mask of one grid, any; `at` (RAS mm) chooses
    the slice, else it is the one with most of the truth.
    """

    volume: np.ndarray
    affine: np.ndarray
    truth: np.ndarray
    predictions: Mapping[str, np.ndarray]
    at: Point | None = None


@mpl.rc_context(STYLE)
def qualitative(
    cases: Mapping[str, Segmented],
    *,
    plane: str = "axial",
    window: Window = "lung",
    margin_mm: float | None = 30.0,
    colours: str = next(iter(COLOURS)),
    title: str = "",
) -> Picture:
    """A row a case: the slice with the true outline, then a column a method, its Dice in the volume above.

    Slices are cut to what any mask has in them and `margin_mm` around; None shows them whole. Raises ValueError where
    cases differ in their methods, masks in their shapes, and for unknown colours.
    """
    methods = _methods(cases)
    rows = [_shown(case, plane=plane, margin_mm=margin_mm) for case in cases.values()]
    sizes = [size_mm(grey) for grey, *_ in rows for _ in ("truth", *methods)]
    columns = len(methods) + 1
    figure, axes = panels(sizes, columns=columns, height=2.4, title=title)
    palette = palette_of(colours) / 255
    for number, axis in enumerate(axes):
        row, column = divmod(number, columns)
        name, case = list(cases.items())[row]
        grey, codes, at = rows[row]
        draw(axis, grey, window, small=True, bar=column == 0)
        left, right, bottom, top = grey.extent_mm
        axis.set(xlim=(left, right), ylim=(bottom, top))
        if column == 0:
            here = coarse(case.affine, case.volume.shape, case.truth.shape)
            contour(axis, case.truth, grey, here, at)
            axis.set_title(f"{name}\ntruth", color=LIGHT, size=9)
            continue
        method = methods[column - 1]
        _regions(axis, codes[method], palette)
        dice = dice_of(codes_of(case.predictions[method] > 0, case.truth > 0))
        axis.set_title(f"{method}\nDice {dice:.3f}", color=LIGHT, size=9)
    handles = [Patch(color=tuple(palette[k]), label=kind) for k, kind in enumerate(KINDS, 1)]
    figure.legend(handles=handles, loc="upper right", ncols=3, labelcolor=LIGHT, fontsize=8.5)
    caption(figure, window)
    said = "; ".join(text.replace("\n", " ") for axis in axes if (text := axis.get_title("left")))
    figure.alt = f"{title or 'Segmentations'}, {plane} slices, {named(window)}: {said}"
    return figure


def _methods(cases: Mapping[str, Segmented]) -> Sequence[str]:
    """The methods, which every case has. Raises ValueError where they or the shapes of masks differ."""
    if not cases:
        raise ValueError("cases: there is none to draw")
    methods = list(next(iter(cases.values())).predictions)
    for name, case in cases.items():
        shapes = {mask.shape for mask in (case.truth, *case.predictions.values())}
        if list(case.predictions) != methods or len(shapes) > 1:
            raise ValueError(
                f"cases[{name!r}] has the methods {list(case.predictions)} and masks of shapes {sorted(shapes)}; "
                f"{methods} and one shape are needed"
            )
    return methods


def _shown(case: Segmented, *, plane: str, margin_mm: float | None) -> tuple[Slice, dict[str, Slice], np.ndarray]:
    """The slice of a case in grey, the codes of each method in it, and a point of it."""
    here = coarse(case.affine, case.volume.shape, case.truth.shape)
    at = _fullest(case, here, plane) if case.at is None else np.asarray(case.at, float)
    grey = cut(case.volume, case.affine, plane=plane, at=at)
    found = {}
    for method, mask in case.predictions.items():
        codes = codes_of(mask > 0, case.truth > 0).astype(np.float32)
        found[method] = cut(codes, here, plane=plane, at=at, order=0)
    if margin_mm is None:
        return grey, found, at
    inside = np.any([np.nan_to_num(one.pixels) > 0 for one in found.values()], 0)
    return _within(grey, inside, margin_mm), found, at


def _fullest(case: Segmented, here: np.ndarray, plane: str) -> np.ndarray:
    """A point amid the truth in the slice that has most of it; of a truth without voxels, the middle."""
    points = np.argwhere(case.truth > 0) @ here[:3, :3].T + here[:3, 3]
    if not len(points):
        return to_mm(np.array(case.truth.shape) // 2, here)
    through = points[:, PLANES[plane][2]].round(1)
    places, counts = np.unique(through, return_counts=True)
    some = points[through == places[counts.argmax()]]
    return some[np.argmin(((some - some.mean(0)) ** 2).sum(1))]


def _within(grey: Slice, inside: np.ndarray, margin_mm: float) -> Slice:
    """The slice cut to a mask over the same extent and a margin around; without a mask, whole."""
    if not inside.any():
        return grey
    left, right, bottom, top = grey.extent_mm
    spans = []
    for axis, start, stop in ((0, top, bottom), (1, left, right)):
        step = (stop - start) / inside.shape[axis]
        hit = np.flatnonzero(inside.any(1 - axis))
        count = grey.pixels.shape[axis]
        pixel = abs(stop - start) / count
        first = int((hit[0] * abs(step) - margin_mm) // pixel)
        last = int(-(-((hit[-1] + 1) * abs(step) + margin_mm) // pixel))
        spans.append((max(first, 0), min(last, count), np.sign(stop - start) * pixel, start))
    (r0, r1, down, head), (c0, c1, along, side) = spans
    extent = (side + c0 * along, side + c1 * along, head + r1 * down, head + r0 * down)
    return Slice(grey.plane, grey.pixels[r0:r1, c0:c1], extent, grey.position_mm)


def _regions(axis: Axes, codes: Slice, palette: np.ndarray) -> None:
    """Each kind of region, filled faintly and outlined along the edges of its pixels."""
    left, right, bottom, top = codes.extent_mm
    kinds = np.nan_to_num(codes.pixels).astype(int)
    axis.imshow(palette[kinds] * [1, 1, 1, 0.25], extent=codes.extent_mm, interpolation="nearest")
    rows, columns = kinds.shape
    x = left + (right - left) * ((np.arange((columns + 2) * _FINER) + 0.5) / _FINER - 1) / columns
    y = top + (bottom - top) * ((np.arange((rows + 2) * _FINER) + 0.5) / _FINER - 1) / rows
    for kind in np.unique(kinds[kinds > 0]):
        mask = np.pad(kinds == kind, 1).repeat(_FINER, 0).repeat(_FINER, 1)
        axis.contour(x, y, mask, levels=[0.5], colors=[tuple(palette[kind])], linewidths=1.2)
