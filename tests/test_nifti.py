"""NIfTI files and Hounsfield units: what is read, bit for bit, and what is refused, by name."""

import contextlib
import gzip
import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest
from volumes import AFFINE, SHAPE, chest, edit_header, write_nifti

from mg3d.data import BadVolume
from mg3d.data.hu import EIGHT_BIT
from mg3d.data.reading import REASONS, Limits, read_volume

SHARED = Path(__file__).parents[2] / "shared" / "data" / "ct"
real = pytest.mark.skipif(not SHARED.exists(), reason="no real volumes beside the clone")


def refused(path: Path, reason: str, **options) -> str:
    """Assert that `path` is refused for `reason`, and give the message."""
    with pytest.raises(BadVolume) as caught:
        read_volume(path, **options)
    assert caught.value.reason == reason
    assert reason in REASONS
    assert str(path) in str(caught.value)
    return str(caught.value)


# what is read


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", "<f4", "<f8"])
def test_voxels_and_affine_come_back_bit_for_bit(tmp_path, name, dtype):
    hu = chest().astype(dtype)
    image = read_volume(write_nifti(tmp_path / name, hu))
    assert np.array_equal(image.hu, hu)
    assert image.hu.dtype == (np.float32 if "f" in dtype else np.int16)
    assert image.hu.dtype.isnative
    assert np.allclose(image.affine, AFFINE)
    assert image.hu_from == "header"


def test_nifti_2_and_several_gzip_members(tmp_path):
    hu = chest()
    image = nibabel.Nifti2Image(hu, AFFINE)
    nibabel.save(image, tmp_path / "two.nii")
    content = (tmp_path / "two.nii").read_bytes()
    path = tmp_path / "two.nii.gz"
    path.write_bytes(b"".join(gzip.compress(content[i : i + 20000]) for i in range(0, len(content), 20000)))
    for file in (tmp_path / "two.nii", path):
        assert np.array_equal(read_volume(file).hu, hu)


