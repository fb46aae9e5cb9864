"""Crops of a volume that overlap, of drawn sizes, and how their voxels are changed: the views of PCRLv1 and PCRLv2.

Sizes are in voxels of a volume of 128 voxels along its longest side, and in proportion in others. A box is its least
corner and its size, [B, 3] each. Amounts are the defaults of TorchIO, with which the originals draw theirs.
"""

import itertools
import math
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mg3d.views import branch, noise, normals

Box = tuple[Float[Tensor, "B 3"], Float[Tensor, "B 3"]]
Shown = tuple[Float[Tensor, "B 1 d h w"], Float[Tensor, "B 1 d h w"]]

GLOBAL: Final = ((64, 96, 96), (96, 96, 96), (64, 112, 112), (32, 64, 64))
LOCAL: Final = ((16, 32, 32), (16, 16, 16), (32, 32, 32), (8, 8, 8))
OUT, LOCAL_OUT = (32, 64, 64), (16, 16, 16)
TRIES: Final = 32
PAIR, INSIDE, BEND, STYLE, CELLS, PAINT, FIELD = range(30, 37)  # streams of noise
SWAPS, PATCH = 100 / 1024, (4, 4, 8)  # share of the cells of OUT that are exchanged in pairs; TorchIO's 100 pairs


def scaled(size: tuple[int, int, int], volume: torch.Size) -> tuple[int, int, int]:
    """A size for a volume, 16 voxels a side at least: what every encoder takes."""
    d, h, w = (max(16, round(n * max(volume) / 128)) for n in size)
    return d, h, w


def large(volume: torch.Size, stride: int) -> tuple[int, int, int]:
    """What a large crop is resampled to: OUT for a volume, and in a slice two tokens of `stride` voxels a side or more.

    Of a single token a decoder without skips makes the same picture everywhere, whatever the crop shows.
    """
    d, h, w = scaled(OUT, volume)
    return d, max(h, 2 * stride), max(w, 2 * stride)


def global_pair(
    seeds: Int[Tensor, "B"], volume: torch.Size, *, least: float, sizes: tuple[tuple[int, int, int], ...] = GLOBAL
) -> tuple[Box, Box]:
    """Two boxes of drawn sizes whose intersection over union is above `least`, or the best of 32 pairs drawn."""
    draws = noise(seeds, TRIES * 8, stream=PAIR).view(-1, TRIES, 2, 4)
    low, size = _boxes(draws, torch.tensor(volume, device=seeds.device), sizes)
    high = low + size
    shared = (high.amin(2) - low.amax(2)).clamp_min(0).prod(-1)
    iou = shared / (size.prod(-1).sum(2) - shared)
    best = torch.where((iou > least).any(1), (iou > least).int().argmax(1), iou.argmax(1))
    low, size = (x[torch.arange(len(seeds), device=seeds.device), best] for x in (low, size))
    return (low[:, 0], size[:, 0]), (low[:, 1], size[:, 1])


def local_crops(seeds: Int[Tensor, "B"], volume: torch.Size, pair: tuple[Box, Box]) -> Box:
    """A small box in the one that holds both of a pair and 3 voxels around."""
    whole, more = torch.tensor(volume, device=seeds.device), 3 * max(volume) / 128
    least = (torch.minimum(pair[0][0], pair[1][0]) - more).clamp_min(0)
    most = torch.minimum(torch.maximum(*(low + size for low, size in pair)) + more, whole)
    low, size = _boxes(noise(seeds, 4, stream=INSIDE), most - least, LOCAL, unit=max(volume))
    return least + low, size


