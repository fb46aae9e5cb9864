"""Methods that read no reports: their constants, a step with every encoder, resumption, learning."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import rivals
import torch
import torch.nn.functional as F

from mg3d import encoders, objectives, pairs, puzzles, views
from mg3d.encoders import ENCODERS
from mg3d.objectives import METHODS, Objective
from mg3d.types import Batch

SSL = [name for name in ("mae3d", "swinunetr", "jigsaw", "pcrlv2", "swinmm", "pcrlv1", "rubikpp") if name in METHODS]
SHAPE = (48, 36, 48)
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


def build(method: str, encoder: str = "vit_b", *, shape=SHAPE, shrink: int = SHRINK, variant: str = "", **overrides):
    torch.manual_seed(0)
    backbone = encoders.build(encoder, shrink=shrink, shape=shape)
    return objectives.build(method, encoder=backbone, text=None, variant=variant, shape=shape, **overrides)


def train(model: Objective, steps: range, *, count=2, lr=1e-3, shape=SHAPE, optimiser=None, fresh=False):
    """AdamW on other views of the same patients, or of `fresh` ones at each step; returns the optimiser."""
    optimiser = optimiser or torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    for step in steps:
        optimiser.zero_grad()
        torch.stack(
            list(model(batch(count, seed=fresh * (1000 + step), step=step, shape=shape)).values())
        ).sum().backward()
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
    assert {n for n, p in learns.items() if not p.grad.any()} <= idle(method)


def idle(method: str) -> set[str]:
    """Parameters whose gradient may be zero here: PCRLv2 draws one of its three side maps for each of two patients."""
    return {f"maps.{i}.{p}" for i in range(3) for p in ("weight", "bias")} if method == "pcrlv2" else set()


@pytest.mark.parametrize("method", SSL)
@pytest.mark.parametrize("shape", [(37, 35, 41), (33, 40, 33)])
def test_odd_sizes(method, shape):
    losses = build(method, shape=shape)(batch(shape=shape))
    assert all(x.isfinite() for x in losses.values())


@pytest.mark.parametrize("method", SSL)
def test_training_resumes_bit_for_bit(method):
    """Two steps, all that a checkpoint holds into a fresh model, two more: as four in one go."""
    whole, half = build(method), build(method)
    train(whole, range(4))
    optimiser = train(half, range(2))
    saved = {k: v.clone() for k, v in half.state_dict().items()}
    resumed = build(method)
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
    """A method's own metric on patients and views that it was not trained on, from `chance` to at least `reached`."""

    metric: Callable[[Objective, Batch], float]
    chance: float
    reached: float
    steps: int
    count: int = 4


def explained(model, seen: Batch) -> float:
    """Share of the hidden variance."""
    return 1 - model(seen)["mae"].item()


def rotation(model, seen: Batch) -> float:
    return model.rotation_accuracy(seen)


def order(model, seen: Batch) -> float:
    return model.accuracy(seen)


def riddles(model, seen: Batch) -> float:
    """Right answers on turns and masks beyond always saying no, as a share of the most there can be."""
    found = model.accuracy(seen)
    return (sum(found[k] for k in ("hor", "ver", "mask")) - 2 * 2 / 3 - 0.5) / (3 - 2 * 2 / 3 - 0.5)


def rebuilt(model, seen: Batch) -> float:
    """Share of the variance of a cube that is rebuilt where it was hidden."""
    return 1 - model(seen)["rebuilt"].item()


def told_how_to_turn(model, seen: Batch) -> float:
    """How much less PCRLv1's restoration errs when it is told how the crop is turned than when it is told wrong."""
    x = model.views(seen)
    levels, flips, turns = model.encoder(x.seen[0]), x.flips[0], x.turns[0]
    target = views.turn(views.flip(x.clean[0], flips), turns)
    told = (flips, turns), (~flips, (turns + 1) % 4)
    right, wrong = (F.mse_loss(model.restore(x.seen[0], levels, *code), target) for code in told)
    return (1 - right / wrong).item()


def test_pcrlv1_learns_to_turn():
    """Untrained it errs alike whatever it is told; after 160 steps a tenth less when told right (measured 0.18)."""
    shape = (32, 32, 32)
    torch.manual_seed(0)
    model = objectives.build("pcrlv1", encoder=rivals.Toy(), text=None, shape=shape)
    seen = batch(32, seed=1, step=900, shape=shape)
    with torch.no_grad():
        assert abs(told_how_to_turn(model.eval(), seen)) < 0.01
    train(model, range(160), count=4, lr=1e-2, shape=shape, fresh=True)
    with torch.no_grad():
        assert told_how_to_turn(model.eval(), seen) > 0.1


