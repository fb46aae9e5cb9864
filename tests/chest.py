"""Small chest-like volumes on disk, and listings of them: what the tests of preparation, audit and loading read.

Run as a program (`python chest.py <folder> <cache> <workers>`) it prepares them, so that a test can kill it.
"""

import sys
from pathlib import Path

import numpy as np

from mg3d.data.frame import Spec
from mg3d.data.listing import Listing
from mg3d.types import Case

SPEC = Spec(shape=(16, 12, 20))
SPLITS = ("train", "train", "train", "train", "valid", "test")


def chest(seed: int, shape: tuple[int, int, int] = (36, 32, 28)) -> np.ndarray:
    """A body of soft tissue in air with two lungs, int16 HU."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    hu = np.where((x / 0.9) ** 2 + (y / 0.8) ** 2 < 1, 30.0, -1000.0)
    for side in (-0.42, 0.42):
        lung = ((x - side) / 0.33) ** 2 + (y / 0.6) ** 2 + (z / (0.7 + 0.2 * rng.random())) ** 2 < 1
        hu[lung] = -850
    return (hu + rng.normal(0, 15, shape)).round().astype(np.int16)


def write_nifti(path: Path, hu: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write a NIfTI file; by default with 9 x 9 x 10 mm voxels, the patient's left first."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-9.0, -9.0, 10.0, 1.0]) if affine is None else affine
    nibabel.Nifti1Image(hu, affine).to_filename(path)
    return path


def listing(folder: Path, n: int = 6) -> Listing:
    """`n` cases of as many patients; their files are written where they are missing."""
    cases = []
    for i in range(n):
        path = folder / f"case_{i}.nii.gz"
        if not path.exists():
            write_nifti(path, chest(i))
        report = f"The heart is normal. A nodule of {i + 2} mm is seen."
        cases.append(Case(f"case_{i}", f"patient_{i}", SPLITS[i % 6], path, report, {"nodule": i % 2, "effusion": 1}))
    return Listing(cases)


if __name__ == "__main__":
    from mg3d.data.prepare import prepare

    source, cache, workers = sys.argv[1:]
    prepare(listing(Path(source), 20), spec=SPEC, folder=Path(cache), workers=int(workers), progress=False)
