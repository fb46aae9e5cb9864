"""The attention explorer: a volume, the sentences of its report, and where each of them looks.

    found = attend(run, case)
    window_hu = found.record["spec"]["window_hu"]
    explorer = AttentionExplorer(found.volume, np.array(found.record["affine"]), window_hu=window_hu,
                                 sentences=found.sentences, maps={"mg3d": found.maps})
    explorer                       in JupyterLab: planes, sentences, controls; elsewhere the static picture
    explorer.rank((40, 20, -15))   which sentence looks here?

A map is compared within itself: the colours run from its threshold to its peak, a number beside a point says how many
times the map's own mean lies there (1x: as if the sentence looked everywhere alike).
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, final

import ipywidgets as ipw
import matplotlib as mpl
import numpy as np

from widgets.figures import STYLE, Picture
from widgets.geometry import PLANES, Point, coarse, to_mm
from widgets.hands import HOME
from widgets.layers import share
from widgets.live import Board, Cutter, Reader, interactive, line_of_text, weight_of
from widgets.panels import LIGHT, Window, caption, contour, cross, draw, heat, named, panels, size_mm

COLOURS = ("plasma", "viridis", "cividis", "autumn", "turbo")  # all but the last two for every kind of colour vision
_STEPS = 32  # of a colormap: fewer bytes, and no eye counts more
_REPORT, _HERE = "as in the report", "by who looks here"

Maps = np.ndarray  # [S, d, h, w]: one map a sentence, over the field of view of the volume, on any grid
Outlines = np.ndarray | Sequence[np.ndarray | None] | None


@final
class AttentionExplorer:
    """Three linked planes, the sentences as a list, the chosen one's map over the greys; runs below each other.

    volume, affine  as in `slices`; `window_hu` where values are in [0, 1]
    maps            [S, d, h, w]; {run: [S, d, h, w]} compares runs; {run: {layer: [S, d, h, w]}} offers layers, too
    outlines        the truth: a mask [d, h, w] for all sentences, or for each sentence a mask or None
    colours         one of COLOURS

    Starts at the peak of `sentence`. Raises ValueError for maps that do not fit the sentences and for runs of different
    layers.
    """

    def __init__(
        self,
        volume: np.ndarray,
        affine: np.ndarray,
        *,
        sentences: Sequence[str],
        maps: Maps | Mapping[str, Maps | Mapping[str, Maps]],
        outlines: Outlines = None,
        sentence: int = 0,
        window: Window = "lung",
        window_hu: tuple[float, float] | None = None,
        at: Point | None = None,
        colours: str = COLOURS[0],
    ) -> None:
        self.sentences, self._affine = tuple(sentences), np.asarray(affine, float)
        self._shape = np.asarray(volume).shape
        self.maps = _runs(maps, len(self.sentences))
        self.layers = tuple(next(iter(self.maps.values())))
        self._outlines = _per_sentence(outlines, len(self.sentences))
        self.layer, self.sentence, self._sorting = self.layers[-1], sentence, False
        self._build_controls(colours)
        self.board = Board(
            volume, self._affine, sources=list(self.maps), layer=self._layer, palette=palette(colours),
            words=self._words, moved=self._sort, step=self._next, window=window, window_hu=window_hu,
            at=self.peak(sentence) if at is None else at, opacity=self.opacity.value,
        )  # fmt: skip
        below = [self._said, self.board.readout, self.board.figure, self.board.hands, self.board.controls]
        self.widget = ipw.VBox([*below, self._controls, self.list, ipw.HTML("<small>research use only</small>")])
        self.widget.add_class(HOME)

    def _repr_mimebundle_(self, **_kwargs: Any) -> Any:
        return self.widget._repr_mimebundle_() if interactive() else {"image/png": self.figure().png()}

    def map(self, run: str, sentence: int | None = None) -> np.ndarray:
        """The map [d, h, w] of a run at the chosen layer, of the chosen or of another sentence."""
        return self.maps[run][self.layer][self.sentence if sentence is None else sentence]

    def peak(self, sentence: int, run: str | None = None) -> np.ndarray:
        """Where a map is highest, RAS mm; of the first run if none is named."""
        one = self.map(run if run is not None else next(iter(self.maps)), sentence)
        where = np.unravel_index(np.nanargmax(one), one.shape)
        return to_mm(where, coarse(self._affine, self._shape, one.shape))

    def rank(self, at: Point | None = None, *, run: str | None = None) -> list[tuple[int, float]]:
        """Sentences, and how many times its own mean each map has at a point (RAS mm; the crosshair), falling."""
        maps = self.maps[run if run is not None else next(iter(self.maps))][self.layer]
        here = self.board.frame.value(maps, self.board.at if at is None else np.asarray(at, float))
        mean = maps.mean((1, 2, 3))
        times = np.divide(here, mean, out=np.zeros(len(here)), where=mean > 0)
        return [(int(i), float(times[i])) for i in np.argsort(-times, kind="stable")]

    def pick(self, sentence: int, *, jump: bool = True) -> None:
        """Show a sentence's map; with `jump` the crosshair goes to its peak in the first run."""
        if not 0 <= sentence < len(self.sentences):
            raise ValueError(f"sentence={sentence}: there are {len(self.sentences)}, numbered from 0 on")
        self.sentence = sentence
        self.list.value = sentence
        self._said.value = f"<b>{escape(self.sentences[sentence])}</b>"
        self.board.paint(grey=False)
        if jump:
            self.board.move(self.peak(sentence))
        self.board.say(self.board.at)

    @mpl.rc_context(STYLE)
    def figure(self) -> Picture:
        """What the explorer shows now, as a static picture; of the report it prints the chosen sentence alone."""
        window = self.board.shown
        cuts = {plane: self.board.cut(plane) for plane in PLANES}
        sizes = [size_mm(one) for one in cuts.values()] * len(self.maps)
        text = self.sentences[self.sentence]
        figure, axes = panels(sizes, columns=3, height=3.6 if len(self.maps) == 1 else 3.0, title=text, bar=True)
        mask, at, image = self._outlines[self.sentence], self.board.at, None
        for number, axis in enumerate(axes):
            run, one = list(self.maps)[number // 3], list(cuts.values())[number % 3]
            draw(axis, one, window)
            cross(axis, one, at)
            one_map = share(self.map(run))
            here = coarse(self._affine, self._shape, one_map.shape)
            image = heat(axis, one_map, one, here, at, opacity=self.opacity.value, threshold=self.threshold.value)
            image.set(cmap=self.colours.value, clim=(self.threshold.value, 1.0))
            if mask is not None:
                contour(axis, mask, one, coarse(self._affine, self._shape, mask.shape), at)
            if number % 3 == 0 and run:
                axis.set_title(run, color=LIGHT, size=10)
        if image is not None:
            bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01, aspect=30)
            bar.set_label("attention, share of its peak", color=LIGHT)
            bar.ax.tick_params(colors=LIGHT, labelsize=8)
        caption(figure, window)
        figure.alt = f"Attention of {len(self.maps)} run(s) to one sentence: three planes, {named(window)}"
        return figure

    def save(self, path: Path | str) -> None:
        """Write `figure()` as PNG or SVG, by the ending of `path`."""
        self.figure().save(path)

    def _layer(self, run: str, cutter: Cutter) -> tuple[np.ndarray, np.ndarray | None]:
        one, low = self.map(run), self.threshold.value
        top = float(np.nanmax(one))
        share = np.nan_to_num(cutter(one, 0) / (top if top > 0 else 1))
        steps = np.clip((share - low) / max(1 - low, 1e-6) * _STEPS, 0, _STEPS - 1).astype(np.uint8) + 1
        mask = self._outlines[self.sentence]
        shown = None if mask is None else cutter(mask, 1)
        return np.where((share >= low) & (share > 0), steps, 0).astype(np.uint8), shown

    def _words(self, read: Reader) -> str:
        """The chosen sentence's attention at a point, run by run."""
        found = []
        for run in self.maps:
            one = self.map(run)
            found.append(f"{escape(run)} attention {weight_of(one, float(read(one)))}")
        return f"<code>{' &nbsp; '.join(found)}</code>"

    def _build_controls(self, colours: str) -> None:
        wide = ipw.Layout(width="340px")
        self.opacity = ipw.FloatSlider(value=0.5, min=0, max=1, step=0.05, description="opacity", layout=wide)
        self.threshold = ipw.FloatSlider(value=0.5, min=0, max=0.95, step=0.05, description="from peak x", layout=wide)
        self.colours = ipw.Dropdown(
            options=COLOURS, value=colours, description="colours", layout=ipw.Layout(width="220px")
        )
        self.layer_choice = ipw.Dropdown(
            options=self.layers, value=self.layer, description="layer", layout=ipw.Layout(width="220px")
        )
        self.order = ipw.ToggleButtons(options=[_REPORT, _HERE], description="sentences")
        self.list = ipw.Select(
            options=_numbered(self.sentences), value=self.sentence, rows=min(len(self.sentences), 9),
            layout=ipw.Layout(width="100%"),
        )  # fmt: skip
        self._said = line_of_text(f"<b>{escape(self.sentences[self.sentence])}</b>")
        choice = [self.layer_choice] if len(self.layers) > 1 else []
        rows = [ipw.HBox([self.colours, self.opacity, self.threshold]), ipw.HBox([self.order, *choice])]
        self._controls = ipw.VBox(rows)
        for control in (self.opacity, self.threshold, self.colours, self.layer_choice):
            control.observe(self._changed, "value")
        self.order.observe(lambda _: self._sort(), "value")
        self.list.observe(self._chosen, "value")

    def _changed(self, _change: Any) -> None:
        self.layer = self.layer_choice.value
        self.board.opacity, self.board.palette = self.opacity.value, palette(str(self.colours.value))
        self.board.paint(grey=False)
        self._sort()

    def _chosen(self, change: Any) -> None:
        if not self._sorting and change["new"] not in (None, self.sentence):
            self.pick(change["new"], jump=self.order.value == _REPORT)  # who looks here is asked of one place

    def _next(self, steps: int) -> None:
        """Pick the sentence some places further down the list as it stands."""
        order = [number for _, number in self.list.options]
        place = order.index(self.sentence) + steps
        self.pick(order[min(max(place, 0), len(order) - 1)], jump=self.order.value == _REPORT)

    def _sort(self) -> None:
        """The list in the order that is asked for; that by who looks here follows the crosshair."""
        if self.order.value == _HERE:
            options = [(f"{times:6.1f}×  {self.sentences[i]}", i) for i, times in self.rank()]
        else:
            options = _numbered(self.sentences)
        if tuple(options) != tuple(self.list.options):
            self._sorting = True  # new options choose the first of them for a moment
            self.list.options = options
            self.list.value = self.sentence
            self._sorting = False


