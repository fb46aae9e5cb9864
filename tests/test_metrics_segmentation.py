"""Dice, HD95 and NSD against MONAI, and where nothing is there to compare."""

import warnings

import numpy as np
import pytest
import torch

from mg3d.metrics import dice, hd95, nsd, surface_distances

SPACING_MM = (2.5, 0.7, 1.2)


@pytest.fixture(scope="module")
def monai_metrics():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import monai.metrics
    return monai.metrics


def balls(seed: int, *, classes: int = 3, shape=(14, 22, 18)) -> np.ndarray:
    """A few balls of each class, some of them cut by the border."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype=np.uint8)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    for k in [*range(1, classes + 1)] * 2:
        labels[np.linalg.norm(grid - rng.uniform(0, shape), axis=-1) < rng.uniform(2, 5)] = k
    return labels


def one_hot(labels: np.ndarray, classes: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([labels == k for k in range(classes + 1)])[None].astype(np.float32))


def theirs(metrics, name: str, predicted, target, classes: int, **options) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of empty masks
        found = getattr(metrics, name)(
            one_hot(predicted, classes), one_hot(target, classes), include_background=False, **options
        )
    return found[0].numpy()


@pytest.mark.parametrize("seed", range(6))
def test_as_monai(monai_metrics, seed):
    a, b = balls(seed), balls(seed + 100)
    a[:, :11] = b[:, :11]  # partly right
    np.testing.assert_allclose(
        dice(a, b, classes=3), theirs(monai_metrics, "compute_dice", a, b, 3, ignore_empty=False), atol=1e-6
    )
    found = surface_distances(a, b, classes=3, spacing_mm=SPACING_MM)
    wanted = theirs(monai_metrics, "compute_hausdorff_distance", a, b, 3, percentile=95, spacing=SPACING_MM)
    np.testing.assert_allclose(hd95(found), wanted, rtol=1e-5)
    for tolerance in (0.0, 0.7, 1.4, 2.5):  # ties: whole steps along an axis
        wanted = theirs(
            monai_metrics, "compute_surface_dice", a, b, 3, class_thresholds=[tolerance] * 3, spacing=SPACING_MM
        )
        np.testing.assert_allclose(nsd(found, tolerance_mm=tolerance), wanted, atol=1e-6)


def test_equal_maps_are_perfect_and_a_shift_is_measured():
    a = np.zeros((9, 9, 9), dtype=np.int64)
    a[3:5, 3:5, 3:5] = 1
    b = np.roll(a, 1, 0)
    same, moved = (surface_distances(a, x, classes=1, spacing_mm=(3.0, 1.0, 1.0)) for x in (a, b))
    assert (dice(a, a, classes=1), hd95(same), nsd(same, tolerance_mm=0.0)) == (1, 0, 1)
    assert (dice(a, b, classes=1), hd95(moved)) == (0.5, 3)
    assert nsd(moved, tolerance_mm=3.0) == 1  # the tie counts
    assert nsd(moved, tolerance_mm=2.99) == 0.5


def test_a_tie_spoilt_by_binary_fractions_counts():
    a = np.zeros((9, 3, 3), dtype=np.uint8)
    a[1, 1, 1] = 1
    found = surface_distances(a, np.roll(a, 3, 0), classes=1, spacing_mm=(0.1, 1.0, 1.0))
    assert found[0][0][0] > 0.3  # 0.30000000000000004
    assert nsd(found, tolerance_mm=0.3) == 1


def test_empty_masks(monai_metrics):
    """A class in neither map has no number; in one alone it is as wrong as can be."""
    a, b = np.zeros((2, 6, 6, 6), dtype=np.uint8)
    a[2:4, 2:4, 2:4] = 1
    b[2:4, 2:4, 2:4] = 2
    found = surface_distances(a, b, classes=3, spacing_mm=(1.0, 1.0, 1.0))
    np.testing.assert_array_equal(dice(a, b, classes=3), [0, 0, np.nan])
    np.testing.assert_array_equal(hd95(found), [np.inf, np.inf, np.nan])
    np.testing.assert_array_equal(nsd(found, tolerance_mm=1e9), [0, 0, np.nan])
    wanted = theirs(monai_metrics, "compute_surface_dice", a, b, 3, class_thresholds=[1e9] * 3, spacing=1.0)
    np.testing.assert_array_equal(nsd(found, tolerance_mm=1e9), wanted)
    wanted = theirs(monai_metrics, "compute_hausdorff_distance", a, b, 3, percentile=95, spacing=1.0)
    assert np.isinf(wanted[:2]).all() or np.isnan(wanted[:2]).all()


def test_only_what_is_labelled_counts():
    a = balls(0)
    assert np.isnan(dice(np.zeros_like(a), np.zeros_like(a), classes=3)).all()
    np.testing.assert_array_equal(dice(a > 0, a > 0, classes=1), [1])


@pytest.mark.parametrize(
    ("predicted", "target", "message"),
    [
        (np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), r"shape \(2, 2, 2\).*\(2, 2, 3\)"),
        (np.full((2, 2, 2), 4), np.zeros((2, 2, 2), int), "the prediction holds .* 4 to 4: 0 to 3"),
        (np.zeros((2, 2, 2), int), np.full((2, 2, 2), -1), "the mask holds .* -1 to -1: 0 to 3"),
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 2), int), "the prediction holds float64"),
    ],
)
def test_refuses(predicted, target, message):
    with pytest.raises(ValueError, match=message):
        dice(predicted, target, classes=3)
    with pytest.raises(ValueError, match="tolerance_mm=-1"):
        nsd([], tolerance_mm=-1.0)
