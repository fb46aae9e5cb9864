"""The MG-3D objective: every variant computes its terms, trains all it has, and does not depend on padding or on parts."""

import dataclasses

import pytest
import torch
from torch import nn

from mg3d import objectives
from mg3d.encoders import Encoder, hide
from mg3d.objectives.mg3d import MG3D, TERMS, VARIANTS, MG3DConfig
from mg3d.types import Batch, Pyramid, Report

SHAPE = (32, 16, 32)
VOCABULARY = 40


class Toy(Encoder):
    """Two convolutions, strides 4 and 8."""

    def __init__(self):
        super().__init__()
        self.widths, self.strides = (8, 16), (4, 8)
        self.a, self.b = nn.Conv3d(1, 8, 4, 4), nn.Conv3d(8, 16, 2, 2)

    def forward(self, volume, mask=None):
        fine = self.a(hide(volume, mask)).relu()
        return Pyramid((fine, self.b(fine).tanh()))


class ToyText:
    """An embedding, mixed with the mean of its row: words know their report, padding changes nothing."""

    width, vocabulary, mask_id = 12, VOCABULARY, 3

    def __init__(self, dtype=torch.float32):
        self.table = torch.randn(VOCABULARY, self.width, generator=torch.Generator().manual_seed(5)).to(dtype)
        self.calls = 0

    def __call__(self, words):
        self.calls += 1
        real = (words != 0)[..., None]
        x = self.table[words] * real
        return (x + x.sum(-2, keepdim=True) / real.sum(-2, keepdim=True).clamp_min(1)) * real

    def word_features(self, report):
        self.calls -= 1
        return self(report.words)

    def sentence_features(self, report):
        self.calls -= 1
        real = (report.alone != 0)[..., None]
        return (self(report.alone) * real).sum(-2) / real.sum(-2).clamp_min(1)


def report(texts: list[list[list[int]]], *, longer: int = 0, more: int = 0) -> Report:
    """Report of given ids by sentence; `longer` and `more` pad words and sentences."""
    length = 2 + max(sum(map(len, t)) for t in texts) + longer
    sentences = max(map(len, texts)) + more
    longest = 2 + max(len(s) for t in texts for s in t) + longer
    words, word, number = (torch.full((len(texts), length), fill) for fill in (0, -1, -1))
    alone = torch.zeros(len(texts), sentences, longest, dtype=torch.long)
    for b, text in enumerate(texts):
        ids = [i for s in text for i in s]
        words[b, : len(ids) + 2] = torch.tensor([1, *ids, 2])
        word[b, 1 : len(ids) + 1] = torch.arange(len(ids)) // 2  # words of two pieces
        number[b, 1 : len(ids) + 1] = torch.tensor([k for k, s in enumerate(text) for _ in s])
        for k, s in enumerate(text):
            alone[b, k, : len(s) + 2] = torch.tensor([1, *s, 2])
    return Report(words, word, number, alone)


TEXTS = [
    [[10, 11, 12, 13], [20, 21]],
    [[10, 11], [30, 31, 32, 33], [20, 21, 22, 23]],
    [[25, 26, 27, 28, 29, 30]],
    [[12, 13, 14, 15], [33, 34], [35, 36], [10, 11]],
]


def batch(texts=TEXTS, *, part=slice(None), dtype=torch.float32, **padding) -> Batch:
    volume = torch.rand(len(texts), 1, *SHAPE, generator=torch.Generator().manual_seed(2)).to(dtype)
    volume[:, :, :8] += torch.arange(len(texts)).view(-1, 1, 1, 1, 1) / 4  # patients differ
    seeds, ids = torch.arange(len(texts)) + 11, tuple("abcdefgh"[: len(texts)])
    return Batch(volume[part], ids[part], seeds[part], report(texts[part], **padding))


def build(variant="paper", **overrides) -> MG3D:
    torch.manual_seed(0)
    text = overrides.pop("text", None) or ToyText()
    return objectives.build("mg3d", encoder=Toy(), text=text, variant=variant, shape=SHAPE, **overrides)


def gradients(model, losses) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns(variant):
    """A variant computes the terms that weigh something, and leaves nothing that it built without a gradient."""
    model = build(variant, text=ToyText(torch.float64)).double()  # so that rounding does not pass for a gradient
    losses = model(batch(dtype=torch.float64))
    assert list(losses) == [t for t in TERMS if getattr(model.config, t)]
    assert all(x.isfinite() and x > 0 for x in losses.values())
    still = [name for name, grad in gradients(model, losses).items() if grad.abs().max() < 1e-13]
    # one key: its weight is 1 whoever asks, all sentences of a patient get one vector, and a pool over equals is a mean
    idle = {f"{m}.{p}" for m in ("specific", "pool_specific") for p in ("query.weight", "query.bias", "key.weight")}
    idle |= {"specific.norm_x.weight", "specific.norm_x.bias"}
    assert set(still) == (idle if variant == "pooled" else set())
