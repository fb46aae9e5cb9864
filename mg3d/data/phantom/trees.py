"""Branching trees of vessels and airways inside the lungs."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tree:
    """M straight segments of one or more trees."""

    start: np.ndarray  # [M, 3] patient mm
    end: np.ndarray  # [M, 3]
    radius: np.ndarray  # [M] patient mm
    level: np.ndarray  # [M] 0 at the root

    def pick(self, chosen: np.ndarray) -> "Tree":
        """The chosen segments, by index or by truth."""
        return Tree(self.start[chosen], self.end[chosen], self.radius[chosen], self.level[chosen])

    @property
    def middle(self) -> np.ndarray:
        """Midpoints [M, 3]."""
        return (self.start + self.end) / 2

    def shifted(self, offset: np.ndarray) -> "Tree":
        """The tree moved sidewards by `offset` [M, 3] or [3]."""
        return Tree(self.start + offset, self.end + offset, self.radius, self.level)


def grow(
    roots: np.ndarray, targets: np.ndarray, *, leaf_mm: float, rng: np.random.Generator, murray: float = 2.5
) -> Tree:
    """Trees from roots [T, 3] that reach targets [T, 2^n, 3].

    Each branch heads for the middle of its targets, which are then halved along their longest extent. Radii follow
    Murray's law: a branch that feeds k leaves is leaf_mm * k^(1/murray) thick.
    """
    trees, leaves, _ = targets.shape
    groups, tips = targets, roots.reshape(trees, 3)
    starts, ends, radii, levels = [], [], [], []
    depth = leaves.bit_length() - 1
    for level in range(depth + 1):
        size = groups.shape[1]
        middle = groups.mean(1)
        way = middle - tips
        reach = 1.0 if size == 1 else 0.45 if level else 0.3
        bend = rng.normal(0, 0.12, way.shape) * np.linalg.norm(way, axis=1, keepdims=True)
        heads = tips + reach * way + (bend if 1 < size < leaves else 0)
        starts.append(tips)
        ends.append(heads)
        radii.append(np.full(len(tips), leaf_mm * size ** (1 / murray)))
        levels.append(np.full(len(tips), level))
        if size > 1:
            groups = halve(groups)
            tips = np.repeat(heads, 2, axis=0)
    return Tree(np.concatenate(starts), np.concatenate(ends), np.concatenate(radii), np.concatenate(levels))


def halve(groups: np.ndarray) -> np.ndarray:
    """Groups [G, K, 3] of points cut across their longest extent: [2 G, K / 2, 3]."""
    axis = groups.std(1).argmax(1)
    along = np.take_along_axis(groups, axis[:, None, None], 2)[..., 0]
    order = along.argsort(1, kind="stable")
    ordered = np.take_along_axis(groups, order[..., None], 1)
    return ordered.reshape(2 * len(groups), -1, 3)
