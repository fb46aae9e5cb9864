"""The phantom's reports say what is there, deny nothing that is there, and keep wordings for the test split."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mg3d.data.phantom import report
from mg3d.data.phantom.labels import stream
from mg3d.data.phantom.normals import SLOTS
from mg3d.data.phantom.phrases import IMPRESSION, PRESENT
from mg3d.data.phantom.plan import FORMS, LABELS, ORGANS, PLACES, Finding, draw
from mg3d.data.phantom.report import omitted, sections, small, ways, write
from mg3d.text import split

SHARED = Path(__file__).parents[2] / "shared"
KINDS = {"present", "negated", "normal", "distractor"}
SPLITS = ("train", "valid", "test")

WORDS = {  # label -> what a denial of it would speak of; written without a look at the phrase tables' labels
    "Medical material": "foreign|chest wall are normal|chest wall\\.$",
    "Arterial wall calcification": "aort.*calcif|calcif.*aort|aorta.*plaque|plaque.*aorta",
    "Cardiomegaly": "heart|cardiothoracic",
    "Pericardial effusion": "pericardi",
    "Coronary artery wall calcification": "coronary",
    "Hiatal hernia": "herni|oesophagus",
    "Lymphadenopathy": "lymph",
    "Emphysema": "emphysem",
    "Atelectasis": "atelecta",
    "Lung nodule": "nodul",
    "Lung opacity": "ground-glass|infiltrat",
    "Pulmonary fibrotic sequela": "fibro|scar|sequela",
    "Pleural effusion": "pleural (effusion|space)",
    "Mosaic attenuation pattern": "mosaic|homogeneous without",
    "Peribronchial thickening": "peribronch|bronchial wall",
    "Consolidation": "consolidat|infiltrat",
    "Bronchiectasis": "bronchiect|bronchi are not widened",
    "Interlobular septal thickening": "sept",
}


@pytest.fixture(scope="module")
def cases() -> list:
    plans = [draw(i, split=split, seed=5) for split in SPLITS for i in range(1, 301)]
    return [(plan, write(plan)) for plan in plans]


def body(sentences) -> list:
    return [s for s in sentences if s.section in ("findings", "impression")]


def test_a_report_repeats_itself(cases):
    plan, sentences = cases[7]
    assert write(plan) == sentences


def test_lengths_and_kinds(cases):
    lengths = [len(body(sentences)) for _, sentences in cases]
    assert (min(lengths), max(lengths)) >= (15, 15)
    assert max(lengths) <= 25
    kinds = Counter(s.kind for _, sentences in cases for s in body(sentences))
    share = {kind: count / sum(kinds.values()) for kind, count in kinds.items()}
    assert set(share) == KINDS
    assert 0.45 < share["negated"] + share["normal"] < 0.65
    assert 0.01 < share["distractor"] < 0.035


def test_sentences_keep_to_the_vocabulary(cases):
    for _, sentences in cases:
        for s in sentences:
            assert s.kind in KINDS
            assert s.label in (*LABELS, "")
            assert set(s.organs) <= set(ORGANS) - {"background"}
            assert (s.kind == "distractor") == (not s.organs)
            assert (s.kind == "present") == bool(s.findings)
            assert s.section in ("history", "technique", "findings", "impression")
            assert re.fullmatch(r"[A-Z\d][^{}\[\]|]*[^.]\.", s.text), s.text


def test_order_is_the_walk_through_the_chest(cases):
    order = [slot.organs for slot in SLOTS]
    stops = {slot.label: i for i, slot in enumerate(SLOTS) if slot.label}
    for _, sentences in cases:
        told = [s for s in sentences if s.section == "findings" and s.kind != "distractor"]
        places = [stops[s.label] for s in told if s.label]
        assert places == sorted(places)
        assert [s.section for s in sentences] == sorted(
            (s.section for s in sentences), key=("history", "technique", "findings", "impression").index
        )
    assert order[0] == ("airways",)
    assert {"ribs", "spine", "chest wall"} >= set(order[-1])


def test_the_splitter_finds_the_very_sentences(cases):
    for plan, sentences in cases:
        texts = sections(sentences)
        assert split(f"{texts['findings']} {texts['impression']}") == [s.text for s in body(sentences)], plan.id


def test_every_finding_is_told_or_omitted(cases):
    missed = count = 0
    for plan, sentences in cases:
        told = [i for s in sentences if s.section == "findings" for i in s.findings]
        assert len(told) == len(set(told))
        assert sorted([*told, *omitted(plan, sentences)]) == list(range(len(plan.findings)))
        for s in sentences:
            assert {plan.findings[i].label for i in s.findings} <= {s.label}
        assert all(small(plan.findings[i]) for i in omitted(plan, sentences))
        missed, count = missed + len(omitted(plan, sentences)), count + sum(map(small, plan.findings))
    assert 0.06 < missed / count < 0.14


def test_the_walk_passes_every_organ(cases):
    """Airways, vessels, abdomen and bones are spoken of in most reports, with findings and without."""
    for organ, least in (
        ("airways", 0.6),
        ("aorta", 0.5),
        ("heart", 0.8),
        ("liver", 0.35),
        ("spine", 0.6),
        ("pleura", 0.6),
    ):
        told = [any(organ in s.organs for s in sentences if s.section == "findings") for _, sentences in cases]
        sick = np.array([len(plan.findings) > 3 for plan, _ in cases])
        assert np.mean(told) > least, (organ, np.mean(told))
        assert np.mean(np.array(told)[sick]) > 0.7 * least, organ
    said = {s.text for _, sentences in cases for s in sentences}
    always = [slot for slot in SLOTS if not slot.label]
    assert all(any(line[0].upper() + line[1:] in said for line in slot.lines) for slot in always)


def test_nothing_that_is_there_is_denied(cases):
    denied = Counter()
    for plan, sentences in cases:
        for s in sentences:
            if s.kind not in ("negated", "normal"):
                continue
            assert not plan.labels.get(s.label), s.text
            denied[s.label] += 1
            for label, there in plan.labels.items():
                assert not (there and re.search(WORDS[label], s.text, re.IGNORECASE)), (label, s.text)
            if re.search("ground-glass", s.text):
                assert not {"ground glass", "subsolid"} & {f.form for f in plan.findings}
            if plan.findings:
                assert s.section != "impression"
    assert set(LABELS) <= set(denied)  # the test could fail for each of them


def test_lungs_are_called_normal_only_without_any_lung_label(cases):
    lungs = LABELS[LABELS.index("Emphysema") :]
    for plan, sentences in cases:
        if any(re.search("aera|parenchyma of both lungs is normal", s.text) for s in sentences if s.kind == "normal"):
            assert not any(plan.labels[label] for label in lungs)


def test_limits_of_a_native_scan_are_said_of_native_scans_only(cases):
    for plan, sentences in cases:
        native = plan.patient.blood_hu == 40
        text = " ".join(s.text for s in sentences)
        if re.search("no contrast medium|native", text):
            assert native
        if re.search("intravenous|injection", text):
            assert not native


def test_sides_and_lobes_are_those_of_the_findings(cases):
    for plan, sentences in cases:
        for s in sentences:
            if not s.findings or "{place}" not in PRESENT.get(s.label, ("{place}",))[0]:
                continue
            findings = [plan.findings[i] for i in s.findings]
            for side in ("left", "right"):
                if re.search(rf"\b{side}\b(?! anterior descending| coronary)", s.text):
                    assert any(f.side == side for f in findings), s.text
            if "both" in s.text:
                assert {f.side for f in findings} >= {"left", "right"}
            for lobe in ("upper lobe", "middle lobe", "lower lobe"):
                assert (lobe in s.text) == any(f.place == lobe for f in findings), s.text


def test_sizes_are_within_a_millimetre(cases):
    seen = Counter()
    for plan, sentences in cases:
        for s in (s for s in sentences if s.kind == "present" and s.section == "findings"):
            true = [plan.findings[i].size_mm for i in s.findings]
            for axes in re.findall(r"(\d+) x (\d+) mm", s.text):
                assert [abs(float(axes[0]) - true[0]) <= 1, float(axes[1]) < float(axes[0])] == [True, True]
                seen["axes"] += 1
            text = re.sub(r"\d+ x \d+ mm", "", s.text)
            for numbers, unit in re.findall(r"((?:\d[\d.]*(?:, | and )?)+) (mm|cm)", text):
                for number in re.findall(r"\d+(?:\.\d)?", numbers):
                    size = float(number) * {"mm": 1, "cm": 10}[unit]
                    assert min(abs(size - t) for t in true) <= 1, (s.text, true)
                    seen[unit + "." * ("." in number)] += 1
    assert min(seen[name] for name in ("axes", "mm", "mm.", "cm.")) > 5


@pytest.mark.parametrize("key", PRESENT)
def test_wordings_are_held_out(key):
    train, valid, test = (ways(key, split) for split in SPLITS)
    assert len(set(test)) == len(test) >= 8
    assert set(train) < set(valid) < set(test)
    assert len(valid) - len(train) >= 1
    assert len(test) - len(valid) >= 2


def test_held_out_wordings_show_in_the_text():
    finding = Finding("Consolidation", "right", "lower lobe", "", 0.0, 0.9)
    plans = [draw(i, split=s, seed=0) for s in SPLITS for i in range(1, 400)]
    heard = {s: Counter() for s in SPLITS}
    for plan in plans:
        if not plan.labels[finding.label]:
            continue
        for s in write(plan):
            if s.label == finding.label and s.kind == "present" and s.section == "findings":
                heard[plan.split][s.held_out, "pneumonic" in s.text or "filling of the air" in s.text] += 1
    assert not any(held or last for held, last in heard["train"])
    assert not any(last for _, last in heard["valid"])
    assert any(held for held, _ in heard["valid"])
    assert sum(n for (held, _), n in heard["test"].items() if held) > 5
    assert sum(n for (_, last), n in heard["test"].items() if last) > 5


def test_severity_gives_the_grade():
    words = {"mild": 0, "slight": 0, "moderate": 1, "marked": 2, "severe": 2}
    seen = set()
    for number in range(1, 200):
        plan = draw(number, split="train", seed=2)
        for s in (s for s in write(plan) if s.kind == "present"):
            for word in set(re.findall(r"\w+", s.text.lower())) & set(words):
                severity = np.mean([plan.findings[i].severity for i in s.findings])
                assert min(int(3 * severity), 2) == words[word], s.text
                seen.add(word)
    assert seen == set(words)


def test_every_label_place_and_form_can_be_written():
    plan = draw(1, split="test", seed=0)
    for label in LABELS:
        for form in FORMS.get(label, ("",)):
            key = form if label == "Medical material" else label
            for place in PLACES[label]:
                finding = Finding(label, "right", place, form, 12.0, 0.5)
                for number, way in enumerate((*PRESENT[key], *IMPRESSION[key])):
                    for group in ((0,), (0, 1)):
                        two = report.replace(plan, findings=(finding, report.replace(finding, size_mm=15.0)))
                        text = report._tell(two, way, group, stream(number, "test")).text
                        assert not re.search(r"[{}\[\]|]|  ", text), text
                        assert split(f"{text} {text}") == [text, text]


@pytest.mark.parametrize(("names", "text"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")])
def test_listed(names, text):
    assert report.listed(names) == text


def test_no_sentence_is_taken_from_real_reports():
    folder = SHARED / "data" / "reports"
    if not folder.is_dir():
        pytest.skip("the real reports are not on this machine")
    import pandas as pd

    texts = list(pd.read_csv(folder / "ctrate_reports_train.csv")["report_text"])
    ctrg = json.loads((folder / "ctrg_chest_reports.json").read_text())
    texts += [row[k] for rows in ctrg.values() for row in rows for k in ("report", "result") if row.get(k)]
    real = {re.sub(r"\W+", " ", s).strip().lower() for text in texts for s in re.split(r"(?<=[.;])\s", str(text))}
    lines = [line for slot in SLOTS for line in slot.lines] + [way for many in PRESENT.values() for way in many]
    copied = {line for line in lines if re.sub(r"\W+", " ", line).strip().lower() in real}
    assert copied <= {line for line in copied if len(line.split()) <= 6}, (
        copied
    )  # "no pleural effusion was seen." is anyone's
