"""Attention against loops that spell out the equations, and padding that changes nothing."""

import math

import pytest
import torch
import torch.nn.functional as F

from mg3d.attention import (
    AttentionPool,
    CrossModalAttention,
    Fusion,
    SelfAttention,
    masked_mean,
    sentence_mean,
)

DOUBLE = torch.float64


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def make(kind, *args, **kwargs):
    torch.manual_seed(3)
    return kind(*args, **kwargs).double()


def twin(layer: CrossModalAttention, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """One sample [X, E], [Y, E], one head, in loops: Eq. 1 and 3 with all of [X, Y, E], or Eq. 11."""
    x, y = layer.norm_x(x), layer.norm_y(y)
    scale = math.sqrt(x.shape[1])
    rows = []
    if layer.mode == "classical":
        for i in range(len(x)):
            scores = torch.stack([layer.query(x[i]) @ layer.key(y[j]) / scale for j in range(len(y))])
            rows.append(sum(p * layer.value(y[j]) for j, p in enumerate(scores.softmax(0))))
        return torch.stack(rows)
    gate = torch.zeros(len(y), len(x), dtype=DOUBLE)
    for j in range(len(y)):
        scores = torch.stack([layer.query(y[j]) @ layer.key(x[i]) / scale for i in range(len(x))])
        gate[j] = scores.softmax(0) if layer.gate == "softmax" else scores.sigmoid()
    for i in range(len(x)):
        informed = [gate[j, i] * layer.value(x[i]) for j in range(len(y))]  # of each sentence by itself
        rows.append(sum(informed) / len(y))
    return torch.stack(rows)


FORMS = [("ours", "softmax"), ("ours", "sigmoid"), ("classical", "softmax")]


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(("mode", "gate"), FORMS)
def test_cross_modal_attention_equals_its_equation(mode, gate, normed):
    layer = make(CrossModalAttention, 6, mode=mode, gate=gate, normed=normed)
    x, y = rand(2, 5, 6), rand(2, 3, 6, seed=1)
    counts_x, counts_y = [5, 3], [2, 3]
    x_real, y_real = (torch.arange(n) < torch.tensor(c)[:, None] for n, c in ((5, counts_x), (3, counts_y)))
    out, maps = layer(x, y, x_real=x_real, y_real=y_real)
    for b in range(2):
        wanted = twin(layer, x[b, : counts_x[b]], y[b, : counts_y[b]])
        torch.testing.assert_close(out[b, : counts_x[b]], wanted)
    assert maps.shape == ((2, 1, 3, 5) if mode == "ours" else (2, 1, 5, 3))
    keys = x_real if mode == "ours" else y_real
    assert maps.masked_select(~keys[:, None, None]).eq(0).all()
    if gate == "softmax":
        torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps.sum(-1)))


@pytest.mark.parametrize("heads", [1, 3])
def test_classical_attention_equals_torch(heads):
    layer = make(CrossModalAttention, 6, mode="classical", heads=heads, normed=False)
    x, y = rand(2, 5, 6), rand(2, 4, 6, seed=1)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (layer.query(x), layer.key(y), layer.value(y)))
    wanted = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(x, y)[0], wanted)


def test_ours_weighs_ones_own_values():
    """Two tokens, one sentence that looks at the first with weight 3/4: the numbers of Eq. 1 by hand."""
    layer = make(CrossModalAttention, 2, normed=False)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        layer.query.weight.copy_(torch.eye(2))
        layer.key.weight.copy_(torch.eye(2))
        layer.value.weight.copy_(torch.eye(2))
    x = torch.tensor([[[1.0, 0], [0, 1]]], dtype=DOUBLE)
    y = torch.tensor([[[math.sqrt(2) * math.log(3), 0]]], dtype=DOUBLE)
    out, maps = layer(x, y)
    torch.testing.assert_close(maps[0, 0, 0], torch.tensor([0.75, 0.25], dtype=DOUBLE))
    torch.testing.assert_close(out[0], torch.tensor([[0.75, 0], [0, 0.25]], dtype=DOUBLE))
    out, _ = layer(x, torch.cat([y, 0 * y], 1))  # a second sentence that looks nowhere: the mean of both gates
    torch.testing.assert_close(out[0], torch.tensor([[0.625, 0], [0, 0.375]], dtype=DOUBLE))


def test_a_single_pooled_key_gives_all_sentences_one_vector():
    """Why Eq. 11 is read with token keys: with one key every sentence sees the same, whatever it says."""
    layer = make(CrossModalAttention, 6, mode="classical")
    out, _ = layer(rand(1, 4, 6), rand(1, 1, 6, seed=1))
    torch.testing.assert_close(out, out[:, :1].expand_as(out))
    out, _ = layer(rand(1, 4, 6), rand(1, 5, 6, seed=1))
    assert (out - out[:, :1])[:, 1:].abs().max() > 1e-3


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("mode", "gate"), FORMS)
def test_fusion_does_not_see_padding(mode, gate, plain):
    fusion = make(Fusion, 8, layers=2, mode=mode, gate=gate, heads=2, self_heads=4, plain=plain)
    x, y = rand(2, 5, 8), rand(2, 3, 8, seed=1)
    x_real, y_real = (
        torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool(),
        torch.tensor([[1, 1, 0], [1, 1, 1]]).bool(),
    )
    out, maps = fusion(x, y, x_real=x_real, y_real=y_real)
    more_x, more_y = F.pad(x, (0, 0, 0, 2), value=50.0), F.pad(y, (0, 0, 0, 4), value=-50.0)
    more = {"x_real": F.pad(x_real, (0, 2)), "y_real": F.pad(y_real, (0, 4))}
    again, wide = fusion(more_x, more_y, **more)
    torch.testing.assert_close(again[:, :5][x_real], out[x_real], rtol=1e-12, atol=1e-12)
    queries, keys = maps.shape[-2:]
    torch.testing.assert_close(wide[..., :queries, :keys][0], maps[0], rtol=1e-12, atol=1e-12)
    assert maps.shape[:3] == (2, 2, 2)
    alone, _ = fusion(x[1:, :3], y[1:])
    torch.testing.assert_close(alone[0], out[1, :3], rtol=1e-12, atol=1e-12)


