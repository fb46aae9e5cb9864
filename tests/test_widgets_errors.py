"""The error viewer on boxes whose errors are known by construction."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from widgets.errors import ErrorViewer
from widgets.geometry import to_mm
from widgets.panes import OVER, TRACES
from widgets.verdict import COLOURS, scores_of

AFFINE = np.array([[-2.0, 0, 0, 30], [0, -2, 0, 30], [0, 0, 5, -40], [0, 0, 0, 1]])  # LPS, voxels of 0.02 ml
SHAPE = (30, 28, 16)


def masks() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Two lesions; model a finds half of the first, invents one and misses the second, model b is right."""
    truth, a = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    truth[4:12, 4:12, 3:6] = 1  # on the left of the image, the patient's right
    truth[20:24, 20:24, 10:12] = 1
    a[4:8, 4:12, 3:6] = 1
    a[2:4, 22:26, 13] = 1
    return truth, {"a": a, "b": truth.copy()}


def viewer(**more) -> ErrorViewer:
    truth, predictions = masks()
    volume = np.random.default_rng(0).integers(-200, 200, SHAPE, np.int16)
    return ErrorViewer(volume, AFFINE, **{"truth": truth, "predictions": predictions} | more)


def colours(shown: ErrorViewer, number: int) -> set[tuple[int, ...]]:
    """The opaque colours that lie over a panel."""
    source = shown.board.figure.data[TRACES * number + OVER].source
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGBA"))
    return {tuple(int(c) for c in p[:3]) for p in pixels.reshape(-1, 4) if p[3]}


def test_errors_by_slice_are_counted_in_ml():
    shown = viewer()
    for plane, axis, flip in (("axial", 2, True), ("coronal", 1, False), ("sagittal", 0, False)):
        table = shown.by_slice("a", plane)
        truth, predictions = masks()
        missing = ((truth == 1) & (predictions["a"] == 0)).sum(tuple({0, 1, 2} - {axis})) * 0.02
        np.testing.assert_allclose(table["missing"], missing[::-1] if flip else missing)
        assert table["wrong"].sum() == pytest.approx(8 * 0.02)
        assert table["correct"].sum() == pytest.approx(96 * 0.02)
    assert shown.by_slice("b")[["wrong", "missing"]].to_numpy().sum() == 0


def test_it_starts_in_the_worst_slice_and_jumps_to_what_was_missed():
    shown = viewer()
    errors = shown.by_slice("a")[["wrong", "missing"]].sum(axis=1)
    assert errors[shown.board.frame.number("axial", shown.board.at)] == errors.max()
    missed = next(point for text, point in shown.jumps.options[1:] if text.startswith("a: missed"))
    shown.jumps.value = missed
    index = np.linalg.inv(AFFINE)[:3] @ [*shown.board.at, 1]
    assert masks()[0][tuple(np.rint(index).astype(int))] == 1
    assert np.rint(index)[2] in (10, 11)
    assert "a: missing" in shown.board.readout.value
    assert "b: correct" in shown.board.readout.value


def test_no_lesion_is_crowded_out_of_the_list_by_false_alarms():
    truth, predictions = masks()
    predictions["a"][::2, 0, 0] = 1  # specks
    texts = [text for text, _ in viewer(truth=truth, predictions=predictions).jumps.options[1:]]
    kinds = ["missed" if "missed" in t else "lesion" if "lesion" in t else "false alarm" for t in texts]
    assert kinds == sorted(kinds, key=["missed", "lesion", "false alarm"].index)
    found = [float(t.split(", ")[2].split()[0]) for t, kind in zip(texts, kinds, strict=True) if kind == "lesion"]
    assert found == sorted(found)
    assert len(found) == 3
    assert kinds[-1] == "false alarm"


def test_components():
    table = viewer().components("a")
    assert list(table["kind"]) == ["lesion", "lesion", "false alarm"]
    assert list(table["missed"]) == [False, True, True]
    assert list(table["found"]) == pytest.approx([0.5, 0, 0])
    assert list(table["ml"]) == pytest.approx([192 * 0.02, 32 * 0.02, 8 * 0.02])
    assert len(viewer().components("b")) == 2
    assert list(viewer(truth=masks()[0] > 0).classes) == ["label 1"]  # of a mask of bool, too


