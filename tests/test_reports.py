"""A report diff: sentences meet their partners, and each word is the same, missing or added."""

import pytest

from widgets.reports import ReportDiff, sentences

REFERENCE = "There is a nodule of 9.5 mm in the right lung. Heart size is normal. Mild emphysema."
GENERATED = "The heart is normal in size. There is a nodule of 5 mm in the <left> lung. Bones are unremarkable."


def test_sentences_meet_their_partners_in_the_references_order():
    rows = ReportDiff(GENERATED, REFERENCE).rows
    assert list(rows["reference"]) == [*sentences(REFERENCE), ""]
    written = sentences(GENERATED)
    assert list(rows["generated"]) == [written[1], written[0], "", written[2]]
    assert rows["same"].iloc[0] == pytest.approx(2 * 9 / 22)
    assert ReportDiff(REFERENCE, REFERENCE).rows["same"].tolist() == [1, 1, 1]


def test_words_are_marked():
    diff = ReportDiff(GENERATED, REFERENCE, title="case <1>")
    left, right = diff._marked[0]
    assert [word for word, kind in left if kind == "missing"] == ["9.5", "right"]
    assert [word for word, kind in right if kind == "added"] == ["5", "<left>"]
    assert dict(diff._marked[2][0]) == {"Mild": "missing", "emphysema.": "missing"}
    assert diff._marked[2][1] == []
    assert "of 17 words of the reference written" in diff.summary
    assert "1 of the reference, 1 of the generated" in diff.summary


def test_both_pictures_hold_the_words_and_escape_them(tmp_path):
    diff = ReportDiff(GENERATED, REFERENCE, title="case <1>")
    assert "&lt;left&gt;" in diff.html()
    assert "<left>" not in diff.html()
    figure = diff.figure()
    words = [text.get_text() for text in figure.texts]
    assert "<left>" in words
    assert len(figure.artists) == sum(k != "same" for pair in diff._marked for side in pair for _, k in side)
    for name in ("a.png", "a.svg", "a.html"):
        diff.save(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    assert set(diff._repr_mimebundle_()) == {"text/html", "image/png"}


def test_empty_reports():
    assert ReportDiff("", REFERENCE).rows["same"].tolist() == [0, 0, 0]
    assert ReportDiff(["", "Heart size is normal."], ["Heart size is normal."]).rows["same"].tolist() == [1]
    with pytest.raises(ValueError, match="no sentence"):
        ReportDiff(GENERATED, " . ")
