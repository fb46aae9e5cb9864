"""Is the phantom cohort neither trivial nor hopeless? An HU histogram must stay low, a small 3-D CNN must get through.

    python bench/phantom_difficulty.py --train 1500 --test 400 --epochs 12 --seed 0

Both models train on split `train` and are scored on split `test`, whose nuisance ranges (noise, kernel, slices,
contrast medium, field of view) reach further. Volumes are prepared as for pre-training: centre crop [.88 .66 .88], then
64 x 48 x 64.
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.data.phantom.plan import LABELS, draw
from mg3d.data.phantom.render import render

CROP = (0.88, 0.66, 0.88)
SHAPE = (64, 48, 64)
WINDOWS_HU = ((-1000.0, -400.0), (-160.0, 240.0), (200.0, 1600.0))  # lung, soft tissue, calcium and metal


def prepared(number: int, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Volume int16 [64, 48, 64] and labels [18] of one case."""
    torch.set_num_threads(1)
    plan = draw(number, split=split, seed=seed)
    hu = render(plan).hu
    cut = [slice(round(n * (1 - c) / 2), round(n * (1 + c) / 2)) for n, c in zip(hu.shape, CROP, strict=True)]
    volume = torch.from_numpy(hu[tuple(cut)].astype(np.float32))[None, None]
    volume = F.interpolate(volume, SHAPE, mode="trilinear", align_corners=False)
    return volume[0, 0].numpy().astype(np.int16), np.array([plan.labels[label] for label in LABELS], np.float32)


def cohort(split: str, cases: int, seed: int, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Volumes [N, 64, 48, 64] int16 and labels [N, 18]."""
    start = time.time()
    with ProcessPoolExecutor(workers) as pool:
        rows = list(pool.map(prepared, range(1, cases + 1), repeat(split), repeat(seed), chunksize=8))
    print(
        f"{split}: {cases} volumes, {cases / (time.time() - start):.1f} a second with {workers} processes", flush=True
    )
    volumes, labels = zip(*rows, strict=True)
    return np.stack(volumes), np.stack(labels)


def auroc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each label."""
    from sklearn.metrics import roc_auc_score

    return np.array([roc_auc_score(labels[:, i], scores[:, i]) for i in range(labels.shape[1])])


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
    """Two 3x3x3 convolutions with a shortcut."""

    def __init__(self, width: int, out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(width, out, 3, stride, 1, bias=False),
            nn.BatchNorm3d(out),
            nn.ReLU(inplace=True),
            nn.Conv3d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm3d(out),
        )
        self.short = nn.Sequential(
            nn.AvgPool3d(stride) if stride > 1 else nn.Identity(),
            nn.Conv3d(width, out, 1, bias=False) if width != out else nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features, `stride` times coarser."""
        return F.relu(self.body(x) + self.short(x))


class SmallNet(nn.Module):
    """A residual 3-D network on three HU windows; pools mean and maximum, since small findings drown in a mean."""

    def __init__(self, labels: int, width: int = 16):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, width, 3, 2, 1, bias=False), nn.BatchNorm3d(width), nn.ReLU(inplace=True)
        )
        self.body = nn.Sequential(
            Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2), Block(4 * width, 8 * width, 2)
        )
        self.middle = nn.Conv3d(2 * width, 2 * width, 1)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear((8 + 8 + 2) * width, labels))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, labels] of windowed volumes [B, 3, D, H, W]."""
        fine = self.body[0](self.stem(x))
        deep = self.body[2](self.body[1](fine))
        parts = [deep.mean((2, 3, 4)), deep.amax((2, 3, 4)), self.middle(fine).amax((2, 3, 4))]
        return self.head(torch.cat(parts, 1))


def windows(volumes: np.ndarray, shift: np.ndarray | None = None, flip: np.ndarray | None = None) -> Tensor:
    """Windowed channels [B, 3, D, H, W], optionally moved by whole voxels and mirrored (no label has a side)."""
    x = torch.from_numpy(volumes.astype(np.float32))
    if shift is not None and flip is not None:
        moved = [torch.roll(v, tuple(s.tolist()), (0, 1, 2)) for v, s in zip(x, shift, strict=True)]
        x = torch.stack([v.flip(2) if f else v for v, f in zip(moved, flip, strict=True)])
    parts = [((x - low) / (high - low)).clamp(0, 1) for low, high in WINDOWS_HU]
    return torch.stack(parts, 1).contiguous(memory_format=torch.channels_last_3d)


def train_net(volumes: np.ndarray, labels: np.ndarray, *, epochs: int, seed: int, batch: int = 16) -> SmallNet:
    """Binary cross-entropy on all labels, AdamW, one cycle of the learning rate."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = SmallNet(labels.shape[1]).to(memory_format=torch.channels_last_3d)
    steps = len(volumes) // batch
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.05)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=epochs * steps, pct_start=0.25)
    target = torch.from_numpy(labels)
    start = time.time()
    for epoch in range(epochs):
        net.train()
        total = 0.0
        for rows in rng.permutation(len(volumes))[: steps * batch].reshape(steps, batch):
            x = windows(volumes[rows], rng.integers(-3, 4, (batch, 3)), rng.random(batch) < 0.5)
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(x)
            loss = F.binary_cross_entropy_with_logits(logits.float(), target[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            plan.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / steps:.4f}, {time.time() - start:.0f} s", flush=True)
    return net.eval()


@torch.no_grad()
def net_scores(net: SmallNet, volumes: np.ndarray) -> np.ndarray:
    """Logits [N, 18]."""
    return torch.cat([net(windows(volumes[i : i + 16])) for i in range(0, len(volumes), 16)]).numpy()


def main() -> None:
    """Render, fit both models, print a table of AUROC."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("train", 1500), ("test", 400), ("epochs", 12), ("seed", 0), ("workers", os.cpu_count())):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    volumes, labels = cohort("train", args.train, args.seed, args.workers)
    unseen, truth = cohort("test", args.test, args.seed, args.workers)
    simple = auroc(truth, histogram_scores(volumes, labels, unseen))
    print(f"histogram: {simple.mean():.3f}", flush=True)
    net = train_net(volumes, labels, epochs=args.epochs, seed=args.seed) if args.epochs else None
    deep = auroc(truth, net_scores(net, unseen)) if net else np.full(len(LABELS), np.nan)
    print(f"\n{'label':36}{'prevalence':>12}{'histogram':>12}{'CNN':>8}")
    for label, share, a, b in zip(LABELS, truth.mean(0), simple, deep, strict=True):
        print(f"{label:36}{share:12.3f}{a:12.3f}{b:8.3f}")
    print(f"{'macro':36}{'':12}{simple.mean():12.3f}{deep.mean():8.3f}")


if __name__ == "__main__":
    main()