def palette(name: str) -> np.ndarray:
    """Red, green, blue and alpha [33, 4] uint8 of a colormap of matplotlib; 0 is transparent."""
    colours = (mpl.colormaps[name](np.linspace(0, 1, _STEPS)) * 255).round().astype(np.uint8)
    return np.concatenate([np.zeros((1, 4), np.uint8), colours])


def _numbered(sentences: Sequence[str]) -> list[tuple[str, int]]:
    return [(f"{number + 1:3d}  {text}", number) for number, text in enumerate(sentences)]


def _runs(maps: Maps | Mapping[str, Maps | Mapping[str, Maps]], count: int) -> dict[str, dict[str, Maps]]:
    """{run: {layer: maps}}, whatever was given; every run must have the same layers, every layer `count` maps."""
    given = maps if isinstance(maps, Mapping) else {"": maps}
    runs = {run: dict(some) if isinstance(some, Mapping) else {"": some} for run, some in given.items()}
    first = list(next(iter(runs.values()), {}))
    if not count or not first:
        raise ValueError(f"there are {count} sentences and {len(first)} layers of maps: nothing to show")
    for run, layers in runs.items():
        if list(layers) != first:
            raise ValueError(f"maps[{run!r}] has layers {list(layers)}, the first run {first}: equal ones are needed")
        for layer, one in layers.items():
            if one.ndim != 4 or len(one) != count:
                raise ValueError(f"maps[{run!r}][{layer!r}] has shape {one.shape} for {count} sentences: [S, d, h, w]")
    return runs


def _per_sentence(outlines: Outlines, count: int) -> list[np.ndarray | None]:
    """A mask or None for each sentence, as float32."""
    if outlines is None or (isinstance(outlines, np.ndarray) and outlines.ndim == 3):
        return [None if outlines is None else np.asarray(outlines, np.float32)] * count
    if len(outlines) != count:
        raise ValueError(f"{len(outlines)} outlines for {count} sentences: one mask or None each, or one mask for all")
    return [None if mask is None else np.asarray(mask, np.float32) for mask in outlines]