def test_a_fourth_axis_of_one_frame_is_dropped(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", chest()[..., None])
    assert read_volume(path).hu.shape == SHAPE


def test_content_decides_not_the_name(tmp_path):
    packed = write_nifti(tmp_path / "a.nii.gz", chest())
    renamed = packed.rename(tmp_path / "b.nii")
    assert np.array_equal(read_volume(renamed).hu, chest())


def test_int16_voxels_are_a_view_of_the_file(tmp_path):
    """No copy: the array's memory belongs to the inflated bytes."""
    hu = read_volume(write_nifti(tmp_path / "a.nii.gz", chest())).hu
    assert not hu.flags.owndata
    assert not hu.flags.writeable
    assert hu.flags.f_contiguous


# what makes the voxels HU


@pytest.mark.parametrize(
    ("offset", "dtype", "scale", "rescale", "hu_from"),
    [
        (0, "i2", None, None, "header"),
        (0, "i2", None, (1.0, -1024.0), "header"),  # CT-RATE, mended: already HU, the table still states a pair
        (0, "i2", None, (1.0, -8192.0), "header"),
        (0, "i2", (1.0, 0.0), (1.0, 0.0), "header"),
        (1024, "i2", None, (1.0, -1024.0), "metadata"),  # CT-RATE, first release
        (1024, "u2", None, (1.0, -1024.0), "metadata"),
        (1024, "f4", None, (1.0, -1024.0), "metadata"),
        (8192, "u2", None, (1.0, -8192.0), "metadata"),
        (1024, "i2", (1.0, -1024.0), None, "header"),
        (1024, "i2", (1.0, -1024.0), (1.0, -1024.0), "header"),  # both say the same: no contradiction
        (40000, "u2", (1.0, -40000.0), None, "header"),  # beyond int16 as stored
    ],
)
def test_a_pair_is_applied_where_the_voxels_need_it(tmp_path, offset, dtype, scale, rescale, hu_from):
    stored = (chest().astype(np.int64) + offset).astype(dtype)
    image = read_volume(write_nifti(tmp_path / "a.nii.gz", stored, scale=scale), rescale=rescale)
    assert np.array_equal(image.hu, chest())
    assert image.hu.dtype == (np.float32 if dtype == "f4" else np.int16)
    assert image.hu_from == hu_from


def test_a_fractional_slope_gives_float32(tmp_path):
    stored = (chest().astype(np.int32) + 1024) * 2
    image = read_volume(write_nifti(tmp_path / "a.nii.gz", stored, scale=(0.5, -1024.0)))
    assert image.hu.dtype == np.float32
    assert np.array_equal(image.hu, chest())


@pytest.mark.parametrize("padding", [-2000, -3024, -8192])
@pytest.mark.parametrize(("offset", "rescale"), [(0, None), (0, (1.0, -1024.0)), (1024, (1.0, -1024.0))])
def test_padding_is_no_evidence(tmp_path, padding, offset, rescale):
    """Most of the volume lies outside the reconstructed circle; the rest decides."""
    stored = chest() + np.int16(offset)
    stored[:12] = stored[-12:] = padding + offset
    image = read_volume(write_nifti(tmp_path / "a.nii.gz", stored), rescale=rescale)
    assert np.array_equal(image.hu, stored - offset)


def test_8_bit_volumes_are_spread_over_the_window(tmp_path):
    eight = ((chest().clip(-1000, 1000) + 1000) / 2000 * 255).round().astype(np.uint8)
    image = read_volume(
        write_nifti(tmp_path / "a.nii.gz", eight, affine=np.eye(4) * [[4], [4], [8], [1]]), rescale=EIGHT_BIT
    )
    assert image.hu_from == "8-bit"
    assert image.hu.dtype == np.float32
    assert np.allclose((image.hu + 1000) / 2000, eight / 255, atol=1e-6)
    assert "8-bit values" in refused(write_nifti(tmp_path / "b.nii.gz", chest()), "hu", rescale=EIGHT_BIT)


def test_8_bit_volumes_may_lack_a_scanner_geometry(tmp_path):
    eight = np.random.default_rng(0).integers(0, 256, (120, 120, 60)).astype(np.uint8)
    path = write_nifti(tmp_path / "a.nii.gz", eight, affine=np.eye(4))
    assert read_volume(path, rescale=EIGHT_BIT).hu_from == "8-bit"


@pytest.mark.parametrize("rescale", [None, (1.0, -1024.0)])
def test_a_pair_applied_twice_is_recognised(tmp_path, rescale):
    path = write_nifti(tmp_path / "a.nii.gz", chest() - np.int16(1024))
    message = refused(path, "hu", rescale=rescale)
    assert "applied twice" in message
    assert "-2024" in message


def test_a_pair_of_the_header_on_top_of_hu_is_recognised(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", chest(), scale=(1.0, -1024.0))
    assert "applied twice" in refused(path, "hu")


def test_stored_values_without_any_pair_are_recognised(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", chest() + np.int16(1024))
    message = refused(path, "hu")
    assert "no HU" in message
    assert "intercept -1024" in message


def test_two_plausible_pairs_are_a_contradiction(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", chest())
    message = refused(path, "hu", rescale=(1.0, -30.0))
    assert "alike" in message
    assert "-30" in message


@pytest.mark.parametrize(
    ("voxels", "words"),
    [
        ((chest() > -500).astype(np.uint8), "mask"),
        (((chest() + 1000) / 2000).clip(0, 1).astype(np.float32), "already windowed"),
        ((chest() * 7).astype(np.int16), "no body in air"),
    ],
)
def test_what_is_no_hu_is_refused_with_its_range(tmp_path, voxels, words):
    message = refused(write_nifti(tmp_path / "a.nii.gz", voxels), "hu")
    assert words in message
    assert f"{voxels.max():g}" in message


# what is refused


@pytest.mark.parametrize("keep", [0, 1, 9, 100, 0.3, 0.9, -1])
def test_a_cut_gzip_is_truncated(tmp_path, keep):
    path = write_nifti(tmp_path / "a.nii.gz", chest())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    refused(path, "not-nifti" if keep == 1 else "truncated")


@pytest.mark.parametrize("at", [-6, 2000])
def test_a_damaged_gzip_is_truncated(tmp_path, at):
    """One flipped byte, in the checksum or in the stream."""
    path = write_nifti(tmp_path / "a.nii.gz", chest())
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    refused(path, "truncated")


@pytest.mark.parametrize("keep", [200, 400, 10_000])
def test_a_cut_plain_file_is_truncated(tmp_path, keep):
    path = write_nifti(tmp_path / "a.nii", chest())
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "truncated")


def test_a_false_size_in_the_gzip_trailer_allocates_nothing_large(tmp_path):
    """The last four bytes say 4 GiB; the stream's own check finds the lie."""
    path = write_nifti(tmp_path / "a.nii.gz", chest())
    path.write_bytes(path.read_bytes()[:-4] + b"\xff\xff\xff\xff")
    refused(path, "truncated")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"id,volume\n" * 100, "no NIfTI header"),
        (b"\0" * 128 + b"DICM" + b"\0" * 400, "Give the folder"),
        (b"\0" * 1000, "no NIfTI header"),
    ],
)
def test_other_formats_are_named(tmp_path, content, words):
    path = tmp_path / "a.nii"
    path.write_bytes(content)
    assert words in refused(path, "not-nifti")


