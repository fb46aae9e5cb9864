"""What the phantom cohort has to offer to each clinical study: its truth, told as the study's labels or masks.

    listing = phantom_listing(cases("phantom", folder), "msd06")

| study | stand-in |
|---|---|
| cc-ccii | normal; consolidation, as of common pneumonia; ground glass without consolidation, as of COVID-19 |
| luna16 | a lung nodule, or none |
| msd06 | mask of the lung nodules, in cases with one of at least MASS_MM: smaller ones fill a voxel |
| covid19-20 | mask of ground glass and consolidation, in cases with either |
| acdc | mask of heart, aorta, pulmonary artery: the phantom is CT, and its heart has no chambers |
| stoic | covid: ground glass or consolidation; severe: they fill more than SEVERE of the lungs |
| ctrg-report, ctrate-vocabfine, ctrate-retrieval | the reports and the 18 labels, as they are |

Masks are written once, beside the truth: truth/train_1_a_1.msd06-1.nii.gz, uint8 in the frame of the stored volume.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import Bool, Float, UInt8

from mg3d.data.cohorts.classification import CLASSES
from mg3d.data.listing import Listing, few
from mg3d.data.phantom.labels import LABELS
from mg3d.data.phantom.plan import ORGANS
from mg3d.data.phantom.truth import Truth, load_truth, read_plan
from mg3d.data.pool import cores, scatter
from mg3d.paths import write_atomic
from mg3d.types import Case

VERSION = 1  # of what a mask shows; raise it when it changes, so that old masks are not taken
NODULES, OPACITIES = ("Lung nodule",), ("Lung opacity", "Consolidation")
LUNGS = (ORGANS.index("right lung"), ORGANS.index("left lung"))
STRUCTURES = ("heart", "aorta", "pulmonary artery")
MASS_MM = 10.0  # two voxels of the common phantom
SEVERE = 0.08  # share of the lungs. Of 200 phantoms 34 % have opacities, 33 % of those more; of STOIC 60 and 25 %
FEW = 24  # masks below which it is quicker not to start processes


@dataclass(frozen=True)
class StandIn:
    """What a study gets of the phantom: which cases, and their labels or mask; by default all of them as they are."""

    labels: tuple[str, ...] = ()  # names of Case.labels, each 0 or 1
    classes: tuple[str, ...] = ()  # names of the values of Case.labels["class"], or of the mask
    keep: Callable[[Case], bool] | None = None
    label: Callable[[Case], Mapping[str, int]] | None = None
    mask: Callable[[Truth], UInt8[np.ndarray, "X Y Z"]] | None = None


def phantom_listing(listing: Listing, study: str, *, workers: int | None = None, progress: bool = True) -> Listing:
    """The cases of a phantom cohort that `study` (a row of STAND_INS) is about, with its labels and masks.

    Masks that are not there yet are made by `workers` processes (default: one a core; none for a few). Raises
    ValueError for an unknown study, for cases without the phantom's truth, and where no case is left.
    """
    if study not in STAND_INS:
        raise ValueError(f"unknown study {study!r}; valid: {', '.join(STAND_INS)}")
    strangers = [case.id for case in listing.cases if case.truth is None]
    if strangers:
        raise ValueError(f"no ground truth: {few(strangers)}. Only cases of a phantom cohort stand in for a study.")
    row = STAND_INS[study]
    cases = [case for case in listing.cases if row.keep is None or row.keep(case)]
    if not cases:
        raise ValueError(f"none of the {len(listing.cases)} phantoms is a case of {study}; make more of them")
    if row.label is not None:
        cases = [replace(case, labels=row.label(case)) for case in cases]
    if row.mask is not None:
        cases = [replace(case, mask=_place(_truth(case), study)) for case in cases]
        _write_masks([case for case in cases if not _is_file(case.mask)], study, workers=workers, progress=progress)
    return Listing(cases, listing.problems)


def extent(truth: Truth) -> float:
    """The share of the lungs that ground glass and consolidation fill."""
    opaque = _union(truth, OPACITIES)
    lungs = np.isin(truth.organs, LUNGS) | opaque
    return float(opaque.sum() / max(1, lungs.sum()))


def _truth(case: Case) -> Path:
    assert case.truth is not None  # phantom_listing has looked
    return case.truth


def _place(truth: Path, study: str) -> Path:
    return truth.with_name(f"{truth.stem}.{study}-{VERSION}.nii.gz")


def _is_file(path: Path | None) -> bool:
    return path is not None and path.is_file()


def _write_masks(cases: list[Case], study: str, *, workers: int | None, progress: bool) -> None:
    from tqdm import tqdm

    truths = [_truth(case) for case in cases]
    if workers is None:
        workers = cores() if len(truths) >= FEW else 1
    with tqdm(total=len(truths), desc=f"masks of {study}", disable=not progress or not truths) as bar:
        for _ in scatter(partial(_write_mask, study=study), truths, lost=_lost, workers=workers):
            bar.update()


def _lost(truth: Path) -> NoReturn:
    raise RuntimeError(f"{truth.name}: its process was killed twice (memory?); try again with workers=1")


def _write_mask(path: Path, *, study: str) -> None:
    truth, make = load_truth(path), STAND_INS[study].mask
    assert make is not None  # a study with masks brought us here
    write_atomic(_place(path, study), _nifti(make(truth), truth.affine))


def _nifti(mask: UInt8[np.ndarray, "X Y Z"], affine: Float[np.ndarray, "4 4"]) -> bytes:
    import nibabel as nib
    from isal import igzip

    image = nib.Nifti1Image(mask, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    return igzip.compress(image.to_bytes(), mtime=0)


def _union(truth: Truth, labels: tuple[str, ...]) -> Bool[np.ndarray, "X Y Z"]:
    """Where a finding of one of the labels is."""
    return np.asarray(truth.masks[[finding.label in labels for finding in truth.plan.findings]].any(0))


def _findings(truth: Truth, labels: tuple[str, ...]) -> UInt8[np.ndarray, "X Y Z"]:
    return _union(truth, labels).astype(np.uint8)


def _structures(truth: Truth) -> UInt8[np.ndarray, "X Y Z"]:
    """1, 2, 3 for the STRUCTURES."""
    value = np.zeros(len(ORGANS), np.uint8)
    value[[ORGANS.index(name) for name in STRUCTURES]] = range(1, len(STRUCTURES) + 1)
    return value[truth.organs]


def _has(case: Case, labels: tuple[str, ...]) -> bool:
    return any(case.labels.get(label) for label in labels)


def _has_mass(case: Case) -> bool:
    """Whether a nodule is large enough to be a tumour. Reads the plan alone, no mask."""
    if not _has(case, NODULES):
        return False
    plan = read_plan(json.loads(_truth(case).read_text(encoding="utf-8"))["plan"])
    return any(finding.label in NODULES and finding.size_mm >= MASS_MM for finding in plan.findings)


def _pneumonia(case: Case) -> dict[str, int]:
    name = "CP" if case.labels.get("Consolidation") else "NCP" if case.labels.get("Lung opacity") else "Normal"
    return {"class": CLASSES.index(name)}


def _nodule(case: Case) -> dict[str, int]:
    return {"nodule": int(_has(case, NODULES))}


def _outcome(case: Case) -> dict[str, int]:
    covid = _has(case, OPACITIES)
    return {"covid": int(covid), "severe": int(covid and extent(load_truth(_truth(case))) > SEVERE)}


STAND_INS = {  # by the study's name, which is that of its row in COHORTS
    "cc-ccii": StandIn(classes=CLASSES, label=_pneumonia),
    "luna16": StandIn(labels=("nodule",), label=_nodule),
    "msd06": StandIn(classes=("background", "nodule"), keep=_has_mass, mask=partial(_findings, labels=NODULES)),
    "covid19-20": StandIn(
        classes=("background", "opacity"),
        keep=partial(_has, labels=OPACITIES),
        mask=partial(_findings, labels=OPACITIES),
    ),
    "acdc": StandIn(classes=("background", *STRUCTURES), mask=_structures),
    "stoic": StandIn(labels=("covid", "severe"), label=_outcome),
    "ctrg-report": StandIn(),
    "ctrate-vocabfine": StandIn(labels=LABELS),
    "ctrate-retrieval": StandIn(),
}
