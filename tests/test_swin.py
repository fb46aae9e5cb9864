"""Our Swin is MONAI's, number for number, in less work; and each of its short cuts equals the plain form."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mg3d.encoders import boxwise
from mg3d.encoders import swin as swin_module
from mg3d.encoders.swin import Block, PatchMerging, Swin
from mg3d.encoders.windows import Segments, kinds, order, relative_position_index, segments

CPU = torch.device("cpu")


def scramble(module: nn.Module) -> None:
    """Give biases and norms values that matter; fresh ones are zeros and ones."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "bias" in name or "norm" in name:
                p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def gradients(module: nn.Module, inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
    """Gradients of a fixed random functional of all outputs, for all inputs and parameters."""
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
    return list(torch.autograd.grad(outputs, [*inputs, *module.parameters()], weights))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


# --- against MONAI ----------------------------------------------------------------------------------------------------


class OldMerging(nn.Module):
    """The patch merging of MONAI up to 1.4, written out slice by slice."""

    def __init__(self, dim: int, norm_layer: type = nn.LayerNorm, spatial_dims: int = 3) -> None:
        super().__init__()
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)

    def forward(self, x: Tensor) -> Tensor:
        d, h, w = x.shape[1:4]
        x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2, 0, d % 2))
        even, odd = slice(0, None, 2), slice(1, None, 2)
        slots = [(even, even, even), (odd, even, even), (even, odd, even), (even, even, odd)]
        slots += [(odd, even, odd), (even, odd, even), (even, even, odd), (odd, odd, odd)]
        return self.reduction(self.norm(torch.cat([x[:, i, j, k] for i, j, k in slots], -1)))


