"""The phantom under construction: canvases of HU and organ labels, and fields in which findings find their place."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mg3d.data.phantom.plan import ORGANS, Plan
from mg3d.data.phantom.space import Box, Space
from mg3d.data.phantom.trees import Tree

OBLIQUE = 0.96  # slope of the oblique fissures, head against back
LOBE_NORM = float(np.hypot(1, OBLIQUE))


@dataclass
class Scene:
    """What has been built so far. Fields are float32 [D, H, W], positive inside, in patient millimetres."""

    plan: Plan
    space: Space
    hu: np.ndarray
    organs: np.ndarray  # uint8, places in ORGANS
    body: np.ndarray = field(init=False)
    cage: np.ndarray = field(init=False)  # inner surface of the chest wall
    dome: np.ndarray = field(init=False)  # height above the diaphragm
    cavity: np.ndarray = field(init=False)  # both pleural cavities: where lung would be without fluid or masses
    lung: np.ndarray = field(init=False)  # aerated or diseased lung, right where x < 0
    heart: tuple[np.ndarray, np.ndarray] = field(init=False)  # centre [3] and matrix [3, 3] of the ellipsoid
    aorta: dict[str, np.ndarray] = field(default_factory=dict)  # place -> path [N, 4] of (z, y, x, radius)
    hila: dict[str, np.ndarray] = field(default_factory=dict)  # side -> point [3]
    arteries: Tree = field(init=False)
    airways: Tree = field(init=False)
    fissure: tuple[float, float] = (0.0, 0.0)  # shift of the oblique and the horizontal fissures, patient mm

    def rng(self, *key: int) -> np.random.Generator:
        """A generator of its own for every part of the phantom, so that one finding does not move another."""
        return np.random.default_rng([self.plan.seed, *key])

    def mm(self, true_mm: float) -> float:
        """True millimetres in patient millimetres."""
        return true_mm / self.space.scale

    def paint(self, box: Box, share: np.ndarray, hu: float | np.ndarray, *, organ: str = "") -> None:
        """Mix `hu` into the box by share; voxels more than half covered become `organ`, if one is given."""
        view = self.hu[box]
        view += share * (hu - view if isinstance(hu, np.ndarray) else np.float32(hu) - view)
        if organ:
            self.organs[box][share > 0.5] = ORGANS.index(organ)

    def carve(self, box: Box, shape: np.ndarray, *, margin: float = 0.0) -> None:
        """Push the lung away from a shape."""
        view = self.lung[box]
        np.minimum(view, -shape - np.float32(margin), out=view)

    def aerate(self, box: Box, share: np.ndarray, hu: float) -> None:
        """Replace that share of the *air* in the box by matter of `hu`; what is denser than `hu` (vessels) stays."""
        view = self.hu[box]
        view += share * np.maximum(np.float32(hu) - view, 0)

    def region(self, side: str, place: str, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Field of a place of the lungs (a lobe, the apex, the base, "perihilar" or "lung") on one side.

        The left lung has no middle lobe; the lingula takes its place.
        """
        flank = x if side == "left" else -x
        oblique = (z - np.float32(self.fissure[0]) - np.float32(OBLIQUE) * y) / np.float32(LOBE_NORM)
        level = z - np.float32(self.fissure[1]) + 0 * y
        if place == "lower lobe":
            inside = -oblique
        elif place == "middle lobe":
            inside = np.minimum(oblique, -level)
        elif place == "upper lobe":
            inside = np.minimum(oblique, level) if side == "right" else oblique
        elif place == "apex":
            inside = level - 42
        elif place == "base":
            inside = -level - 26
        elif place == "perihilar":
            h = self.hila[side]
            inside = 58 - np.sqrt((z - h[0]) ** 2 + (y - h[1]) ** 2 + (x - h[2]) ** 2)
        else:
            inside = np.full_like(level, 1e3)
        return np.minimum(flank, inside)

    def spot(
        self,
        finding_side: str,
        place: str,
        rng: np.random.Generator,
        *,
        deep: tuple[float, float] = (0.0, 1e3),
        prefer: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """A point [3] of the lung, at least deep[0] inside a place and at most deep[1] below the lung's surface.

        Falls back to the point that misses the wish by least. Of twenty points that fit as well, the one with the
        lowest score prefer([n, 3]) -> [n] wins.
        """
        u = rng.random((1500, 3))
        points = np.array([-120.0, -78, 4]) + u * np.array([235.0, 156, 120])
        points[:, 2] *= 1 if finding_side == "left" else -1
        lung = self.lung[self.space.nearest(points)]
        inside = np.minimum(lung, self.region(finding_side, place, *points.T))
        miss = np.maximum(deep[0] - inside, 0) * 4 + np.maximum(lung - deep[1], 0)
        best = np.argsort(miss, kind="stable")[: 20 if prefer else 1]
        best = points[best[miss[best] <= miss[best[0]]]]
        return best[np.argmin(prefer(best))] if prefer else best[0]

    def off_the_domes(self, points: np.ndarray) -> np.ndarray:
        """Distance [n] of points [n, 3] from the height of the domes, where a basal finding shows best."""
        return np.abs(points[:, 0] - self.fissure[0] + 42)

    def off_the_wall(self, points: np.ndarray) -> np.ndarray:
        """Distance [n] of points [n, 3] from the chest wall: a scar lies under ribs, not at the mediastinum."""
        return self.cage[self.space.nearest(points)]
