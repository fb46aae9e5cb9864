"""What an objective shows a model: crops, turns and flips of a volume, and what it hides of it, or of a report.

Chance here is counter-based: a number is a hash of (the sample's seed, stream, counter), as in Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3" (SC 2011). So there is no generator state: a mask is the same on every device, at
any number of processes, and after a resume. Streams keep the draws for different purposes independent.
"""

import math
from dataclasses import replace
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mg3d.types import Batch, Report

# One stream for each purpose.
BLOCKS: Final = 1
WORDS: Final = 2
REPLACEMENT: Final = 3
SUBSTITUTE: Final = 4
PLACE: Final = 10
FLIPS: Final = 11
TURNS: Final = 12
LIGHT: Final = 13
NOISE_BOXES: Final = 14
PASTE_BOXES: Final = 15
GAUSS: Final = 16
SWAPS: Final = 17
POSE: Final = 18
GREY: Final = 19
GRAIN: Final = 20
BRANCH: Final = 2**32  # and the view's number

# splitmix64 (Steele, Lea, Flood, OOPSLA 2014): the golden ratio's step and its mixing factors, as signed 64-bit
# integers.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser: every bit of the input flips each bit of the output with a chance of one half."""
    x = (x ^ _shift(x, 30)) * _FACTORS[0]
    x = (x ^ _shift(x, 27)) * _FACTORS[1]
    return x ^ _shift(x, 31)


def noise(seeds: Int[Tensor, "B"], n: int, *, stream: int) -> Float[Tensor, "B n"]:
    """n numbers a sample, uniform in [0, 1) with 24 bits, so exact in float32: equal on every device."""
    counter = torch.arange(n, device=seeds.device, dtype=torch.int64)
    key = _mix(_mix(seeds.to(torch.int64) * _STEP) + stream)
    return _shift(_mix(key[:, None] + (counter + 1) * _STEP), 40).to(torch.float32) * 2.0**-24


def branch(seeds: Int[Tensor, "B"], view: int) -> Int[Tensor, "B"]:
    """Seeds of the samples' view of this number: what is drawn from them is independent of all other views."""
    return _mix(_mix(seeds.to(torch.int64) * _STEP) + BRANCH + view)


def pick(seeds: Int[Tensor, "B"], n: int, *, stream: int) -> Int[Tensor, "B"]:
    """One of 0 .. n - 1 a sample."""
    return (noise(seeds, 1, stream=stream)[:, 0] * n).long()


def cube_side(size: tuple[int, int, int], share: float, least: int = 1) -> int:
    """Side of a cube that is `share` of the longest side of a volume, at least `least` voxels, and fits into it."""
    return max(1, min(*size, max(least, round(share * max(size)))))


def crop(
    volume: Float[Tensor, "B 1 D H W"], seeds: Int[Tensor, "B"], *, size: tuple[int, int, int]
) -> Float[Tensor, "B 1 d h w"]:
    """A box of `size` (voxels) at a random place of each volume. ValueError when it does not fit."""
    room = [whole - part for whole, part in zip(volume.shape[2:], size, strict=True)]
    if min(room) < 0:
        raise ValueError(f"a crop of {size} voxels does not fit into a volume of {tuple(volume.shape[2:])}")
    first = (noise(seeds, 3, stream=PLACE) * torch.tensor([n + 1 for n in room], device=seeds.device)).long()
    d, h, w = size
    boxes = zip(volume, first.tolist(), strict=True)
    return torch.stack([x[:, i : i + d, j : j + h, k : k + w] for x, (i, j, k) in boxes])


def turn(volume: Float[Tensor, "B C D H W"], turns: Int[Tensor, "B"]) -> Float[Tensor, "B C D H W"]:
    """Each volume turned by 90 degrees `turns` times in its last two axes, which must be of one length."""
    if volume.shape[3] != volume.shape[4]:
        raise ValueError(f"a quarter turn needs square slices, not {tuple(volume.shape[3:])} voxels")
    return torch.stack([torch.rot90(x, k, (2, 3)) for x, k in zip(volume, turns.tolist(), strict=True)])


def flip(volume: Float[Tensor, "B C D H W"], axes: Bool[Tensor, "B 3"]) -> Float[Tensor, "B C D H W"]:
    """Each volume mirrored along its chosen axes of D, H, W."""
    for axis in range(3):
        volume = torch.where(axes[:, axis].view(-1, 1, 1, 1, 1), volume.flip(axis + 2), volume)
    return volume


