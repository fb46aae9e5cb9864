"""CT slices as radiologists read them, as static pictures.

In radiological display, whatever the order and the orientation of the array (see `geometry`), with the letters of the
patient's sides, millimetres, a scale bar and the window printed on every picture.

    volume  [D, H, W]  HU; or values in [0, 1] with `window_hu=(lowest, highest)`, the window of the preparation
    affine  [4, 4]     voxel indices (i, j, k, 1) of the array -> millimetres in RAS (x to the right, y front, z head)
    overlay [d, h, w]  a map over the same field of view, of any grid (e.g. the token grid: its cells show as such)
    outline [d, h, w]  a mask over the same field of view, drawn as a contour

For research use only: no picture made here is a medical device.
"""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np

from widgets.figures import PALETTE, STYLE, Picture
from widgets.geometry import PLANES, Point, box_mm, coarse, cut, to_mm
from widgets.panels import LIGHT, Window, caption, contour, cross, draw, heat, in_hu, named, panels, size_mm

_TISSUES = (  # name, typical HU, side of its line on which the name stands
    ("air", -1000, "left"), ("lung", -850, "left"), ("fat", -100, "right"), ("water", 0, "right"),
    ("soft tissue", 60, "left"), ("bone", 700, "left"),
)  # fmt: skip


@mpl.rc_context(STYLE)
def planes(
    volume: np.ndarray,
    affine: np.ndarray,
    *,
    at: Point | None = None,
    window: Window = "lung",
    window_hu: tuple[float, float] | None = None,
    overlay: np.ndarray | None = None,
    outline: np.ndarray | None = None,
    opacity: float = 0.5,
    threshold: float | None = None,
    label: str = "",
    title: str = "",
) -> Picture:
    """Axial, coronal and sagittal slices through the point `at` in RAS mm.

    Without `at`: through the overlay's peak, else the voxel of the outline nearest to its middle, else the centre.
    `window` is a name of WINDOWS or (width, level) in HU. The overlay is drawn where it reaches `threshold` (default:
    half its peak), with a colour bar named `label`. Raises ValueError for an unknown window and a volume not 3-D.
    """
    volume = _hu(volume, window_hu)
    at = _point(volume, affine, at, overlay, outline)
    cuts = [cut(volume, affine, plane=plane, at=at) for plane in PLANES]
    figure, axes = panels([size_mm(c) for c in cuts], height=3.6, title=title, bar=overlay is not None)
    image = None
    for axis, one in zip(axes, cuts, strict=True):
        draw(axis, one, window)
        cross(axis, one, at)
        if overlay is not None:
            image = heat(
                axis,
                overlay,
                one,
                coarse(affine, volume.shape, overlay.shape),
                at,
                opacity=opacity,
                threshold=threshold,
            )
        if outline is not None:
            contour(axis, outline, one, coarse(affine, volume.shape, outline.shape), at)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01, aspect=30)
        bar.set_label(label, color=LIGHT)
        bar.ax.tick_params(colors=LIGHT, labelsize=8)
    caption(figure, window)
    figure.alt = f"{title or 'CT'}: axial, coronal and sagittal slice, {named(window)}"
    return figure


@mpl.rc_context(STYLE)
def montage(
    volume: np.ndarray,
    affine: np.ndarray,
    n: int = 12,
    plane: str = "axial",
    *,
    window: Window = "lung",
    window_hu: tuple[float, float] | None = None,
    outline: np.ndarray | None = None,
    title: str = "",
) -> Picture:
    """`n` slices at equal distances, from the head down (axial), from the front or from the right."""
    volume = _hu(volume, window_hu)
    low, high = box_mm(volume.shape, affine)
    through = PLANES[plane][2] if plane in PLANES else 0
    centre = (low + high) / 2
    cuts = []
    for share in (np.arange(n) + 0.5) / n:
        at = centre.copy()
        at[through] = high[through] - share * (high[through] - low[through])
        cuts.append((cut(volume, affine, plane=plane, at=at), at))
    columns = min(n, 6 if n > 8 else 4)
    sizes = [size_mm(c) for c, _ in cuts]
    figure, axes = panels(sizes, columns=columns, height=11 / columns * sizes[0][1] / sizes[0][0], title=title)
    for axis, (one, at) in zip(axes, cuts, strict=True):
        draw(axis, one, window, small=True, bar=axis is axes[0])
        if outline is not None:
            contour(axis, outline, one, coarse(affine, volume.shape, outline.shape), at)
    caption(figure, window)
    figure.alt = f"{title or 'CT'}: {n} {plane} slices, {named(window)}"
    return figure


