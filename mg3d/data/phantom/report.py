"""From a plan to a report whose every sentence knows what it speaks of.

A report walks through the chest in the order of CT-RATE: airways, mediastinum, heart and vessels, oesophagus, nodes,
lungs, pleura, upper abdomen, bones; then comes the impression. It has 15 to 25 sentences, about half of them normal or
negated. A few small findings go unmentioned, as in life, but nothing that is there is ever denied.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mg3d.data.phantom.labels import stream
from mg3d.data.phantom.normals import ADVICE, ASIDES, HEALTHY, HISTORY, LUNGS, SLOTS, TECHNIQUE, Slot
from mg3d.data.phantom.phrases import GRADES, HELD_OUT, IMPRESSION, NEW_IN_VALID, PRESENT
from mg3d.data.phantom.plan import SIZES_MM, Finding, Plan

LEAST, MOST = 15, 25  # sentences of findings and impression
FULL = 15  # more sentences than this on findings: tell more of them together
OMITTED = 0.1  # share of the small findings that go unmentioned
ASIDE = 0.3  # reports with a sentence that has no voxels; with ADVICE about 2 % of the sentences
ADVISED = 0.1
SECOND_AXIS = 0.88  # of a nodule's long axis, as rendered to within a tenth
SMALL_MM = 8.0  # a nodule below this may go unmentioned
FAINT = 0.25  # so may other lung findings below this severity

PLACE_WORDS = {  # on one side, on both sides; "{}" is the side
    "upper lobe": ("the {} upper lobe", "both upper lobes"),
    "middle lobe": ("the {} middle lobe", ""),
    "lower lobe": ("the {} lower lobe", "both lower lobes"),
    "lung": ("the {} lung", "both lungs"),
    "apex": ("the {} lung apex", "both lung apices"),
    "base": ("the {} lung base", "both lung bases"),
    "perihilar": ("the {} perihilar region", "both perihilar regions"),
    "pleura": ("the {} pleural space", "both pleural spaces"),
    "paratracheal": ("the {} paratracheal station", "both paratracheal stations"),
    "hilar": ("the {} hilum", "both hila"),
    "axillary": ("the {} axilla", "both axillae"),
    "subcarinal": ("the subcarinal station", ""),
    "left anterior descending": ("the left anterior descending artery", ""),
    "right coronary artery": ("the right coronary artery", ""),
}


@dataclass(frozen=True)
class Sentence:
    """One sentence of a report, and what it is about."""

    text: str
    kind: str  # present | negated | normal | distractor (has no voxels)
    findings: tuple[int, ...] = ()  # places in plan.findings: what a present sentence shows
    label: str = ""  # of plan.LABELS: what is affirmed or denied
    organs: tuple[str, ...] = ()  # of plan.ORGANS: where one has to look
    section: str = "findings"  # history | technique | findings | impression
    held_out: bool = False  # worded in a way that the train split never uses


def write(plan: Plan) -> tuple[Sentence, ...]:
    """The report of a plan: history, technique, findings, impression. A pure function of the plan."""
    rng = stream(plan.seed, "words")
    told = [i for i, f in enumerate(plan.findings) if not (small(f) and rng.random() < OMITTED)]
    groups = _groups(plan, told, merge=False, rng=rng)
    if sum(map(len, groups.values())) > FULL:
        groups = _groups(plan, told, merge=True, rng=rng)
    impression = _impression(plan, told, rng)
    walk = [_sentence(rng.choice(ASIDES), "distractor")] if rng.random() < ASIDE else []
    positive = sum(map(len, groups.values())) + len(impression)
    wanted = int(np.clip(round(positive * rng.uniform(0.8, 1.3)), LEAST - positive, MOST - len(walk) - positive))
    chosen = _choose(plan, wanted, rng)
    for slot in SLOTS:
        if slot.label in groups:
            walk += _present(plan, slot, groups[slot.label], rng)
        elif slot in chosen:
            walk.append(_sentence(rng.choice(slot.lines), slot.kind, label=slot.label, organs=slot.organs))
    return (*_preamble(plan, rng), *(_dated(sentence, rng) for sentence in walk), *impression)


def sections(sentences: Iterable[Sentence]) -> dict[str, str]:
    """The text of each section (history, technique, findings, impression), sentences joined by spaces."""
    texts = {name: [] for name in ("history", "technique", "findings", "impression")}
    for sentence in sentences:
        texts[sentence.section].append(sentence.text)
    return {name: " ".join(parts) for name, parts in texts.items()}


def omitted(plan: Plan, sentences: Iterable[Sentence]) -> tuple[int, ...]:
    """Places in plan.findings of what is there and goes unmentioned. Their labels stay true."""
    told = {i for sentence in sentences for i in sentence.findings}
    return tuple(i for i in range(len(plan.findings)) if i not in told)


def small(finding: Finding) -> bool:
    """Whether a finding is easily passed over: a small nodule, or a faint one among the unsized signs of the lungs."""
    if finding.label in SIZES_MM:
        return finding.label == "Lung nodule" and finding.size_mm < SMALL_MM
    in_lung = finding.side != "" and finding.label != "Medical material"
    return in_lung and finding.severity < FAINT


def ways(key: str, split: str) -> tuple[str, ...]:
    """How a split may say that a finding (label, or form of medical material) is there."""
    return PRESENT[key][: len(PRESENT[key]) - {"train": HELD_OUT + NEW_IN_VALID, "valid": HELD_OUT, "test": 0}[split]]


def _groups(plan: Plan, told: Sequence[int], *, merge: bool, rng: np.random.Generator) -> dict[str, list[list[int]]]:
    """Label -> groups of findings that share a sentence: of one form always, of one place where they have sizes."""
    by_label = defaultdict(list)
    for i in told:
        by_label[plan.findings[i].label].append(i)
    groups = {}
    for label, numbers in by_label.items():
        together = merge or rng.random() < 0.4
        parts = defaultdict(list)
        for i in numbers:
            f = plan.findings[i]
            if label in SIZES_MM:
                parts[f.form, f.place, "" if together else f.side].append(i)
            else:
                parts[f.form, "" if together else f.place].append(i)
        groups[label] = list(parts.values())
    return groups


def _choose(plan: Plan, wanted: int, rng: np.random.Generator) -> list[Slot]:
    """At most `wanted` slots whose lines are true of the plan."""
    there = {name for f in plan.findings for name in (f.label, f.form) if name}
    native = plan.patient.blood_hu == 40
    true = [s for s in SLOTS if s.label not in there and there.isdisjoint(s.unless) and (native or not s.native)]
    weights = np.array([s.weight for s in true])
    chosen = rng.choice(len(true), min(max(wanted, 0), len(true)), replace=False, p=weights / weights.sum())
    return [true[i] for i in chosen]


def _present(plan: Plan, slot: Slot, groups: list[list[int]], rng: np.random.Generator) -> list[Sentence]:
    """One sentence a group of findings of the slot's label, each worded differently."""
    said, used = [], set()
    for group in groups:
        findings = [plan.findings[i] for i in group]
        key = findings[0].form if slot.label == "Medical material" else slot.label
        possible = [way for way in ways(key, plan.split) if way not in used]
        way = str(rng.choice(possible))
        used.add(way)
        new = way not in ways(key, "train")
        said.append(
            replace(_tell(plan, way, group, rng), label=slot.label, organs=_organs(slot, findings), held_out=new)
        )
    return said


