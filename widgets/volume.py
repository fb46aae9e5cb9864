"""The volume in three planes and in 3-D at once, with the map of a sentence over it: drawn by the browser (NiiVue).

    found = attend(run, case)
    view = VolumeView(found.volume, np.array(found.record["affine"]), window_hu=found.record["spec"]["window_hu"],
                      sentences=found.sentences, maps=found.tokens, stride=found.stride)
    view                       in JupyterLab: planes and 3-D; elsewhere the static picture
    view.pick(3)               another sentence

The maps travel once, as one 4-D overlay on their own grid, a frame a sentence: choosing a sentence, opacity and
threshold need no kernel. The volume goes to the browser, too, as int16 of at most `SIDE` voxels a side;
`AttentionExplorer` sends pictures of slices instead, and is what draws without WebGL.
"""

from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import ipywidgets as ipw
import numpy as np
from scipy import ndimage

from widgets.attention import COLOURS
from widgets.figures import Picture
from widgets.frame import Frame
from widgets.geometry import Point, box_mm, coarse, to_mm
from widgets.layers import WORLD, share, upright
from widgets.live import PRESETS, interactive, place_of, preset, weight_of
from widgets.panels import WINDOWS, Window, in_hu
from widgets.slices import planes

SIDE = 256  # voxels; more cost the browser seconds and show no more on its canvas
MISSING = (
    "the volume view needs ipyniivue, which is not installed (pip install ipyniivue); "
    "AttentionExplorer shows the same in slices, and here is its static twin"
)
_VIEWS = {"planes and 3-D": 3, "3-D": 4, "axial": 0, "coronal": 1, "sagittal": 2}  # NiiVue's numbers
BONE = 150  # HU; the rendering shows what is denser
_HU = (-1024, 3071)


