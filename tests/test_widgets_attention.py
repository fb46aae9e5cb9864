"""The attention explorer on a phantom: what is left in the patient is right on the screen, for every affine."""

import base64
import io
import json

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from widgets.attention import AttentionExplorer
from widgets.frame import Frame
from widgets.geometry import PLANES, coarse, cut, to_mm
from widgets.hands import HOME
from widgets.panes import CROSS, GREY, LINE, OVER, TRACES

SHAPE, SPACING = (24, 30, 20), 5.0  # along right-left, front-back, head-feet
NODULE = np.array([-40.0, 20.0, 15.0])  # in the left lung, in front, high up
SENTENCES = ("A nodule in the <left> lung.", "The heart is normal.", "No effusion.")


def volume(code: str) -> tuple[np.ndarray, np.ndarray]:
    """Air with a bright ball, int16, in an array whose axes point where the letters say; and its affine."""
    axes = {"R": (1, 0, 0), "A": (0, 1, 0), "S": (0, 0, 1), "L": (-1, 0, 0), "P": (0, -1, 0), "I": (0, 0, -1)}
    linear = np.array([axes[letter] for letter in code], float).T * SPACING
    shape = tuple(int(n) for n in np.abs(linear.T / SPACING) @ SHAPE)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, -linear @ ((np.array(shape) - 1) / 2)
    places = np.tensordot(linear, np.indices(shape), 1) + affine[:3, 3, None, None, None]
    inside = np.linalg.norm(places - NODULE.reshape(3, 1, 1, 1), axis=0) < 12
    return np.where(inside, 400, -1000).astype(np.int16), affine


def maps(shape: tuple[int, ...], affine: np.ndarray, grid: tuple[int, int, int] = (4, 5, 4)) -> np.ndarray:
    """Sentence 0 looks at the nodule, 1 at the opposite corner, 2 everywhere alike."""
    found = np.full((3, *grid), 0.1, np.float32)
    index = np.linalg.inv(coarse(affine, shape, grid)) @ [*NODULE, 1]
    cell = tuple(np.rint(index[:3]).astype(int))
    found[0][cell] = 5.0
    found[1][tuple(n - 1 - c for n, c in zip(grid, cell, strict=True))] = 5.0
    return found


def explorer(code: str = "LPS", **more) -> AttentionExplorer:
    array, affine = volume(code)
    return AttentionExplorer(
        array, affine, **{"sentences": SENTENCES, "maps": maps(array.shape, affine), "at": NODULE} | more
    )


def picture(shown: AttentionExplorer, number: int, kind: int) -> np.ndarray:
    """RGBA pixels of a trace as the browser gets them."""
    source = shown.board.figure.data[TRACES * number + kind].source
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGBA"))


def sent(shown: AttentionExplorer, monkeypatch) -> list[int]:
    """Bytes of each message from the figure to the browser, filled as they are sent."""
    sizes, send = [], shown.board.figure.comm.send

    def counted(data=None, metadata=None, buffers=None):
        sizes.append(len(json.dumps(data)) + sum(memoryview(b).nbytes for b in buffers or []))
        return send(data=data, metadata=metadata, buffers=buffers)

    monkeypatch.setattr(shown.board.figure.comm, "send", counted)
    return sizes


@pytest.mark.parametrize("code", ["LPS", "RAS", "LAS", "SPL", "PIR"])
def test_left_is_right_on_the_screen_and_the_map_lies_on_the_nodule(code):
    shown = explorer(code)
    letters = [a.text for a in shown.board.figure.layout.annotations]
    assert letters[0:4] == ["<b>R</b>", "<b>L</b>", "<b>A</b>", "<b>P</b>"]
    assert letters[10:14] == ["<b>A</b>", "<b>P</b>", "<b>S</b>", "<b>I</b>"]
    for number, (plane, (row, column, _)) in enumerate(PLANES.items()):
        grey, over = picture(shown, number, GREY), picture(shown, number, OVER)
        trace = shown.board.figure.data[TRACES * number]
        y, x = np.argwhere(grey[..., 0] > 250).mean(0)
        frame = shown.board.frame
        assert frame.high[column] - (trace.x0 + x * trace.dx) == pytest.approx(NODULE[column], abs=4)
        assert frame.high[row] - (trace.y0 + y * trace.dy) == pytest.approx(NODULE[row], abs=4)
        assert (x > grey.shape[1] / 2) == (plane != "sagittal")
        assert over[round(y), round(x), 3] == 255
        assert 0 < (over[..., 3] > 0).mean() < 0.2


