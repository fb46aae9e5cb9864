"""What a volume is asked: for each finding a sentence that says it is there, and one that says it is not.

    pairs(["Lung nodule"], "vocabfine")         ["Lung nodule."], ["not Lung nodule."]

A model that has learned findings answers alike however it is asked, so scores are read under all templates.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Template(NamedTuple):
    """`{}` is the finding's name as the labels have it, `{low}` the same in small letters."""

    present: str
    absent: str


TEMPLATES = {
    "vocabfine": Template("{}.", "not {}."),  # CT-VocabFine, which the paper fine-tunes with
    "present": Template("{} is present.", "{} is not present."),  # CT-CLIP's zero-shot
    "there": Template("There is {low}.", "There is no {low}."),
    "seen": Template("{} is seen.", "No {low} is seen."),
    "observed": Template("{} was observed.", "{} was not observed."),
    "consistent": Template("Findings consistent with {low}.", "No findings consistent with {low}."),
}


def pairs(names: Sequence[str], template: str) -> tuple[list[str], list[str]]:
    """What says that each finding is there, and what says that it is not.

    Raises ValueError for an unknown template, listing the valid ones, and without names.
    """
    if template not in TEMPLATES:
        raise ValueError(f"unknown template {template!r}; there are {', '.join(TEMPLATES)}")
    if not names:
        raise ValueError("no finding to ask for: give the names of the labels")
    present, absent = ([side.format(name, low=name.lower()) for name in names] for side in TEMPLATES[template])
    return present, absent
