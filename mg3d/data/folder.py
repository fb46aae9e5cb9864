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

from mg3d.data.listing import SPLITS, BadTable, Listing, MissingCorpus, Problem, few, split_patients
from mg3d.data.table import Table, read_table
from mg3d.types import Case

NEEDED = ("id", "volume", "report")
KNOWN = (*NEEDED, "patient", "split", "slope", "intercept")


def list_folder(folder: Path, *, get: str) -> Listing:
    """Cases of the CSV `folder`, or of the only CSV in `folder` (or the one named volumes.csv).

    Returned as problems: volumes that are not there, blank reports. Raises MissingCorpus without a CSV, BadTable on a
    fault in the table (encoding, columns, repeated ids, unknown splits, labels), Leak is raised by check_patients.
    """
    path = _find(folder, get=get)
    table = read_table(path, columns=NEEDED)
    ids = table.unique("id")
    patients = table.filled("patient") if "patient" in table else ids
    volumes = [os.path.normpath(os.path.join(path.parent, volume)) for volume in table.filled("volume")]
    _check_volumes(table, volumes, patients)
    columns = (ids, patients, _splits(table, patients), volumes, table["report"], _labels(table), _rescale(table))

    cases, problems = [], []
    for line, (id_, patient, split, volume, report, labels, rescale) in zip(
        table.lines, zip(*columns, strict=True), strict=True
    ):
        if not os.path.exists(volume):
            problems.append(Problem(id_, volume, "missing", f"line {line} of {path} names it; it is not there"))
        elif not report:
            problems.append(Problem(id_, volume, "empty-report", f"no report in line {line} of {path}"))
        else:
            cases.append(Case(id_, patient, split, Path(volume), report, labels, rescale))
    if not cases and all(p.reason == "missing" for p in problems):
        looked = [Path(volume) for volume in volumes[:3]]
        raise MissingCorpus.of(f"Every volume that {path} names", looked=looked, get=get)
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


def _splits(table: Table, patients: list[str]) -> list[str]:
    if "split" not in table:
        drawn = split_patients(patients)
        return [drawn[patient] for patient in patients]
    bad = [i for i, split in enumerate(table["split"]) if split not in SPLITS]
    if bad:
        shown = few(f"{table['split'][i]!r} (line {table.lines[i]})" for i in bad)
        raise BadTable(table.path, f"unknown split {shown}. Valid: {', '.join(SPLITS)}; or leave the column out.")
    return table["split"]


def _rescale(table: Table) -> list[tuple[float, float] | None]:
    given = [name for name in ("slope", "intercept") if name in table]
    if not given:
        return [None] * len(table)
    if len(given) == 1:
        raise BadTable(table.path, f"a column {given[0]} by itself. Give both slope and intercept, or none.")
    pairs = []
    for line, slope, intercept in zip(table.lines, table.numbers("slope"), table.numbers("intercept"), strict=True):
        if (slope is None) != (intercept is None):
            raise BadTable(table.path, f"only one of slope and intercept in line {line}. Give both, or none.")
        pairs.append(None if slope is None or intercept is None else (slope, intercept))
    return pairs


def _labels(table: Table) -> list[dict[str, int]]:
    """One dict a row. A column without any number is a note; one with numbers must hold whole numbers throughout."""
    names = [name for name in table.columns if name not in KNOWN and any(map(_is_number, table[name]))]
    columns = {name: table.whole(name) for name in names}
    return [{name: columns[name][i] for name in names} for i in range(len(table))]


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _check_volumes(table: Table, volumes: list[str], patients: list[str]) -> None:
    """Raise BadTable when one file is given to two patients: they may end in two splits, unseen."""
    first: dict[str, int] = {}
    for i, volume in enumerate(volumes):
        j = first.setdefault(volume, i)
        if patients[j] != patients[i]:
            lines = f"{table.lines[j]} and {table.lines[i]}"
            detail = f"lines {lines} give the volume {volume} to two patients. Give them the same patient."
            raise BadTable(table.path, detail)