def test_colours_say_what_is_right():
    shown = viewer(at=to_mm((7, 7, 4), AFFINE))
    green, red, yellow = ((0, 166, 81), (228, 0, 43), (255, 212, 0))
    assert colours(shown, 0) == {green, yellow}
    assert colours(shown, 3) == {green}  # the second model's column
    shown.board.move(to_mm((3, 23, 13), AFFINE))
    assert colours(shown, 0) == {red}
    shown.colours.value = list(COLOURS)[1]
    assert colours(shown, 0) == {(0xD5, 0x5E, 0x00)}
    figure = shown.board.figure
    assert figure.data[0].xaxis != figure.data[3 * TRACES].xaxis
    assert figure.layout.xaxis2.domain[0] > figure.layout.xaxis.domain[1]


def test_scores_are_handed_in_or_computed_per_class():
    assert viewer().scores("a")["Dice"] == pytest.approx(2 * 96 / (2 * 96 + 8 + 128))
    given = viewer(scores={"a": {"Dice": 0.5, "HD95 mm": 7.0}, "b": {"Dice": 1.0, "HD95 mm": 0.0}})
    assert "HD95 mm 7" in given._table.value
    truth, predictions = masks()
    truth[20:24] *= 2
    shown = viewer(truth=truth, predictions=predictions, classes={"organ": 1, "tumour": 2},
                   scores=lambda p, t: {"ml": float(p.sum() - t.sum())})  # fmt: skip
    assert shown.scores("a") == {"ml": 96 + 8 - 192}
    shown.choice.value = "tumour"
    assert shown.scores("a") == {"ml": -32}
    assert shown.scores("a")["ml"] == -32
    assert "ml -32" in shown._table.value


def test_the_profile_and_the_buttons_move_the_crosshair():
    shown = viewer()
    shown._profile_clicked(None, type("P", (), {"xs": [3]}), None)
    assert shown.board.slices["axial"].value == 3
    assert list(shown.profile.data[1].y) == [0] * SHAPE[2]
    shown._controls.children[1].children[0].click()
    np.testing.assert_allclose(shown.board.at, shown.board.frame.snapped(shown.worst("a")))


def test_the_static_twin(tmp_path):
    shown = viewer()
    shown.save(tmp_path / "errors.png")
    figure = shown.figure()
    assert (tmp_path / "errors.png").read_bytes()[:4] == b"\x89PNG"
    titles = [axis.get_title("left") for axis in figure.axes[:2]]
    assert titles[0].startswith("a\nDice 0.585, HD95 mm ")
    assert titles[1] == "b\nDice 1, HD95 mm 0"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["correct", "wrong", "missing"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": {"a": np.zeros((2, 2, 2), int)}}, "the truth"),
        ({"truth": np.zeros(SHAPE, int)}, "0 classes"),
        ({"predictions": {}}, "0 predictions"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        viewer(**change)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 2.0, 5.0)])
def test_dice_and_hd95_are_those_of_the_metrics(spacing):
    from mg3d.metrics.segmentation import dice, hd95, surface_distances

    rng = np.random.default_rng(0)
    for share in (0.02, 0.5):
        predicted, true = (rng.random((2, 9, 8, 7)) < share).astype(np.uint8)
        codes = (predicted & true) + 2 * (predicted & ~true & 1) + 3 * (~predicted & 1 & true)
        found = scores_of(codes, np.diag([-spacing[0], *spacing[1:], 1.0]))
        far = hd95(surface_distances(predicted, true, classes=1, spacing_mm=spacing))
        assert found["Dice"] == pytest.approx(dice(predicted, true, classes=1)[0])
        assert found["HD95 mm"] == pytest.approx(far[0])
    alone = scores_of(np.full((2, 2, 2), 3, np.uint8), np.eye(4))
    assert alone == {"Dice": 0, "HD95 mm": np.inf}
    assert np.isnan(scores_of(np.zeros((2, 2, 2), np.uint8), np.eye(4))["Dice"])


def test_keys_step_through_lesions_and_the_button_finds_what_was_missed():
    shown = viewer(colours="for every colour vision")
    assert colours(shown, 0) <= {(0x56, 0xB4, 0xE9), (0xD5, 0x5E, 0x00), (0xF0, 0xE4, 0x42)}
    shown.board.hands._handle_custom_msg({"kind": "step", "axis": "x", "steps": 2}, [])
    assert shown.jumps.index == 2
    shown.missed.click()
    assert shown.jumps.label.startswith("a: missed")
    missed = shown.jumps.index
    shown.missed.click()
    assert shown.jumps.index == missed  # the only one
    shown.board.hands._handle_custom_msg({"kind": "step", "axis": "x", "steps": -99}, [])
    assert shown.jumps.index == 1
    with pytest.raises(ValueError, match="unknown colours"):
        viewer(colours="pink")
