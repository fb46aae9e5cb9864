"""Figures of the paper's tables: the radar of Fig. 8, a table as a heat map, scores against the size of the data.

Tables in, pictures out: nothing here fits or averages. Every axis of the radar and every column of the heat map has a
scale of its own, since AUROC, Dice, BLEU and recall do not compare.
"""

from collections.abc import Collection
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from widgets.figures import FAINT, INK, PALETTE, STYLE, Picture, _picture

_INNER = 0.3  # radius of the worst method of an axis; the best one is at 1
_MARKS, _OURS = "os^Dv*XP", PALETTE[1]


@mpl.rc_context(STYLE)
def radar(
    table: pd.DataFrame, *, ours: str = "", lower: Collection[str] = (), digits: int = 1, title: str = ""
) -> Picture:
    """A polygon for each method (row) over an axis for each data set (column), from the worst method to the best.

    The inner ring is the worst value of an axis, the outer one the best; both are printed. `lower` names columns where
    less is better; `ours` a row that is drawn thick. A method without a number leaves its line open there. Raises
    ValueError for fewer than 3 columns and for a column without numbers.
    """
    share = shares(table, lower=lower)
    if table.shape[1] < 3:
        raise ValueError(f"a radar needs at least 3 data sets, the table has {table.shape[1]}; heatmap draws it")
    figure = _picture(8.2, 6.6, title or "Inner ring: the worst of an axis, outer ring: the best")
    axis = figure.add_subplot(projection="polar")
    angles = np.pi / 2 - 2 * np.pi * np.arange(table.shape[1]) / table.shape[1]
    others = [name for name in share.index if name != ours]
    colours = [colour for colour in PALETTE if colour != _OURS]
    for name in share.index:
        radius = _INNER + (1 - _INNER) * share.loc[name].to_numpy()
        thick, number = name == ours, 0 if name == ours else others.index(name)
        style: dict[str, Any] = {"color": _OURS if thick else colours[number % len(colours)]}
        style |= {"marker": _MARKS[number % len(_MARKS)], "ms": 6 if thick else 4, "lw": 2.6 if thick else 1.2}
        style |= {"zorder": 3 if thick else 2, "ls": "-" if thick or number < len(colours) else "--"}
        axis.plot([*angles, angles[0]], [*radius, radius[0]], label=str(name), **style)
        if thick and np.isfinite(radius).all():
            axis.fill(angles, radius, color=style["color"], alpha=0.12)
    for angle, column in zip(angles, table, strict=True):
        ends = table[column].agg(["max", "min"] if column in lower else ["min", "max"])
        axis.text(angle, _INNER - 0.06, f"{ends.iloc[0]:.{digits}f}", ha="center", va="center", size=7.5, color=FAINT)
        axis.text(angle, 1.2, f"{column}\n{ends.iloc[1]:.{digits}f}", ha="center", va="center", size=9)
    axis.set(ylim=(0, 1.34), xticks=angles % (2 * np.pi), xticklabels=[], yticks=[_INNER, 1], yticklabels=[])
    axis.spines["polar"].set_visible(False)
    figure.legend(loc="outside right center")
    best = ", ".join(f"{column} {share[column].idxmax()}" for column in table)
    figure.alt = f"{title or 'Radar'}: {len(table)} methods on {table.shape[1]} data sets; best: {best}"
    return figure


