"""From stored values to Hounsfield units, decided by evidence.

A file's voxels are HU already, or become HU by a slope and an intercept. The header states one pair, a corpus's
metadata table may state another, and either can be stale: CT-RATE's mended volumes hold HU while its table still says
"slope 1, intercept -1024". Applying a pair twice is the field's commonest silent bug. So both readings are tried,

    A  HU = s_header    * stored + i_header       (1 and 0 where the header states none)
    B  HU = s_metadata  * stored + i_metadata

and a reading is plausible when it shows a human body in air: at least AIR of the voxels in AIR_HU, at least SOFT of
them in SOFT_HU, and at most DENSE of them above DENSE_HU (where soft tissue lies as long as it is stored). Voxels below
PADDING_HU lie outside the reconstructed circle (-2000, -3024, -8192) and count neither for nor against. One plausible
reading is taken. Two, or none, are refused: nothing is guessed.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mg3d.data import BadVolume

Scale = tuple[float, float]  # slope, intercept: HU = slope * stored + intercept

EIGHT_BIT: Scale = (2000 / 255, -1000.0)  # a volume that was windowed to 0..255: spread over the window, no HU known
IDENTITY: Scale = (1.0, 0.0)

AIR_HU, AIR = (-1100.0, -850.0), 0.02
SOFT_HU, SOFT = (-150.0, 150.0), 0.05
DENSE_HU, DENSE = 700.0, 0.1  # bone and metal; chest CTs measured: up to 0.012
LUNG_HU = (-980.0, -450.0)
PADDING_HU = -1200.0
GRID = 64  # evidence is taken from a regular grid of at most this many voxels a side


@dataclass(frozen=True)
class Evidence:
    """What a reading of the voxels as HU would show: shares of the voxels that are no padding."""

    air: float
    soft: float
    dense: float
    lung: float  # of voxels inside a region of lung density, its surface left out

    @property
    def plausible(self) -> bool:
        """True when this is a body in air."""
        return self.air >= AIR and self.soft >= SOFT and self.dense <= DENSE


def sample(voxels: np.ndarray) -> np.ndarray:
    """A regular grid of voxels [i, j, k] as float32, at most GRID a side."""
    i, j, k = (math.ceil(n / GRID) for n in voxels.shape)
    return voxels[::i, ::j, ::k].astype(np.float32)


def evidence(hu: np.ndarray) -> Evidence:
    """Shares of air, soft tissue, bone and lung interior among the voxels [i, j, k] of a grid, read as HU."""
    real = hu >= PADDING_HU
    n = int(real.sum())
    if n < 0.05 * hu.size:  # nothing but padding
        return Evidence(0.0, 0.0, 0.0, 0.0)

    def between(low: float, high: float) -> np.ndarray:
        return (hu >= low) & (hu <= high)

    inside = between(*LUNG_HU)
    for axis in range(3):  # the six neighbours are lung too: drops the half-filled voxels along every surface
        whole = np.moveaxis(inside, axis, 0)
        core = np.zeros_like(whole)
        core[1:-1] = whole[1:-1] & whole[:-2] & whole[2:]
        inside = np.moveaxis(core, 0, axis)
    air, soft = between(*AIR_HU), between(*SOFT_HU)
    return Evidence(*(float(found.sum()) / n for found in (air, soft, hu > DENSE_HU, inside)))


def to_hu(
    stored: np.ndarray, *, header: Scale | None, rescale: Scale | None, bounds: tuple[float, float], path: Path
) -> tuple[np.ndarray, str, Evidence]:
    """HU (int16 or float32) [i, j, k], what made them HU (see Image.hu_from), and the evidence.

    `bounds` are the smallest and largest stored values. Raises BadVolume("hu") when no reading is plausible, or when
    two different ones are; the message states the range that was found and the mend.
    """
    grid = sample(stored)
    if rescale is not None and np.allclose(rescale, EIGHT_BIT):
        if bounds[0] < 0 or bounds[1] > 255:
            raise BadVolume("hu", path, f"8-bit values (0 to 255) were expected, {_range(bounds)} were found.")
        return apply(stored, EIGHT_BIT, bounds), "8-bit", evidence(_scaled(grid, EIGHT_BIT))
    readings = {"header": header or IDENTITY}
    if rescale is not None and not np.allclose(rescale, readings["header"]):
        readings["metadata"] = rescale
    shown = {name: evidence(_scaled(grid, scale)) for name, scale in readings.items()}
    plausible = [name for name in readings if shown[name].plausible]
    if len(plausible) != 1:
        raise BadVolume("hu", path, _refusal(grid, readings, bounds, both=bool(plausible)))
    name = plausible[0]
    return apply(stored, readings[name], bounds), name, shown[name]


def apply(stored: np.ndarray, scale: Scale, bounds: tuple[float, float]) -> np.ndarray:
    """slope * stored + intercept: int16 where that is exact, else float32, with no other copy of the volume."""
    slope, intercept = scale
    whole = stored.dtype.kind in "iu" and slope == 1 and intercept == int(intercept)
    if whole and bounds[0] + intercept >= -(2**15) and bounds[1] + intercept < 2**15:
        hu = stored.astype(np.int16, copy=False)  # a value that wraps here wraps back below
        return hu if intercept == 0 else hu + np.int64(intercept).astype(np.int16)
    if scale == IDENTITY:
        return stored.astype(np.float32, copy=False)
    hu = np.multiply(stored, np.float32(slope), dtype=np.float32, casting="same_kind")
    hu += np.float32(intercept)
    return hu


def _scaled(grid: np.ndarray, scale: Scale) -> np.ndarray:
    return grid * np.float32(scale[0]) + np.float32(scale[1])


def _range(bounds: tuple[float, float]) -> str:
    return f"values {bounds[0]:g} to {bounds[1]:g}"


def _refusal(grid: np.ndarray, readings: dict[str, Scale], bounds: tuple[float, float], *, both: bool) -> str:
    """Why no single reading was taken, in one sentence, and what to do."""
    low, high = bounds
    pairs = " and ".join(f"the {name}'s slope {s:g}, intercept {i:g}" for name, (s, i) in readings.items())
    if both:
        return (
            f"stored {_range(bounds)} look like HU under {pairs} alike, which differ. "
            "Take the wrong pair out of the metadata table."
        )
    by_header = _scaled(grid, readings["header"])
    usual = {-1024.0, -1000.0} | {i for _, i in readings.values() if i < 0}
    for intercept in sorted(usual):
        if evidence(by_header - np.float32(intercept)).plausible:
            return (
                f"slope and intercept were applied twice: air lies near {-1000 + intercept:g} HU, soft tissue near "
                f"{intercept:g}. Add {-intercept:g} to the voxels, or convert the original again."
            )
        if evidence(by_header + np.float32(intercept)).plausible:
            return (
                f"stored {_range(bounds)} are no HU: air lies near {-1000 - intercept:g}. State slope 1 and intercept "
                f"{intercept:g} in the metadata table (or in the header: scl_slope, scl_inter)."
            )
    if low >= 0 and high <= 255 and not np.any(grid % 1):
        return f"whole {_range(bounds)}: a mask or an 8-bit picture, no HU. Give the CT itself."
    if low >= -1 and high <= 1:
        return f"{_range(bounds)}: already windowed, no HU. Give the CT itself."
    return (
        f"stored {_range(bounds)}, tried with {pairs}, show no body in air (air near -1000 HU, soft tissue near 0). "
        "Convert the original again, or state the right slope and intercept in the metadata table."
    )
