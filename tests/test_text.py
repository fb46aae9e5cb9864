"""Sentences are whole, nothing is lost between them, and every token knows its word and its sentence."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mg3d.encoders.text import load_text
from mg3d.text import Tokeniser, split

REPORTS = Path(__file__).parents[2] / "shared" / "data" / "reports"

CASES = {  # a report, its sentences between bars
    "plain": ("The heart is normal. No effusion.", "The heart is normal.|No effusion."),
    "decimals": ("A 9.3 mm nodule is seen. CT dated 05.01.2018.", "A 9.3 mm nodule is seen.|CT dated 05.01.2018."),
    "sizes": ("Nodes of 3.5 x 4 mm and 13x9.3 mm. Next.", "Nodes of 3.5 x 4 mm and 13x9.3 mm.|Next."),
    "broken size": ("A nodule of about 0.8 in size × 1.0cm. Next.", "A nodule of about 0.8 in size × 1.0cm.|Next."),
    "titles": ("Seen by Dr. A. B. Smith. Stable.", "Seen by Dr. A. B. Smith.|Stable."),
    "initials": ("Reported by J. Miller. Stable.", "Reported by J. Miller.|Stable."),
    "no initial": ("Operated for hepatitis C. The liver is small.", "Operated for hepatitis C.|The liver is small."),
    "abbreviations": (
        "Size approx. 3 mm, e.g. a cyst vs. nodule, cf. Fig. 3 and No. 5. End.",
        "Size approx. 3 mm, e.g. a cyst vs. nodule, cf. Fig. 3 and No. 5.|End.",
    ),
    "no abbreviation": ("Was a nodule seen? No. The lung is clear.", "Was a nodule seen?|No.|The lung is clear."),
    "ordinal": ("Height loss in the T12. vertebra and 3. rib.", "Height loss in the T12. vertebra and 3. rib."),
    "shortened": ("Clinic and lab. correlation is advised. Stable.", "Clinic and lab. correlation is advised.|Stable."),
    "images": ("Nodules (img117) at Se:4, Im:51. None else.", "Nodules (img117) at Se:4, Im:51.|None else."),
    "numbered": ("1. A cyst. 2. Two nodules. 3) Emphysema.", "A cyst.|Two nodules.|Emphysema."),
    "numbered after a heading": ("Findings: 1. A cyst; 2. Nodules. 3. None", "Findings:|A cyst;|Nodules.|None"),
    "no list": ("Nodule at Se: 4, Im: 51. None else.", "Nodule at Se: 4, Im: 51.|None else."),
    "a number at the end": ("Seen in segment 6. Both glands are normal.", "Seen in segment 6.|Both glands are normal."),
    "bullets": ("• Breast Ca. • MNG • Emphysema", "Breast Ca.|MNG|Emphysema"),
    "dashes": ("- No effusion\n- Ground-glass areas", "No effusion|Ground-glass areas"),
    "dash after a stop": ("No infection. -Focal opacity.", "No infection.|Focal opacity."),
    "dash in words": ("Covid -19 and effusion - thickening.", "Covid -19 and effusion - thickening."),
    "quotes": ('Normal. "Cardiomegaly." Effusion. " Hernia " Cyst', "Normal.|Cardiomegaly.|Effusion.|Hernia|Cyst"),
    "doubled quotes": ('Normal.""Cardiomegaly."" Effusion.', "Normal.|Cardiomegaly.|Effusion."),
    "curly quotes": ("Both lungs. “Free fluid.” Effusion.", "Both lungs.|Free fluid.|Effusion."),
    "quoted word": ('A scattered "mosaic" sign is seen.', 'A scattered "mosaic" sign is seen.'),
    "doubts": ("A lesion (cyst? adenoma?) is seen. Stable.", "A lesion (cyst? adenoma?) is seen.|Stable."),
    "question": ("Atelectasis? An early process.", "Atelectasis?|An early process."),
    "long parentheses": (
        "Stable (CT of 3.3.2019. No change, none). End.",
        "Stable (CT of 3.3.2019. No change, none).|End.",
    ),
    "parentheses belong": ("A nodule is seen. (cyst?) Next.", "A nodule is seen. (cyst?) Next."),
    "open parenthesis": ("Mosaic. Effusion (small airway. The end.", "Mosaic.|Effusion (small airway.|The end."),
    "glued": ("No lesion was detected.No effusion.", "No lesion was detected.|No effusion."),
    "chinese stop": ("Size 2.5 × 1.6cm。Focal pleura。 End", "Size 2.5 × 1.6cm。|Focal pleura。|End"),
    "lines": ("The heart is\nnormal\n\nNo effusion\nNodule", "The heart is normal|No effusion|Nodule"),
    "heading": ("Findings:\nThe heart is normal.", "Findings: The heart is normal."),
    "window": (
        "When examined in the lung parenchyma window; Bullae are seen. Stable.",
        "When examined in the lung parenchyma window; Bullae are seen.|Stable.",
    ),
    "semicolon": ("Paraseptal emphysema; Nodules in both lungs.", "Paraseptal emphysema;|Nodules in both lungs."),
    "semicolon that leans": ("Right effusion; evaluated as pneumonia.", "Right effusion; evaluated as pneumonia."),
    "comma chain": (
        "Thorax is symmetrical, lung window shows clear lung markings, natural walking, good transparency of it, "
        "no consolidation is found, and bilateral hili are not large.",
        "Thorax is symmetrical,|lung window shows clear lung markings, natural walking, good transparency of it,|"
        "no consolidation is found,|and bilateral hili are not large.",
    ),
    "enumeration": ("Right upper, middle and lower lobes are clear.", "Right upper, middle and lower lobes are clear."),
    "subjects": ("Trachea, both main bronchi are open.", "Trachea, both main bronchi are open."),
    "after a clause": ("Thorax is normal, liver, spleen are normal.", "Thorax is normal, liver, spleen are normal."),
    "denied list": ("No nodule, mass or infiltration was seen.", "No nodule, mass or infiltration was seen."),
    "relative": (
        "Nodes are seen, the largest of which is 9 mm, with fat.",
        "Nodes are seen, the largest of which is 9 mm, with fat.",
    ),
    "anaphora": ("A nodule is seen, its edge is smooth.", "A nodule is seen, its edge is smooth."),
    "place": ("In the current examination, a cyst is seen.", "In the current examination, a cyst is seen."),
    "nothing": (" \n ", ""),
    "no letters": ("... • -", ""),
}


@pytest.mark.parametrize(("report", "sentences"), CASES.values(), ids=CASES)
def test_split(report: str, sentences: str) -> None:
    assert split(report) == [s for s in sentences.split("|") if s]


@pytest.fixture(scope="module")
def real_reports() -> dict[str, list[str]]:
    """Each real report with its sentences."""
    if not REPORTS.is_dir():
        pytest.skip("no real reports here")
    with (REPORTS / "ctrate_reports_train.csv").open(newline="", encoding="utf-8") as file:
        rate = [row["report_text"] for row in csv.DictReader(file)]
    ctrg = json.loads((REPORTS / "ctrg_chest_reports.json").read_text(encoding="utf-8"))
    reports = rate + [row[key] for part in ("train", "test") for row in ctrg[part] for key in ("report", "result")]
    return {report: split(report) for report in reports}


def test_nothing_is_lost_from_real_reports(real_reports: dict[str, list[str]]) -> None:
    assert len(real_reports) > 2500
    for report, sentences in real_reports.items():
        text, place = " ".join(report.split()), 0
        for sentence in sentences:
            found = text.index(sentence, place)
            assert re.fullmatch(r"[^\w]*(\(?\d{1,2}[.)、])?[^\w]*", text[place:found]), (text[place:found], report)
            place = found + len(sentence)
        assert not re.search(r"\w", text[place:]), (text[place:], report)


def test_sentences_of_real_reports_are_neither_crumbs_nor_whole_reports(real_reports: dict[str, list[str]]) -> None:
    words = np.array([len(sentence.split()) for sentences in real_reports.values() for sentence in sentences])
    assert (words == 1).mean() < 0.01
    assert 8 <= np.median(words) <= 12
    assert np.percentile(words, 95) < 30
    assert words.max() < 130


@pytest.fixture(scope="module")
def tokenizer():
    return load_text("tiny").tokenizer


REPORT = "No pleural effusion. A calcified nodule of 9.3 mm is seen in the right upper lobe, e.g. segment 2. Emphysema"


@pytest.mark.parametrize("max_words", [512, 40, 24])
def test_numbers_agree_with_a_slow_twin(tokenizer, max_words: int) -> None:
    reports = [REPORT, "Nodule.", REPORT + " Bilateral cardiomegaly is seen."]
    report = Tokeniser(tokenizer, max_words=max_words)(reports)
    for b, text in enumerate(reports):
        words, word, sentence, alone, number = [tokenizer.cls_token_id], [-1], [-1], [], -1
        for s, part in enumerate(split(text)):
            ids = tokenizer.encode(part, add_special_tokens=False)
            if len(words) + len(ids) + 1 > max_words:
                break
            for i in ids:
                number += not tokenizer.convert_ids_to_tokens(i).startswith("##")
                words.append(i)
                word.append(number)
                sentence.append(s)
            alone.append([tokenizer.cls_token_id, *ids, tokenizer.sep_token_id])
        words, word, sentence = [*words, tokenizer.sep_token_id], [*word, -1], [*sentence, -1]
        size = int(report.real[b].sum())
        assert size == len(words) <= max_words
        assert report.words[b, :size].tolist() == words
        assert report.word[b, :size].tolist() == word
        assert report.sentence[b, :size].tolist() == sentence
        assert (report.word[b, size:] == -1).all()
        assert (report.sentence[b, size:] == -1).all()
        assert int(report.sentences[b].sum()) == len(alone)
        assert [[i for i in row if i != report.pad] for row in report.alone[b].tolist() if any(row)] == alone
    assert report.words.dtype == report.alone.dtype == torch.int64


def test_whole_sentences_are_dropped_and_counted(tokenizer) -> None:
    whole = Tokeniser(tokenizer)
    assert whole.dropped([REPORT]) == whole.cut([REPORT]) == [0]
    first = len(tokenizer.encode("No pleural effusion.", add_special_tokens=False))
    short = Tokeniser(tokenizer, max_words=first + 2)
    assert short([REPORT]).words.shape == (1, first + 2)
    assert short.dropped([REPORT, "Nodule."]) == [2, 0]
    assert short.cut([REPORT]) == [0]
    shorter = Tokeniser(tokenizer, max_words=first + 1)
    assert shorter([REPORT]).words.shape == shorter([REPORT]).alone[:, 0].shape == (1, first + 1)
    assert shorter.dropped([REPORT]) == [2]
    assert shorter.cut([REPORT]) == [1]


def test_a_report_is_tokenised_once(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenise = Tokeniser(tokenizer)
    first = tokenise([REPORT, REPORT])
    monkeypatch.setattr(tokenise, "tokenizer", None)
    again = tokenise([REPORT, REPORT])
    assert all(torch.equal(getattr(first, k), getattr(again, k)) for k in ("words", "word", "sentence", "alone"))


@pytest.mark.parametrize("empty", ["", " \n", "• - ..."])
def test_an_empty_report_is_named(tokenizer, empty: str) -> None:
    with pytest.raises(ValueError, match=r"report 1 of 3 has no words"):
        Tokeniser(tokenizer)([REPORT, empty, REPORT])


def test_no_room_for_a_word(tokenizer) -> None:
    with pytest.raises(ValueError, match="max_words=2"):
        Tokeniser(tokenizer, max_words=2)
