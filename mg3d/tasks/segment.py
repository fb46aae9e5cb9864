"""Segmentation: a label for each voxel, learnt from patches, predicted for whole volumes.

The loss is the sum of soft Dice (over the classes but the background, a mean over patches) and cross-entropy. A volume
that is no patch is seen through windows of the patch's size that overlap by half; their logits are averaged, with more
weight at a window's middle (a Gaussian of an eighth of its side).
"""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mg3d.decoders import UNetDecoder
from mg3d.encoders import Encoder
from mg3d.metrics import Interval, bootstrap, dice, hd95, mean_of_defined, nsd, surface_distances, weighted_means
from mg3d.tasks import Task
from mg3d.types import Batch, Losses

OVERLAP = 0.5  # of neighbouring windows
WINDOWS = 4  # that are predicted at a time


@final
class Segment(Task):
    """The encoder's pyramid through a `UNetDecoder`. `batch.target` is [B, D, H, W]: a class's number for each voxel.

    `names` are the classes from 0, the background, on; `patch` (D, H, W) is the size that is trained on and the size of
    the windows; `spacing_mm` that of the prepared volumes, for distances; `tolerance_mm` that of NSD. Raises ValueError
    for fewer than two names, and for a patch or a spacing that is none.
    """

    metric = "dice"  # mean over the classes but the background of each one's mean over the cases

    def __init__(
        self,
        encoder: Encoder,
        *,
        names: Sequence[str],
        patch: Sequence[int],
        spacing_mm: Sequence[float],
        tolerance_mm: float = 2.0,
    ):
        from monai.losses.dice import DiceLoss

        super().__init__()
        if len(names) < 2:
            raise ValueError(f"names={tuple(names)}: the background and at least one class are needed")
        if len(patch) != 3 or min(patch) < 1 or len(spacing_mm) != 3 or not min(spacing_mm) > 0:
            raise ValueError(f"patch={tuple(patch)}, spacing_mm={tuple(spacing_mm)}: three numbers (D, H, W) above 0")
        self.names, self.patch = tuple(names), tuple(patch)
        self.spacing_mm, self.tolerance_mm = tuple(spacing_mm), tolerance_mm
        self.encoder = encoder
        self.decoder = UNetDecoder(encoder.widths, encoder.strides, classes=len(names))
        self._table: tuple[Any, Any, dict[str, np.ndarray]] | None = None
        self.overlap = DiceLoss(include_background=False, to_onehot_y=True, softmax=True)

    @property
    def asked(self) -> dict[str, Any]:
        """The grid that masks are compared on, and how far apart borders may lie."""
        return {"spacing_mm": list(self.spacing_mm), "tolerance_mm": self.tolerance_mm}

    def logits(self, volume: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B K D H W"]:
        """Of a patch at once, of any other volume through windows."""
        if tuple(volume.shape[2:]) == self.patch:
            return self._window(volume)
        from monai.inferers.utils import sliding_window_inference

        found = sliding_window_inference(
            volume, self.patch, WINDOWS, self._window, overlap=OVERLAP, mode="gaussian", padding_mode="constant"
        )
        assert isinstance(found, Tensor)  # as `_window` gives one tensor
        return found

    def forward(self, batch: Batch) -> Losses:
        """Soft Dice and cross-entropy, each a mean over the batch."""
        if batch.target is None:
            raise ValueError("a batch without targets: segmentation learns from masks")
        batch = self.seen(batch)
        assert batch.target is not None  # what is seen keeps its target
        logits, target = self.logits(batch.volume), batch.target.long()
        with torch.autocast(logits.device.type, enabled=False):  # logs and sums over a patch need the digits
            logits = logits.float()
            return {"dice_loss": self.overlap(logits, target[:, None]), "ce": F.cross_entropy(logits, target)}

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[np.ndarray]:
        """The likeliest class of each voxel, uint8 [D, H, W] a case, on the grid of the batch."""
        return list(self.logits(batch.volume).argmax(1).to(torch.uint8).cpu().numpy())

    def score(self, predictions: Sequence[Any], targets: Sequence[Any]) -> dict[str, float]:
        """Means over cases, on the prepared grid: "dice/<class>", "nsd/<class>", "hd95/<class>" in mm; and over classes
        of these: "dice", "nsd", "hd95".

        A class that is neither in the mask nor in the prediction of a case is left out there. One that is in one of
        them alone has Dice and NSD 0 and no HD95; "unmatched" counts these. Raises ValueError where nothing is there to
        be compared: no class in any mask or prediction.
        """
        table = self.table(predictions, targets)
        return self._line(table) | {"unmatched": float(np.isinf(table["hd95"]).sum())}

    def judged(self, predictions: Sequence[Any], targets: Sequence[Any]) -> dict[str, float]:
        """Dice alone: distances between surfaces cost more than the prediction. Raises what `score` raises."""
        pairs = zip(map(np.asarray, predictions), map(np.asarray, targets), strict=True)
        classes = len(self.names) - 1
        return self._line({"dice": np.reshape([dice(p, t, classes=classes) for p, t in pairs], (-1, classes))})

    def _line(self, table: dict[str, Float[np.ndarray, "n classes"]]) -> dict[str, float]:
        """Means over cases of each metric and class, and over classes of these."""
        line: dict[str, float] = {}
        for metric, values in table.items():
            each = weighted_means(values, np.ones((1, len(values))))[0]
            known = {n: float(v) for n, v in zip(self.names[1:], each, strict=True) if not np.isnan(v)}
            if known:
                line |= {metric: float(np.mean(list(known.values()))), **{f"{metric}/{n}": v for n, v in known.items()}}
        if "dice" not in line:
            raise ValueError(
                f"Dice is undefined: no mask and no prediction of these {len(table['dice'])} cases holds "
                f"{', '.join(self.names[1:])}"
            )
        return line

    def intervals(
        self, predictions: Sequence[Any], targets: Sequence[Any], *, cases: Sequence[str]
    ) -> dict[str, Interval]:
        """Intervals over cases (patients) of what `score` gives, "unmatched" apart."""
        found = {}
        for metric, values in self.table(predictions, targets).items():
            known = np.isfinite(values).any(0)
            if not known.any():
                continue
            some = values[:, known]
            found[metric] = bootstrap(lambda w, v=some: mean_of_defined(weighted_means(v, w)), cases)
            each = bootstrap(lambda w, v=some: weighted_means(v, w), cases)
            for i, name in enumerate(np.array(self.names[1:])[known]):
                found[f"{metric}/{name}"] = Interval(*(float(np.asarray(x)[i]) for x in each))
        return found

    def table(self, predictions: Sequence[Any], targets: Sequence[Any]) -> dict[str, Float[np.ndarray, "n classes"]]:
        """Dice, NSD and HD95 of each case and each class but the background, as `metrics.segmentation` has them.

        The last one is kept, so that scores, intervals and the file of one test measure its surfaces once.
        """
        if self._table is not None and self._table[0] is predictions and self._table[1] is targets:
            return self._table[2]
        classes = len(self.names) - 1
        rows: dict[str, list[np.ndarray]] = {"dice": [], "nsd": [], "hd95": []}
        for predicted, target in zip(map(np.asarray, predictions), map(np.asarray, targets), strict=True):
            surfaces = surface_distances(predicted, target, classes=classes, spacing_mm=self.spacing_mm)
            rows["dice"].append(dice(predicted, target, classes=classes))
            rows["nsd"].append(nsd(surfaces, tolerance_mm=self.tolerance_mm))
            rows["hd95"].append(hd95(surfaces))
        table = {metric: np.reshape(values, (-1, classes)) for metric, values in rows.items()}
        self._table = predictions, targets, table
        return table

    def _window(self, volume: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B K D H W"]:
        return self.decoder(volume, self.encoder(volume))
