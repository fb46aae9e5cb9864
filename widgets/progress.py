"""Loss curves that grow while a run trains in the same notebook.

    live = LiveLosses(lambda: run.metrics)     in JupyterLab: a panel a loss; elsewhere the static picture
    live                                       shows it, before the training begins
    with live:
        pretrain(recipe)                       the curves grow meanwhile

The kernel is busy with training, so that no cell can draw; a thread looks at the run's log every few seconds and sends
the browser what is new. Where nobody looks on, no thread is started.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import ipywidgets as ipw
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from widgets.figures import PALETTE, Picture, losses, series
from widgets.live import Figure, interactive

_MOST = 400  # points of a line: a longer one is thinned, so that a message stays small
_COLUMNS = 3


@final
class LiveLosses:
    """A panel for each column that `figures.losses` draws: training as a line, validation as dots.

    `metrics` gives the table so far, as `Run.metrics` does: a row a step; it may be empty. It is asked every `every`
    seconds inside the `with`, and once at its end. What it raises is shown and does not stop the training.
    """

    def __init__(self, metrics: Callable[[], pd.DataFrame], *, every: float = 2.0) -> None:
        self._metrics, self._every = metrics, every
        self.said = ipw.HTML("no step yet")
        self.widget = ipw.VBox([self.said])
        self.plot: Any = None
        self._names: list[str] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _repr_mimebundle_(self, **_kwargs: Any) -> Any:
        if interactive():
            return self.widget._repr_mimebundle_()
        return {"text/plain": "no step yet"} if self._metrics().empty else {"image/png": self.figure().png()}

    def __enter__(self) -> "LiveLosses":
        if interactive():
            self._stop.clear()
            self._thread = threading.Thread(target=self._watch, name="live losses", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self.update()

    def update(self) -> None:
        """Draw what the log holds now."""
        try:
            table = self._metrics()
        except Exception as error:  # a log that is being written is no reason to stop the training
            self.said.value = f"the log cannot be read: {type(error).__name__}"
            return
        if table.empty:
            return
        if self.plot is None or self._names != series(table):
            self._build(table)
        plot: Any = self.plot
        with plot.batch_update():
            for trace, (x, y) in zip(plot.data, self._lines(table), strict=True):
                trace.update(x=x, y=y)
        last = table.iloc[-1]
        seconds = f", {last['seconds']:.2f} s a step" if "seconds" in table else ""
        self.said.value = f"step {int(last['step'])}{seconds}"

    def figure(self) -> Picture:
        """The curves so far as a static picture. Raises ValueError when there is no step yet."""
        return losses(self._metrics())

    def save(self, path: Path | str) -> None:
        """Write `figure()` as PNG or SVG, by the ending of `path`."""
        self.figure().save(path)

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self.update()

    def _build(self, table: pd.DataFrame) -> None:
        self._names = series(table)
        rows = -(-len(self._names) // _COLUMNS)
        figure = make_subplots(rows=rows, cols=_COLUMNS, subplot_titles=self._names, vertical_spacing=0.22 / rows)
        lines = iter(self._lines(table))
        for number in range(len(self._names)):
            row, col = number // _COLUMNS + 1, number % _COLUMNS + 1
            for mode, colour in (("lines", PALETTE[0]), ("lines+markers", PALETTE[1])):
                x, y = next(lines)
                figure.add_trace(
                    go.Scatter(x=x, y=y, mode=mode, line={"color": colour, "width": 1.5}), row=row, col=col
                )
        figure.update_layout(
            height=190 * rows + 60,
            template="plotly_white",
            showlegend=False,
            margin={"l": 45, "r": 10, "t": 30, "b": 30},
        )
        figure.update_yaxes(exponentformat="e")  # a rate of 4e-4, not of 400 micro
        self.plot = Figure(figure)
        self.widget.children = [self.said, self.plot]

    def _lines(self, table: pd.DataFrame) -> list[tuple[np.ndarray, np.ndarray]]:
        """Steps and values of training and of validation, of each panel in turn."""
        found = []
        for name in self._names:
            for column in (name, f"valid_{name}"):
                values = table[column].to_numpy(float) if column in table else np.full(len(table), np.nan)
                known = np.flatnonzero(np.isfinite(values))
                chosen = (
                    known[np.unique(np.linspace(0, len(known) - 1, _MOST).round().astype(int))] if len(known) else known
                )
                found.append((table["step"].to_numpy()[chosen], values[chosen]))
        return found
