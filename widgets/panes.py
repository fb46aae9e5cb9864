"""The plotly figure of the interactive viewers: a panel for each source and plane, complete but for its pictures.

A panel has four traces (GREY and OVER are pictures, LINE and CROSS lines) and five labels: the letters of its four
sides and its position. Its coordinates are mm from the left and upper edge, so that every panel has one scale.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from widgets.figures import PALETTE
from widgets.frame import Frame, Lines
from widgets.geometry import PLANES, Slice
from widgets.panels import LIGHT

GREY, OVER, LINE, CROSS = range(4)  # the traces of a panel, from below
TRACES, LABELS = 4, 5
_WIDE, _HIGH = 1000, 820  # pixels of all panels, at most
_GAP_MM = 12.0  # around the point, where the crosshair leaves the anatomy free
_PLACES = ((0.0, 0.5, "left", "middle"), (1.0, 0.5, "right", "middle"), (0.5, 1.0, "center", "top"),
           (0.5, 0.0, "center", "bottom"), (0.0, 1.0, "left", "top"))  # fmt: skip


def build(frame: Frame, sources: Sequence[str], *, down: bool) -> go.Figure:
    """The figure without pictures, panels in the order of sources, then planes; `down`: each source is a column."""
    n = len(sources)
    sizes = [frame.size_mm(plane) for plane in PLANES]
    high, wide = [h for h, _ in sizes], [w for _, w in sizes]
    if down:
        scale = min(_WIDE / (n * max(wide)), _HIGH / sum(high))
        grid = {"rows": 3, "cols": n, "row_heights": high}
    else:
        scale = min(_WIDE / sum(wide), _HIGH / (n * max(high)))
        grid = {"rows": n, "cols": 3, "column_widths": wide}
    figure = make_subplots(**grid, horizontal_spacing=0.01, vertical_spacing=0.015 + 0.03 * (n > 1 and not down))
    for first, source in enumerate(sources):
        for second, plane in enumerate(PLANES):
            row, col = (second + 1, first + 1) if down else (first + 1, second + 1)
            text = _panel(figure, frame, plane, row=row, col=col)
            if second == 0 and source:
                figure.add_annotation(text=source, x=0, y=1, xanchor="left", yanchor="bottom", font_size=14, **text)
    broad = (n * max(wide) if down else sum(wide)) * scale * 1.02 + 8
    tall = (sum(high) if down else n * max(high)) * scale + 30 * (1 if down else n)
    figure.update_layout(width=round(broad), height=round(tall), margin={"l": 4, "r": 4, "t": 26, "b": 4},
                         showlegend=False, paper_bgcolor="black", plot_bgcolor="black", dragmode="pan")  # fmt: skip
    return figure


def labels(one: Slice) -> list[str]:
    """The texts of a panel's labels, in their order."""
    return [*(f"<b>{letter}</b>" for letter in one.letters), one.position]


def crosshair(frame: Frame, plane: str, at: np.ndarray) -> Lines:
    """Two lines through a point, open around it."""
    (high, wide), (y, x) = frame.size_mm(plane), frame.place(plane, at)
    left, right = max(x - _GAP_MM, 0.0), min(x + _GAP_MM, wide)
    above, below = max(y - _GAP_MM, 0.0), min(y + _GAP_MM, high)
    xs = [x, x, None, x, x, None, 0.0, left, None, right, wide]
    return xs, [0.0, above, None, below, high, None, y, y, None, y, y]


def _panel(figure: go.Figure, frame: Frame, plane: str, *, row: int, col: int) -> dict[str, Any]:
    """Add a panel; where and how its texts are written comes back."""
    for trace in _traces(frame, plane):
        figure.add_trace(trace, row=row, col=col)
    high, wide = frame.size_mm(plane)
    last: Any = figure.data[-1]
    bare = {"showticklabels": False, "showgrid": False, "zeroline": False, "constrain": "domain"}
    figure.update_xaxes(range=[0, wide], row=row, col=col, **bare)
    figure.update_yaxes(range=[high, 0], scaleanchor=last.xaxis, row=row, col=col, **bare)
    text = {"xref": f"{last.xaxis} domain", "yref": f"{last.yaxis} domain", "showarrow": False, "font_color": LIGHT}
    for number, (x, y, xanchor, yanchor) in enumerate(_PLACES):
        size = 11 if number == LABELS - 1 else 14
        figure.add_annotation(name="label", text="", x=x, y=y, xanchor=xanchor, yanchor=yanchor, font_size=size,
                              bgcolor="rgba(0,0,0,0.45)", borderpad=1, **text)  # fmt: skip
    return text


def _traces(frame: Frame, plane: str) -> Iterator[go.Image | go.Scatter]:
    high, wide = frame.step(plane)
    place = {"x0": wide / 2, "dx": wide, "y0": high / 2, "dy": high}
    yield go.Image(**place, hoverinfo="none", zsmooth="fast")
    yield go.Image(**place, hoverinfo="skip")
    for colour, width in ((PALETTE[4], 1.5), (PALETTE[5], 1)):
        yield go.Scatter(x=[], y=[], mode="lines", hoverinfo="skip", line={"color": colour, "width": width})