@pytest.fixture(scope="module")
def pair() -> tuple[Swin, nn.Module]:
    from monai.networks.nets import swin_unetr

    def permute(x: Tensor, pattern: str) -> Tensor:  # all that MONAI's Swin asks of einops
        before, after = (side.split() for side in pattern.split("->"))
        return x.permute([before.index(letter) for letter in after])

    swin_unetr.rearrange = permute
    ours = Swin(24)
    theirs = swin_unetr.SwinTransformer(
        1, 24, (7, 7, 7), (2, 2, 2), (2, 2, 2, 2), (3, 6, 12, 24), downsample=OldMerging
    )
    scramble(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("shape", [(48, 32, 64), (40, 33, 50), (29, 15, 31), (12, 10, 90), (9, 62, 17)])
def test_equals_monai_forward_and_backward(pair: tuple[Swin, nn.Module], shape: tuple[int, int, int]) -> None:
    ours, theirs = pair
    x = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    a, b = list(ours(x).levels), theirs(x)
    for mine, other in zip(a, b, strict=True):
        assert mine.shape == other.shape
        assert relative(mine, other) < 1e-6
    for mine, other in zip(gradients(ours, [x], a), gradients(theirs, [x], b), strict=True):
        assert relative(mine, other) < 1e-5


def test_names_are_monais_both_ways(pair: tuple[Swin, nn.Module]) -> None:
    ours, theirs = pair
    Swin(24).load_state_dict(theirs.state_dict(), strict=True)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    assert len(ours.state_dict()) == 126
    for name, p in theirs.state_dict().items():
        assert torch.equal(p, ours.state_dict()[name])


# --- against the plain form -------------------------------------------------------------------------------------------


def plain_block(block: Block, x: Tensor) -> Tensor:
    """Pad, roll, partition, mask with -inf, attend, and all the way back."""
    size, n = x.shape[1:4], block.attn.window
    window = [min(s, n) for s in size]
    shift = [n // 2 if block.shifted and s > n else 0 for s in size]
    pads = [-s % w for s, w in zip(size, window, strict=True)]
    y = F.pad(block.norm1(x), (0, 0, 0, pads[2], 0, pads[1], 0, pads[0]))
    region = torch.zeros(y.shape[1:4])
    for axis, (s, w) in enumerate(zip(shift, window, strict=True)):
        if s:
            cell = torch.arange(y.shape[axis + 1])
            part = (cell >= len(cell) - w).long() + (cell >= len(cell) - s)
            region = region * 3 + part.view([-1 if i == axis else 1 for i in range(3)])

    def split(t: Tensor) -> Tensor:
        for i, w in enumerate(window):
            t = t.unflatten(2 * i + 1, (-1, w))
        return t.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(0, 3)

    cells = split(torch.roll(y, [-s for s in shift], (1, 2, 3)))
    regions = split(region[None, ..., None])[..., 0].repeat(len(x), 1)
    count, heads = cells.shape[1], block.attn.heads
    q, k, v = block.attn.qkv(cells).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    scores = scores + block.attn.relative_position_bias_table[
        block.attn.relative_position_index[:count, :count]
    ].permute(2, 0, 1)
    scores = scores.masked_fill((regions[:, :, None] != regions[:, None])[:, None], -torch.inf)
    cells = block.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    grid = [y.shape[i + 1] // w for i, w in enumerate(window)]
    y = cells.unflatten(1, window).unflatten(0, (len(x), *grid)).permute(0, 1, 4, 2, 5, 3, 6, 7)
    y = torch.roll(y.flatten(5, 6).flatten(3, 4).flatten(1, 2), shift, (1, 2, 3))
    x = x + y[:, : size[0], : size[1], : size[2]]
    return x + block.mlp(block.norm2(x))


@pytest.mark.parametrize("way", ["by_boxes", "over_grid"])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(15, 7, 8), (3, 9, 14), (6, 5, 4), (1, 22, 2)])
def test_a_block_equals_the_plain_form(size: tuple[int, int, int], shifted: bool, way: str, monkeypatch) -> None:
    torch.manual_seed(3)
    monkeypatch.setattr(swin_module, "SCORES", 2 * 3 * 7**6)  # two windows at a time: pieces end inside a kind
    block = Block(6, 3, shifted).double()
    scramble(block)
    x = torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    a, b = getattr(block, way)(x), plain_block(block, x)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for mine, plain in zip(gradients(block, [x], [a]), gradients(block, [x], [b]), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-9, atol=1e-9)


def test_scores_beyond_the_range_of_exp2() -> None:
    """Thousands either way: a softmax that takes no maximum away would give infinity, or 0 / 0."""
    torch.manual_seed(4)
    block = Block(6, 3, True).double()
    scramble(block)
    with torch.no_grad():
        block.attn.qkv.weight *= 100
        block.attn.relative_position_bias_table -= 2000
    x = torch.randn(1, 9, 8, 10, 6, dtype=torch.float64, requires_grad=True)
    a, b = block.by_boxes(x), block.over_grid(x)
    assert block.attn.qkv(block.norm1(x)).abs().max() > 100
    torch.testing.assert_close(a, b)
    for mine, plain in zip(gradients(block, [x], [a]), gradients(block, [x], [b]), strict=True):
        assert (mine - plain).norm() < 1e-6 * plain.norm() + 1e-9


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    torch.manual_seed(4)
    block = Block(12, 3, True)
    x = torch.randn(1, 16, 20, 18, 12, requires_grad=True)
    before, results = torch.get_num_threads(), []
    for n in (1, threads):
        torch.set_num_threads(n)
        try:
            y = block.by_boxes(x)
            results.append([y, *gradients(block, [x], [y])])
            assert torch.get_num_threads() == n
        finally:
            torch.set_num_threads(before)
    names = ["y", "x", *(name for name, _ in block.named_parameters())]
    assert [n for n, a, b in zip(names, *results, strict=True) if not torch.equal(a, b)] == []


def test_an_error_on_a_thread_is_raised_and_leaves_the_threads_as_they_were(monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(boxwise.Block, "attend", fail)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(MemoryError, match="no more"):
            Block(6, 3, False)(torch.randn(1, 16, 16, 16, 6))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_merging_keeps_the_order_of_published_weights() -> None:
    merge, old = PatchMerging(2), OldMerging(2)
    old.load_state_dict(merge.state_dict())
    x = torch.randn(1, 3, 4, 5, 2, requires_grad=True)
    torch.testing.assert_close(merge(x), old(x))
    (a,), (b,) = (torch.autograd.grad(m(x).square().sum(), x) for m in (merge, old))
    torch.testing.assert_close(a, b)


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_segments_by_hand() -> None:
    assert segments(7, 7, 3) == [Segments(0, 7, 1, 0, 0)]
    assert segments(16, 7, 0) == [Segments(0, 7, 2, 0, 0), Segments(14, 2, 1, 0, 5)]
    # 16 cells padded to 21, rolled by 3: windows 3..9, 10..16 (one of them padding), 17..20 (all padding) with 0..2
    assert segments(16, 7, 3) == [Segments(0, 3, 1, 4, 0), Segments(3, 7, 1, 0, 0), Segments(10, 6, 1, 0, 1)]
    # 13 padded to 14: 3..9, and 10..13 (one padding) with 0..2
    assert segments(13, 7, 3) == [Segments(0, 3, 1, 4, 0), Segments(3, 7, 1, 0, 0), Segments(10, 3, 1, 0, 1)]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(64, 48, 64), (9, 7, 30), (1, 1, 1), (8, 15, 3)])
