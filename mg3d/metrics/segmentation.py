"""Label maps against label maps: overlap (Dice) and surfaces (HD95, NSD), one number a class, in a volume's own mm.

A map holds 0 for the background and k for the k-th of `classes` classes. For one class, X of them predicted, Y true:

    Dice = 2 |X and Y| / (|X| + |Y|)
    HD95 = max of the 95th percentiles of d(x, surface of Y) and of d(y, surface of X)        mm
    NSD  = share of both surfaces' voxels that lie within a tolerance of the other surface

A surface is what erosion by a voxel (six neighbours) takes away, at the border of the volume too; distances are between
centres of voxels. A class that is in neither map has no number: NaN, to be left out for that case. One that is in one
map alone has Dice 0, NSD 0 and HD95 infinity.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped

Labels = Shaped[np.ndarray, "..."]  # [D, H, W]; the shapes are checked with a clear message
Surfaces = tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]  # mm: from predicted to true, and back
PerClass = Float[np.ndarray, "..."]  # [classes]

ROUNDING = 1e-6  # a distance this share above the tolerance is a tie, spoilt by binary fractions


def dice(predicted: Labels, target: Labels, *, classes: int) -> PerClass:
    """Overlap of each class, 0 to 1. Raises ValueError for maps of two shapes, or a label above `classes`."""
    p, t = _checked(predicted, target, classes)
    both, x, y = (np.bincount(a.ravel(), minlength=classes + 1)[1:] for a in (t[p == t], p, t))
    return np.where(x + y > 0, 2 * both / np.maximum(x + y, 1), np.nan)


def surface_distances(
    predicted: Labels, target: Labels, *, classes: int, spacing_mm: Sequence[float]
) -> list[Surfaces]:
    """For each class the distances of all surface voxels to the other surface: infinite where there is none.

    `hd95` and `nsd` are made from them. Raises what `dice` raises.
    """
    p, t = _checked(predicted, target, classes)
    return [_distances(p == k, t == k, spacing_mm) for k in range(1, classes + 1)]


def hd95(surfaces: Sequence[Surfaces]) -> PerClass:
    """95th percentile of the Hausdorff distance in mm, of each class; the larger of both directions."""
    return np.array([max(map(_percentile, pair)) if len(pair[0]) + len(pair[1]) else np.nan for pair in surfaces])


def nsd(surfaces: Sequence[Surfaces], *, tolerance_mm: float) -> PerClass:
    """Normalised surface Dice of each class at a tolerance in mm (Nikolov et al. 2018, with voxels for areas)."""
    if not tolerance_mm >= 0:
        raise ValueError(f"tolerance_mm={tolerance_mm}: a length of 0 or more is needed")
    both = [np.concatenate(pair) for pair in surfaces]
    return np.array([(d <= tolerance_mm * (1 + ROUNDING)).mean() if len(d) else np.nan for d in both])


def _checked(predicted: Labels, target: Labels, classes: int) -> tuple[np.ndarray, np.ndarray]:
    if predicted.shape != target.shape:
        raise ValueError(f"a prediction of shape {predicted.shape} and a mask of {target.shape}: equal ones are needed")
    for name, labels in (("prediction", predicted), ("mask", target)):
        if labels.dtype.kind not in "iub" or (labels.size and not 0 <= labels.min() <= labels.max() <= classes):
            raise ValueError(f"the {name} holds {labels.dtype} from {labels.min()} to {labels.max()}: 0 to {classes}")
    return predicted.astype(np.int64, copy=False), target.astype(np.int64, copy=False)


def _distances(x: np.ndarray, y: np.ndarray, spacing_mm: Sequence[float]) -> Surfaces:
    """Of two masks, looked at within the box that holds both."""
    from scipy.ndimage import binary_erosion
    from scipy.spatial import KDTree

    box = _box(x | y)
    points = []
    for mask in (x[box], y[box]):
        points.append(np.argwhere(mask & ~binary_erosion(mask)) * np.asarray(spacing_mm, dtype=np.float64))
    a, b = points
    if not (len(a) and len(b)):
        return np.full(len(a), np.inf), np.full(len(b), np.inf)
    return KDTree(b).query(a)[0], KDTree(a).query(b)[0]


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds all of a mask, empty for an empty one."""
    sides = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(int(s[0]), int(s[-1]) + 1) if len(s) else slice(0, 0) for s in sides)


def _percentile(distances: np.ndarray) -> float:
    """Linear between order statistics; of nothing it is nothing, since the other direction is infinite then."""
    if not len(distances):
        return 0.0
    return float(np.percentile(distances, 95)) if np.isfinite(distances).all() else float("inf")