def large_and_small(
    volume: Float[Tensor, "B 1 D H W"], seeds: Int[Tensor, "B"], *, least: float, count: int, stride: int
) -> tuple[Shown, Shown, Float[Tensor, "n 1 i j k"]]:
    """PCRLv2's views: two large crops, each as it is shown and as it was, and `count` small ones as they are shown.

    The large ones overlap by `least`; of the small ones the first of all volumes come first. Tokens are of `stride`.
    """
    size = volume.shape[2:]
    boxes = global_pair(seeds, size, least=least)
    shown = []
    for view, box in enumerate(boxes):
        own = branch(seeds, view)
        target = sample(volume, own, box, out=large(size, stride))
        shown.append((swapped_patches(restyled(target, own), own), target))
    small = []
    for own in (branch(seeds, 2 + i) for i in range(count)):
        crop = sample(volume, own, local_crops(own, size, boxes), out=scaled(LOCAL_OUT, size))
        small.append(restyled(crop, own))
    return shown[0], shown[1], torch.cat(small)


def _boxes(
    draws: Float[Tensor, "*n 4"], room: Tensor, sizes: tuple[tuple[int, int, int], ...], *, unit: int = 0
) -> tuple[Float[Tensor, "*n 3"], Float[Tensor, "*n 3"]]:
    """Boxes of one of the sizes, at a place in the room; cut to it."""
    table = torch.tensor(sizes, device=draws.device, dtype=draws.dtype) * (unit or float(room.max())) / 128
    size = torch.minimum(table[(draws[..., 0] * len(sizes)).long()], room.to(draws.dtype))
    return draws[..., 1:] * (room - size), size


def sample(
    volume: Float[Tensor, "B 1 D H W"], seeds: Int[Tensor, "B"], box: Box, *, out: tuple[int, int, int]
) -> Float[Tensor, "B 1 d h w"]:
    """What is in a box, resampled to `out` voxels (trilinear), in one go with a random flip and affine map.

    Mirrored along W at 0.5; scaled by 0.9 to 1.1 along and turned by up to 10 degrees about each axis. Beyond the
    volume there is air.
    """
    draws, size = noise(seeds, 7, stream=BEND), torch.tensor(volume.shape[2:], device=seeds.device)
    scale = 0.9 + 0.2 * draws[:, :3]
    scale = torch.cat([scale[:, :2], torch.where(draws[:, 6:] < 0.5, -1, 1) * scale[:, 2:]], 1)
    turned = torch.diag_embed(scale)
    for (a, b), angle in zip(
        itertools.combinations(range(3), 2), (draws[:, 3:6].T - 0.5) * math.radians(20), strict=True
    ):
        plane = torch.eye(3, device=seeds.device).repeat(len(seeds), 1, 1)
        plane[:, a, a] = plane[:, b, b] = angle.cos()
        plane[:, a, b], plane[:, b, a] = -angle.sin(), angle.sin()
        turned = plane @ turned
    low, extent = box
    scale_in, centre = 2 / size, 2 * (low + extent / 2) / size - 1
    matrix = scale_in[:, None] * turned * (extent / 2)[:, None, :]  # box -> voxels, turned there, -> the volume
    theta = torch.cat([matrix.flip(1, 2), centre.flip(1)[..., None]], -1)  # grid_sample counts W first
    grid = F.affine_grid(theta, [len(volume), 1, *out], align_corners=False)
    return F.grid_sample(volume, grid.to(volume.dtype), align_corners=False)


def restyled(x: Float[Tensor, "B 1 d h w"], seeds: Int[Tensor, "B"]) -> Float[Tensor, "B 1 d h w"]:
    """Blurred (deviation up to 2 voxels), with noise (deviation up to 0.25), gamma exp(-0.3 to 0.3)."""
    sigma, spread, power = noise(seeds, 3, stream=STYLE).unbind(1)
    x = blurred(x, 2 * sigma)
    x = x + 0.25 * spread.view(-1, 1, 1, 1, 1) * normals(seeds, x.shape[2:])
    return x.sign() * x.abs() ** (0.6 * power - 0.3).exp().view(-1, 1, 1, 1, 1)


