"""DICOM series: voxels and affine come back exactly, and every trap of a folder is named."""

import contextlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless, generate_uid
from volumes import AFFINE, SHAPE, chest

from mg3d.data import BadVolume, Image
from mg3d.data.reading import REASONS, read_volume

SHARED = Path(__file__).parents[2] / "shared" / "data" / "ct"
LPS = np.diag([-1.0, -1.0, 1.0])
SERIES = generate_uid(entropy_srcs=["series"])


def new_file(*, storage: str = CTImageStorage, series: str = SERIES) -> Dataset:
    """A CT file without geometry and pixels."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = storage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    file.SeriesInstanceUID = series
    file.Modality = "CT"
    file.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    return file


def set_pixels(file: Dataset, stored: np.ndarray) -> None:
    """Put stored values [row, column] or [frame, row, column] (uint16 or int16) into the file."""
    file.Rows, file.Columns = stored.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit = 15
    file.PixelRepresentation = int(stored.dtype.kind == "i")
    file.PixelData = np.ascontiguousarray(stored).tobytes()


def series(hu: np.ndarray, affine: np.ndarray = AFFINE, *, slope: float = 1, intercept: float = -1024) -> list[Dataset]:
    """One file a slice of HU [i, j, k] with a RAS affine, in the order of k."""
    axes = LPS @ affine[:3, :3]
    spacing_mm = np.linalg.norm(axes, axis=0)
    stored = np.round((hu.astype(np.float64) - intercept) / slope).astype(np.uint16)
    files = []
    for k in range(hu.shape[2]):
        file = new_file()
        file.ImageOrientationPatient = [float(f"{x:.9g}") for x in (axes / spacing_mm)[:, :2].T.ravel()]
        file.ImagePositionPatient = [float(f"{x:.9g}") for x in LPS @ (affine @ [0, 0, k, 1])[:3]]
        file.PixelSpacing = [float(f"{x:.9g}") for x in spacing_mm[[1, 0]]]
        file.RescaleSlope, file.RescaleIntercept = slope, intercept
        file.InstanceNumber = (7 * k) % 101  # numbers that mean nothing
        set_pixels(file, stored[:, :, k].T)
        files.append(file)
    return files


def write(folder: Path, files: list[Dataset]) -> Path:
    """Write the files under names that sort in another order than the slices lie."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, file in enumerate(files):
        file.save_as(folder / f"{(n * 37) % 997:04d}.dcm", enforce_file_format=True)
    return folder


def refused(folder: Path, reason: str) -> str:
    with pytest.raises(BadVolume) as caught:
        read_volume(folder)
    assert caught.value.reason == reason
    assert reason in REASONS
    assert str(folder) in str(caught.value)
    return str(caught.value)


def equal(image: Image, hu: np.ndarray, affine: np.ndarray) -> None:
    assert image.hu.dtype == np.int16
    assert np.array_equal(image.hu, hu)
    assert np.allclose(image.affine, affine, atol=1e-5)


# round trips


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, -1, 1), (-1, 1, 1)])
def test_voxels_and_affine_come_back_exactly(tmp_path, flip):
    affine = AFFINE @ np.diag([*flip, 1.0])
    # slices are stacked along the cross product of rows and columns, so that an affine of the other hand comes mirrored
    right = np.linalg.det(LPS @ affine[:3, :3]) > 0
    image = read_volume(write(tmp_path / "a", series(chest(), affine)))
    if right:
        equal(image, chest(), affine)
    else:
        mirror = np.diag([1.0, 1, -1, 1])
        mirror[2, 3] = SHAPE[2] - 1
        equal(image, chest()[:, :, ::-1], affine @ mirror)


def test_an_oblique_series_comes_back(tmp_path):
    angle = np.radians(12)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, :3] = turn[:3, :3] @ [[1, 0, 0], [0, np.cos(0.1), -np.sin(0.1)], [0, np.sin(0.1), np.cos(0.1)]]
    equal(read_volume(write(tmp_path / "a", series(chest(), turn @ AFFINE))), chest(), turn @ AFFINE)


def test_coronal_slices_come_back(tmp_path):
    """Rows to the left, columns to the feet: only the affine says so."""
    hu = chest().transpose(0, 2, 1)[:, ::-1]
    affine = np.array([[-8.0, 0, 0, 150], [0, 0, -8, 120], [0, -10, 0, -70], [0, 0, 0, 1]])
    assert np.allclose(affine @ [3, SHAPE[2] - 1 - 4, 5, 1], AFFINE @ [3, 5, 4, 1])  # the same voxel at the same place
    image = read_volume(write(tmp_path / "a", series(hu, affine)))
    assert {image.hu.shape} == {(SHAPE[0], SHAPE[2], SHAPE[1])}
    i, j, k = np.argwhere(image.hu == hu.max())[0]
    ii, jj, kk = np.argwhere(hu == hu.max())[0]
    assert np.allclose(image.affine @ [i, j, k, 1], affine @ [ii, jj, kk, 1], atol=1e-5)


