"""One slice drawn in one panel: greys by its window, letters of the patient's sides, position, scale bar, overlays."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke

from widgets.figures import PALETTE, Picture
from widgets.geometry import PLANES, Slice, cut

WINDOWS = {"lung": (1500, -600), "mediastinum": (400, 40), "bone": (2500, 480)}  # width, level in HU
_DARK, LIGHT, _OUTLINE, _CROSS = "black", "#f2f2f2", PALETTE[4], PALETTE[5]
_HEAT = "autumn"  # red to yellow: apart from every grey, and rising in lightness
_HALO = [withStroke(linewidth=2.2, foreground=_DARK)]  # keeps letters legible on lung and on bone

Window = str | tuple[float, float]


def in_hu(values: Any, window_hu: tuple[float, float] | None) -> Any:
    """Values in [0, 1] of a window of the preparation in HU, float32; without one they are in HU, and stay."""
    if window_hu is None:
        return values
    low, high = window_hu
    return np.asarray(values, np.float32) * (high - low) + low


def levels(window: Window) -> tuple[float, float]:
    """Width and level in HU."""
    if not isinstance(window, str):
        return window
    if window not in WINDOWS:
        raise ValueError(f"unknown window {window!r}; valid: {', '.join(WINDOWS)}, or (width, level) in HU")
    return WINDOWS[window]


def named(window: Window) -> str:
    """The window as it is printed on a picture."""
    width, level = levels(window)
    name = f"{window} window " if isinstance(window, str) else ""
    return f"{name}W {width:g} L {level:g}"


def size_mm(one: Slice) -> tuple[float, float]:
    """Width and height of a slice in mm."""
    left, right, bottom, top = one.extent_mm
    return left - right, top - bottom


def panels(
    sizes: Sequence[tuple[float, float]],
    *,
    height: float,
    columns: int | None = None,
    title: str = "",
    bar: bool = False,
) -> tuple[Picture, list[Axes]]:
    """A dark Picture with one panel a slice, all at one scale; `height` is that of the highest row in inches."""
    columns = columns or len(sizes)
    rows = -(-len(sizes) // columns)
    wide = [max(width for width, _ in sizes[c::columns]) for c in range(columns)]
    high = [max(h for _, h in sizes[r * columns : (r + 1) * columns]) for r in range(rows)]
    scale = height / max(high)
    width = max(6.0, sum(wide) * scale + 0.08 * columns + 0.9 * bar)
    text = fill(title, int(width * 11))
    above = 0.12 + 0.22 * (text.count("\n") + 1) * bool(text)
    whole = sum(high) * scale + above + 0.3 + 0.08 * rows
    rect = (0, 0.25 / whole, 1, 1 - (0.25 + above) / whole)
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0, rect=rect)
    figure = Picture(figsize=(width, whole), layout=layout, facecolor=_DARK)
    figure.text(0.008, 1 - 0.08 / whole, text, color=LIGHT, size=11, weight="bold", va="top")
    grid = figure.add_gridspec(rows, columns, width_ratios=wide, height_ratios=high)
    return figure, [figure.add_subplot(grid[i // columns, i % columns]) for i in range(len(sizes))]


def draw(axis: Axes, one: Slice, window: Window, *, small: bool = False, bar: bool = True) -> None:
    """The slice in grey with its letters, its position and, with `bar`, a scale bar."""
    width, level = levels(window)
    grey = mpl.colormaps["gray"].with_extremes(bad=_DARK)
    black, white = level - width / 2, level + width / 2
    axis.imshow(one.pixels, cmap=grey, extent=one.extent_mm, interpolation="bilinear", vmin=black, vmax=white)
    axis.set_axis_off()
    size = 8 if small else 10
    style = {"color": LIGHT, "path_effects": _HALO, "transform": axis.transAxes}
    places = ((0.015, 0.5, "left", "center"), (0.985, 0.5, "right", "center"))
    places += ((0.5, 0.985, "center", "top"), (0.5, 0.015, "center", "bottom"))
    for letter, (x, y, ha, va) in zip(one.letters, places, strict=True):
        axis.text(x, y, letter, ha=ha, va=va, size=size, weight="bold", **style)
    axis.text(0.015, 0.985, one.position, ha="left", va="top", size=size - 1, **style)
    if bar:
        _scale_bar(axis, one, size - 1)


def _scale_bar(axis: Axes, one: Slice, size: float) -> None:
    """5 cm in the lower right corner; 1 cm where the picture is too narrow for that."""
    _, right, bottom, _ = one.extent_mm
    wide, high = size_mm(one)
    length = 50 if wide >= 100 else 10
    x, y = right + 0.03 * wide, bottom + 0.04 * high
    axis.plot([x + length, x], [y, y], color=LIGHT, lw=2.5, solid_capstyle="butt", path_effects=_HALO)
    axis.text(x + length / 2, y + 0.012 * high, f"{length // 10} cm", ha="center", va="bottom", size=size, color=LIGHT,
              path_effects=_HALO)  # fmt: skip


def cross(axis: Axes, one: Slice, at: np.ndarray) -> None:
    """Marks on the edges where the other two planes cut this one; they leave the anatomy free."""
    row, column, _ = PLANES[one.plane]
    for start, stop in ((0, 0.07), (0.93, 1)):
        axis.axhline(at[row], start, stop, color=_CROSS, lw=1)
        axis.axvline(at[column], start, stop, color=_CROSS, lw=1)


def heat(
    axis: Axes,
    overlay: np.ndarray,
    one: Slice,
    here: np.ndarray,
    at: np.ndarray,
    *,
    opacity: float,
    threshold: float | None,
) -> AxesImage:
    """The overlay where it reaches the threshold; `here` is its affine. Cells stay cells: nothing is smoothed."""
    peak = float(np.nanmax(overlay))
    low = peak / 2 if threshold is None else threshold
    cells = cut(np.asarray(overlay, np.float32), here, plane=one.plane, at=at, order=0)
    shown = np.ma.masked_where(~(cells.pixels >= low), cells.pixels)
    return axis.imshow(
        shown, cmap=_HEAT, alpha=opacity, extent=cells.extent_mm, interpolation="nearest", vmin=low, vmax=max(peak, low)
    )


def contour(axis: Axes, outline: np.ndarray, one: Slice, here: np.ndarray, at: np.ndarray) -> None:
    """The border of the mask in this slice, where it has one; `here` is the mask's affine."""
    mask = cut(np.asarray(outline, np.float32), here, plane=one.plane, at=at, order=1)
    inside = np.pad(np.nan_to_num(mask.pixels), 1)
    if inside.max() <= 0.5:
        return
    left, right, bottom, top = mask.extent_mm
    rows, columns = mask.pixels.shape
    x = left + (right - left) * (np.arange(-1, columns + 1) + 0.5) / columns
    y = top + (bottom - top) * (np.arange(-1, rows + 1) + 0.5) / rows
    axis.contour(x, y, inside, levels=[0.5], colors=[_OUTLINE], linewidths=1.3)


def caption(figure: Picture, window: Window) -> None:
    """The window, and what the picture must not be used for."""
    figure.text(0.008, 0.012, named(window), color=LIGHT, size=8.5)
    figure.text(0.992, 0.012, "research use only", color=LIGHT, size=8.5, ha="right")
