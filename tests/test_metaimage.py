"""MetaImage files in the forms of LUNA16 and STOIC-2021, and every way in which one can be unusable."""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import volumes

from mg3d.data import BadVolume
from mg3d.data.metaimage import read_metaimage
from mg3d.data.reading import read_volume

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (5, 4, 3)).astype(np.int16)  # x, y, z
LUNA = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "-198.1 -195 -335.2",
    "CenterOfRotation": "0 0 0",
    "AnatomicalOrientation": "RAI",
    "ElementSpacing": "0.76 0.76 1.25",
    "DimSize": "5 4 3",
    "ElementType": "MET_SHORT",
}


def write(path: Path, fields: Mapping[str, str] = LUNA, *, content: bytes | None = None, local: bool = False) -> Path:
    """A header with some fields changed ("" leaves one out), and the voxels after it or beside it."""
    content = VOXELS.tobytes(order="F") if content is None else content
    told = {**LUNA, **fields}
    name = told.pop("ElementDataFile", "LOCAL" if local else f"{path.stem}.raw")
    header = "".join(f"{key} = {value}\n" for key, value in [*told.items(), ("ElementDataFile", name)] if value)
    path.write_bytes(header.encode() + (content if local else b""))
    if not local:
        path.with_suffix(".raw").write_bytes(content)
    return path


def test_luna16s_pair_of_files(tmp_path):
    stored = read_metaimage(write(tmp_path / "1.2.3.mhd"))
    assert stored.voxels.dtype == np.int16
    assert (stored.voxels == VOXELS).all()
    assert stored.scale is None
    assert np.allclose(stored.affine, [[-0.76, 0, 0, 198.1], [0, -0.76, 0, 195], [0, 0, 1.25, -335.2], [0, 0, 0, 1]])


def test_stoics_single_packed_file(tmp_path):
    packed = zlib.compress(VOXELS.tobytes(order="F"))
    fields = {"CompressedData": "True", "CompressedDataSize": str(len(packed))}
    stored = read_metaimage(write(tmp_path / "1000.mha", fields, content=packed, local=True))
    assert (stored.voxels == VOXELS).all()


@pytest.mark.parametrize(
    ("kind", "dtype"), [("MET_UCHAR", "u1"), ("MET_USHORT", "<u2"), ("MET_FLOAT", "<f4"), ("MET_SHORT", ">i2")]
)
def test_types_and_byte_orders(tmp_path, kind, dtype):
    voxels = (VOXELS % 200).astype(dtype)
    msb = str(dtype.startswith(">"))
    fields = {"ElementType": kind, "BinaryDataByteOrderMSB": msb}
    path = write(tmp_path / "a.mhd", fields, content=voxels.tobytes(order="F"))
    found = read_metaimage(path).voxels
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    assert (found == VOXELS % 200).all()


def test_directions_are_lines_of_the_matrix_and_old_names_are_known(tmp_path):
    """The first axis points to the head, the second to the left, the third to the back."""
    path = write(
        tmp_path / "a.mhd", {"TransformMatrix": "0 0 1 1 0 0 0 1 0", "Offset": "1 2 3", "ElementSpacing": "2 3 4"}
    )
    path.write_text(path.read_text().replace("TransformMatrix", "Rotation").replace("Offset", "Position"))
    affine = read_metaimage(path).affine
    assert np.allclose(affine @ [1, 0, 0, 1], [-1, -2, 3 + 2, 1])
    assert np.allclose(affine @ [0, 1, 0, 1], [-1 - 3, -2, 3, 1])
    assert np.allclose(affine @ [0, 0, 1, 1], [-1, -2 - 4, 3, 1])


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        ({"TransformMatrix": ""}, "geometry", "TransformMatrix: 9 numbers"),
        ({"ElementSpacing": "1 1"}, "geometry", "ElementSpacing: 3 numbers"),
        ({"Offset": "a b c"}, "geometry", "Offset"),
        ({"DimSize": "5 4"}, "not-3d", "DimSize 5 4"),
        ({"DimSize": "5 4 -3"}, "not-3d", "DimSize"),
        ({"ElementNumberOfChannels": "3"}, "not-3d", "one channel"),
        ({"ElementType": "MET_LONG"}, "not-nifti", "MET_LONG"),
        ({"BinaryData": "False"}, "not-nifti", "as text"),
        ({"ElementDataFile": "slice%03d.raw 1 3 1"}, "not-nifti", "one file of voxels"),
        ({"HeaderSize": "-1"}, "not-nifti", "one file of voxels"),
        ({"ElementDataFile": "other.raw"}, "missing", "other.raw"),
        ({"DimSize": "5 4 9"}, "truncated", "120 of 360 bytes"),
        ({"CompressedData": "True"}, "truncated", "cut or damaged"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path, fields, reason, words):
    path = write(tmp_path / "a.mhd", fields)
    with pytest.raises(BadVolume) as caught:
        read_metaimage(path)
    assert caught.value.reason == reason
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x00\n\n", b"NDims = 3\nDimSize = 5 4 3\n", b"a = b\n" * 20_000])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "a.mha"
    path.write_bytes(content)
    with pytest.raises(BadVolume, match="no MetaImage"):
        read_metaimage(path)


def test_an_unreadable_file_is_said(tmp_path):
    with pytest.raises(BadVolume, match=r"(?i)directory") as caught:
        read_metaimage(tmp_path)
    assert caught.value.reason == "unreadable"


def test_a_chest_is_read_as_from_nifti(tmp_path):
    hu = volumes.chest()
    axes, step = volumes.AFFINE[:3, :3] / volumes.SPACING_MM, " ".join(map(str, volumes.SPACING_MM))
    lps = np.diag([-1.0, -1.0, 1.0])
    fields = {
        "TransformMatrix": " ".join(map(str, (lps @ axes).T.ravel())),
        "Offset": " ".join(map(str, lps @ volumes.AFFINE[:3, 3])),
        "ElementSpacing": step,
        "DimSize": " ".join(map(str, hu.shape)),
    }
    one = read_volume(write(tmp_path / "a.mhd", fields, content=hu.tobytes(order="F")))
    two = read_volume(volumes.write_nifti(tmp_path / "a.nii.gz", hu))
    assert (one.hu == two.hu).all()
    assert np.allclose(one.affine, two.affine)