@pytest.mark.parametrize("turn", [np.eye(3), np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])])
def test_a_frame_cuts_as_geometry_does(turn):
    rng = np.random.default_rng(0)
    array, affine = rng.normal(size=(9, 11, 7)), np.eye(4)
    affine[:3, :3] = turn * [2.0, 2.5, 3.0]
    frame = Frame(array.shape, affine, pixels=100)
    at = frame.snapped(to_mm((4, 5, 3), affine))
    for plane in PLANES:
        for order in (0, 1):
            mine, other = (
                frame.cut(array, plane=plane, at=at, order=order), cut(array, affine, plane=plane, at=at, order=order)
            )  # fmt: skip
            np.testing.assert_allclose(mine.pixels, other.pixels, atol=1e-5)
            assert mine.extent_mm == pytest.approx(other.extent_mm)
        assert max(Frame(array.shape, affine, pixels=5).size(plane)) == 5


def test_a_click_moves_all_planes_and_the_sliders():
    shown = explorer()
    board = shown.board
    before = [picture(shown, n, GREY).copy() for n in range(3)]
    board._follow("axial", board.move)(None, type("P", (), {"xs": [20.0], "ys": [100.0]}), None)
    assert board.at[0] == pytest.approx(board.frame.high[0] - 20, abs=SPACING / 2)
    assert board.at[1] == pytest.approx(board.frame.high[1] - 100, abs=SPACING / 2)
    assert board.at[2] == pytest.approx(board.frame.snapped(NODULE)[2])
    changed = [not np.array_equal(old, picture(shown, n, GREY)) for n, old in enumerate(before)]
    assert changed == [False, True, True]  # the axial plane is the one that was clicked in
    for plane in PLANES:
        assert board.slices[plane].value == board.frame.number(plane, board.at)
    cross = board.figure.data[CROSS]
    assert cross.x[0] == pytest.approx(board.frame.high[0] - board.at[0])
    board.slices["axial"].value = 1
    assert board.at[2] == pytest.approx(board.frame.high[2] - SPACING / 2)


def test_windows_and_values():
    shown = explorer(window="mediastinum")
    board = shown.board
    assert board.window == (400, 40)
    board.preset.value = "soft tissue"
    assert board.window == (350, 50)
    board.width.value = 351
    assert board.preset.value == "free"
    assert "400 HU" in board.readout.value
    assert "1.00 of its peak" in board.readout.value
    unit = explorer(window_hu=(-1000.0, 1000.0))
    assert unit.board.hu(NODULE) == 400 * 2000 - 1000


def test_wheel_and_keys_move_slices_sentences_and_windows(monkeypatch):
    shown = explorer()
    board, done = shown.board, []
    monkeypatch.setattr(board.hands, "send", done.append)

    def hear(kind: str, steps: int, axis: str = "x") -> None:
        board.hands._handle_custom_msg({"kind": kind, "axis": axis, "steps": steps}, [])

    for number, (plane, (_, _, through)) in enumerate(PLANES.items()):
        axis = board.figure.data[TRACES * number].xaxis or "x"
        before, place = board.at.copy(), board.frame.number(plane, board.at)
        hear("slice", 2, axis)
        assert board.slices[plane].value == place + 2
        assert [a for a in range(3) if before[a] != board.at[a]] == [through]
        hear("slice", 100_000, axis)
        assert board.slices[plane].value == board.frame.count[through]
    hear("step", 1)
    assert shown.sentence == shown.list.value == 1
    hear("step", -5)
    assert shown.sentence == 0
    hear("window", 3)
    assert board.window == (2500, 480)
    hear("window", 9)
    assert board.preset.value == "soft tissue"
    assert len(done) == 10  # one answer each: the browser waits for it
    assert HOME in shown.widget._dom_classes


def test_the_two_views_hear_in_a_grid_of_columns_too():
    one = explorer().maps[""][""]
    board = explorer(maps={"a": one, "b": one}).board
    place = board.frame.number("coronal", board.at)
    board._asked("slice", board.figure.data[TRACES * 4].xaxis, 1)  # second run, coronal
    assert board.frame.number("coronal", board.at) == place + 1