@final
class VolumeView:
    """Axial, coronal and sagittal plane and a rendering with one crosshair; a list of sentences chooses the map.

    volume, affine  as in `slices`; `window_hu` where values are in [0, 1]
    maps            [S, d, h, w], one a sentence, on any grid over the field of view; the tokens' own shows them as they
                    are. `stride`: voxels a cell; None: the grid spans the volume
    truth           a mask over the same field of view, of any grid

    Starts at the peak of `sentence`. Raises ValueError for maps that do not fit the sentences and a volume not 3-D.
    """

    def __init__(
        self,
        volume: np.ndarray,
        affine: np.ndarray,
        *,
        sentences: Sequence[str],
        maps: np.ndarray,
        stride: int | None = None,
        truth: np.ndarray | None = None,
        sentence: int = 0,
        window: Window = "lung",
        window_hu: tuple[float, float] | None = None,
        at: Point | None = None,
        colours: str = COLOURS[0],
        height: int = 640,
    ) -> None:
        if volume.ndim != 3 or maps.ndim != 4 or len(maps) != len(sentences) or not len(maps):
            raise ValueError(
                f"a volume of shape {volume.shape}, maps of {maps.shape} and {len(sentences)} sentences: "
                "[D, H, W], [S, d, h, w] and S of them are needed"
            )
        self.sentences, self.maps, self.sentence = tuple(sentences), np.asarray(maps, np.float32), sentence
        self._hu = in_hu(volume, window_hu)
        self._affine, self._truth, self._height = np.asarray(affine, float), truth, height
        grid = maps.shape[1:]
        covered = volume.shape if stride is None else tuple(stride * n for n in grid)
        self._cells = coarse(self._affine, covered, grid)
        self._frame = Frame(volume.shape, self._affine, pixels=1)
        self.window, self.colours = preset(window), colours
        self.at = self.peak(sentence) if at is None else np.asarray(at, float)
        self._widget: ipw.VBox | None = None

    def _repr_mimebundle_(self, **_kwargs: Any) -> Any:
        if not interactive():
            return {"image/png": self.figure().png()}
        if find_spec("ipyniivue") is None:
            return {"text/html": f"<p>{escape(MISSING)}</p>", "image/png": self.figure().png()}
        return self.widget._repr_mimebundle_()

    @property
    def widget(self) -> ipw.VBox:
        """What JupyterLab shows, made when it is first asked for. Raises ModuleNotFoundError without ipyniivue."""
        if self._widget is None:
            if find_spec("ipyniivue") is None:
                raise ModuleNotFoundError(MISSING)
            self._widget = self._built()
            self.move(self.at)
        return self._widget

    def peak(self, sentence: int) -> np.ndarray:
        """Where a map is highest, RAS mm."""
        one = self.maps[sentence]
        return to_mm(np.unravel_index(np.nanargmax(one), one.shape), self._cells)

    def pick(self, sentence: int) -> None:
        """Show a sentence's map and put the crosshair to its peak. Raises ValueError where there is no such one."""
        if not 0 <= sentence < len(self.sentences):
            raise ValueError(f"sentence={sentence}: there are {len(self.sentences)}, numbered from 0 on")
        self.sentence = sentence
        if self._widget is not None:
            self.list.index = sentence
            self.said.value = f"<b>{escape(self.sentences[sentence])}</b>"
            self.nv.volumes[1].frame_4d = sentence
        self.move(self.peak(sentence))

    def move(self, at: Point) -> None:
        """Put the crosshair to a point (RAS mm)."""
        self.at = np.asarray(at, float)
        if self._widget is not None:
            low, high = self._box
            self.nv.scene.crosshair_pos = np.clip((self.at - low) / (high - low), 0, 1).tolist()
            self.readout.value = self.words(self.at)

    def words(self, at: Point) -> str:
        """Where a point is (mm), its HU and what the chosen map has there, as HTML."""
        index = np.linalg.inv(self._cells)[:3] @ [*at, 1.0]
        one = self.maps[self.sentence]
        value = float(one[tuple(np.clip(np.rint(index), 0, np.array(one.shape) - 1).astype(int))])
        hu = float(self._frame.value(self._hu, np.asarray(at, float)))
        return (
            f"<code>{place_of(at)} mm &nbsp; {hu:.0f} HU</code> &nbsp; <code>attention {weight_of(one, value)}</code>"
        )

    def figure(self) -> Picture:
        """Three slices through the crosshair with the chosen map, as a static picture."""
        shown = next((name for name, pair in WINDOWS.items() if pair == self.window), self.window)
        overlay = _over(share(self.maps[self.sentence]), self._cells, self._affine, self._hu.shape)
        return planes(
            self._hu, self._affine, at=self.at, window=shown, overlay=overlay, outline=self._truth,
            title=self.sentences[self.sentence], label="attention, share of its peak",
        )  # fmt: skip

    def save(self, path: Path | str) -> None:
        """Write `figure()` as PNG or SVG, by the ending of `path`."""
        self.figure().save(path)

    def _built(self) -> ipw.VBox:
        """The widget, its volumes and controls."""
        from ipyniivue import MultiplanarType, NiiVue, ShowRender, SliceType

        self.nv: Any = NiiVue(
            height=self._height, slice_type=SliceType.MULTIPLANAR, multiplanar_layout=MultiplanarType.GRID,
            multiplanar_show_render=ShowRender.ALWAYS, is_radiological_convention=True, sagittal_nose_left=True,
            show_all_orientation_markers=True, is_colorbar=True, crosshair_width=0.5, is_nearest_interpolation=True,
            show_3d_crosshair=True, font_color=(0.95, 0.95, 0.95, 1.0), multiplanar_pad_pixels=14, tile_margin=0.0,
        )  # fmt: skip
        self.nv.load_volumes(self._volumes())
        self.nv.scene.render_azimuth, self.nv.scene.render_elevation = 160.0, 12.0  # from the left front
        self._build_controls()
        self.nv.on_location_change(self._moved)
        self.nv.on_canvas_attached(self._attached)  # what is sent before there is a canvas is lost
        controls = ipw.HBox([self.view, self.preset, self.opacity, self.threshold, self.palette, self.jump])
        controls.layout.flex_flow = "row wrap"
        small = ipw.HTML("<small>research use only</small>")
        return ipw.VBox([self.said, self.readout, self.nv, controls, self.list, small])

    def _volumes(self) -> list[dict[str, Any]]:
        """CT, maps and truth as NiiVue loads them: NIfTI files in memory, each with its own affine."""
        small, affine = _displayed(self._hu, self._affine)
        self._box = box_mm(small.shape, affine)
        width, level = self.window
        black = {"cal_min": level - width / 2, "cal_max": level + width / 2}
        found = [{"data": _nifti(small, affine), "name": "ct.nii", "colormap": "gray", **black}]
        maps = np.moveaxis(np.stack([share(one) for one in self.maps]), 0, -1)
        look = {"colormap": self.colours, "opacity": 0.5, "cal_min": 0.5, "cal_max": 1.0, "frame_4d": self.sentence}
        found.append({"data": _nifti(maps, self._cells), "name": "attention.nii", **look})
        if self._truth is not None:
            here = coarse(self._affine, self._hu.shape, self._truth.shape)
            shell = (self._truth > 0) & np.logical_not(ndimage.binary_erosion(self._truth > 0))
            look = {"colormap": "green2cyan", "cal_min": 0.0, "cal_max": 1.0, "colorbar_visible": False}
            found.append({"data": _nifti(shell.astype(np.uint8), here), "name": "truth.nii", **look})
        return found

    def _build_controls(self) -> None:
        wide = ipw.Layout(width="250px")
        names = [name for name, pair in PRESETS.items() if pair == self.window]
        options = [*PRESETS] if names else [*PRESETS, "free"]
        self.preset = ipw.Dropdown(options=options, value=(names or ["free"])[0], description="window", layout=wide)
        self.view = ipw.Dropdown(options=list(_VIEWS), description="view", layout=wide)
        self.palette = ipw.Dropdown(options=COLOURS[:3], value=self.colours, description="colours", layout=wide)
        self.opacity = ipw.FloatSlider(value=0.5, min=0, max=1, step=0.05, description="opacity", layout=wide)
        self.threshold = ipw.FloatSlider(value=0.5, min=0, max=0.95, step=0.05, description="from peak x", layout=wide)
        self.jump = ipw.Checkbox(value=True, description="go to the peak", indent=False, layout=wide)
        lines = [f"{number:3d}  {text}" for number, text in enumerate(self.sentences, 1)]
        self.list = ipw.Select(
            options=lines, index=self.sentence, rows=min(len(lines), 9), layout=ipw.Layout(width="100%")
        )
        self.said, self.readout = ipw.HTML(f"<b>{escape(self.sentences[self.sentence])}</b>"), ipw.HTML()
        overlay = self.nv.volumes[1]
        # in the browser alone, so that it answers while the kernel is busy
        self.links = [
            ipw.jsdlink((self.list, "index"), (overlay, "frame_4d")),
            ipw.jsdlink((self.opacity, "value"), (overlay, "opacity")),
            ipw.jsdlink((self.threshold, "value"), (overlay, "cal_min")),
        ]
        self.list.observe(self._chosen, "index")
        self.preset.observe(self._windowed, "value")
        self.palette.observe(lambda change: overlay.set_trait("colormap", change["new"]), "value")
        self.view.observe(self._viewed, "value")

    def _chosen(self, change: Any) -> None:
        number = change["new"]
        if number is not None and number != self.sentence:
            at = self.at
            self.pick(number)
            if not self.jump.value:
                self.move(at)

    def _bones(self) -> None:
        """Greys of which the rendering shows what is denser than BONE alone: ribs and spine, with the map inside."""
        width, level = self.window
        first = round(255 * min(max((BONE - level + width / 2) / width, 0.0), 250 / 255))
        grey = [0, first, first + 1, 255]
        self.nv.add_colormap("chest", {"R": grey, "G": grey, "B": grey, "A": [0, 0, 40, 160], "I": grey})
        self.nv.volumes[0].colormap = "gray"
        self.nv.volumes[0].colormap = "chest"

    def _attached(self) -> None:
        self._bones()
        self.nv.set_volume_render_illumination(0.5)

    def _windowed(self, change: Any) -> None:
        if change["new"] in PRESETS:
            self.window = width, level = PRESETS[change["new"]]
            self.nv.volumes[0].cal_min, self.nv.volumes[0].cal_max = level - width / 2, level + width / 2
            self._bones()

    def _viewed(self, change: Any) -> None:
        from ipyniivue import SliceType

        self.nv.set_slice_type(SliceType(_VIEWS[change["new"]]))

    def _moved(self, place: dict[str, Any]) -> None:
        """The crosshair was moved in the browser."""
        self.at = np.array(place["mm"][:3], float)
        self.readout.value = self.words(self.at)


