"""Both viewers on real chest CT and its outlines, where they lie beside the clone: left and right as the file says.

The files are stored in three orientations on purpose. What is expected comes from nibabel's reading of them alone.
"""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from widgets.attention import AttentionExplorer
from widgets.errors import ErrorViewer
from widgets.geometry import PLANES
from widgets.panes import OVER, TRACES

CT = Path(__file__).parents[2] / "shared" / "data" / "ct"
# how the voxels are stored, and what lies right and left: the lungs; liver and spleen; the upper lobes
FILES = {"lung1-002": ("LPS", 1, 2), "ts-example-sm": ("RAS", 5, 1), "lungct-lobes-template": ("LAS", 3, 1)}
pytestmark = pytest.mark.skipif(not CT.exists(), reason="no real volumes beside the clone")


def scan(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU, labels and affine of every other voxel of a file, by nibabel alone; labels without CT are the HU, too."""
    import nibabel

    image = nibabel.load(CT / f"{name}.nii.gz").slicer[::2, ::2, ::2]
    assert "".join(nibabel.aff2axcodes(image.affine)) == FILES[name][0]
    drawn = [*CT.glob(f"{name}_*.nii.gz"), CT / f"{name}.nii.gz"][0]
    return np.asarray(image.dataobj), np.asarray(nibabel.load(drawn).dataobj)[::2, ::2, ::2].astype(int), image.affine


def middle(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The centre of a mask, RAS mm."""
    return affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]


def ends(name: str, labels: np.ndarray, affine: np.ndarray) -> list[int]:
    """Labels of the right and of the left, and those furthest to the front, the back, the head and the feet."""
    sizes = np.bincount(labels.ravel())
    some = [k for k in range(1, len(sizes)) if sizes[k] > 50]
    places = np.array([middle(labels == k, affine) for k in some])
    right, left = FILES[name][1:]
    assert middle(labels == right, affine)[0] > middle(labels == left, affine)[0]
    return [right, left, *(some[pick(places[:, axis])] for axis in (1, 2) for pick in (np.argmax, np.argmin))]


def centre(figure, number: int) -> np.ndarray:
    """Row and column, as shares of a panel's picture, of what lies over the greys."""
    source = figure.data[TRACES * number + OVER].source
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGBA"))
    shown = np.argwhere(pixels[..., 3] > 0)
    assert len(shown)
    return shown.mean(0) / pixels.shape[:2]


def check(seen: dict[int, list[np.ndarray]], ordered: list[int]) -> None:
    """Right is left of left, the front above the back, the head above the feet: by the centres in the three planes."""
    right, left, front, back, head, feet = ordered
    axial, coronal, sagittal = range(3)
    for plane in (axial, coronal):
        assert seen[right][plane][1] < seen[left][plane][1]
    assert seen[front][axial][0] < seen[back][axial][0]
    assert seen[front][sagittal][1] < seen[back][sagittal][1]
    for plane in (coronal, sagittal):
        assert seen[head][plane][0] < seen[feet][plane][0]


@pytest.mark.parametrize("name", FILES)
def test_maps_of_real_organs_lie_on_their_side(name):
    hu, labels, affine = scan(name)
    ordered = ends(name, labels, affine)
    maps = np.stack([labels == k for k in ordered]).astype(np.float32)
    shown = AttentionExplorer(hu, affine, sentences=[f"Label {k}." for k in ordered], maps=maps, window="mediastinum")
    seen = {}
    for number, label in enumerate(ordered):
        shown.pick(number)
        inside = np.argwhere(labels == label)
        near = inside[np.argmin(((inside - inside.mean(0)) ** 2).sum(1))]
        shown.board.move(affine[:3, :3] @ near + affine[:3, 3])
        assert shown.board.hu(shown.board.at) == hu[tuple(near)]
        seen[label] = [centre(shown.board.figure, plane) for plane in range(len(PLANES))]
    check(seen, ordered)


@pytest.mark.parametrize("name", FILES)
def test_what_is_missing_in_real_ct_is_marked_on_its_side(name):
    """A prediction without an organ: yellow lies where the organ is, and the list of lesions names its place."""
    hu, labels, affine = scan(name)
    ordered = ends(name, labels, affine)
    seen = {}
    for label in dict.fromkeys(ordered):
        truth = (labels > 0).astype(np.uint8)
        without = np.where(labels == label, 0, truth).astype(np.uint8)
        scores = {"without": {"Dice": 2 * without.sum() / (int(without.sum()) + int(truth.sum()))}}
        shown = ErrorViewer(hu, affine, truth=truth, predictions={"without": without}, scores=scores)
        place = shown.board.at
        voxel = np.rint(np.linalg.solve(affine[:3, :3], place - affine[:3, 3])).astype(int)
        assert labels[tuple(voxel)] == label  # it starts amid what is missing
        by = shown.by_slice("without")
        assert by["missing"].sum() == pytest.approx((labels == label).sum() * abs(np.linalg.det(affine[:3, :3])) / 1e3)
        shown.board.move(place)
        seen[label] = [yellow(shown, plane) for plane in range(len(PLANES))]
    check(seen, ordered)


def yellow(shown: ErrorViewer, number: int) -> np.ndarray:
    """Row and column, as shares of a panel's picture, of what is missing."""
    source = shown.board.figure.data[TRACES * number + OVER].source
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGBA"))
    missing = np.argwhere((pixels[..., :3] == shown.board.palette[3][:3]).all(-1) & (pixels[..., 3] > 0))
    return missing.mean(0) / pixels.shape[:2]