def test_each_slice_has_its_own_rescale(tmp_path):
    files = series(chest())
    for k in (0, 5):
        files[k].RescaleIntercept = -2048
        set_pixels(files[k], (chest()[:, :, k].T + 2048).astype(np.uint16))
    equal(read_volume(write(tmp_path / "a", files)), chest(), AFFINE)


def test_a_fractional_slope_gives_float32(tmp_path):
    image = read_volume(write(tmp_path / "a", series(chest(), slope=0.5, intercept=-1024)))
    assert image.hu.dtype == np.float32
    assert np.array_equal(image.hu, chest())


def test_signed_pixels_and_padding(tmp_path):
    files = series(chest())
    for k, file in enumerate(files):
        stored = chest()[:, :, k].T.copy()
        stored[:3] = -2000
        file.RescaleIntercept = 0
        set_pixels(file, stored)
    image = read_volume(write(tmp_path / "a", files))
    assert (image.hu[:, :3] == -2000).all()
    assert np.array_equal(image.hu[:, 3:], chest()[:, 3:])


def test_other_files_in_the_folder_are_no_slices(tmp_path):
    folder = write(tmp_path / "a", series(chest()))
    (folder / "readme.txt").write_text("notes")
    (folder / ".DS_Store").write_bytes(b"\0" * 200)
    (folder / "DICOMDIR").write_bytes(b"\0" * 200)
    (folder / "masks").mkdir()
    report = new_file(storage="1.2.840.10008.5.1.4.1.1.88.11")
    report.Modality = "SR"
    report.save_as(folder / "report.dcm", enforce_file_format=True)
    equal(read_volume(folder), chest(), AFFINE)


def test_an_enhanced_multi_frame_file(tmp_path):
    files = series(chest())
    order = np.random.default_rng(0).permutation(len(files))  # frames may come in any order
    whole = new_file(storage=EnhancedCTImageStorage)
    whole.NumberOfFrames = len(files)
    set_pixels(whole, (chest().T + 1024).astype(np.uint16)[order])

    def group(**macros: Dataset) -> Dataset:
        found = Dataset()
        for name, item in macros.items():
            setattr(found, name, Sequence([item]))
        return found

    def item(**tags: object) -> Dataset:
        found = Dataset()
        for name, value in tags.items():
            setattr(found, name, value)
        return found

    first = files[0]
    whole.SharedFunctionalGroupsSequence = Sequence(
        [
            group(
                PlaneOrientationSequence=item(ImageOrientationPatient=first.ImageOrientationPatient),
                PixelMeasuresSequence=item(PixelSpacing=first.PixelSpacing),
                PixelValueTransformationSequence=item(RescaleSlope=1, RescaleIntercept=-1024),
            )
        ]
    )
    positions = [item(ImagePositionPatient=files[k].ImagePositionPatient) for k in order]
    whole.PerFrameFunctionalGroupsSequence = Sequence([group(PlanePositionSequence=p) for p in positions])
    equal(read_volume(write(tmp_path / "a", [whole])), chest(), AFFINE)
    del whole.PerFrameFunctionalGroupsSequence
    assert "one file a slice" in refused(write(tmp_path / "b", [whole]), "geometry")


@pytest.mark.skipif(not SHARED.exists(), reason="no real volumes beside the clone")
@pytest.mark.parametrize("name", ["cip-ct64", "elastix-lung-small", "ts-example-sm"])
def test_a_real_volume_comes_back_exactly(tmp_path, name):
    source = nibabel.load(SHARED / f"{name}.nii.gz")
    hu = np.asarray(source.dataobj)
    image = read_volume(write(tmp_path / name, series(hu, source.affine, intercept=-2048)))
    flipped = np.linalg.det(LPS @ source.affine[:3, :3]) < 0
    assert np.array_equal(image.hu, hu[:, :, ::-1] if flipped else hu)
    corner = [0, 0, hu.shape[2] - 1 if flipped else 0, 1]
    assert np.allclose(image.affine[:, 3], source.affine @ corner, atol=1e-3)
    assert np.allclose(np.abs(image.affine[:3, :3]), np.abs(source.affine[:3, :3]), atol=1e-5)


# faults


def test_missing_slices(tmp_path):
    files = series(chest())
    del files[10:12]
    message = refused(write(tmp_path / "a", files), "dicom-gap")
    assert "slices are missing" in message
    assert "30.00 mm between" in message


def test_uneven_spacing(tmp_path):
    files = series(chest())
    for file in files[12:]:
        file.ImagePositionPatient[2] += 2.0
    assert "uneven spacing: 12.00 mm" in refused(write(tmp_path / "a", files), "dicom-gap")


def test_rounded_positions_are_no_fault(tmp_path):
    files = series(chest())
    for k, file in enumerate(files):
        file.ImagePositionPatient[2] = round(file.ImagePositionPatient[2] + 0.03 * (-1) ** k, 2)
    assert np.allclose(read_volume(write(tmp_path / "a", files)).affine, AFFINE, atol=0.05)


