"""How sure is a number? Bootstrap intervals over cases and seeds, and paired tests; deterministic for a seed.

A resample draws as many cases as there are, with replacement; all samples of a case (its sentences, its volumes) come
along. It is one row of weights, how often each sample was drawn, so that a statistic of all resamples is a few matrix
products and no loop: `statistic(weights [R, n]) -> [R] or [R, L]`. Intervals are percentiles of the resamples.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num, Shaped

RESAMPLES = 2000
LEVEL = 0.95
BLOCK = 2**22  # weights that are drawn at a time: 32 MB
EXACT = 12  # cases up to which a sign-flip test tries every flip

Values = Num[np.ndarray, " n"]
Names = Shaped[np.ndarray, " n"] | Sequence | None


class Interval(NamedTuple):
    """A number and its interval; arrays for a statistic of several numbers."""

    value: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


def bootstrap(
    statistic: Callable[[Float[np.ndarray, "R n"]], Float[np.ndarray, "R *L"]],
    cases: Names,
    *,
    samples: int = 0,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """A statistic and its interval over cases.

    `cases` names the case of each sample; None: each of the `samples` is a case of its own. Resamples where the
    statistic is NaN (a label that lost its positives) are left out. Raises ValueError without any sample.
    """
    return _interval(*resampled(statistic, cases, samples=samples, resamples=resamples, seed=seed), level)


def resampled(
    statistic: Callable[[Float[np.ndarray, "R n"]], Float[np.ndarray, "R *L"]],
    cases: Names,
    *,
    samples: int = 0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """A statistic, and the same of each resample: what `bootstrap` makes its interval of.

    Equal cases, `resamples` and `seed` draw equal resamples, so that two statistics of them are paired.
    """
    case, count = _numbered(cases, samples)
    of_all = np.asarray(np.asarray(statistic(np.ones((1, len(case)))))[0])
    rng, drawn = np.random.default_rng(seed), []
    for block in _blocks(resamples, count):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=block).astype(np.float64)
        drawn.append(np.asarray(statistic(weights[:, case])))
    return of_all, np.concatenate(drawn)


def mean_interval(values: Values, *, cases: Names = None, **how) -> Interval:
    """The mean over samples, and its interval over cases. NaN are left out; all NaN is a ValueError.

    `how` goes to `bootstrap`.
    """
    row = grouped_means(values, ["all"] * len(values), cases=cases, **how)[0]
    if not row["n"]:
        raise ValueError(f"all {len(values)} values are NaN: there is nothing to average")
    return Interval(row["mean"], row["low"], row["high"])


def grouped_means(
    values: Values,
    groups: Sequence,
    *,
    cases: Names = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> list[dict]:
    """The mean of each group (of a finding, of a lesion size) with its interval over cases: one row a group.

    Rows are {group, mean, low, high, n, cases, undefined}, in the order in which groups first appear; `undefined`
    counts the NaN that were left out. Every group is judged on the same resamples. Raises ValueError for lengths that
    differ and without any value.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(groups) != len(values):
        raise ValueError(f"{len(values)} values and {len(groups)} groups: one group a value is needed")
    case, count = _numbered(cases, len(values))
    if len(case) != len(values):
        raise ValueError(f"{len(values)} values and {len(case)} cases: one case a value is needed")
    names = list(dict.fromkeys(groups))
    number = {name: i for i, name in enumerate(names)}
    group = np.array([number[g] for g in groups])
    fine = ~np.isnan(values)
    sums, counts = _table(values[fine], case[fine], group[fine], shape=(count, len(names)))

    def mean(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):  # a group that is in no drawn case
            return (weights @ sums) / (weights @ counts)

    found = bootstrap(mean, None, samples=count, resamples=resamples, seed=seed, level=level)
    missing = np.bincount(group[~fine], minlength=len(names))
    return [
        {
            "group": name,
            **{key: float(np.asarray(x)[i]) for key, x in zip(("mean", "low", "high"), found, strict=True)},
            "n": int(counts[:, i].sum()),
            "cases": int((counts[:, i] > 0).sum()),
            "undefined": int(missing[i]),
        }
        for i, name in enumerate(names)
    ]


def paired_interval(one: Values, other: Num[np.ndarray, " m"], *, cases: Names = None, **how) -> Interval:
    """The mean of one - other, sample by sample, and its interval over cases; pairs with a NaN are left out.

    Raises ValueError for lists of different lengths.
    """
    return mean_interval(_difference(one, other), cases=cases, **how)