def test_pcrlv2_learns_to_restore():
    """A twelfth and more of a crop's variance after 80 steps; 0 is its mean grey value, told by nobody (measured 0.16).

    The restoration by itself: of a batch of 4 the comparison's gradient is 15 times as long, and mostly noise.
    """
    shape = (32, 32, 32)
    torch.manual_seed(0)
    model = objectives.build("pcrlv2", encoder=rivals.Toy(), text=None, shape=shape, compared=0.0, local=0.0)
    train(model, range(80), count=4, lr=3e-3, shape=shape, fresh=True)
    seen = batch(32, seed=1, step=900, shape=shape)
    (shown, target), *_ = pairs.large_and_small(seen.volume, seen.seeds, least=0.3, count=1, stride=8)
    with torch.no_grad():
        (*_, rebuilt), *_ = model.eval().scales(shown)
    error = (rebuilt.sigmoid() - target).square().mean()
    assert 1 - error / target.var((1, 2, 3, 4), correction=0).mean() > 0.08


LEARNS = {
    "swinmm": Learns(rebuilt, chance=0.0, reached=0.15, steps=40),
    "mae3d": Learns(explained, chance=0.0, reached=0.1, steps=30),
    "swinunetr": Learns(rotation, chance=0.25, reached=0.35, steps=60),
    "jigsaw": Learns(order, chance=0.01, reached=0.1, steps=40, count=8),
    "rubikpp": Learns(riddles, chance=0.0, reached=0.1, steps=40, count=8),
}


@pytest.mark.parametrize("method", LEARNS)
def test_it_learns(method):
    """Untrained it is at chance; soon its own metric on patients and views that it never saw is well above."""
    row = LEARNS[method]
    shape = (32, 32, 32)
    model, seen = build(method, shape=shape), batch(16, seed=1, step=900, shape=shape)

    def measure() -> float:
        model.eval()
        with torch.no_grad():
            return row.metric(model, seen)

    before = measure()
    train(model, range(row.steps), count=row.count, shape=shape)
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


def test_swinunetr_turns_and_corrupts_cubes_of_96():
    from mg3d.objectives.swinunetr import PAPER

    model = build("swinunetr", shape=(128, 96, 128))
    whole = batch(2, shape=(128, 96, 128))
    clean, corrupted, turns = model.views(whole)
    assert clean.shape == corrupted.shape == (2 * 2 * 2, 1, 96, 96, 96)  # volumes, cubes, views
    assert (PAPER.crops, PAPER.tau, PAPER.features, PAPER.drop) == (2, 0.5, 512, 0.3)
    assert (PAPER.rotation, PAPER.contrast, PAPER.inpainting) == (1.0, 1.0, 1.0)
    assert set(turns.tolist()) <= {0, 1, 2, 3}
    first, second = (torch.stack([x.rot90(-int(k), (2, 3)) for x, k in zip(v, t, strict=True)])
                     for v, t in zip(clean.chunk(2), turns.chunk(2), strict=True))  # fmt: skip
    assert torch.equal(first, second)  # two views of a cube differ by their turns alone
    changed = (corrupted != clean).flatten(1).float().mean(1)
    assert 0 < changed.max() <= 0.62
    part = Batch(whole.volume[1:2], whole.ids[1:2], whole.seeds[1:2])  # a volume's views are its own
    assert torch.equal(model.views(part)[1], corrupted[1::2])


def test_boxes_cover_up_to_their_share():
    found = views.boxes(torch.arange(64), (40, 30, 50), stream=1).flatten(1).float().mean(1)
    assert found.max() < 0.31
    assert 0.08 < found.mean() < 0.16  # U(0, 0.3), less what boxes share
    field = views.gaussian(torch.arange(3), (20, 20, 20))
    assert (field.amin((1, 2, 3, 4)) == 0).all()
    assert (field.amax((1, 2, 3, 4)) == 1).all()
    z = (field - field.mean()) / field.std()
    assert abs((z.abs() < 1).float().mean() - 0.683) < 0.03


