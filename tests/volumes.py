"""A chest of a few thousand voxels, and files of it, for the tests of reading and listing."""

from pathlib import Path

import nibabel
import numpy as np

SHAPE = (40, 32, 24)  # left-right, front-back, feet-head
SPACING_MM = (8.0, 8.0, 10.0)
AFFINE = np.array([[-8, 0, 0, 150], [0, -8, 0, 120], [0, 0, 10, -300], [0, 0, 0, 1]], dtype=float)  # LPS, as most CTs


def chest(*, seed: int = 0) -> np.ndarray:
    """HU [40, 32, 24] int16: a body in air with two lungs, a spine, a little noise, cut at -1024 as scanners do."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    hu = np.full(SHAPE, -1000.0)
    hu[(i / 0.85) ** 2 + (j / 0.75) ** 2 < 1] = 40
    for side in (-0.4, 0.4):
        hu[((i - side) / 0.28) ** 2 + (j / 0.5) ** 2 + (k / 0.9) ** 2 < 1] = -850
    hu[(i / 0.1) ** 2 + ((j - 0.6) / 0.1) ** 2 < 1] = 400
    return (hu + np.random.default_rng(seed).normal(0, 12, SHAPE)).round().clip(-1024).astype(np.int16)


def write_nifti(
    path: Path, voxels: np.ndarray, *, affine: np.ndarray = AFFINE, scale: tuple[float, float] | None = None
) -> Path:
    """Write stored voxels as they are, with `scale` as scl_slope and scl_inter; gives the path back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, affine)
    image.header["sform_code"] = image.header["qform_code"] = 1
    image.set_data_dtype(voxels.dtype)
    image.header.set_slope_inter(1, 0)  # so that nibabel stores the voxels unchanged
    nibabel.save(image, path)
    if scale is not None:
        edit_header(path, scl_slope=scale[0], scl_inter=scale[1])
    return path


def edit_header(path: Path, **fields: object) -> None:
    """Overwrite fields of the header of a .nii or .nii.gz file in place."""
    import gzip

    packed = path.suffix == ".gz"
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    header = nibabel.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + content[348:]
    path.write_bytes(gzip.compress(content) if packed else content)
