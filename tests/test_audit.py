"""The audit: what it counts, what it finds, what it refuses, and that its page tells no patient's text."""

import io
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
import pytest
from chest import SPEC, chest, listing, write_nifti

from mg3d.data.audit import Copies, Leak, Spread, audit
from mg3d.data.listing import Listing, Problem
from mg3d.data.page import WIDTH, bars
from mg3d.data.prepare import DamagedCache, prepare


class Limit:
    """A tokeniser as the audit sees it: sentences beyond the first are dropped."""

    max_words = 9

    def dropped(self, reports):
        return [max(0, r.count(".") - 1) for r in reports]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve cases of eleven patients, with one fault of each kind, and what is prepared of them."""
    folder = tmp_path_factory.mktemp("audit")
    cases = listing(folder / "source", 12).cases
    cases[1] = replace(cases[1], patient="patient_0")  # two scans of a patient in one split: no leak
    cases[4] = replace(cases[4], report=cases[0].report)  # valid = train
    cases[5] = replace(cases[5], report=cases[2].report.upper().replace(".", " ;"))  # alike, not the same
    cases[3] = replace(cases[3], report=cases[6].report)  # same split
    write_nifti(cases[7].volume, chest(8))  # the volume of case 8
    write_nifti(cases[9].volume, chest(9).clip(-1000, -300))  # no soft tissue
    write_nifti(cases[10].volume, chest(10, (40, 32, 28)), np.diag([-8.0, -9.0, 12.0, 1.0]))
    found = Listing(cases, [Problem("lost", "x.nii.gz", "missing", "the table names it")])
    return found, prepare(found, spec=SPEC, folder=folder / "cache", workers=1, progress=False)


@pytest.fixture(scope="module")
def result(corpus):
    return audit(*corpus, tokenise=Limit())


def test_counts(result):
    assert result.volumes_of == {"train": 8, "valid": 2, "test": 2}
    assert result.patients_of == {"train": 7, "valid": 2, "test": 2}
    assert result.prepared_of == {"train": 7, "valid": 2, "test": 2}
    assert result.problems == {"missing": ("lost",), "hu": ("case_9",)}
    assert result.positive == {"nodule": 0.5, "effusion": 1.0}


def test_texts_that_are_the_same_or_alike(result):
    assert result.texts == Copies((("case_0", "case_4"), ("case_3", "case_6")), (("case_0", "case_4"),))
    assert set(result.alike.groups) == {("case_0", "case_4"), ("case_2", "case_5"), ("case_3", "case_6")}
    assert set(result.alike.across) == {("case_0", "case_4"), ("case_2", "case_5")}


def test_lengths(result):
    assert result.sentences.median == 2
    assert (result.words.median, result.words.high) == (11, 13)
    lost, reports, total = result.dropped
    assert (lost, reports, total) == (11, 11, 24)  # one of two sentences, but for the report without a full stop


def test_volumes(result, corpus):
    volumes = result.volumes
    assert volumes.number == 11
    assert volumes.copies == Copies((("case_7", "case_8"),), ())
    assert volumes.shapes == {(28, 32, 36): 10, (28, 32, 40): 1}
    assert [s.median for s in volumes.spacing_mm] == [10, 9, 9]  # along D, H, W, whatever the order of the file
    assert [s.high for s in volumes.spacing_mm] == [12, 9, 9]
    assert volumes.size_mm[2].low == 320
    assert volumes.hu_from == {"header": 11}
    everything = np.concatenate([e.load().ravel() for e in corpus[1].entries]).astype(float)
    np.testing.assert_allclose(volumes.histogram, np.histogram(everything, bins=80, range=(0, 1))[0] / everything.size)
    assert volumes.odd == ()


def test_an_odd_volume_is_named(corpus, monkeypatch):
    from mg3d.data.store import Entry

    original = Entry.record.fget
    shift = {"case_2": 300.0}

    def record(entry):
        found = original(entry)
        found["hu"]["mean"] += shift.get(entry.case.id, 0.0)
        return found

    monkeypatch.setattr(Entry, "record", property(record))
    assert audit(*corpus).volumes.odd == ("case_2",)


def test_the_page_is_legible_and_tells_no_text(result, corpus):
    page = str(result)
    assert all(len(line) <= WIDTH for line in page.splitlines())
    assert len(page.splitlines()) < 60
    for part in (
        "train                  8         7         7",
        "all                   12        11        11",
        "ACROSS SPLITS 1: case_0 = case_4",
        "max_words = 9",
        "2 cases in 1 groups, none across splits",
        "  missing                1   no such file",
        "nodule",
        "-1000 |",
    ):
        assert part in page
    for case in corpus[0].cases:
        for word in ("heart", "normal", "seen"):
            assert word in case.report.lower()
            assert word not in page.lower()


def test_without_volumes_or_tokeniser(corpus):
    result = audit(corpus[0])
    assert result.volumes is None
    assert result.dropped is None
    assert result.prepared_of is None
    assert result.problems == {"missing": ("lost",)}
    assert "not prepared yet" in str(result)
    assert "max_words" not in str(result)


def test_the_page_prints_on_any_terminal(result):
    with redirect_stdout(io.StringIO()) as out:
        print(result)
    assert out.getvalue().startswith("CASES")


def test_a_patient_in_two_splits_is_a_leak(corpus):
    cases = list(corpus[0].cases)
    cases[4] = replace(cases[4], patient="patient_0")
    with pytest.raises(Leak, match="patient_0"):
        audit(Listing(cases))


def test_nothing_to_audit():
    with pytest.raises(ValueError, match="no case"):
        audit(Listing([]))


def test_a_damaged_sidecar_is_named(corpus):
    found, prepared = corpus
    path = prepared.entries[0].sidecar
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    try:
        with pytest.raises(DamagedCache, match=rf"{path.name}.*delete it"):
            audit(found, prepared)
    finally:
        path.write_bytes(whole)


def test_empty_reports_are_no_copies_of_each_other(corpus):
    cases = [replace(c, report=" ") for c in corpus[0].cases[:3]]
    result = audit(Listing(cases), tokenise=Limit())
    assert result.texts.groups == ()
    assert result.sentences == Spread(0.0, 0.0, 0.0, 0.0, 0.0)
    assert result.dropped == (0, 0, 0)


def test_bars_show_rare_values():
    assert bars(np.array([0.0, 1e-4, 0.25, 1.0])) == " ▁▄█"