def test_missing_file(tmp_path):
    refused(tmp_path / "a.nii.gz", "missing")


@pytest.mark.parametrize("shape", [(*SHAPE, 2), (40, 32)])
def test_not_3d(tmp_path, shape):
    refused(write_nifti(tmp_path / "a.nii.gz", np.zeros(shape, np.int16)), "not-3d")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_voxel_that_is_not_finite(tmp_path, value):
    hu = chest().astype(np.float32)
    hu[3, 5, 7] = value
    assert "1 voxels" in refused(write_nifti(tmp_path / "a.nii.gz", hu), "nan")


def test_constant(tmp_path):
    refused(write_nifti(tmp_path / "a.nii.gz", np.full(SHAPE, -1024, np.int16)), "constant")


@pytest.mark.parametrize(
    ("spacing_mm", "size"),
    [((1, 1, 1), "40 x 32 x 24"), ((0.008, 0.008, 0.01), "0 x 0 x 0"), ((30, 30, 30), "1200"), ((8, 8, 0.3), "x 7")],
)
def test_far_from_chest_sized(tmp_path, spacing_mm, size):
    path = write_nifti(tmp_path / "a.nii.gz", chest(), affine=np.diag([*spacing_mm, 1.0]))
    assert size in refused(path, "not-chest")


def test_too_few_slices_and_wider_limits(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", chest()[..., 10:15])
    refused(path, "not-chest")
    assert read_volume(path, limits=Limits(slices=5, lung=0.0)).hu.shape == (40, 32, 5)


def test_a_head_is_no_chest(tmp_path):
    """A body in air without lungs: sizes and HU are fine, the content is not."""
    head = chest()
    head[(head < -700) & (head > -920)] = 40
    assert "inside lung" in refused(write_nifti(tmp_path / "a.nii.gz", head), "not-chest")


def sheared(degrees: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[1, 2] = AFFINE[2, 2] * np.tan(np.radians(degrees))
    return affine


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sform_code": 0, "qform_code": 0}, "neither sform nor qform"),
        ({"qform_code": 0, "srow_x": 0, "srow_y": 0, "srow_z": 0}, "singular"),
        ({"qform_code": 0, "srow_x": [np.nan, 0, 0, 0]}, "singular or not finite"),
        ({"srow_x": [8, 0, 0, -150]}, "different directions"),  # left and right swapped in one of two
        ({"qform_code": 0, "srow_x": AFFINE[1], "srow_y": AFFINE[1]}, "singular|sheared"),
        ({"sform_code": 0, "quatern_b": 2.0}, "qform is broken"),
        ({"qform_code": 0, "srow_y": sheared(8)[1]}, "sheared by 8.0 degrees"),
    ],
)
def test_geometry_is_refused_not_guessed(tmp_path, fields, words):
    path = write_nifti(tmp_path / "a.nii.gz", chest())
    edit_header(path, **fields)
    message = refused(path, "geometry")
    assert any(w in message for w in words.split("|"))


