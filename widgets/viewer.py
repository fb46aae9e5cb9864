"""napari with the workbench's layers: a window of its own, three planes, and the sentences or the lesions beside them.

    view_attention(volume, affine, sentences=..., maps=...)
    view_errors(volume, affine, truth=..., predictions=...)

Both need napari, a binding of Qt and a display. Where one is missing Qt does not raise, it ends the process, and with
it the kernel of a notebook; so all three are looked at first, in another process, and `NoWindow` says what to do.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from widgets.attention import Outlines
from widgets.errors import ErrorViewer
from widgets.geometry import Point, coarse, to_mm
from widgets.layers import Layer, attention_layers, error_layers, share, upright, world
from widgets.orthogonal import dock, say_sides
from widgets.panels import Window

BONES = (150.0, 1500.0)  # HU, what a rendering shows from black to white
BINDINGS = ("PySide6", "PyQt6", "PyQt5", "PySide2")
_INSTALL = 'install it, in the folder of the clone, with  pip install -e ".[viewer]"'
_PROBE = """
import sys
from qtpy.QtGui import QOpenGLContext
from qtpy.QtWidgets import QApplication
application = QApplication([])
sys.exit(0 if QOpenGLContext().create() else 7)
"""


class NoWindow(RuntimeError):
    """napari cannot be opened here; the message says why, and what shows the same in the notebook."""


def view_attention(
    volume: np.ndarray,
    affine: np.ndarray,
    *,
    sentences: Sequence[str],
    maps: np.ndarray,
    outlines: Outlines = None,
    window: Window = "lung",
    window_hu: tuple[float, float] | None = None,
) -> Any:
    """Open CT, map and truth in napari, with a list of the sentences that switches the map and goes to its peak.

    Arguments as of `AttentionExplorer`, with one run: maps [S, d, h, w]. The napari viewer comes back. Raises NoWindow,
    and ValueError for maps that do not fit.
    """
    refuse("AttentionExplorer")
    if len(sentences) != len(maps):
        raise ValueError(f"{len(sentences)} sentences and {len(maps)} maps: one map a sentence is needed")
    masks = [None] * len(maps) if outlines is None else outlines
    if isinstance(masks, np.ndarray) and masks.ndim == 3:
        masks = [masks] * len(maps)
    drawn = next((mask for mask in masks if mask is not None), None)
    look = {"window": window, "window_hu": window_hu}
    layers = attention_layers(volume, affine, maps=maps, outline=drawn, **look)
    viewer = _opened("attention", layers)

    def turned(array: np.ndarray) -> np.ndarray:
        return upright(array, coarse(affine, volume.shape, array.shape), order=int(array.dtype.kind == "f"))[0]

    def choose(number: int) -> None:
        viewer.layers["attention"].data = turned(share(maps[number]))
        if drawn is not None:
            mask = masks[number]
            shown = np.zeros(drawn.shape, np.uint8) if mask is None else (mask > 0).astype(np.uint8)
            viewer.layers["truth"].data = turned(shown)
        peak = np.unravel_index(np.nanargmax(maps[number]), maps[number].shape)
        _go(viewer, to_mm(peak, coarse(affine, volume.shape, maps.shape[1:])))

    _beside(viewer, layers, "sentences", list(sentences), choose)
    if drawn is not None:
        viewer.layers["truth"].contour = 1
    choose(0)
    return viewer


def view_errors(
    volume: np.ndarray,
    affine: np.ndarray,
    *,
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    classes: Mapping[str, int] | None = None,
    colours: str = "green, red, yellow",
    window: Window = "mediastinum",
    window_hu: tuple[float, float] | None = None,
) -> Any:
    """Open CT and one layer of errors for each model in napari, with a list of what was missed and invented.

    Arguments as of `ErrorViewer`, for the first of `classes`. The napari viewer comes back. Raises NoWindow, and what
    ErrorViewer raises.
    """
    refuse("ErrorViewer")
    look = {"window": window, "window_hu": window_hu}
    known = ErrorViewer(volume, affine, truth=truth, predictions=predictions, classes=classes, **look)
    codes = {model: known.codes(model) for model in predictions}
    layers = error_layers(volume, affine, codes=codes, colours=colours, **look)
    viewer = _opened("errors", layers)
    places = [option for option in known.jumps.options if option[1] is not None]
    _beside(viewer, layers, "lesions", [text for text, _ in places], lambda number: _go(viewer, places[number][1]))
    _go(viewer, known.board.at)
    return viewer


def refuse(instead: str) -> None:
    """Raise NoWindow, naming the viewer for the notebook to use `instead`, where napari cannot open a window."""
    reason = why_not()
    if reason:
        raise NoWindow(f"napari opens no window here: {reason}; in the notebook, widgets' {instead} shows the same")


def why_not() -> str:
    """Why napari cannot open a window, with the mend; empty where it can."""
    if find_spec("napari") is None:
        return f"napari is not installed ({_INSTALL})"
    if not any(find_spec(binding) for binding in BINDINGS):
        return f"no binding of Qt is installed ({_INSTALL})"
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display (on a server, start Python or Jupyter with  xvfb-run -a)"
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=60, check=False)
    if probe.returncode == 7:
        return "the display has no OpenGL (on Debian or Ubuntu:  apt install libgl1 libegl1 libgl1-mesa-dri)"
    return f"Qt cannot reach the display {os.environ.get('DISPLAY', '')}" if probe.returncode else ""


def _opened(title: str, layers: Sequence[Layer]) -> Any:
    """A napari viewer with layers, millimetres at its scale bar, the head up in every plane, and in 3-D the bones.

    A rendering shows the brightest voxel of each ray: in the window of a slice that is skin everywhere.
    """
    import napari  # pyright: ignore[reportMissingImports]

    viewer: Any = napari.Viewer(title=f"MG-3D {title} (research use only)")
    for data, more, kind in layers:
        getattr(viewer, f"add_{kind}")(data, **more)
    viewer.scale_bar.visible = True

    def head_up(_event: object = None) -> None:
        say_sides(viewer)
        viewer.camera.orientation2d = ("up" if viewer.dims.displayed[-2] == 0 else "down", "right")

    ct, window = viewer.layers["CT"], viewer.layers["CT"].contrast_limits

    def bones_in_3d(_event: object = None) -> None:
        say_sides(viewer)
        ct.contrast_limits = BONES if viewer.dims.ndisplay == 3 else window

    viewer.dims.events.order.connect(head_up)
    viewer.dims.events.ndisplay.connect(bones_in_3d)
    head_up()
    return viewer


def _go(viewer: Any, point: Point) -> None:
    """Show the slices through a point (RAS mm)."""
    viewer.dims.set_point(range(3), world(point))


def _beside(
    viewer: Any, layers: Sequence[Layer], name: str, texts: Sequence[str], choose: Callable[[int], None]
) -> None:
    """Dock the other two planes, and a list: choosing a line calls `choose` with its number."""
    from qtpy.QtWidgets import QListWidget  # pyright: ignore[reportMissingImports]

    lines = QListWidget()
    lines.setWordWrap(True)
    lines.addItems(list(texts))
    lines.currentRowChanged.connect(lambda number: choose(number) if number >= 0 else None)
    dock(viewer, layers, beside=lines, name=name)