def test_released_fusion_is_gates_alone():
    """x_i <- W_V x_i mean_j sigmoid(...), twice: no residual, no norm, no feed-forward."""
    fusion = make(Fusion, 6, layers=2, gate="sigmoid", plain=True)
    x, y = rand(1, 5, 6), rand(1, 3, 6, seed=1)
    wanted = x[0]
    for layer in fusion.layers:
        wanted = twin(layer.cross, wanted, y[0])
    torch.testing.assert_close(fusion(x, y)[0][0], wanted)
    assert {n.split(".")[-2] for n, _ in fusion.named_parameters()} == {"query", "key", "value"}


def test_self_attention_equals_torch():
    layer = make(SelfAttention, 8, heads=2)
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        reference.in_proj_weight.copy_(layer.qkv.weight)
        reference.out_proj.weight.copy_(layer.out.weight)
        reference.out_proj.bias.copy_(layer.out.bias)
    x, real = rand(2, 5, 8), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    wanted, _ = reference(x, x, x, key_padding_mask=~real)
    torch.testing.assert_close(layer(x, real)[real], wanted[real])


def test_attention_pool_equals_its_twin():
    """CLIP's: the mean token asks itself and the tokens; order and padding do not matter."""
    pool = make(AttentionPool, 8, heads=2)
    x, real = rand(2, 4, 8), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    found = pool(x, real)
    for b, n in enumerate((4, 2)):
        tokens = torch.cat([x[b, :n].mean(0, keepdim=True), x[b, :n]])
        q, k, v = pool.query(tokens[:1]), pool.key(tokens), pool.value(tokens)
        heads = [
            (q[:, s] @ k[:, s].T / 2).softmax(-1) @ v[:, s]  # sqrt(4) channels a head
            for s in (slice(0, 4), slice(4, 8))
        ]
        torch.testing.assert_close(found[b], pool.out(torch.cat(heads, 1))[0])
    torch.testing.assert_close(pool(x[:1].flip(1)), found[:1])
    torch.testing.assert_close(pool(F.pad(x, (0, 0, 0, 3), value=9.0), F.pad(real, (0, 3))), found)


def test_sentence_mean_equals_its_twin():
    features = rand(2, 6, 3)
    sentence = torch.tensor([[-1, 0, 0, 1, 2, -1], [-1, 1, 1, 1, -1, -1]])
    found = sentence_mean(features, sentence, 4)
    for b in range(2):
        for s in range(4):
            words = [features[b, i] for i in range(6) if sentence[b, i] == s]
            torch.testing.assert_close(found[b, s], sum(words) / len(words) if words else torch.zeros(3, dtype=DOUBLE))
    half = features.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = sentence_mean(half, sentence, 4)
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept, sentence_mean(half.float(), sentence, 4))


def test_masked_mean():
    x = torch.tensor([[[1.0], [3], [100]], [[7], [7], [7]]])
    real = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(x, real).tolist() == [[2], [0]]
    torch.testing.assert_close(masked_mean(x), x.mean(1))


def test_nothing_to_attend_to_gives_no_nan():
    """A sample without sentences: zeros where they would speak, and a gradient for the others."""
    x, y = rand(2, 4, 8).requires_grad_(), rand(2, 3, 8, seed=1)
    none = torch.tensor([[1, 1, 1], [0, 0, 0]]).bool()
    for out in (
        make(Fusion, 8, layers=1)(x, y, y_real=none)[0],
        make(Fusion, 8, layers=1, mode="classical")(x, y, y_real=none)[0],
        make(Fusion, 8, layers=1)(y, x, x_real=none)[0],
        make(AttentionPool, 8)(y * x[:, :1], none),
    ):
        out.sum().backward()
        assert out.isfinite().all()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", [CrossModalAttention, SelfAttention, AttentionPool])
def test_heads_must_divide_the_width(kind):
    with pytest.raises(ValueError, match="3 heads do not divide the width 8"):
        kind(8, heads=3)


def test_nobody_defines_a_classical_sigmoid():
    with pytest.raises(ValueError, match="classical"):
        CrossModalAttention(8, mode="classical", gate="sigmoid")


@pytest.mark.parametrize("mode", ["ours", "classical"])
def test_autocast(mode):
    fusion = make(Fusion, 8, mode=mode).float()
    x, y, real = rand(2, 4, 8).float(), rand(2, 3, 8, seed=1).float(), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    wanted, _ = fusion(x, y, y_real=real)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = fusion(x, y, y_real=real)
    assert (found.float() - wanted).abs().max() < 0.05