def _impression(plan: Plan, told: Sequence[int], rng: np.random.Generator) -> list[Sentence]:
    """The one to four gravest labels once more, in brief; "normal" only where there is nothing at all."""
    by_key = defaultdict(list)
    for i in told:
        f = plan.findings[i]
        by_key[f.form if f.label == "Medical material" else f.label].append(i)
    grave = sorted(by_key, key=lambda key: -max(plan.findings[i].severity for i in by_key[key]))
    kept = grave[: rng.integers(1, 5)]
    said = []
    for key in (key for key in by_key if key in kept):
        findings = [plan.findings[i] for i in by_key[key]]
        slot = next(s for s in SLOTS if s.label == findings[0].label)
        sentence = _tell(plan, str(rng.choice(IMPRESSION[key])), by_key[key], rng)
        said.append(replace(sentence, label=slot.label, organs=_organs(slot, findings), section="impression"))
    if not plan.findings:
        organs = (*LUNGS, "heart", "mediastinum", "pleura")
        said.append(_sentence(rng.choice(HEALTHY), "normal", organs=organs, section="impression"))
    elif not told or rng.random() < ADVISED:
        said.append(_sentence(rng.choice(ADVICE), "distractor", section="impression"))
    return said


def _preamble(plan: Plan, rng: np.random.Generator) -> tuple[Sentence, Sentence]:
    """Clinical history (that says nothing of the findings) and technique (that is true of the scan)."""
    technique = str(rng.choice(TECHNIQUE[plan.patient.blood_hu == 40])).format(slice=f"{plan.patient.slice_mm:.1f}")
    return (
        _sentence(rng.choice(HISTORY), "distractor", section="history"),
        _sentence(technique, "distractor", section="technique"),
    )


