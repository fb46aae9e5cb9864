"""A user's own data: one CSV beside (or far from) the volumes.

    id,volume,report,patient,split,emphysema
    a1,scans/a1.nii.gz,"The lungs are clear. No effusion.",p1,train,0
    b1,scans/b1,"Centrilobular emphysema, upper lobes.",p2,valid,1

| column | needed | meaning |
|---|---|---|
| `id` | yes | a name of the volume, once in the table |
| `volume` | yes | a .nii or .nii.gz file, or a folder that holds one DICOM series; relative to the CSV, or absolute |
| `report` | yes | the whole text; blank rows are put aside |
| `patient` | no | rows of a patient never part; without the column each row is a patient |
| `split` | no | train, valid or test; without the column, 80 / 10 / 10 % of the patients by a hash with a fixed seed |
| `slope`, `intercept` | no | how stored values become HU, where the header does not say; checked against the voxels |
| any other | no | whole numbers: a label. Text: a note, ignored. A column that mixes the two is an error |

UTF-8, with or without a byte-order mark; commas; double quotes round text that holds commas or line breaks.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mg3d.data.listing import SPLITS, BadTable, Listing, MissingCorpus, Problem, few, split_patients
from mg3d.data.table import check_unique, numbers, read_table, whole
from mg3d.types import Case

if TYPE_CHECKING:
    from pandas import DataFrame, Series

NEEDED = ("id", "volume", "report")
KNOWN = (*NEEDED, "patient", "split", "slope", "intercept")


def list_folder(folder: Path, *, get: str) -> Listing:
    """Cases of the CSV `folder`, or of the only CSV in `folder` (or the one named volumes.csv).

    Returned as problems: volumes that are not there, blank reports. Raises MissingCorpus without a CSV, BadTable on a
    fault in the table (encoding, columns, repeated ids, unknown splits, labels), Leak is raised by check_patients.
    """
    path = _find(folder, get=get)
    table = read_table(path, columns=NEEDED)
    table[table.columns] = table.apply(lambda column: column.str.strip())
    check_unique(path, table["id"])
    patients = _patients(path, table)
    splits = _splits(path, table, patients)
    rescale = _rescale(path, table)
    labels = _labels(path, table)
    volumes = [os.path.join(path.parent, v) for v in table["volume"]]
    _check_volumes(path, table, volumes, patients)

    cases, problems = [], []
    for i, (row, id_) in enumerate(table["id"].items()):
        where, report = volumes[i], table["report"].iloc[i]
        if not table["volume"].iloc[i]:
            problems.append(Problem(id_, str(path), "missing", f"row {row} names no volume"))
        elif not os.path.exists(where):
            problems.append(Problem(id_, where, "missing", f"row {row} of {path} names it; the file is not there"))
        elif not report:
            problems.append(Problem(id_, where, "empty-report", f"no report in row {row} of {path}"))
        else:
            case = Case(id_, patients.iloc[i], splits.iloc[i], Path(where), report, labels[i], rescale[i])
            cases.append(case)
    if not cases and all(p.reason == "missing" for p in problems):
        raise MissingCorpus.of(f"Every volume that {path} names", looked=map(Path, volumes[:3]), get=get)
    return Listing(cases, problems)


def _find(folder: Path, *, get: str) -> Path:
    if folder.suffix.lower() == ".csv":
        if folder.is_file():
            return folder
        raise MissingCorpus.of("The table of volumes", looked=folder, get=get)
    if (folder / "volumes.csv").is_file():
        return folder / "volumes.csv"
    found = sorted(folder.glob("*.csv")) if folder.is_dir() else []
    if not found:
        raise MissingCorpus.of("The table of volumes", looked=folder / "volumes.csv", get=get)
    if len(found) > 1:
        names = few(p.name for p in found)
        raise BadTable(folder, f"more than one CSV: {names}. Name the right one volumes.csv, or give its path.")
    return found[0]


def _patients(path: Path, table: "DataFrame") -> "Series":
    if "patient" not in table:
        return table["id"]
    blank = table.index[table["patient"] == ""]
    if len(blank):
        raise BadTable(path, f"no patient in row {few(blank)}. Fill the column, or leave it out.")
    return table["patient"]


def _splits(path: Path, table: "DataFrame", patients: "Series") -> "Series":
    if "split" not in table:
        return patients.map(split_patients(patients))
    bad = table.index[~table["split"].isin(SPLITS)]
    if len(bad):
        shown = few(f"{table['split'][row]!r} (row {row})" for row in bad)
        raise BadTable(path, f"unknown split {shown}. Valid: {', '.join(SPLITS)}; or leave the column out.")
    return table["split"]


def _rescale(path: Path, table: "DataFrame") -> list[tuple[float, float] | None]:
    given = [c for c in ("slope", "intercept") if c in table]
    if not given:
        return [None] * len(table)
    if len(given) == 1:
        raise BadTable(path, f"a column {given[0]} by itself. Give both slope and intercept, or none.")
    slope, intercept = numbers(path, table["slope"]), numbers(path, table["intercept"])
    half = table.index[slope.isna() != intercept.isna()]
    if len(half):
        raise BadTable(path, f"only one of slope and intercept in row {few(half)}. Give both, or none.")
    return [None if s != s else (s, i) for s, i in zip(slope.tolist(), intercept.tolist(), strict=True)]


def _labels(path: Path, table: "DataFrame") -> list[dict[str, int]]:
    """One dict a row. A column without any number is a note; one with numbers must hold whole numbers throughout."""
    import pandas as pd

    others = [c for c in table if c not in KNOWN]
    labels = [c for c in others if pd.to_numeric(table[c], errors="coerce").notna().any()]
    if not labels:
        return [{} for _ in range(len(table))]
    return table[labels].apply(lambda column: whole(path, column)).to_dict("records")


def _check_volumes(path: Path, table: "DataFrame", volumes: list[str], patients: "Series") -> None:
    """Raise BadTable when one file is given to two patients: they may end in two splits, unseen."""
    owner: dict[str, int] = {}
    for i, volume in enumerate(volumes):
        first = owner.setdefault(os.path.normpath(volume), i)
        if table["volume"].iloc[i] and patients.iloc[first] != patients.iloc[i]:
            rows = f"{table.index[first]} and {table.index[i]}"
            raise BadTable(path, f"rows {rows} give the volume {volume} to two patients. Give them the same patient.")
