"""What methods share that learn from volumes and their reports: wrong pairs, co-attention, rebuilt cubes.

Each modality is x with the other as y, in layers of (self-attention, cross-attention to y, feed-forward); both streams
take the other's tokens as they were before the layer (METER, Dou et al., CVPR 2022):

    x_{l+1} = layer_x(x_l, y_l),   y_{l+1} = layer_y(y_l, x_l),   pooled = tanh(W x_{L,CLS}) and tanh(W mean y_L)

M3AE, ARL and PTUnifier are built on it, as one `Joint` model. Norms stand in front of each sub-layer; theirs follow it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mg3d import losses
from mg3d.attention import FusionLayer, masked_mean, sentence_mean
from mg3d.decoders import PatchDecoder, ReportDecoder, VoxelDecoder
from mg3d.losses import in_float32
from mg3d.types import Batch, Pyramid, Report
from mg3d.views import mask_words, noise

PAIRS, SENTENCE = 101, 102  # streams of the draws: which pairs are wrong, which sentence is read


def told(batch: Batch, method: str) -> Report:
    """The reports of a batch. Raises ValueError, naming the method, where there are none."""
    if batch.report is None:
        raise ValueError(f"{method} learns from reports: this batch has none; take a corpus with reports")
    return batch.report


def summed_up(features: Float[Tensor, "B L F"], report: Report, *, words: bool) -> Float[Tensor, "B F"]:
    """One feature a report, from those of its tokens: [CLS], or the mean of its `words`, which differs more between
    reports where nobody has trained [CLS] to sum them up.
    """
    return masked_mean(features, report.sentence >= 0) if words else features[:, 0]


def wrong_pairs(seeds: Int[Tensor, "B"]) -> tuple[Int[Tensor, "B"], Bool[Tensor, "B"]]:
    """For image-text matching: whose volume each report gets, and whether that is its own.

    Half of the batch (rounded down), drawn by the seeds, trade volumes in a ring, so that none of them keeps its own;
    a single one takes that of another. A batch of one is right.
    """
    order = noise(seeds, 1, stream=PAIRS)[:, 0].argsort(stable=True)
    ring = order[: len(seeds) // 2]
    volume = torch.arange(len(seeds), device=seeds.device)
    volume[ring] = ring.roll(1) if len(ring) > 1 else order[1 : 1 + len(ring)]
    return volume, volume == torch.arange(len(seeds), device=seeds.device)


def one_sentence(report: Report, seeds: Int[Tensor, "B"], *, longest: int) -> Report:
    """Of each report one sentence, drawn by the seeds, as a report of its own.

    It has `longest` tokens at most, [CLS] and [SEP] among them: of a longer one the last words are left out.
    """
    count = report.sentences.sum(1)
    chosen = (noise(seeds, 1, stream=SENTENCE)[:, 0] * count).long()
    words = report.alone[torch.arange(len(seeds), device=seeds.device), chosen]
    inside = report.sentence == chosen[:, None]
    first = inside.int().argmax(1, keepdim=True)
    place = torch.arange(words.shape[1], device=seeds.device) - 1  # of a token in its sentence; [CLS] is before it
    real = (place >= 0) & (place < inside.sum(1, keepdim=True))
    number = report.word.gather(1, (first + place).clamp(0, report.word.shape[1] - 1))
    number = (number - report.word.gather(1, first)).masked_fill(~real, -1)
    if words.shape[1] > longest:
        last = (words != report.pad).sum(1, keepdim=True) - 1  # where [SEP] stands
        long = last[:, 0] >= longest
        words = words.clone()
        words[long, longest - 1] = words.gather(1, last)[long, 0]
        number[long, longest - 1], real[long, longest - 1] = -1, False
    numbered = torch.where(real, 0, -1)
    cut = slice(0, longest)
    return Report(words[:, cut], number[:, cut], numbered[:, cut], words[:, None, cut], pad=report.pad)


@dataclass(frozen=True)
class Fused:
    """What co-attention makes of a batch."""

    volume: Float[Tensor, "B N E"]
    words: Float[Tensor, "B L E"]
    middle: Float[Tensor, "B N E"]  # volume tokens after `depth` layers
    pooled: Float[Tensor, "B E2"]  # of volume and words, side by side
    maps: Float[Tensor, "B layers heads L N"]  # what each word looks at


@final
class CoAttention(nn.Module):
    """Two streams of `layers` layers, type embeddings before them and a pooler after each.

    Raises ValueError if the heads do not divide the width, and for less than one layer.
    """

    def __init__(self, width: int, *, layers: int = 6, heads: int = 12):
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers={layers}: co-attention needs 1 or more")
        self.of_volume, self.of_words = (
            nn.ModuleList(FusionLayer(width, mode="classical", heads=heads, self_heads=heads) for _ in range(layers))
            for _ in range(2)
        )
        self.types = nn.Parameter(torch.empty(2, width))
        nn.init.normal_(self.types, std=0.02)
        self.norm_volume, self.norm_words = nn.LayerNorm(width), nn.LayerNorm(width)
        self.pool_volume, self.pool_words = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self,
        volume: Float[Tensor, "B N E"],
        words: Float[Tensor, "B L E"],
        *,
        real: Bool[Tensor, "B L"],
        depth: int = 0,
        also: Callable[[int, Tensor], Tensor | None] | None = None,
    ) -> Fused:
        """Both modalities, each knowing the other; `real` marks the words that are no padding, [CLS] the first.

        `also(layer, volume)` is added to the words before the feed-forward part of that layer.
        """
        y, x = volume + self.types[0], words + self.types[1]
        middle, maps = y, []
        for number, (layer_y, layer_x) in enumerate(zip(self.of_volume, self.of_words, strict=True), 1):
            more = None if also is None else also(number - 1, y)
            (x, seen), (y, _) = layer_x(x, y, x_real=real, more=more), layer_y(y, x, y_real=real)
            maps.append(seen)
            middle = y if number == depth else middle
        y, x = self.norm_volume(y), self.norm_words(x)
        pooled = torch.cat([self.pool_volume(y.mean(1)), self.pool_words(x[:, 0])], -1).tanh()
        return Fused(y, x, middle, pooled, torch.stack(maps, 1))


@final
class Joint(nn.Module):
    """Volume tokens and words, each taken to `width`, in co-attention, and the heads of MLM and ITM on top.

    `text` is the frozen text encoder: neither a submodule nor in the state.
    """

    text: Any

    def __init__(self, width: int, text: Any, *, layers: int, heads: int):
        super().__init__()
        object.__setattr__(self, "text", text)
        self.from_volume, self.from_text = nn.Linear(width, width), nn.Linear(text.width, width)
        self.fusion = CoAttention(width, layers=layers, heads=heads)
        self.report_decoder = ReportDecoder(width, vocabulary=text.vocabulary)
        self.match = nn.Linear(2 * width, 2)

    def forward(self, volume: Float[Tensor, "B N E"], words: Float[Tensor, "B L E"], **how: Any) -> Fused:
        """Co-attention; takes what `CoAttention` takes."""
        return self.fusion(volume, words, **how)

    def tokens(self, pyramid: Pyramid) -> Float[Tensor, "B N E"]:
        """A volume's tokens."""
        return self.from_volume(pyramid.tokens)

    def words(self, report: Report) -> Float[Tensor, "B L E"]:
        """A report's words."""
        return self.from_text(self.text.word_features(report))

    def read(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L E"]:
        """Words of any ids, masked ones too."""
        with torch.no_grad():
            words = self.text(ids)
        return self.from_text(words)

    def masked(
        self, report: Report, seeds: Int[Tensor, "B"], *, ratio: float
    ) -> tuple[Float[Tensor, "B L E"], Int[Tensor, "B L"]]:
        """The words with a share of them hidden, and labels that are -100 on those not asked for."""
        vocabulary = self.text.vocabulary
        ids, labels = mask_words(report, seeds, mask_id=self.text.mask_id, vocabulary=vocabulary, ratio=ratio)
        return self.read(ids), labels

    def mlm(self, fused: Fused, labels: Int[Tensor, "B L"]) -> Float[Tensor, ""]:
        """The hidden words, told from what co-attention made of the others and of the volume."""
        return losses.mlm(self.report_decoder(fused.words, labels != -100), labels)

    def itm(self, fused: Fused, right: Bool[Tensor, "B"]) -> Float[Tensor, ""]:
        """Image-text matching: cross-entropy of two classes, wrong and right."""
        return matching(self.match(fused.pooled), right)


def sentence_maps(maps: Float[Tensor, "B layers heads L N"], report: Report) -> Float[Tensor, "B layers heads S N"]:
    """What each sentence looks at: the mean over its words."""
    flat = maps.movedim(3, 1).flatten(2)
    means = sentence_mean(flat, report.sentence, report.alone.shape[1])
    return means.unflatten(2, (*maps.shape[1:3], -1)).movedim(1, 3).float()


def check_cubes(shape: tuple[int, int, int], *, cube: int, ratio: float) -> None:
    """Raise ValueError where a mask of `views.block_mask` would hide all of a volume of `shape`, or nothing."""
    count = math.prod(max(1, round(side / cube)) for side in shape)
    if not 0 < round(ratio * count) < count:
        raise ValueError(
            f"shape={shape} has {count} cubes of {cube} voxels, and mask_ratio={ratio} leaves none to hide or none to "
            "see: take larger volumes or a smaller mask_cube"
        )


@final
class CubeDecoder(nn.Module):
    """Tokens of cells of `stride` voxels -> a volume, of which a masked autoencoder scores the hidden cubes.

    Where a cell is a cube of the mask, the decoder is MAE's: `layers` layers, half as wide, a learned token in hidden
    places. Elsewhere it is convolutional, since a token covers several cubes, or a part of one.
    """

    def __init__(self, width: int, *, stride: int, cube: int, layers: int = 4):
        super().__init__()
        self.stride, self.patchwise = stride, stride == cube
        if self.patchwise:
            self.decoder = PatchDecoder(width, width=width // 2, side=stride, layers=layers)
        else:
            self.decoder = VoxelDecoder(width, stride=stride)

    def forward(
        self,
        tokens: Float[Tensor, "B N E"],
        hidden: Bool[Tensor, "B d h w"],
        *,
        grid: tuple[int, int, int],
        size: tuple[int, int, int],
    ) -> Float[Tensor, "B 1 D H W"]:
        """Voxels of a volume of `size`, from its tokens on `grid` (d slowest)."""
        if not self.patchwise:
            return self.decoder(tokens, grid=grid, size=size)
        there = F.interpolate(hidden[:, None].float(), size=grid, mode="nearest").flatten(1) > 0.5
        cubes = self.decoder(tokens, there, grid=grid).unflatten(2, (self.stride,) * 3).unflatten(1, grid)
        whole = cubes.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)[:, None]
        d, h, w = size
        return whole[:, :, :d, :h, :w]


@in_float32
def matching(logits: Float[Tensor, "B 2"], right: Bool[Tensor, "B"]) -> Float[Tensor, ""]:
    """Image-text matching: cross-entropy of two classes, wrong and right."""
    return F.cross_entropy(logits, right.long())


@in_float32
def cube_error(
    rebuilt: Float[Tensor, "B 1 D H W"], volume: Float[Tensor, "B 1 D H W"], hidden: Bool[Tensor, "B d h w"]
) -> Float[Tensor, ""]:
    """Mean squared error over hidden cubes of what is rebuilt, each cube of the target at mean 0 and variance 1.

    So a cube that is said to be 0 all over has an error of 1 (less, where it is almost constant: the variance counts
    1e-6 more). `hidden` are the cells of a mask as `views.block_mask` draws it. A mean over a volume's hidden voxels,
    then over volumes. Sums are matrix products along the axes, so that equal inputs give equal bits on a GPU too.
    """
    error = (rebuilt - standardised(volume, hidden.shape[1:])).square()
    where = _spread(hidden[:, None], _owners(volume.shape[2:], hidden.shape[1:], volume.device))
    return ((error * where).flatten(1).sum(1) / where.flatten(1).sum(1).clamp_min(1)).mean()


def standardised(volume: Float[Tensor, "B 1 D H W"], cells: Sequence[int]) -> Float[Tensor, "B 1 D H W"]:
    """Each of `cells` cubes along D, H, W of a volume at mean 0 and variance 1: what `cube_error` asks for."""
    owners = _owners(volume.shape[2:], cells, volume.device)
    centred = volume - _spread(_means(volume, owners), owners)
    variance = _spread(_means(centred.square(), owners), owners)
    return centred / (variance + 1e-6).sqrt()


def _owners(size: Sequence[int], cells: Sequence[int], device: torch.device) -> list[Tensor]:
    """Which cell along each axis a voxel lies in."""
    return [torch.arange(n, device=device) * count // n for n, count in zip(size, cells, strict=True)]


def _means(x: Tensor, owners: list[Tensor]) -> Float[Tensor, "B 1 d h w"]:
    """Mean of the voxels of each cell; `owners` say for each axis which cell a voxel lies in."""
    for axis, owner in enumerate(owners, 2):
        member = F.one_hot(owner).to(x.dtype)
        x = torch.tensordot(x.movedim(axis, -1), member / member.sum(0), dims=1).movedim(-1, axis)
    return x


def _spread(cells: Tensor, owners: list[Tensor]) -> Tensor:
    """The cells' values on their voxels."""
    d, h, w = owners
    return cells[:, :, d][:, :, :, h][..., w]
