"""Pictures of an asymmetric phantom: what is left in the patient is right in the picture, for every affine."""

import io
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from widgets import slices
from widgets.geometry import PLANES, coarse, cut, to_mm

SHARED = Path(__file__).parents[2] / "shared"
SIDES_MM = (150.0, 120.0, 130.0)  # right-left, front-back, head-feet
NODULE_MM = np.array([-40.0, 20.0, 25.0])  # in the patient's left lung, in front, high up
RADIUS_MM = 12.0


def rotation(degrees: float, axis: int) -> np.ndarray:
    turn = np.radians(degrees)
    a, b = (i for i in range(3) if i != axis)
    matrix = np.eye(3)
    matrix[[a, a, b, b], [a, b, a, b]] = np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)
    return matrix


def phantom(direction: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Air with a bright ball in the left lung, rendered from patient space into the array of an affine."""
    linear = direction * np.array(spacing_mm)
    sides = np.abs(direction.T) @ SIDES_MM
    shape = tuple(np.ceil(sides / spacing_mm).astype(int))
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ ((np.array(shape) - 1) / 2)
    index = np.indices(shape).reshape(3, -1)
    distance = np.linalg.norm(linear @ index + affine[:3, 3, None] - NODULE_MM[:, None], axis=0)
    return np.where(distance < RADIUS_MM, 400.0, -1000.0).reshape(shape), affine


def direction(code: str) -> np.ndarray:
    """Direction cosines of an orientation code: the columns of "SPL" point to the head, the back and the left."""
    letters = {"R": (1, 0, 0), "A": (0, 1, 0), "S": (0, 0, 1), "L": (-1, 0, 0), "P": (0, -1, 0), "I": (0, 0, -1)}
    return np.array([letters[letter] for letter in code], float).T


CODES = ["".join(p) for sides in product("RL", "AP", "SI") for p in permutations(sides)]
OBLIQUE = {
    "oblique 20": rotation(20, 0) @ rotation(15, 2),
    "oblique 45": rotation(45, 2) @ np.diag([-1.0, -1, 1]),
    "oblique permuted": rotation(30, 1) @ np.eye(3)[:, [2, 0, 1]],
}
DIRECTIONS = {code: direction(code) for code in CODES} | OBLIQUE


def shown(figure) -> np.ndarray:
    """The figure's pixels as a screen would show them."""
    return imread(io.BytesIO(figure.png()))[..., :3]


def boxes(figure, image: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Pixel borders (left, right, top, bottom) of each panel in the rendered image."""
    height, width = image.shape[:2]
    found = []
    for axis in figure.axes:
        x0, y0, x1, y1 = axis.get_position().extents
        found.append((round(x0 * width), round(x1 * width), round((1 - y1) * height), round((1 - y0) * height)))
    return found


def blob(panel: np.ndarray) -> tuple[float, float]:
    """Centre of the largest white patch of a panel, as shares of its width and height (letters are smaller)."""
    from scipy import ndimage

    labels, n = ndimage.label(panel.min(-1) > 0.97)
    assert n, "nothing white was drawn"
    sizes = ndimage.sum_labels(np.ones(labels.shape), labels, range(1, n + 1))
    y, x = ndimage.center_of_mass(labels == 1 + int(np.argmax(sizes)))
    return (x + 0.5) / panel.shape[1], (y + 0.5) / panel.shape[0]


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_plane_is_the_same_for_every_affine(name):
    volume, affine = phantom(DIRECTIONS[name], (2.0, 2.5, 3.0))
    for plane in PLANES:
        one = cut(volume, affine, plane=plane, at=NODULE_MM)
        left, right, bottom, top = one.extent_mm
        bright = np.argwhere(np.nan_to_num(one.pixels, nan=-1000) > -300).mean(0) + 0.5
        y, x = bright / one.pixels.shape
        found = left + x * (right - left), top + y * (bottom - top)
        row, column, _ = PLANES[plane]
        assert found == pytest.approx((NODULE_MM[column], NODULE_MM[row]), abs=1.5)


@pytest.mark.parametrize("name", ["LPS", "RAS", "LAS", "SPL", "PIR", "oblique 20", "oblique permuted"])
def test_the_nodule_of_the_left_lung_lands_on_the_right_of_the_rendered_picture(name):
    volume, affine = phantom(DIRECTIONS[name], (2.0, 2.0, 2.0))
    figure = slices.planes(volume, affine, at=NODULE_MM)
    image = shown(figure)
    for plane, axis, (left, right, top, bottom) in zip(PLANES, figure.axes, boxes(figure, image), strict=True):
        x, y = blob(image[top:bottom, left:right])
        x0, x1, y0, y1 = (*axis.get_xlim(), *axis.get_ylim())
        row, column, _ = PLANES[plane]
        assert x0 + x * (x1 - x0) == pytest.approx(NODULE_MM[column], abs=2.5)
        assert y1 + y * (y0 - y1) == pytest.approx(NODULE_MM[row], abs=2.5)
        assert (x > 0.5) == (plane != "sagittal")  # the left lung on the right; in front means left in a sagittal view
        assert y < 0.5


def test_axis_aligned_pixels_are_the_voxels_themselves():
    volume = np.random.default_rng(0).normal(size=(7, 5, 6))
    affine = np.array([[0, 0, -2.0, 9], [0, -3.0, 0, 4], [1.5, 0, 0, -8], [0, 0, 0, 1]])  # prepared frame: S, P, L
    axial = cut(volume, affine, plane="axial", at=to_mm((4, 0, 0), affine))
    np.testing.assert_allclose(axial.pixels, volume[4], rtol=1e-6)
    coronal = cut(volume, affine, plane="coronal", at=to_mm((0, 2, 0), affine))
    np.testing.assert_allclose(coronal.pixels, volume[::-1, 2], rtol=1e-6)
    sagittal = cut(volume, affine, plane="sagittal", at=to_mm((0, 0, 1), affine))
    np.testing.assert_allclose(sagittal.pixels, volume[::-1, :, 1], rtol=1e-6)
    assert axial.letters == ("R", "L", "A", "P")
    assert coronal.letters == ("R", "L", "S", "I")
    assert sagittal.letters == ("A", "P", "S", "I")
    assert (axial.position, coronal.position) == ("I 2.0 mm", "P 2.0 mm")


def test_pixels_are_square_in_millimetres():
    volume, affine = phantom(np.eye(3), (1.0, 1.0, 5.0))
    figure = slices.planes(volume, affine, at=NODULE_MM)
    image = shown(figure)
    left, right, top, bottom = boxes(figure, image)[1]
    white = np.argwhere(image[top:bottom, left:right].min(-1) > 0.9)
    near = white[np.abs(white - np.median(white, 0)).max(1) < 60]
    height, width = np.ptp(near, axis=0)
    assert 0.7 < height / width < 1.3


def test_everything_a_radiologist_needs_is_printed():
    volume, affine = phantom(np.eye(3), (2.0, 2.0, 2.0))
    figure = slices.planes(volume, affine, window="mediastinum", title="a title")
    words = [[t.get_text() for t in axis.texts] for axis in figure.axes]
    assert [w[:4] for w in words] == [list("RLAP"), list("RLSI"), list("APSI")]
    assert all("5 cm" in w for w in words)
    assert all(any(t.endswith(" mm") for t in w) for w in words)
    around = [t.get_text() for t in figure.texts]
    assert "a title" in around
    assert "mediastinum window W 400 L 40" in around
    assert "research use only" in around


def test_the_scale_bar_is_as_long_as_it_says():
    volume, affine = phantom(np.eye(3), (2.0, 2.0, 2.0))
    figure = slices.planes(volume, affine)
    bar = figure.axes[0].lines[0]
    assert np.ptp(bar.get_xdata()) == 50


def test_the_window_sets_the_greys():
    volume = np.full((4, 4, 4), -600.0)
    for window, grey in (("lung", 0.5), ("bone", 0.068), ((100, -625), 0.75)):
        image = slices.planes(volume, np.eye(4) * [50, 50, 50, 1], window=window).axes[0].images[0]
        assert image.norm(image.get_array()).mean() == pytest.approx(grey, abs=1e-6)


def test_prepared_values_are_brought_back_to_hu():
    volume, affine = phantom(np.eye(3), (4.0, 4.0, 4.0))
    unit = np.clip((volume + 1000) / 2000, 0, 1).astype(np.float16)
    direct = shown(slices.planes(volume, affine))
    back = shown(slices.planes(unit, affine, window_hu=(-1000, 1000)))
    np.testing.assert_allclose(direct, back, atol=0.01)


def test_an_overlay_of_cells_covers_the_field_of_view_and_is_cut_at_its_peak():
    volume, affine = phantom(direction("LPS"), (2.0, 2.0, 2.0))
    cells = np.zeros((3, 4, 5))
    cells[2, 1, 3] = 1.0
    figure = slices.planes(volume, affine, overlay=cells, label="attention")
    heat = figure.axes[0].images[1].get_array()
    assert heat.shape == (4, 3)
    assert heat.count() == 1
    assert not heat.mask[1, 2]
    peak = to_mm((2, 1, 3), coarse(affine, volume.shape, cells.shape))
    assert abs(float(figure.axes[0].texts[4].get_text().split()[1]) - abs(peak[2])) < 1.01
    assert figure.axes[3].get_ylabel() == "attention"


def test_a_coarse_grid_shares_corners_with_the_volume():
    affine = np.array([[0, 0, -2.0, 9], [0, -3.0, 0, 4], [1.5, 0, 0, -8], [0, 0, 0, 1]])
    fine = (np.array([0.0, 0, 0]) - 0.5, np.array([8.0, 6, 10]) - 0.5)
    cell = (np.array([0.0, 0, 0]) - 0.5, np.array([2.0, 3, 5]) - 0.5)
    grid = coarse(affine, (8, 6, 10), (2, 3, 5))
    for a, b in zip(fine, cell, strict=True):
        np.testing.assert_allclose(to_mm(a, affine), to_mm(b, grid))


def test_an_outline_is_drawn_where_the_mask_is_and_nowhere_else():
    volume, affine = phantom(direction("LPS"), (2.0, 2.0, 2.0))
    figure = slices.planes(volume, affine, outline=volume > 0)
    path = figure.axes[0].collections[0].get_paths()[0].vertices
    assert path.mean(0) == pytest.approx(NODULE_MM[:2], abs=2.5)
    assert np.ptp(path, axis=0) == pytest.approx([2 * RADIUS_MM] * 2, abs=4)
    empty = slices.planes(volume, affine, outline=np.zeros_like(volume))
    assert not empty.axes[0].collections


def test_the_montage_runs_from_the_head_down():
    volume, affine = phantom(direction("LAI"), (3.0, 3.0, 3.0))
    figure = slices.montage(volume, affine, 5)
    positions = [axis.texts[4].get_text().split() for axis in figure.axes]
    heights = [float(mm) * (1 if side == "S" else -1) for side, mm, _ in positions]
    assert heights == sorted(heights, reverse=True)
    assert len(set(np.round(np.diff(heights)))) == 1


def test_compare_names_every_column():
    volume, affine = phantom(np.eye(3), (3.0, 3.0, 3.0))
    figure = slices.compare({"masked": volume, "original": volume}, affine)
    assert [axis.get_title() for axis in figure.axes] == ["masked", "original", "", ""]


def test_the_histogram_counts_every_voxel():
    volume, _ = phantom(np.eye(3), (3.0, 3.0, 3.0))
    axis = slices.histogram({"a": volume, "b": volume - 100}).axes[0]
    for steps in axis.patches:
        values, _, _ = steps.get_data()
        assert values.sum() == pytest.approx(100, abs=0.01)


def test_pictures_are_cut_through_the_voxel_nearest_to_the_point():
    volume, affine = phantom(np.eye(3), (4.0, 4.0, 4.0))
    figure = slices.planes(volume, affine, at=to_mm((10.4, 8, 7), affine))
    assert figure.axes[2].texts[4].get_text().endswith(f"{abs(to_mm((10, 8, 7), affine)[0]):.1f} mm")


def test_the_middle_of_a_mask_in_two_lies_in_one_of_them():
    mask = np.zeros((9, 9, 20), bool)
    mask[3:6, 3:6, 1:4] = mask[3:6, 3:6, 15:20] = True
    affine = np.array([[0, 0, -2.0, 9], [0, -3.0, 0, 4], [1.5, 0, 0, -8], [0, 0, 0, 1]])
    where = np.linalg.inv(affine) @ [*slices.middle(mask, affine), 1]
    assert where[:3] == pytest.approx([4, 4, 15])  # the mean is 11.75, between the two
    with pytest.raises(ValueError, match="the mask is empty"):
        slices.middle(mask & False, affine)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v, a: slices.planes(v, a, window="brain"), "lung, mediastinum, bone"),
        (lambda v, a: slices.planes(v[None], a), "3 axes are needed"),
        (lambda v, a: slices.montage(v, a, plane="axal"), "axial, coronal, sagittal"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*phantom(np.eye(3), (5.0, 5.0, 5.0)))


@pytest.mark.skipif(not SHARED.exists(), reason="the sample volumes are not here")
@pytest.mark.parametrize("name", ["lung1-001", "4dlung-113"])
def test_the_right_lung_of_a_real_volume_is_on_the_left_of_the_picture(name):
    import nibabel

    image = nibabel.load(SHARED / "data" / "ct" / f"{name}.nii.gz")
    labels = np.asarray(nibabel.load(SHARED / "data" / "ct" / f"{name}_seg.nii.gz").dataobj)
    right = labels == 1 if (labels == 2).any() else None
    if right is None:
        tumour = cut(
            (labels == 6).astype(np.float32), image.affine, plane="axial", at=_middle(labels == 6, image.affine)
        )
        assert np.argwhere(tumour.pixels > 0.5).mean(0)[1] > tumour.pixels.shape[1] / 2  # it lies on the left side
        return
    at = _middle(labels > 0, image.affine)
    lungs = [cut((labels == n).astype(np.float32), image.affine, plane="axial", at=at).pixels > 0.5 for n in (1, 2)]
    assert np.argwhere(lungs[0]).mean(0)[1] < np.argwhere(lungs[1]).mean(0)[1]


def _middle(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return to_mm(np.argwhere(mask).mean(0), affine)
