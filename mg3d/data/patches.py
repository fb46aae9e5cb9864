"""How volumes with a mask are prepared for segmentation: at a spacing, not at a shape, and seen through patches."""

from dataclasses import dataclass
from hashlib import sha256

VERSION = 1  # of the numbers that preparation gives; raise it when they change, so that old caches are not taken
BY_PERCENTILES = (0.0, 0.0)  # the window of what has no units, as MRI: each volume's own percentiles
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class PatchSpec:
    """How volumes and masks are prepared, in the order D, H, W.

    `spacing_mm` of a prepared voxel; the window in HU, or (0, 0) for each volume's own percentiles 0.5 to 99.5 (MRI);
    the voxels of a `patch`; the share of patches that are drawn around `foreground`.
    """

    spacing_mm: tuple[float, float, float]
    window_hu: tuple[float, float]
    patch: tuple[int, int, int]
    foreground: float = 0.5

    def __post_init__(self) -> None:
        if len(self.spacing_mm) != 3 or not min(self.spacing_mm) > 0:
            raise ValueError(f"spacing_mm={self.spacing_mm}: three lengths (D, H, W) above 0 are needed")
        if len(self.patch) != 3 or min(self.patch) < 1:
            raise ValueError(f"patch={self.patch}: three numbers of voxels (D, H, W) are needed")
        if tuple(self.window_hu) != BY_PERCENTILES and not self.window_hu[0] < self.window_hu[1]:
            raise ValueError(
                f"window_hu={self.window_hu}: the lower bound must lie below the upper one, or (0, 0) for percentiles"
            )
        if not 0 <= self.foreground <= 1:
            raise ValueError(f"foreground={self.foreground}: a share from 0 to 1 is needed")

    @property
    def hash(self) -> str:
        """Eight hex digits of what shapes the prepared numbers (not of the patches); the same on every machine."""
        fields = (tuple(map(float, self.spacing_mm)), tuple(map(float, self.window_hu)), VERSION)
        return sha256(repr(fields).encode()).hexdigest()[:8]
