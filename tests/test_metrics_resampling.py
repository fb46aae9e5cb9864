"""Intervals and tests: coverage on data of known spread, cases that hang together, seeds, and slow twins."""

import numpy as np
import pytest
from scipy import stats

from mg3d.metrics import (
    bootstrap,
    grouped_means,
    mean_interval,
    over_seeds,
    paired_interval,
    paired_test,
    seeds_and_cases,
)


def test_an_interval_of_a_mean_is_near_the_normal_one():
    x = np.random.default_rng(0).normal(3, 2, 400)
    found = mean_interval(x)
    half = 1.96 * x.std() / 20
    assert found.value == pytest.approx(x.mean())
    assert found.low == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.1 * half)
    narrow = mean_interval(x, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.674 * x.std() / 20, rel=0.1)


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(1)
    hits = [
        found.low <= 0.3 <= found.high
        for found in (mean_interval((rng.random(100) < 0.3).astype(float), resamples=400, seed=i) for i in range(300))
    ]
    assert 0.91 <= np.mean(hits) <= 0.98


def test_samples_of_a_case_come_along():
    """Ten copies of a value teach nothing new: the interval is that of the values."""
    x = np.random.default_rng(2).normal(size=30)
    copies, cases = np.repeat(x, 10), [f"case {i}" for i in np.repeat(np.arange(30), 10)]
    together, one_by_one, plain = mean_interval(copies, cases=cases), mean_interval(copies), mean_interval(x)
    assert together.high - together.low == pytest.approx(plain.high - plain.low, rel=0.1)
    assert one_by_one.high - one_by_one.low < 0.5 * (plain.high - plain.low)


def test_the_same_seed_gives_the_same_number():
    x = np.random.default_rng(3).normal(size=50)
    assert mean_interval(x, seed=5) == mean_interval(x, seed=5)
    assert mean_interval(x, seed=5) != mean_interval(x, seed=6)


def test_resamples_are_drawn_in_blocks_without_a_trace(monkeypatch):
    x = np.random.default_rng(3).normal(size=50)
    whole = mean_interval(x, resamples=100)
    monkeypatch.setattr("mg3d.metrics.resampling.BLOCK", 50 * 7)
    assert mean_interval(x, resamples=100) == pytest.approx(whole)


def test_groups_are_averaged_by_themselves():
    rng = np.random.default_rng(4)
    values, groups, cases = rng.normal(size=120), list("bac") * 40, np.arange(120) // 6
    values[0:6] += 10
    values[[1, 7]] = np.nan
    rows = grouped_means(values, groups, cases=cases, resamples=3000)
    assert [r["group"] for r in rows] == ["b", "a", "c"]
    assert [r["undefined"] for r in rows] == [0, 2, 0]
    for row in rows:
        mine = np.array(groups) == row["group"]
        alone = mean_interval(values[mine], cases=cases[mine], resamples=3000)
        assert row["mean"] == pytest.approx(np.nanmean(values[mine]))
        assert row["n"] == 40 - row["undefined"]
        assert row["low"] == pytest.approx(alone.low, abs=0.1)
        assert row["high"] == pytest.approx(alone.high, abs=0.1)
        assert row["cases"] == 20


def test_a_group_without_a_number_says_so():
    rows = grouped_means(np.array([1.0, np.nan, 3.0]), ["x", "y", "x"])
    assert (rows[0]["mean"], rows[0]["n"]) == (2, 2)
    assert np.isnan([rows[1]["mean"], rows[1]["low"], rows[1]["high"]]).all()
    assert (rows[1]["n"], rows[1]["undefined"], rows[1]["cases"]) == (0, 1, 0)


def test_pairs_take_away_what_they_share():
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 5, 80)
    one, other = hard + 0.5 + rng.normal(0, 0.3, 80), hard + rng.normal(0, 0.3, 80)
    paired = paired_interval(one, other)
    assert paired.low > 0.3
    assert paired.high < 0.7
    alone = mean_interval(one)
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)
    assert paired_test(one, other) < 0.001
    assert paired_test(one, other) == paired_test(other, one)


