"""Cases against methods: the fullest slice, cut to its masks, with regions where they are."""

import numpy as np
import pytest

from widgets.cases import Segmented, _fullest, _shown, qualitative
from widgets.geometry import box_mm

AFFINE = np.diag([-2.0, -2.0, 4.0, 1.0])  # LPS
SHAPE = (40, 30, 10)


def segmented(**more) -> Segmented:
    """A box in three slices, larger in the middle one; method a is right, b shifted by 4 voxels."""
    truth = np.zeros(SHAPE, np.uint8)
    truth[10:20, 10:16, 4:7] = 1
    truth[8:22, 10:16, 5] = 1
    volume = np.where(truth > 0, 40, -800).astype(np.int16)
    given = {"volume": volume, "affine": AFFINE, "truth": truth, "predictions": {"a": truth, "b": np.roll(truth, 4, 0)}}
    return Segmented(**given | more)


def test_the_slice_is_the_fullest_one_and_cut_to_the_masks():
    case = segmented()
    assert _fullest(case, AFFINE, "axial")[2] == 5 * 4
    grey, codes, at = _shown(case, plane="axial", margin_mm=6.0)
    assert grey.position_mm == at[2] == 20
    left, right, bottom, top = grey.extent_mm
    low, high = box_mm((18, 6, 1), AFFINE + np.array([[0, 0, 0, -16], [0, 0, 0, -20], [0] * 4, [0] * 4]))
    assert (left, right, bottom, top) == (high[0] + 6, low[0] - 6, low[1] - 6, high[1] + 6)
    assert grey.pixels.shape == (12, 24)
    np.testing.assert_array_equal(np.isclose(grey.pixels, 40).sum(), 14 * 6)
    assert [np.sum(codes["b"].pixels == k) for k in (1, 2, 3)] == [60, 24, 24]
    whole, _, _ = _shown(case, plane="axial", margin_mm=None)
    assert whole.pixels.shape == (30, 40)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_row_a_case_and_a_column_a_method(plane):
    figure = qualitative({"one": segmented(), "two": segmented(at=(-30.0, -26.0, 16.0))}, plane=plane, title="T")
    titles = [axis.get_title("left") for axis in figure.axes]
    b = 2 * (10 * 6 * 2 + 60 - 4 * 6 * 2) / (2 * (2 * 60 + 84))
    assert titles == [
        "one\ntruth",
        "a\nDice 1.000",
        f"b\nDice {b:.3f}",
        "two\ntruth",
        "a\nDice 1.000",
        f"b\nDice {b:.3f}",
    ]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["correct", "wrong", "missing"]
    assert f"b Dice {b:.3f}" in figure.alt
    assert figure.png().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("cases", "more", "message"),
    [
        ({}, {}, "none to draw"),
        ({"a": segmented(), "b": segmented(predictions={"a": segmented().truth})}, {}, r"cases\['b'\]"),
        ({"a": segmented(predictions={"a": np.zeros((2, 2, 2))})}, {}, "one shape"),
        ({"a": segmented()}, {"colours": "pink"}, "unknown colours"),
    ],
)
def test_bad_input_is_named(cases, more, message):
    with pytest.raises(ValueError, match=message):
        qualitative(cases, **more)
