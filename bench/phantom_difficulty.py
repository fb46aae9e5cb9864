"""Is the phantom cohort neither trivial nor hopeless? An HU histogram must stay low, a small 3-D CNN must get through.

    python bench/phantom_difficulty.py --train 1600 --test 400 --epochs 16 --seed 0

The network learns from labels and masks. Both models train on split `train` and are scored on split `test`, whose
nuisance ranges (noise, kernel, slices, contrast medium, field of view) reach further. Volumes are prepared as for
pre-training: centre crop [.88 .66 .88], then the shape of scale `phantom`.
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise, repeat

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.data.phantom.plan import LABELS, draw
from mg3d.data.phantom.render import render
from mg3d.metrics import auroc
from mg3d.recipe import SCALES

CROP = (0.88, 0.66, 0.88)
SHAPE = SCALES["phantom"].shape
CELL = 4  # edge of a cell of the network's finding map, in voxels
WINDOWS_HU = ((-1000.0, -400.0), (-160.0, 240.0), (200.0, 1600.0))  # lung, soft tissue, calcium and metal


def prepared(number: int, split: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Volume int16 SHAPE, labels [18] and coarse truth bool [18, *SHAPE / CELL] (is a finding in the cell?)."""
    torch.set_num_threads(1)
    plan = draw(number, split=split, seed=seed)
    rendering = render(plan)
    hu, truth = rendering.hu, np.zeros((len(LABELS), *rendering.hu.shape), np.float32)
    for finding, mask in zip(plan.findings, rendering.masks, strict=True):
        truth[LABELS.index(finding.label)] += mask
    cut = [slice(round(n * (1 - c) / 2), round(n * (1 + c) / 2)) for n, c in zip(hu.shape, CROP, strict=True)]
    volume = torch.from_numpy(hu[tuple(cut)].astype(np.float32))[None, None]
    volume = F.interpolate(volume, SHAPE, mode="trilinear", align_corners=False)
    cells = F.adaptive_max_pool3d(torch.from_numpy(truth[:, *cut]), tuple(n // CELL for n in SHAPE))
    labels = np.array([plan.labels[label] for label in LABELS], np.float32)
    return volume[0, 0].numpy().astype(np.int16), labels, cells.numpy() > 0


def cohort(split: str, cases: int, seed: int, workers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Volumes [N, *SHAPE] int16, labels [N, 18] and coarse truth [N, 18, *SHAPE / CELL]."""
    start = time.time()
    with ProcessPoolExecutor(workers) as pool:
        rows = list(pool.map(prepared, range(1, cases + 1), repeat(split), repeat(seed), chunksize=8))
    print(
        f"{split}: {cases} volumes, {cases / (time.time() - start):.1f} a second with {workers} processes", flush=True
    )
    volumes, labels, cells = zip(*rows, strict=True)
    return np.stack(volumes), np.stack(labels), np.stack(cells)


def histogram_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """One logistic regression a label on log counts of 64 bins in -1000..1000 HU; cross-validation sets the penalty."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def bins(volumes: np.ndarray) -> np.ndarray:
        """Log counts [N, 64]."""
        return np.stack([np.log1p(np.histogram(np.clip(v, -1000, 1000), 64, (-1000, 1000))[0]) for v in volumes])

    x, y = bins(train), bins(test)
    scores = np.empty((len(y), labels.shape[1]))
    for i in range(labels.shape[1]):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        search = GridSearchCV(model, {"logisticregression__C": [0.003, 0.03, 0.3]}, scoring="roc_auc", cv=4)
        scores[:, i] = search.fit(x, labels[:, i]).predict_proba(y)[:, 1]
    return scores


class Block(nn.Module):
    """Two 3x3x3 convolutions with a shortcut, `stride` times coarser."""

    def __init__(self, width: int, out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(width, out, 3, stride, 1, bias=False),
            nn.BatchNorm3d(out),
            nn.ReLU(inplace=True),
            nn.Conv3d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm3d(out),
        )
        self.short = nn.Sequential(nn.AvgPool3d(stride), nn.Conv3d(width, out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, out, D / stride, H / stride, W / stride]."""
        return F.relu(self.body(x) + self.short(x))


class SmallNet(nn.Module):
    """A residual 3-D network on HU windows and coordinates, with a coarse map of the findings.

    The map is what a small finding needs: no label of a volume says which of its bright dots is no vessel.
    """

    def __init__(self, labels: int):
        super().__init__()
        widths = (24, 32, 64, 128)
        self.stem = nn.Sequential(
            nn.Conv3d(len(WINDOWS_HU) + 3, widths[0], 4, 2, 1, bias=False), nn.BatchNorm3d(24), nn.ReLU(inplace=True)
        )
        self.blocks = nn.ModuleList(Block(a, b, 2) for a, b in pairwise(widths))
        self.level = nn.ModuleList(nn.Conv3d(width, 48, 1) for width in widths[1:])
        self.map = nn.Sequential(
            nn.BatchNorm3d(48), nn.ReLU(inplace=True), nn.Conv3d(48, 48, 3, 1, 1, bias=False), nn.BatchNorm3d(48),
            nn.ReLU(inplace=True), nn.Conv3d(48, labels, 1),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * sum(widths) + 2 * labels, labels))
        z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
        self.register_buffer("places", torch.stack([z, y, x.abs()])[None])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, labels] of windowed volumes [B, 3, D, H, W], and those of the map [B, labels, D/4, H/4, W/4]."""
        x = self.stem(torch.cat([x, self.places.to(x.dtype).expand(len(x), -1, -1, -1, -1)], 1))
        pooled, levels = [x.mean((2, 3, 4)), x.amax((2, 3, 4))], []
        for block, level in zip(self.blocks, self.level, strict=True):
            x = block(x)
            pooled += [x.mean((2, 3, 4)), x.amax((2, 3, 4))]
            levels.append(level(x))
        fine = levels[0] + sum(F.interpolate(coarse, levels[0].shape[2:]) for coarse in levels[1:])
        cells = self.map(fine)
        pooled += [cells.amax((2, 3, 4)), cells.sigmoid().mean((2, 3, 4)).clamp_min(1e-5).log()]
        return self.head(torch.cat(pooled, 1)), cells


def windows(volumes: np.ndarray) -> Tensor:
    """Windowed channels uint8 [N, 3, D, H, W] of HU [N, D, H, W]."""
    out = torch.empty((len(volumes), len(WINDOWS_HU), *SHAPE), dtype=torch.uint8)
    for row, volume in zip(out, volumes, strict=True):
        for channel, (low, high) in zip(row, WINDOWS_HU, strict=True):
            channel[:] = torch.from_numpy(np.clip((volume - low) * (255 / (high - low)), 0, 255).astype(np.uint8))
    return out


def moved(x: Tensor, cells: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Volumes and maps, shifted by up to one cell and mirrored at random (no label has a side)."""
    rows, maps = [], []
    for row, cell in zip(x, cells, strict=True):
        step = rng.integers(-1, 2, 3)
        flip = (3,) if rng.random() < 0.5 else ()
        rows.append(torch.roll(row, tuple((CELL * step).tolist()), (1, 2, 3)).flip(flip))
        maps.append(torch.roll(cell, tuple(step.tolist()), (1, 2, 3)).flip(flip))
    return torch.stack(rows).to(torch.bfloat16) / 255, torch.stack(maps).float()


def loss_of(logits: Tensor, cells: Tensor, labels: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy of the labels, and of the cells with the rare positive ones weighted tenfold."""
    weight = torch.tensor(10.0)
    where = F.binary_cross_entropy_with_logits(cells.float(), truth, pos_weight=weight)
    return F.binary_cross_entropy_with_logits(logits.float(), labels) + 3 * where


def train_net(x: Tensor, labels: np.ndarray, cells: np.ndarray, *, epochs: int, seed: int, batch: int = 8) -> SmallNet:
    """AdamW, one cycle of the learning rate, bf16."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = SmallNet(labels.shape[1])
    net.map[-1].bias.data.fill_(-4)
    steps = len(x) // batch
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=epochs * steps, pct_start=0.2)
    target, truth = torch.from_numpy(labels), torch.from_numpy(cells)
    start = time.time()
    for epoch in range(epochs):
        total = 0.0
        for rows in rng.permutation(len(x))[: steps * batch].reshape(steps, batch):
            volumes, maps = moved(x[rows], truth[rows], rng)
            with torch.autocast("cpu", torch.bfloat16):
                logits, found = net(volumes)
            loss = loss_of(logits, found, target[rows], maps)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            plan.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / steps:.4f}, {time.time() - start:.0f} s", flush=True)
    return net.eval()


@torch.no_grad()
def net_scores(net: SmallNet, x: Tensor) -> np.ndarray:
    """Logits [N, 18], the mean over each volume and its mirror image."""
    batches = (batch.float() / 255 for batch in x.split(16))
    return torch.cat([net(batch)[0] + net(batch.flip(4))[0] for batch in batches]).numpy()


def main() -> None:
    """Render, fit both models, print a table of AUROC."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("train", 1600), ("test", 400), ("epochs", 16), ("seed", 0), ("workers", os.cpu_count())):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    volumes, labels, cells = cohort("train", args.train, args.seed, args.workers)
    unseen, truth, _ = cohort("test", args.test, args.seed, args.workers)
    simple = auroc(histogram_scores(volumes, labels, unseen), truth)
    print(f"histogram: {simple.mean():.3f}", flush=True)
    net = train_net(windows(volumes), labels, cells, epochs=args.epochs, seed=args.seed) if args.epochs else None
    deep = auroc(net_scores(net, windows(unseen)), truth) if net else np.full(len(LABELS), np.nan)
    print(f"\n{'label':36}{'prevalence':>12}{'histogram':>12}{'CNN':>8}")
    for label, share, a, b in zip(LABELS, truth.mean(0), simple, deep, strict=True):
        print(f"{label:36}{share:12.3f}{a:12.3f}{b:8.3f}")
    print(f"{'macro':36}{'':12}{simple.mean():12.3f}{deep.mean():8.3f}")


if __name__ == "__main__":
    main()
