"""Layers of napari without napari: the patient's left lies where the world says, for every affine.

The windows themselves are tested where napari, Qt and a display are; their pictures lie in build/napari afterwards.
"""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_slices import DIRECTIONS, NODULE_MM, phantom

from widgets import viewer
from widgets.geometry import coarse, to_mm
from widgets.layers import AXES, attention_layers, error_layers, upright, world

ROOT = Path(__file__).parents[1]
SHOTS = ROOT / "build" / "napari"
NAPARI = viewer.why_not()
WINDOW = pytest.mark.skipif(bool(NAPARI), reason=f"no napari window: {NAPARI}")


@pytest.mark.parametrize("name", ["LPS", "RAS", "LAS", "SPL", "PIR", "AIR", "oblique 20", "oblique permuted"])
def test_every_layer_lies_where_the_patient_is(name):
    volume, affine = phantom(DIRECTIONS[name], (4.0, 5.0, 6.0))
    grid = (5, 6, 4)
    maps = np.zeros((2, *grid), np.float32)
    cell = np.rint(np.linalg.inv(coarse(affine, volume.shape, grid))[:3] @ [*NODULE_MM, 1]).astype(int)
    maps[1][tuple(cell)] = 3.0
    layers = attention_layers(volume, affine, maps=maps, sentence=1, outline=volume > 0)
    assert [(more["name"], kind) for _, more, kind in layers] == [
        ("CT", "image"), ("attention", "image"), ("truth", "labels")
    ]  # fmt: skip
    for data, more, _ in layers:
        found = np.argwhere(data > data.max() / 2).mean(0) * more["scale"] + more["translate"]
        reach = 4 if more["name"] != "attention" else max(more["scale"])
        np.testing.assert_allclose(found, world(NODULE_MM), atol=reach)
        assert more["axis_labels"] == AXES == ("S", "P", "L")
        assert more["scale"].min() > 0


def test_voxels_that_only_change_their_order_are_not_copied():
    array = np.random.default_rng(0).normal(size=(4, 5, 6))
    affine = np.array([[0, 0, -2.0, 9], [0, -3.0, 0, 4], [1.5, 0, 0, -8], [0, 0, 0, 1]])
    turned, scale, first = upright(array, affine, order=1)
    assert np.shares_memory(turned, array)
    np.testing.assert_array_equal(turned, array)  # the array was in the world's order
    np.testing.assert_allclose(scale, [1.5, 3, 2])
    np.testing.assert_allclose(first, world(to_mm((0, 0, 0), affine)))


def test_windows_and_colours():
    volume, affine = np.zeros((3, 3, 3), np.float16), np.eye(4)
    look = attention_layers(volume, affine, maps=np.zeros((1, 2, 2, 2)), window="bone", window_hu=(-1000.0, 400.0))
    assert look[0][1]["contrast_limits"] == (480 - 1250, 480 + 1250)
    assert (look[0][0] == -1000).all()
    codes = np.array([[[0, 1], [2, 3]]], np.uint8).repeat(2, 0)
    layers = error_layers(volume.astype(np.float32), affine, codes={"a": codes, "b": codes})
    assert [more["visible"] for _, more, kind in layers if kind == "labels"] == [True, False]
    assert layers[1][1]["colormap"][2] == "#E4002B"
    with pytest.raises(ValueError, match="for every colour vision"):
        error_layers(volume, affine, codes={}, colours="rainbow")
    with pytest.raises(ValueError, match="no sentence 4"):
        attention_layers(volume, affine, maps=np.zeros((2, 1, 1, 1)), sentence=4)


def test_one_sentence_says_what_is_missing(monkeypatch):
    volume, affine = phantom(np.eye(3), (10.0, 10.0, 10.0))
    monkeypatch.setattr(viewer, "find_spec", lambda name: None)
    with pytest.raises(viewer.NoWindow, match=r"napari is not installed.*pip install -e .*viewer.*AttentionExplorer"):
        viewer.view_attention(volume, affine, sentences=["One."], maps=np.ones((1, 2, 2, 2)))
    monkeypatch.setattr(viewer, "find_spec", lambda name: "there" if name == "napari" else None)
    with pytest.raises(viewer.NoWindow, match=r"no binding of Qt.*ErrorViewer"):
        viewer.view_errors(volume, affine, truth=volume > 0, predictions={"a": volume > 0})
    monkeypatch.setattr(viewer, "find_spec", lambda name: "there")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert "xvfb-run -a" in viewer.why_not()
    monkeypatch.setenv("DISPLAY", ":97")
    monkeypatch.setattr(viewer, "_PROBE", "raise SystemExit(7)")
    assert "OpenGL" in viewer.why_not()
    monkeypatch.setattr(viewer, "_PROBE", "raise SystemExit(6)")
    assert "cannot reach the display :97" in viewer.why_not()


