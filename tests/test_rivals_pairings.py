"""The pairings of method and encoder in Tables I and II: what pre-training keeps is what a study starts from.

That a step of each is finite, with gradients, and that training resumes: test_rivals_ssl, test_rivals_vlp, test_mg3d.
"""

import pytest
import rivals
import torch
from safetensors.torch import save_file

from mg3d import encoders
from mg3d.encoders.weights import load_weights
from mg3d.recipe import SCALES, SMALLER
from mg3d.tables import TABLES
from mg3d.tasks.classify import Classify

PAIRINGS = sorted({(row.method, row.encoder) for table in ("I", "II") for row in TABLES[table].rows.values()})
SHAPE = (64, 64, 64)


@pytest.mark.parametrize(("method", "encoder"), PAIRINGS)
def test_the_encoder_alone_starts_a_study(method, encoder, tmp_path):
    """Every tensor of the file finds its place in a fresh encoder, no other is in it, and a task computes with it."""
    torch.manual_seed(0)
    trained = rivals.method(method, rivals.Words(), encoder=thin(encoder), shape=SHAPE).encoder
    save_file(trained.state_dict(), tmp_path / "encoder.safetensors")
    fresh = thin(encoder)
    loaded = load_weights(fresh, tmp_path / "encoder.safetensors")
    assert loaded.fraction == 1
    assert not loaded.unexpected
    kept = Classify(fresh, names=("no", "yes")).encoder.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize("scale", SMALLER)
@pytest.mark.parametrize(("method", "encoder"), PAIRINGS)
def test_every_term_teaches_the_encoder_at_small_scales(method, encoder, scale):
    """Volumes of few tokens leave no term without a gradient, as a norm over a single voxel would."""
    torch.manual_seed(0)
    words, shape = rivals.Words(), SCALES[scale].shape
    model = rivals.method(method, words, encoder=thin(encoder, shape), shape=shape)
    weights = [p for p in model.encoder.parameters() if p.requires_grad]
    for name, loss in model(rivals.batch(words, shape=shape, part=slice(0, 2))).items():
        found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        assert max((g.abs().max().item() for g in found if g is not None), default=0) > 1e-9, name


def thin(encoder: str, shape: tuple[int, int, int] = SHAPE) -> encoders.Encoder:
    """A sixteenth as wide."""
    return encoders.build(encoder, shrink=16, shape=shape)
