"""Retrieval: ranks against a full sort, ties, groups, chance, both directions, and search in a gallery."""

import math
import tracemalloc
from itertools import permutations

import numpy as np
import pytest

from mg3d.metrics import Gallery, Ranks, chance, one_of_each, ranks, retrieval
from mg3d.metrics.retrieval import found_among, normalised

EYE = np.eye(4, dtype=np.float32)


def pairs(n: int = 40, width: int = 8, *, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width))
    return (x + noise * rng.normal(size=x.shape)).astype(np.float32), x.astype(np.float32)


def test_ranks_known_by_hand():
    queries = np.array([[1, 0.5, 0, 0], [1, 0.5, 0, 0], [0, 0, 1, 0], [1, 1, 1, 0.5]], np.float32)
    found = ranks(queries, EYE)
    assert found.expected.tolist() == [1, 2, 1, 4]
    line = retrieval(queries, EYE, ks=(1, 2))
    assert line["report_to_volume/recall@1"] == 0.5
    assert line["report_to_volume/recall@2"] == 0.75
    assert line["report_to_volume/median_rank"] == 1.5
    assert line["report_to_volume/mrr"] == pytest.approx((1 + 1 / 2 + 1 + 1 / 4) / 4)
    # the other way, two queries are one point: rank 1 or 2, 2 or 3, then 1, 1
    assert ranks(EYE, queries).expected.tolist() == [1.5, 2.5, 1, 1]
    assert line["volume_to_report/mrr"] == pytest.approx((3 / 4 + 5 / 12 + 1 + 1) / 4)


@pytest.mark.parametrize("chunk", [1, 100, 2**25])
def test_ranks_are_those_of_a_full_sort_whatever_the_chunk(chunk):
    queries, gallery = pairs()
    cosine = normalised(queries) @ normalised(gallery).T
    slow = [1 + list(np.argsort(-row)).index(i) for i, row in enumerate(cosine)]
    assert ranks(queries, gallery, chunk=chunk).expected.tolist() == slow
    groups = np.arange(40) // 3
    slow = [
        1 + min(int((row[groups != g] > row[j]).sum()) for j in np.flatnonzero(groups == g))
        for g, row in zip(groups, cosine, strict=True)
    ]
    assert ranks(queries, gallery, groups=groups, chunk=chunk).expected.tolist() == slow


def test_ties_are_broken_as_every_order_would_on_average():
    wrong, right, above = 3, 2, 1
    places = [1 + above + min(order.index("r"), order.index("R")) for order in permutations(["r", "R", *"www"])]
    found = Ranks(*(np.array([n]) for n in (above, wrong, right)))
    assert found.expected[0] == pytest.approx(np.mean(places))
    assert found.reciprocal[0] == pytest.approx(np.mean([1 / p for p in places]))
    for k in range(1, 7):
        assert found.recall_at(k)[0] == pytest.approx(np.mean([p <= k for p in places]))


@pytest.mark.parametrize("groups", [None, np.array([0, 0, 0, 1, 1, 2, 3, 4, 5, 6] * 5)])
def test_collapsed_features_score_exactly_chance(groups):
    """Identical rows: products may differ in the last bit, but nobody has won."""
    rng = np.random.default_rng(3)
    same = np.repeat(rng.normal(size=(1, 77)), 50, 0).astype(np.float32)
    scaled = same * rng.uniform(0.5, 2, (50, 1)).astype(np.float32)
    line = retrieval(scaled, same, groups=groups)
    for name in ("recall@5", "recall@10", "recall@50", "median_rank", "mrr"):
        assert line[f"report_to_volume/{name}"] == pytest.approx(line[f"chance/{name}"]), name
        assert line[f"volume_to_report/{name}"] == pytest.approx(line[f"chance/{name}"]), name


def test_chance_is_what_random_features_score():
    found = chance(items=200, ks=(5, 10))
    assert found["recall@5"] == pytest.approx(5 / 200)
    assert found["median_rank"] == pytest.approx(100.5)
    assert found["mrr"] == pytest.approx(sum(1 / k for k in range(1, 201)) / 200)
    groups = np.concatenate([np.zeros(50, int), np.arange(1, 151)])
    grouped = chance(groups, items=200, ks=(5,))
    of_large = 1 - math.comb(150, 5) / math.comb(200, 5)
    assert grouped["recall@5"] == pytest.approx((50 * of_large + 150 * 5 / 200) / 200)
    rng = np.random.default_rng(0)
    trials = [retrieval(*rng.normal(size=(2, 200, 16)).astype(np.float32), groups=groups, ks=(5,)) for _ in range(30)]
    assert np.mean([t["report_to_volume/recall@5"] for t in trials]) == pytest.approx(grouped["recall@5"], abs=0.02)
    assert np.mean([t["report_to_volume/mrr"] for t in trials]) == pytest.approx(grouped["mrr"], abs=0.02)


