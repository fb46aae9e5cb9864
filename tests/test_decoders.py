"""Decoders against the plain order of their operations, as torch's own modules compute it."""

import pytest
import torch
from torch import nn

from mg3d.decoders import ReportDecoder, UNetDecoder, VoxelDecoder, targets
from mg3d.encoders import ENCODERS, build
from mg3d.types import Pyramid


def plain(decoder: VoxelDecoder) -> nn.Sequential:
    """The decoder as the paper's code orders it, with the same weights: the last convolution at full size."""
    blocks = []
    for block in (*decoder.first, decoder.last):
        up = nn.Upsample(scale_factor=2, mode="trilinear")
        blocks += [block.convolution, nn.InstanceNorm3d(block.convolution.out_channels), nn.LeakyReLU(), up]
    return nn.Sequential(*blocks, decoder.voxel)


@pytest.mark.parametrize(("stride", "grid"), [(8, (2, 3, 2)), (32, (2, 1, 2)), (2, (3, 4, 5)), (16, (1, 2, 1))])
def test_the_order_changes_nothing(stride, grid):
    torch.manual_seed(0)
    decoder = VoxelDecoder(32, stride=stride).double()
    tokens = torch.randn(2, grid[0] * grid[1] * grid[2], 32, dtype=torch.float64, requires_grad=True)
    size = tuple(stride * g for g in grid)
    found = decoder(tokens, grid=grid, size=size)
    wanted = plain(decoder)(tokens.transpose(1, 2).reshape(2, 32, *grid))
    assert found.shape == (2, 1, *size)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    (a,) = torch.autograd.grad(found.square().sum(), tokens, retain_graph=True)
    (b,) = torch.autograd.grad(wanted.square().sum(), tokens)
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_any_size_of_volume():
    """Beyond the volume lies what the encoder padded: the same voxels as those of the whole cells."""
    decoder = VoxelDecoder(16, stride=8)
    tokens = torch.randn(1, 12, 16)
    whole = decoder(tokens, grid=(2, 2, 3), size=(16, 16, 24))
    assert torch.equal(decoder(tokens, grid=(2, 2, 3), size=(13, 9, 24)), whole[:, :, :13, :9])
    assert VoxelDecoder(16, stride=8)(torch.randn(1, 1, 16), grid=(1, 1, 1), size=(5, 5, 5)).isfinite().all()


def test_parameters_are_those_of_the_paper():
    """10,638,385 as published, less the 768 biases that the norms take away."""
    assert sum(p.numel() for p in VoxelDecoder(768, stride=32).parameters()) == 10_638_385 - 768


@pytest.mark.parametrize(("width", "stride", "named"), [(32, 12, "stride=12"), (32, 1, "stride=1"), (8, 32, "width=8")])
def test_voxel_decoder_refuses(width, stride, named):
    with pytest.raises(ValueError, match=named):
        VoxelDecoder(width, stride=stride)


def test_report_decoder_reads_hidden_words_only():
    torch.manual_seed(0)
    decoder = ReportDecoder(8, vocabulary=11)
    words = torch.randn(3, 5, 8, requires_grad=True)
    hidden = torch.rand(3, 5) < 0.4
    found = decoder(words, hidden)
    torch.testing.assert_close(found, decoder.layers(words)[hidden])
    found.sum().backward()
    assert torch.equal(words.grad.abs().sum(-1) > 0, hidden)
    assert decoder(words, torch.zeros(3, 5, dtype=torch.bool)).shape == (0, 11)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("shape", [(32, 32, 32), (40, 33, 50), (9, 17, 31)])
