"""What a corpus reader hands back, and the faults of a corpus that no reader may paper over."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mg3d.types import Case

SPLITS = ("train", "valid", "test")
FEW = 10  # how many offenders an error names


@dataclass(frozen=True)
class Problem:
    """One row that cannot be used, while the others can. It ends in the quarantine table, never in silence."""

    id: str
    path: str  # the file that is missing or unwanted, or the table that has the row
    reason: str  # a short word: missing, empty-report, no-report, not-chest; reading.py lists those of volumes
    detail: str


@dataclass(frozen=True)
class Listing:
    """The cases of a corpus in the order of its table, and the rows that are none."""

    cases: list[Case]
    problems: list[Problem] = field(default_factory=list)


class MissingCorpus(FileNotFoundError):
    """A corpus, or a part that it cannot do without, is not there; the message says what, where, and how to get it."""

    @classmethod
    def of(cls, what: str, *, looked: Path | Iterable[Path], get: str) -> "MissingCorpus":
        """The error for `what`, with the places where it was looked for, and how to get it."""
        places = [looked] if isinstance(looked, Path) else list(looked)
        return cls(f"{what} is missing. Looked for: {', '.join(map(str, places))}. Where to get it: {get}")


class BadTable(ValueError):
    """A table with a fault in its structure: a column, a row, an encoding. The message names file, rows and mend."""

    def __init__(self, path: Path, detail: str):
        super().__init__(f"{path}: {detail}")
        self.path, self.detail = path, detail

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.detail)


class Leak(ValueError):
    """A patient is in more than one split, so that every score on the later split would be too good."""


def few(names: Iterable[object]) -> str:
    """The first ten names, and how many more there are."""
    shown = [str(name) for name in names]
    rest = len(shown) - FEW
    return ", ".join(shown[:FEW]) + (f" and {rest} more" if rest > 0 else "")


def check_patients(cases: Sequence[Case]) -> None:
    """Raise Leak, naming patients and splits, when a patient is in more than one split."""
    splits = defaultdict(set)
    for case in cases:
        splits[case.patient].add(case.split)
    shared = [f"{patient} ({', '.join(sorted(found))})" for patient, found in splits.items() if len(found) > 1]
    if shared:
        verb = "patient is" if len(shared) == 1 else "patients are"
        raise Leak(f"{len(shared)} {verb} in more than one split: {few(shared)}. Give each patient one split.")


def shuffled(names: Iterable[str], *, seed: int) -> list[str]:
    """The distinct `names` in an order that depends on the names and the seed alone, not on the order they come in."""
    return sorted(set(names), key=lambda name: hashlib.blake2b(f"{seed}:{name}".encode()).digest())


def split_patients(patients: Iterable[str], *, seed: int = 0) -> dict[str, str]:
    """Patient -> split: 80 % train, 10 % valid, 10 % test of the patients, drawn by hash, for tables without a split.

    From three patients on, each split has at least one; one or two patients are all train.
    """
    order = shuffled(patients, seed=seed)
    share = max(1, round(len(order) / 10)) if len(order) > 2 else 0
    train = len(order) - 2 * share
    return {p: "train" if i < train else "valid" if i < train + share else "test" for i, p in enumerate(order)}
