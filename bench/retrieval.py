"""Finding volumes by reports in a gallery as large as CT-RATE: one query, and the ranks of all queries.

    python bench/retrieval.py [--items 50000] [--width 768] [--repeats 50] [--threads 2]

Ranks are computed once, in a process of its own, whose peak memory shows that no N x N matrix is made. Before that, a
search must give the order that sorting all cosines gives, and ranks of some queries those of counting one by one.
"""

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np
from measure import Line, arguments, fresh, in_turns, machine, peak_mb, table
from threadpoolctl import threadpool_limits

from mg3d.metrics.retrieval import TIE, Gallery, ranks

FEW = 200  # queries that are counted one by one
NEAREST = 50


def features(items: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and gallery, float32: the query of an item is the item under twelve times as much noise."""
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((items, width), dtype=np.float32)
    return gallery + 12 * rng.standard_normal((items, width), dtype=np.float32), gallery


def only(items: int, width: int) -> dict[str, float]:
    """Seconds of all ranks, most memory beyond the features in MB, and the median rank."""
    queries, gallery = features(items, width)
    before, start = peak_mb(), time.perf_counter()
    found = ranks(queries, gallery)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "mb": peak_mb() - before, "median": float(np.median(found.expected))}


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = arguments(__doc__, repeats=50, items=50_000, width=768)
    parser.add_argument("--items", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    with threadpool_limits(options.threads):
        if options.only:
            print(json.dumps(only(options.items, options.width)))
            return
        print(f"{options.items} x {options.width}, {machine(options.threads)}", flush=True)
        same = [f"--{n}={getattr(options, n)}" for n in ("items", "width", "threads")]
        whole = fresh(__file__, "--only", *same)
        queries, vectors = features(options.items, options.width)
        gallery = Gallery(vectors)
        unit = queries[:FEW] / np.linalg.norm(queries[:FEW], axis=1, keepdims=True)
        cosine = unit @ gallery.features.T
        places, _ = gallery.search(queries[0], NEAREST)
        np.testing.assert_array_equal(places, np.argsort(-cosine[0], kind="stable")[: len(places)])
        found = ranks(
            queries[: len(cosine)], vectors, groups=np.arange(len(cosine)), gallery_groups=np.arange(len(vectors))
        )
        own = cosine.diagonal()[:, None]
        least, most = (1 + (cosine > own + tie).sum(1) for tie in (2 * TIE, -2 * TIE))  # rounding may break a tie
        assert ((least <= found.expected) & (found.expected <= most)).all(), "ranks are not those that counting gives"
        one = 1000 * in_turns({"search": lambda: gallery.search(queries[1], NEAREST)}, options.repeats)["search"]
    matrix = 4 * options.items**2 / 2**20
    print(f"all ranks: {whole['seconds']:.1f} s, median rank {whole['median']:.0f}")
    shown = f"{whole['mb']:.0f} MB beyond the features, {whole['seconds']:.0f} s (the matrix: {matrix:.0f} MB)"
    found = [
        Line(f"search among {options.items} x {options.width}, one query", "< 10 ms", f"{one:.1f} ms", one < 10),
        Line("ranks of as many queries", "constant memory: < 1 GB", shown, whole["mb"] < 1024),
    ]
    table(found, __file__)


if __name__ == "__main__":
    main()
