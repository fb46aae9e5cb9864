"""Pictures of predictions: every case is there, the median one is chosen, and colours say what is right and wrong."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from widgets import predictions
from widgets.predictions import MISSING, PICTURES, RIGHT, WRONG


def test_the_star_is_the_earliest_of_the_best_validations():
    step = np.arange(1, 7)
    table = pd.DataFrame({"step": step, "bce": 1.0 / step, "loss": 1.0 / step, "lr": 0.1, "norm": 1.0, "seconds": 2.0})
    table["valid_auroc"] = [np.nan, 0.6, np.nan, 0.8, np.nan, 0.8]
    figure = predictions.training(table, metric="auroc")
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["training: bce", "validation: auroc"]
    line, star = figure.axes[1].lines
    assert list(line.get_xdata()) == [2, 4, 6]
    assert (*star.get_xdata(), *star.get_ydata()) == (4, 0.8)
    assert "0.800, at step 4" in figure.alt


def test_a_study_that_trains_nothing_says_so():
    figure = predictions.training(pd.DataFrame(), metric="")
    assert "as it came" in figure.alt
    assert figure.png().startswith(b"\x89PNG")


LABELS = {
    "names": ["nodule", "always"],
    "predictions": np.array([[0.1, 0.2], [0.2, 0.3], [0.7, 0.3], [0.8, 0.9]]),
    "targets": np.array([[0, 1], [0, 1], [1, 1], [1, 1]]),
}


def test_labels_have_their_curve_and_each_case_a_dot():
    figure = predictions.classes(LABELS, title="t")
    nodule, always, dots, _ = figure.axes
    assert list(nodule.lines[1].get_ydata()) == [0, 0.5, 1, 1, 1]  # all those with it come first
    assert len(always.lines) == 1  # the diagonal alone: everybody has it
    assert [text.get_text() for axis in (nodule, always) for text in axis.texts] == ["AUROC 1.00\n2 of 4", "4 of 4"]
    assert sorted(x for line in dots.lines[::2] for x in line.get_xdata()) == [0.1, 0.2, 0.7, 0.8]
    assert figure.alt == "t: nodule AUROC 1.00, 2 of 4; always 4 of 4"


def test_classes_are_told_apart_one_against_the_rest():
    said = {"names": ["a", "b", "c"], "predictions": np.eye(3)[[0, 1, 2, 2]], "targets": np.array([[0], [1], [2], [1]])}
    alt = predictions.classes(said).alt
    assert "a AUROC 1.00, 1 of 4" in alt
    assert "b AUROC 0.75, 2 of 4" in alt


def test_many_labels_under_several_templates_are_drawn_by_the_first():
    rng = np.random.default_rng(0)
    p, true = rng.random((9, 2, 7)), rng.integers(0, 2, (9, 7))
    p[:, 0] = true
    figure = predictions.classes({"names": list("abcdefg"), "predictions": p, "targets": true})
    assert len(figure.axes) == 7
    assert figure.alt.count("AUROC 1.00") == 7
    assert figure.png().startswith(b"\x89PNG")


def segmented() -> dict:
    true, predicted = np.zeros((2, 20, 20, 20), int)
    true[5:15, 5:15, 5:15] = 1
    predicted[5:15, 5:15, 8:18] = 1
    predicted[5:7, 5:15, 8:15] = 2  # another structure's name
    said = {"volume": np.zeros((20, 20, 20)), "affine": np.diag([2.0, 2.0, 2.0, 1.0]), "window": (1500, -600)}
    return said | {"predicted": predicted, "true": true, "ids": ["x", "y"], "dice": np.array([[0.9], [0.5]])}


def test_right_wrong_and_missing_voxels_have_their_colours():
    figure = predictions.masks(segmented(), title="lungs")
    assert figure.alt.startswith("lungs; y: Dice 0.50, the median case of 2, W 1500 L -600: 560 voxels right")
    assert figure.alt.endswith("440 wrong, 300 missing")
    plain, judged = figure.axes[:3], figure.axes[3:]
    assert [len(axis.images) for axis in plain] == [1, 1, 1]
    axial = np.asarray(judged[0].images[1].get_array())[..., :3].reshape(-1, 3)
    for colour in (RIGHT, WRONG):
        assert (np.abs(axial - to_rgb(colour)).max(1) < 0.01).any()
    coronal = np.asarray(judged[1].images[1].get_array())[..., :3].reshape(-1, 3)
    assert (np.abs(coronal - to_rgb(MISSING)).max(1) < 0.01).any()


def test_a_prediction_on_the_left_of_the_array_is_drawn_on_the_right_side_of_the_patient():
    """x grows to the patient's right, which the picture shows on its left; whichever way the array runs."""
    said = segmented()
    said["true"] = said["predicted"] = np.zeros((20, 20, 20), int)
    said["true"][14:18, 8:12, 8:12] = 1
    for flip in (False, True):
        turned = said if not flip else said | {
            "volume": said["volume"][::-1], "true": said["true"][::-1], "predicted": said["predicted"][::-1],
            "affine": said["affine"] @ np.array([[-1, 0, 0, 19], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
        }  # fmt: skip
        axial = np.asarray(predictions.masks(turned).axes[3].images[1].get_array())
        columns = np.flatnonzero(axial[..., 3].max(0) > 0)
        assert columns.max() < axial.shape[1] / 2


@pytest.mark.parametrize(
    ("scores", "place"), [([0.3, 0.1, 0.2], 2), ([0.1, 0.4, 0.2, 0.3], 2), ([[np.nan, 0.5], [0.1, 0.1]], 1)]
)
def test_the_middle_case(scores, place):
    assert predictions.middle(np.array(scores)) == place


def test_no_case_is_in_the_middle_of_none():
    with pytest.raises(ValueError, match="no case has a score"):
        predictions.middle(np.array([np.nan]))


def test_a_report_is_shown_with_what_both_name():
    said = {
        "predictions": ["A nodule. $5 and $6.", "Nothing."],
        "targets": ["A nodule and fluid.", "Nothing."],
        "says": np.array([[1, 0], [0, 0]]),
        "there": np.array([[1, 1], [0, 0]]),
        "names": np.array(["nodule", "effusion"]),
        "ids": np.array(["x", "y"]),
    }
    figure = predictions.reports(said, title="t")
    assert "x: finding F1 0.67, the median case of 2" in figure.alt
    assert figure.alt.endswith("named by both: nodule; only written: nothing; only in the reference: effusion")
    shown = [text.get_text() for text in figure.texts]
    assert "A nodule. $5 and $6." in shown
    assert figure.png().startswith(b"\x89PNG")


def test_bars_of_recall_stand_beside_chance():
    scores = {f"{way}/recall@{k}": {"value": k / 20, "low": 0.1, "high": 0.9}
              for way in ("report_to_volume", "volume_to_report") for k in (5, 10)}  # fmt: skip
    scores |= {f"chance/recall@{k}": {"value": k / 40} for k in (5, 10)}
    figure = predictions.recalls({"scores": scores}, title="t")
    (axis,) = figure.axes
    assert [bar.get_height() for bar in axis.patches] == [25, 50, 25, 50]
    assert figure.alt == "t, report to volume: recall@5 25 % (chance 12 %), recall@10 50 % (chance 25 %)"


def test_every_task_has_a_picture():
    from mg3d.heads import HEADS

    assert PICTURES.keys() == HEADS.keys()
