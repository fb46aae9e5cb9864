"""The MG-3D objective: every variant computes its terms, trains all it has, and does not see padding or parts."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from mg3d import objectives
from mg3d.attention import Placed
from mg3d.encoders import Encoder, hide
from mg3d.objectives.mg3d import MG3D, OURS, TERMS, VARIANTS, MG3DConfig
from mg3d.types import Batch, Pyramid, Report

SHAPE = (32, 16, 32)
VOCABULARY = 40
BLIND = ("only-mlm", "only-sfr", "only-clip")  # no text asks the volume


class Toy(Encoder):
    """Three convolutions, strides 2, 4 and 8; a fourth where a variant wants so many levels."""

    def __init__(self, levels: int = 3):
        super().__init__()
        self.widths, self.strides = (8, 8, *[16] * (levels - 2)), tuple(2 ** (i + 1) for i in range(levels))
        self.layers = nn.ModuleList(nn.Conv3d(a, b, 2, 2) for a, b in pairwise((1, *self.widths)))

    def forward(self, volume, mask=None):
        first, *others = self.layers
        maps = [first(hide(volume, mask)).relu()]
        for layer in others:
            maps.append(layer(maps[-1]).tanh())
        return Pyramid(tuple(maps))


class ToyText(nn.Module):
    """An embedding, mixed with the mean of its row: words know their report, padding changes nothing."""

    width, vocabulary, mask_id = 12, VOCABULARY, 3

    def __init__(self, dtype=torch.float32):
        super().__init__()
        table = torch.randn(VOCABULARY, self.width, generator=torch.Generator().manual_seed(5))
        self.table = nn.Parameter(table.to(dtype), requires_grad=False)
        self.calls = 0

    def forward(self, words):
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
    levels = max(3, -VARIANTS.get(variant, VARIANTS["paper"]).level)
    return objectives.build("mg3d", encoder=Toy(levels), text=text, variant=variant, shape=SHAPE, **overrides)


def gradients(model, losses) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns(variant):
    """A variant computes the terms that weigh something, and leaves nothing that it built without a gradient."""
    model = build(variant, text=ToyText(torch.float64)).double()  # so that rounding does not pass for a gradient
    losses = model(batch(dtype=torch.float64))
    assert list(losses) == [t for t in (*TERMS, *OURS) if getattr(model.config, t)]
    assert all(x.isfinite() and x > 0 for x in losses.values())
    still = [name for name, grad in gradients(model, losses).items() if grad.abs().max() < 1e-13]
    # one key: its weight is 1 whoever asks, all sentences of a patient get one vector, and a pool over equals is a mean
    idle = {f"{m}.{p}" for m in ("specific", "pool_specific") for p in ("query.weight", "query.bias", "key.weight")}
    idle |= {"specific.norm_x.weight", "specific.norm_x.bias"}
    assert set(still) == (idle if variant == "pooled" else set())


@pytest.mark.parametrize("variant", ["paper", "released", "word", "plus"])
def test_parts_give_the_gradient_of_the_whole(variant):
    """Two halves, padded differently, with a gather that joins their features, against one batch of four.

    First each half's features are noted, then every gather of a half returns both halves' features: its own with a
    gradient to itself, the other's as they are. The gradients of the halves add up to that of the whole.
    """
    if variant == "released":  # a mask for the batch depends on the batch: take it out of the comparison
        model = build(variant, text=ToyText(torch.float64), mask_shared=False).double()
    else:
        model = build(variant, text=ToyText(torch.float64)).double()
    whole = model(batch(dtype=torch.float64))
    wanted = gradients(model, whole)
    halves = [batch(part=slice(0, 2), dtype=torch.float64), batch(part=slice(2, 4), dtype=torch.float64)]
    assert halves[0].report.alone.shape[1] < halves[1].report.alone.shape[1]

    seen: list[list[torch.Tensor]] = [[], []]
    for half, notes in zip(halves, seen, strict=True):
        model.gather = lambda x, notes=notes: notes.append(x.detach()) or x
        model(half)

    def gather(rank):
        others = iter(seen[1 - rank])

        def join(x):
            other = next(others)
            pair = [x, other] if rank == 0 else [other, x]
            longest = max(t.shape[1] for t in pair)
            pad = [torch.nn.functional.pad(t, (0, 0) * (t.dim() - 2) + (0, longest - t.shape[1])) for t in pair]
            return torch.cat(pad)

        return join

    found: dict[str, torch.Tensor] = {}
    parts = []
    for rank, half in enumerate(halves):
        model.gather = gather(rank)
        losses = model(half)
        parts.append({k: v.detach() for k, v in losses.items()})
        local = {k: v / 2 for k, v in losses.items() if k in ("mim", "mlm", "sfr")}  # means over patients
        shared = {k: v for k, v in losses.items() if k not in local}
        for name, grad in gradients(model, local | shared).items():
            found[name] = found.get(name, 0) + grad
    for name in whole:
        torch.testing.assert_close(
            torch.stack([p[name] for p in parts]).mean(), whole[name].detach(), rtol=1e-10, atol=0
        )
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-7, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("variant", ["paper", "released", "word", "classical", "pooled"])
def test_padding_changes_nothing(variant):
    model = build(variant, text=ToyText(torch.float64)).double()
    plain, padded = (model(batch(dtype=torch.float64, **more)) for more in ({}, {"longer": 5, "more": 3}))
    for name in plain:
        torch.testing.assert_close(padded[name], plain[name], rtol=1e-10, atol=0)
    a, b = gradients(model, plain), gradients(model, padded)
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_same_batch_twice_gives_the_same_bits(variant):
    model = build(variant)
    first, second = model(batch()), model(batch())
    assert all(torch.equal(first[k], second[k]) for k in first)
    a, b = gradients(model, first), gradients(model, second)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert all(torch.equal(p, q) for p, q in zip(build(variant).parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("variant", ["paper", "released", "word"])
def test_every_loss_falls(variant):
    """Forty steps of AdamW on one batch."""
    model, same = build(variant), batch()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(40):
        losses = model(same)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        history.append({k: v.item() for k, v in losses.items()})
    for name, first in history[0].items():
        assert history[-1][name] < 0.95 * first, (name, first, history[-1][name])


def test_losses_are_weighted():
    plain, half = build()(batch()), build(sfr=0.05, mim=0.5)(batch())
    for name in plain:
        factor = 0.5 if name in ("sfr", "mim") else 1
        torch.testing.assert_close(half[name], factor * plain[name])


def test_a_term_without_weight_costs_nothing():
    """Neither its modules nor its passes: only MIM, and the encoder runs once; without MLM and SFR no masked words."""
    model = build("intra", mlm=0.0, sfr=0.0, cml=0.0)
    names = {n.split(".")[0] for n, _ in model.named_parameters()}
    assert names == {"encoder", "from_volume", "from_text", "volume_fusion", "voxel_decoder"}
    passes = []
    model.encoder.register_forward_hook(lambda *_: passes.append(1))
    model(batch())
    assert len(passes) == 1
    assert model.text.calls == 0
    whole = build()
    whole.encoder.register_forward_hook(lambda *_: passes.append(1))
    whole(batch())
    assert len(passes) == 3  # two more: once whole, once masked
    assert whole.text.calls == 1  # the masked words; all else is constant


def test_finer_tokens_know_the_coarser_cells_they_lie_in():
    """A change of the coarsest cells alone reaches every token of the cell, and only those."""
    model, whole = build("fine"), batch()
    before, local, (d, h, w) = model._seen(whole)

    def bump(_, __, pyramid):
        coarsest = pyramid.levels[-1].clone()
        coarsest[:, :, 0, 0, 0] += 1
        return Pyramid((*pyramid.levels[:-1], coarsest))

    handle = model.encoder.register_forward_hook(bump)
    after, alone, _ = model._seen(whole)
    handle.remove()
    assert torch.equal(alone, local)
    changed = ((after - before).abs().amax((0, 2)) > 0).unflatten(0, (d, h, w))
    assert changed[:4, :4, :4].all()
    assert changed.sum() == 64


def test_training_volumes_move_where_the_variant_says_so():
    """By the seed of the sample, in training alone."""
    model, still = build(jitter=True), build()
    seen = [model(batch())["mim"].item(), model(batch())["mim"].item()]
    assert seen[0] == seen[1] != still(batch())["mim"].item()
    assert model.eval()(batch())["mim"].item() == still.eval()(batch())["mim"].item()


def test_sharp_scores_make_maps_that_choose():
    maps = [build(sharp=sharp).maps(batch())[0][:, -1] for sharp in (1.0, 20.0)]
    logs = [m[0, 0, 0].log() for m in maps]
    assert torch.allclose((logs[1] - logs[1].mean()) / 20, logs[0] - logs[0].mean(), atol=1e-5)


def test_the_text_encoder_is_no_part_of_the_model():
    model = build()
    assert "text" not in {name.split(".")[0] for name in model.state_dict()}
    assert all(model.text is not module for module in model.modules())


@pytest.mark.parametrize("variant", BLIND)
def test_no_maps(variant):
    with pytest.raises(ValueError, match="no attention from text to volume tokens"):
        build(variant).maps(batch())


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in BLIND])
def test_maps(variant):
    model = build(variant)
    maps, grid = model.maps(batch())
    shape = (4, 2, 4) if model.config.level == -1 else (16, 8, 16)
    sentences, tokens = 4, shape[0] * shape[1] * shape[2]
    config = model.config
    asks = model.needs_specific and config.query == "sentence" and config.keys != "pooled"
    layers = 2 * model.needs_volume_fusion + asks
    assert maps.shape == (4, layers, 1, sentences, tokens)
    assert grid == shape
    assert not maps.requires_grad
    exists = batch().report.sentences[:, None, None, :, None].expand_as(maps)
    assert maps[exists].min() >= 0
    if config.mim_attention == "ours" and config.gate == "softmax":
        torch.testing.assert_close(maps.sum(-1)[exists[..., 0]], torch.ones(exists[..., 0].sum()))
    if config.mim_attention == "classical" and config.guidance == "sentence":
        torch.testing.assert_close(maps[:, :2].sum(-2), torch.ones(4, 2, 1, tokens))


def test_the_last_map_is_that_of_equation_11():
    model, whole = build(), batch()
    maps, _ = model.maps(whole)
    _, own = model._specific(model._told(whole), model._seen(whole))
    torch.testing.assert_close(maps[:, -1], own)


def test_placed_keys_see_what_lies_there_and_where():
    """Of a chest that looks the same everywhere, only they can tell one place from another."""
    same = batch()
    same.volume[:] = 0.5
    for keys, differ in (("local", False), ("placed", True)):
        model = build("no-mim", cml=0.0, keys=keys, sharp=6.0)
        maps = model.maps(same)[0][0, -1, 0, 0]
        assert (maps.std() > 1e-3 * maps.mean()) == differ
    placed = model._places(model._seen(same))
    assert len({tuple(token.tolist()) for token in placed[0]}) == placed.shape[1]


def test_places_are_shares_of_the_grid():
    """A finer grid has the same waves, read at more places."""
    placed = Placed(8)
    coarse, fine = (placed(torch.zeros(1, n * 5 * 2, 8), (n, 5, 2)).unflatten(1, (n, 5, 2)) for n in (3, 9))
    torch.testing.assert_close(fine[:, 1::3], coarse)


def test_maps_of_words_are_means_over_sentences():
    model = build("word", mim_attention="ours")
    whole = batch()
    maps, _ = model.maps(whole)
    told = model._told(whole)
    _, words = model.volume_fusion(model._seen(whole).tokens, told.clues, y_real=told.real)
    second = whole.report.sentence[1] == 1
    torch.testing.assert_close(maps[1, :, :, 1], words[1][:, :, second].mean(2))


def test_maps_without_volume_fusion_are_those_of_equation_11():
    model = build("no-mim", cml=0.0)
    maps, _ = model.maps(batch())
    assert maps.shape == (4, 1, 1, 4, 32)
    torch.testing.assert_close(maps.sum(-1), torch.ones(4, 1, 1, 4))
    with pytest.raises(ValueError, match="mim, cml or ssm"):
        build("intra", mim=0.0, cml=0.0).maps(batch())


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_of_volume_and_report_do_not_know_each_other(variant):
    model = build(variant)
    if not (model.config.cml or model.config.clip):
        with pytest.raises(ValueError, match="give cml or clip a weight"):
            model.embed(batch())
        return
    whole = batch()
    volume, text = model.embed(whole)
    other = batch(TEXTS[::-1])
    mixed_volume, mixed_text = model.embed(other)
    assert volume.shape == text.shape
    assert torch.equal(volume, mixed_volume)
    torch.testing.assert_close(text, mixed_text.flip(0))
    assert not torch.allclose(text[0], text[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_under_autocast(variant):
    """bfloat16 features, float32 losses near those of full precision."""
    model = build(variant)
    wanted = model(batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(batch())
    for name in wanted:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], wanted[name], rtol=0.1, atol=0.02)
    assert all(g.isfinite().all() for g in gradients(model, found).values())


def test_a_single_patient():
    """A batch of one has nobody to compare with, and trains on the rest."""
    model = build()
    losses = model(batch(part=slice(0, 1)))
    assert losses["cml"] == losses["ssm"] == losses["dfa"] == 0
    assert all(g.isfinite().all() for g in gradients(model, losses).values())


def test_refusals():
    with pytest.raises(ValueError, match="this batch has none"):
        build()(Batch(batch().volume, ("a",) * 4, torch.arange(4)))
    with pytest.raises(ValueError, match="one token at stride 8"):
        objectives.build("mg3d", encoder=Toy(), text=ToyText(), shape=(8, 8, 8))
    with pytest.raises(ValueError, match="level=-9, but the encoder has"):
        build(level=-9)
    with pytest.raises(ValueError, match="did you mean 'mg3d'"):
        objectives.build("mg3b", encoder=Toy(), text=ToyText(), shape=SHAPE)
    with pytest.raises(ValueError, match="variant of mg3d 'no-ssn'"):
        build("no-ssn")
    with pytest.raises(ValueError, match="field of MG3DConfig 'tua'"):
        build(tua=0.1)
    with pytest.raises(ValueError, match="frozen text encoder"):
        objectives.build("mg3d", encoder=Toy(), text=None, shape=SHAPE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mim", -1.0),
        ("ssm", float("nan")),
        ("mask_ratio", 1.0),
        ("tau", 0.0),
        ("layers", 0),
        ("level", 0),
        ("clip", -0.1),
    ],
)
def test_config_refuses(field, value):
    with pytest.raises(ValueError, match=f"{field}="):
        MG3DConfig(**{field: value})


def test_config_lists_what_is_valid():
    with pytest.raises((ValueError, TypeError), match=r"'?sentence'?, '?word"):
        MG3DConfig(guidance="letter")
    with pytest.raises(ValueError, match="every weight is 0"):
        MG3DConfig(**dict.fromkeys(TERMS, 0.0))


def test_reconstruct_is_what_mim_scores():
    model, one = build(mim=1.0), batch()
    rebuilt, hidden = model.reconstruct(one)
    torch.testing.assert_close((rebuilt - one.volume).square().mean(), model(one)["mim"])
    assert hidden.float().mean() == 0.5
    with pytest.raises(ValueError, match="rebuilds no volume"):
        build("no-mim").reconstruct(one)


def test_with_a_real_text_encoder():
    """The frozen encoder and the tokeniser that training uses: every term learns, the text does not."""
    from mg3d.encoders.text import load_text
    from mg3d.text import Tokeniser

    text = load_text("tiny")
    assert isinstance(text, objectives.TextEncoder)
    model = build(text=text)
    said = ["No pleural effusion. A nodule of 6 mm in the right upper lobe.", "The heart is enlarged.", "Normal lungs."]
    volumes = batch().volume[:3]
    same = Batch(volumes, ("a", "b", "c"), torch.arange(3), Tokeniser(text.tokenizer, max_words=64)(said))
    losses = model(same)
    assert list(losses) == list(TERMS)
    assert all(g is not None and g.isfinite().all() for g in gradients(model, losses).values())
    assert not text(same.report.words).requires_grad
    assert model.maps(same)[0].shape == (3, 3, 1, 2, 32)
