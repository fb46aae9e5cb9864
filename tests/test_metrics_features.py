"""Metrics against numbers known by hand."""

import numpy as np
import pytest
import torch

from mg3d.metrics import effective_rank


def test_effective_rank_of_known_spectra():
    points = np.concatenate([np.eye(4), -np.eye(4)])  # centred, four equal singular values
    assert effective_rank(points) == pytest.approx(4)
    stretched = points * [3, 1, 0, 0]  # shares 3/4 and 1/4
    assert effective_rank(stretched) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
    assert effective_rank(np.outer(np.arange(5), [1, 2, 3])) == pytest.approx(1)
    assert effective_rank(np.full((5, 3), 7.0)) == 0


def test_effective_rank_ignores_place_scale_and_turn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 6)) * [5, 4, 3, 2, 1, 0.1]
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    assert effective_rank(1e3 + 1e-2 * x @ turn) == pytest.approx(effective_rank(x), rel=1e-6)
    assert effective_rank(torch.tensor(x)) == effective_rank(x)


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((1, 3)), np.full((3, 3), np.nan)])
def test_effective_rank_refuses(bad):
    with pytest.raises(ValueError, match="features"):
        effective_rank(bad)
