"""Figures of tables (losses, prevalences, scores with intervals), and the house style of every picture.

A `Picture` draws itself wherever a cell ends with it: in JupyterLab, in an executed notebook, on a forge page. It never
touches pyplot, so there is no global state, no backend to choose and nothing to close.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, final

import matplotlib as mpl
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

# Okabe and Ito's palette, made to be told apart with every kind of colour vision
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, FAINT = "#222222", "#8a8a8a"
DPI = 110
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}

# columns of a run's metrics that are no loss of their own
_TOTAL = "loss"
_OTHER = ("step", "lr", "lr_fusion", "seconds", "norm", "rank")
_LOG_FROM = 20.0  # a positive quantity that spans this factor is drawn on a log axis
_LETTERS, _LINE = 10, 0.2  # of a bold title of 11 points: letters that an inch takes, inches that a line takes
_SMOOTH_FROM = 40  # steps from which a running median is drawn over the raw line


@final
class Picture(Figure):
    """A matplotlib figure that IPython shows as PNG by itself; `alt` is what a screen reader says."""

    alt: str = ""

    def png(self) -> bytes:
        """The figure as a PNG file."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI, facecolor=self.get_facecolor())
        return buffer.getvalue()

    def save(self, path: Path | str) -> None:
        """Write the figure as PNG or SVG, by the ending of `path`. Raises ValueError for another ending."""
        file = Path(path)
        if file.suffix not in (".png", ".svg"):
            raise ValueError(f"{file.name}: a picture is saved as .png or .svg")
        if file.suffix == ".png":
            file.write_bytes(self.png())
            return
        with mpl.rc_context({"svg.hashsalt": "mg3d"}):  # the same picture, the same file
            self.savefig(file, format="svg", facecolor=self.get_facecolor(), metadata={"Date": None})

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        width = round(self.get_figwidth() * DPI)
        return self.png(), {"alt": self.alt, "width": width}


@mpl.rc_context(STYLE)
def losses(metrics: pd.DataFrame) -> Picture:
    """Small multiples of a run: one panel a named loss, then their sum, the learning rate and the rank.

    `metrics` has a row a step and the columns `step`, any losses (weighted, as they enter the sum), `loss` (their sum),
    and where there are: `valid_<loss>` (validation, empty between validations), `lr`, `rank` (effective rank of the
    pooled features). Positive losses that span a factor of 20 get a log axis. Raises ValueError when there is
    no row yet.
    """
    if metrics.empty or "step" not in metrics:
        raise ValueError("metrics: no step is logged yet; run pretrain first")
    drawn = series(metrics)
    named = [name for name in drawn if name not in (_TOTAL, *_OTHER)]
    figure, axes = _grid(len(drawn), width=3.0, height=2.05)
    for axis, name in zip(axes, drawn, strict=True):
        colour = PALETTE[0] if name in named else INK
        _curve(axis, metrics["step"].to_numpy(), metrics[name].to_numpy(float), colour, smooth=name != "lr")
        if f"valid_{name}" in metrics:
            valid = metrics[["step", f"valid_{name}"]].dropna()
            axis.plot(*valid.to_numpy().T, "o-", ms=3.5, lw=1, color=PALETTE[1])
        axis.set_title(_TITLES.get(name) or name.upper())
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if name != "lr":  # its rise and fall are straight lines
            _log_where_needed(axis, metrics[name].to_numpy(float))
    handles = [Line2D([], [], color=PALETTE[0]), Line2D([], [], color=PALETTE[1], marker="o", ms=4)]
    figure.legend(handles, ["training", "validation"], loc="outside upper right", ncols=2)
    figure.supxlabel("optimiser step", fontsize=10)
    last = ", ".join(f"{name} {metrics[name].dropna().iloc[-1]:.3g}" for name in named)
    figure.alt = f"Loss curves over {int(metrics['step'].iloc[-1])} steps; last values: {last}"
    return figure


_TITLES = {_TOTAL: "sum of all", "lr": "learning rate", "rank": "effective rank"}


def series(metrics: pd.DataFrame) -> list[str]:
    """What of a run is drawn: its losses, then their sum, the learning rate and the rank, where there are."""
    named = [c for c in metrics.columns if c not in (*_OTHER, _TOTAL) and not c.startswith("valid_")]
    return named + [c for c in (_TOTAL, "lr", "rank") if c in metrics]