@mpl.rc_context(STYLE)
def compare(
    volumes: Mapping[str, np.ndarray],
    affine: np.ndarray,
    *,
    at: Point | None = None,
    window: Window = "lung",
    window_hu: tuple[float, float] | None = None,
    title: str = "",
) -> Picture:
    """Volumes of one frame side by side, a column each under its name: an axial row and a coronal row."""
    images = {name: _hu(volume, window_hu) for name, volume in volumes.items()}
    first = next(iter(images.values()))
    at = _point(first, affine, at, None, None)
    cuts = [cut(v, affine, plane=plane, at=at) for plane in ("axial", "coronal") for v in images.values()]
    figure, axes = panels([size_mm(c) for c in cuts], columns=len(images), height=2.9, title=title)
    for number, (axis, one) in enumerate(zip(axes, cuts, strict=True)):
        draw(axis, one, window, bar=number % len(images) == 0)
    for axis, name in zip(axes, images, strict=False):
        axis.set_title(name, color=LIGHT, loc="center")
    caption(figure, window)
    figure.alt = f"{title or 'CT'}: {', '.join(images)} side by side, axial and coronal, {named(window)}"
    return figure


@mpl.rc_context(STYLE)
def histogram(
    volumes: np.ndarray | Mapping[str, np.ndarray],
    *,
    window_hu: tuple[float, float] | None = None,
    title: str = "Voxel values",
) -> Picture:
    """Share of the voxels by HU, a line a volume, with what lies where: air, lung, fat, water, soft tissue, bone."""
    series = volumes if isinstance(volumes, Mapping) else {"": volumes}
    figure = Picture(figsize=(7.2, 3.2), layout="constrained", facecolor="white")
    axis = figure.add_subplot()
    edges = np.arange(-1024, 1537, 16)
    for number, (name, volume) in enumerate(series.items()):
        values = np.clip(_hu(volume, window_hu), edges[0], edges[-1] - 1)
        share = np.histogram(values[np.isfinite(values)], edges)[0] / values.size
        axis.stairs(100 * np.maximum(share, 1e-7), edges, color=PALETTE[number % len(PALETTE)], lw=1.4, label=name)
    axis.set(yscale="log", xlabel="HU", ylabel="voxels per 16 HU, %", xlim=(-1060, 1200), ylim=(1e-3, 300))
    for tissue, hu, side in _TISSUES:
        axis.axvline(hu, color="#bbbbbb", lw=0.8, ls=":", zorder=0)
        axis.text(hu, 0.98, f" {tissue} ", transform=axis.get_xaxis_transform(), rotation=90, va="top", ha=side, size=8)
    if any(series):
        axis.legend(loc="upper right")
    axis.set_title(title)
    figure.alt = f"{title}: histogram of HU of {len(series)} volume(s)"
    return figure


def _hu(volume: np.ndarray, window_hu: tuple[float, float] | None) -> np.ndarray:
    """The volume in HU; ValueError when it is not 3-D."""
    volume = np.asarray(volume)
    if volume.ndim != 3:
        raise ValueError(f"volume: 3 axes are needed, this one has shape {volume.shape}")
    return in_hu(volume, window_hu)


def middle(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The voxel of `mask` [D, H, W] nearest to its middle, in RAS mm: inside, also where the mask is hollow or in two.

    Raises ValueError for an empty mask.
    """
    inside = np.argwhere(mask)
    if not len(inside):
        raise ValueError("the mask is empty: it has no middle")
    return to_mm(inside[np.argmin(((inside - inside.mean(0)) ** 2).sum(1))], affine)


def _point(
    volume: np.ndarray, affine: np.ndarray, at: Point | None, overlay: np.ndarray | None, outline: np.ndarray | None
) -> np.ndarray:
    """The point to cut through, moved to the centre of its voxel."""
    if at is not None:
        index = np.linalg.inv(affine) @ [*at, 1.0]
        return to_mm(np.clip(np.round(index[:3]), 0, np.array(volume.shape) - 1), affine)
    if overlay is not None:
        peak = np.unravel_index(np.nanargmax(overlay), overlay.shape)
        return _point(volume, affine, to_mm(peak, coarse(affine, volume.shape, overlay.shape)), None, None)
    if outline is not None and np.any(outline):
        return _point(volume, affine, middle(outline, coarse(affine, volume.shape, outline.shape)), None, None)
    return to_mm(np.array(volume.shape) // 2, affine)