def crops(
    volume: Float[Tensor, "B 1 D H W"], seeds: Int[Tensor, "B"], *, count: int, share: float, least: int = 1
) -> tuple[Float[Tensor, "n 1 s s s"], Int[Tensor, "n"]]:
    """`count` random cubes a volume (see `cube_side`) and a seed for each; first the first ones of all volumes."""
    d, h, w = volume.shape[2:]
    side = cube_side((d, h, w), share, least)
    each = [branch(seeds, k) for k in range(count)]
    return torch.cat([crop(volume, s, size=(side, side, side)) for s in each]), torch.cat(each)


def swap(volume: Float[Tensor, "B C D H W"], which: Int[Tensor, "B"]) -> Float[Tensor, "B C D2 H2 W2"]:
    """Each cube with two axes exchanged: W and H for 0, W and D for 1. Twice is nothing."""
    return torch.stack([x.transpose(3, 2 if k == 0 else 1) for x, k in zip(volume, which.tolist(), strict=True)])


def boxes(
    seeds: Int[Tensor, "B"], size: tuple[int, int, int], *, stream: int, most: float = 0.3, count: int = 256
) -> Bool[Tensor, "B 1 D H W"]:
    """Random boxes with sides of 5 to 25 % of the volume's, until they hold U(0, `most`) of its voxels.

    A box that would leave the volume is cut, and what two share counts twice, as in SwinUNETR's pre-training.
    """
    draws, whole = noise(seeds, 6 * count + 1, stream=stream), torch.tensor(size, device=seeds.device)
    start, extent = draws[:, 1:].view(-1, 2, count, 3).unbind(1)
    short, long = (whole * 0.05).long().clamp_min(1), (whole * 0.25).long().clamp_min(2)
    low = (start * (whole - short)).long()
    high = torch.minimum(low + short + (extent * (long - short)).long(), whole)
    held = (high - low).prod(-1)
    taken = held.cumsum(1) - held < most * draws[:, :1] * math.prod(size)
    inside = []
    for axis, n in enumerate(size):
        at = torch.arange(n, device=seeds.device)
        inside.append(((at >= low[..., axis, None]) & (at < high[..., axis, None])).float())
    d, h, w = inside
    slices = torch.einsum("bnh,bnw->bnhw", h, w).flatten(2)
    return (torch.einsum("bnd,bnx->bdx", d * taken[..., None], slices) > 0).unflatten(2, size[1:])[:, None]


def normals(seeds: Int[Tensor, "B"], size: tuple[int, ...]) -> Float[Tensor, "B 1 D H W"]:
    """Normal numbers (Box and Muller)."""
    radius, angle = noise(seeds, 2 * math.prod(size), stream=GAUSS).view(-1, 2, 1, *size).unbind(1)
    return (-2 * (1 - radius).log()).sqrt() * (2 * math.pi * angle).cos()


def gaussian(seeds: Int[Tensor, "B"], size: tuple[int, int, int]) -> Float[Tensor, "B 1 D H W"]:
    """Normal numbers, brought to [0, 1] by the least and the greatest of each volume."""
    x = normals(seeds, size)
    low, high = x.amin((1, 2, 3, 4), keepdim=True), x.amax((1, 2, 3, 4), keepdim=True)
    return (x - low) / (high - low)


def augment(volume: Float[Tensor, "B 1 D H W"], seeds: Int[Tensor, "B"]) -> Float[Tensor, "B 1 D H W"]:
    """UNETR's: each axis mirrored at 0.2, slices turned at 0.2, voxels scaled and shifted by up to 0.1, each at 0.1."""
    volume = flip(volume, noise(seeds, 3, stream=FLIPS) < 0.2)
    if volume.shape[3] == volume.shape[4]:
        some, which = noise(seeds, 2, stream=TURNS).T
        volume = turn(volume, torch.where(some < 0.2, 1 + (3 * which).long(), 0))
    draws = noise(seeds, 4, stream=LIGHT)
    scale, shift = (torch.where(draws[:, :2] < 0.1, 0.2 * draws[:, 2:] - 0.1, 0.0)[..., None, None, None, None]).unbind(
        1
    )
    return (volume * (1 + scale) + shift).to(volume.dtype)


def pose(seeds: Int[Tensor, "B"]) -> Float[Tensor, "B 3 4"]:
    """How a patient might have lain: turned by up to 6 degrees, 10 % larger or smaller a side, moved by up to 8 %.

    What `moved` takes. Never mirrored, since a report names sides.
    """
    draws = 2 * noise(seeds, 9, stream=POSE) - 1
    x, y, z = (math.radians(6) * draws[:, :3]).unbind(1)
    zero = torch.zeros_like(x)
    generator = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3)
    turned = torch.linalg.matrix_exp(generator) * (1 + 0.1 * draws[:, None, 3:6])
    return torch.cat([turned, 2 * 0.08 * draws[:, 6:, None]], 2)


