"""CTRG-Chest: one JSON of reports, and a folder of 8-bit volumes.

    <anything>.json                         {"train": [{id, report, result, ...}], "val": [...], "test": [...]}
    .../910.nii.gz                          anywhere below the folder, named as the id
    ctrg_finding_labels.csv                 optional: id and 14 labels (0 blank, 1 positive, 2 negative, 3 uncertain)

The published `val` and `test` are the same 360 cases, so that nothing is left to choose a model on. Here `test` is
those 360, and `valid` is one in twenty of the 1,444 of `train`, drawn by hash with a fixed seed (72), which leaves
1,372 to train on. A report is the findings (`report`), then the impression (`result`).

The volumes were windowed to 0..255 before they were published and hold no HU. `Case.rescale` = EIGHT_BIT spreads
0..255 over -1000..1000, so that the window of the workbench turns a voxel v into v/255, as the released code does.
"""

import json
import os
from pathlib import Path

from mg3d.data.hu import EIGHT_BIT
from mg3d.data.listing import BadTable, Listing, MissingCorpus, Problem, few, shuffled
from mg3d.data.table import read_table
from mg3d.types import Case

SEED, EVERY = 0, 20  # of `train`, one case in twenty becomes `valid`


def list_ctrg(folder: Path, *, get: str) -> Listing:
    """Cases of train, valid (held out of train) and test. Returned as problems: missing volumes, empty reports.

    Raises MissingCorpus when the JSON or all volumes are missing, BadTable when the JSON is not as described.
    """
    path, splits = _read_json(folder, get=get)
    rows = [(split, row) for split in ("train", "test") for row in splits[split]]
    ids = [str(row["id"]).removesuffix(".nii.gz") for _, row in rows]
    twice = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise BadTable(path, f"the same id comes more than once in train and test: {few(twice)}. Keep one each.")
    train = [i for i, (split, _) in zip(ids, rows, strict=True) if split == "train"]
    held_out = set(shuffled(train, seed=SEED)[: len(train) // EVERY])
    labels = _labels(folder)
    volumes = _volumes(folder)

    cases, problems = [], []
    for id_, (split, row) in zip(ids, rows, strict=True):
        report = f"{(row.get('report') or '').strip()} {(row.get('result') or '').strip()}".strip()
        volume = volumes.get(f"{id_}.nii.gz")
        if volume is None:
            expected = str(folder / f"{id_}.nii.gz")
            problems.append(Problem(id_, expected, "missing", f"{path} names it; no such file below {folder}"))
        elif not report:
            problems.append(Problem(id_, volume, "empty-report", f"no report and no result in {path}"))
        else:
            name = "valid" if id_ in held_out else split
            cases.append(Case(id_, id_, name, Path(volume), report, labels.get(id_, {}), EIGHT_BIT))
    if not volumes:
        raise MissingCorpus.of("Every volume that the reports name", looked=folder, get=get)
    return Listing(cases, problems)


def _read_json(folder: Path, *, get: str) -> tuple[Path, dict]:
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not paths:
        raise MissingCorpus.of("The JSON of reports", looked=folder / "*.json", get=get)
    if len(paths) > 1:
        raise BadTable(folder, f"more than one JSON file: {few(p.name for p in paths)}. Keep the one of the reports.")
    path = paths[0]
    try:
        splits = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadTable(path, f"not JSON ({error}). Download it again.") from None
    if not isinstance(splits, dict) or not {"train", "test"} <= splits.keys():
        raise BadTable(
            path, 'not the reports of CTRG-Chest: {"train": [...], "val": [...], "test": [...]} was expected.'
        )
    for split in ("train", "test"):
        bad = [i for i, row in enumerate(splits[split]) if not isinstance(row, dict) or "id" not in row]
        if bad:
            raise BadTable(path, f"no id in entry {few(bad)} of {split}. Each entry needs id, report and result.")
    return path, splits


def _volumes(folder: Path) -> dict[str, str]:
    """File name -> path of every volume below the folder."""
    return {
        name: os.path.join(at, name) for at, _, names in os.walk(folder) for name in names if name.endswith(".nii.gz")
    }


def _labels(folder: Path) -> dict[str, dict[str, int]]:
    """Id -> labels, 1 where the finding is stated as present, else 0."""
    path = folder / "ctrg_finding_labels.csv"
    if not path.is_file():
        return {}
    table = read_table(path, columns=("id",))
    names = [name for name in table.columns if name != "id"]
    rows = zip(*(table.whole(name) for name in names), strict=True)
    present = [{name: int(value == 1) for name, value in zip(names, row, strict=True)} for row in rows]
    return dict(zip(table.unique("id"), present, strict=True))
