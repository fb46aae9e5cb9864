"""One page on a corpus: what there is, what there is twice, what leaks between the splits, what is in quarantine.

    print(audit(listing, prepared, tokenise=tokenise))

The page names cases and files. It never prints the text of a report.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mg3d.data.frame import Frame
from mg3d.data.listing import SPLITS, Leak, Listing, check_patients
from mg3d.data.page import page
from mg3d.data.store import Entry, Prepared
from mg3d.text import split
from mg3d.types import Case

__all__ = ["Audit", "Copies", "Leak", "Spread", "audit"]

WORD = re.compile(r"\w+")


@runtime_checkable
class Limit(Protocol):
    """What the audit asks of a tokeniser (mg3d.text.Tokeniser)."""

    max_words: int

    def dropped(self, reports: Sequence[str]) -> list[int]:
        """Sentences of each report that `max_words` leaves out."""
        ...


@dataclass(frozen=True)
class Spread:
    """Smallest, 5 %, median, 95 % and largest of some numbers."""

    low: float
    p5: float
    median: float
    p95: float
    high: float

    @classmethod
    def of(cls, numbers: Sequence[float | int] | np.ndarray) -> "Spread":
        """Of at least one number."""
        return cls(*(float(x) for x in np.percentile(np.asarray(numbers, dtype=float), [0, 5, 50, 95, 100])))


@dataclass(frozen=True)
class Copies:
    """Groups of cases that have one thing, a text or a volume, in common; ids, in the order of the listing."""

    groups: tuple[tuple[str, ...], ...]
    across: tuple[tuple[str, ...], ...]  # those of them that lie in more than one split

    @classmethod
    def of(cls, cases: Sequence[Case], things: Sequence[Hashable]) -> "Copies":
        """Group the cases by their things; what only one case has is no group."""
        by_thing = defaultdict(list)
        for case, thing in zip(cases, things, strict=True):
            by_thing[thing].append(case)
        shared = [found for found in by_thing.values() if len(found) > 1]
        ids = [tuple(case.id for case in found) for found in shared]
        leaky = [len({case.split for case in found}) > 1 for found in shared]
        return cls(tuple(ids), tuple(group for group, leaks in zip(ids, leaky, strict=True) if leaks))


@dataclass(frozen=True)
class Volumes:
    """The prepared volumes."""

    number: int
    spacing_mm: tuple[Spread, ...]  # of the sources, along D, H, W
    size_mm: tuple[Spread, ...]
    shapes: Mapping[tuple[int, ...], int]  # voxels of the sources along D, H, W -> number
    hu_from: Mapping[str, int]
    window_hu: tuple[float, float]
    histogram: np.ndarray  # [bins] share of the voxels, over the window, after the crop
    mean_hu: Spread  # of the means of the volumes
    copies: Copies
    odd: tuple[str, ...]  # ids whose mean HU is far from that of the others


@dataclass(frozen=True)
class Audit:
    """What `audit` has found. `str` of it is the page."""

    volumes_of: Mapping[str, int]  # listed, by split
    patients_of: Mapping[str, int]
    prepared_of: Mapping[str, int] | None
    problems: Mapping[str, tuple[str, ...]]  # ids by reason
    texts: Copies  # equal letter by letter
    alike: Copies  # equal but for case, spaces and punctuation
    sentences: Spread
    words: Spread
    dropped: tuple[int, int, int] | None  # sentences that max_words leaves out, reports they are of, all sentences
    max_words: int | None
    positive: Mapping[str, float]  # share of the cases of each label
    volumes: Volumes | None

    def __str__(self) -> str:
        return page(self)


def audit(listing: Listing, prepared: Prepared | None = None, *, tokenise: Limit | None = None) -> Audit:
    """Audit a corpus; with `prepared` its volumes too, with `tokenise` what the limit of tokens leaves out.

    Reads sidecars, never a volume. Raises Leak when a patient is in two splits, ValueError without cases, DamagedCache.
    """
    cases = listing.cases
    if not cases:
        raise ValueError("the listing has no case to audit")
    check_patients(cases)
    reports = [case.report for case in cases]
    pieces = {report: split(report) for report in dict.fromkeys(reports)}
    number = [len(pieces[report]) for report in reports]
    written = [(case, report) for case, report in zip(cases, reports, strict=True) if pieces[report]]
    problems = defaultdict(list)
    for problem in prepared.quarantine if prepared else listing.problems:
        problems[problem.reason].append(problem.id)
    return Audit(
        volumes_of=_by_split(cases, lambda case: case.id),
        patients_of=_by_split(cases, lambda case: case.patient),
        prepared_of=_by_split([e.case for e in prepared.entries], lambda case: case.id) if prepared else None,
        problems={reason: tuple(ids) for reason, ids in sorted(problems.items(), key=lambda item: -len(item[1]))},
        texts=Copies.of(*_columns(written)),
        alike=Copies.of(*_columns([(case, " ".join(WORD.findall(text.casefold()))) for case, text in written])),
        sentences=Spread.of(number),
        words=Spread.of([len(report.split()) for report in reports]),
        dropped=_dropped([text for _, text in written], sum(number), tokenise) if tokenise else None,
        max_words=tokenise.max_words if tokenise else None,
        positive=_positive(cases),
        volumes=_volumes(prepared.entries) if prepared else None,
    )


def _columns(rows: Sequence[tuple[Case, str]]) -> tuple[list[Case], list[str]]:
    return [case for case, _ in rows], [text for _, text in rows]


def _by_split(cases: Sequence[Case], of: Callable[[Case], str]) -> dict[str, int]:
    """Distinct things in each split, the usual splits first."""
    found = defaultdict(set)
    for case in cases:
        found[case.split].add(of(case))
    return {
        name: len(found[name]) for name in [*(s for s in SPLITS if s in found), *sorted(found.keys() - set(SPLITS))]
    }


def _dropped(reports: Sequence[str], sentences: int, tokenise: Limit) -> tuple[int, int, int]:
    lost = np.array(tokenise.dropped(reports), dtype=int)
    return int(lost.sum()), int((lost > 0).sum()), sentences


def _positive(cases: Sequence[Case]) -> dict[str, float]:
    """Share of the cases that have a label at 1, of those that have it at all."""
    values = defaultdict(list)
    for case in cases:
        for name, value in case.labels.items():
            values[name].append(value)
    return {name: float(np.mean(np.array(found) == 1)) for name, found in values.items()}


def _volumes(entries: Sequence[Entry]) -> Volumes | None:
    if not entries:
        return None
    records = [entry.record for entry in entries]
    geometry = np.array([_geometry(record) for record in records])  # [n, (voxels, mm), (D, H, W)]
    shapes = Counter(tuple(int(n) for n in found[0]) for found in geometry)
    histogram = np.sum([record["hu"]["histogram"] for record in records], axis=0)
    return Volumes(
        number=len(entries),
        spacing_mm=tuple(Spread.of(geometry[:, 1, t]) for t in range(3)),
        size_mm=tuple(Spread.of(geometry[:, 0, t] * geometry[:, 1, t]) for t in range(3)),
        shapes=dict(shapes.most_common()),
        hu_from=dict(Counter(record["hu_from"] for record in records).most_common()),
        window_hu=tuple(records[0]["spec"]["window_hu"]),
        histogram=histogram / histogram.sum(),
        mean_hu=Spread.of([record["hu"]["mean"] for record in records]),
        copies=Copies.of([entry.case for entry in entries], [record["voxels_sha256"] for record in records]),
        odd=tuple(entry.case.id for entry, out in zip(entries, _odd(records), strict=True) if out),
    )


def _geometry(record: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Voxels and spacing in mm of the source along D, H, W."""
    frame = Frame.of_record(record)
    return [float(n) for n in frame.size], [record["source_spacing_mm"][a] for a in frame.axes]


def _odd(records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """True where the mean HU is more than 5 robust standard deviations (1.4826 MAD), and 100 HU, from the median."""
    means = np.array([record["hu"]["mean"] for record in records])
    away = np.abs(means - np.median(means))
    return away > max(100.0, 5 * 1.4826 * float(np.median(away)))