def blurred(x: Float[Tensor, "B 1 d h w"], sigma: Float[Tensor, "B"]) -> Float[Tensor, "B 1 d h w"]:
    """Gaussian blur of each volume, cut at 6 voxels; borders are repeated."""
    at = torch.arange(-6, 7, device=x.device)
    kernel = (-(at**2) / (2 * sigma[:, None].clamp_min(1e-2) ** 2)).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(x.dtype)
    y = x.transpose(0, 1)
    for axis in range(3):
        shape, pad = [1, 1, 1], [0, 0, 0, 0, 0, 0]
        shape[axis], pad[4 - 2 * axis], pad[5 - 2 * axis] = 13, 6, 6
        y = F.conv3d(F.pad(y, pad, mode="replicate"), kernel.view(-1, 1, *shape), groups=len(x))
    return y.transpose(0, 1)


def swapped_patches(x: Float[Tensor, "B 1 d h w"], seeds: Int[Tensor, "B"]) -> Float[Tensor, "B 1 d h w"]:
    """Patches of 4 x 4 x 8 voxels exchanged in pairs, about a fifth of them."""
    d, h, w = (n // p for n, p in zip(x.shape[2:], PATCH, strict=True))
    inner = x[:, 0, : d * PATCH[0], : h * PATCH[1], : w * PATCH[2]]
    cells = inner.unflatten(3, (w, -1)).unflatten(2, (h, -1)).unflatten(1, (d, -1)).permute(0, 1, 3, 5, 2, 4, 6)
    cells = cells.flatten(1, 3)
    pairs = round(SWAPS * cells.shape[1])
    chosen = noise(seeds, cells.shape[1], stream=CELLS).argsort(dim=1, stable=True)[:, : 2 * pairs]
    source = torch.arange(cells.shape[1], device=x.device).repeat(len(x), 1)
    source.scatter_(1, chosen, torch.cat(list(chosen.chunk(2, 1))[::-1], 1))
    moved = cells[torch.arange(len(x), device=x.device)[:, None], source]
    whole = moved.unflatten(1, (d, h, w)).permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)
    out = x.clone()
    out[:, 0, : d * PATCH[0], : h * PATCH[1], : w * PATCH[2]] = whole
    return out


def painted(x: Float[Tensor, "B 1 d h w"], seeds: Int[Tensor, "B"], *, inside: float) -> Float[Tensor, "B 1 d h w"]:
    """Models Genesis' painting: uniform noise in up to 5 boxes, or, all but the share `inside`, everywhere but in them.

    Boxes have a side of 1/6 to 1/3 of the volume's inside, of 3/7 to 4/7 outside; there is one, and after each, up to
    5, another one at 0.95 (Zhou et al., Models Genesis, MICCAI 2019).
    """
    size, draws = torch.tensor(x.shape[2:], device=x.device), noise(seeds, 1 + 5 * 7, stream=PAINT)
    within = draws[:, :1] < inside
    least, most = (torch.where(within, a, b)[..., None] for a, b in ((1 / 6, 3 / 7), (1 / 3, 4 / 7)))
    more, extent, start = draws[:, 1:].unflatten(1, (5, 7)).split((1, 3, 3), -1)
    going = torch.cat([torch.ones_like(more[:, :1]), (more[:, 1:] < 0.95).float().cumprod(1)], 1) > 0
    side = ((least + (most - least) * extent) * size).floor().clamp_min(1)
    low = (start * (size - side + 1)).floor()
    covered = going.view(-1, 5, 1, 1, 1)
    for axis in range(3):
        at = torch.arange(x.shape[2 + axis], device=x.device)
        along = (at >= low[..., axis, None]) & (at < (low + side)[..., axis, None])
        shape = [1, 1, 1]
        shape[axis] = -1
        covered = covered & along.view(*along.shape[:2], *shape)
    boxes = covered.any(1)[:, None]
    field = noise(seeds, x[0].numel(), stream=FIELD).view_as(x).to(x.dtype)
    return torch.where(boxes == within.view(-1, 1, 1, 1, 1), field, x)
