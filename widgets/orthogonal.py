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


def dock(viewer: Any, layers: Sequence[Layer]) -> dict[str, Any]:
    """Dock the other two planes to a viewer that shows `layers`, and return their models by the plane's name."""
    from napari.components import ViewerModel  # pyright: ignore[reportMissingImports]
    from napari.qt import QtViewer  # pyright: ignore[reportMissingImports]
    from qtpy.QtCore import Qt  # pyright: ignore[reportMissingImports]
    from qtpy.QtWidgets import QSplitter  # pyright: ignore[reportMissingImports]

    models: dict[str, Any] = {}
    both = QSplitter(Qt.Orientation.Vertical)
    for plane, order in PLANES.items():
        model = models[plane] = ViewerModel(title=plane, order=order)
        for data, more, kind in layers:
            getattr(model, f"add_{kind}")(data, **more)
        for layer, twin in zip(viewer.layers, model.layers, strict=True):
            _follow(viewer, layer, twin)
        model.camera.orientation2d = ("up", "right")  # the head
        say_sides(model)
        both.addWidget(QtViewer(model))
    viewer.window.add_dock_widget(both, name=" and ".join(PLANES), area="right")
    _at_one_place([viewer, *models.values()])
    return models


def spread(viewer: Any, models: Sequence[Any]) -> None:
    """Give the window a size at which three planes can be seen, each fitted into its canvas."""
    from qtpy.QtCore import Qt  # pyright: ignore[reportMissingImports]
    from qtpy.QtWidgets import QApplication, QDockWidget  # pyright: ignore[reportMissingImports]

    viewer.window.resize(*WINDOW)
    window = viewer.window._qt_window
    docked = [
        d for d in window.findChildren(QDockWidget) if window.dockWidgetArea(d) == Qt.DockWidgetArea.RightDockWidgetArea
    ]
    window.resizeDocks(docked, [WINDOW[0] // 3] * len(docked), Qt.Orientation.Horizontal)
    shares = [4 if "coronal" in d.objectName() or "coronal" in d.windowTitle() else 1 for d in docked]
    window.resizeDocks(docked, [WINDOW[1] * s // sum(shares) for s in shares], Qt.Orientation.Vertical)
    QApplication.processEvents()
    for model in (viewer, *models):
        model.reset_view()


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
