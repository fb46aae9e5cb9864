"""Patient coordinates on a scan grid, and the few soft shapes that a phantom is made of.

All geometry is in *patient millimetres*: (z, y, x) = (superior, posterior, left), measured in the patient's own upright
frame and divided by the body scale, so that one set of anatomical numbers serves every patient. A shape is a field f
that is positive inside and close to the signed distance to its surface; `cover` turns it into the share of each voxel
that the shape fills, so that edges carry a partial-volume effect and nothing looks like bricks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import numpy as np

Box = tuple[slice, slice, slice]
EVERYWHERE: Box = (slice(None), slice(None), slice(None))
FIELD_OF_VIEW_MM = 360.0
CORNERS = np.array(list(np.ndindex(2, 2, 2)))  # of a unit cube


@dataclass(frozen=True)
class Space:
    """A scan grid [D, H, W] and where each voxel lies in the patient."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]  # of the voxels, true millimetres
    scale: float  # true millimetres of one patient millimetre
    shift_mm: tuple[float, float, float]
    turn: tuple[float, float]  # cosine and sine of the rotation about the body axis
    z: np.ndarray  # [D, 1, 1] patient mm
    y: np.ndarray  # [1, H, W]
    x: np.ndarray  # [1, H, W]

    @property
    def voxel(self) -> float:
        """Edge of a voxel (geometric mean) in patient millimetres."""
        return float(np.prod(self.spacing_mm)) ** (1 / 3) / self.scale

    def index(self, points: np.ndarray) -> np.ndarray:
        """Fractional voxel indices [N, 3] of points [N, 3] in patient millimetres."""
        cos, sin = self.turn
        turn = np.array([[1.0, 0, 0], [0, cos, -sin], [0, sin, cos]])
        scan = points @ turn * self.scale + np.asarray(self.shift_mm)
        return scan / np.asarray(self.spacing_mm) + (np.asarray(self.shape) - 1) / 2

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Indices of the voxels that hold points [N, 3]; points outside the grid get its border."""
        i = np.clip(np.rint(self.index(points)).astype(int), 0, np.asarray(self.shape) - 1)
        return i[..., 0], i[..., 1], i[..., 2]

    def box(self, low: np.ndarray, high: np.ndarray) -> Box:
        """The box of voxels round a box low..high, one voxel wider, cut at the grid (may be empty)."""
        at = self.index(low + CORNERS * (np.asarray(high) - low))
        first = np.clip(np.floor(at.min(0)).astype(int) - 1, 0, self.shape)
        last = np.clip(np.ceil(at.max(0)).astype(int) + 2, 0, self.shape)
        z, y, x = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
        return z, y, x

    def around(self, centre: np.ndarray, reach: float) -> Box:
        """The box of voxels round a ball."""
        centre = np.asarray(centre, np.float64)
        return self.box(centre - reach, centre + reach)

    def at(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coordinates z [d, 1, 1], y [1, h, w], x [1, h, w] of a box of voxels."""
        return self.z[box[0]], self.y[:, box[1], box[2]], self.x[:, box[1], box[2]]

    def cover(self, field: np.ndarray) -> np.ndarray:
        """Share 0..1 of each voxel that lies inside the shape."""
        out = field * np.float32(1 / self.voxel)
        out += np.float32(0.5)
        return np.clip(out, 0, 1, out=out)


def space(
    shape: tuple[int, int, int], *, zoom: float, scale: float, shift_mm: tuple[float, float, float], tilt_deg: float
) -> Space:
    """The grid `shape` over a cube of 360 mm times `zoom`, with the patient shifted and turned in it."""
    d, h, w = (FIELD_OF_VIEW_MM * zoom / n for n in shape)
    spacing = (d, h, w)
    z, y, x = (
        (((np.arange(n) - (n - 1) / 2) * step - shift) / scale).astype(np.float32)
        for n, step, shift in zip(shape, spacing, shift_mm, strict=True)
    )
    angle = np.deg2rad(tilt_deg)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    rows, columns = y[None, :, None], x[None, None, :]
    return Space(
        shape=shape,
        spacing_mm=spacing,
        scale=scale,
        shift_mm=shift_mm,
        turn=(cos, sin),
        z=z[:, None, None],
        y=(cos * rows - sin * columns).astype(np.float32),
        x=(cos * columns + sin * rows).astype(np.float32),
    )


