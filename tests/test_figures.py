"""Figures of tables: every curve is there, axes are logarithmic where needed, and IPython shows them by itself."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from widgets import figures


def metrics(steps: int) -> pd.DataFrame:
    step = np.arange(1, steps + 1)
    table = pd.DataFrame(
        {"step": step, "mim": 0.5 * 0.9**step, "ssm": 0.1 + 0.01 * np.sin(step), "loss": 1 / step, "lr": 1e-4 / step}
    )
    table["valid_mim"] = np.where(step % 5 == 0, 0.6 * 0.9**step, np.nan)
    table["rank"] = np.where(step % 5 == 0, step / 2, np.nan)
    return table


@pytest.mark.parametrize("steps", [1, 30, 200])
def test_a_run_has_a_panel_a_loss(steps):
    figure = figures.losses(metrics(steps))
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["MIM", "SSM", "sum of all", "learning rate", "effective rank"]
    assert figure.png().startswith(b"\x89PNG")


def test_axes_are_logarithmic_where_values_span_decades_and_only_there():
    scales = [axis.get_yscale() for axis in figures.losses(metrics(200)).axes]
    assert scales == ["log", "linear", "log", "linear", "log"]


def test_validation_is_drawn_at_its_steps():
    axis = figures.losses(metrics(30)).axes[0]
    assert list(axis.lines[1].get_xdata()) == [5, 10, 15, 20, 25, 30]


def test_an_empty_run_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="run pretrain first"):
        figures.losses(pd.DataFrame())


def test_prevalence_is_the_share_of_the_cases():
    labels = pd.DataFrame({"Emphysema": [1, 0, 0, 1], "Lung nodule": [1, 1, 1, 0]})
    figure = figures.prevalence(labels, split=["train", "train", "valid", "valid"])
    axis = figure.axes[0]
    assert [bar.get_width() for bar in axis.patches] == [50, 75]
    assert [list(line.get_xdata()) for line in axis.lines] == [[50, 100], [50, 50]]
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["train (2)", "valid (2)", "all (4)"]
    assert "Lung nodule 75 %" in figure.alt


def test_prevalence_without_labels_is_an_error():
    with pytest.raises(ValueError, match="no case carries labels"):
        figures.prevalence(pd.DataFrame(index=range(3)))


def test_ipython_shows_a_picture_without_pyplot():
    from IPython.core.formatters import DisplayFormatter

    data, extra = DisplayFormatter().format(figures.losses(metrics(30)))
    assert data["image/png"].startswith(b"\x89PNG")
    assert extra["image/png"]["alt"].startswith("Loss curves over 30 steps")
    assert "image/png" in data


def test_the_style_leaves_nothing_behind():
    before = dict(mpl.rcParams)
    figures.losses(metrics(30))
    assert dict(mpl.rcParams) == before


def test_the_first_colours_are_told_apart_by_the_red_and_the_green_blind():
    # Machado et al. 2009, severity 1: what a protanope and a deuteranope see of linear RGB
    matrices = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    }
    colours = np.array([mpl.colors.to_rgb(c) for c in figures.PALETTE[:4]])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    for matrix in matrices.values():
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.4)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(len(seen))
        assert apart.min() > 0.15


def test_the_png_has_the_size_that_it_claims():
    import io

    figure = figures.losses(metrics(30))
    data, extra = figure._repr_png_()
    assert imread(io.BytesIO(data)).shape[1] == pytest.approx(extra["width"], abs=1)


def test_intervals_have_a_line_a_row_and_a_dot_a_kind():
    scores = {"map": ["run", "run", "untrained"], "label": ["a", "b", "a"], "mean": [0.5, 0.2, 0.1]}
    table = pd.DataFrame(scores | {"low": [0.4, 0.2, 0.0], "high": [0.7, 0.2, 0.3]})
    figure = figures.intervals(table, row="label", colour="map", chance=0.05, title="Pointing")
    axis = figure.axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["a", "b"]
    dots = [container.lines[0].get_xdata() for container in axis.containers]
    assert [list(x) for x in dots] == [[0.5, 0.2], [0.1]]
    ends = axis.containers[0].lines[2][0].get_segments()
    assert np.allclose([segment[:, 0] for segment in ends], [[0.4, 0.7], [0.2, 0.2]])
    assert "a 0.5, b 0.2, a 0.1" in figure.alt
    with pytest.raises(ValueError, match="no row"):
        figures.intervals(table[:0], row="label")


@pytest.mark.parametrize("words", [1, 30])
def test_a_title_is_never_cut_off(words):
    table = pd.DataFrame({"label": ["a finding with a long name"], "mean": [0.5], "low": [0.4], "high": [0.6]})
    figure = figures.intervals(table, row="label", chance=0.5, title=" ".join(["Ground-Glass"] * words))
    figure.draw_without_rendering()
    assert figure._suptitle is not None
    title, sheet = figure._suptitle.get_window_extent(), figure.bbox
    assert sheet.x0 <= title.x0 < title.x1 <= sheet.x1
    assert max(axis.get_tightbbox().y1 for axis in figure.axes) <= title.y0 < title.y1 <= sheet.y1
