"""Coronal and sagittal slices docked beside napari's own axial ones: one place, shown in three planes at once.

napari's window has one canvas. Each further plane is a canvas of its own over a model of its own, whose layers are
twins of the window's: they share its arrays and follow what is done to its layers, and a slider moved in any plane
moves all. The main canvas alone turns to 3-D.
"""

from collections.abc import Sequence
from typing import Any

from widgets.layers import Layer

PLANES = {"coronal": (1, 0, 2), "sagittal": (2, 0, 1)}  # the axis that is cut, the one upwards, the one to the right
_CUT = ("axial", *PLANES)
_ENDS = ("the head", "the back", "the patient's left")  # of the world's axes
WINDOW = 1400, 950  # pixels
_FOLLOWED = ("data", "visible", "opacity", "contrast_limits", "contour", "colormap", "gamma", "blending")


def dock(viewer: Any, layers: Sequence[Layer], *, beside: Any, name: str) -> None:
    """Dock the other two planes to a viewer that shows `layers`, and under them a widget with its name."""
    from napari.components import ViewerModel  # pyright: ignore[reportMissingImports]
    from napari.qt import QtViewer  # pyright: ignore[reportMissingImports]
    from qtpy.QtCore import Qt  # pyright: ignore[reportMissingImports]
    from qtpy.QtWidgets import QSplitter  # pyright: ignore[reportMissingImports]

    models = []
    both = QSplitter(Qt.Orientation.Vertical)
    for plane, order in PLANES.items():
        model = ViewerModel(title=plane, order=order)
        models.append(model)
        for data, more, kind in layers:
            getattr(model, f"add_{kind}")(data, **more)
        for layer, twin in zip(viewer.layers, model.layers, strict=True):
            _follow(viewer, layer, twin)
        model.camera.orientation2d = ("up", "right")  # the head
        say_sides(model)
        both.addWidget(QtViewer(model))
    _at_one_place([viewer, *models])
    named = {" and ".join(PLANES): both, name: beside}
    docks = [viewer.window.add_dock_widget(widget, name=title, area="right") for title, widget in named.items()]
    _spread(viewer, docks)
    for model in (viewer, *models):
        model.reset_view()


def _spread(viewer: Any, docks: Sequence[Any]) -> None:
    """Give the window a size at which three planes can be seen; most of what the docks have is the first one's."""
    from qtpy.QtCore import Qt  # pyright: ignore[reportMissingImports]
    from qtpy.QtWidgets import QApplication  # pyright: ignore[reportMissingImports]

    wide, high = WINDOW
    window = viewer.window._qt_window
    viewer.window.resize(wide, high)
    window.resizeDocks(docks, [wide // 3] * len(docks), Qt.Orientation.Horizontal)
    window.resizeDocks(docks, [high * 4 // 5, high // 5], Qt.Orientation.Vertical)
    QApplication.processEvents()


def say_sides(model: Any) -> None:
    """Write into a canvas's corner which plane it shows and what lies to the right; nothing over a rendering."""
    dims = model.dims
    model.text_overlay.text = f"{_CUT[dims.order[0]]}, to the right: {_ENDS[dims.displayed[-1]]}"
    model.text_overlay.visible = dims.ndisplay == 2


def _follow(viewer: Any, layer: Any, twin: Any) -> None:
    """Whatever is changed of a layer that can be seen is changed of its twin; what a rendering shows white is not."""

    def changed(name: str) -> None:
        if name != "contrast_limits" or viewer.dims.ndisplay == 2:
            setattr(twin, name, getattr(layer, name))

    for name in _FOLLOWED:
        if hasattr(layer.events, name) and hasattr(twin, name):
            getattr(layer.events, name).connect(lambda _event, name=name: changed(name))


def _at_one_place(models: Sequence[Any]) -> None:
    """The slices of all go through the same point, whichever was moved."""

    def moved(event: Any) -> None:
        for model in models:
            if model.dims is not event.source and model.dims.point != event.source.point:
                model.dims.point = event.source.point

    for model in models:
        model.dims.events.point.connect(moved)
    for model in models[1:]:
        model.dims.point = models[0].dims.point