def test_nothing_asks_for_qt_before_a_window_is_opened():
    """No import of it at the top of a file: `mg3d` and `widgets` are there without Qt."""
    for file in (path for folder in ("mg3d", "widgets") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            for one in ast.walk(node) if not isinstance(node, ast.FunctionDef | ast.ClassDef) else ():
                names = [a.name for a in one.names] if isinstance(one, ast.Import) else [getattr(one, "module", "")]
                assert not {str(name).split(".")[0] for name in names} & {"napari", "qtpy", *viewer.BINDINGS}


def pictured(shown, name: str) -> np.ndarray:
    """The canvas as painted, [rows, columns, RGB]; the whole window is kept as a picture."""
    from qtpy.QtWidgets import QApplication

    QApplication.processEvents()
    SHOTS.mkdir(parents=True, exist_ok=True)
    shown.screenshot(str(SHOTS / f"{name}.png"), canvas_only=False)
    return shown.screenshot()[..., :3].astype(int)


@WINDOW
@pytest.mark.filterwarnings("default")
def test_a_window_shows_the_left_lung_on_the_right():
    from qtpy.QtWidgets import QListWidget

    volume, affine = phantom(DIRECTIONS["LAS"], (3.0, 3.0, 3.0))
    maps = np.zeros((2, *volume.shape), np.float32)
    maps[0] = volume > 0
    maps[1][2:5, 2:5, 2:5] = 1
    shown = viewer.view_attention(volume, affine, sentences=["A nodule.", "A corner."], maps=maps, outlines=volume > 0)
    pixels = pictured(shown, "attention")
    np.testing.assert_allclose(shown.dims.point, world(NODULE_MM), atol=14)
    bright = np.argwhere(pixels.min(-1) > 200)
    assert len(bright)
    assert np.median(bright[:, 1]) > pixels.shape[1] / 2
    lines = shown.window._qt_window.findChild(QListWidget)
    lines.setCurrentRow(1)  # as a click would
    np.testing.assert_allclose(shown.dims.point, world(to_mm((3, 3, 3), affine)), atol=3)
    assert np.abs(pictured(shown, "attention_corner") - pixels).max() > 100
    shown.dims.order = (1, 0, 2)
    assert str(shown.camera.orientation2d[0]).lower().endswith("up")
    shown.close()


@WINDOW
@pytest.mark.filterwarnings("default")
def test_a_window_shows_what_was_missed_in_yellow():
    from qtpy.QtWidgets import QListWidget

    volume, affine = phantom(DIRECTIONS["RAS"], (3.0, 3.0, 3.0))
    truth = volume > 0
    shown = viewer.view_errors(volume, affine, truth=truth, predictions={"a": np.zeros_like(truth)})
    pixels = pictured(shown, "errors")
    yellow = np.argwhere((pixels[..., 0] > 120) & (pixels[..., 1] > 100) & (pixels[..., 2] < pixels[..., 1] - 60))
    assert len(yellow)
    assert np.median(yellow[:, 1]) > pixels.shape[1] / 2
    lines = shown.window._qt_window.findChild(QListWidget)
    assert "a: missed" in lines.item(0).text()
    np.testing.assert_allclose(shown.dims.point, world(NODULE_MM), atol=14)
    shown.close()


@WINDOW
@pytest.mark.filterwarnings("default")
def test_three_planes_show_one_place_and_the_same_layers():
    from napari.qt import QtViewer
    from qtpy.QtWidgets import QApplication

    volume, affine = phantom(DIRECTIONS["PIR"], (3.0, 3.0, 3.0))
    maps = np.stack([volume > 0, volume == 0]).astype(np.float32)
    shown = viewer.view_attention(volume, affine, sentences=["A nodule.", "None."], maps=maps, outlines=volume > 0)
    canvases = {c.viewer.title: c for c in shown.window._qt_window.findChildren(QtViewer)}
    coronal, sagittal = (canvases[plane].viewer for plane in ("coronal", "sagittal"))
    assert coronal.dims.order == (1, 0, 2)
    assert sagittal.dims.order == (2, 0, 1)
    np.testing.assert_allclose(sagittal.dims.point, world(NODULE_MM), atol=14)
    where = world(to_mm((6, 7, 8), affine))
    coronal.dims.set_point(1, where[1])
    sagittal.dims.set_point(2, where[2])
    for model in (shown, coronal, sagittal):
        np.testing.assert_allclose(model.dims.point[1:], where[1:], atol=3)

    shown.layers["attention"].visible = False
    shown.layers["CT"].contrast_limits = (-500, 100)
    shown.layers["attention"].data = np.zeros_like(shown.layers["attention"].data)
    for model in (coronal, sagittal):
        assert not model.layers["attention"].visible
        assert model.layers["CT"].contrast_limits == [-500, 100]
        assert model.layers["CT"].data is shown.layers["CT"].data
        assert model.layers["attention"].data is shown.layers["attention"].data
        assert model.layers["truth"].contour == 1

    assert (shown.text_overlay.text, sagittal.text_overlay.text) == (
        "axial, to the right: the patient's left", "sagittal, to the right: the back"
    )  # fmt: skip
    shown.dims.ndisplay = 3
    assert shown.layers["CT"].contrast_limits == list(viewer.BONES)
    assert coronal.layers["CT"].contrast_limits == [-500, 100]
    assert not shown.text_overlay.visible
    shown.dims.ndisplay = 2
    shown.dims.set_point(range(3), world(NODULE_MM))
    QApplication.processEvents()
    for plane in ("coronal", "sagittal"):
        picture = canvases[plane].screenshot(flash=False)
        pixels = picture[..., :3].astype(int)
        Image.fromarray(picture).save(SHOTS / f"{plane}.png")
        bright = np.argwhere(pixels.min(-1) > 200)
        assert len(bright), plane
        half = pixels.shape[0] / 2
        assert (np.median(bright[:, 0]) < half) == (NODULE_MM[2] > to_mm(np.array(volume.shape) / 2, affine)[2]), plane
    shown.close()