def test_boxes_hold_every_cell_once(size: tuple[int, int, int], shifted: bool) -> None:
    there, back = order(size, shifted, 7, CPU)
    assert torch.equal(there.sort().values, torch.arange(size[0] * size[1] * size[2]))
    assert torch.equal(there[back], torch.arange(len(there)))
    for kind in kinds(size, shifted, 7, CPU):
        assert kind.rows.shape[1] == len(kind.real)
        assert kind.keys == len(kind.real) + (len(kind.padded) > 0)
        assert len({*kind.real.tolist(), *kind.padded.tolist()}) == len(kind.real) + len(kind.padded) <= 343


def test_the_paper_size_needs_two_thirds_of_the_scores() -> None:
    scores = sum(k.rows.shape[0] * len(k.real) ** 2 for s in (False, True) for k in kinds((64, 48, 64), s, 7, CPU))
    assert scores == 442**2 * 330 + 426**2 * 312
    assert scores < 0.74 * 2 * 700 * 343**2


def test_relative_position_index_counts_differences() -> None:
    index = relative_position_index(7)
    assert index[0, 0] == index[342, 342] == (13**3 - 1) // 2
    assert (index[342, 0], index[0, 342], index[1, 0], index[7, 0]) == (13**3 - 1, 0, 1099, 1098 + 13)


# --- options ----------------------------------------------------------------------------------------------------------


def test_checkpointing_changes_no_bit() -> None:
    once, again = Swin(12), Swin(12, recompute=True)
    again.load_state_dict(once.state_dict())
    x = torch.rand(1, 1, 33, 20, 18)
    results = [[*m(x).levels, *gradients(m, [], list(m(x).levels))] for m in (once, again)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("frozen", ["layers1", "patch_embed", "bias_table"])
def test_parts_can_be_frozen(frozen: str) -> None:
    model = Swin(12)
    for name, p in model.named_parameters():
        p.requires_grad_(frozen not in name)
    model(torch.rand(1, 1, 20, 20, 20)).pooled.square().sum().backward()
    assert all((p.grad is None) == (frozen in name) for name, p in model.named_parameters())


def test_reduced_precision_stays_close_and_keeps_sums_in_full(monkeypatch) -> None:
    """bf16 rounds each product, but no sum over pieces, where 256 + 1 is 256; gradients have the weights' precision."""
    monkeypatch.setattr(swin_module, "SCORES", 1)  # as many pieces as there are boxes
    torch.manual_seed(2)
    block = Block(12, 3, False)
    scramble(block)
    x = torch.randn(1, 28, 21, 28, 12, requires_grad=True)
    full = block(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = block(x)
    assert low.dtype == full.dtype
    assert 1e-5 < relative(low, full) < 0.01
    for a, b in zip(gradients(block, [x], [low]), gradients(block, [x], [full]), strict=True):
        assert a.dtype == torch.float32
        assert relative(a, b) < 0.03


def test_autocast_keeps_gradients_of_weights_used_before_without() -> None:
    """A weight that autocast has cast inside our function must not serve later without its gradient."""
    model, found = Swin(12), []
    large, small = torch.rand(1, 1, 40, 20, 20), torch.rand(1, 1, 8, 8, 8)
    for volumes in ([small], [large, small]):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = [model(x).pooled.float().square().sum() for x in volumes][-1]
        loss.backward()
        found.append([p.grad for p in model.parameters()])
    for alone, after in zip(*found, strict=True):
        assert torch.equal(alone, after)
