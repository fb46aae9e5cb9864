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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mg3d.data.listing import SPLITS, BadTable, Listing, MissingCorpus, Problem
from mg3d.data.table import check_unique, numbers, read_table, whole
from mg3d.types import Case

if TYPE_CHECKING:
    from pandas import DataFrame, Series

NAMES = {"train": ("train",), "valid": ("validation", "valid"), "test": ("test",)}  # how files name the splits
EMPTY = ("", "not given", "nan", "none")  # what stands in the tables where a section was not dictated


@dataclass(frozen=True)
class _Split:
    """The files of one split; only `reports` is always there."""

    name: str
    reports: Path
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
    dataset = folder if folder.name == "dataset" or not (folder / "dataset").is_dir() else folder / "dataset"
    splits = list(_splits(dataset))
    if not splits:
        wanted = [dataset / "radiology_text_reports" / f"{NAMES[s][0]}_reports.csv" for s in SPLITS]
        raise MissingCorpus.of("Every reports table", looked=wanted, get=get)
    truths = _scan(dataset.parent / "truth", ".json")
    cases, problems = [], []
    for split in splits:
        found = _volumes(dataset, split.name)
        listing = _list_split(split, found, truths, dataset)
        cases += listing.cases
        problems += listing.problems
    if not cases and all(p.reason == "missing" for p in problems):
        raise MissingCorpus.of("Every volume that the reports name", looked=[dataset / s.name for s in splits], get=get)
    return Listing(cases, problems)


def _splits(dataset: Path) -> Iterator[_Split]:
    for name in SPLITS:

        def first(folder: str, pattern: str, names: tuple[str, ...] = NAMES[name]) -> Path | None:
            paths = [dataset / folder / pattern.format(n) for n in names]
            return next((p for p in paths if p.is_file()), None)

        reports = first("radiology_text_reports", "{}_reports.csv")
        if reports is not None:
            yield _Split(
                name,
                reports,
                first("multi_abnormality_labels", "{}_predicted_labels.csv"),
                first("metadata", "{}_metadata.csv"),
                first("metadata", "no_chest_{}.txt"),
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


def _list_split(split: _Split, found: dict[str, str], truths: dict[str, str], dataset: Path) -> Listing:
    table = read_table(split.reports, columns=("VolumeName", "Findings_EN", "Impressions_EN"))
    check_unique(split.reports, table["VolumeName"])
    names = table["VolumeName"]
    ids = names.str.removesuffix(".nii.gz")
    patients = ids.str.extract(r"^([^_]+_[^_]+)_", expand=False)
    if patients.isna().any():
        row = patients.index[patients.isna()][0]
        raise BadTable(split.reports, f"row {row}: {names[row]!r} is no volume name such as {split.name}_1_a_1.nii.gz")
    reports = _text(table)
    rescale = _rescale(split.metadata)
    labels = _labels(split.labels)
    no_chest = set() if split.no_chest is None else {Path(n).name for n in split.no_chest.read_text().split()}

    cases, problems = [], []
    for name, id_, patient, report in zip(names, ids, patients, reports, strict=True):
        path = found.get(name)
        if path is None:
            expected = dataset / split.name / patient / id_.rsplit("_", 1)[0] / name
            problems.append(Problem(id_, str(expected), "missing", "the reports table names it; the file is not there"))
        elif name in no_chest:
            problems.append(Problem(id_, path, "not-chest", f"{split.no_chest} says that it shows no chest"))
        elif not report:
            problems.append(Problem(id_, path, "empty-report", f"no findings and no impression in {split.reports}"))
        else:
            truth = truths.get(f"{id_}.json")
            cases.append(
                Case(
                    id=id_,
                    patient=patient,
                    split=split.name,
                    volume=Path(path),
                    report=report,
                    labels=labels.get(name, {}),
                    rescale=rescale.get(name),
                    truth=Path(truth) if truth else None,
                )
            )
    for name in sorted(found.keys() - set(names)):
        detail = f"no row of {split.reports} names this volume"
        problems.append(Problem(name.removesuffix(".nii.gz"), found[name], "no-report", detail))
    return Listing(cases, problems)


def _text(table: "DataFrame") -> "Series":
    """Findings, then impression; a section that was not dictated is left out."""
    sections = [table[c].str.strip() for c in ("Findings_EN", "Impressions_EN")]
    findings, impression = (s.where(~s.str.lower().str.rstrip(".").isin(EMPTY), "") for s in sections)
    return (findings + " " + impression).str.strip()


def _rescale(path: Path | None) -> dict[str, tuple[float, float]]:
    if path is None:
        return {}
    table = read_table(path, columns=("VolumeName", "RescaleSlope", "RescaleIntercept"))
    check_unique(path, table["VolumeName"])
    slope, intercept = (numbers(path, table[c]) for c in ("RescaleSlope", "RescaleIntercept"))
    stated = slope.notna() & intercept.notna()
    pairs = zip(slope[stated].tolist(), intercept[stated].tolist(), strict=True)
    return dict(zip(table["VolumeName"][stated], pairs, strict=True))


def _labels(path: Path | None) -> dict[str, dict[str, int]]:
    if path is None:
        return {}
    table = read_table(path, columns=("VolumeName",))
    check_unique(path, table["VolumeName"])
    values = table.drop(columns="VolumeName").apply(lambda column: whole(path, column))
    return dict(zip(table["VolumeName"], values.to_dict("records"), strict=True))