def test_logits_lie_on_the_volume_for_every_encoder_and_any_size(name, shape):
    torch.manual_seed(0)
    encoder = build(name, shrink=16 if name != "vit_b" else 4, shape=(32, 32, 32))
    decoder = UNetDecoder(encoder.widths, encoder.strides, classes=3)
    volume = torch.rand(2, 1, *shape)
    logits = decoder(volume, encoder(volume))
    assert logits.shape == (2, 3, *shape)
    alone = decoder(volume[1:], encoder(volume[1:]))
    torch.testing.assert_close(logits[1:], alone, rtol=1e-3, atol=1e-4)  # a volume does not see its neighbours
    logits.square().mean().backward()
    dead = [n for n, p in decoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not dead


@pytest.mark.parametrize("name", ENCODERS)
def test_every_level_and_the_volume_matter(name):
    torch.manual_seed(0)
    encoder = build(name, shrink=16 if name != "vit_b" else 4, shape=(64, 64, 64))
    decoder = UNetDecoder(encoder.widths, encoder.strides, classes=2)
    volume = torch.rand(1, 1, 64, 33, 40, requires_grad=True)
    with torch.no_grad():
        pyramid = encoder(volume)
    levels = tuple(level.requires_grad_() for level in pyramid.levels)
    decoder(volume, Pyramid(levels))[0, 1].sum().backward()
    assert all(level.grad.abs().sum() > 0 for level in levels)
    assert (volume.grad is not None) == (encoder.strides[0] > 1)  # UNet's first level is at full size already


def test_with_swin_it_is_the_decoder_of_swin_unetr():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks.nets import SwinUNETR
    theirs = SwinUNETR(in_channels=1, out_channels=3, feature_size=12).double()
    strides = (2, 4, 8, 16, 32)
    ours = UNetDecoder([12, 24, 48, 96, 192], strides, classes=3).double()
    parts = [theirs.encoder1.layer, theirs.encoder2.layer, theirs.encoder3.layer, theirs.encoder4.layer]
    mine = [ours.stem, *ours.levels[:3], ours.levels[4]]
    pairs = list(zip(mine, [*parts, theirs.encoder10.layer], strict=True))
    ups = [theirs.decoder1, theirs.decoder2, theirs.decoder3, theirs.decoder4, theirs.decoder5]
    for a, b in zip(ours.ups, ups, strict=True):
        a.transposed.weight.data.copy_(b.transp_conv.conv.weight.data)
        pairs.append((a.mix, b.conv_block))
    for a, b in pairs:
        for name, convolution in a.named_children():
            convolution.weight.data.copy_(getattr(b, name).conv.weight.data)
    ours.logits.load_state_dict(theirs.out.conv.conv.state_dict())
    volume = torch.rand(1, 1, 64, 64, 96, dtype=torch.float64)
    h = [torch.randn(1, 12 * s // 2, 64 // s, 64 // s, 96 // s, dtype=torch.float64) for s in strides]
    enc = [b(x) for b, x in zip(parts, [volume, *h[:3]], strict=True)]
    x = theirs.encoder10(h[4])
    for up, skip in zip(reversed(ups), [h[3], *reversed(enc)], strict=True):
        x = up(x, skip)
    torch.testing.assert_close(ours(volume, Pyramid(tuple(h))), theirs.out(x), rtol=1e-8, atol=1e-10)
    counted = sum(p.numel() for p in theirs.parameters()) - sum(p.numel() for p in theirs.swinViT.parameters())
    assert sum(p.numel() for p in ours.parameters()) == counted


@pytest.mark.parametrize(
    ("strides", "taken"),
    [((2, 4, 8, 16, 32), [2, 4, 8, 16, 32]), ((1, 2, 4, 8, 32), [1, 2, 4, 8, 32]), ((16,) * 4, [2, 4, 8, 16])],
)
def test_where_levels_are_taken(strides, taken):
    assert targets(strides) == taken


@pytest.mark.parametrize(
    ("strides", "message"), [((2, 6), "powers of two"), ((2, 2, 2), "more levels"), ((), "powers")]
)
def test_unet_decoder_refuses(strides, message):
    with pytest.raises(ValueError, match=message):
        UNetDecoder([16] * len(strides), strides, classes=2, width=4)
