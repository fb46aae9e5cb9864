"""What a phantom patient is, before a voxel is drawn or a sentence is written.

`draw` (in this file) makes a `Plan` from a seed; `render` (anatomy, findings) makes voxels of it; `report` makes sentences
of it. All three see the same findings, so that the report says exactly what the volume shows.
"""

from dataclasses import dataclass

LABELS = (  # the 18 CT-RATE abnormalities, in the order of its label files
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
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