def test_a_small_paired_test_is_exact():
    one, other = np.array([5.0, 4.0, 6.0, 3.0, 9.0]), np.array([3.0, 1.0, 5.0, 4.0, 4.0])
    p = stats.permutation_test((one - other,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert paired_test(one, other) == pytest.approx(p)
    assert paired_test(one, one) == 1


def test_a_larger_paired_test_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(6)
    p = [paired_test(*rng.normal(size=(2, 40)), resamples=400, seed=i) for i in range(200)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert min(p) >= 1 / 401


def test_a_paired_test_flips_whole_cases():
    difference = np.repeat([1.0, 1.2, 0.8], 50)
    assert paired_test(difference, 0 * difference, cases=np.repeat([0, 1, 2], 50)) == 0.25  # 2 of 2^3 flips
    assert paired_test(difference, 0 * difference) < 0.001


def test_seeds_and_cases_are_both_drawn():
    rng = np.random.default_rng(7)
    runs, cases = 8, 60
    of_run, of_case = rng.normal(0, 1, runs), rng.normal(0, 1, cases)
    table = 5 + of_run[:, None] + of_case + rng.normal(0, 0.1, (runs, cases))
    seeds, names = np.repeat(np.arange(runs), cases), np.tile(np.arange(cases), runs)
    both = seeds_and_cases(table.ravel(), seeds=seeds, cases=names, resamples=4000)
    assert both.value == pytest.approx(table.mean())
    spread = np.sqrt(of_run.var() / runs + of_case.var() / cases)
    assert both.high - both.low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    only = mean_interval(table.ravel(), cases=names)
    assert only.high - only.low < 0.6 * (both.high - both.low)
    shuffled = rng.permutation(table.size)
    again = seeds_and_cases(table.ravel()[shuffled], seeds=seeds[shuffled], cases=names[shuffled], resamples=4000)
    assert again == pytest.approx(both)


def test_one_seed_leaves_the_interval_over_cases():
    x = np.random.default_rng(8).normal(size=50)
    one = seeds_and_cases(x, seeds=[0] * 50, cases=np.arange(50), resamples=4000)
    plain = mean_interval(x, resamples=4000)
    assert one.high - one.low == pytest.approx(plain.high - plain.low, rel=0.1)


def test_three_seeds_have_a_wide_interval():
    found = over_seeds(np.array([1.0, 2.0, 3.0]))
    assert found.value == 2
    assert found.high - 2 == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)
    for bad in ([1.0], [1.0, np.nan]):
        with pytest.raises(ValueError, match="over seeds"):
            over_seeds(np.array(bad))


def test_any_statistic_can_be_resampled():
    x = np.random.default_rng(9).normal(size=(60, 2))
    found = bootstrap(lambda w: (w @ x) / w.sum(1, keepdims=True), None, samples=60, resamples=300)
    slow = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=300) @ x / 60
    assert found.value == pytest.approx(x.mean(0))
    assert found.low == pytest.approx(np.percentile(slow, 2.5, axis=0))


def test_nothing_to_resample_is_said():
    x = np.array([np.nan, np.nan])
    for call in (
        lambda: mean_interval(x),
        lambda: paired_test(x, x),
        lambda: seeds_and_cases(x, seeds=[0, 1], cases=[0, 1]),
    ):
        with pytest.raises(ValueError, match="nothing to"):
            call()
    with pytest.raises(ValueError, match="no sample"):
        mean_interval(x[:0])
    with pytest.raises(ValueError, match="one group a value"):
        grouped_means(x, ["a"])
    with pytest.raises(ValueError, match="one case a value"):
        grouped_means(x, ["a", "b"], cases=[0])
    with pytest.raises(ValueError, match="two equal lists"):
        paired_interval(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="level"):
        mean_interval(np.ones(3), level=95.0)
    with pytest.raises(ValueError, match="resamples"):
        mean_interval(np.ones(3), resamples=0)
