"""Tables of scores: groups, several runs, and differences between rows that belong together."""

import numpy as np
import pytest

from mg3d.metrics import contrast, mean_interval, means, seeds_and_cases


def table(runs=("r0",)) -> list[dict]:
    """Two sentences in each of 20 cases, map "a" better than "b" by 1, on top of how hard the case is."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 3, 20)
    return [
        {
            "run": run,
            "case": f"c{c}",
            "sentence": s,
            "target": "t",
            "map": m,
            "x": hard[c] + n + (m == "a") + rng.normal(0, 0.1),
        }
        for n, run in enumerate(runs)
        for c in range(20)
        for s in range(2)
        for m in "ab"
    ]


def test_means_are_those_of_their_group():
    rows = table()
    found = means(rows, "x", by=("map", "target"))
    assert [(r["map"], r["target"]) for r in found] == [("a", "t"), ("b", "t")]
    for row in found:
        mine = [r for r in rows if r["map"] == row["map"]]
        values, cases = np.array([r["x"] for r in mine]), [r["case"] for r in mine]
        alone = mean_interval(values, cases=cases)
        assert (row["mean"], row["low"], row["high"]) == pytest.approx(alone)
        assert (row["n"], row["cases"], row["undefined"]) == (40, 20, 0)
    (alone,) = means(rows, "x", where={"map": "b"})
    assert list(alone) == ["map", "mean", "low", "high", "n", "cases", "undefined"]
    assert alone["high"] == pytest.approx(found[1]["high"])


def test_several_runs_widen_the_interval():
    rows = table(("r0", "r1", "r2", "r3", "r4"))
    (found,) = means(rows, "x", where={"map": "a"})
    mine = [r for r in rows if r["map"] == "a"]
    both = seeds_and_cases(
        np.array([r["x"] for r in mine]), seeds=[r["run"] for r in mine], cases=[r["case"] for r in mine]
    )
    assert (found["mean"], found["low"], found["high"]) == pytest.approx(both)
    (one,) = means(rows, "x", where={"map": "a", "run": "r2"})
    assert one["n"] == 40


def test_a_contrast_is_paired():
    rows = table()
    rows[0]["x"] = np.nan
    found = contrast(rows, "x", "a", "b")
    assert found["difference"] == pytest.approx(1, abs=0.06)
    assert found["high"] - found["low"] < 0.15
    assert found["n"] == 39
    assert found["p"] < 0.001
    assert contrast(rows[:-1], "x", "a", "b")["n"] == 38  # one of the pair is missing


def test_rows_that_do_not_fit_are_refused():
    rows = table()
    with pytest.raises(ValueError, match="none of the 80 rows has"):
        means(rows, "x", where={"map": "z"})
    with pytest.raises(ValueError, match=r"nothing has both 'a' and 'z'.*a, b"):
        contrast(rows, "x", "a", "z")
    with pytest.raises(ValueError, match="two rows with map='a'"):
        contrast(rows + rows, "x", "a", "b")
