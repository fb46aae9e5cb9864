"""Scores of written reports against the ones that radiologists wrote: BLEU, ROUGE-L, METEOR. One reference a case.

Texts are compared as lists of words (`words`), as report generation has it since MIMIC-CXR was cleaned for it: small
letters, no punctuation but the full stop. Ours keeps decimals whole. With h hypotheses, r references:

    BLEU-n   = exp(min(0, 1 - |r| / |h|)) (prod_k p_k)^(1/n),  p_k = matched k-grams / k-grams of h     over the corpus
    ROUGE-L  = (1 + b^2) P R / (R + b^2 P),  P = lcs / |h|,  R = lcs / |r|                               mean over cases
    METEOR   = 10 P R / (R + 9 P) (1 - (chunks / matches)^3 / 2)                                         mean over cases

BLEU as in COCO's and sacreBLEU's corpus score, without smoothing (Papineni et al. 2002); b = 1.2 as in COCO (Lin 2004).
METEOR is that of Lavie and Agarwal (2007) with its first stage alone: equal words match, stems and synonyms don't. The
k-th last occurrence of a word goes with the k-th last one, which may give more chunks than need be.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mg3d.metrics.resampling import Interval, bootstrap

ORDER = 4
ROUGE_BETA = 1.2
WORD = re.compile(r"\d+\.\d+|[^\W_]+|\.")


def words(text: str) -> list[str]:
    """Words and numbers in small letters, and each full stop (or run of them) that ends something: "9.3" is one."""
    found = WORD.findall(text.lower())
    return [w for i, w in enumerate(found) if w != "." or (i and found[i - 1] != ".")]


def bleu_counts(hypotheses: Sequence[str], references: Sequence[str]) -> Int[np.ndarray, "n k"]:
    """What BLEU adds up, for each case: words of h, words of r, then matched 1- to 4-grams, then those of h.

    Raises ValueError when the lists differ in length or are empty, and for a reference without words.
    """
    rows = []
    for said, meant in _pairs(hypotheses, references):
        matched, there = [], []
        for n in range(1, ORDER + 1):
            grams, right = (Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (said, meant))
            matched.append((grams & right).total())
            there.append(grams.total())
        rows.append([len(said), len(meant), *matched, *there])
    return np.array(rows)


def bleu_of(counts: Float[np.ndarray, "*R k"]) -> Float[np.ndarray, "*R n"]:
    """BLEU-1 to BLEU-4 of summed counts; 0 where nothing of an order matches, or nothing was written."""
    said, meant = counts[..., :1], counts[..., 1:2]
    matched, there = counts[..., 2 : 2 + ORDER], counts[..., 2 + ORDER :]
    with np.errstate(divide="ignore"):
        precision = np.log(matched / np.maximum(there, 1))
        brevity = np.minimum(0, 1 - meant / np.maximum(said, 1e-300))
    return np.exp(brevity + np.cumsum(precision, -1) / np.arange(1, ORDER + 1))


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> Float[np.ndarray, " n"]:
    """BLEU-1 to BLEU-4 of a corpus, from 0 to 1. Raises what `bleu_counts` raises."""
    return bleu_of(bleu_counts(hypotheses, references).sum(0).astype(float))


def bleu_interval(hypotheses: Sequence[str], references: Sequence[str], **how: Any) -> Interval:
    """BLEU-1 to BLEU-4 and their intervals over cases (`how` as for `bootstrap`): the corpus is drawn anew."""
    counts = bleu_counts(hypotheses, references).astype(float)
    cases = how.pop("cases", None)
    return bootstrap(lambda weights: bleu_of(weights @ counts), cases, samples=len(counts), **how)


def rouge_l(
    hypotheses: Sequence[str], references: Sequence[str], *, beta: float = ROUGE_BETA
) -> Float[np.ndarray, " n"]:
    """ROUGE-L of each case, over the report as one sequence; 0 where nothing was written."""
    values = []
    for said, meant in _pairs(hypotheses, references):
        common = longest_common(said, meant)
        precision, recall = common / max(1, len(said)), common / len(meant)
        below = recall + beta**2 * precision
        values.append((1 + beta**2) * precision * recall / below if common else 0.0)
    return np.array(values)


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence: a row of the table at a time, as the bits of an integer (Hyyrö 2004).

    Bit i of the row is 0 where the table grows at word i of `one`.
    """
    places: dict[str, int] = defaultdict(int)
    for i, word in enumerate(one):
        places[word] |= 1 << i
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        there = row & places.get(word, 0)
        row = (row + there | row - there) & full
    return len(one) - row.bit_count()


def meteor_exact(hypotheses: Sequence[str], references: Sequence[str]) -> Float[np.ndarray, " n"]:
    """METEOR of each case with exact matches alone; 0 where nothing matches."""
    return np.array([_meteor(said, meant) for said, meant in _pairs(hypotheses, references)])


def _meteor(said: list[str], meant: list[str]) -> float:
    places: dict[str, list[int]] = defaultdict(list)
    for j, word in enumerate(meant):
        places[word].append(j)
    matches = [(i, places[word].pop()) for i, word in reversed(list(enumerate(said))) if places[word]]
    if not matches:
        return 0.0
    precision, recall = len(matches) / len(said), len(matches) / len(meant)
    joined = sum((i - 1, j - 1) == before for (i, j), before in pairwise(matches))
    chunks = len(matches) - joined
    return 10 * precision * recall / (recall + 9 * precision) * (1 - (chunks / len(matches)) ** 3 / 2)


def report_scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """One line of results: bleu1 to bleu4, rouge_l, meteor_exact, and words, the mean length of what was written.

    Raises what `bleu_counts` raises.
    """
    counts = bleu_counts(hypotheses, references)
    line = {f"bleu{n}": float(v) for n, v in enumerate(bleu_of(counts.sum(0).astype(float)), 1)}
    line["rouge_l"] = float(rouge_l(hypotheses, references).mean())
    line["meteor_exact"] = float(meteor_exact(hypotheses, references).mean())
    return line | {"words": float(counts[:, 0].mean())}


def _pairs(hypotheses: Sequence[str], references: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """Words of both sides of each case."""
    if len(hypotheses) != len(references) or not len(references):
        raise ValueError(f"{len(hypotheses)} reports for {len(references)} references: equal, and not 0, is needed")
    pairs = [(words(said), words(meant)) for said, meant in zip(hypotheses, references, strict=True)]
    bare = next((i for i, (_, meant) in enumerate(pairs) if not meant), None)
    if bare is not None:
        raise ValueError(f"reference {bare} of {len(pairs)} has no words: nothing can be compared with it")
    return pairs
