"""The six rivals that read reports: constants of the originals, gradients, padding, resume, and that each learns."""

import copy
import math

import pytest
import rivals
import torch
import torch.nn.functional as F

from mg3d import encoders, objectives
from mg3d.objectives.m3dclip import M3DCLIPConfig, augment
from mg3d.types import Batch
from mg3d.vlp import wrong_pairs

METHODS = ["ctclip", "m3dclip"]
SMALL = (16, 16, 16)


@pytest.fixture(scope="module")
def text():
    return rivals.Words()


def backward(model, losses) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_of_every_variant_learns(name):
    text = rivals.Words(torch.float64)  # so that rounding does not pass for a gradient
    for variant in objectives.METHODS[name].variants:
        model = rivals.method(name, text, variant=variant).double()
        losses = model(rivals.batch(text, dtype=torch.float64))
        assert all(x.isfinite() and x > 0 and x.shape == () for x in losses.values())
        still = [n for n, g in backward(model, losses).items() if g is None or g.abs().max() < 1e-12]
        assert not still, variant


@pytest.mark.parametrize("encoder", encoders.ENCODERS)
@pytest.mark.parametrize("name", METHODS)
def test_every_encoder(name, encoder, text):
    """A step with each encoder of the table, 48 wide: finite losses, a gradient to all of it."""
    shape = (32, 32, 64)
    torch.manual_seed(0)
    narrow = encoders.build(encoder, shrink=32 if encoder == "swin_l" else 16, shape=shape)
    model = rivals.method(name, text, encoder=narrow, shape=shape)
    losses = model(rivals.batch(text, shape=shape, part=slice(0, 2)))
    found = backward(model, losses)
    assert all(x.isfinite() for x in losses.values())
    assert all(g is not None and g.isfinite().all() for g in found.values())


@pytest.mark.parametrize("name", METHODS)
def test_without_reports_and_without_company(name, text):
    model, one = rivals.method(name, text), rivals.batch(text, part=slice(0, 1))
    losses = model(one)
    assert all(g is None or g.isfinite().all() for g in backward(model, losses).values())
    with pytest.raises(ValueError, match="this batch has none; take a corpus with reports"):
        model(Batch(one.volume, one.ids, one.seeds))
    assert objectives.METHODS[name].needs_reports


@pytest.mark.parametrize("name", METHODS)
def test_equal_bits_twice_and_after_a_resume(name, text):
    """Two steps, or one, a state dict into a fresh method, and another."""

    def step(model, optimiser, number):
        losses = model(rivals.batch(text, seed=number))
        backward(model, losses)
        optimiser.step()
        model.after_step()

    def start():
        model = rivals.method(name, text)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    model, optimiser = start()
    step(model, optimiser, 1)
    again, other = start()
    torch.manual_seed(99)
    again.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for m, o in ((model, optimiser), (again, other)):
        step(m, o, 2)
    a, b = model.state_dict(), again.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert "text" not in {key.split(".")[0] for key in a}


@pytest.mark.parametrize("name", ["ctclip", "m3dclip"])
def test_embeds_each_modality_alone(name, text):
    model, whole = rivals.method(name, text).eval(), rivals.batch(text)
    volume, said = model.embed(whole)
    mixed, mixed_said = model.embed(Batch(whole.volume.flip(0), whole.ids, whole.seeds, whole.report))
    torch.testing.assert_close(mixed.flip(0), volume)
    assert volume.shape == said.shape
    assert torch.equal(said, mixed_said)
    assert not volume.requires_grad


def recall(model, text) -> float:
    """Share of 32 unseen volumes whose nearest of the eight reports is their own: 1/8 by chance."""
    found = []
    for seed in range(900, 904):
        volume, said = (F.normalize(x, dim=-1) for x in model.embed(rivals.batch(text, seed=seed, shape=SMALL)))
        found.append((volume @ said.T).argmax(1) == torch.arange(8))
    return torch.cat(found).float().mean().item()


