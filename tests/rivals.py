"""A tiny cohort that can be learned: eight findings, each of its own place and look, and reports that name them."""

import itertools

import torch
from torch import nn

from mg3d.encoders import Encoder, hide
from mg3d.encoders.text import load_text
from mg3d.objectives import build
from mg3d.text import Tokeniser
from mg3d.types import Batch, Pyramid

SHAPE = (32, 32, 32)
FINDINGS = ("nodule", "effusion", "atelectasis", "consolidation", "emphysema", "hernia", "mass", "opacity")
PLACES = (
    "the right upper lobe",
    "the left upper lobe",
    "the right lower lobe",
    "the left lower lobe",
    "the heart",
    "the aorta",
    "the trachea",
    "the liver",
)
REPORTS = [
    f"There is {what} in {where}. No {other} was observed."
    for what, where, other in zip(FINDINGS, PLACES, FINDINGS[4:] + FINDINGS[:4], strict=True)
]


class Toy(Encoder):
    """Two strided convolutions: strides 4 and 8, so 64 tokens."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.widths, self.strides = (width // 2, width), (4, 8)
        self.a, self.b = nn.Conv3d(1, width // 2, 4, 4), nn.Conv3d(width // 2, width, 2, 2)

    def forward(self, volume, mask=None):
        fine = self.a(hide(volume, mask)).relu()
        return Pyramid((fine, self.b(fine).tanh()))


class Words(nn.Module):
    """An embedding mixed with the mean of its row, so that [CLS] knows its report; the tokenizer of text='tiny'."""

    width = 32

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.tokenizer = load_text("tiny").tokenizer
        self.vocabulary, self.mask_id, self.calls = len(self.tokenizer), self.tokenizer.mask_token_id, 0
        table = torch.randn(self.vocabulary, self.width, generator=torch.Generator().manual_seed(5))
        self.table = nn.Parameter(table.to(dtype), requires_grad=False)

    def forward(self, words):
        self.calls += 1
        real = (words != 0)[..., None]
        x = self.table[words] * real
        return (x + 2 * x.sum(-2, keepdim=True) / real.sum(-2, keepdim=True).clamp_min(1)) * real

    def word_features(self, report):
        return self(report.words)

    def sentence_features(self, report):
        return self(report.alone)[..., 1:-1, :].mean(-2)


def batch(text, *, seed=0, dtype=torch.float32, part=slice(None), shape=SHAPE) -> Batch:
    """Eight patients, each with another finding in an octant; all else in a volume is noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    volume = 0.1 * torch.rand(8, 1, *shape, generator=generator)
    volume += 0.2 * torch.linspace(0, 3.14 * shape[2] / 8, shape[2]).cos()  # what all have in common
    d, h, w = (n // 2 for n in shape)
    for x, (i, j, k) in zip(volume, itertools.product((0, 1), repeat=3), strict=True):
        octant = x[0, i * d : (i + 1) * d, j * h : (j + 1) * h, k * w : (k + 1) * w]
        octant += 0.3 + 0.3 * i
        octant[:, ::2, ::2] += 0.3 * j  # fine stripes
        x.add_(0.2 * k)
    report = Tokeniser(text.tokenizer, max_words=64)(REPORTS[part])
    ids = tuple(f"case{i}" for i in range(8))
    return Batch(volume[part].to(dtype), ids[part], torch.arange(8)[part] + 100 * seed, report)


def method(name: str, text, *, variant: str = "", encoder: Encoder | None = None, shape=SHAPE, **overrides):
    """An untrained method on the toy."""
    torch.manual_seed(0)
    return build(name, encoder=encoder or Toy(), text=text, variant=variant, shape=shape, **overrides)


def trained(model, text, *, steps: int, lr: float = 3e-3, shape=SHAPE):
    """The method after so many steps on fresh noise."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        torch.manual_seed(step)
        losses = model(batch(text, seed=step + 1, shape=shape))
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        model.after_step()
    return model.eval()
