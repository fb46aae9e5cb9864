"""Scores of maps against masks: by hand, against scikit-learn and scipy, and where there is nothing to score."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import average_precision_score

from mg3d.metrics import attention_mass, judge, map_auprc, mask_share, near, pointing_game, spread

SHAPE = (5, 4, 6)


def some(n: int = 7, *, seed: int = 0, levels: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random maps (with `levels` distinct values, many ties) and masks, none of them empty."""
    rng = np.random.default_rng(seed)
    maps = rng.random((n, *SHAPE), dtype=np.float32)
    if levels:
        maps = np.ceil(maps * levels)
    masks = rng.random((n, *SHAPE)) < 0.2
    masks[:, 0, 0, 0] = True
    return maps, masks


def by_hand() -> tuple[np.ndarray, np.ndarray]:
    """One row of four voxels; the mask holds the first and the last."""
    return np.array([0.4, 0.3, 0.2, 0.1], np.float32).reshape(1, 1, 1, 4), np.array([1, 0, 0, 1], bool).reshape(
        1, 1, 1, 4
    )


def test_a_map_known_by_hand():
    maps, masks = by_hand()
    assert pointing_game(maps, masks).tolist() == [1]
    assert attention_mass(maps, masks)[0] == pytest.approx(0.5)
    assert map_auprc(maps, masks)[0] == pytest.approx((1 / 1 + 2 / 4) / 2)
    assert mask_share(masks).tolist() == [0.5]
    assert pointing_game(maps, ~masks).tolist() == [0]
    assert map_auprc(maps, ~masks)[0] == pytest.approx((1 / 2 + 2 / 3) / 2)
    entropy = -sum(p * np.log(p) for p in (0.4, 0.3, 0.2, 0.1))
    assert spread(maps)[0] == pytest.approx(np.exp(entropy) / 4)


def test_the_mask_itself_scores_one_and_a_uniform_map_exactly_its_share():
    _, masks = some()
    found = judge(masks.astype(np.float32), masks)
    for name in ("pointing", "pointing_near", "mass", "auprc"):
        assert (found[name] == 1).all(), name
    share = masks.mean((1, 2, 3))
    assert np.allclose(found["lift"], 1 / share)
    uniform = judge(np.full(masks.shape, 0.37, np.float32), masks)
    for name in ("pointing", "mass", "auprc", "share"):
        assert np.allclose(uniform[name], share, rtol=1e-12), name
    assert np.allclose(uniform["spread"], 1)


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("shift", [0.0, -0.5], ids=["weights", "negative too"])
def test_auprc_is_that_of_scikit_learn(levels, shift):
    maps, masks = some(levels=levels)
    maps = maps + np.float32(shift)
    maps[0, 0, 0, :2] = [0.0, -0.0]  # equal
    slow = [average_precision_score(m.ravel(), a.ravel()) for a, m in zip(maps, masks, strict=True)]
    assert map_auprc(maps, masks) == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize("levels", [0, 3])
def test_pointing_is_the_mean_over_every_maximum(levels):
    maps, masks = some(levels=levels)
    slow = [m[a == a.max()].mean() for a, m in zip(maps, masks, strict=True)]
    assert pointing_game(maps, masks) == pytest.approx(slow)
    rng = np.random.default_rng(1)  # and so is a broken tie, on average
    noisy = [
        m.flat[np.argmax(a.ravel() + 1e-3 * rng.random(a.size))]
        for _ in range(400)
        for a, m in zip(maps, masks, strict=True)
    ]
    assert np.mean(noisy) == pytest.approx(np.mean(slow), abs=0.05)


def test_maxima_that_rounding_alone_tells_apart_are_ties():
    maps = np.full((1, *SHAPE), 0.1, np.float32)
    maps[0, 0, 0, 0] = np.nextafter(np.float32(0.1), np.float32(1))
    masks = np.zeros(maps.shape, bool)
    masks[0, 0, 0, 0] = True
    assert pointing_game(maps, masks)[0] == pytest.approx(1 / maps.size)