def axes(radii: Sequence[float | int] | np.ndarray, *, rotation: np.ndarray | None = None) -> np.ndarray:
    """Matrix M [3, 3] of the ellipsoid |M p| = 1 with these radii along the rows of `rotation` (z, y, x if None)."""
    return np.diag(1 / np.asarray(radii)) @ (np.eye(3) if rotation is None else rotation)


def ellipsoid(space: Space, centre: np.ndarray, matrix: np.ndarray, *, margin: float = 0.0) -> tuple[Box, np.ndarray]:
    """Box and field of |M (p - centre)| <= 1; `margin` widens the box for whoever needs the field outside the surface.

    f = q (1 - q) / |M^T M p| with q = |M p|: the distance to first order, exact for balls.
    """
    reach = np.linalg.norm(np.linalg.inv(matrix), axis=1) + margin
    box = space.box(np.asarray(centre) - reach, np.asarray(centre) + reach)
    p = [c - np.float32(o) for c, o in zip(space.at(box), centre, strict=True)]
    q = np.sqrt(sum(combine(row, p) ** 2 for row in matrix))
    slope = np.sqrt(sum(combine(row, p) ** 2 for row in matrix.T @ matrix))
    return box, q * (1 - q) / np.maximum(slope, 1e-6)


def combine(row: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """Linear form of broadcastable float32 arrays."""
    return reduce(np.add, (np.float32(c) * p for c, p in zip(row, parts, strict=True)))


def smooth(path: np.ndarray, *, rounds: int = 2) -> np.ndarray:
    """Chaikin's corner cutting of a path [N, C]; the ends stay."""
    path = np.asarray(path, np.float64)
    for _ in range(rounds):
        a, b = path[:-1], path[1:]
        cut = np.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], 1).reshape(-1, path.shape[1])
        path = np.concatenate([path[:1], cut, path[-1:]])
    return path


def column(space: Space, path: np.ndarray) -> tuple[Box, np.ndarray]:
    """Box and field of an upright tube: path [N, 4] of (z, y, x, radius) with rising z, a circle in every slice."""
    path = np.asarray(path, np.float64)
    reach = path[:, 3].max()
    sideways = np.array([0, reach, reach])
    box = space.box(path[:, :3].min(0) - sideways, path[:, :3].max(0) + sideways)
    z, y, x = space.at(box)
    flat = z.ravel()
    cy, cx, radius = (np.interp(flat, path[:, 0], path[:, i]).astype(np.float32)[:, None, None] for i in (1, 2, 3))
    field = radius - np.sqrt((y - cy) ** 2 + (x - cx) ** 2)
    return box, np.minimum(field, np.minimum(z - np.float32(path[0, 0]), np.float32(path[-1, 0]) - z))


def chain(space: Space, path: np.ndarray, *, margin: float = 0.0) -> tuple[Box, np.ndarray]:
    """Box and field of a tube of any course: the union of round cones along path [N, 4] of (z, y, x, radius)."""
    path = np.asarray(path, np.float64)
    reach = path[:, 3].max() + margin
    box = space.box(path[:, :3].min(0) - reach, path[:, :3].max(0) + reach)
    z, y, x = space.at(box)
    field = np.full(np.broadcast_shapes(z.shape, y.shape), -1e3, np.float32)
    for a, b in pairwise(path):
        way = b[:3] - a[:3]
        p = [c - np.float32(o) for c, o in zip((z, y, x), a, strict=False)]
        t = np.clip(combine(way / max(float(way @ way), 1e-9), p), 0, 1)
        gap = np.sqrt(sum((c - np.float32(w) * t) ** 2 for c, w in zip(p, way, strict=True)))
        np.maximum(field, np.float32(a[3]) + np.float32(b[3] - a[3]) * t - gap, out=field)
    return box, field