def test_two_slices_at_one_place(tmp_path):
    files = series(chest())
    again = series(chest(seed=1))[3]
    message = refused(write(tmp_path / "a", [*files, again]), "dicom-duplicate")
    assert message.count(".dcm") == 2


def test_two_series_in_one_folder(tmp_path):
    files = series(chest())
    other = generate_uid()
    for file in files[20:]:
        file.SeriesInstanceUID = other
    message = refused(write(tmp_path / "a", files), "dicom-mixed-series")
    assert f"{SERIES} (20 images), {other} (4 images)" in message
    assert "one folder a series" in message


@pytest.mark.parametrize("placed", [True, False])
def test_a_localiser_among_the_slices(tmp_path, placed):
    files = series(chest())
    scout = series(chest())[0]
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    if not placed:
        del scout.ImagePositionPatient
    assert "0888.dcm" in refused(write(tmp_path / "a", [*files, scout]), "dicom-localiser")


def test_a_slice_of_another_orientation(tmp_path):
    files = series(chest())
    files[4].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    message = refused(write(tmp_path / "a", files), "dicom-orientation")
    assert "1 of 24 slices" in message
    assert "0148.dcm" in message


def test_a_slice_of_another_matrix(tmp_path):
    files = series(chest())
    set_pixels(files[4], np.zeros((16, 16), np.uint16))
    assert "0148.dcm" in refused(write(tmp_path / "a", files), "dicom-orientation")


@pytest.mark.parametrize("degrees", [2, 20])
def test_gantry_tilt(tmp_path, degrees):
    affine = AFFINE.copy()
    affine[1, 2] = AFFINE[2, 2] * np.tan(np.radians(degrees))
    files = series(chest(), affine)
    assert f"{degrees}.0 degrees" in refused(write(tmp_path / "a", files), "dicom-tilt")


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_a_slice_without_geometry(tmp_path, tag):
    files = series(chest())
    delattr(files[2], tag)
    message = refused(write(tmp_path / "a", files), "geometry")
    assert tag in message
    assert "0074.dcm" in message


def test_directions_that_are_not_orthonormal(tmp_path):
    files = series(chest())
    for file in files:
        file.ImageOrientationPatient = [1, 0, 0, 0.2, 1, 0]
    assert "orthonormal" in refused(write(tmp_path / "a", files), "geometry")


def test_another_modality(tmp_path):
    files = series(chest())
    files[0].Modality = "MR"
    assert "MR, not CT" in refused(write(tmp_path / "a", files), "dicom-modality")


def test_one_slice(tmp_path):
    assert "single slice" in refused(write(tmp_path / "a", series(chest())[:1]), "not-chest")


@pytest.mark.parametrize("content", [{}, {"a.txt": b"notes"}])
def test_a_folder_without_dicom(tmp_path, content):
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    refused(tmp_path, "no-dicom")


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.95])
def test_a_cut_file(tmp_path, keep):
    folder = write(tmp_path / "a", series(chest()))
    path = folder / "0037.dcm"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    assert "0037.dcm" in refused(folder, "truncated")


def test_a_file_without_pixels(tmp_path):
    files = series(chest())
    del files[3].PixelData
    assert "no pixels" in refused(write(tmp_path / "a", files), "truncated")


@pytest.mark.skipif(get_decoder(JPEGLSLossless).is_available, reason="a JPEG-LS decoder is installed")
def test_a_compression_without_decoder(tmp_path):
    files = series(chest())
    for file in files:
        file.file_meta.TransferSyntaxUID = JPEGLSLossless
        file.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + b"\0" * 100])
        file["PixelData"].is_undefined_length = True
    message = refused(write(tmp_path / "a", files), "dicom-compressed")
    assert "JPEG-LS" in message
    assert "pip install pylibjpeg" in message


def test_run_length_is_decoded(tmp_path):
    files = series(chest())
    for file in files:
        file.compress(pydicom.uid.RLELossless)
    equal(read_volume(write(tmp_path / "a", files)), chest(), AFFINE)


def test_stored_values_without_rescale_need_a_table(tmp_path):
    files = series(chest())
    for file in files:
        del file.RescaleSlope, file.RescaleIntercept
    folder = write(tmp_path / "a", files)
    assert "no HU" in refused(folder, "hu")
    image = read_volume(folder, rescale=(1.0, -1024.0))
    assert image.hu_from == "metadata"
    equal(image, chest(), AFFINE)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of values that break the standard
def test_random_damage_never_escapes(tmp_path):
    """Any changed bytes in the tags of a slice: a volume, or a BadVolume, and nothing else."""
    folder = write(tmp_path / "a", series(chest()[:, :, :9]))
    path, rng = folder / "0037.dcm", np.random.default_rng(0)
    content = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        for at in rng.integers(128, 900, rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(BadVolume):
            assert read_volume(folder).hu.shape == (*SHAPE[:2], 9)