def test_swinmm_hides_half_and_puts_back_what_it_swapped():
    from mg3d.objectives.swinmm import PAPER, hidden_error

    model = build("swinmm", shape=(128, 96, 128))
    clean, mask, turns, which = model.views(batch(2, shape=(128, 96, 128)))
    assert clean.shape == (2 * 2 * 2, 1, 64, 64, 64)
    assert mask.flatten(1).sum(1).tolist() == [32] * 8  # of 4^3 blocks
    assert set(turns.tolist()) <= {0, 1, 2, 3}
    assert set(which.tolist()) == {0, 1}
    swapped = views.swap(clean, which)
    assert not torch.equal(swapped, clean)
    assert torch.equal(views.swap(swapped, which), clean)
    assert (PAPER.crops, PAPER.tau, PAPER.mask_cube, PAPER.mask_ratio, PAPER.features) == (2, 0.5, 16, 0.5, 512)
    assert {getattr(PAPER, t) for t in ("rotation", "contrast", "rebuilt", "swapped", "mutual")} == {1.0}
    hidden = torch.zeros(1, 1, 2, 2, 2).bool()
    hidden[..., 0] = True
    error = hidden_error(torch.full((1, 1, 2, 2, 2), 3.0), torch.ones(1, 1, 2, 2, 2), hidden, 0.5)
    torch.testing.assert_close(error, torch.tensor(4.0))  # mean over all voxels 2, divided by 0.5


def test_the_mutual_term_stops_no_gradient():
    model = build("swinmm", rotation=0.0, contrast=0.0, rebuilt=0.0, swapped=0.0)
    losses = model(batch())
    assert losses["mutual"] > 0
    losses["mutual"].backward()
    assert model.two.decoder.voxel.weight.grad.any()


def test_the_hundred_orders_are_far_apart():
    found = puzzles.orders(100)
    assert found.shape == (100, 8)
    assert torch.equal(found.sort(1).values, torch.arange(8).expand(100, 8))
    apart = (found[:, None] != found).sum(-1)[~torch.eye(100, dtype=torch.bool)]
    assert apart.min() == 2
    assert abs(apart.float().mean() - 7.07) < 0.01
    assert torch.equal(puzzles.orders(10), found[:10])