@mpl.rc_context(STYLE)
def prevalence(labels: pd.DataFrame, *, split: Sequence[str] | None = None) -> Picture:
    """How often each finding occurs: a bar over all cases, and a dot for each split.

    `labels` [cases, findings] holds 0 or 1 (empty: not stated); `split` names the split of each row. Raises ValueError
    when there are no labels.
    """
    if labels.empty:
        raise ValueError("labels: no case carries labels, so there is no prevalence to draw")
    share = labels.mean().sort_values()
    figure = _picture(7.2, 0.9 + 0.27 * len(share))
    axis = figure.add_subplot()
    rows = np.arange(len(share))
    axis.barh(rows, 100 * share, color="#cfe3ef", height=0.7, label=f"all ({len(labels)})")
    groups = [] if split is None else list(dict.fromkeys(split))
    for colour, marker, name in zip(PALETTE, "osD^vPX", groups, strict=False):
        part = labels[np.asarray(split) == name]
        axis.plot(100 * part.mean()[share.index], rows, marker, ms=4.5, color=colour, label=f"{name} ({len(part)})")
    axis.set_yticks(rows, list(share.index))
    axis.set_xlabel("cases with the finding, %")
    axis.set_xlim(left=0)
    axis.grid(axis="y", visible=False)
    axis.legend(loc="lower right")
    axis.set_title("Prevalence of the findings")
    figure.alt = "Prevalence of findings: " + ", ".join(
        f"{n} {100 * v:.0f} %" for n, v in reversed(list(share.items()))
    )
    return figure


@mpl.rc_context(STYLE)
def intervals(
    table: pd.DataFrame, *, row: str, colour: str = "", chance: float | None = None, label: str = "", title: str = ""
) -> Picture:
    """A dot and its interval for each row of a table of scores with the columns `mean`, `low` and `high`.

    `row` is the column that names the lines, in the order in which they occur, from the top; `colour` one that gives
    several dots to a line. `chance` is drawn as a dashed line. Raises ValueError for a table without rows.
    """
    if table.empty:
        raise ValueError("the table of scores has no row: there is nothing to draw")
    lines = list(dict.fromkeys(table[row]))
    kinds = list(dict.fromkeys(table[colour])) if colour else [""]
    named = bool(colour) or chance is not None
    figure = _picture(7.2, 1.0 + 0.3 * named + (0.26 + 0.08 * (len(kinds) - 1)) * len(lines), title)
    axis = figure.add_subplot()
    for number, kind in enumerate(kinds):
        part = table[table[colour] == kind] if colour else table
        y = np.array([lines.index(name) for name in part[row]]) + 0.22 * (number - (len(kinds) - 1) / 2)
        reach = np.clip([part["mean"] - part["low"], part["high"] - part["mean"]], 0, None)
        style = {"fmt": "os^Dv"[number % 5], "color": PALETTE[number % len(PALETTE)], "ms": 5, "lw": 1.4}
        axis.errorbar(part["mean"], y, xerr=reach, label=str(kind), **style)
    if chance is not None:
        axis.axvline(chance, ls="--", lw=1, color=FAINT, label="chance")
    axis.set_yticks(range(len(lines)), [str(name) for name in lines])
    axis.set_ylim(len(lines) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(label)
    if named:
        figure.legend(loc="outside lower right", ncols=len(kinds) + 1)
    figure.alt = f"{title or label}: " + ", ".join(
        f"{n} {m:.3g}" for n, m in zip(table[row], table["mean"], strict=True)
    )
    return figure


def _picture(width: float, height: float, title: str = "") -> Picture:
    """An empty Picture; sizes in inches. A title too long for one line goes on in the next, and the sheet grows."""
    lines = wrap(title, round(_LETTERS * width))
    height += _LINE * max(0, len(lines) - 1)
    picture = Picture(figsize=(width, height), layout="constrained", facecolor="white")
    if lines:
        picture.suptitle("\n".join(lines), x=0.01, ha="left", size=11, weight="bold")
    return picture


def _grid(n: int, *, width: float, height: float, columns: int = 3, title: str = "") -> tuple[Picture, list[Axes]]:
    """A Picture with n panels in rows of `columns`; sizes of a panel in inches."""
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    figure = _picture(width * columns, height * rows + 0.5, title)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(n)]


def _curve(axis: Axes, x: np.ndarray, y: np.ndarray, colour: str, *, smooth: bool) -> None:
    """A line; for a long one, with `smooth`, the raw values faint and their running median over them."""
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    if not smooth or len(y) < _SMOOTH_FROM:
        axis.plot(x, y, color=colour, lw=1.5, marker="o" if len(y) < 12 else None, ms=3.5)
        return
    axis.plot(x, y, color=colour, lw=0.8, alpha=0.3)
    running = pd.Series(y).rolling(max(5, len(y) // 15), center=True, min_periods=1).median()
    axis.plot(x, running, color=colour, lw=1.6)


def _log_where_needed(axis: Axes, values: np.ndarray) -> None:
    known = values[np.isfinite(values)]
    if known.size and known.min() > 0 and known.max() / known.min() >= _LOG_FROM:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