def test_which_sentence_looks_here():
    shown = explorer()
    assert [i for i, _ in shown.rank(NODULE)] == [0, 2, 1]
    assert dict(shown.rank(NODULE))[2] == pytest.approx(1)
    shown.order.value = "by who looks here"
    assert [index for _, index in shown.list.options] == [0, 2, 1]
    shown.board.move(shown.peak(1))
    assert next(index for _, index in shown.list.options) == 1
    assert shown.sentence == shown.list.value == 0
    asked = shown.board.at
    shown.list.value = 2
    assert shown.sentence == 2
    np.testing.assert_array_equal(shown.board.at, asked)  # the question stays with its place
    shown.order.value = "as in the report"
    shown.list.value = 1
    np.testing.assert_allclose(shown.board.at, shown.board.frame.snapped(shown.peak(1)))
    assert SENTENCES[1] in shown._said.value


def test_overlay_follows_threshold_colours_and_opacity():
    shown = explorer()
    few = (picture(shown, 0, OVER)[..., 3] > 0).sum()
    shown.threshold.value = 0.0
    assert (picture(shown, 0, OVER)[..., 3] > 0).sum() > few
    colour = picture(shown, 0, OVER)[0, 0, :3]
    shown.colours.value = "viridis"
    assert not np.array_equal(colour, picture(shown, 0, OVER)[0, 0, :3])
    shown.opacity.value = 0.25
    assert shown.board.figure.data[OVER].opacity == 0.25


def test_the_browser_hears_of_a_figure_when_it_is_complete(monkeypatch):
    seen, tell = [], go.FigureWidget.open

    def opened(figure) -> None:
        seen.append((len(figure._widget_data), figure._widget_layout["width"]))
        tell(figure)

    monkeypatch.setattr(go.FigureWidget, "open", opened)
    shown = explorer()
    assert seen == [(3 * TRACES, shown.board.figure.layout.width)]
    assert shown.board.figure.comm is not None


def test_outline_layers_and_runs_share_the_crosshair():
    array, affine = volume("RAS")
    one = maps(array.shape, affine)
    runs = {name: {"layer 0": one[::-1], "layer 1": one} for name in ("mg3d", "untrained")}
    shown = AttentionExplorer(
        array, affine, sentences=SENTENCES, maps=runs, outlines=[array > 0, None, None], at=NODULE
    )
    assert len(shown.board.figure.data) == 2 * 3 * TRACES
    line = shown.board.figure.data[3 * TRACES + LINE]
    found = np.array([(x, y) for x, y in zip(line.x, line.y, strict=True) if x is not None]).mean(0)
    assert found == pytest.approx(shown.board.frame.high[:2] - NODULE[:2], abs=4)
    shown.layer_choice.value = "layer 0"
    assert shown.rank(NODULE)[0][0] == 2
    shown.pick(1, jump=False)
    assert not shown.board.figure.data[LINE].x
    names = [a.text for a in shown.board.figure.layout.annotations if a.name != "label"]
    assert names == ["mg3d", "untrained"]


def test_a_slice_change_is_small(monkeypatch):
    noise = np.random.default_rng(0).integers(-1400, 200, (460, 460, 3), np.int16)
    some = np.random.default_rng(1).random((3, 8, 8, 3)).astype(np.float32)
    for given in (some, {"a": some, "b": some}):
        shown = AttentionExplorer(noise, np.diag([-1.0, -1, 3, 1]), sentences=SENTENCES, maps=given)
        sizes = sent(shown, monkeypatch)
        shown.board.slices["axial"].value = 1
        assert 50_000 < sum(sizes) < 300_000


def test_the_static_twin(tmp_path, monkeypatch):
    shown = explorer(maps={name: explorer().maps[""][""] for name in ("a", "b")}, outlines=volume("LPS")[0] > 0)
    figure = shown.figure()
    assert [axis.get_title("left") for axis in figure.axes[:6]] == ["a", "", "", "b", "", ""]
    printed = " ".join(t.get_text() for t in figure.texts)
    assert SENTENCES[0] in printed
    assert SENTENCES[1] not in printed
    shown.save(tmp_path / "twin.png")
    assert (tmp_path / "twin.png").read_bytes() == figure.png()
    monkeypatch.setenv("MG3D_WIDGETS", "0")
    assert list(shown._repr_mimebundle_()) == ["image/png"]
    monkeypatch.setenv("MG3D_WIDGETS", "1")
    assert "application/vnd.jupyter.widget-view+json" in shown._repr_mimebundle_()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentences": SENTENCES[:2]}, "for 2 sentences"),
        ({"maps": {"a": {"x": np.ones((3, 1, 1, 1))}, "b": {"y": np.ones((3, 1, 1, 1))}}}, "equal ones are needed"),
        ({"outlines": [None]}, "1 outlines for 3 sentences"),
        ({"window": "brain"}, "lung, mediastinum, bone"),
        ({"maps": {}}, "nothing to show"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        explorer(**change)
