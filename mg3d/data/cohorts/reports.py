"""Cohorts with reports: CTRG-Chest, and what CT-RATE keeps for two studies of language. Layouts: ctrg.py, ctrate.py."""

from dataclasses import replace
from pathlib import Path

from mg3d.data.cohorts.splits import TEST, TRAIN, fill
from mg3d.data.ctrate import list_ctrate
from mg3d.data.ctrg import list_ctrg
from mg3d.data.listing import Listing, Problem
from mg3d.data.phantom.labels import LABELS
from mg3d.types import Case

FINE_TUNED, VALID = 1000, 200  # volumes of CT-RATE's training part: those that train here, and those that choose


def read_ctrg(folder: Path, *, seed: int, get: str) -> Listing:
    """CTRG-Chest with its published test set, which is the same for every `seed`."""
    return list_ctrg(folder, get=get)


def read_ctrate(folder: Path, *, seed: int, get: str) -> Listing:
    """CT-RATE for fine-tuning: FINE_TUNED volumes that train, VALID others, and the 3,039 of `valid` as the test set.

    Patients are drawn from `train` by `seed`; the rest of `train` is no part of it. As the paper fine-tunes on volumes
    that it pre-trained on, so do these. Reconstructions of one scan stay together.
    """
    listing = list_ctrate(folder, get=get)
    pool = [case for case in listing.cases if case.split == TRAIN]
    fewer = round(len(pool) * FINE_TUNED / (FINE_TUNED + VALID))  # of a part of CT-RATE some must choose, too
    train = fill([case.patient for case in pool], min(FINE_TUNED, fewer), seed=seed)
    rest = [case.patient for case in pool if case.patient not in train]
    chosen = dict.fromkeys(train, TRAIN) | dict.fromkeys(fill(rest, VALID, seed=seed), "valid")
    cases = [replace(case, split=chosen[case.patient]) for case in pool if case.patient in chosen]
    tested = [replace(case, split=TEST) for case in listing.cases if case.split != TRAIN]
    return Listing(cases + tested, listing.problems)


def read_ctrate_labels(folder: Path, *, seed: int, get: str) -> Listing:
    """As read_ctrate, with the 18 LABELS in their order; cases that lack one are returned as problems."""
    listing = read_ctrate(folder, seed=seed, get=get)
    cases, problems = [], list(listing.problems)
    for case in listing.cases:
        lacking = [name for name in LABELS if case.labels.get(name) not in (0, 1)]
        if lacking:
            detail = f"{len(lacking)} of the 18 labels are not there, or neither 0 nor 1: {', '.join(lacking[:3])}"
            problems.append(Problem(case.id, str(case.volume), "no-label", detail))
        else:
            cases.append(_in_order(case))
    return Listing(cases, problems)


def _in_order(case: Case) -> Case:
    return replace(case, labels={name: case.labels[name] for name in LABELS})
