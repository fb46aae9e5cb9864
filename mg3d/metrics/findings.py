"""What does a report say is there? A reader of CT-RATE's 18 findings by rules, and the F1 of what written reports say.

BLEU rewards the common phrases of normal chests; this asks what was found. A text falls into clauses. A finding is
present where some clause speaks of it and neither denies it nor speaks of something else; what a report only denies, or
does not mention, is absent. Doubt ("nodule?") counts as presence. The rules know nothing beyond a clause: how often
they are right is measured in the tests, on phantom reports and on real ones.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Shaped

from mg3d.metrics.classification import f1, macro

CALCIUM = r"(?:calcif|calcium|athero|plaque)"
CORONARY = r"(?:coronar|anterior descending|circumflex)"
ARTERY = r"(?:aort|(?<!coronary )arter(?:y|ies|ial)|supra-?aortic|vascular|vessel)"
ELSEWHERE = (
    "thyroid|adrenal|liver|hepat|renal|kidney|spleen|splenic|breast|pancrea|gallbladder|prostat|vertebra|humer|femor"
)

# Of each finding: what speaks of it in a clause, then (if need be) what shows that the clause means something else.
SAID: dict[str, tuple[str, ...]] = {
    "Medical material": (
        r"catheter|pace ?maker|\bport\b|\bstent|prosthe|\bsutur|\bclips?\b|\bwires?\b|sternotomy|cannula|\bdrain\b"
        r"|\btubes?\b|implanted|electrode|foreign material|metallic|rhythm device|venous port|surgical material",
    ),
    "Arterial wall calcification": (
        rf"{CALCIUM}.*{ARTERY}|{ARTERY}.*{CALCIUM}",
        rf"valve|lymph|abdominal aort|\A(?=.*{CORONARY})(?!.*(?:aort|{CORONARY}.* and .*arter))",
    ),
    "Cardiomegaly": (
        r"cardiomegaly|(?:heart|cardiac|cardiothoracic).*(?:increas|enlarg|larger|exceed|above)"
        r"|(?:increas|enlarg).*(?:heart|cardiac|cardiothoracic)",
    ),
    "Pericardial effusion": (
        r"pericardi.*(?:effusion|fluid)|(?:effusion|fluid).*(?:pericardi|around the heart|surrounding the heart)",
    ),
    "Coronary artery wall calcification": (rf"{CORONARY}.*{CALCIUM}|{CALCIUM}.*{CORONARY}",),
    "Hiatal hernia": (r"hiat.*herni|herni.*(?:hiat|stomach|gastric)|(?:stomach|gastric|fundus).*(?:herni|hiat)",),
    "Lymphadenopathy": (
        r"lymphadenopath|\blaps?\b|\blymph nodes?|enlarged nodes?|nodal enlargement|\bnodes? of|abnormal glands?",
        r"intrapulmonary lymph",
    ),
    "Emphysema": (r"emphysem|bulla|enlargement of the air spaces",),
    "Atelectasis": (r"(?<!fibro)atelecta|collapse|loss of aeration|incomplete expansion",),
    "Lung nodule": (
        r"nodul(?!ar (?:patchy )?(?:ground|consolid|thick|calcif|infiltr))|rounded .*\bfoc(?:us|i)\b",
        rf"{ELSEWHERE}|goit",
    ),
    "Lung opacity": (
        r"ground.?glass|opaci|infiltrat|veiling",
        r"ground.?glass (?:\w+ ){0,2}(?:nodul|foc(?:us|i))|nodul\w* (?:\w+ )?(?:of|with|measuring) .*ground.?glass",
    ),
    "Pulmonary fibrotic sequela": (r"fibro|sequela|\bscar|cicatri|parenchymal bands?", ELSEWHERE),
    "Pleural effusion": (r"pleura.*(?:effusion|fluid)|(?:effusion|fluid).*(?:pleura|hemithora)|hydrothorax",),
    "Mosaic attenuation pattern": (r"mosaic|heterogeneous attenuation|patchwork",),
    "Peribronchial thickening": (
        r"peribronch.*(?:thick|cuff)|thick.*peribronch|cuffs? .*bronch"
        r"|(?:bronch\w*|airway) wall.*thick|thick.*(?:bronch\w*|airway) wall",
    ),
    "Consolidation": (r"consolid|filling of the air spaces|pneumonic infiltr",),
    "Bronchiectasis": (r"bronchiecta|bronchi\b.*(?:dilat|widen|wider|enlarg)|(?:dilat|widen|enlarg).*\bbronchi\b",),
    "Interlobular septal thickening": (r"(?:interlobular|\bsept).*(?:thick|promin|line)|(?:thick|promin).*\bsept",),
}
FINDINGS = tuple(SAID)

CLAUSE = re.compile(
    r"""\.(?!\d) | [;\n•"“”]
    | ,\s (?= (?:and\s|but\s)? (?:there\s(?:is|are|was|were)|no)\b )
    | \b(?:but|however|although|except)\b""",
    re.VERBOSE,
)
DENIED = re.compile(
    r"""\b(?: no | not | nor | non | without | never | absent | cannot | natural | free\s(?:of|from) | (?:is|are)\sfree
    | disappeared | resolved | completely\sregressed
    | (?<!than\s)(?<!exceeds\sthe\s)(?<!exceed\sthe\s)(?<!above\s) normal ) \b""",
    re.VERBOSE,
)


def clauses(text: str) -> list[str]:
    """Clauses in small letters."""
    return [part for part in CLAUSE.split(text.lower()) if part and not part.isspace()]


@lru_cache(maxsize=2**16)
def affirmed(clause: str) -> tuple[bool, ...]:
    """Which of FINDINGS a clause says are there. Clauses recur, so what was read is kept."""
    if DENIED.search(clause):
        return (False,) * len(FINDINGS)
    return tuple(
        re.search(about, clause) is not None and not any(re.search(pattern, clause) for pattern in other)
        for about, *other in SAID.values()
    )


def read_findings(texts: Sequence[str]) -> Bool[np.ndarray, "n L"]:
    """Which of FINDINGS each report says are there."""
    nothing = (False,) * len(FINDINGS)
    read = [np.any([nothing, *map(affirmed, clauses(text))], axis=0) for text in texts]
    return np.array(read, dtype=bool).reshape(len(texts), len(FINDINGS))


def finding_scores(
    written: Sequence[str], true: Sequence[str] | Shaped[np.ndarray, "n L"], *, names: Sequence[str] = FINDINGS
) -> dict[str, float]:
    """How well written reports name what is there: by the reader, against references or a table of labels.

    `finding_f1` is the macro mean over the findings that either side has, `finding_f1_micro` that of all decisions
    together, with `finding_precision` and `finding_recall`. Left out is what nothing defines: precision where nothing
    is said to be there, recall where nothing is. Raises ValueError for names that are none of FINDINGS, and unless
    there is one reference a report.
    """
    unknown = [name for name in names if name not in FINDINGS]
    if unknown:
        raise ValueError(f"the reader knows no {unknown[0]!r}; it knows {', '.join(FINDINGS)}")
    columns = [FINDINGS.index(name) for name in names]
    says = read_findings(written)[:, columns]
    there = np.asarray(true).astype(bool) if isinstance(true, np.ndarray) else read_findings(true)[:, columns]
    if there.shape != says.shape:
        raise ValueError(f"labels of shape {there.shape} for reports that give {says.shape}: one row a report")
    right, said, meant = (int(x.sum()) for x in (says & there, says, there))
    line: dict[str, float] = {}
    if said + meant:
        line["finding_f1"] = macro(f1(says, there), names).value
        line["finding_f1_micro"] = 2 * right / (said + meant)
    if said:
        line["finding_precision"] = right / said
    return line | ({"finding_recall": right / meant} if meant else {})
