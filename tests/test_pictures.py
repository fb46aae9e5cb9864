"""Scans that were published as grey pictures: order, axes, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from mg3d.data import BadVolume
from mg3d.data.frame import Spec, orientation
from mg3d.data.hu import EIGHT_BIT
from mg3d.data.listing import Listing
from mg3d.data.pictures import pictures, read_pictures
from mg3d.data.prepare import prepare
from mg3d.data.reading import read_volume
from mg3d.types import Case

SLICES = np.random.default_rng(0).integers(0, 255, (12, 10, 8)).astype(np.uint8)  # slice, row, column


def write(folder, slices=SLICES, *, names="{}.png"):
    folder.mkdir()
    for i, picture in enumerate(slices):
        Image.fromarray(picture).save(folder / names.format(i))
    return folder


def test_slices_come_in_the_order_of_their_numbers(tmp_path):
    folder = write(tmp_path / "scan")  # 10.png is before 2.png by name
    (folder / ".DS_Store").touch()
    (folder / "._1.png").touch()
    assert [p.name for p in pictures(folder)] == [f"{i}.png" for i in range(12)]
    stored = read_pictures(folder)
    assert (stored.voxels == SLICES.transpose(2, 1, 0)).all()
    assert stored.scale is None


def test_slices_lie_from_head_to_feet_as_radiologists_see_them(tmp_path):
    affine = read_pictures(write(tmp_path / "scan")).affine
    assert orientation(affine) == ((2, 1, 0), (-1.0, 1.0, 1.0))  # D is the third axis reversed, H rows, W columns
    assert np.allclose(np.abs(np.diag(affine))[:3] * [8, 10, 12], [350, 350, 300])


def test_an_array_reads_like_its_pictures(tmp_path):
    np.save(tmp_path / "p1-s2.npy", SLICES)
    one, two = read_pictures(tmp_path / "p1-s2.npy"), read_pictures(write(tmp_path / "scan"))
    assert (one.voxels == two.voxels).all()
    assert (one.affine == two.affine).all()


def test_grey_that_was_saved_as_colour(tmp_path):
    stored = read_pictures(write(tmp_path / "scan", np.repeat(SLICES[..., None], 3, -1), names="IM{:04d}.bmp"))
    assert (stored.voxels == SLICES.transpose(2, 1, 0)).all()


def test_what_cannot_be_used_is_said(tmp_path):
    def reason(path, words: str) -> str:
        with pytest.raises(BadVolume) as caught:
            read_pictures(path)
        assert words in str(caught.value)
        return caught.value.reason

    folder = write(tmp_path / "scan")
    Image.fromarray(SLICES[0, :3]).save(folder / "4.png")
    assert reason(folder, "4.png (3, 8)") == "not-3d"
    (folder / "4.png").write_bytes(b"\x89PNG")
    assert reason(folder, "4.png") == "truncated"
    Image.fromarray(SLICES[0].astype(np.uint16)).save(folder / "4.png")
    assert reason(folder, "eight-bit grey") == "not-nifti"
    (tmp_path / "empty").mkdir()
    assert reason(tmp_path / "empty", "no picture") == "missing"
    np.save(tmp_path / "flat.npy", SLICES[0])
    assert reason(tmp_path / "flat.npy", "(10, 8)") == "not-3d"
    np.save(tmp_path / "float.npy", SLICES / 255)
    assert reason(tmp_path / "float.npy", "float64") == "not-nifti"
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    assert reason(tmp_path / "objects.npy", "not readable") == "truncated"


def test_a_scan_is_prepared_as_it_was_windowed(tmp_path):
    """Grey 0..255 becomes 0..1; slices from the feet up, rows from front to back."""
    folder = write(tmp_path / "scan")
    image = read_volume(folder, rescale=EIGHT_BIT)
    assert image.hu_from == "8-bit"
    case = Case("p1-s2", "1", "train", folder, "", {"class": 0}, EIGHT_BIT)
    spec = Spec(shape=SLICES.shape, crop=(1.0, 1.0, 1.0))
    made = prepare(Listing([case]), spec=spec, folder=tmp_path / "cache", workers=1, reports=False, progress=False)
    assert np.allclose(made.entries[0].load(), SLICES[::-1] / 255, atol=1e-3)
