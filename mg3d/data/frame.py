"""The prepared grid: how it lies in a source volume, and how voxels travel to it and back.

Axis D of the prepared grid runs from feet to head, H from front to back, W from the patient's right to the left. Each
is the source axis that comes nearest, perhaps reversed, so an oblique volume is not rotated: its exact affine is kept,
and every resampling here is separable, one small matrix an axis.

With N source voxels, M prepared ones and the share c of the axis that is kept, a prepared voxel is s = c N / M source
voxels wide, and voxel p has its centre at the source index

    x(p) = (N - 1) / 2 +- s (p - (M - 1) / 2)

so crop and resize are one step about the centre, without rounding, and voxels outside the crop still count where a
voxel at its border reaches over it. Its value is the mean of the linear interpolant over a width of sqrt(s^2 - 1)
about x(p), or the interpolant itself (plain trilinear) where s <= 1. A source voxel is the mean over a width 1 already;
boxes add their variances, so that together they make a voxel of width s, and at s = 1 nothing is blurred. Constants
and, off the border of the source, linear ramps come out exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import permutations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped

TOWARDS = ((2, 1.0), (1, -1.0), (0, -1.0))  # D, H, W: RAS axis and direction: superior, posterior, left
BLOCKS = 8  # a matrix of taps is banded: cut into this many blocks of rows, it has that many times less to multiply
SLAB = 2**19  # voxels of the source that are worked on at a time: 2 MB as float32, which the processor's cache holds
VERSION = 1  # of the numbers that preparation gives; raise it when they change, so that old caches are not taken


@dataclass(frozen=True)
class Spec:
    """How volumes are prepared: shape (D, H, W), the share of each axis that the centre crop keeps, the HU window."""

    shape: tuple[int, int, int] = (128, 96, 128)
    crop: tuple[float, float, float] = (0.88, 0.66, 0.88)
    window_hu: tuple[float, float] = (-1000.0, 1000.0)

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape={self.shape}: three numbers of voxels (D, H, W) are needed")
        if len(self.crop) != 3 or not all(0 < c <= 1 for c in self.crop):
            raise ValueError(f"crop={self.crop}: three shares (D, H, W), above 0 and up to 1, are needed")
        if not self.window_hu[0] < self.window_hu[1]:
            raise ValueError(f"window_hu={self.window_hu}: the lower bound must lie below the upper one")

    @property
    def hash(self) -> str:
        """Eight hex digits of the fields and of the version of the preparation; the same on every machine."""
        fields = (tuple(map(int, self.shape)), tuple(map(float, self.crop)), tuple(map(float, self.window_hu)), VERSION)
        return sha256(repr(fields).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Frame:
    """Where a prepared grid lies in a source grid. Tuples are in the order D, H, W."""

    axes: tuple[int, ...]  # the source axis of each prepared axis
    signs: tuple[float, ...]  # -1 where it is reversed
    size: tuple[int, ...]  # N: voxels of the source along it
    shape: tuple[int, ...]  # M
    scale: tuple[float, ...]  # s: source voxels to a prepared one

    @classmethod
    def of(
        cls, affine: Float[np.ndarray, "4 4"], source: Sequence[int], *, shape: Sequence[int], crop: Sequence[float]
    ) -> "Frame":
        """The frame of a source of shape `source` with a voxel -> RAS mm affine; oblique ones get the nearest axes."""
        axes, signs = orientation(affine)
        size = tuple(int(source[a]) for a in axes)
        return cls(axes, signs, size, tuple(shape), tuple(c * n / m for c, n, m in zip(crop, size, shape, strict=True)))

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Frame":
        """The frame that a sidecar describes."""
        spec = record["spec"]
        return cls.of(
            np.array(record["source_affine"], dtype=np.float64),
            record["source_shape"],
            shape=spec["shape"],
            crop=spec["crop"],
        )

    def affine(self, source: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
        """Prepared index (d, h, w, 1) -> RAS mm, from the affine of the source."""
        to_source = np.zeros((4, 4))
        to_source[3, 3] = 1
        for t, (a, sign, n, m, s) in enumerate(self._rows()):
            to_source[a, t] = sign * s
            to_source[a, 3] = (n - 1) / 2 - sign * s * (m - 1) / 2
        return source @ to_source

    def centres(self) -> list[Float[np.ndarray, " M"]]:
        """x(p) for each prepared axis."""
        return [(n - 1) / 2 + sign * s * (np.arange(m) - (m - 1) / 2) for _, sign, n, m, s in self._rows()]

    def places(self) -> list[Float[np.ndarray, " N"]]:
        """The other way: the prepared index of each source voxel, for each prepared axis; outside [-0.5, M - 0.5] it
        was cropped away."""
        return [(m - 1) / 2 + sign / s * (np.arange(n) - (n - 1) / 2) for _, sign, n, m, s in self._rows()]

    def _rows(self) -> list[tuple[int, float, int, int, float]]:
        return list(zip(self.axes, self.signs, self.size, self.shape, self.scale, strict=True))


def orientation(affine: Float[np.ndarray, "4 4"]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Source axis and sign for each of D, H, W: the assignment with the largest product of direction cosines."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)  # column a: where source axis a points
    towards = np.array([sign * directions[world] for world, sign in TOWARDS])  # [prepared axis, source axis]
    best = max(permutations(range(3)), key=lambda p: float(np.prod(np.abs(towards[range(3), p]))))
    return best, tuple(1.0 if towards[t, a] > 0 else -1.0 for t, a in enumerate(best))


def taps(x: Float[np.ndarray, " M"], *, scale: float, size: int) -> Float[np.ndarray, "M N"]:
    """Weights of `size` source voxels for samples at the source indices `x`, `scale` voxels wide; rows sum to 1.

    The source goes on beyond its border as it ends there.
    """
    width = np.sqrt(max(scale**2 - 1, 0.0))
    reach = int(np.ceil(width)) + 3
    x = np.clip(x, -width / 2 - 1, size + width / 2)  # further out it is all border
    away = x[:, None] - np.arange(-reach, size + reach)
    if width < 1e-4:
        weights = np.clip(1 - np.abs(away), 0, None)
    else:
        weights = (_hat_integral(away + width / 2) - _hat_integral(away - width / 2)) / width
    weights[:, reach] += weights[:, :reach].sum(1)
    weights[:, -reach - 1] += weights[:, -reach:].sum(1)
    return weights[:, reach:-reach]


def _hat_integral(x: np.ndarray) -> np.ndarray:
    """Integral of max(0, 1 - |t|) over t from minus infinity to x."""
    x = np.clip(x, -1, 1)
    return 0.5 + x - np.sign(x) * x**2 / 2


@dataclass(frozen=True)
class Taps:
    """A matrix of taps [M, N] in blocks: of these rows only these columns, counted within `span`, are not zero."""

    rows: int
    span: slice  # the source voxels that are needed at all
    blocks: list[tuple[slice, slice, torch.Tensor]]

    @classmethod
    def of(cls, matrix: Float[np.ndarray, "M N"]) -> "Taps":
        """Cut `matrix` into BLOCKS bands."""
        used = np.flatnonzero(matrix.any(0))
        span = slice(int(used[0]), int(used[-1]) + 1)
        matrix = matrix[:, span]
        blocks = []
        for rows in np.array_split(np.arange(len(matrix)), min(BLOCKS, len(matrix))):
            columns = np.flatnonzero(matrix[rows].any(0))
            r, c = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            blocks.append((r, c, torch.tensor(matrix[r, c], dtype=torch.float32)))
        return cls(len(matrix), span, blocks)


def resample(hu: Shaped[np.ndarray, "I J K"], frame: Frame, *, window_hu: tuple[float, float]) -> np.ndarray:
    """Orient, clip to the window, crop and resize in one pass: float32 [D, H, W] in HU.

    The source is walked in the order in which it lies in memory, a few slices at a time, so that
    they stay in the processor's cache and no float copy of the whole is made.
    """
    if any(step <= 0 for step in hu.strides):
        hu = np.ascontiguousarray(hu)
    order = sorted(range(3), key=lambda a: -hu.strides[a])  # slowest first
    of_axis = {
        a: Taps.of(taps(x, scale=s, size=n))
        for a, x, s, n in zip(frame.axes, frame.centres(), frame.scale, frame.size, strict=True)
    }
    slow, middle, fast = (of_axis[a] for a in order)
    slices = hu.transpose(order)[slow.span, middle.span, fast.span]
    some = max(1, SLAB // (slices.shape[1] * slices.shape[2]))
    buffer = torch.empty(some, *slices.shape[1:])  # torch aligns it, so that products come out the same to the bit
    half = torch.empty(some, middle.rows, slices.shape[2])
    planes = torch.empty(len(slices), middle.rows, fast.rows)
    for start in range(0, len(slices), some):
        slab = slices[start : start + some]
        n = len(slab)
        np.copyto(buffer[:n].numpy(), slab, casting="unsafe")
        buffer[:n].clamp_(*window_hu)
        for r, c, w in middle.blocks:
            half[:n, r] = w @ buffer[:n, c]
        for r, c, w in fast.blocks:
            planes[start : start + n, :, r] = half[:n, :, c] @ w.T
    out = torch.empty(slow.rows, middle.rows * fast.rows)
    for r, c, w in slow.blocks:
        torch.mm(w, planes.flatten(1)[c], out=out[r])
    result = out.view(slow.rows, middle.rows, fast.rows).numpy()
    return np.ascontiguousarray(result.transpose([order.index(a) for a in frame.axes]))


def prepare_mask(mask: Shaped[np.ndarray, "I J K"], affine: Float[np.ndarray, "4 4"], spec: Spec) -> np.ndarray:
    """A label map of a source grid on its prepared grid: the label at each voxel's centre, [D, H, W], same type.

    Nearest neighbour, so that labels stay labels; what is thinner than a prepared voxel can vanish.
    """
    frame = Frame.of(affine, mask.shape, shape=spec.shape, crop=spec.crop)
    nearest = [np.clip(np.rint(x), 0, n - 1).astype(int) for x, n in zip(frame.centres(), frame.size, strict=True)]
    return mask.transpose(frame.axes)[np.ix_(*nearest)]


def to_source(
    values: Shaped[np.ndarray, "*S D H W"], record: Mapping[str, Any], *, nearest: bool = False
) -> Shaped[np.ndarray, "*S I J K"]:
    """Maps on the prepared grid, [D, H, W] or [S, D, H, W], in the voxel frame of the source file; 0 outside the crop.

    `record` is the content of the volume's sidecar. Linear and float32, or, for label maps, `nearest` and of the same
    type. Raises ValueError when the shape is not the prepared one.
    """
    frame = Frame.of_record(record)
    if values.ndim not in (3, 4) or values.shape[-3:] != frame.shape:
        raise ValueError(f"values of shape {values.shape}: [D, H, W] or [S, D, H, W] with {frame.shape} is needed")
    out = values if nearest else values.astype(np.float32)
    for t, (p, s, m) in enumerate(zip(frame.places(), frame.scale, frame.shape, strict=True)):
        axis = values.ndim - 3 + t
        inside = (p >= -0.5) & (p <= m - 0.5)
        if nearest:
            out = np.take(out, np.clip(np.rint(p), 0, m - 1).astype(int), axis)
            shape = [1] * values.ndim
            shape[axis] = len(p)
            out = out * inside.reshape(shape).astype(out.dtype)
        else:
            matrix = taps(p, scale=1 / s, size=m) * inside[:, None]
            out = np.moveaxis(np.tensordot(out, matrix.T.astype(np.float32), (axis, 0)), -1, axis)
    lead = values.ndim - 3
    return np.ascontiguousarray(out.transpose([*range(lead), *(lead + frame.axes.index(a) for a in range(3))]))
