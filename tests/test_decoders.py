"""Decoders against the plain order of their operations, as torch's own modules compute it."""

import pytest
import torch
from torch import nn

from mg3d.decoders import ReportDecoder, VoxelDecoder


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
