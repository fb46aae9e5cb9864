"""CT-RATE's published layout, which the phantom cohort shares.

    dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz          also train/, valid/, valid_fixed/, test/
    dataset/radiology_text_reports/train_reports.csv                  VolumeName, Findings_EN, Impressions_EN, ...
    dataset/multi_abnormality_labels/train_predicted_labels.csv       VolumeName, 18 labels
    dataset/metadata/train_metadata.csv                               VolumeName, RescaleSlope, RescaleIntercept, ...
    dataset/metadata/no_chest_train.txt                               one volume a line that shows no chest
    truth/train_1_a_1.json                                            phantom only: the ground truth

A volume's name is patient (`train_1`), scan (`a`), reconstruction (`1`); reconstructions of a scan share the report.
CT-RATE publishes `train` and `valid`; its papers call `valid` the test set. Tables of `valid` are named validation_*
or valid_*. Where a volume lies under both `train` and `train_fixed`, the fixed file (mended header) is taken.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mg3d.data.listing import SPLITS, BadTable, Listing, MissingCorpus, Problem, few
from mg3d.data.table import Table, read_table
from mg3d.types import Case

NAMES = {"train": ("train",), "valid": ("validation", "valid"), "test": ("test",)}  # how files name the splits
NAME = re.compile(r"[^_]+(_[^_]+){2,}\.nii\.gz")  # patient (two parts), scan, reconstruction
EMPTY = ("", "not given", "nan", "none")  # what stands in the tables where a section was not dictated


@dataclass(frozen=True)
class _Split:
    """The files of one split that exist."""

    name: str
    folder: Path
    reports: Path | None
    labels: Path | None
    metadata: Path | None
    no_chest: Path | None


def list_ctrate(folder: Path, *, get: str) -> Listing:
    """Cases of every split whose reports table exists. `folder` holds `dataset`, or is it.

    A report is the findings, then the impression. Returned as problems: reports without a volume (missing), volumes
    without a row (no-report), rows without findings and impression (empty-report), volumes that CT-RATE itself lists
    as showing no chest (not-chest). Raises MissingCorpus when no reports table or no volume is there, BadTable on a
    fault in a table (among them a repeated VolumeName).
    """
    dataset = folder / "dataset" if (folder / "dataset").is_dir() else folder
    splits = [_split(dataset, name) for name in SPLITS]
    if not any(s.reports for s in splits):
        wanted = [dataset / "radiology_text_reports" / f"{NAMES[s][0]}_reports.csv" for s in SPLITS]
        raise MissingCorpus.of("Every reports table", looked=wanted, get=get)
    truths = _scan(dataset.parent / "truth", ".json")
    cases, problems = [], []
    for split in splits:
        found = _volumes(dataset, split.name)
        if split.reports is not None:
            listing = _list_split(split, split.reports, found, truths)
            cases += listing.cases
            problems += listing.problems
        else:
            problems += _unnamed(found, f"no reports table of {split.name}")
    if not cases and all(p.reason == "missing" for p in problems):
        looked = [s.folder for s in splits if s.reports]
        raise MissingCorpus.of("Every volume that the reports name", looked=looked, get=get)
    return Listing(cases, problems)


def _split(dataset: Path, name: str) -> _Split:
    def first(folder: str, pattern: str) -> Path | None:
        paths = [dataset / folder / pattern.format(n) for n in NAMES[name]]
        return next((p for p in paths if p.is_file()), None)

    return _Split(
        name=name,
        folder=dataset / name,
        reports=first("radiology_text_reports", "{}_reports.csv"),
        labels=first("multi_abnormality_labels", "{}_predicted_labels.csv"),
        metadata=first("metadata", "{}_metadata.csv"),
        no_chest=first("metadata", "no_chest_{}.txt"),
    )


def _volumes(dataset: Path, split: str) -> dict[str, str]:
    """File name -> path of every volume of a split; the mended files win."""
    found = {}
    for folder in (split, f"{split}_fixed"):
        found |= _scan(dataset / folder, ".nii.gz")
    return found


def _scan(folder: Path, suffix: str) -> dict[str, str]:
    """File name -> path of every file below `folder` that ends in `suffix`: one walk, no stat of a file."""
    found, waiting = {}, [str(folder)] if folder.is_dir() else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.endswith(suffix):
                    found[entry.name] = entry.path
                elif entry.is_dir():
                    waiting.append(entry.path)
    return found


def _list_split(split: _Split, reports: Path, found: dict[str, str], truths: dict[str, str]) -> Listing:
    table = read_table(reports, columns=("VolumeName", "Findings_EN", "Impressions_EN"))
    names = table.unique("VolumeName")
    bad = [f"{n!r} (line {i})" for n, i in zip(names, table.lines, strict=True) if not NAME.fullmatch(n)]
    if bad:
        raise BadTable(reports, f"{few(bad)}: a volume has a name such as {split.name}_1_a_1.nii.gz.")
    rescale, labels, no_chest = _rescale(split.metadata), _labels(split.labels), _no_chest(split.no_chest)

    cases, problems = [], []
    for name, report in zip(names, _text(table), strict=True):
        id_, path = name.removesuffix(".nii.gz"), found.get(name)
        patient = "_".join(id_.split("_")[:2])
        if path is None:
            path = str(split.folder / patient / id_.rsplit("_", 1)[0] / name)
            problems.append(Problem(id_, path, "missing", f"{reports} names it; the file is not there"))
        elif id_ in no_chest:
            problems.append(Problem(id_, path, "not-chest", f"{split.no_chest} says that it shows no chest"))
        elif not report:
            problems.append(Problem(id_, path, "empty-report", f"no findings and no impression in {reports}"))
        else:
            truth = truths.get(f"{id_}.json")
            case = Case(
                id=id_,
                patient=patient,
                split=split.name,
                volume=Path(path),
                report=report,
                labels=labels.get(name, {}),
                rescale=rescale.get(name),
                truth=Path(truth) if truth else None,
            )
            cases.append(case)
    rest = {name: found[name] for name in found.keys() - set(names)}
    return Listing(cases, problems + _unnamed(rest, f"no row of {reports} names this volume"))


def _unnamed(found: dict[str, str], detail: str) -> list[Problem]:
    return [Problem(name.removesuffix(".nii.gz"), found[name], "no-report", detail) for name in sorted(found)]


def _text(table: Table) -> list[str]:
    """Findings, then impression; a section that was not dictated is left out."""
    pairs = zip(table["Findings_EN"], table["Impressions_EN"], strict=True)
    return [" ".join(section for section in pair if section.lower().rstrip(".") not in EMPTY) for pair in pairs]


def _no_chest(path: Path | None) -> set[str]:
    """Ids of the volumes that the publisher's list names, one name or path a line."""
    lines = [] if path is None else path.read_text(encoding="utf-8").split()
    return {Path(line).name.removesuffix(".nii.gz") for line in lines}


def _rescale(path: Path | None) -> dict[str, tuple[float, float]]:
    """Volume name -> slope and intercept that the metadata table states."""
    if path is None:
        return {}
    table = read_table(path, columns=("VolumeName", "RescaleSlope", "RescaleIntercept"))
    rows = zip(
        table.unique("VolumeName"), table.numbers("RescaleSlope"), table.numbers("RescaleIntercept"), strict=True
    )
    return {name: (slope, intercept) for name, slope, intercept in rows if slope is not None and intercept is not None}


def _labels(path: Path | None) -> dict[str, dict[str, int]]:
    """Volume name -> labels, in the order of the table's columns."""
    if path is None:
        return {}
    table = read_table(path, columns=("VolumeName",))
    names = [name for name in table.columns if name != "VolumeName"]
    rows = zip(*(table.whole(name) for name in names), strict=True)
    return {
        volume: dict(zip(names, row, strict=True)) for volume, row in zip(table.unique("VolumeName"), rows, strict=True)
    }
