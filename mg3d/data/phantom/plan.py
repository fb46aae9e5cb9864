"""What a phantom patient is, before a voxel is drawn or a sentence is written.

`draw` makes a `Plan` from a seed; `render` makes voxels of it; `report` makes sentences of it. All three see the same
findings, so that the report says exactly what the volume shows.
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

LOBES = ("upper lobe", "middle lobe", "lower lobe")  # the middle lobe exists on the right only

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