def paired_test(
    one: Values, other: Num[np.ndarray, " m"], *, cases: Names = None, resamples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p that one and other are exchangeable within a case, by flipping the sign of each case's differences.

    Exact (all 2^C flips) up to 12 cases, else (1 + flips at least as far from 0) / (1 + resamples). Pairs with a NaN
    are left out; ValueError when none is left.
    """
    difference = _difference(one, other)
    case, count = _numbered(cases, len(difference))
    fine = ~np.isnan(difference)
    if not fine.any():
        raise ValueError("no pair without NaN: there is nothing to test")
    sums = np.bincount(case[fine], weights=difference[fine], minlength=count)
    far = abs(sums.sum()) - 1e-12 * np.abs(sums).sum()
    if count <= EXACT:
        flips = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        return float((np.abs(flips @ sums) >= far).mean())
    rng = np.random.default_rng(seed)
    as_far = sum(
        int((np.abs((1 - 2 * rng.integers(0, 2, (block, count), dtype=np.int8)) @ sums) >= far).sum())
        for block in _blocks(resamples, count)
    )
    return (1 + as_far) / (1 + resamples)


def seeds_and_cases(
    values: Values,
    *,
    seeds: Names,
    cases: Names,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """The mean over runs and cases, and its interval when both seeds and cases are drawn anew.

    Each run (seed) has scored the same cases, so the two are drawn independently and crossed. With k seeds the
    bootstrap shows only (k - 1) / k of the variance between them: with three, give `over_seeds` beside it.
    """
    values = np.asarray(values, dtype=np.float64)
    (run, runs), (case, count) = _numbered(seeds, len(values)), _numbered(cases, len(values))
    if not len(run) == len(case) == len(values):
        raise ValueError(f"{len(values)} values, {len(run)} seeds, {len(case)} cases: one of each a value is needed")
    fine = ~np.isnan(values)
    if not fine.any():
        raise ValueError(f"all {len(values)} values are NaN: there is nothing to average")
    sums, counts = _table(values[fine], run[fine], case[fine], shape=(runs, count))
    rng, drawn = np.random.default_rng(seed), []
    for block in _blocks(resamples, count):
        of_runs = rng.multinomial(runs, np.full(runs, 1 / runs), size=block).astype(np.float64)
        of_cases = rng.multinomial(count, np.full(count, 1 / count), size=block)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn.append(((of_runs @ sums) * of_cases).sum(1) / ((of_runs @ counts) * of_cases).sum(1))
    return _interval(np.asarray(sums.sum() / counts.sum()), np.concatenate(drawn), level)


def over_seeds(values: Values, *, level: float = LEVEL) -> Interval:
    """The mean of one number a seed, and Student's interval with n - 1 degrees of freedom.

    Raises ValueError for fewer than two values and for NaN.
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"an interval over seeds needs two finite numbers or more, one a seed; got {values}")
    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * error
    return Interval(float(mean), float(mean - half), float(mean + half))


def runs_and_cases(values: Values, *, error: float, level: float = LEVEL) -> Interval:
    """The mean of one number a run, and its interval when both runs and cases are drawn anew.

    `error` is the standard error of that mean over cases, the runs as they are (e.g. the deviation of its resamples).
    The variances of both add; Student's quantile has the degrees of freedom of Welch and Satterthwaite, so that few
    runs make it wide. One run shows nothing of other runs: its interval is over cases alone. Raises ValueError
    without values, and for values that are not finite.
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=np.float64)
    if not len(values) or not np.isfinite([*values, error]).all():
        raise ValueError(f"finite numbers are needed, one a run, and a finite error; got {values}, error={error}")
    between = values.var(ddof=1) / len(values) if len(values) > 1 else 0.0
    both = between + error**2
    freedom = both**2 / between**2 * (len(values) - 1) if between else np.inf
    half = float(t.ppf((1 + level) / 2, freedom)) * np.sqrt(both)
    mean = float(values.mean())
    return Interval(mean, float(mean - half), float(mean + half))


def weighted_means(values: Float[np.ndarray, "n L"], weights: Float[np.ndarray, "R n"]) -> Float[np.ndarray, "R L"]:
    """The mean of each column over the samples where it is finite; NaN where no such sample was drawn."""
    fine = np.isfinite(values)
    count = weights @ fine
    return np.where(count > 0, weights @ np.where(fine, values, 0) / np.where(count > 0, count, 1), np.nan)


def mean_of_defined(values: Float[np.ndarray, "R L"]) -> Float[np.ndarray, " R"]:
    """The mean of each row over what is no NaN; NaN where all is."""
    fine = ~np.isnan(values)
    return np.where(fine, values, 0).sum(1) / np.where(fine.any(1), fine.sum(1), np.nan)


def _numbered(names: Names, samples: int) -> tuple[np.ndarray, int]:
    """The number of each sample's case, and how many cases there are."""
    case = np.arange(samples) if names is None else np.unique(np.asarray(names), return_inverse=True)[1].reshape(-1)
    if not len(case):
        raise ValueError("there is no sample: nothing to resample")
    return case, int(case.max()) + 1


def _table(
    values: np.ndarray, row: np.ndarray, column: np.ndarray, *, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The sum and the number of the values that fall into each cell of a table of `shape`."""
    cell, size = row * shape[1] + column, shape[0] * shape[1]
    sums = np.bincount(cell, weights=values, minlength=size).reshape(shape)
    return sums, np.bincount(cell, minlength=size).reshape(shape).astype(np.float64)


def _blocks(resamples: int, count: int) -> list[int]:
    """How many resamples of `count` cases are drawn at a time."""
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: take 1 or more")
    block = max(1, BLOCK // count)
    return [min(block, resamples - start) for start in range(0, resamples, block)]


def _difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"pairs of shapes {one.shape} and {other.shape}: two equal lists are needed")
    return one - other


def _interval(value: np.ndarray, drawn: np.ndarray, level: float) -> Interval:
    """Percentiles of the resamples; NaN where every one of them is."""
    if not 0 < level < 1:
        raise ValueError(f"level={level}: take a share between 0 and 1, e.g. 0.95")
    edges = np.full((2, *drawn.shape[1:]), np.nan)
    some = ~np.isnan(drawn).all(0)
    if some.any():
        edges[:, some] = np.nanpercentile(drawn[:, some], [50 * (1 - level), 50 * (1 + level)], axis=0)
    low, high = edges
    return Interval(*(float(x) if np.ndim(x) == 0 else np.asarray(x) for x in (value, low, high)))
