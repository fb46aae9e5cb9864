"""Cohorts with one label a scan: CC-CCII (pneumonia), LUNA16 (nodules), STOIC-2021 (severity).

CC-CCII, pictures windowed to 0..255 (mg3d/data/pictures.py), unpacked from CP-1.zip, NCP-1.zip, Normal-1.zip ...

    CP/1065/3104/0000.jpg ...               class, patient, scan; or CP-1/CP/1065/3104 where zips were kept apart
    p1065-s3104.npy                         or, anywhere below, the scan as one array, as the released code keeps it
    CC_CCII_fold0_train.csv, ..._valid.csv  optional, also in csv/: the 4,178 scans of the paper, folds 0 to 2

LUNA16 (mg3d/data/metaimage.py)

    subset0/1.3.6.1.4.1.14519.5.2.1.6279.6001.105756658031515062000744821260.mhd, .raw     subset0 ... subset9
    annotations.csv                         also in CSVFILES/: seriesuid, coordX, coordY, coordZ, diameter_mm
    candidates.csv                          read where annotations.csv is not there: seriesuid, ..., class

STOIC-2021

    data/mha/1000.mha
    metadata/reference.csv                  PatientID, probCOVID, probSevere
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mg3d.data.cohorts.splits import TEST, TRAIN, beside, settle
from mg3d.data.hu import EIGHT_BIT
from mg3d.data.listing import BadTable, Leak, Listing, MissingCorpus, Problem, few
from mg3d.data.table import read_table
from mg3d.types import Case

CLASSES = ("Normal", "CP", "NCP")  # none, common pneumonia, novel coronavirus pneumonia: the targets 0, 1, 2
FOLDS = (0, 1, 2)
ARRAY = re.compile(r"p(\d+)-s(\d+)\.npy")
SUBSETS = 10
TESTED, CHOOSING = (7, 8, 9), 6  # subsets of LUNA16 that the released code tests on, and that it chooses the model by


@dataclass(frozen=True)
class _Scan:
    """A scan of CC-CCII, as a table or a folder names it."""

    patient: str
    scan: str
    label: str
    split: str = ""
    wrong: str = ""  # why the label cannot be used

    @property
    def id(self) -> str:
        return f"p{self.patient}-s{self.scan}"


def read_cc_ccii(folder: Path, *, seed: int, get: str) -> Listing:
    """The scans of the fold tables, or all that are there: labels {"class": place in CLASSES}.

    Seeds 0, 1, 2 are the published folds, where their tables are there. Returned as problems: scans that are named and
    not there, and classes that are none of CLASSES or contradict their number.
    """
    places = _arrays(folder) | _folders(folder)
    scans, fold = _tables(folder, seed=seed)
    scans = scans or [_Scan(patient, scan, label) for label, patient, scan in _folder_names(folder)]
    if not scans:
        looked = [*(folder / name for name in CLASSES), folder / "CC_CCII_fold0_train.csv"]
        raise MissingCorpus.of("CC-CCII's folders of scans, or its tables", looked=looked, get=get)
    cases, problems = [], []
    for s in scans:
        path = places.get((s.patient, s.scan), folder / s.label / s.patient / s.scan)
        if s.wrong:
            problems.append(Problem(s.id, str(path), "no-label", f"{s.wrong}; valid: {', '.join(CLASSES)}"))
        else:
            label = {"class": CLASSES.index(s.label)}
            cases.append(Case(s.id, s.patient, s.split, path, "", label, EIGHT_BIT))
    what = "Every scan of CC-CCII"
    return settle(Listing(cases, problems), seed=seed, share=2785 / 4178, what=what, looked=folder, get=get, fold=fold)


def _tables(folder: Path, *, seed: int) -> tuple[list[_Scan], Path | None]:
    """The scans of fold `seed`; without such a fold, those of any, without a split."""
    there = [n for n in FOLDS if beside(folder, f"CC_CCII_fold{n}_train.csv")]
    if not there:
        return [], None
    number = seed if seed in there else there[0]
    scans: list[_Scan] = []
    paths = [beside(folder, f"CC_CCII_fold{number}_{name}.csv") for name in ("train", "valid")]
    for path, split in zip(paths, (TRAIN, TEST), strict=True):
        if path is None:
            raise BadTable(folder, f"CC_CCII_fold{number}_train.csv without CC_CCII_fold{number}_valid.csv. Get both.")
        scans += _table(path, split=split if number == seed else "")
    twice = [scan for scan, n in Counter(s.scan for s in scans).items() if n > 1]
    if twice:
        raise Leak(f"{paths[0]} and {paths[1]}: scan {few(twice)} is in both. Keep one row of each.")
    return scans, paths[0] if number == seed else None


def _table(path: Path, *, split: str) -> list[_Scan]:
    table = read_table(path, columns=("target", "label", "patient_id", "scan_id"))
    columns = (table.filled("patient_id"), table.unique("scan_id"), table["label"], table["target"], table.lines)
    scans = []
    for patient, scan, label, target, line in zip(*columns, strict=True):
        fits = label in CLASSES and target == str(CLASSES.index(label))
        wrong = "" if fits else f"class {label!r} with target {target!r} in line {line} of {path}"
        scans.append(_Scan(patient, scan, label, split, wrong))
    return scans


def _folder_names(folder: Path) -> list[tuple[str, str, str]]:
    """(class, patient, scan) of each scan folder, in the order of their numbers."""
    names = {(path.parts[-3], path.parts[-2], path.name) for path in _folders(folder).values()}
    return sorted(names, key=lambda n: (CLASSES.index(n[0]), n[1].zfill(8), n[2].zfill(8)))


def _folders(folder: Path) -> dict[tuple[str, str], Path]:
    """(patient, scan) -> folder of slices."""
    found = [p for name in CLASSES for start in ("", "*/") for p in folder.glob(f"{start}{name}/*/*") if p.is_dir()]
    return {(path.parent.name, path.name): path for path in found}


def _arrays(folder: Path) -> dict[tuple[str, str], Path]:
    """(patient, scan) -> array of slices."""
    walked = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
    matched = ((ARRAY.fullmatch(path.name), path) for path in walked)
    return {(found[1], found[2]): path for found, path in matched if found}


def read_luna16(folder: Path, *, seed: int, get: str) -> Listing:
    """One case a scan: labels {"nodule": 1 where the table names a nodule of 3 mm or more, else 0}.

    Seed 0 is the division of the released code: subsets 0-5 train, 6 chooses, 7-9 test. Seeds 1 and 2 test on subsets
    4-6 and 1-3 instead; other seeds draw patients. A scan is a patient: the data name none. Returned as problems:
    scans that the table names, or whose header is there, without their voxels.
    """
    scans = sorted(p for n in range(SUBSETS) for p in (folder / f"subset{n}").glob("*.mhd") if p.name[0] != ".")
    if not scans:
        raise MissingCorpus.of("Every scan of LUNA16", looked=folder / "subset0" / "*.mhd", get=get)
    path, positive = _nodules(folder, get=get)
    cases, problems = [], []
    for scan in scans:
        uid = scan.stem
        if any(scan.with_suffix(end).is_file() for end in (".raw", ".zraw")):
            split = _subset_split(int(scan.parent.name.removeprefix("subset")), seed=seed)
            cases.append(Case(uid, uid, split, scan, "", {"nodule": int(uid in positive)}))
        else:
            problems.append(Problem(uid, str(scan.with_suffix(".raw")), "missing", f"the voxels of {scan.name}"))
    for uid in sorted(positive - {scan.stem for scan in scans}):
        expected = folder / "subset*" / f"{uid}.mhd"
        problems.append(Problem(uid, str(expected), "missing", f"{path} names it; no subset has it"))
    looked = folder / "subset*" / "*.raw"
    return settle(
        Listing(cases, problems), seed=seed, share=623 / 888, what="Every .raw of LUNA16", looked=looked, get=get
    )


def _subset_split(subset: int, *, seed: int) -> str:
    if seed not in FOLDS:
        return ""
    place = (subset + len(TESTED) * seed) % SUBSETS
    return TEST if place in TESTED else "valid" if place == CHOOSING else TRAIN


def _nodules(folder: Path, *, get: str) -> tuple[Path, set[str]]:
    """The scans with a nodule, by annotations.csv, else by class 1 of candidates.csv."""
    places = [folder / sub / name for name in ("annotations.csv", "candidates.csv") for sub in ("", "CSVFILES")]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise MissingCorpus.of("LUNA16's table of nodules", looked=places, get=get)
    if path.name == "annotations.csv":
        return path, set(read_table(path, columns=("seriesuid", "diameter_mm")).filled("seriesuid"))
    table = read_table(path, columns=("seriesuid", "class"))
    return path, {uid for uid, kind in zip(table.filled("seriesuid"), table.whole("class"), strict=True) if kind == 1}


def read_stoic(folder: Path, *, seed: int, get: str) -> Listing:
    """Labels {"covid", "severe"}: a positive test, and death or intubation within a month (of those with covid).

    1,600 of the 2,000 patients train, drawn by `seed`. Returned as problems: rows without a volume, volumes without a
    row, and labels that are neither 0 nor 1.
    """
    path = folder / "metadata" / "reference.csv"
    if not path.is_file():
        raise MissingCorpus.of("STOIC's table of outcomes", looked=path, get=get)
    table = read_table(path, columns=("PatientID", "probCOVID", "probSevere"))
    ids = table.unique("PatientID")
    cases, problems = [], []
    outcomes = zip(ids, table.numbers("probCOVID"), table.numbers("probSevere"), table.lines, strict=True)
    for id_, covid, severe, line in outcomes:
        volume = folder / "data" / "mha" / f"{id_}.mha"
        if {covid, severe} <= {0.0, 1.0}:
            labels = {"covid": int(covid or 0), "severe": int(severe or 0)}
            cases.append(Case(id_, id_, "", volume, "", labels))
        else:
            detail = f"probCOVID {covid}, probSevere {severe} in line {line} of {path}; valid: 0, 1"
            problems.append(Problem(id_, str(volume), "no-label", detail))
    problems += _unlisted(volumes=folder.glob("data/mha/*.mha"), known=set(ids), table=path)
    what, looked = "Every volume of STOIC", folder / "data" / "mha"
    return settle(Listing(cases, problems), seed=seed, share=1600 / 2000, what=what, looked=looked, get=get)


def _unlisted(*, volumes: Iterable[Path], known: set[str], table: Path) -> list[Problem]:
    rest = sorted(path for path in volumes if path.stem not in known and path.name[0] != ".")
    return [Problem(path.stem, str(path), "no-label", f"no row of {table} names it") for path in rest]
