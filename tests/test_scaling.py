"""The scaling law: exact where the points are, honest where they are few."""

import numpy as np
import pytest

from mg3d.paper import PRINTED, VOLUMES
from mg3d.scaling import fit

SIZES = np.array([100.0, 200, 400, 800, 1600])


def curve(n, a, b, c):
    return a * np.asarray(n) ** -b + c


@pytest.mark.parametrize(("a", "b", "c"), [(2.0, 0.5, 0.1), (1.0, 0.3, 0.02), (0.8, 0.2, 0.2), (30.0, 1.0, 0.3)])
def test_known_exponents_are_recovered(a, b, c):
    law = fit(SIZES, curve(SIZES, a, b, c), resamples=5)
    assert (law.a.value, law.b.value, law.c.value) == pytest.approx((a, b, c), rel=1e-5)
    assert law.predict([6400.0, 10.0]).value == pytest.approx(curve([6400, 10], a, b, c))
    assert law.residual < 1e-9


def test_intervals_are_as_wide_as_repetitions_scatter():
    """Of data made anew, the middle 95 % of b and of an extrapolation span what one fit's intervals span."""
    rng, n, ahead = np.random.default_rng(0), np.repeat(SIZES, 3), [25_600]
    truth = curve(n, 2, 0.5, 0.1)
    found = [fit(n, truth + 0.004 * rng.normal(size=15), resamples=1) for _ in range(60)]
    one = fit(n, truth, spread=np.full(15, 0.004), resamples=150)
    for values, wide in (
        ([law.b.value for law in found], one.b.high - one.b.low),
        ([law.predict(ahead).value[0] for law in found], np.ptp(one.predict(ahead)[1:])),
    ):
        assert 0.7 < wide / np.ptp(np.percentile(values, [2.5, 97.5])) < 1.4
    assert one.b.low < 0.5 < one.b.high


def test_noise_and_distance_widen_the_intervals():
    n, noise = np.repeat(SIZES, 3), np.random.default_rng(0).normal(size=15)
    narrow, wide = (fit(n, curve(n, 2, 0.5, 0.1) + s * noise, resamples=60) for s in (0.001, 0.008))
    assert wide.b.high - wide.b.low > 3 * (narrow.b.high - narrow.b.low)
    for law in (narrow, wide):
        far = law.predict([1600, 6400, 102_400])
        assert (np.diff(far.high - far.low) > 0).all()


def test_what_is_known_of_the_points_counts():
    """A point with a large standard error does not pull the curve."""
    errors = curve(SIZES, 2, 0.5, 0.1)
    errors[2] += 0.1
    law = fit(SIZES, errors, spread=[0.001, 0.001, 1.0, 0.001, 0.001], resamples=20)
    assert law.b.value == pytest.approx(0.5, abs=0.01)
    assert law.b.high - law.b.low < 0.5


def test_the_papers_own_points():
    """AUC of Table V: four points and three parameters leave next to nothing known of b and c."""
    errors = [1 - row["CT-RATE AUC"].value / 100 for row in PRINTED["V"].values()]
    law = fit(list(VOLUMES.values()), errors, resamples=60)
    assert law.b.value == pytest.approx(0.176, abs=0.005)
    assert law.c.value == pytest.approx(0.264, abs=0.005)
    assert law.predict([47_149]).value[0] == pytest.approx(0.3127, abs=1e-3)
    assert law.b.low < 0.05
    assert law.b.high > 1


def test_a_curve_that_does_not_fall():
    law = fit(SIZES, [0.5, 0.5, 0.5, 0.5, 0.5], resamples=5)
    assert law.predict([1e6]).value[0] == pytest.approx(0.5, abs=1e-3)
    rising = fit(SIZES, [0.3, 0.32, 0.33, 0.35, 0.36], resamples=5)
    assert np.ptp(rising.predict(SIZES).value) < 0.01  # no law rises: it is flat


def test_it_is_the_same_for_a_seed():
    noisy = curve(SIZES, 2, 0.5, 0.1) + np.array([0.002, -0.002, 0.001, 0.002, -0.001])
    one, same, other = (fit(SIZES, noisy, resamples=20, seed=s) for s in (1, 1, 2))
    assert np.array_equal(one.draws, same.draws)
    assert one.b == same.b != other.b
    assert one.b.value == other.b.value


@pytest.mark.parametrize(
    ("sizes", "errors", "words"),
    [
        ([1, 2, 3], [0.3, 0.2, 0.1], "3 sizes of the data.*run 1 more"),
        ([1, 1, 1, 1], [0.3, 0.2, 0.1, 0.1], "1 sizes of the data.*run 3 more"),
        ([1, 2, 3, 4], [0.3, 0.2, 0.1, 0.0], r"errors=.*above 0"),
        ([1, 2, 3, 4], [0.3, 0.2, 0.1], r"errors=.*one a point"),
        ([0, 2, 3, 4], [0.3, 0.2, 0.1, 0.1], r"sizes=.*above 0"),
        ([1, 2, 3, 4], [0.3, np.nan, 0.1, 0.1], r"errors="),
    ],
)
def test_too_little_to_fit_is_refused(sizes, errors, words):
    with pytest.raises(ValueError, match=words):
        fit(sizes, errors)