@pytest.mark.parametrize("tolerance", [0.0, 1.9, 2.0, 3.6, 7.3, 100.0])
def test_near_is_the_euclidean_distance(tolerance):
    _, masks = some()
    masks[1:] = False
    masks[1:, 2, 3, 1] = True
    spacing = (3.0, 2.0, 1.5)
    slow = [distance_transform_edt(~m, sampling=spacing) <= tolerance for m in masks]
    assert (near(masks, tolerance_mm=tolerance, spacing_mm=spacing) == slow).all()


def test_a_tolerance_forgives_a_near_miss_and_raises_chance():
    maps, masks = np.zeros((2, *SHAPE), np.float32), np.zeros((2, *SHAPE), bool)
    maps[:, 2, 2, 2], masks[0, 2, 2, 3], masks[1, 2, 2, 4] = 1, True, True
    found = judge(maps, masks, close=near(masks, tolerance_mm=5.0, spacing_mm=(5.0, 5.0, 5.0)))
    assert found["pointing"].tolist() == [0, 0]
    assert found["pointing_near"].tolist() == [1, 0]
    assert found["share_near"] == pytest.approx([7 / 120, 7 / 120])


def test_an_empty_mask_has_no_score_and_an_empty_neighbourhood():
    maps, masks = some(3)
    masks[1] = False
    found = judge(maps, masks, close=near(masks, tolerance_mm=2.0, spacing_mm=(1.0, 1.0, 1.0)))
    for name in ("pointing", "pointing_near", "mass", "lift", "auprc", "share", "share_near"):
        assert np.isnan(found[name]).tolist() == [False, True, False], name
    assert not np.isnan(found["spread"]).any()
    assert all(values.shape == (0,) for values in judge(maps[:0], masks[:0]).values())
    assert np.isnan(map_auprc(maps[1], masks[1]))


def test_any_number_of_leading_axes():
    maps, masks = some(6)
    for measure in (pointing_game, attention_mass, map_auprc):
        flat = measure(maps, masks)
        assert np.array_equal(measure(maps.reshape(2, 3, *SHAPE), masks.reshape(2, 3, *SHAPE)), flat.reshape(2, 3))
        assert measure(maps[4], masks[4]) == flat[4]


@pytest.mark.parametrize("measure", [pointing_game, attention_mass, map_auprc])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_maps_that_are_not_finite_are_named(measure, bad):
    maps, masks = some(6)
    maps[4, 1, 1, 1] = bad
    with pytest.raises(ValueError, match=r"map \[4\] \(1 of 6\)"):
        measure(maps, masks)
    with pytest.raises(ValueError, match=r"map \[1, 1\] \(1 of 6\)"):
        measure(maps.reshape(2, 3, *SHAPE), masks.reshape(2, 3, *SHAPE))


def test_mass_needs_weights():
    maps, masks = some(2)
    maps[1] = 0
    with pytest.raises(ValueError, match=r"map \[1\] .*0 everywhere"):
        attention_mass(maps, masks)
    maps[0, 0, 0, 0] = -1
    for measure in (attention_mass, lambda m, _: spread(m)):
        with pytest.raises(ValueError, match="negative"):
            measure(maps, masks)


@pytest.mark.parametrize(("tolerance", "spacing"), [(-1.0, (1.0, 1.0, 1.0)), (1.0, (1.0, 0.0, 1.0))])
def test_near_refuses(tolerance, spacing):
    with pytest.raises(ValueError, match="tolerance_mm"):
        near(np.ones(SHAPE, bool), tolerance_mm=tolerance, spacing_mm=spacing)


def test_one_planted_signal_among_noise_is_found():
    rng = np.random.default_rng(0)
    maps = rng.random((3, 16, 12, 16), dtype=np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[:, 3:6, 3:6, 3:6] = True
    before, after = judge(maps, masks), judge(maps + 0.3 * masks, masks)
    assert (after["auprc"] > 2 * before["auprc"]).all()
    assert before["auprc"] == pytest.approx(before["share"], abs=0.03)
    assert (after["mass"] > before["mass"]).all()