def _displayed(hu: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The volume as int16 along the patient's axes, means of blocks where it has more than SIDE voxels a side."""
    blocks = [-(-n // SIDE) for n in hu.shape]
    if max(blocks) > 1:
        padded = np.pad(hu, [(0, -n % b) for n, b in zip(hu.shape, blocks, strict=True)], mode="edge")
        cells = [n // b for n, b in zip(padded.shape, blocks, strict=True)]
        affine = coarse(affine, padded.shape, cells)
        hu = padded.reshape([x for pair in zip(cells, blocks, strict=True) for x in pair]).mean((1, 3, 5), np.float32)
    turned, size, first = upright(hu, affine, order=1)
    place = np.diag([*size, 1.0])
    place[:3, 3] = first
    return np.clip(np.rint(turned), *_HU).astype(np.int16), np.linalg.inv(WORLD) @ place


def _nifti(array: np.ndarray, affine: np.ndarray) -> bytes:
    """A NIfTI file in memory; millimetres and RAS."""
    from nibabel.nifti1 import Nifti1Image

    image = Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def _over(one: np.ndarray, cells: np.ndarray, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A map on the voxels of the volume, each with the value of its cell."""
    to_cell = np.linalg.inv(cells) @ affine
    ones = [np.rint(to_cell[a, a] * np.arange(n) + to_cell[a, 3]).astype(int) for a, n in enumerate(shape)]
    near = [np.clip(index, 0, n - 1) for index, n in zip(ones, one.shape, strict=True)]
    return one[np.ix_(*near)]
