"""What a phantom patient is, before a voxel is drawn or a sentence is written.

`draw` makes a `Plan` from a seed; `render` makes voxels of it; `report` makes sentences of it. All three see the same
findings, so that the report says exactly what the volume shows.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mg3d.data.phantom.labels import LABELS, case_seed, copula, present, stream

LOBES = ("upper lobe", "middle lobe", "lower lobe")  # the middle lobe exists on the right only

__all__ = ["FORMS", "LABELS", "LOBES", "MIDLINE", "ORGANS", "PLACES", "SIZES_MM", "Finding", "Patient", "Plan", "draw"]

PLACES = {  # where a finding can be, in the words of a report
    "Medical material": ("chest wall", "superior vena cava", "sternum"),  # pacemaker, port catheter, wires
    "Arterial wall calcification": ("ascending aorta", "aortic arch", "descending aorta"),
    "Cardiomegaly": ("heart",),
    "Pericardial effusion": ("pericardium",),
    "Coronary artery wall calcification": ("left anterior descending", "right coronary artery"),
    "Hiatal hernia": ("hiatus",),
    "Lymphadenopathy": ("paratracheal", "subcarinal", "hilar", "axillary"),
    "Emphysema": ("upper lobe", "lower lobe"),
    "Atelectasis": ("lower lobe", "middle lobe"),
    "Lung nodule": LOBES,
    "Lung opacity": LOBES,
    "Pulmonary fibrotic sequela": ("apex", "base"),
    "Pleural effusion": ("pleura",),
    "Mosaic attenuation pattern": ("lung",),
    "Peribronchial thickening": ("perihilar", "lower lobe"),
    "Consolidation": LOBES,
    "Bronchiectasis": LOBES,
    "Interlobular septal thickening": ("base", "apex"),
}

FORMS = {  # sub-types; a label that is missing here has one form, ""
    "Medical material": ("pacemaker", "port catheter", "sternal wires"),
    "Emphysema": ("centrilobular", "paraseptal"),
    "Atelectasis": ("linear", "subsegmental"),
    "Lung nodule": ("solid", "subsolid", "ground glass", "calcified"),
    "Lung opacity": ("focal", "patchy"),
    "Hiatal hernia": ("sliding",),
    "Bronchiectasis": ("cylindrical",),
}

MIDLINE = (  # findings without a side; every other Finding has side left or right
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
)  # Medical material: pacemaker and port have a side, sternal wires have none. Lymphadenopathy: subcarinal has none.

SIZES_MM = {  # range of Finding.size_mm: what it measures
    "Pericardial effusion": (5.0, 20.0),  # depth
    "Hiatal hernia": (25.0, 70.0),  # long axis of the sac
    "Lymphadenopathy": (10.0, 25.0),  # short axis
    "Lung nodule": (4.0, 30.0),  # long axis
    "Pleural effusion": (8.0, 60.0),  # depth
}  # every other label: 0

ORGANS = (  # names of the organ label map, value = place in this tuple
    "background",
    "right lung",
    "left lung",
    "heart",
    "aorta",
    "airways",
    "oesophagus",
    "spine",
    "ribs",
    "liver",
    "spleen",
    "stomach",
    "mediastinum",
    "chest wall",
    "diaphragm",
    "pleura",
    "pulmonary artery",
)


@dataclass(frozen=True)
class Finding:
    """One lesion or sign that is present, e.g. one nodule. Bilateral disease is one Finding a side."""

    label: str  # one of LABELS
    side: str  # left | right | "" (midline)
    place: str  # a word of PLACES[label], e.g. "upper lobe", "apex", "subcarinal", "arch"
    form: str  # a word of FORMS[label], e.g. "solid", "linear", "pacemaker"; "" where there is one form only
    size_mm: float  # long axis, depth or thickness as rendered; 0 where a size makes no sense
    severity: float  # 0 (barely there) .. 1 (gross); drives extent and contrast, and the grade word of the report


@dataclass(frozen=True)
class Patient:
    """Everything that varies between patients and scans and is no finding. Independent of the findings, except age."""

    sex: str  # female | male
    age: int
    size: float  # body scale, about 1
    fat_mm: float  # thickness of the subcutaneous fat
    lung: float  # lung inflation, about 1
    heart_ratio: float  # cardiothoracic ratio; cardiomegaly is drawn at 0.52 and above
    aorta_mm: float  # diameter of the ascending aorta
    blood_hu: float  # 40 native, 120-250 with contrast
    kernel_mm: float  # in-plane blur (sigma) of the reconstruction kernel
    noise_hu: float  # standard deviation of the noise
    slice_mm: float  # slice thickness: blur along the body axis
    tilt_deg: float  # rotation of the patient about the body axis
    shift_mm: tuple[float, float, float]  # offset from the centre of the scan (superior, posterior, left)
    zoom: float  # field of view relative to 360 mm


@dataclass(frozen=True)
class Plan:
    """One phantom case: deterministic for (cohort seed, number, split)."""

    id: str  # as CT-RATE names volumes: train_1_a_1
    patient_id: str  # train_1
    split: str  # train | valid | test
    seed: int  # of this case; voxels, noise and wording draw from it
    patient: Patient
    findings: tuple[Finding, ...]

    @property
    def labels(self) -> dict[str, int]:
        """The 18 labels, 1 where at least one finding has it."""
        there = {finding.label for finding in self.findings}
        return {label: int(label in there) for label in LABELS}


SIZE_QUANTILES_MM = {  # u -> size, linear between; nodules: upper half as in CT-RATE, few below what voxels show
    "Pericardial effusion": ((0, 5), (0.5, 8.5), (0.95, 17), (1, 20)),
    "Hiatal hernia": ((0, 25), (0.5, 38), (0.95, 60), (1, 70)),
    "Lymphadenopathy": ((0, 10), (0.5, 12.5), (0.95, 21), (1, 25)),
    "Lung nodule": ((0, 4), (0.25, 6), (0.75, 10), (0.95, 25), (1, 30)),
    "Pleural effusion": ((0, 8), (0.5, 20), (0.95, 48), (1, 60)),
}
NODULES = (0.5, 0.25, 0.15, 0.1)  # P(1), P(2) ... of the number of nodules
SPREAD = {  # P(1 place), P(2 places) ...; and P(both sides) at each of them
    "Arterial wall calcification": ((0.45, 0.35, 0.2), 0),
    "Coronary artery wall calcification": ((0.55, 0.45), 0),
    "Lymphadenopathy": ((0.6, 0.3, 0.1), 0.1),
    "Emphysema": ((0.75, 0.25), 0.75),
    "Atelectasis": ((0.85, 0.15), 0.4),
    "Lung opacity": ((0.6, 0.3, 0.1), 0.4),
    "Pulmonary fibrotic sequela": ((0.85, 0.15), 0.45),
    "Pleural effusion": ((1,), 0.5),
    "Mosaic attenuation pattern": ((1,), 0.85),
    "Peribronchial thickening": ((0.8, 0.2), 0.6),
    "Consolidation": ((0.8, 0.2), 0.2),
    "Bronchiectasis": ((0.75, 0.25), 0.35),
    "Interlobular septal thickening": ((0.85, 0.15), 0.7),
}
WEIGHTS = {  # of the places, where they are not equally likely
    "Lymphadenopathy": (0.4, 0.25, 0.25, 0.1),
    "Emphysema": (0.8, 0.2),
    "Atelectasis": (0.75, 0.25),
    "Lung nodule": (0.4, 0.15, 0.45),
    "Lung opacity": (0.35, 0.2, 0.45),
    "Pulmonary fibrotic sequela": (0.7, 0.3),
    "Consolidation": (0.3, 0.2, 0.5),
    "Bronchiectasis": (0.25, 0.25, 0.5),
    "Interlobular septal thickening": (0.75, 0.25),
}
FORM_WEIGHTS = {
    "Emphysema": (0.65, 0.35),
    "Atelectasis": (0.6, 0.4),
    "Lung nodule": (0.6, 0.12, 0.18, 0.1),
}


class Nuisance(NamedTuple):
    """Ranges of what a scanner and a position change. Those of the test split reach beyond those of training."""

    contrast: float  # share of scans with contrast medium
    blood_hu: tuple[float, float]  # of those
    kernel_mm: tuple[float, float]
    noise_hu: tuple[float, float]
    slice_mm: tuple[float, float]
    tilt_deg: float  # largest, to either side
    shift_mm: float  # largest, along each axis
    zoom: tuple[float, float]


NUISANCE = {
    "train": Nuisance(0.35, (120, 210), (0.4, 1.2), (8, 26), (1.0, 3.5), 5, 8, (0.95, 1.08)),
    "valid": Nuisance(0.45, (120, 230), (0.4, 1.4), (8, 30), (1.0, 4.0), 6, 10, (0.94, 1.10)),
    "test": Nuisance(0.55, (140, 250), (0.6, 1.8), (12, 35), (1.5, 5.0), 8, 12, (0.92, 1.12)),
}


def draw(number: int, *, split: str, seed: int) -> Plan:
    """Case `number` (from 1) of a split of the cohort `seed`, whatever the cohort's length.

    Raises ValueError for a split that is not train, valid or test, a number below 1 or a seed below 0.
    """
    case = case_seed(number, split=split, seed=seed)
    labels = [label for label, there in zip(LABELS, present(case, *copula()), strict=True) if there]
    rng = stream(case, "findings")
    findings = tuple(finding for label in labels for finding in _findings(label, rng))
    patient = _patient(findings, NUISANCE[split], stream(case, "patient"))
    return Plan(f"{split}_{number}_a_1", f"{split}_{number}", split, case, patient, findings)


def _findings(label: str, rng: np.random.Generator) -> list[Finding]:
    """One or more findings of a label; severities of one patient lie close together."""
    spots = _spots(label, rng)
    level, form = rng.beta(1.6, 1.5), _form(label, len(spots), rng)
    found = []
    for side, place in spots:
        if label == "Medical material":
            form = FORMS[label][PLACES[label].index(place)]
        elif label in ("Lung nodule", "Atelectasis"):
            form = _form(label, 1, rng)
        severity, size = float(np.clip(level + rng.uniform(-0.15, 0.15), 0.05, 1)), 0.0
        if label in SIZES_MM:
            u, sizes = np.array(SIZE_QUANTILES_MM[label]).T
            size = round(float(np.interp(rng.uniform(), u, sizes)), 1)
            low, high = SIZES_MM[label]
            severity = (size - low) / (high - low)
        found.append(Finding(label, side, place, form, size, round(severity, 3)))
    return found


def _spots(label: str, rng: np.random.Generator) -> list[tuple[str, str]]:
    """(side, place) of each finding of a label, distinct except for nodules."""
    places = PLACES[label]
    weights = WEIGHTS.get(label, (1 / len(places),) * len(places))
    if label == "Lung nodule":
        chosen, both = rng.choice(places, 1 + rng.choice(len(NODULES), p=NODULES), p=weights), 0.0
    else:
        counts, both = SPREAD.get(label, ((1,), 0))
        chosen = rng.choice(places, 1 + rng.choice(len(counts), p=counts), p=weights, replace=False)
    spots = []
    for place in map(str, chosen):
        if label in MIDLINE or place in ("subcarinal", "sternum"):
            sides = ("",)
        elif place == "middle lobe":
            sides = ("right",)
        else:
            sides = ("right", "left") if rng.uniform() < both else (("right", "left")[rng.integers(2)],)
        spots += [(side, place) for side in sides]
    return sorted(spots, key=lambda spot: (("", "right", "left").index(spot[0]), places.index(spot[1])))


def _form(label: str, count: int, rng: np.random.Generator) -> str:
    """The sub-type of a finding that is one of `count`; opacities in several places are patchy."""
    forms = FORMS.get(label, ("",))
    if label == "Lung opacity" and count > 1:
        return "patchy"
    weights = FORM_WEIGHTS.get(label, (1 / len(forms),) * len(forms))
    return forms[rng.choice(len(forms), p=weights)]


def _patient(findings: tuple[Finding, ...], nuisance: Nuisance, rng: np.random.Generator) -> Patient:
    """A body and a scan. Only the heart (cardiomegaly) and the age know of the findings."""
    by_label = {finding.label: finding for finding in findings}
    older = {"Arterial wall calcification": 9, "Coronary artery wall calcification": 4, "Emphysema": 7}  # years
    age = rng.normal(48 + sum(years for label, years in older.items() if label in by_label), 13)
    male = bool(rng.uniform() < 0.55)
    size = rng.normal(1.02 if male else 0.96, 0.04)
    fat = rng.gamma(6, 3 if male else 4)
    lung, heart, aorta = rng.normal(1, 0.06), rng.normal(0.46, 0.018), rng.normal(33 if male else 31, 2.5)
    contrast, blood = rng.uniform() < nuisance.contrast, rng.uniform(*nuisance.blood_hu)
    kernel, noise, slices, zoom = (
        rng.uniform(*span) for span in (nuisance.kernel_mm, nuisance.noise_hu, nuisance.slice_mm, nuisance.zoom)
    )
    tilt, shift = rng.uniform(-1, 1) * nuisance.tilt_deg, rng.uniform(-1, 1, 3) * nuisance.shift_mm
    large = by_label.get("Cardiomegaly")
    return Patient(
        sex="male" if male else "female",
        age=int(np.clip(age, 19, 92)),
        size=round(float(np.clip(size, 0.86, 1.12)), 3),
        fat_mm=round(float(np.clip(fat, 6, 45)), 1),
        lung=round(float(np.clip(lung, 0.85, 1.15)), 3),
        heart_ratio=round(float(0.52 + 0.13 * large.severity if large else np.clip(heart, 0.42, 0.50)), 3),
        aorta_mm=round(float(np.clip(aorta, 25, 39)), 1),
        blood_hu=round(float(blood), 1) if contrast else 40.0,
        kernel_mm=round(float(kernel), 2),
        noise_hu=round(float(noise), 1),
        slice_mm=round(float(slices), 2),
        tilt_deg=round(float(tilt), 2),
        shift_mm=(round(float(shift[0]), 2), round(float(shift[1]), 2), round(float(shift[2]), 2)),
        zoom=round(float(zoom), 3),
    )
