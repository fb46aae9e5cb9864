"""Methods that read no reports: their constants, a step with every encoder, resumption, learning."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from mg3d import encoders, objectives
from mg3d.encoders import ENCODERS
from mg3d.objectives import METHODS, Objective
from mg3d.types import Batch

SSL = [name for name in ("mae3d", "swinunetr", "jigsaw", "pcrlv2", "swinmm", "pcrlv1", "rubikpp") if name in METHODS]
SHAPE = (32, 24, 32)
SHRINK = 8


def chests(count: int, *, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> torch.Tensor:
    """Volumes [count, 1, D, H, W]: a body with two lungs, a spine at the back and a liver below, all of random size."""
    generator = torch.Generator().manual_seed(seed)
    size = 0.85 + 0.3 * torch.rand(4, count, 1, 1, 1, generator=generator)
    d, h, w = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    x = ((h / 0.8) ** 2 + (w / 0.9) ** 2 < size[0]).float() * 0.6
    for side in (-0.42, 0.42):
        lung = (d / 0.95) ** 2 + (h / 0.5) ** 2 + ((w - side) / 0.3) ** 2 < size[1] ** 3
        x = torch.where(lung & (d > -0.4 * size[2] * (1 - side)), 0.15, x)
    x = torch.where((h - 0.6) ** 2 + w**2 < 0.02 * size[3], 1.0, x)
    return (x + 0.03 * torch.randn(count, *shape, generator=generator))[:, None].clamp(0, 1)


def batch(count: int = 2, *, shape: tuple[int, int, int] = SHAPE, seed: int = 0, step: int = 0) -> Batch:
    """The same patients at another step have other seeds."""
    seeds = torch.arange(count) + 1000 * step + 17 * seed
    return Batch(chests(count, shape=shape, seed=seed), tuple(f"case{i}" for i in range(count)), seeds)


def build(method: str, encoder: str = "swin_b", *, shape=SHAPE, shrink: int = SHRINK, variant: str = "", **overrides):
    torch.manual_seed(0)
    backbone = encoders.build(encoder, shrink=shrink, shape=shape)
    return objectives.build(method, encoder=backbone, text=None, variant=variant, shape=shape, **overrides)


def train(model: Objective, steps: range, *, count: int = 2, lr: float = 1e-3, shape=SHAPE, optimiser=None):
    """AdamW on other views of the same patients; returns the optimiser."""
    optimiser = optimiser or torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    for step in steps:
        optimiser.zero_grad()
        torch.stack(list(model(batch(count, step=step, shape=shape)).values())).sum().backward()
        optimiser.step()
        model.after_step()
    return optimiser


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("method", SSL)
def test_every_parameter_learns_with_every_encoder(method, encoder):
    model = build(method, encoder)
    losses = model(batch())
    assert all(x.isfinite() and x.dim() == 0 for x in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    learns = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert not [n for n, p in learns.items() if p.grad is None or not p.grad.isfinite().all()]
    assert {n for n, p in learns.items() if not p.grad.any()} <= idle(method, encoder)


def idle(method: str, encoder: str) -> set[str]:
    """Parameters whose gradient is zero here by construction."""
    return set()


@pytest.mark.parametrize("method", SSL)
@pytest.mark.parametrize("shape", [(33, 27, 41), (20, 20, 37)])
def test_odd_sizes(method, shape):
    losses = build(method, "unet", shape=shape)(batch(shape=shape))
    assert all(x.isfinite() for x in losses.values())


@pytest.mark.parametrize("method", SSL)
def test_training_resumes_bit_for_bit(method):
    """Two steps, all that a checkpoint holds into a fresh model, two more: as four in one go."""
    whole, half = build(method, "unet"), build(method, "unet")
    train(whole, range(4))
    optimiser = train(half, range(2))
    saved = {k: v.clone() for k, v in half.state_dict().items()}
    resumed = build(method, "unet")
    resumed.load_state_dict(saved)
    again = torch.optim.AdamW([p for p in resumed.parameters() if p.requires_grad], lr=1e-3)
    again.load_state_dict(optimiser.state_dict())
    train(resumed, range(2, 4), optimiser=again)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("method", SSL)
def test_views_are_functions_of_the_seeds(method):
    """The same batch twice gives the same losses, bit for bit, whatever was drawn in between; other seeds, others."""
    model = build(method)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    first = model(batch())
    torch.rand(7)
    model.load_state_dict(state)
    again = model(batch())
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], v) for k, v in model(batch(step=1)).items())


@dataclass(frozen=True)
class Learns:
    """A method's own metric on views it was not trained on, from `chance` to at least `reached`."""

    metric: Callable[[Objective, Batch], float]
    chance: float
    reached: float
    steps: int
    encoder: str = "unet"
    lr: float = 2e-3
    count: int = 4


def explained(model, seen: Batch) -> float:
    """Share of the hidden variance."""
    return 1 - model(seen)["mae"].item()


LEARNS = {
    "mae3d": Learns(explained, chance=0.0, reached=0.1, steps=30, encoder="vit_b"),
}


@pytest.mark.parametrize("method", LEARNS)
def test_it_learns(method):
    """Untrained it is at chance; after so many steps its own metric on new views of the patients is well above."""
    row = LEARNS[method]
    model = build(method, row.encoder)
    seen = [batch(8, step=s) for s in (900, 901, 902, 903)]

    def measure() -> float:
        model.eval()
        with torch.no_grad():
            return sum(row.metric(model, b) for b in seen) / len(seen)

    before = measure()
    train(model, range(row.steps), count=row.count, lr=row.lr)
    after = measure()
    print(f"{method}: {before:.3f} -> {after:.3f}")
    assert before < row.chance + (row.reached - row.chance) / 2
    assert after > row.reached


def test_mae3d_hides_three_quarters_of_a_cube_of_96():
    from mg3d.objectives.mae3d import PAPER, VARIANTS, masked_error

    model = build("mae3d", "vit_b", shape=(128, 96, 128))
    volume, hidden = model.view(batch(2, shape=(128, 96, 128)))
    assert volume.shape == (2, 1, 96, 96, 96)
    assert hidden.shape == (2, 6, 6, 6)
    assert hidden.flatten(1).sum(1).tolist() == [162, 162]
    assert not torch.equal(hidden[0], hidden[1])
    assert (PAPER.mask_ratio, PAPER.layers, VARIANTS["released"].mask_ratio) == (0.75, 8, 0.125)
    target = torch.rand(2, 5, 64)
    asked = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 1]]).bool()
    wanted = (target - target.mean(-1, keepdim=True)) / (target.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(masked_error(torch.zeros_like(target), target, asked), wanted[asked].square().mean())
    changed = torch.where(asked[..., None], wanted, torch.tensor(9.0))  # what is seen does not count
    assert masked_error(changed, target, asked) < 1e-10


def test_mae3d_looks_at_nothing_hidden():
    model = build("mae3d", "vit_b").eval()
    volume, hidden = model.view(batch())
    changed = torch.where(encoders.voxels(hidden, volume.shape[2:]), 5.0, volume)
    torch.testing.assert_close(model.decode(changed, hidden), model.decode(volume, hidden))


def test_mae3d_needs_something_to_see():
    with pytest.raises(ValueError, match="1 patches"):
        build("mae3d", shape=(16, 16, 16))