def test_cubes_lie_in_their_cells():
    size = (74, 276, 276)  # of the original: cubes of 32 x 128 x 128
    volume = torch.arange(2 * 74 * 276 * 276).view(2, 1, *size).float()
    pieces = puzzles.cubes(volume, torch.tensor([3, 4]), jitter=(5 / 37, 10 / 138, 10 / 138))
    assert pieces.shape == (2, 8, 1, 32, 128, 128)
    corner = (pieces[..., 0, 0, 0].double() % (74 * 276 * 276)).long().squeeze(-1)
    place = torch.stack([corner // 276**2, corner // 276 % 276, corner % 276], -1)
    moved = place - torch.cartesian_prod(*[torch.arange(2)] * 3) * torch.tensor([37, 138, 138])
    assert (moved >= 0).all()
    assert (moved <= torch.tensor([5, 10, 10])).all()
    assert not torch.equal(moved[0], moved[1])
    deal = torch.tensor([[1, 0, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0]])
    assert torch.equal(puzzles.dealt(pieces, deal)[1], pieces[1].flip(0))
    assert torch.equal(puzzles.dealt(pieces, deal)[0, 0], pieces[0, 1])


def test_jigsaw_reads_eight_features_of_64():
    model = build("jigsaw")
    assert [m.weight.shape for m in model.order if hasattr(m, "weight")] == [(1024, 512), (1024, 1024), (100, 1024)]
    assert model.reader.each[0].out_features == 64
    pieces, label = model.view(batch(16))
    assert pieces.shape == (16, 8, 1, 21, 17, 22)
    assert label.max() < 100
    assert len(set(label.tolist())) > 8


def test_rubik_turns_and_masks_cubes():
    from mg3d.objectives.rubikpp import PAPER, TERMS

    model = build("rubikpp")
    many = batch(40)
    pieces, labels = model.view(many)
    assert [getattr(PAPER, t) for t in TERMS] == [1.0] * 4
    assert not (labels["hor"] & labels["ver"]).any()
    for name, share in (("hor", 1 / 3), ("ver", 1 / 3), ("mask", 1 / 2)):
        assert abs(labels[name].float().mean() - share) < 0.09  # three standard errors of 320 cubes
    right = puzzles.cubes(many.volume, many.seeds, jitter=(5 / 37, 10 / 138, 10 / 138))
    dealt = puzzles.dealt(right, model.orders[labels["order"]])
    back = torch.where(labels["hor"].bool()[..., None, None, None, None], pieces.flip(4, 5), pieces)
    back = torch.where(labels["ver"].bool()[..., None, None, None, None], back.flip(3, 4), back)
    masked = labels["mask"].bool()
    assert torch.equal(back[~masked], dealt[~masked])
    kept = (back[masked] == dealt[masked]) & (dealt[masked] > 0)
    assert abs(kept.float().mean() / (dealt[masked] > 0).float().mean() - 0.5) < 0.01


def test_pcrlv2_compares_two_large_crops_and_six_small_ones():
    from mg3d.objectives.pcrlv2 import PAPER, VARIANTS

    size = (128, 96, 128)
    model = build("pcrlv2", shape=size)
    whole = batch(2, shape=size)
    views = pairs.large_and_small(whole.volume, whole.seeds, least=PAPER.iou, count=6, stride=32)
    (first, target), (second, _), local = views
    assert first.shape == second.shape == target.shape == (2, 1, 32, 64, 64)
    assert local.shape == (6 * 2, 1, 16, 16, 16)
    assert (PAPER.locals, PAPER.iou) == (6, 0.3)
    assert (PAPER.restored, PAPER.middle, PAPER.compared, PAPER.local) == (1, 1, 1, 1)
    assert (VARIANTS["balanced"].compared, VARIANTS["balanced"].local) == (0.1, 0.1)
    assert not torch.equal(first, target)
    assert target.min() >= 0
    assert target.max() <= 1
    assert model.beta == 1
    model.step += PAPER.steps // 2
    assert abs(model.beta - 0.5) < 1e-9
    model.step += PAPER.steps
    assert model.beta == 0


@pytest.mark.parametrize(
    ("side", "stride", "size"), [(128, 32, (32, 64, 64)), (64, 8, (16, 32, 32)), (64, 32, (16, 64, 64))]
)
def test_large_crops_have_two_tokens_a_side_in_a_slice(side, stride, size):
    """Of one token a decoder without skips makes one picture for everybody."""
    shape = torch.Size((side, 3 * side // 4, side))
    assert pairs.large(shape, stride) == size
    seen = batch(1, shape=tuple(shape))
    (first, target), (second, _), _ = pairs.large_and_small(seen.volume, seen.seeds, least=0.3, count=1, stride=stride)
    assert first.shape == second.shape == target.shape == (1, 1, *size)


def test_pcrlv2_takes_the_steps_of_its_run_and_reads_unet_at_stride_8():
    model = build("pcrlv2", "unet", steps=4)
    assert (model.config.steps, len(model.ups)) == (4, 3)
    assert len(build("pcrlv2", "swin_b").ups) == 5
    model.step += 4
    assert model.beta == 0
    with pytest.raises(ValueError, match="unknown field of"):
        build("jigsaw", step=4)
    assert build("jigsaw", steps=4).config == build("jigsaw").config  # it has no schedule


def test_pcrlv2_stops_the_gradient_of_what_is_predicted():
    from mg3d.contrast import compared

    z_one, p_one, z_two, p_two = (torch.randn(2, 4, requires_grad=True) for _ in range(4))
    loss = compared([[z_one], [p_one]], [[z_two], [p_two]], torch.tensor([0, 0]))
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(loss, -(cosine(p_one, z_two) + cosine(p_two, z_one)).mean() / 2)
    loss.backward()
    assert z_one.grad is z_two.grad is None
    assert p_one.grad.any()
    assert p_two.grad.any()


def test_a_single_volume_cannot_be_normalised():
    with pytest.raises(ValueError, match="2 volumes or more"):
        build("pcrlv2").train()(batch(1))


def test_pairs_overlap_and_small_boxes_lie_within():
    size, seeds = torch.Size((128, 96, 128)), torch.arange(500)
    pair = pairs.global_pair(seeds, size, least=0.3)
    (a, m), (b, n) = pair
    shared = (torch.minimum(a + m, b + n) - torch.maximum(a, b)).clamp_min(0).prod(1)
    assert (shared / (m.prod(1) + n.prod(1) - shared)).min() > 0.3
    assert {tuple(x) for x in m.long().tolist()} == {(64, 96, 96), (96, 96, 96), (64, 96, 112), (32, 64, 64)}
    assert ((a >= 0) & (a + m <= torch.tensor(size) + 1e-3)).all()
    low, extent = pairs.local_crops(seeds, size, pair)
    assert (low >= torch.minimum(a, b) - 3.001).all()
    assert (low + extent <= torch.maximum(a + m, b + n) + 3.001).all()
    assert {tuple(x) for x in extent.long().tolist()} <= {(16, 32, 32), (16, 16, 16), (32, 32, 32), (8, 8, 8)}


def test_a_sampled_box_is_the_box():
    """A ramp along each axis is read at the place, up to the flip, the scale and the turn that were drawn."""
    size = (40, 40, 40)
    ramps = torch.stack(torch.meshgrid(*[torch.arange(40.0)] * 3, indexing="ij"))[:, None]
    seeds = torch.full((3,), 5)  # the same map for the three ramps
    box = torch.tensor([[10.0, 12, 8]] * 3), torch.tensor([[16.0, 12, 20]] * 3)
    found = pairs.sample(ramps, seeds, box, out=(16, 16, 16))
    centre = found.mean((1, 2, 3, 4)) + 0.5
    torch.testing.assert_close(centre, torch.tensor([18.0, 18, 18]), rtol=0, atol=0.01)
    for axis, side in enumerate((16, 12, 20)):
        span = (found[axis].diff(dim=axis + 1).mean() * 16).abs()
        assert 0.85 * side < span < 1.15 * side
    assert found.shape[2:] != size


def test_voxels_change_as_said():
    x = torch.zeros(2, 1, 20, 20, 20)
    x[:, :, 10, 10, 10] = 1.0
    smooth = pairs.blurred(x, torch.tensor([1.5, 1e-3]))
    at = torch.arange(-6.0, 7)
    peak = ((-(at**2) / 4.5).exp() / (-(at**2) / 4.5).exp().sum()).max() ** 3
    torch.testing.assert_close(smooth[0, 0, 10, 10, 10], peak)
    torch.testing.assert_close(smooth[1], x[1])
    torch.testing.assert_close(smooth.sum((1, 2, 3, 4)), torch.ones(2))
    number = torch.arange(2 * 32 * 64 * 64).view(2, 1, 32, 64, 64).float()
    moved = pairs.swapped_patches(number, torch.tensor([3, 4]))
    assert torch.equal(moved.flatten(1).sort().values, number.flatten(1))
    assert ((moved != number).flatten(1).float().mean(1) == 200 / 1024).all()


def test_pcrlv1_has_the_constants_of_the_original():
    from mg3d.objectives.pcrlv1 import PAPER, SIZES

    size = (128, 96, 128)
    model = build("pcrlv1", shape=size)
    x = model.views(batch(4, shape=size))
    assert all(v.shape == (4, 1, 32, 64, 64) for v in (*x.clean, *x.seen))
    assert ((x.alpha >= 0.5) & (x.alpha < 1)).all()
    assert set(torch.stack(x.turns).flatten().tolist()) <= {0, 1, 2, 3}
    assert (PAPER.queue, PAPER.tau, PAPER.momentum, PAPER.features, PAPER.iou) == (16_384, 0.2, 0.999, 128, 0.25)
    assert model.queue.rows.shape == (16_384, 128)
    assert model.gate[0].weight.shape == (256, 7)
    assert len(SIZES) == 5


def test_pcrlv1_teacher_follows_and_its_features_queue():
    model = build("pcrlv1", queue=8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(model, range(1), count=3)
    after = model.state_dict()
    names = [k.removeprefix("teacher.module.") for k in after if k.startswith("teacher.module.")]
    assert names == [k.removeprefix("encoder.") for k in after if k.startswith("encoder.")]
    for name in names:
        old, new = before["teacher.module." + name], after["encoder." + name]
        torch.testing.assert_close(after["teacher.module." + name], 0.999 * old + 0.001 * new, rtol=1e-4, atol=1e-7)
    assert after["queue.place"] == 3
    assert torch.equal(after["queue.rows"][3:], before["queue.rows"][3:])
    assert not torch.equal(after["queue.rows"][:3], before["queue.rows"][:3])
    model.eval()(batch(3))
    model.after_step()
    assert after["queue.place"] == 3  # what is validated does not queue


def test_painting_hides_a_part_inside_or_outside():
    x = torch.full((200, 1, 24, 24, 24), 2.0)  # noise is below 1
    kept = (pairs.painted(x, torch.arange(200), inside=0.0) == 2).flatten(1).float().mean(1)
    assert kept.min() > 0.05  # a box of 3/7 a side holds 8 %
    assert kept.max() < 0.75
    inner = (pairs.painted(x, torch.arange(200), inside=1.0) != 2).flatten(1).float().mean(1)
    assert inner.min() > 0.003
    assert inner.max() < 0.19  # five of 1/3
    assert inner.mean() < 0.1
