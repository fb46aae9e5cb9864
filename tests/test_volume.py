"""The volume view: what NiiVue is given lies where it lies in the patient, and the kernel says the right numbers."""

import importlib.util

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine

from widgets import volume
from widgets.figures import Picture
from widgets.geometry import coarse, to_mm
from widgets.volume import MISSING, VolumeView

SENTENCES = ("A nodule in the <left> lung.", "The heart is normal.")
SPACING = np.array([4.0, 5.0, 6.0])
SHAPE, GRID = (20, 16, 12), (5, 4, 3)
NODULE = (15, 3, 8)  # voxel
SIGNS = {"LPS": (-1, -1, 1), "RAS": (1, 1, 1), "LAS": (-1, 1, 1)}


def chest(code: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bright voxel in air, its affine, and maps of which the first looks at the voxel's cell."""
    affine = np.diag([*(SPACING * SIGNS[code]), 1.0])
    affine[:3, 3] = (10.0, -20.0, 30.0)
    hu = np.full(SHAPE, -1000, np.int16)
    hu[NODULE] = 400
    maps = np.full((2, *GRID), 0.1, np.float32)
    maps[0][tuple(np.array(NODULE) // 4)] = 0.9
    maps[1, 0, 0, 0] = 0.9
    return hu, affine, maps


def view(code: str = "LPS", **more) -> VolumeView:
    hu, affine, maps = chest(code)
    return VolumeView(**{"volume": hu, "affine": affine, "sentences": SENTENCES, "maps": maps} | more)


def sent(shown: VolumeView, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine of a volume as the browser gets them."""
    assert shown.widget
    image = nibabel.Nifti1Image.from_bytes(shown.nv.volumes[number].data)
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize("code", SIGNS)
def test_ct_and_maps_lie_where_they_lie_in_the_patient(code):
    shown = view(code)
    hu, affine = sent(shown, 0)
    assert hu.dtype == np.int16
    where = apply_affine(affine, np.argwhere(hu == 400)[0])
    np.testing.assert_allclose(where, to_mm(NODULE, chest(code)[1]), atol=1e-3)
    maps, grid = sent(shown, 1)
    assert maps.shape == (*GRID, 2)  # a frame a sentence
    np.testing.assert_allclose(maps.max((0, 1, 2)), 1)
    assert nibabel.orientations.aff2axcodes(grid) == tuple(code)
    assert (np.abs(apply_affine(grid, np.argwhere(maps[..., 0] == 1)[0]) - where) <= 2 * SPACING).all()


@pytest.mark.parametrize("code", SIGNS)
def test_the_crosshair_is_a_share_from_left_back_and_feet(code):
    shown = view(code)
    assert shown.widget
    shown.move(to_mm(NODULE, chest(code)[1]))
    voxel = (np.array(NODULE) + 0.5) / SHAPE
    expected = np.where(np.array(SIGNS[code]) > 0, voxel, 1 - voxel)
    np.testing.assert_allclose(shown.nv.scene.crosshair_pos, expected, atol=1e-6)
    assert "400 HU" in shown.readout.value
    assert f"{0.9 / chest(code)[2][0].mean():.1f}&times; its mean, 1.00 of its peak" in shown.readout.value


def test_a_click_in_the_browser_is_read_in_mm_and_hu():
    shown = view()
    assert shown.widget
    handle = shown.nv._event_handlers["location_change"]
    handle({"mm": [*to_mm((1, 1, 1), chest("LPS")[1]), 1.0]})
    assert "-1000 HU" in shown.readout.value
    assert "R 6.0" in shown.readout.value
    np.testing.assert_allclose(shown.at, to_mm((1, 1, 1), chest("LPS")[1]))


def test_a_sentence_is_switched_in_the_browser_and_by_name():
    shown = view()
    assert shown.widget
    assert shown.list.index == shown.nv.volumes[1].frame_4d == 0
    ends = [(link.source[1], link.target[1]) for link in shown.links if link.target[0] is shown.nv.volumes[1]]
    assert ends == [("index", "frame_4d"), ("value", "opacity"), ("value", "cal_min")]
    shown.list.index = 1  # as the browser sets it
    assert shown.sentence == shown.nv.volumes[1].frame_4d == 1
    np.testing.assert_allclose(shown.at, shown.peak(1))
    shown.jump.value = False
    shown.list.index = 0
    np.testing.assert_allclose(shown.at, shown.peak(1))
    assert "A nodule in the &lt;left&gt; lung." in shown.said.value


def test_windows_and_bones():
    shown = view()
    assert shown.widget
    shown.preset.value = "mediastinum"
    assert (shown.nv.volumes[0].cal_min, shown.nv.volumes[0].cal_max) == (-160, 240)
    shown._bones()
    assert shown.nv.volumes[0].colormap == "chest"
    chosen = shown.nv._cluts["chest"]
    assert chosen.A[1] == 0
    assert abs(chosen.I[1] / 255 * 400 - 160 - volume.BONE) < 2
    shown.view.value = "axial"
    assert shown.nv.opts.slice_type.name == "AXIAL"


def test_cells_of_a_stride_may_reach_beyond_the_volume():
    hu, affine, _ = chest("RAS")
    maps = np.zeros((1, 3, 3, 2), np.float32)
    maps[0, 1, 0, 1] = 1
    shown = VolumeView(hu, affine, sentences=SENTENCES[:1], maps=maps, stride=7)
    np.testing.assert_allclose(shown.peak(0), to_mm((10, 3, 10), affine))
    assert "1.00 of its peak" in shown.words(to_mm((13, 6, 7), affine))
    assert "0.00 of its peak" in shown.words(to_mm((14, 6, 7), affine))
    over = volume._over(maps[0], shown._cells, affine, hu.shape)
    np.testing.assert_array_equal(over, maps[0].repeat(7, 0).repeat(7, 1).repeat(7, 2)[:20, :16, :12])


def test_large_and_oblique_volumes_keep_their_place():
    angle = np.radians(20)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:2, :2] = 2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    hu = np.full((40, 40, 300), -1000, np.int16)
    hu[28:32, 8:12, 200:204] = 2000
    small, place = volume._displayed(hu, affine)
    assert small.shape[0] == 150  # head first
    bright = np.argwhere(small > 500)
    np.testing.assert_allclose(apply_affine(place, bright.mean(0)), to_mm((29.5, 9.5, 201.5), affine), atol=1.5)
    unit = view(volume=np.full(SHAPE, 0.5, np.float32), window_hu=(-1000.0, 1000.0))
    assert sent(unit, 0)[0].max() == 0


def test_the_truth_is_a_shell_on_its_own_grid():
    hu, affine, _ = chest("LPS")
    mask = np.zeros(SHAPE, bool)
    mask[5:10, 5:10, 4:9] = True
    shell, here = sent(view(truth=mask), 2)
    assert shell.sum() == 5**3 - 3**3
    np.testing.assert_allclose(here, coarse(affine, hu.shape, mask.shape))


def test_the_static_twin_and_a_missing_package(tmp_path, monkeypatch):
    shown = view(truth=chest("LPS")[0] > 0)
    assert isinstance(shown.figure(), Picture)
    shown.save(tmp_path / "a.png")
    shown.save(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    monkeypatch.setenv("MG3D_WIDGETS", "0")
    assert list(shown._repr_mimebundle_()) == ["image/png"]
    monkeypatch.setenv("MG3D_WIDGETS", "1")
    assert "application/vnd.jupyter.widget-view+json" in shown._repr_mimebundle_()
    find = importlib.util.find_spec
    monkeypatch.setattr(volume, "find_spec", lambda name: None if name == "ipyniivue" else find(name))
    other = view()
    assert MISSING.split(",")[0] in other._repr_mimebundle_()["text/html"]
    with pytest.raises(ModuleNotFoundError, match="pip install ipyniivue"):
        _ = other.widget


@pytest.mark.parametrize(
    ("change", "message"),
    [({"sentences": SENTENCES[:1]}, "1 sentences"), ({"volume": np.zeros((2, 2))}, r"shape \(2, 2\)"),
     ({"window": "brain"}, "lung, mediastinum")],
)  # fmt: skip
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        view(**change)
    with pytest.raises(ValueError, match="sentence=2"):
        view().pick(2)
