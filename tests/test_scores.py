"""Radar, heat map and scaling curve: every number is where it belongs, and each axis has its own scale."""

import numpy as np
import pandas as pd
import pytest

from widgets import scores

TABLE = pd.DataFrame(
    {"Dice": [70.0, 80.0, 75.0], "AUROC": [0.9, 0.8, np.nan], "HD95": [4.0, 2.0, 8.0]}, index=["a", "b", "ours"]
)


def test_each_column_is_scaled_by_itself():
    share = scores.shares(TABLE, lower=["HD95"])
    np.testing.assert_allclose(share["Dice"], [0, 1, 0.5])
    np.testing.assert_allclose(share["AUROC"], [1, 0, np.nan])
    np.testing.assert_allclose(share["HD95"], [2 / 3, 1, 0])
    assert scores.shares(pd.DataFrame({"x": [3.0, 3.0]}))["x"].tolist() == [1, 1]


def test_a_radar_has_a_polygon_a_method_and_prints_both_ends():
    figure = scores.radar(TABLE, ours="ours", lower=["HD95"])
    axis = figure.axes[0]
    assert [line.get_label() for line in axis.lines] == ["a", "b", "ours"]
    np.testing.assert_allclose(axis.lines[1].get_ydata(), [1, scores._INNER, 1, 1])
    assert np.isnan(axis.lines[2].get_ydata()[1])
    assert axis.lines[2].get_linewidth() > axis.lines[0].get_linewidth()
    printed = [text.get_text() for text in axis.texts]
    assert printed == ["70.0", "Dice\n80.0", "0.8", "AUROC\n0.9", "8.0", "HD95\n2.0"]
    assert "best: Dice b, AUROC a, HD95 b" in figure.alt
    with pytest.raises(ValueError, match="at least 3"):
        scores.radar(TABLE[["Dice", "AUROC"]])


def test_a_heat_map_prints_every_number_and_the_best_in_bold(tmp_path):
    figure = scores.heatmap(TABLE, lower=["HD95"], reference=TABLE + 1)
    texts = {text.get_text(): text for text in figure.axes[0].texts}
    assert texts["80.00"].get_weight() == texts["2.00"].get_weight() == "bold"
    assert texts["75.00"].get_weight() == "normal"
    assert "–" in texts
    assert "(81.00)" in texts
    figure.save(tmp_path / "table.svg")
    assert b"<svg" in (tmp_path / "table.svg").read_bytes()
    first = (tmp_path / "table.svg").read_bytes()
    scores.heatmap(TABLE, lower=["HD95"], reference=TABLE + 1).save(tmp_path / "table.svg")
    assert (tmp_path / "table.svg").read_bytes() == first
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        figure.save(tmp_path / "table.pdf")


def test_a_scaling_curve_is_dashed_where_no_point_supports_it():
    points = pd.DataFrame({"size": [10_000, 1_000], "value": [0.7, 0.6], "low": [0.68, 0.5], "high": [0.75, 0.62]})
    size = np.array([1_000, 10_000, 100_000])
    curve = pd.DataFrame({"size": size, "value": [0.6, 0.7, 0.75], "low": [0.5, 0.6, 0.6], "high": [0.7, 0.8, 0.9]})
    figure = scores.scaling(points, curve=curve, note="b = 0.1")
    axis = figure.axes[0]
    assert axis.get_xscale() == "log"
    solid, dashed = axis.lines[:2]
    assert solid.get_xdata().tolist() == [1_000, 10_000]
    assert dashed.get_xdata().tolist() == [10_000, 100_000]
    assert dashed.get_linestyle() == "--"
    bars = axis.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], [[0.5, 0.62], [0.68, 0.75]])
    assert [t.get_text() for t in axis.get_xticklabels()] == ["1,000", "10,000", "100,000"]
    two = pd.concat([points.assign(series=name) for name in ("swin_b", "swin_l")])
    assert len(scores.scaling(two).axes[0].containers) == 2
    with pytest.raises(ValueError, match="nothing to draw"):
        scores.scaling(points[:0])


@pytest.mark.parametrize(
    ("table", "more"),
    [(TABLE[:0], {}), (TABLE.assign(empty=np.nan), {}), (TABLE, {"lower": ["nothing"]})],
)
def test_a_table_without_numbers_is_refused(table, more):
    with pytest.raises(ValueError, match="columns without a number"):
        scores.heatmap(table, **more)