def moved(
    volume: Float[Tensor, "B C D H W"], pose: Float[Tensor, "B 3 4"], *, nearest: bool = False
) -> Float[Tensor, "B C D H W"]:
    """Volumes in another pose (in the coordinates of torch's grids), 0 where nothing was; masks with `nearest`."""
    grid = F.affine_grid(pose, list(volume.shape), align_corners=False)
    mode = "nearest" if nearest else "bilinear"
    return F.grid_sample(volume, grid.to(volume.dtype), mode=mode, align_corners=False)


def relit(volume: Float[Tensor, "B 1 D H W"], seeds: Int[Tensor, "B"]) -> Float[Tensor, "B 1 D H W"]:
    """Volumes as another scanner might show them: scaled by up to 2 %, shifted by up to 0.01, noise up to 0.005.

    Of a window of 2,000 HU these are 40, 20 and 10 HU: what tells tissues apart must survive.
    """
    gain, shift, grain = noise(seeds, 3, stream=GREY).view(-1, 3, 1, 1, 1, 1).unbind(1)
    dust = (noise(seeds, volume[0].numel(), stream=GRAIN) - 0.5).view(volume.shape) * math.sqrt(12)
    return (volume * (0.98 + 0.04 * gain) + 0.02 * shift - 0.01 + 0.005 * grain * dust).clamp(0, 1).to(volume.dtype)


def jittered(batch: Batch) -> Batch:
    """A batch in other poses and lights, drawn from the seeds of its samples; a mask as target moves along."""
    where = pose(batch.seeds)
    volume, target = relit(moved(batch.volume, where), batch.seeds), batch.target
    if target is not None and target.dim() == 4:
        target = moved(target[:, None].to(volume.dtype), where, nearest=True)[:, 0].to(target.dtype)
    return replace(batch, volume=volume, target=target)


def check_shares(config: object, *names: str) -> None:
    """Raise ValueError unless each of these fields, a hidden share, lies between 0 and 1."""
    for name in names:
        if not 0 < getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} is the hidden share: take a number between 0 and 1")


def block_mask(
    seeds: Int[Tensor, "B"],
    size: tuple[int, int, int],
    *,
    cube: int = 16,
    ratio: float = 0.5,
    shared: bool = False,
) -> Bool[Tensor, "B d h w"]:
    """Hide (True) exactly round(ratio * cells) of the cubes that tile a volume of `size` voxels (Sec. III-B.1a).

    The grid has size / `cube` cells a side, rounded, at least one. `shared` draws one mask, from the first seed, for
    the whole batch, as the released code does. Raises ValueError if `ratio` is not within [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio} is the hidden share of the cells: take a number from 0 to 1")
    d, h, w = (max(1, round(side / cube)) for side in size)
    draws = noise(seeds[:1] if shared else seeds, d * h * w, stream=BLOCKS)
    first = draws.argsort(dim=1, stable=True)[:, : round(ratio * d * h * w)]
    mask = torch.zeros_like(draws, dtype=torch.bool).scatter_(1, first, True)
    return mask.view(-1, d, h, w).expand(len(seeds), -1, -1, -1)


def mask_words(
    report: Report, seeds: Int[Tensor, "B"], *, mask_id: int, vocabulary: int, ratio: float = 0.15
) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
    """Hide words for masked language modelling: the masked ids, and labels that are -100 on words not asked for.

    Whole-word masking, as BERT's second release and the released MG-3D do: round(ratio * words) whole words of each
    report, at least one, with all their pieces. Of the chosen pieces 80 % become [MASK], 10 % a random id and 10 % stay
    (Devlin et al. 2019, drawn for each piece). [CLS], [SEP] and padding belong to no word, so they are never chosen.
    """
    length = report.words.shape[1]
    piece = report.word >= 0
    word = report.word.clamp_min(0).long()
    exists = torch.zeros_like(word).scatter_reduce_(1, word, piece.long(), "amax").bool()
    draws = noise(seeds, length, stream=WORDS).masked_fill(~exists, 2.0)
    rank = draws.argsort(dim=1, stable=True).argsort(dim=1)
    words = exists.sum(1, keepdim=True)
    wanted = (ratio * words).round().clamp_min(1)
    chosen = (exists & (rank < wanted)).gather(1, word) & piece

    kind = noise(seeds, length, stream=REPLACEMENT)
    random = (noise(seeds, length, stream=SUBSTITUTE) * vocabulary).to(report.words.dtype)
    masked = report.words.masked_fill(chosen & (kind < 0.8), mask_id)
    masked = torch.where(chosen & (kind >= 0.9), random, masked)
    return masked, report.words.masked_fill(~chosen, -100)
