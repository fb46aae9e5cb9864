"""Two masks compared: what is correct, wrong and missing, voxel by voxel and lesion by lesion.

green   correct   in the prediction and in the truth       codes 1
red     wrong     in the prediction alone                  codes 2
yellow  missing   in the truth alone                       codes 3
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from scipy import ndimage
from scipy.spatial import KDTree

from widgets.geometry import to_mm

COLOURS = {  # correct, wrong, missing
    "green, red, yellow": ("#00A651", "#E4002B", "#FFD400"),  # the paper's
    "for every colour vision": ("#56B4E9", "#D55E00", "#F0E442"),  # of Okabe and Ito's palette
}
KINDS = ("correct", "wrong", "missing")


def codes_of(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """What each voxel of two masks is: 0 nothing, 1 correct, 2 wrong, 3 missing; uint8."""
    return np.select([predicted & true, predicted, true], [1, 2, 3]).astype(np.uint8)


def colours_of(name: str) -> tuple[str, str, str]:
    """The colours of correct, wrong and missing voxels. Raises ValueError for an unknown name."""
    if name not in COLOURS:
        raise ValueError(f"unknown colours {name!r}; valid: {'; '.join(COLOURS)}")
    return COLOURS[name]


def palette_of(colours: str) -> np.ndarray:
    """Red, green, blue and alpha [4, 4] uint8 by code; 0 is transparent. Raises ValueError for unknown colours."""
    solid = [[*(round(255 * c) for c in to_rgb(name)), 255] for name in colours_of(colours)]
    return np.array([[0, 0, 0, 0], *solid], np.uint8)


def components_of(codes: np.ndarray, affine: np.ndarray) -> pd.DataFrame:
    """Connected parts of the truth (`lesion`) and those of the prediction that touch none (`false alarm`).

    A row each, the largest first: `kind`, `ml`, `found` (share of it that was predicted), `missed` (none of it was)
    and a point inside it, `r`, `a`, `s` in RAS mm. Voxels that touch by a corner belong together.
    """
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    truth, predicted = (codes == 1) | (codes == 3), (codes == 1) | (codes == 2)
    rows = []
    for kind, mask, other in (("lesion", truth, predicted), ("false alarm", predicted, truth)):
        parts = np.empty(mask.shape, np.int32)
        ndimage.label(mask, np.ones((3, 3, 3)), output=parts)
        for k, box in enumerate(ndimage.find_objects(parts), 1):
            inside = parts[box] == k
            share = float(other[box][inside].mean())
            if kind == "lesion" or share == 0:
                place = np.argwhere(inside)
                middle = place[np.argmin(((place - place.mean(0)) ** 2).sum(1))] + [s.start for s in box]
                point = dict(zip("ras", to_mm(middle, affine).round(1), strict=True))
                rows.append({"kind": kind, "ml": len(place) * voxel_ml, "found": share, "missed": share == 0} | point)
    columns = ["kind", "ml", "found", "missed", "r", "a", "s"]
    return pd.DataFrame(rows, columns=columns).sort_values("ml", ascending=False, ignore_index=True)


def dice_of(codes: np.ndarray) -> float:
    """Dice; NaN where neither mask has a voxel."""
    n = np.bincount(codes.ravel(), minlength=4)
    return float(2 * n[1] / (2 * n[1] + n[2] + n[3])) if n[1:].any() else float("nan")


def scores_of(codes: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """Dice, and the 95th percentile of the Hausdorff distance between surfaces in mm, the larger of both directions.

    NaN where neither mask has a voxel; where one of them has none, Dice 0 and an infinite distance.
    """
    if not codes.any():
        return {"Dice": float("nan"), "HD95 mm": float("nan")}
    surfaces = [_surface((codes == 1) | (codes == alone), affine) for alone in (2, 3)]
    far = np.inf
    if all(map(len, surfaces)):
        ways = (surfaces, surfaces[::-1])
        far = max(float(np.percentile(KDTree(there).query(here)[0], 95)) for here, there in ways)
    return {"Dice": dice_of(codes), "HD95 mm": far}


def written(scores: Mapping[str, float]) -> str:
    """Scores in one line."""
    return ", ".join(f"{name} {value:.3g}" for name, value in scores.items())


def _surface(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Points [n, 3] in mm of what erosion by a voxel takes away, at the border of the volume, too."""
    box = ndimage.find_objects(mask.astype(np.int8))
    if not box:
        return np.empty((0, 3))
    inside = mask[box[0]]
    shell = inside & np.logical_not(ndimage.binary_erosion(inside))
    return (np.argwhere(shell) + [s.start for s in box[0]]) @ affine[:3, :3].T
