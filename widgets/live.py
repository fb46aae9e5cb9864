"""Linked planes of one volume in the browser: what the interactive viewers share.

The kernel cuts, the browser gets pictures: a slice is an 8-bit PNG of at most `PIXELS` pixels a side, so no volume ever
leaves the kernel and a slice change stays below 300 kB, even one of pure noise.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, final

import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go

from widgets.frame import Frame, border, png
from widgets.geometry import PLANES, Point, Slice, to_mm
from widgets.hands import Hands
from widgets.panels import WINDOWS, Window, in_hu, levels
from widgets.panes import CROSS, GREY, LABELS, LINE, OVER, TRACES, build, crosshair, labels

PRESETS = {**WINDOWS, "soft tissue": (350, 50)}  # width, level in HU
PIXELS = 448  # a side: what does not compress has 448 x 448 bytes, 268 kB in base64
_FREE = "free"

# what lies over a source: codes [rows, columns] into the palette (0 shows nothing), and a mask to be outlined; it is
# given the source and what cuts an array (of any grid over the same field of view) in the plane, by order 0 or 1
Cutter = Callable[[np.ndarray, Literal[0, 1]], np.ndarray]
Layer = Callable[[str, Cutter], tuple[np.ndarray, np.ndarray | None]]
# what is said of a point; it is given what reads an array [..., d, h, w] there
Reader = Callable[[np.ndarray], Any]


def preset(window: Window) -> tuple[float, float]:
    """Width and level in HU of a preset's name, or of the pair itself. Raises ValueError for an unknown name."""
    return PRESETS[window] if isinstance(window, str) and window in PRESETS else levels(window)


def interactive() -> bool:
    """Whether somebody can move a slider here: kernels of JupyterLab and VS Code. MG3D_WIDGETS=1 or 0 overrules."""
    asked = os.environ.get("MG3D_WIDGETS")
    return asked == "1" if asked else any(name in os.environ for name in ("JPY_SESSION_NAME", "VSCODE_PID"))


def place_of(at: Point) -> str:
    """A point in RAS mm in words: "R 12.0  A 3.5  S 40.2"."""
    sides = zip(("RL", "AP", "SI"), at, strict=True)
    return "  ".join(f"{ends[bool(mm < 0)]} {abs(mm):.1f}" for ends, mm in sides)


def weight_of(one: np.ndarray, value: float) -> str:
    """How much a map weighs a point, in words, as HTML: "2.1× its mean, 0.40 of its peak"."""
    mean, top = float(one.mean()), float(one.max())
    return f"{value / mean:.1f}&times; its mean, {value / top:.2f} of its peak" if top > 0 else "no weight"


@final
class Figure(go.FigureWidget):
    """A plotly widget that the browser hears of when it is complete.

    Plotly's own tells it before it has data, which then follow: where a cell makes and shows a figure at once, a slow
    browser draws empty axes and keeps them.
    """

    def __init__(self, figure: go.Figure) -> None:
        self._complete = False
        super().__init__(figure)
        self._complete = True
        self.open()

    def open(self) -> None:
        """Tell the browser; called by ipywidgets too early."""
        if self._complete:
            super().open()


