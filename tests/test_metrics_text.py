"""Scores of reports against sacreBLEU, NLTK and rouge-score, on texts that repeat, differ, end early or say nothing."""

from pathlib import Path

import numpy as np
import pytest
from texts import REPORTS

from mg3d.metrics import bleu, bleu_interval, meteor_exact, report_scores, rouge_l
from mg3d.metrics.text import bleu_counts, longest_common, words

SHARED = Path(__file__).parents[2] / "shared" / "data"


def corpus(n: int = 40, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts of few words, so that n-grams repeat within them; hypotheses of all lengths, some empty, some perfect."""
    rng = np.random.default_rng(seed)
    some = ["the", "nodule", "lung", "is", "in", "right", "lobe", "9.3", "mm", "."]
    references = [" ".join(rng.choice(some, rng.integers(1, 30))) + " seen" for _ in range(n)]
    hypotheses = [" ".join(rng.choice(some, rng.integers(0, 30))) for _ in range(n)]
    return ["", references[1], *hypotheses[2:]], references


def spaced(texts: list[str]) -> list[str]:
    return [" ".join(words(text)) for text in texts]


def test_words_are_small_and_keep_full_stops_and_decimals():
    assert words("A ground-glass nodule of 9.3 mm, (T12?)... No effusion.") == (
        ["a", "ground", "glass", "nodule", "of", "9.3", "mm", "t12", ".", "no", "effusion", "."]
    )
    assert words(" -- ") == []


@pytest.mark.parametrize("hypotheses", [None, REPORTS[::-1], [""] * len(REPORTS), ["No. " * 3] * len(REPORTS)])
def test_bleu_is_that_of_sacrebleu(hypotheses):
    import sacrebleu

    said, meant = corpus() if hypotheses is None else (hypotheses, REPORTS)
    for n, ours in enumerate(bleu(said, meant), 1):
        theirs = sacrebleu.BLEU(tokenize="none", smooth_method="none", max_ngram_order=n, force=True)
        assert 100 * ours == pytest.approx(theirs.corpus_score(spaced(said), [spaced(meant)]).score, abs=1e-9)


def test_bleu_by_hand():
    said, meant = ["the nodule the nodule"], ["the nodule is in the lung"]
    # 3 of 4 words (clipped), 1 of 3 pairs, no triple; 4 words for 6
    short = np.exp(1 - 6 / 4)
    assert bleu(said, meant) == pytest.approx([short * 3 / 4, short * np.sqrt(3 / 4 * 1 / 3), 0, 0])
    assert bleu(REPORTS, REPORTS) == pytest.approx([1, 1, 1, 1])


def test_bleu_has_an_interval_over_cases():
    said, meant = corpus()
    found = bleu_interval(said, meant, resamples=200)
    assert found.value == pytest.approx(bleu(said, meant))
    assert (found.low < found.value).all()
    assert (found.high > found.value).all()
    twice = bleu_interval(said * 2, meant * 2, cases=list(range(40)) * 2, resamples=200)
    assert twice.low == pytest.approx(found.low)


def test_rouge_l_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    class Spaces:
        def tokenize(self, text):
            return text.split()

    scorer = RougeScorer(["rougeL"], tokenizer=Spaces())
    said, meant = corpus()
    theirs = [scorer.score(r, h)["rougeL"] for h, r in zip(spaced(said), spaced(meant), strict=True)]
    assert rouge_l(said, meant, beta=1.0) == pytest.approx([t.fmeasure for t in theirs])
    weighted = [
        (1 + 1.44) * t.precision * t.recall / (t.recall + 1.44 * t.precision) if t.recall else 0.0 for t in theirs
    ]
    assert rouge_l(said, meant) == pytest.approx(weighted)


def test_the_longest_common_subsequence_is_that_of_the_table():
    rng = np.random.default_rng(1)
    for _ in range(50):
        one, other = (list(map(str, rng.integers(0, 4, rng.integers(0, 90)))) for _ in range(2))
        table = np.zeros((len(one) + 1, len(other) + 1), int)
        for i, a in enumerate(one, 1):
            for j, b in enumerate(other, 1):
                table[i, j] = table[i - 1, j - 1] + 1 if a == b else max(table[i - 1, j], table[i, j - 1])
        assert longest_common(one, other) == table[-1, -1]


def test_meteor_is_that_of_nltk_without_stems_and_synonyms():
    from nltk.translate.meteor_score import single_meteor_score

    class Nothing:
        def stem(self, word):
            return word

        def synsets(self, word):
            return []

    said, meant = corpus()
    theirs = [
        single_meteor_score(words(r), words(h), stemmer=Nothing(), wordnet=Nothing())
        for h, r in zip(said, meant, strict=True)
    ]
    assert meteor_exact(said, meant) == pytest.approx(theirs)


def test_a_report_that_says_nothing_scores_nothing():
    line = report_scores(["", "..."], ["The heart is normal.", "No nodule."])
    assert set(line.values()) == {0.0}
    assert meteor_exact(["", "x"], ["a", "b"]).tolist() == [0, 0]
    perfect = report_scores(REPORTS, REPORTS)
    assert perfect["bleu4"] == perfect["rouge_l"] == pytest.approx(1)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="1 reports for 2 references"):
        bleu(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="0 reports for 0"):
        report_scores([], [])
    with pytest.raises(ValueError, match="reference 1 of 2 has no words"):
        rouge_l(["a", "b"], ["a", " - "])


def test_counts_add_up_to_the_corpus():
    said, meant = corpus()
    counts = bleu_counts(said, meant)
    assert counts.shape == (40, 10)
    assert counts[:, 0].tolist() == [len(words(text)) for text in said]
    assert (counts[:, 2:6] <= counts[:, 6:]).all()
