"""Does a report find its volume? Ranks by cosine in chunks of queries: memory stays constant, no N x N matrix is made.

Query i is right with gallery item i, and with every item of the same group (the same report, the same set of findings):
integers say which. Its rank is that of the best right item,

    rank = 1 + wrong items above + expected wrong items ahead among those tied with it

where ties are broken at random. Cosines nearer than TIE count as equal: they differ by rounding alone, so features that
have collapsed to one point score exactly chance.
"""

from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float, Int

TIE = 1e-6
ROUGH = 2e-3  # error of a cosine in fp16: 2^-11 each for the item, the query and the result, and some for the sum
CHUNK = 2**24  # cosines at a time: 64 MB
KS = (5, 10, 50, 100)
Integer = int | np.integer


class Ranks(NamedTuple):
    """Of each query, for its best right item."""

    above: Int[np.ndarray, " N"]  # wrong items that score higher
    wrong: Int[np.ndarray, " N"]  # wrong items that are tied with it
    right: Int[np.ndarray, " N"]  # right items of that score, itself among them: 1 or more

    @property
    def expected(self) -> Float[np.ndarray, " N"]:
        """The expected rank, from 1 on."""
        return 1 + self.above + self.wrong / (self.right + 1)

    def recall_at(self, k: int) -> Float[np.ndarray, " N"]:
        """1 for a query with a right item among the first k, else 0; the chance of it where ties decide."""
        return found_among(k - self.above, wrong=self.wrong, right=self.right)

    @property
    def reciprocal(self) -> Float[np.ndarray, " N"]:
        """The expected 1 / rank. Ties make few cases, and each distinct one is summed once."""
        out = 1 / (1.0 + self.above)
        tied = np.flatnonzero(self.wrong)
        kinds, kind = np.unique(np.stack(self, 1)[tied], axis=0, return_inverse=True)
        of_kind = np.zeros(len(kinds))
        for i, (above, wrong, right) in enumerate(kinds):
            found = found_among(np.arange(wrong + 2), wrong=wrong, right=right)
            of_kind[i] = (np.diff(found) / (above + np.arange(1, wrong + 2))).sum()
        out[tied] = of_kind[kind.reshape(-1)]
        return out


