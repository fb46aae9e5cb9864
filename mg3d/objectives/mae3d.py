"""MAE3D: a masked autoencoder of volumes (Chen et al., SelfMedMAE, ISBI 2023; He et al., MAE, CVPR 2022).

    L = 1/B sum_b mean over hidden patches p of mean |x_p - (I_p - mean I_p) / sqrt(var I_p + 1e-6)|^2

A cube of 96 of the volume's 128 voxels is mirrored, turned and relit, and cut into patches of 16^3 voxels. The encoder
sees 25 % of them, a decoder half as wide (8 layers, 384 for ViT-B) all places, a learned token in the hidden ones. A
patch that is predicted by its mean has an error of 1, so 1 - L is the share of the hidden variance that is explained.

Departs from the original: an encoder of our contract is told what is hidden and gets zeros there, where the original's
ViT drops those tokens; so any encoder can learn, and the decoder still sees nothing of hidden places. Positions are the
encoder's own and there is no class token. An encoder without cells of 16 voxels brings its finer ones there by their
mean, and adds the coarser ones that they lie in. The released scripts hide 12.5 %: variant "released".
"""

from dataclasses import dataclass, replace
from typing import final

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mg3d.decoders import PatchDecoder, patches
from mg3d.encoders import Encoder
from mg3d.losses import in_float32
from mg3d.objectives import Objective, TextEncoder
from mg3d.types import Batch, Losses
from mg3d.views import augment, block_mask, crop, cube_side

PATCH = 16  # voxels a side


@dataclass(frozen=True)
class MAE3DConfig:
    """ValueError for a share that is not between 0 and 1."""

    mask_ratio: float = 0.75  # of the patches
    crop: float = 0.75  # side, of the longest side of a volume: 96 of 128 voxels
    augment: bool = True
    width: int = 0  # of the decoder; 0 = half the encoder's
    layers: int = 8

    def __post_init__(self) -> None:
        if not (0 < self.mask_ratio < 1 and 0 < self.crop <= 1):
            raise ValueError(f"mask_ratio={self.mask_ratio}, crop={self.crop}: take shares between 0 and 1")


PAPER = MAE3DConfig()
VARIANTS = {"paper": PAPER, "released": replace(PAPER, mask_ratio=0.125)}


@final
class MAE3D(Objective):
    """Reads no reports. Works with every encoder that has cells of at most 16 voxels.

    Raises ValueError for another encoder, and when a crop of volumes of `shape` leaves nothing hidden or nothing seen.
    """

    def __init__(
        self,
        encoder: Encoder,
        text: TextEncoder | None = None,
        config: MAE3DConfig = PAPER,
        *,
        shape: tuple[int, int, int],
    ):
        super().__init__()
        self.config, self.encoder = config, encoder
        if not any(s <= PATCH and PATCH % s == 0 for s in encoder.strides):
            raise ValueError(f"strides={encoder.strides}: MAE3D needs cells that divide a patch of {PATCH} voxels")
        count = (-(-cube_side(shape, config.crop) // PATCH)) ** 3
        if not 0 < round(config.mask_ratio * count) < count:
            raise ValueError(f"shape={shape} is cropped to {count} patches, which leaves none to hide or none to see")
        self.level = max(i for i, s in enumerate(encoder.strides) if s <= PATCH and PATCH % s == 0)
        width = encoder.widths[-1]
        self.enter = nn.ModuleList(nn.Linear(w, width) for w in encoder.widths[self.level :])
        self.decoder = PatchDecoder(width, width=config.width or width // 2, side=PATCH, layers=config.layers)

    def forward(self, batch: Batch) -> Losses:
        """The error of hidden patches."""
        volume, hidden = self.view(batch)
        return {"mae": masked_error(self.decode(volume, hidden), patches(volume, PATCH), hidden.flatten(1))}

    def view(self, batch: Batch) -> tuple[Float[Tensor, "B 1 D H W"], Bool[Tensor, "B d h w"]]:
        """A crop, padded with air to whole patches, and which of them are hidden."""
        d, h, w = batch.volume.shape[2:]
        side = cube_side((d, h, w), self.config.crop)
        volume = crop(batch.volume, batch.seeds, size=(side, side, side))
        if self.config.augment:
            volume = augment(volume, batch.seeds)
        pad = -side % PATCH
        volume = F.pad(volume, (0, pad, 0, pad, 0, pad))
        whole = side + pad
        return volume, block_mask(batch.seeds, (whole, whole, whole), cube=PATCH, ratio=self.config.mask_ratio)

    def decode(self, volume: Float[Tensor, "B 1 D H W"], hidden: Bool[Tensor, "B d h w"]) -> Float[Tensor, "B N V"]:
        """Every patch, normalised, from those that are not hidden."""
        d, h, w = hidden.shape[1:]
        total = 0
        for layer, cells in zip(self.enter, self.encoder(volume, mask=hidden).levels[self.level :], strict=True):
            fits = F.adaptive_avg_pool3d if cells.shape[2] > d else F.interpolate
            total = total + layer(fits(cells, (d, h, w)).flatten(2).transpose(1, 2))
        return self.decoder(total, hidden.flatten(1), grid=(d, h, w))


@in_float32
def masked_error(
    predicted: Float[Tensor, "B N V"], target: Float[Tensor, "B N V"], hidden: Bool[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """Mean squared error over the hidden patches, each target brought to mean 0 and variance 1."""
    wanted = F.layer_norm(target, target.shape[-1:], eps=1e-6)
    return (predicted - wanted).square().mean(-1)[hidden].mean()
