"""Tiny trees of files in the very layout of each clinical data set; empty files stand for what no reader opens.

Each gives back the folder that is to be read. Numbers of patients are chosen so that shares come out whole.
"""

import csv
import json
from pathlib import Path

from mg3d.data.phantom.labels import LABELS

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.1000{}"
CLASSES = ("Normal", "CP", "NCP")


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def write_csv(path: Path, rows: list[list]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def write_json(path: Path, told: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told))
    return path


def edit(path: Path, old: str, new: str) -> Path:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def cc_ccii(folder: Path, *, patients: int = 30, folds: tuple[int, ...] = (0, 1, 2), zips: bool = False) -> Path:
    """Each patient has two scans; a third of the patients each class. Fold n tests patient p where p % 3 == n."""
    rows = []
    for p in range(patients):
        label = CLASSES[p // (patients // 3)]
        for scan in (2 * p, 2 * p + 1):
            place = folder / f"{label}-1" / label if zips else folder / label
            touch(place / str(1000 + p) / str(scan) / "0000.png")
            rows.append(
                [f"{label}-1.zip", CLASSES.index(label), label, 1000 + p, scan, 1, 2, f"[{2 * p}, {2 * p + 1}]"]
            )
    header = ["zip_file", "target", "label", "patient_id", "scan_id", "n_slice", "scan_count", "all_scan_ids"]
    for n in folds:
        for name, tested in (("train", False), ("valid", True)):
            chosen = [row for row in rows if ((row[3] - 1000) % 3 == n) == tested]
            write_csv(folder / "csv" / f"CC_CCII_fold{n}_{name}.csv", [header, *chosen])
    return folder


def luna16(folder: Path, *, each: int = 3) -> Path:
    """Ten subsets of `each` scans; the first of a subset has a nodule, the second two."""
    rows = [["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"]]
    for subset in range(10):
        for i in range(each):
            uid = UID.format(10 * subset + i)
            touch(folder / f"subset{subset}" / f"{uid}.mhd")
            touch(folder / f"subset{subset}" / f"{uid}.raw")
            rows += [[uid, -12.5, 30.0, -200.1, 5.65]] * (i + 1 if i < 2 else 0)
    write_csv(folder / "annotations.csv", rows)
    return folder


def stoic(folder: Path, *, patients: int = 50) -> Path:
    """Every second patient has covid, every fifth of those is severe."""
    for p in range(patients):
        touch(folder / "data" / "mha" / f"{p}.mha")
    rows = [[p, int(p % 2 == 0), int(p % 10 == 0)] for p in range(patients)]
    write_csv(folder / "metadata" / "reference.csv", [["PatientID", "probCOVID", "probSevere"], *rows])
    return folder


def msd06(folder: Path, *, volumes: int = 20, folds: bool = True) -> Path:
    """The unpacked tar: with the hidden files that the publisher's computer left in it."""
    root = folder / "Task06_Lung"
    rows = [
        {"image": f"./imagesTr/lung_{i:03d}.nii.gz", "label": f"./labelsTr/lung_{i:03d}.nii.gz"} for i in range(volumes)
    ]
    for row in rows:
        for path in row.values():
            touch(root / path)
            touch((root / path).with_name(f"._{Path(path).name}"))
    touch(root / "imagesTs" / "lung_900.nii.gz")
    labels = {"0": "background", "1": "cancer"}
    write_json(root / "dataset.json", {"name": "Lung", "labels": labels, "training": rows, "test": []})
    if folds:
        folded = [{"fold": i % 5, **{k: v.removeprefix("./") for k, v in row.items()}} for i, row in enumerate(rows)]
        write_json(folder / "jsons" / "10_Decathlon_Task06_Lung_folds.json", {"labels": labels, "training": folded})
    return folder


def covid19_20(folder: Path, *, volumes: int = 20, folds: bool = True) -> Path:
    """Patient 3 was scanned twice."""
    root = folder / "COVID-19-20_v2"
    names = [f"volume-covid19-A-{i:04d}" for i in range(volumes)] + ["volume-covid19-A-0003_1"]
    for name in names:
        touch(root / "Train" / f"{name}_ct.nii.gz")
        touch(root / "Train" / f"{name}_seg.nii.gz")
    touch(root / "Validation" / "volume-covid19-A-0900_ct.nii.gz")
    if folds:
        numbers = [int(name[17:21]) % 5 for name in names]
        rows = [
            {"fold": n, "image": f"{name}_ct.nii.gz", "label": f"{name}_seg.nii.gz"}
            for n, name in zip(numbers, names, strict=True)
        ]
        write_json(folder / "Covid19_20_folds.json", {"training": rows})
    return folder


def acdc(folder: Path, *, patients: int = 10) -> Path:
    """Patient p was annotated at frames 1 and 10 + p; `testing` is not read."""
    for p in range(1, patients + 1):
        name = f"patient{p:03d}"
        root = folder / "database" / "training" / name
        touch(root / f"{name}_4d.nii.gz")
        for frame in (1, 10 + p):
            touch(root / f"{name}_frame{frame:02d}.nii.gz")
            touch(root / f"{name}_frame{frame:02d}_gt.nii.gz")
        (root / "Info.cfg").write_text(f"ED: 1\nES: {10 + p}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")
    touch(folder / "database" / "testing" / "patient101" / "patient101_frame01.nii.gz")
    return folder


def acdc_fold(folder: Path, *, tested: tuple[str, ...], patients: int = 10) -> Path:
    """A fold in the released file's form; `tested` names frames (patient001_frame01) or patients (patient001)."""
    frames = [f"patient{p:03d}_frame{f:02d}" for p in range(1, patients + 1) for f in (1, 10 + p)]
    rows = {
        frame: {"image": f"./imagesTr/{frame}_0000.nii.gz", "label": f"./labelsTr/{frame}.nii.gz"} for frame in frames
    }
    test = [frame for frame in frames if frame.startswith(tested)]
    told = {"training": [rows[f] for f in frames if f not in test], "validation": [rows[f] for f in test]}
    return write_json(folder / "ACDC_fold0.json", told)


def ctrate(folder: Path, *, train: int = 40, valid: int = 6) -> Path:
    """CT-RATE's `dataset` with its 18 labels: each patient has a scan in two reconstructions."""
    dataset = folder / "dataset"
    for split, table, patients in (("train", "train", train), ("valid", "validation", valid)):
        names = [f"{split}_{p}_a_{r}" for p in range(1, patients + 1) for r in (1, 2)]
        for name in names:
            patient, scan = "_".join(name.split("_")[:2]), name.rsplit("_", 1)[0]
            touch(dataset / f"{split}_fixed" / patient / scan / f"{name}.nii.gz")
        files = [f"{name}.nii.gz" for name in names]
        reports = [["VolumeName", "Findings_EN", "Impressions_EN"], *([f, "No nodule.", "Normal."] for f in files)]
        write_csv(dataset / "radiology_text_reports" / f"{table}_reports.csv", reports)
        labels = [["VolumeName", *LABELS], *([f, *([i % 2] * 18)] for i, f in enumerate(files))]
        write_csv(dataset / "multi_abnormality_labels" / f"{split}_predicted_labels.csv", labels)
    return folder


def ctrg(folder: Path, *, train: int = 40, test: int = 8) -> Path:
    """CTRG-Chest: `val` is `test`, as published."""
    rows = [{"id": f"{i}.nii.gz", "report": f"Findings {i}.", "result": "Fatty liver."} for i in range(train + test)]
    for row in rows:
        touch(folder / "volumes" / row["id"])
    told = {"train": rows[:train], "val": rows[train:], "test": rows[train:]}
    write_json(folder / "chest_ctrg_nitfy_ori_split.json", told)
    return folder


TREES = {  # a row of COHORTS: its tree, and the number of cases in it
    "cc-ccii": (cc_ccii, 60),
    "luna16": (luna16, 30),
    "msd06": (msd06, 20),
    "covid19-20": (covid19_20, 21),
    "acdc": (acdc, 20),
    "stoic": (stoic, 50),
    "ctrg-report": (ctrg, 48),
    "ctrate-vocabfine": (ctrate, 92),
    "ctrate-retrieval": (ctrate, 92),
}