def test_a_lost_affine_is_refused(tmp_path):
    big = chest().repeat(4, 0).repeat(4, 1).repeat(4, 2)
    assert "identity" in refused(write_nifti(tmp_path / "a.nii.gz", big, affine=np.eye(4)), "geometry")
    assert read_volume(write_nifti(tmp_path / "b.nii.gz", big, affine=np.diag([-1.0, -1, 1, 1]))).hu.shape == big.shape


def test_qform_alone_will_do(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", chest())
    edit_header(path, sform_code=0)
    assert np.allclose(read_volume(path).affine, AFFINE)


def test_voxels_that_are_no_numbers(tmp_path):
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(rgb, AFFINE), tmp_path / "a.nii.gz")
    refused(tmp_path / "a.nii.gz", "not-nifti")


def test_bad_volume_crosses_process_borders():
    bad = pickle.loads(pickle.dumps(BadVolume("nan", "a.nii.gz", "3 voxels")))
    assert (bad.reason, bad.path, bad.detail, str(bad)) == ("nan", "a.nii.gz", "3 voxels", "a.nii.gz: 3 voxels")


# real volumes

CHESTS = ["lung1-001", "lung1-002", "4dlung-113", "c3n-00247", "cip-ct64", "cip-testinput", "elastix-lung-small"]
CROPS = ["lidc-0001-slab", "lidc-0002-slab", "lidc-0003-slab", "ts-pulmonary", "ts-example-sm"]


@real
@pytest.mark.parametrize("name", CHESTS + CROPS)
@pytest.mark.parametrize("rescale", [None, (1.0, -1024.0)])
def test_real_volumes_are_read_as_nibabel_reads_them(name, rescale):
    path = SHARED / f"{name}.nii.gz"
    image, reference = read_volume(path, rescale=rescale), nibabel.load(path)
    assert np.array_equal(image.hu, np.asarray(reference.dataobj))
    assert np.array_equal(image.affine, reference.affine)


@real
@pytest.mark.parametrize("name", CHESTS + CROPS)
def test_real_stored_values_need_the_table(name, tmp_path):
    reference = nibabel.load(SHARED / f"{name}.nii.gz")
    hu = np.asarray(reference.dataobj)
    path = write_nifti(tmp_path / "a.nii.gz", hu + np.int16(1024), affine=reference.affine)
    image = read_volume(path, rescale=(1.0, -1024.0))
    assert image.hu_from == "metadata"
    assert np.array_equal(image.hu, hu)
    refused(path, "hu")
    refused(write_nifti(tmp_path / "twice.nii.gz", hu - np.int16(1024), affine=reference.affine), "hu")


@real
@pytest.mark.parametrize(
    "path", sorted(SHARED.glob("*_seg.nii.gz")) + sorted(SHARED.glob("*mask*")), ids=lambda p: p.name
)
def test_real_masks_are_no_ct(path):
    assert "mask" in refused(path, "hu")


@real
@pytest.mark.parametrize("name", ["lung1-001", "lung1-002"])
def test_lungs_have_the_density_and_the_side_that_their_labels_say(name):
    """Labels 1 and 2 are the right and the left lung; x of RAS grows to the patient's right."""
    image = read_volume(SHARED / f"{name}.nii.gz")
    labels = np.asarray(nibabel.load(SHARED / f"{name}_seg.nii.gz").dataobj)
    assert -900 < image.hu[np.isin(labels, (1, 2))].mean() < -600
    right, left = ((image.affine @ [*np.argwhere(labels == side).mean(0), 1])[0] for side in (1, 2))
    assert right > 20 > -20 > left


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_random_damage_never_escapes(tmp_path, name):
    """Any flipped byte of a header or of a packed file: a volume, or a BadVolume, and nothing else."""
    path = write_nifti(tmp_path / name, chest())
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        for at in rng.integers(0, 352 if name == "a.nii" else len(content), rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(BadVolume):
            assert read_volume(path).hu.ndim == 3
