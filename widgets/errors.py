"""The segmentation-error viewer: what models found, invented and missed, a column a model, with one crosshair.

viewer = ErrorViewer(volume, affine, truth=mask, predictions={"scratch": a, "mg3d": b}, scores=measure)
viewer                      in JupyterLab: planes, errors by slice, lesions to jump to; elsewhere the static picture
viewer.components("mg3d")   each lesion and each false alarm: where, how large, how much of it was found

Green is correct, red wrong, yellow missing, as in the paper (`verdict`); other colours are a choice.
"""

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any, final

import ipywidgets as ipw
import matplotlib as mpl
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.patches import Patch

from widgets.figures import PALETTE, STYLE, Picture
from widgets.frame import Frame
from widgets.geometry import PLANES, Point, coarse, to_mm
from widgets.hands import HOME
from widgets.live import Board, Cutter, Figure, Reader, interactive
from widgets.panels import LIGHT, Window, caption, draw, named, panels, size_mm
from widgets.verdict import COLOURS, KINDS, codes_of, components_of, palette_of, scores_of, written

_JUMPS = 60  # lines of the list of lesions, in the order of their importance

Measure = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]  # of the predicted and the true mask of a class


@final
class ErrorViewer:
    """Predictions against the truth, class by class, over the volume.

    volume, affine  as in `slices`; `window_hu` where values are in [0, 1]
    truth           label map [d, h, w] over the same field of view, of any grid; bool is one class
    predictions     {model: label map of the truth's grid}, a column each
    classes         {name: label}; default: each label of the truth. A list chooses among several
    scores          {model: {name: number}}, or what computes {name: number} from the predicted and the true mask of a
                    class; default: Dice and HD95 in mm. Printed beside each model
    colours         a name of `verdict.COLOURS`

    Starts in the first model's worst axial slice. Raises ValueError for shapes that differ and for a truth without
    classes.
    """

    def __init__(
        self,
        volume: np.ndarray,
        affine: np.ndarray,
        *,
        truth: np.ndarray,
        predictions: Mapping[str, np.ndarray],
        classes: Mapping[str, int] | None = None,
        scores: Mapping[str, Mapping[str, float]] | Measure | None = None,
        window: Window = "mediastinum",
        window_hu: tuple[float, float] | None = None,
        at: Point | None = None,
        colours: str = next(iter(COLOURS)),
    ) -> None:
        self._truth, self._predictions = truth.astype(np.int16), {n: p.astype(np.int16) for n, p in predictions.items()}
        self.classes = (
            dict(classes) if classes is not None else {f"label {k}": int(k) for k in np.unique(self._truth) if k}
        )
        self._check()
        shape = np.asarray(volume).shape
        self._affine = coarse(np.asarray(affine, float), shape, truth.shape)  # of the masks
        self._cells = Frame(truth.shape, self._affine, pixels=1)
        self._ml = abs(float(np.linalg.det(self._affine[:3, :3]))) / 1000
        self._measure, self._kept, self._scored = scores, {}, {}
        palette = palette_of(colours)
        self._build_controls(colours)
        start = self.worst(next(iter(predictions))) if at is None else np.asarray(at, float)
        self.board = Board(
            volume, np.asarray(affine, float), sources=list(predictions), layer=self._layer, words=self._words,
            palette=palette, moved=lambda: None, step=self._next, steps="lesions", window=window,
            window_hu=window_hu, at=start, opacity=self.opacity.value, down=True,
        )  # fmt: skip
        self.profile: Any = Figure(self._profile())
        for trace in self.profile.data:
            trace.on_click(self._profile_clicked)
        rows = [self._legend, self._table, self.board.readout, self.board.figure, self.board.hands, self.board.controls]
        below = [self._controls, self.profile, self.jumps, ipw.HTML("<small>research use only</small>")]
        self.widget = ipw.VBox([*rows, *below])
        self.widget.add_class(HOME)
        self._say_all()

    def _repr_mimebundle_(self, **_kwargs: Any) -> Any:
        return self.widget._repr_mimebundle_() if interactive() else {"image/png": self.figure().png()}

    def codes(self, model: str) -> np.ndarray:
        """What each voxel of the truth's grid is for the chosen class: 0 nothing, 1 correct, 2 wrong, 3 missing."""
        key = model, self.choice.value
        if key not in self._kept:
            label = self.classes[str(self.choice.value)]
            self._kept[key] = codes_of(self._predictions[model] == label, self._truth == label)
        return self._kept[key]

    def by_slice(self, model: str, plane: str = "axial") -> pd.DataFrame:
        """`correct`, `wrong` and `missing` in ml of every slice of the patient's plane, indexed by its number."""
        codes, count = self.codes(model), int(self._cells.count[PLANES[plane][2]])
        number, kind = self._cells.numbers(plane, self._points(codes > 0)), codes[codes > 0]
        ml = {name: np.bincount(number[kind == k] - 1, minlength=count) * self._ml for k, name in enumerate(KINDS, 1)}
        return pd.DataFrame(ml, index=pd.RangeIndex(1, count + 1, name="slice"))

    def worst(self, model: str, plane: str = "axial") -> np.ndarray:
        """A point (RAS mm) amid the errors of the slice that has most of them; without errors, amid the truth."""
        codes = self.codes(model)
        points = self._points(codes > 1)
        if len(points):
            points = points[self._cells.numbers(plane, points) == self._errors(model, plane).idxmax()]
        else:
            points = self._points(codes > 0)
        if not len(points):
            return to_mm(np.array(codes.shape) // 2, self._affine)
        return points[np.argmin(((points - points.mean(0)) ** 2).sum(1))]

    def components(self, model: str) -> pd.DataFrame:
        """Connected parts of the truth (`lesion`) and those of the prediction that touch none (`false alarm`).

        Columns as of `verdict.components_of`, the largest first.
        """
        return components_of(self.codes(model), self._affine)

    def scores(self, model: str) -> dict[str, float]:
        """The numbers of a model for the chosen class: what was handed in, what `scores` computes, or Dice and HD95."""
        if isinstance(self._measure, Mapping):
            return dict(self._measure[model])
        key = model, self.choice.value
        if key not in self._scored:
            codes = self.codes(model)
            masks = (codes == 1) | (codes == 2), (codes == 1) | (codes == 3)
            self._scored[key] = dict(self._measure(*masks)) if self._measure else scores_of(codes, self._affine)
        return self._scored[key]

    @mpl.rc_context(STYLE)
    def figure(self) -> Picture:
        """What the viewer shows now, as a static picture: a column a model, a row a plane."""
        cuts = {plane: self.board.cut(plane) for plane in PLANES}
        models = list(self._predictions)
        panes = [(plane, model) for plane in PLANES for model in models]
        sizes = [size_mm(cuts[plane]) for plane, _ in panes]
        figure, axes = panels(sizes, columns=len(models), height=2.9, title=f"Segmentation: {self.choice.value}")
        colours = palette_of(str(self.colours.value)) / 255
        for axis, (plane, model) in zip(axes, panes, strict=True):
            draw(axis, cuts[plane], self.board.shown, small=True)
            one = self.board.frame.cut(self.codes(model), plane=plane, at=self.board.at, order=0)
            shown = colours[np.nan_to_num(one.pixels).astype(int)] * [1, 1, 1, self.opacity.value]
            axis.imshow(shown, extent=one.extent_mm, interpolation="nearest")
            if plane == panes[0][0]:
                axis.set_title(f"{model}\n{written(self.scores(model))}", color=LIGHT, size=9)
        handles = [Patch(color=colours[k], label=name) for k, name in enumerate(KINDS, 1)]
        figure.legend(handles=handles, loc="upper right", ncols=3, labelcolor=LIGHT, fontsize=8.5)
        caption(figure, self.board.shown)
        said = "; ".join(f"{model}: {written(self.scores(model))}" for model in models)
        figure.alt = f"Segmentation errors of {self.choice.value}, {named(self.board.shown)}. {said}"
        return figure

    def save(self, path: Path | str) -> None:
        """Write `figure()` as PNG or SVG, by the ending of `path`."""
        self.figure().save(path)

    def _points(self, mask: np.ndarray) -> np.ndarray:
        """The voxels of a mask as points [n, 3] in RAS mm."""
        return np.argwhere(mask) @ self._affine[:3, :3].T + self._affine[:3, 3]

    def _errors(self, model: str, plane: str) -> pd.Series:
        """ml of every slice that are wrong or missing."""
        return self.by_slice(model, plane)[["wrong", "missing"]].sum(axis=1)

    def _errors_by_model(self) -> list[np.ndarray]:
        return [self._errors(model, "axial").to_numpy() for model in self._predictions]

    def _check(self) -> None:
        for name, labels in self._predictions.items():
            if labels.shape != self._truth.shape:
                raise ValueError(f"predictions[{name!r}] has shape {labels.shape}, the truth {self._truth.shape}")
        if not self.classes or not self._predictions:
            raise ValueError(
                f"{len(self.classes)} classes and {len(self._predictions)} predictions: nothing to compare"
            )

    def _layer(self, model: str, cutter: Cutter) -> tuple[np.ndarray, np.ndarray | None]:
        codes = np.nan_to_num(cutter(self.codes(model), 0)).astype(np.uint8)
        return codes, np.isin(codes, (1, 3)).astype(np.float32) if self.outline.value else None

    def _words(self, read: Reader) -> str:
        names = ("nothing", *KINDS)
        return " &nbsp; ".join(
            f"<code>{escape(m)}: {names[int(read(self.codes(m)))]}</code>" for m in self._predictions
        )

    def _build_controls(self, colours: str) -> None:
        wide = ipw.Layout(width="300px")
        self.choice = ipw.Dropdown(options=list(self.classes), description="class", layout=wide)
        self.colours = ipw.Dropdown(options=list(COLOURS), value=colours, description="colours", layout=wide)
        self.opacity = ipw.FloatSlider(value=0.55, min=0, max=1, step=0.05, description="opacity", layout=wide)
        self.outline = ipw.Checkbox(value=False, description="outline of the truth", indent=False, layout=wide)
        worst = [ipw.Button(description=f"worst slice of {m}", layout=wide) for m in self._predictions]
        for button, model in zip(worst, self._predictions, strict=True):
            button.on_click(lambda _, model=model: self.board.move(self.worst(model)))
        self.missed = ipw.Button(description="next missed lesion", layout=wide)
        self.missed.on_click(lambda _: self._next_missed())
        self.jumps = ipw.Select(rows=7, layout=ipw.Layout(width="100%"))
        self.jumps.observe(self._jump, "value")
        self._legend, self._table = ipw.HTML(), ipw.HTML()
        choice = [self.choice] if len(self.classes) > 1 else []
        self._controls = ipw.VBox(
            [ipw.HBox([*choice, self.colours, self.opacity, self.outline]), ipw.HBox([*worst, self.missed])]
        )
        for control in (self.choice, self.colours, self.opacity, self.outline):
            control.observe(self._changed, "value")

    def _changed(self, change: Any) -> None:
        self.board.opacity, self.board.palette = self.opacity.value, palette_of(str(self.colours.value))
        self.board.paint(grey=False)
        if change["owner"] is self.choice:
            with self.profile.batch_update():
                for old, new in zip(self.profile.data, self._errors_by_model(), strict=True):
                    old.update(y=new)
        self._say_all()

    def _say_all(self) -> None:
        """Legend, scores, and where to jump: lesions missed, lesions found (from the least on), then false alarms."""
        pairs = zip(COLOURS[str(self.colours.value)], KINDS, strict=True)
        self._legend.value = " ".join(f"<span style='color:{colour}'>&#9632;</span> {kind}" for colour, kind in pairs)
        said = (f"<b>{escape(m)}</b> {escape(written(self.scores(m)))}" for m in self._predictions)
        self._table.value = " &nbsp;|&nbsp; ".join(said)
        lines = []
        for model in self._predictions:
            for row in self.components(model).to_dict("records"):
                what = "missed" if row["missed"] and row["kind"] == "lesion" else row["kind"]
                text = f"{model}: {what}, {row['ml']:.2f} ml"
                text += f", {100 * row['found']:.0f} % found" if what == "lesion" else ""
                rank = ("missed", "lesion", "false alarm").index(what)
                found = row["found"] if what == "lesion" else 0.0
                lines.append((rank, found, -row["ml"], text, (row["r"], row["a"], row["s"])))
        lines.sort()
        self.jumps.options = [("jump to ...", None), *((text, point) for *_, text, point in lines[:_JUMPS])]
        self.board.say(self.board.at)

    def _jump(self, change: Any) -> None:
        if change["new"] is not None:
            self.board.move(np.array(change["new"]))

    def _next(self, steps: int) -> None:
        """Jump some lines further down the list of lesions, or up."""
        last = len(self.jumps.options) - 1
        if last:  # line 0 only says what the list is for
            self.jumps.index = min(max((self.jumps.index or 0) + steps, 1), last)

    def _next_missed(self) -> None:
        """Jump to the missed lesion below the chosen line of the list; from the last one to the first."""
        missed = [n for n, (text, _) in enumerate(self.jumps.options) if ": missed," in text]
        if missed:
            self.jumps.index = next((n for n in missed if n > (self.jumps.index or 0)), missed[0])

    def _profile(self) -> go.Figure:
        """Errors of every axial slice, a line a model."""
        figure = go.Figure()
        for number, (model, errors) in enumerate(zip(self._predictions, self._errors_by_model(), strict=True)):
            figure.add_scatter(
                x=np.arange(len(errors)) + 1, y=errors, name=model, mode="lines+markers", marker_size=4,
                line_color=PALETTE[number % len(PALETTE)],
            )  # fmt: skip
        figure.update_layout(
            height=210, margin={"l": 50, "r": 10, "t": 10, "b": 40}, hovermode="closest", template="plotly_white",
            xaxis_title="axial slice, from the head", yaxis_title="wrong and missing, ml",
        )  # fmt: skip
        return figure

    def _profile_clicked(self, _trace: Any, points: Any, _state: Any) -> None:
        if points.xs:
            self.board.move(self._cells.numbered("axial", self.board.at, points.xs[0]))