@pytest.mark.parametrize(("name", "variant", "steps"), [("ctclip", "paper", 80), ("m3dclip", "plain", 240)])
def test_contrast_learns(name, variant, steps, text):
    """0.125 by chance; 0.75 and more after a few seconds of training (measured 1.0)."""
    model = rivals.method(name, text, variant=variant, shape=SMALL)
    assert recall(rivals.trained(model, text, steps=steps, shape=SMALL), text) >= 0.75


def test_ctclip_is_the_original(text):
    """512 wide without biases, tokens averaged over the axial axis and flattened, a factor of e."""
    model, whole = rivals.method("ctclip", text), rivals.batch(text)
    assert (model.config.width, model.from_volume.bias, model.from_text.bias) == (512, None, None)
    assert model.tau.exp().item() == pytest.approx(math.e)
    assert model.from_volume.in_features == 4 * 4 * 24
    volume = model.encoder(whole.volume).levels[-1].mean(2).flatten(1) @ model.from_volume.weight.T
    said = text.word_features(whole.report)[:, 0] @ model.from_text.weight.T
    logits = math.e * F.normalize(volume, dim=-1) @ F.normalize(said, dim=-1).T
    expected = -(logits.log_softmax(0).diag() + logits.log_softmax(1).diag()).mean() / 2
    torch.testing.assert_close(model(whole)["clip"], expected)
    with pytest.raises(ValueError, match="variant='pooled'"):
        model(rivals.batch(text, shape=(32, 32, 64)))
    rivals.method("ctclip", text, variant="pooled")(rivals.batch(text, shape=(32, 32, 64)))


def test_m3dclip_is_the_original(text):
    """768 wide with biases; ln(1/0.07) is the factor itself, not its logarithm."""
    model, whole = rivals.method("m3dclip", text).eval(), rivals.batch(text)
    assert model.config.width == 768
    assert model.from_volume.bias is not None
    assert model.scale.item() == pytest.approx(2.659, abs=1e-3)
    volume, said = (F.normalize(x, dim=-1) for x in model.embed(whole))
    logits = 2.6593 * volume @ said.T
    expected = -(logits.log_softmax(0).diag() + logits.log_softmax(1).diag()).mean() / 2
    torch.testing.assert_close(model(whole)["clip"], expected, rtol=1e-4, atol=0)


def test_m3dclip_changes_volumes_by_their_seeds():
    """Shares of turned, mirrored, scaled and shifted volumes; a sample alone is changed as in company."""
    seeds, ramp = torch.arange(4000), torch.arange(8.0).view(1, 1, 2, 2, 2).expand(4000, -1, -1, -1, -1)
    c = M3DCLIPConfig(intensity=0.0)
    moved = augment(ramp, seeds, config=c)
    same = (moved == ramp).flatten(1).all(1).float().mean().item()
    assert same == pytest.approx(0.5 * 0.9**3 + 0.5 / 3 * 0.1**2 * 0.9, abs=0.03)
    lit = augment(torch.ones_like(ramp), seeds, config=M3DCLIPConfig(turn=0.0, mirror=0.0))
    assert (lit == 1).flatten(1).all(1).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert 0.15 < lit.amax() - 1 <= 0.2 + 1e-6
    assert torch.equal(augment(ramp[:3], seeds[7:10], config=c), moved[7:10])
    assert augment(torch.rand(2, 1, 4, 6, 8), seeds[:2], config=M3DCLIPConfig(turn=1.0)).shape == (2, 1, 4, 6, 8)
    with pytest.raises(ValueError, match="turn=2"):
        M3DCLIPConfig(turn=2.0)


@pytest.mark.parametrize("size", [2, 3, 8, 9])
def test_half_of_the_pairs_are_wrong(size):
    for start in range(20):
        seeds = torch.arange(size) + 50 * start
        volume, right = wrong_pairs(seeds)
        assert (~right).sum() == size // 2
        assert (volume[~right] != torch.arange(size)[~right]).all()
    assert wrong_pairs(torch.tensor([3]))[1].all()