def ranks(
    queries: Float[np.ndarray, "N E"],
    gallery: Float[np.ndarray, "M F"],
    *,
    groups: Int[np.ndarray, " N"] | None = None,
    gallery_groups: Int[np.ndarray, " M"] | None = None,
    chunk: int = CHUNK,
) -> Ranks:
    """Ranks of all queries. Without groups query i belongs to gallery item i, so N = M.

    `groups` alone serves both sides (N = M); a de-duplicated gallery (`one_of_each`) has its own. Raises ValueError for
    features that are not finite or zero, for lengths that differ, and for a query without a right item.
    """
    q, g = normalised(queries, "query"), normalised(gallery, "gallery item")
    mine = np.arange(len(q)) if groups is None else np.asarray(groups)
    theirs = mine if gallery_groups is None else np.asarray(gallery_groups)
    if q.shape[1] != g.shape[1] or len(mine) != len(q) or len(theirs) != len(g):
        raise ValueError(
            f"{q.shape} queries with {len(mine)} groups, {g.shape} gallery items with {len(theirs)}: widths must be "
            "equal, and there must be one group an item"
        )
    if (lost := ~np.isin(mine, theirs)).any():
        raise ValueError(f"query {int(lost.argmax())} ({int(lost.sum())} in all) has no right item in the gallery")
    rows = max(1, chunk // len(g))
    parts = [_chunk(q[i : i + rows], g, mine[i : i + rows], theirs) for i in range(0, len(q), rows)]
    return Ranks(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _chunk(q: np.ndarray, g: np.ndarray, mine: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
    """above, wrong and right of a few queries."""
    cosine = q @ g.T
    right = mine[:, None] == theirs
    best = np.max(cosine, axis=1, keepdims=True, where=right, initial=-2)
    above, tied = cosine > best + TIE, cosine >= best - TIE
    everything, correct = tied.sum(1), (tied & right).sum(1)
    higher = above.sum(1)
    return higher, everything - higher - correct, correct


def summary(found: Ranks, *, ks: tuple[int, ...] = KS) -> dict[str, float]:
    """recall@k for each k, median_rank (of the expected ranks of the queries), and mrr, the mean of 1 / rank."""
    line = {f"recall@{k}": float(found.recall_at(k).mean()) for k in ks}
    return line | {"median_rank": float(np.median(found.expected)), "mrr": float(found.reciprocal.mean())}


def retrieval(
    reports: Float[np.ndarray, "N E"],
    volumes: Float[np.ndarray, "N E"],
    *,
    groups: Int[np.ndarray, " N"] | None = None,
    ks: tuple[int, ...] = KS,
) -> dict[str, float]:
    """Both directions in one line, and chance: `report_to_volume/recall@5`, `volume_to_report/...`, `chance/...`."""
    ways = {"report_to_volume": (reports, volumes), "volume_to_report": (volumes, reports)}
    line = {
        f"{way}/{k}": v for way, pair in ways.items() for k, v in summary(ranks(*pair, groups=groups), ks=ks).items()
    }
    return line | {f"chance/{k}": v for k, v in chance(groups, items=len(volumes), ks=ks).items()}


def chance(groups: Int[np.ndarray, " N"] | None = None, *, items: int, ks: tuple[int, ...] = KS) -> dict[str, float]:
    """What a blind order of the gallery scores: everything is tied. The same keys as `summary`."""
    size = np.ones(items, int)
    if groups is not None:
        _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
        size = counts[group]
    return summary(Ranks(np.zeros(items, int), items - size, size), ks=ks)


def found_among(
    places: Int[np.ndarray, " n"], *, wrong: Int[np.ndarray, " n"] | Integer, right: Int[np.ndarray, " n"] | Integer
) -> Float[np.ndarray, " n"]:
    """P(one of the `right` items is on the first `places` of a random order of `right` + `wrong` items).

    1 - C(wrong, places) / C(wrong + right, places), hypergeometric.
    """
    from scipy.special import gammaln

    j = np.clip(places, 0, wrong)
    none = gammaln(wrong + 1) - gammaln(wrong - j + 1) - gammaln(wrong + right + 1) + gammaln(wrong + right - j + 1)
    return np.where(places > wrong, 1.0, np.where(places <= 0, 0.0, 1 - np.exp(none)))


def one_of_each(groups: Int[np.ndarray, " N"]) -> Int[np.ndarray, " M"]:
    """The place of the first item of each group, in order: a de-duplicated gallery."""
    return np.sort(np.unique(groups, return_index=True)[1])


def normalised(features: Float[np.ndarray, "N E"], what: str = "row") -> Float[np.ndarray, "N E"]:
    """Rows of length 1, float32. Raises ValueError, naming the first one, for rows that are zero or not finite."""
    if features.ndim != 2 or not features.size:
        raise ValueError(f"{what}s of shape {features.shape}: features [N, E] are needed, and one at least")
    length = np.linalg.norm(features.astype(np.float32), axis=1, keepdims=True)
    bad = ~(np.isfinite(length) & (length > 0))[:, 0]
    if bad.any():
        raise ValueError(f"{what} {int(bad.argmax())} ({int(bad.sum())} in all) is zero or not finite: no cosine")
    return (features / length).astype(np.float32)


@final
class Gallery:
    """Items to be found again and again: their features are brought to length 1 once, and kept in fp16 as well.

    A search is as fast as memory is read. So all items are compared in fp16, and those that its rounding could have
    kept from the first k once more in float32, whose answer it is.
    """

    def __init__(self, features: Float[np.ndarray, "M E"]):
        """Raises what `normalised` raises."""
        import torch

        self.features = normalised(features, "gallery item")
        self._rough = torch.from_numpy(self.features).half()

    def search(self, query: Float[np.ndarray, " E"], k: int) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Places and cosines of the k nearest items, best first; k is cut to the gallery's size.

        Raises ValueError for a query that is zero, not finite or of another width, and for k below 1.
        """
        import torch

        if query.shape != self.features.shape[1:] or k < 1:
            raise ValueError(f"query of shape {query.shape} and k={k}: {self.features.shape[1:]} and k >= 1 are needed")
        unit = normalised(query[None], "query")[0]
        k = min(k, len(self.features))
        rough = torch.nn.functional.linear(torch.from_numpy(unit).half()[None], self._rough)[0].float().numpy()
        places = np.flatnonzero(rough >= np.partition(rough, -k)[-k] - 2 * ROUGH)
        few = len(places) < len(rough) / 8  # else it is faster to take no part out
        cosine = (self.features[places] if few else self.features) @ unit
        nearest = np.argpartition(-cosine, k - 1)[:k]
        nearest = nearest[np.argsort(-cosine[nearest], kind="stable")]
        return places[nearest] if few else nearest, cosine[nearest]
