"""Which case trains and which is tested: three splits of a cohort, one a seed.

The paper's "three bootstrapping iterations" are three divisions into training and test data. Where a data set's folds
are published, seeds 0, 1, 2 ... are those folds; else, and for other seeds, patients are drawn by a hash of the seed,
in the paper's shares. Neither ever looks at the test set to choose a model: one in VALID of the training patients is
held out for that, by hash.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mg3d.data.listing import Leak, Listing, MissingCorpus, Problem, check_patients, shuffled

VALID = 10  # one in so many training patients chooses the checkpoint
TRAIN, TEST = "train", "test"


def fill(patients: Sequence[str], count: int, *, seed: int) -> set[str]:
    """Patients, drawn by hash, that together have `count` of the cases (or fewer, where none fits any more).

    `patients` names the patient of each case. A patient whose cases would be too many is passed over.
    """
    cases, chosen, left = Counter(patients), set(), count
    for patient in shuffled(cases, seed=seed):
        if cases[patient] <= left:
            chosen.add(patient)
            left -= cases[patient]
    return chosen


def split(listing: Listing, *, seed: int, share: float) -> Listing:
    """The cases with their split. Those that have one keep it; the others are drawn by patient.

    `share` is that of the cases which train, validation included. Where no case is "valid" yet, one in VALID of the
    training patients (at least one, where there are two) becomes it.
    """
    drawn = [case for case in listing.cases if not case.split]
    patients = [case.patient for case in drawn]
    train = fill(patients, round(len(drawn) * share), seed=seed)
    cases = [
        case if case.split else replace(case, split=TRAIN if case.patient in train else TEST) for case in listing.cases
    ]
    if all(case.split != "valid" for case in cases):
        order = shuffled((case.patient for case in cases if case.split == TRAIN), seed=seed)
        held_out = set(order[: max(1, round(len(order) / VALID))]) if len(order) > 1 else set()
        cases = [
            replace(case, split="valid") if case.split == TRAIN and case.patient in held_out else case for case in cases
        ]
    return Listing(cases, listing.problems)


def settle(
    listing: Listing, *, seed: int, share: float, what: str, looked: Path, get: str, fold: Path | None = None
) -> Listing:
    """What a reader found, with the cases whose files are missing put aside, and with splits.

    Raises MissingCorpus when no case is left, Leak when a patient trains and is tested; `fold` is the published file
    that says so.
    """
    cases, problems = [], list(listing.problems)
    for case in listing.cases:
        gone = [path for path in (case.volume, case.mask) if path is not None and not os.path.exists(path)]
        if gone:
            kind = "volume" if gone[0] == case.volume else "mask"
            problems.append(Problem(case.id, str(gone[0]), "missing", f"the {kind} of {case.id} is not there"))
        else:
            cases.append(case)
    if not cases:
        raise MissingCorpus.of(what, looked=looked, get=get)
    try:
        check_patients([case for case in cases if case.split])
    except Leak as leak:
        mend = "Or take that file away: then patients are drawn, each into one split." if fold else ""
        raise Leak(f"{fold or looked}: {leak} {mend}".rstrip()) from None
    return split(Listing(cases, problems), seed=seed, share=share)


def beside(folder: Path, name: str) -> Path | None:
    """A published table, in the folder of the data, or where the released code has it, in `csv` or `jsons`."""
    places = (folder / name, folder / "csv" / name, folder / "jsons" / name)
    return next((path for path in places if path.is_file()), None)
