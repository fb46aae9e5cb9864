"""Tables of scores, one dict a row: means of groups and differences of pairs, with intervals over cases and runs.

A row has a `case`, perhaps a `run`, and whatever else it can be grouped by. pandas.DataFrame takes such a list.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mg3d.metrics.resampling import grouped_means, paired_interval, paired_test, seeds_and_cases

Rows = list[dict[str, Any]]


def means(
    rows: Rows, measure: str, *, by: Sequence[str] = ("map",), where: Mapping[str, Any] | None = None, **how: Any
) -> Rows:
    """The mean of a measure for each combination of the columns `by`, with its interval: one row each.

    Intervals are over cases, and over runs and cases where the rows hold several runs. `where` keeps the rows with
    these values; `how` is resamples, seed and level. The columns: those of `by`, mean, low, high, n, cases, undefined
    (NaN, which are left out). Raises ValueError when no row is left.
    """
    kept = _kept(rows, where)
    values, cases = np.array([r[measure] for r in kept], float), np.array([r["case"] for r in kept])
    groups = [tuple(r[column] for column in by) for r in kept]
    table = grouped_means(values, groups, cases=cases, **how)
    runs = np.array([r.get("run", "") for r in kept])
    if len(set(runs.tolist())) > 1:
        for row in table:
            mine = np.array([group == row["group"] for group in groups])
            if row["n"]:
                both = seeds_and_cases(values[mine], seeds=runs[mine], cases=cases[mine], **how)
                row |= {"low": both.low, "high": both.high}
    return [dict(zip(by, row.pop("group"), strict=True)) | row for row in table]


def contrast(
    rows: Rows,
    measure: str,
    one: str,
    other: str,
    *,
    column: str = "map",
    same: Sequence[str] = ("run", "case", "sentence", "target"),
    where: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """How much larger a measure is where `column` is `one` than where it is `other`, all else the `same`.

    difference, low and high (interval over cases), p (`paired_test`, by case) and n, the pairs without NaN. Raises
    ValueError when there is no pair, and when a combination of `same` has two rows of one kind.
    """
    pairs: dict[tuple, dict[str, float]] = {}
    for r in _kept(rows, where):
        pair = pairs.setdefault(tuple(r.get(key) for key in same), {})
        if r[column] in pair:
            raise ValueError(
                f"two rows with {column}={r[column]!r} and equal {', '.join(same)}: name what sets them apart"
            )
        pair[r[column]] = r[measure]
    both = {key: (values[one], values[other]) for key, values in pairs.items() if one in values and other in values}
    if not both:
        there = sorted({str(r[column]) for r in rows})
        raise ValueError(f"nothing has both {one!r} and {other!r} as {column}; there are {', '.join(there)}")
    a, b = np.array(list(both.values()), float).T
    cases = [str(key[list(same).index("case")]) for key in both]
    found = paired_interval(a, b, cases=cases, seed=seed)
    return {
        "difference": float(found.value),
        "low": float(found.low),
        "high": float(found.high),
        "p": paired_test(a, b, cases=cases, seed=seed),
        "n": int((~np.isnan(a - b)).sum()),
    }


def _kept(rows: Rows, where: Mapping[str, Any] | None) -> Rows:
    kept = [r for r in rows if all(r[column] == value for column, value in (where or {}).items())]
    if not kept:
        raise ValueError(f"none of the {len(rows)} rows has {dict(where or {})}")
    return kept
