"""Write a phantom cohort in CT-RATE's layout, so that one reader serves both, and the ground truth beside it.

    dataset/train/train_1/train_1_a/train_1_a_1.nii.gz          int16 HU; train, valid and test alike
    dataset/radiology_text_reports/train_reports.csv            validation_reports.csv, test_reports.csv
    dataset/multi_abnormality_labels/train_predicted_labels.csv valid_..., test_...
    dataset/metadata/train_metadata.csv                         validation_..., test_...
    truth/train_1_a_1.json, .npz                                see truth.py
    cohort.json                                                 what the cohort was made with, and whether it is done

CT-RATE has no split named test; ours lies beside its two. Volumes are stored in different orientations (LPS, RAS, LAS),
as real ones are: who does not look at the affine mirrors every third patient.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import Float, Int16

from mg3d.data.phantom.labels import LABELS, SPLITS, stream
from mg3d.data.phantom.plan import Plan, draw
from mg3d.data.phantom.report import Sentence, omitted, sections, write
from mg3d.data.phantom.truth import describe, load_truth, organ_masks, pack, read_plan, read_sentence, sentence_masks
from mg3d.data.pool import cores, scatter
from mg3d.paths import write_atomic

__all__ = ["load_truth", "make", "organ_masks", "sentence_masks"]

VERSION = 2  # of what a seed gives; raise it when plans, wording or voxels change, so that cohorts are never mixed
ORIENTATIONS = ("LPS", "RAS", "LAS")  # where the axes x, y, z of a stored volume point to
FEW = 24  # cases below which it is quicker not to start processes
LEVEL = 2  # of isal's gzip: as fast as level 1 on these volumes, and 2 % smaller
TABLES = {"train": ("train", "train"), "valid": ("validation", "valid"), "test": ("test", "test")}


@dataclass(frozen=True)
class Job:
    """One case to write."""

    folder: Path
    number: int
    split: str
    seed: int
    shape: tuple[int, int, int]

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """Volume, masks and truth, in the order in which they are written."""
        patient = f"{self.split}_{self.number}"
        name = f"{patient}_a_1"
        volume = self.folder / "dataset" / self.split / patient / f"{patient}_a" / f"{name}.nii.gz"
        return volume, self.folder / "truth" / f"{name}.npz", self.folder / "truth" / f"{name}.json"


def make(
    folder: Path | str,
    *,
    train: int,
    valid: int,
    test: int,
    seed: int = 0,
    shape: tuple[int, int, int] = (72, 72, 72),
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write the cohort into `folder` and return the folder. The same arguments give the same bytes.

    `shape` is (D, H, W) of the volumes, 5 mm a voxel at 72. Files are written whole or not at all, so an interrupted
    call goes on where it was; a finished cohort is left as it is. `workers` processes are used (default: one a core;
    none for a few cases). Raises ValueError for bad numbers or a folder that was made with other ones, FileExistsError
    for a folder of other data, OSError for a full disk (make room, call again), RuntimeError if a process is killed.
    """
    folder, counts = Path(folder), {"train": train, "valid": valid, "test": test}
    if min(counts.values()) < 0 or not sum(counts.values()):
        raise ValueError(f"{counts}: numbers of cases must be at least 0, and one of them above")
    wanted = {"version": VERSION, "seed": seed, "shape": list(shape), "cases": counts}
    mark = folder / "cohort.json"
    _check(mark, wanted)
    jobs = [Job(folder, n, split, seed, shape) for split in SPLITS for n in range(1, counts[split] + 1)]
    done = mark.is_file() and json.loads(mark.read_bytes())["complete"]
    missing = [job for job in jobs if not all(path.is_file() for path in job.files)]
    if done and not missing:
        return folder
    _write_mark(mark, wanted, complete=False)
    _write_cases(missing, workers=workers, progress=progress)
    for split in SPLITS:
        _write_tables(folder, split, [job for job in jobs if job.split == split])
    _write_mark(mark, wanted, complete=True)
    return folder


def _check(mark: Path, wanted: dict) -> None:
    """Refuse a folder that holds something else."""
    if not mark.is_file():
        if (mark.parent / "dataset").exists():
            raise FileExistsError(
                f"{mark.parent} holds a dataset that no phantom cohort wrote (no {mark.name}); choose another folder"
            )
        return
    try:
        found = json.loads(mark.read_bytes())
        found = {key: found[key] for key in wanted}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{mark} is damaged ({error}); delete the folder {mark.parent} or choose another") from error
    if found != wanted:
        differs = [key for key in wanted if found[key] != wanted[key]]
        told = "; ".join(f"{key} {found[key]} there, {wanted[key]} asked for" for key in differs)
        raise ValueError(f"{mark.parent} was made with other parameters: {told}. Choose another folder or delete it.")


def _write_mark(mark: Path, wanted: dict, *, complete: bool) -> None:
    write_atomic(mark, (json.dumps(wanted | {"complete": complete}, indent=1) + "\n").encode())


def _write_cases(jobs: list[Job], *, workers: int | None, progress: bool) -> None:
    from tqdm import tqdm

    if workers is None:
        workers = cores() if len(jobs) >= FEW else 1
    bar = tqdm(total=len(jobs), desc="phantom cohort", unit=" volumes", disable=not progress or not jobs)
    with bar:
        for _ in scatter(write_case, jobs, lost=_lost, workers=workers):
            bar.update()


def _lost(job: Job) -> NoReturn:
    raise RuntimeError(f"{job.files[0].name}: its process was killed twice (memory?); try again with workers=1")