@mpl.rc_context(STYLE)
def heatmap(
    table: pd.DataFrame,
    *,
    lower: Collection[str] = (),
    reference: pd.DataFrame | None = None,
    digits: int = 2,
    title: str = "",
) -> Picture:
    """A table with its numbers, each column coloured from its worst value (pale) to its best (dark, bold).

    `reference`: numbers of the same rows and columns that are printed small below, e.g. those of the paper. Cells
    without a number are grey. Raises ValueError for a table or a column without numbers.
    """
    share = shares(table, lower=lower)
    rows, columns = table.shape
    high = (0.34 if reference is None else 0.46) * rows + 1.3
    figure = _picture(1.6 + 1.0 * columns + 0.075 * max(map(len, map(str, table.index))), high, title)
    axis = figure.add_subplot()
    blues = mpl.colormaps["Blues"].with_extremes(bad="#e4e4e4")
    shown = 0.08 + 0.82 * share.to_numpy()
    beside = None if reference is None else reference.reindex(index=table.index, columns=table.columns)
    axis.imshow(np.ma.masked_invalid(shown), cmap=blues, vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(rows, columns):
        value, dark = table.iloc[row, column], shown[row, column] > 0.55
        text = "–" if pd.isna(value) else f"{value:.{digits}f}"
        style: dict[str, Any] = {"ha": "center", "color": "white" if dark else INK}
        lift = 0.14 if reference is not None else 0.0
        weight = "bold" if share.iloc[row, column] == 1 else "normal"
        axis.text(column, row - lift, text, va="center", weight=weight, size=9.5, **style)
        if beside is not None:
            printed = beside.iloc[row, column]
            below = "" if pd.isna(printed) else f"({printed:.{digits}f})"
            axis.text(column, row + 0.24, below, va="center", size=7.5, **style)
    axis.set_xticks(range(columns), [str(name).replace(" ", "\n", 1) for name in table], size=9)
    axis.set_yticks(range(rows), [str(name) for name in table.index], size=9)
    axis.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    best = ", ".join(f"{name} {share[name].idxmax()} {table[name][share[name].idxmax()]:.{digits}f}" for name in table)
    figure.alt = f"{title or 'Table'}: {rows} rows and {columns} columns; best: {best}"
    return figure


@mpl.rc_context(STYLE)
def scaling(
    points: pd.DataFrame,
    *,
    curve: pd.DataFrame | None = None,
    note: str = "",
    x: str = "volumes in pre-training",
    y: str = "",
    title: str = "",
) -> Picture:
    """Scores against the size of the data, and a fitted curve with its band, dashed where no point supports it.

    points  `size`, `value`, perhaps `low` and `high` (the interval); a column `series` makes several colours
    curve   `size`, `value`, perhaps `low` and `high` (the band) and `series`; computed elsewhere
    note    what is said of the fit, e.g. its formula with intervals

    Sizes are on a logarithmic axis. Raises ValueError for a table without points.
    """
    if points.empty:
        raise ValueError("points: there is no score yet, so there is nothing to draw")
    figure = _picture(7.2, 4.2, title)
    axis = figure.add_subplot()
    names = list(dict.fromkeys(points["series"])) if "series" in points else [""]
    for number, name in enumerate(names):
        colour = PALETTE[number % len(PALETTE)]
        some = _of(points, name)
        if curve is not None:
            _curve_with_band(axis, _of(curve, name), colour, known=some["size"].max())
        _dots(axis, some, number, str(name))
    axis.set_xscale("log")
    sizes = np.unique([*points["size"].to_numpy(), *([] if curve is None else [curve["size"].to_numpy().max()])])
    axis.set_xticks(sizes, [f"{size:,.0f}" for size in sizes], rotation=20 if len(sizes) > 5 else 0)
    axis.minorticks_off()
    axis.set(xlabel=x, ylabel=y)
    if note:
        axis.text(0.02, 0.97, note, transform=axis.transAxes, va="top", size=9, color=INK)
    if names != [""]:
        figure.legend(loc="outside lower right", ncols=len(names))
    said = (f"{size:,.0f}: {value:.3g}" for size, value in zip(points["size"], points["value"], strict=True))
    figure.alt = f"{title or y or 'Scores'} by {x}: {', '.join(said)}. {note}"
    return figure


def shares(table: pd.DataFrame, *, lower: Collection[str] = ()) -> pd.DataFrame:
    """Each column from 0, its worst value, to 1, its best; NaN stays, and equal values are 1.

    Raises ValueError for a table without rows, a column without numbers, and a name in `lower` that is no column.
    """
    numbers = table.astype(float)
    bare = [str(name) for name, count in numbers.count().items() if count == 0]
    unknown = [str(name) for name in lower if name not in table]
    if table.empty or bare or unknown:
        raise ValueError(
            f"a table of shape {table.shape}; columns without a number: {', '.join(bare) or 'none'}; "
            f"not among the columns: {', '.join(unknown) or 'none'}"
        )
    values = numbers.to_numpy() * [-1 if name in lower else 1 for name in table]
    low, high = np.nanmin(values, 0), np.nanmax(values, 0)
    equal = (low == high) & np.isfinite(values)
    return pd.DataFrame(
        np.where(equal, 1.0, (values - low) / np.where(low < high, high - low, 1)), table.index, table.columns
    )


def _of(table: pd.DataFrame, name: str) -> dict[str, np.ndarray]:
    """The columns of one series as numbers, by size; of a table without series, all of it."""
    rows = (table["series"] == name).to_numpy() if "series" in table else np.ones(len(table), bool)
    order = np.argsort(table["size"].to_numpy()[rows], kind="stable")
    numbers = [column for column in ("size", "value", "low", "high") if column in table]
    return {column: table[column].to_numpy(float)[rows][order] for column in numbers}


def _dots(axis: Axes, some: dict[str, np.ndarray], number: int, name: str) -> None:
    """The points of a series with their intervals, where they have any."""
    reach = None
    if "low" in some:
        reach = np.nan_to_num(np.clip([some["value"] - some["low"], some["high"] - some["value"]], 0, None))
    style: dict[str, Any] = {"fmt": _MARKS[number % len(_MARKS)], "color": PALETTE[number % len(PALETTE)]}
    axis.errorbar(some["size"], some["value"], yerr=reach, label=name, ms=6, capsize=3, zorder=3, **style)


def _curve_with_band(axis: Axes, line: dict[str, np.ndarray], colour: str, *, known: float) -> None:
    """The line, dashed beyond the largest size that is `known`, with its band where it has one."""
    size, value = line["size"], line["value"]
    within = size <= known
    axis.plot(size[within], value[within], color=colour, lw=1.6)
    beyond = size >= size[within].max(initial=size.min())
    axis.plot(size[beyond], value[beyond], color=colour, lw=1.6, ls=(0, (4, 2)))
    if "low" in line:
        axis.fill_between(size, line["low"], line["high"], color=colour, alpha=0.15, lw=0)