def _tell(plan: Plan, way: str, group: Sequence[int], rng: np.random.Generator) -> Sentence:
    """Fill a phrase with what the findings of a group are."""
    findings = [plan.findings[i] for i in group]
    text = re.sub(r"\[([^|\]]*)\|([^\]]*)\]", r"\1" if len(findings) == 1 else r"\2", way)
    severity = float(np.mean([f.severity for f in findings]))
    text = text.format(
        place=place_words(findings),
        sizes=size_words(findings, axes=not re.search("ax|across|diameter", way), rng=rng) if "{sizes}" in way else "",
        grade=rng.choice(GRADES[min(int(3 * severity), 2)]),
        form=findings[0].form.replace("ground glass", "ground-glass"),
        side=findings[0].side,
        ratio=f"{plan.patient.heart_ratio:.2f}",
    )
    return _sentence(text, "present", findings=tuple(group))


def _sentence(text: str, kind: str, **more) -> Sentence:
    return Sentence(str(text[0]).upper() + str(text[1:]), kind, **more)


def _dated(sentence: Sentence, rng: np.random.Generator) -> Sentence:
    if "{date}" not in sentence.text:
        return sentence
    date = f"{rng.integers(1, 29):02d}.{rng.integers(1, 13):02d}.{rng.integers(2015, 2022)}"
    return replace(sentence, text=sentence.text.format(date=date))


def _organs(slot: Slot, findings: Sequence[Finding]) -> tuple[str, ...]:
    """Where the findings lie: the lungs of their sides, else what the slot looks at."""
    if set(LUNGS) & set(slot.organs):
        return tuple(lung for lung in LUNGS if any(f.side and lung.startswith(f.side) for f in findings))
    if slot.label == "Lymphadenopathy":
        axillary = {f.place == "axillary" for f in findings}
        return tuple(name for name, there in (("mediastinum", False), ("chest wall", True)) if there in axillary)
    return {"port catheter": ("chest wall", "mediastinum"), "sternal wires": ("chest wall", "ribs")}.get(
        findings[0].form, slot.organs
    )


def place_words(findings: Sequence[Finding]) -> str:
    """Where findings are, as a noun phrase: "the right upper lobe and both lower lobes"."""
    sides = defaultdict(list)
    for f in findings:
        if f.side not in sides[f.place]:
            sides[f.place].append(f.side)
    names = []
    for place, found in sides.items():
        one, both = PLACE_WORDS.get(place, (f"the {place}", ""))
        names.append(both if len(found) == 2 else one.format(found[0]))
    return listed(names)


def size_words(findings: Sequence[Finding], *, axes: bool, rng: np.random.Generator) -> str:
    """Sizes with their unit, within 1 mm: "6 and 9 mm", "1.2 cm", "13 x 11 mm", "9 mm on the right and ..."."""
    first, two = findings[0], axes and rng.random() < 0.25
    if two and len(findings) == 1 and first.label == "Lung nodule" and 8 <= first.size_mm <= 14:
        return f"{first.size_mm:.0f} x {SECOND_AXIS * first.size_mm:.0f} mm"
    large = min(f.size_mm for f in findings) >= 10
    centimetres, decimal = bool(large and rng.random() < 0.25), bool(rng.random() < 0.3)
    sides = defaultdict(set)
    for f in findings:
        sides[f.side].add(f"{f.size_mm / 10:.1f}" if centimetres else f"{f.size_mm:.{int(decimal)}f}")
    unit = "cm" if centimetres else "mm"
    texts = {side: f"{listed(sorted(sizes, key=float))} {unit}" for side, sizes in sides.items()}
    if len(texts) == 1:
        return next(iter(texts.values()))
    return listed([f"{text} on the {side}" for side, text in texts.items()])


def listed(names: Sequence[str]) -> str:
    """An enumeration: "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