def write_case(job: Job) -> None:
    """Draw, render, write down and store one case: the volume, the masks, then the truth that names both."""
    from mg3d.data.phantom.render import render

    plan = draw(job.number, split=job.split, seed=job.seed)
    drawn = render(plan, shape=job.shape)
    sentences = write(plan)
    orientation = ORIENTATIONS[stream(plan.seed, "file").integers(len(ORIENTATIONS))]
    volume = nifti(stored(drawn.hu, orientation), affine := affine_of(drawn.hu.shape, drawn.spacing_mm, orientation))
    masks = pack(stored(drawn.masks, orientation), stored(drawn.organs, orientation))
    voxel_ml = float(np.prod(drawn.spacing_mm)) / 1000
    truth = describe(
        plan,
        sentences,
        omitted(plan, sentences),
        orientation=orientation,
        affine=affine.tolist(),
        shape=list(drawn.hu.shape[::-1]),
        spacing_mm=[float(mm) for mm in drawn.spacing_mm[::-1]],
        volume_ml=[round(float(m.sum()) * voxel_ml, 3) for m in drawn.masks],
        sha256={"volume": sha256(volume).hexdigest(), "masks": sha256(masks).hexdigest()},
    )
    for path, content in zip(job.files, (volume, masks, truth), strict=True):
        write_atomic(path, content)


def stored(array: np.ndarray, orientation: str) -> np.ndarray:
    """An array [..., D, H, W] in the phantom's frame (axes towards S, P, L) as [..., X, Y, Z] of an orientation."""
    array = np.swapaxes(array, -1, -3)  # x towards the left, y towards the back
    return np.flip(
        array, tuple(axis for axis, letter in zip((-3, -2, -1), orientation, strict=True) if letter in "RAI")
    )


def affine_of(
    shape: tuple[int, ...], spacing_mm: tuple[float, float, float], orientation: str
) -> Float[np.ndarray, "4 4"]:
    """Voxels (x, y, z) -> RAS mm of a stored [D, H, W] volume whose centre is the origin."""
    sign = np.array([1.0 if letter in "RAS" else -1.0 for letter in orientation])
    step = sign * np.array(spacing_mm[::-1])
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = -step * (np.array(shape[::-1]) - 1) / 2
    return affine


def nifti(hu: Int16[np.ndarray, "X Y Z"], affine: Float[np.ndarray, "4 4"]) -> bytes:
    """A .nii.gz without a date in it, so that the same volume gives the same bytes."""
    import nibabel as nib
    from isal import igzip

    image = nib.Nifti1Image(hu, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    return igzip.compress(image.to_bytes(), LEVEL, mtime=0)


def _write_tables(folder: Path, split: str, jobs: list[Job]) -> None:
    """The three tables of a split, from the truth files; an empty split gets none."""
    if not jobs:
        return
    cases = [_read(job) for job in jobs]
    long, short = TABLES[split]
    dataset = folder / "dataset"
    write_atomic(dataset / "radiology_text_reports" / f"{long}_reports.csv", _csv(map(_report_row, cases)))
    write_atomic(dataset / "multi_abnormality_labels" / f"{short}_predicted_labels.csv", _csv(map(_label_row, cases)))
    write_atomic(dataset / "metadata" / f"{long}_metadata.csv", _csv(map(_metadata_row, cases)))


@dataclass(frozen=True)
class _Case:
    plan: Plan
    sentences: tuple[Sentence, ...]
    shape: tuple[int, int, int]  # x, y, z
    spacing_mm: tuple[float, float, float]


def _read(job: Job) -> _Case:
    told = json.loads(job.files[-1].read_bytes())
    sentences = tuple(read_sentence(row) for row in told["sentences"])
    return _Case(read_plan(told["plan"]), sentences, tuple(told["shape"]), tuple(told["spacing_mm"]))


def _csv(rows: Iterable[dict[str, object]]) -> bytes:
    rows = list(rows)
    out = StringIO()
    table = csv.DictWriter(out, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return out.getvalue().encode()


def _report_row(case: _Case) -> dict[str, object]:
    text = sections(case.sentences)
    return {
        "VolumeName": f"{case.plan.id}.nii.gz",
        "ClinicalInformation_EN": text["history"],
        "Technique_EN": text["technique"],
        "Findings_EN": text["findings"],
        "Impressions_EN": text["impression"],
    }


def _label_row(case: _Case) -> dict[str, object]:
    return {"VolumeName": f"{case.plan.id}.nii.gz", **{label: case.plan.labels[label] for label in LABELS}}


def _metadata_row(case: _Case) -> dict[str, object]:
    patient, (columns, rows, slices), (dx, dy, dz) = case.plan.patient, case.shape, case.spacing_mm
    return {
        "VolumeName": f"{case.plan.id}.nii.gz",
        "Manufacturer": "MG-3D phantom",
        "SeriesDescription": "Thorax native" if patient.blood_hu == 40 else "Thorax with contrast",
        "PatientSex": patient.sex[0].upper(),
        "PatientAge": f"{patient.age:03d}Y",
        "SliceThickness": patient.slice_mm,
        "ConvolutionKernel": f"Gauss {patient.kernel_mm} mm",
        "Rows": rows,
        "Columns": columns,
        "NumberofSlices": slices,
        "XYSpacing": f"[{dx:.6g}, {dy:.6g}]",
        "ZSpacing": f"{dz:.6g}",
        "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
        "RescaleIntercept": 0,
        "RescaleSlope": 1,
        "RescaleType": "HU",
    }