def test_items_of_a_group_are_right_for_one_another():
    queries, gallery = np.array([[0.1, 1.0]], np.float32).repeat(2, 0), np.eye(2, dtype=np.float32)
    assert ranks(queries, gallery).expected.tolist() == [2, 1]
    assert ranks(queries, gallery, groups=np.array([7, 7])).expected.tolist() == [1, 1]


def test_a_de_duplicated_gallery_is_no_smaller_for_its_queries():
    queries, gallery = pairs(30)
    groups = np.arange(30) % 10
    kept = one_of_each(groups)
    assert kept.tolist() == list(range(10))
    found = ranks(queries, gallery[kept], groups=groups, gallery_groups=groups[kept])
    cosine = normalised(queries) @ normalised(gallery[:10]).T
    assert found.expected.tolist() == [1 + int((row > row[g]).sum()) for g, row in zip(groups, cosine, strict=True)]
    with pytest.raises(ValueError, match=r"query 0 \(3 in all\) has no right item"):
        ranks(queries, gallery[kept[1:]], groups=groups, gallery_groups=groups[kept[1:]])


def test_places_beyond_the_tie():
    got = found_among(np.array([-3, 0, 1, 2, 3, 9]), wrong=2, right=1)
    assert got == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1])


def test_memory_does_not_grow_with_queries_times_gallery():
    peaks = []
    for n in (2000, 8000):
        queries, gallery = pairs(n, 4)
        tracemalloc.start()
        ranks(queries, gallery, chunk=2**17)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 6e6  # 8000 x 8000 cosines would be 256 MB
    assert peaks[1] < 3 * peaks[0]


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_rows_without_a_direction_are_named(bad):
    queries, gallery = pairs(6)
    gallery[3] = bad
    with pytest.raises(ValueError, match=r"gallery item 3 \(1 in all\)"):
        ranks(queries, gallery)
    with pytest.raises(ValueError, match="query 3"):
        ranks(gallery, queries)
    with pytest.raises(ValueError, match="gallery item 3"):
        Gallery(gallery)


def test_lengths_that_differ_are_refused():
    queries, gallery = pairs(6)
    with pytest.raises(ValueError, match="one group an item"):
        ranks(queries, gallery[:5])
    with pytest.raises(ValueError, match="widths"):
        ranks(queries, gallery[:, :5])


def test_search_tells_apart_what_fp16_cannot():
    """Items around the query, their angles in steps of 1e-4: cosines differ by far less than fp16 resolves."""
    angle = 1e-4 * np.random.default_rng(0).permutation(3000)
    features = np.stack([np.cos(angle), np.sin(angle), np.zeros(3000)], 1).astype(np.float32)
    crowd = np.random.default_rng(1).normal(0, 0.01, (40_000, 3)).astype(np.float32) + EYE[2, :3]
    gallery = Gallery(np.concatenate([features, crowd]))
    query = np.array([0, 1, 0], np.float32)  # the widest angle is the nearest
    places, _ = gallery.search(query, 20)
    assert places.tolist() == np.argsort(-angle)[:20].tolist()
    same = Gallery(np.ones((1000, 8), np.float32))  # everything is a candidate
    assert len(set(same.search(np.ones(8, np.float32), 5)[0].tolist())) == 5


def test_search_gives_the_best_in_order():
    queries, features = pairs(500)
    gallery = Gallery(features)
    cosine = normalised(queries) @ normalised(features).T
    for query, row in zip(queries[:20], cosine, strict=False):
        places, found = gallery.search(query, 7)
        assert places.tolist() == np.argsort(-row)[:7].tolist()
        assert found == pytest.approx(row[places], abs=1e-6)
    assert len(gallery.search(queries[0], 10_000)[0]) == 500
    for query, k in ((queries[0], 0), (queries[0, :3], 5)):
        with pytest.raises(ValueError, match="query of shape"):
            gallery.search(query, k)
    with pytest.raises(ValueError, match="zero or not finite"):
        gallery.search(np.zeros(8, np.float32), 5)
