"""What the rules read in phantom reports, whose truth is known sentence by sentence, and in real ones."""

import csv
from pathlib import Path

import numpy as np
import pytest

from mg3d.data.phantom.labels import LABELS
from mg3d.data.phantom.plan import draw
from mg3d.data.phantom.report import sections, write
from mg3d.metrics import FINDINGS, finding_scores, read_findings
from mg3d.metrics.findings import clauses

SHARED = Path(__file__).parents[2] / "shared" / "data"


def phantom(split: str, n: int = 60) -> tuple[list[str], np.ndarray]:
    """Reports and what their sentences say is there."""
    reports = [write(draw(i, split=split, seed=11)) for i in range(1, n + 1)]
    parts = [sections(report) for report in reports]
    told = [{s.label for s in report if s.kind == "present"} for report in reports]
    texts = [f"{p['findings']} {p['impression']}" for p in parts]
    return texts, np.array([[name in some for name in FINDINGS] for some in told])


def test_the_findings_are_those_of_ct_rate():
    assert FINDINGS == LABELS


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_phantom_reports_are_read(split):
    """Measured on 400 reports a split: 0.9997, 0.9996, 0.9989 of the decisions, macro F1 0.9995, 0.9993, 0.9981."""
    texts, told = phantom(split)
    found = read_findings(texts)
    assert (found == told).mean() > 0.998
    line = finding_scores(texts, told)
    assert line["finding_f1"] > 0.99
    assert line["finding_recall"] > 0.99


@pytest.mark.skipif(not SHARED.exists(), reason="no real reports beside the clone")
def test_real_reports_are_read():
    """The rules were made while looking at every other report; measured on the rest: 0.971, macro F1 0.933."""
    with (SHARED / "reports" / "ctrate_reports_train.csv").open() as file:
        rows = list(csv.DictReader(file))[1::2]
    labels = np.array([[row[name] == "1" for name in FINDINGS] for row in rows])
    texts = [row["report_text"] for row in rows]
    assert (read_findings(texts) == labels).mean() > 0.96
    assert finding_scores(texts, labels)["finding_f1"] > 0.92


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("No nodule, mass or infiltration was seen. Pleural effusion was not observed.", set()),
        ("No pleural effusion, there is a nodule of 9.3 mm in the left lung.", {"Lung nodule"}),
        ("Nodules consistent with cysts in the liver.", set()),
        ("A ground-glass nodule is seen.", {"Lung nodule"}),
        ("Fluid of 8.5 mm is observed around the heart.", {"Pericardial effusion"}),
        ("Calcified plaques in the left anterior descending artery.", {"Coronary artery wall calcification"}),
        (
            "Calcific plaques are observed in the aorta and coronary arteries.",
            {"Arterial wall calcification", "Coronary artery wall calcification"},
        ),
        ("The heart is larger than normal.", {"Cardiomegaly"}),
        ("The size of the heart is normal.", set()),
        ("Consolidation (pneumonia?).", {"Consolidation"}),
        ("", set()),
    ],
)
def test_a_clause_affirms_or_denies(text, names):
    assert {name for name, there in zip(FINDINGS, read_findings([text])[0], strict=True) if there} == names


def test_clauses_end_at_full_stops_but_not_in_decimals():
    assert [c.strip() for c in clauses("A nodule of 9.3 mm; no effusion. Cyst")] == (
        ["a nodule of 9.3 mm", "no effusion", "cyst"]
    )


def test_scores_by_hand_and_what_is_undefined():
    written = ["There is a nodule. There is emphysema.", "Nothing is seen.", "Atelectasis is seen."]
    true = ["There is a nodule.", "There is a hiatal hernia.", "Atelectasis in both lungs."]
    line = finding_scores(written, true)
    assert line["finding_precision"] == pytest.approx(2 / 3)
    assert line["finding_recall"] == pytest.approx(2 / 3)
    assert line["finding_f1_micro"] == pytest.approx(2 / 3)
    assert line["finding_f1"] == pytest.approx(2 / 4)  # nodule, atelectasis 1; emphysema, hernia 0
    assert finding_scores(written, np.array([[1], [0], [0]]), names=["Lung nodule"])["finding_f1"] == 1
    assert finding_scores(["Normal."], ["Normal."]) == {}
    assert finding_scores(["Normal."], ["A nodule."]) == {
        "finding_f1": 0,
        "finding_f1_micro": 0,
        "finding_recall": 0,
    }
    with pytest.raises(ValueError, match="the reader knows no 'Fracture'"):
        finding_scores(written, true, names=["Fracture"])
    with pytest.raises(ValueError, match=r"labels of shape \(2, 18\) for reports that give \(3, 18\)"):
        finding_scores(written, true[:2])