@final
class Board:
    """Panels of three planes for each source, with one crosshair, one window and one read-out.

    `figure` is the plotly widget, `controls` the sliders and the window, `readout` the line of text. `layer` gives what
    is laid over the greys, `words` what more is said of a point, `moved` is called after the crosshair has moved.
    `hands` hears wheel and keys; `step` goes on by some lines of what the viewer lists, or back, `steps` names it.
    """

    def __init__(
        self,
        volume: np.ndarray,
        affine: np.ndarray,
        *,
        sources: Sequence[str],
        layer: Layer,
        palette: np.ndarray,
        words: Callable[[Reader], str],
        moved: Callable[[], None],
        step: Callable[[int], None],
        window: Window = "lung",
        window_hu: tuple[float, float] | None = None,
        at: Point | None = None,
        opacity: float = 0.5,
        down: bool = False,
        steps: str = "sentences",
    ) -> None:
        volume = np.asarray(volume)
        if volume.ndim != 3:
            raise ValueError(f"volume: 3 axes are needed, this one has shape {volume.shape}")
        self.volume = volume.astype(np.float32) if volume.dtype == np.float16 else volume  # scipy reads no float16
        self.palette, self.opacity = palette, opacity
        self.frame = Frame(volume.shape, affine, pixels=int(PIXELS / len(sources) ** 0.5))
        middle = to_mm(np.array(volume.shape) // 2, affine)
        self.at = self.frame.snapped(middle if at is None else np.asarray(at, float))
        self._window_hu, self._layer, self._words, self._moved, self._step = window_hu, layer, words, moved, step
        self._panes = [(source, plane) for source in sources for plane in PLANES]
        self.readout = line_of_text()
        self._build_controls(window)
        # painted before it becomes a widget: a browser that loads the page again gets the figure as it was built
        self.figure: Any = build(self.frame, sources, down=down)
        self.paint()
        self.figure = Figure(self.figure)
        for number, (_, plane) in enumerate(self._panes):
            picture = self.figure.data[TRACES * number + GREY]
            picture.on_click(self._follow(plane, self.move))
            picture.on_hover(self._follow(plane, self.say))
        self.say(self.at)
        keys = f"wheel, ↑ ↓, Page, Home, End: slices of the plane under the mouse · ← →: {steps} · 1 to {len(PRESETS)}"
        self.hands = Hands(self._asked, help=f"{keys}: window (after a click into a plane)")

    @property
    def shown(self) -> Window:
        """The window as a static picture names it."""
        return next((name for name, pair in WINDOWS.items() if pair == self.window), self.window)

    @property
    def window(self) -> tuple[float, float]:
        """Width and level in HU, as the sliders stand."""
        return float(self.width.value), float(self.level.value)

    def hu(self, at: np.ndarray) -> float:
        """The value of the voxel nearest to a point in RAS mm."""
        return float(in_hu(self.frame.value(self.volume, at), self._window_hu))

    def move(self, at: Point) -> None:
        """Put the crosshair to a point (RAS mm); only the planes that it leaves are cut again."""
        old, self.at = self.at, self.frame.snapped(np.asarray(at, float))
        self.paint([plane for plane, (_, _, axis) in PLANES.items() if self.at[axis] != old[axis]])
        self._set_sliders()
        self.say(self.at)
        self._moved()

    def scroll(self, plane: str, steps: int) -> None:
        """Go some slices on (towards the feet, the back, the left) or, below 0, back; the last one is the end."""
        number = self.frame.number(plane, self.at) + steps
        self.move(self.frame.numbered(plane, self.at, int(np.clip(number, 1, self.frame.count[PLANES[plane][2]]))))

    def paint(self, planes: Sequence[str] = tuple(PLANES), *, grey: bool = True, over: bool = True) -> None:
        """Draw planes anew: greys, what lies over them, or both; crosshairs always. One message to the browser."""
        with self.figure.batch_update():
            for number, (source, plane) in enumerate(self._panes):
                traces = self.figure.data[TRACES * number : TRACES * (number + 1)]
                x, y = crosshair(self.frame, plane, self.at)
                traces[CROSS].update(x=x, y=y)
                if plane in planes and grey:
                    one = self.cut(plane)
                    traces[GREY].source = self._greys(one)
                    self._write(number, labels(one))
                if plane in planes and over:
                    codes, mask = self._layer(source, self._cutter(plane))
                    traces[OVER].update(source=png(codes, self.palette), opacity=self.opacity)
                    x, y = ([], []) if mask is None else border(mask, self.frame.step(plane))
                    traces[LINE].update(x=x, y=y)

    def say(self, at: np.ndarray) -> None:
        """Write where a point is, its HU, and what the viewer adds."""
        more = self._words(partial(self.frame.value, at=at))
        self.readout.value = f"<code>{place_of(at)} mm &nbsp; {self.hu(at):.0f} HU</code> &nbsp; {more}"

    def cut(self, plane: str) -> Slice:
        """A plane of the volume in HU through the crosshair."""
        one = self.frame.cut(self.volume, plane=plane, at=self.at, order=1)
        return Slice(one.plane, in_hu(one.pixels, self._window_hu), one.extent_mm, one.position_mm)

    def _cutter(self, plane: str) -> Cutter:
        return lambda array, order: self.frame.cut(array, plane=plane, at=self.at, order=order).pixels

    def _greys(self, one: Slice) -> str:
        width, level = self.window
        share = (one.pixels - (level - width / 2)) / width
        return png((np.nan_to_num(np.clip(share, 0, 1)) * 255).astype(np.uint8))

    def _write(self, number: int, texts: list[str]) -> None:
        """The labels of a panel; those that stand are left alone, since each change is sent."""
        there = [a for a in self.figure.layout.annotations if a.name == "label"]
        for place, text in zip(there[LABELS * number : LABELS * (number + 1)], texts, strict=True):
            if place.text != text:
                place.text = text

    def _follow(self, plane: str, act: Callable[[np.ndarray], None]) -> Callable[..., None]:
        """The handler of a click or of a hover in a plane: the point of the patient under the cursor."""

        def handle(_trace: Any, points: Any, _state: Any) -> None:
            if points.xs:
                act(self.frame.point(plane, self.at, y=points.ys[0], x=points.xs[0]))

        return handle

    def _asked(self, kind: str, axis: str, steps: int) -> None:
        """What `hands` heard; `axis` is the panel's in plotly's words."""
        if kind == "step":
            self._step(steps)
        elif kind == "window":
            self.preset.value = [*PRESETS][min(steps, len(PRESETS)) - 1]
        else:
            panels = (self.figure.data[TRACES * number + GREY].xaxis or "x" for number in range(len(self._panes)))
            plane = next((pane[1] for pane, x in zip(self._panes, panels, strict=True) if x == axis), "axial")
            self.scroll(plane, steps)

    def _build_controls(self, window: Window) -> None:
        width, level = preset(window)
        name = next((n for n, pair in PRESETS.items() if pair == (width, level)), _FREE)
        self.preset = ipw.Dropdown(
            options=[*PRESETS, _FREE], value=name, description="window", layout=ipw.Layout(width="220px")
        )
        self.width = _slider("width HU", 1, 4000, round(width))
        self.level = _slider("level HU", -1200, 1500, round(level))
        self.slices = {
            plane: _slider(plane, 1, int(self.frame.count[axis]), self.frame.number(plane, self.at))
            for plane, (_, _, axis) in PLANES.items()
        }
        self.preset.observe(self._preset_chosen, "value")
        for slider in (self.width, self.level):
            slider.observe(self._window_moved, "value")
        for plane, slider in self.slices.items():
            slider.observe(self._slice_moved(plane), "value")
        rows = [ipw.HBox(list(self.slices.values())), ipw.HBox([self.preset, self.width, self.level])]
        self.controls = ipw.VBox(rows)

    def _set_sliders(self) -> None:
        for plane, slider in self.slices.items():
            slider.value = self.frame.number(plane, self.at)

    def _slice_moved(self, plane: str) -> Callable[[Any], None]:
        def handle(change: Any) -> None:
            if change["new"] != self.frame.number(plane, self.at):
                self.move(self.frame.numbered(plane, self.at, change["new"]))

        return handle

    def _preset_chosen(self, change: Any) -> None:
        if change["new"] == _FREE or PRESETS[change["new"]] == self.window:
            return
        width, level = PRESETS[change["new"]]
        for slider in (self.width, self.level):
            slider.unobserve(self._window_moved, "value")  # one picture for both
        self.width.value, self.level.value = width, level
        for slider in (self.width, self.level):
            slider.observe(self._window_moved, "value")
        self.paint(over=False)

    def _window_moved(self, _change: Any) -> None:
        self.preset.value = next((n for n, pair in PRESETS.items() if pair == self.window), _FREE)
        self.paint(over=False)


def line_of_text(value: str = "") -> ipw.HTML:
    """A text with room for two lines, so that what stands below it keeps its place when the text gets longer."""
    return ipw.HTML(value, layout=ipw.Layout(height="60px", overflow="hidden auto"))


def _slider(name: str, low: int, high: int, value: int) -> ipw.IntSlider:
    return ipw.IntSlider(value=value, min=low, max=high, description=name, layout=ipw.Layout(width="340px"))
