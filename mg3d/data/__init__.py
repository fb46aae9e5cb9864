"""From files to batches: reading, corpora, preparation, audit, loading, and the phantom cohort."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


class BadVolume(ValueError):
    """A volume that cannot be used. `reason` is one word of reading.REASONS, the message names file and mend."""

    def __init__(self, reason: str, path: Path | str, detail: str):
        super().__init__(f"{path}: {detail}")
        self.reason = reason
        self.path = str(path)
        self.detail = detail

    def __reduce__(self) -> tuple:  # so that it crosses process borders whole
        return type(self), (self.reason, self.path, self.detail)


@dataclass(frozen=True)
class Image:
    """A volume as its file holds it: HU (float32 or int16) in the file's axis order, and where it lies in the patient.

    `affine` [4, 4] maps voxel indices (i, j, k, 1) of `hu` to millimetres in RAS (nibabel's convention). `hu` is
    read-only where it shares memory with the decompressed file; `hu_from` says what made its values HU.
    """

    hu: np.ndarray
    affine: np.ndarray
    hu_from: str = "header"  # header | metadata (a table's slope and intercept) | 8-bit (0..255 spread over the window)
