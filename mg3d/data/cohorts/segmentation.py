"""Cohorts with a mask a volume: MSD Task06 (lung tumours), COVID-19-20 (pneumonia), ACDC (the heart, MRI).

MSD Task06, unpacked from Task06_Lung.tar

    imagesTr/lung_001.nii.gz, labelsTr/lung_001.nii.gz          also below Task06_Lung/
    dataset.json                                                {"training": [{image, label}, ...], ...}
    10_Decathlon_Task06_Lung_folds.json                         optional, also in jsons/: {fold, image, label}, 0 to 4

COVID-19-20

    Train/volume-covid19-A-0003_ct.nii.gz, ..._seg.nii.gz       also below COVID-19-20_v2/
    Covid19_20_folds.json                                       optional, also in jsons/: folds 0 to 4

ACDC

    training/patient001/Info.cfg                                ED: 1, ES: 12 ...; also below database/
    training/patient001/patient001_frame01.nii.gz, ..._frame01_gt.nii.gz, ..._frame12.nii.gz, ..._frame12_gt.nii.gz
    ACDC_fold0.json                                             optional: {training, validation: [{image, label}, ...]}

The published folds of ACDC put one frame of a heart into training and the other into testing (30 of the 35 patients
that fold 0 tests, all 40 of folds 1 and 2). With such a file in the folder the reader raises Leak; without it patients
are drawn, with both their frames.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from mg3d.data.cohorts.splits import TEST, TRAIN, beside, settle
from mg3d.data.listing import BadTable, Listing, MissingCorpus, Problem, few
from mg3d.types import Case

TUMOUR = ("background", "tumour")
PNEUMONIA = ("background", "pneumonia")
CARDIAC = ("background", "right ventricle", "myocardium", "left ventricle")  # values 0 to 3 of a mask
PHASES = ("ED", "ES")  # end of diastole, end of systole
PATIENT = re.compile(r"patient\d{3}")
FRAME = re.compile(r"(patient\d{3}_frame\d{2})(_0000)?\.nii\.gz")  # nnU-Net adds the number of the channel
SCAN = re.compile(r"(volume-covid19-A-\d{4})(_\d+)?_ct\.nii\.gz")  # number of the patient, and of the scan


def read_msd06(folder: Path, *, seed: int, get: str) -> Listing:
    """The 63 volumes with a mask of TUMOUR. Seeds 0 to 4 are the published folds, where their file is there.

    Returned as problems: volumes or masks that a table names and that are not there.
    """
    root = _root(folder, "Task06_Lung")
    folds = beside(folder, "10_Decathlon_Task06_Lung_folds.json") or beside(root, "10_Decathlon_Task06_Lung_folds.json")
    path = folds or root / "dataset.json"
    if not path.is_file():
        raise MissingCorpus.of("The table of MSD Task06", looked=path, get=get)
    rows = _rows(path, "training", folded=bool(folds))
    split = _folds(rows, seed=seed) if folds else [""] * len(rows)
    cases = []
    for row, part in zip(rows, split, strict=True):
        id_ = Path(row["image"]).name.removesuffix(".nii.gz")
        cases.append(Case(id_, id_, part, root / row["image"], "", mask=root / row["label"]))
    what, looked = "Every volume of MSD Task06", root / "imagesTr"
    return settle(Listing(cases), seed=seed, share=51 / 63, what=what, looked=looked, get=get)


def read_covid19_20(folder: Path, *, seed: int, get: str) -> Listing:
    """The volumes with a mask of PNEUMONIA. Seeds 0 to 4 are the published folds, where their file is there.

    A second scan (0047_1) belongs to its patient (0047). Returned as problems: volumes or masks that are not there.
    """
    root = _root(_root(folder, "COVID-19-20_v2"), "Train")
    path = next(filter(None, (beside(at, "Covid19_20_folds.json") for at in (folder, root))), None)
    if path is None:
        names = sorted(p.name for p in root.glob("volume-covid19-A-*_ct.nii.gz"))
        rows = [{"image": name, "label": name.replace("_ct.", "_seg.")} for name in names]
        split = [""] * len(rows)
    else:
        rows = _rows(path, "training", folded=True)
        split = _folds(rows, seed=seed)
    bad = [row["image"] for row in rows if not SCAN.fullmatch(Path(row["image"]).name)]
    if bad:
        raise BadTable(path or root, f"{few(bad)}: a volume has a name such as volume-covid19-A-0003_ct.nii.gz.")
    cases = []
    for row, part in zip(rows, split, strict=True):
        name = Path(row["image"]).name
        found = SCAN.fullmatch(name)
        patient = found[1] if found else name
        id_ = name.removesuffix("_ct.nii.gz")
        cases.append(Case(id_, patient, part, root / row["image"], "", mask=root / row["label"]))
    what = "Every volume of COVID-19-20"
    return settle(Listing(cases), seed=seed, share=151 / 189, what=what, looked=root, get=get, fold=path)


def read_acdc(folder: Path, *, seed: int, get: str) -> Listing:
    """Two frames a patient, the ends of diastole and systole, each with a mask of CARDIAC.

    The 100 patients of `training`; 80 train, drawn by `seed`. Returned as problems: frames or masks that are not there,
    and patients whose Info.cfg does not say which frames they are. Raises Leak for a published fold file that leaks.
    """
    root = _root(folder, "database") / "training"
    patients = sorted(p for p in root.glob("patient*") if PATIENT.fullmatch(p.name) and p.is_dir())
    path = beside(folder, f"ACDC_fold{seed}.json")
    parts = _acdc_fold(path) if path else {}
    cases, problems = [], []
    for patient in patients:
        frames = _frames(patient / "Info.cfg")
        if isinstance(frames, Problem):
            problems.append(frames)
            continue
        for frame in frames:
            id_ = f"{patient.name}_frame{frame:02d}"
            if not parts or id_ in parts:
                volume, mask = patient / f"{id_}.nii.gz", patient / f"{id_}_gt.nii.gz"
                cases.append(Case(id_, patient.name, parts.get(id_, ""), volume, "", mask=mask))
            else:
                problems.append(Problem(id_, str(patient), "missing", f"{path} does not name it"))
    what, looked = "Every patient of ACDC", root / "patient001"
    return settle(Listing(cases, problems), seed=seed, share=160 / 200, what=what, looked=looked, get=get, fold=path)


def _root(folder: Path, inner: str) -> Path:
    return folder / inner if (folder / inner).is_dir() else folder


def _frames(info: Path) -> list[int] | Problem:
    """The numbers of the two annotated frames."""
    patient = info.parent.name
    try:
        lines = info.read_text(encoding="utf-8").splitlines()
        told = dict(line.replace(" ", "").split(":", 1) for line in lines if ":" in line)
        return [int(told[phase]) for phase in PHASES]
    except (OSError, UnicodeDecodeError):
        return Problem(patient, str(info), "missing", "Info.cfg, which says which frames are annotated, is not there")
    except (KeyError, ValueError):
        return Problem(patient, str(info), "no-label", f"no numbers of the frames {' and '.join(PHASES)} in it")


def _acdc_fold(path: Path) -> dict[str, str]:
    """Frame -> train or test. The file names frames as nnU-Net does."""
    parts = {}
    for key, part in (("training", TRAIN), ("validation", TEST)):
        for row in _rows(path, key):
            found = FRAME.fullmatch(Path(row["image"]).name)
            if not found:
                raise BadTable(path, f"{row['image']}: a frame has a name such as patient001_frame01_0000.nii.gz.")
            parts[found[1]] = part
    return parts


def _folds(rows: Iterable[dict], *, seed: int) -> list[str]:
    """The split of each row: fold `seed` is tested. Empty, to be drawn, where there is no such fold."""
    folds = [row["fold"] for row in rows]
    return [(TEST if fold == seed else TRAIN) if seed in folds else "" for fold in folds]


def _rows(path: Path, key: str, *, folded: bool = False) -> list[dict]:
    """The entries of a list in a JSON file, each with image and label (and fold), as paths below the file's folder."""
    try:
        told = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadTable(path, f"not JSON ({error}). Download it again.") from None
    rows = told.get(key) if isinstance(told, dict) else None
    if not isinstance(rows, list) or not rows:
        raise BadTable(path, f'no list {key}: {{"{key}": [{{"image": ..., "label": ...}}, ...]}} was expected.')
    kinds = {"image": str, "label": str} | ({"fold": int} if folded else {})
    bad = [i for i, row in enumerate(rows) if not _has(row, kinds)]
    if bad:
        raise BadTable(path, f"entry {few(bad)} of {key}: each needs {', '.join(kinds)}, paths below the folder.")
    images = [row["image"] for row in rows]
    twice = sorted({image for image in images if images.count(image) > 1})
    if twice:
        raise BadTable(path, f"the same image comes more than once in {key}: {few(twice)}. Keep one each.")
    return rows


def _has(row: object, kinds: dict[str, type]) -> bool:
    if not isinstance(row, dict) or not all(isinstance(row.get(name), kind) for name, kind in kinds.items()):
        return False
    return not any(Path(row[name]).is_absolute() or ".." in Path(row[name]).parts for name in ("image", "label"))