def splat(space: Space, points: np.ndarray, volumes: np.ndarray) -> np.ndarray:
    """Share 0..1 [D, H, W] of each voxel filled by grains: points [N, 3] patient mm, volumes [N] cubic patient mm.

    Volume is conserved (each grain is dealt out to its eight neighbours), so that structures thinner than a voxel keep
    the contrast that the partial-volume effect leaves them.
    """
    at = space.index(points)
    first = np.floor(at).astype(np.int64)
    inside = ((first >= 0) & (first < np.asarray(space.shape) - 1)).all(1)
    first, rest = first[inside], (at - first)[inside]
    strides = np.array([space.shape[1] * space.shape[2], space.shape[2], 1])
    start = first @ strides
    share = np.asarray(volumes, np.float64)[inside] / space.voxel**3
    where, what = [], []
    for corner in np.ndindex(2, 2, 2):
        where.append(start + int(strides @ corner))
        what.append(share * np.where(corner, rest, 1 - rest).prod(1))
    size = int(np.prod(space.shape))
    filled = np.bincount(np.concatenate(where), np.concatenate(what), minlength=size)
    return np.minimum(filled, 1).astype(np.float32).reshape(space.shape)


def grains(
    space: Space, start: np.ndarray, end: np.ndarray, radius: np.ndarray, *, wall: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] and volumes [N] that fill M tubes from start [M, 3] to end [M, 3], or only their walls.

    `wall` [M] is the thickness of a wall that lies outside the lumen of `radius`.
    """
    step = 0.5 * space.voxel
    way = end - start
    length = np.linalg.norm(way, axis=1)
    along = np.maximum(np.ceil(length / step).astype(int), 1)
    if wall is None:
        ring = np.clip(np.ceil(np.pi * (radius / step) ** 2).astype(int), 1, 90)
        area = np.pi * radius**2
    else:
        ring = np.clip(np.ceil(2 * np.pi * (radius + wall / 2) / step).astype(int), 6, 90)
        area = np.pi * ((radius + wall) ** 2 - radius**2)
    count = along * ring
    tube = np.repeat(np.arange(len(count)), count)
    k = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    t = (k // ring[tube] + 0.5) / along[tube]
    j = k % ring[tube]
    angle = 2.399963 * j if wall is None else 2 * np.pi * j / ring[tube]  # a sunflower fills the disc evenly
    reach = radius[tube] * np.sqrt((j + 0.5) / ring[tube]) if wall is None else (radius + wall / 2)[tube]
    reach = np.where(ring[tube] == 1, 0.0, reach)
    u = way / np.maximum(length, 1e-9)[:, None]
    e1 = np.cross(u, np.where(np.abs(u[:, :1]) < 0.8, [[1.0, 0, 0]], [[0, 0, 1.0]]))
    e1 /= np.maximum(np.linalg.norm(e1, axis=1, keepdims=True), 1e-9)
    e2 = np.cross(u, e1)
    spoke = np.cos(angle)[:, None] * e1[tube] + np.sin(angle)[:, None] * e2[tube]
    points = start[tube] + t[:, None] * way[tube] + reach[:, None] * spoke
    return points, (area * length / count)[tube]


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A random rotation [3, 3], uniform over all."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    return q * np.sign(np.diag(r))


def clouds(space: Space, box: Box, *, grain_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise [d, h, w] of about unit variance whose lumps are `grain_mm` (patient mm) wide."""
    size = tuple(len(range(*s.indices(n))) for s, n in zip(box, space.shape, strict=True))
    step = [grain_mm * space.scale / mm for mm in space.spacing_mm]
    coarse = rng.standard_normal([int(n / s) + 3 for n, s in zip(size, step, strict=True)]).astype(np.float32)
    for axis, (n, s) in enumerate(zip(size, step, strict=True)):
        t = (np.arange(n) + 0.5) / s
        i, f = t.astype(int), (t % 1)
        f = (f * f * (3 - 2 * f)).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        coarse = np.take(coarse, i, axis) * (1 - f) + np.take(coarse, i + 1, axis) * f
    return coarse * np.float32(1.7)
