"""What a report says of what is not there: the walk through the chest, in the order of CT-RATE's reports.

A slot is one stop of the walk. Where its label is present the report's own sentences stand there; else the slot may say
one of its lines, if nothing in `unless` is present either. That is the whole contradiction rule: a line is never said
beside a finding that it denies, whether or not the report mentions that finding.
"""

from dataclasses import dataclass

from mg3d.data.phantom.labels import LABELS

LUNG_LABELS = LABELS[
    LABELS.index("Emphysema") :
]  # from emphysema to septal thickening, the pleural effusion among them
LUNGS = ("right lung", "left lung")


@dataclass(frozen=True)
class Slot:
    """One stop of the walk, and what may be said there when nothing is wrong."""

    organs: tuple[str, ...]  # of plan.ORGANS: where one looks to check the line
    kind: str  # negated ("no ... was seen") | normal ("... is normal")
    label: str  # what the line denies and where its findings are told; "" for none
    lines: tuple[str, ...]
    unless: tuple[str, ...] = ()  # further labels and forms that forbid the line
    weight: float = 1.0  # how likely it is said, relative to the others
    native: bool = False  # said of scans without contrast medium only


NO_LUNG_SIGN = {  # label -> lines
    "Emphysema": (
        "no emphysematous change was seen.",
        "there is no emphysema.",
        "the lungs are without emphysematous areas.",
    ),
    "Atelectasis": ("no atelectasis was observed.", "there is no atelectatic change at the lung bases."),
    "Lung nodule": (
        "no nodule was detected in either lung.",
        "there is no nodule or mass in the lung parenchyma.",
        "nodular lesions are not seen in the lungs.",
        "no suspicious nodule was distinguished within the limits of the examination.",
    ),
    "Lung opacity": (
        "no ground-glass opacity was seen.",
        "there is no ground-glass density in either lung.",
        "opacity of ground-glass type is not observed.",
    ),
    "Consolidation": (
        "no consolidation was detected.",
        "there is no consolidated area in either lung.",
        "the lungs are without consolidation.",
        "consolidation is not observed on either side.",
    ),
    "Pulmonary fibrotic sequela": ("no fibrotic sequela was seen.", "there is no scarring at the apices or the bases."),
    "Mosaic attenuation pattern": (
        "no mosaic attenuation was seen.",
        "attenuation of the parenchyma is homogeneous without a mosaic pattern.",
    ),
    "Peribronchial thickening": ("no peribronchial thickening was seen.", "the bronchial walls are not thickened."),
    "Bronchiectasis": (
        "no bronchiectasis was observed.",
        "the bronchi are not widened.",
        "there is no bronchiectatic change in either lung.",
    ),
    "Interlobular septal thickening": ("no septal thickening was seen.", "the interlobular septa are not thickened."),
}
OFTEN_SAID = {"Lung nodule": 3.0, "Lung opacity": 2.0, "Consolidation": 2.0}  # weights of the above, else 1

GLASS = ("ground glass", "subsolid")  # nodules that are opacities of ground-glass type themselves

SLOTS = (
    Slot(
        ("airways",),
        "normal",
        "",
        (
            "the trachea and both main bronchi are patent.",
            "trachea and main bronchi have an open lumen.",
            "the trachea lies in the midline and its lumen is free.",
            "the central airways are of normal calibre.",
        ),
        weight=4.0,
    ),
    Slot(
        ("mediastinum",),
        "normal",
        "",
        (
            "assessment of the mediastinum is limited because no contrast medium was given.",
            "mediastinal structures could be assessed only in part on this native scan.",
        ),
        native=True,
    ),
    Slot(
        ("chest wall",), "negated", "Medical material", ("no foreign material was seen in the chest wall.",), weight=0.5
    ),
    Slot(
        ("aorta", "pulmonary artery"),
        "normal",
        "",
        (
            "the great mediastinal vessels are of normal width.",
            "calibres of the aorta and of the pulmonary artery are within normal limits.",
            "no dilatation was seen in the thoracic aorta or the pulmonary trunk.",
        ),
        weight=3.0,
    ),
    Slot(
        ("aorta",),
        "negated",
        "Arterial wall calcification",
        (
            "no calcified plaque was seen in the wall of the thoracic aorta.",
            "the aortic wall is free of calcification.",
            "atherosclerotic calcification was not observed in the aorta.",
        ),
    ),
    Slot(
        ("heart",),
        "normal",
        "Cardiomegaly",
        (
            "the size and outline of the heart are normal.",
            "heart size is within normal limits.",
            "the cardiothoracic ratio is normal.",
            "no enlargement of the heart was seen.",
        ),
        weight=3.0,
    ),
    Slot(
        ("heart", "mediastinum"),
        "negated",
        "Pericardial effusion",
        (
            "no pericardial effusion was detected.",
            "there is no fluid in the pericardial space.",
            "pericardial effusion is not seen.",
            "the pericardium is thin and without effusion.",
        ),
        weight=3.0,
    ),
    Slot(
        ("heart",),
        "negated",
        "Coronary artery wall calcification",
        (
            "no calcification was seen in the coronary arteries.",
            "the coronary arteries are free of calcified plaque.",
            "coronary calcification is not observed as far as can be judged.",
        ),
    ),
    Slot(
        ("oesophagus",),
        "normal",
        "",
        (
            "the thoracic oesophagus is of normal width.",
            "wall thickness of the oesophagus is normal.",
            "no tumour-like wall thickening was detected in the oesophagus.",
        ),
        unless=("Hiatal hernia",),
        weight=2.0,
    ),
    Slot(
        ("stomach", "oesophagus"),
        "negated",
        "Hiatal hernia",
        (
            "no hiatal hernia was seen.",
            "there is no herniation of the stomach through the hiatus.",
            "hiatal hernia is not observed.",
        ),
    ),
    Slot(
        ("mediastinum",),
        "negated",
        "Lymphadenopathy",
        (
            "no lymph node of pathological size was detected in the mediastinum, hila or axillae.",
            "there is no enlarged lymph node at the mediastinal, hilar or axillary stations.",
            "mediastinal and hilar lymph nodes are not enlarged.",
            "as far as can be seen there is no mediastinal lymphadenopathy.",
        ),
        weight=3.0,
    ),
    Slot(
        LUNGS,
        "normal",
        "",
        (
            "aeration of both lungs is normal.",
            "both lungs are well aerated and free of infiltration.",
            "the parenchyma of both lungs is normal.",
        ),
        unless=LUNG_LABELS,
        weight=3.0,
    ),
    *(
        Slot(
            LUNGS,
            "negated",
            label,
            lines,
            unless=GLASS if label == "Lung opacity" else (),
            weight=OFTEN_SAID.get(label, 1.0),
        )
        for label, lines in NO_LUNG_SIGN.items()
    ),
    Slot(
        ("pleura",),
        "negated",
        "Pleural effusion",
        (
            "no pleural effusion was detected on either side.",
            "there is no fluid in the pleural spaces.",
            "pleural effusion is not observed.",
            "the pleural spaces are free.",
        ),
        weight=3.0,
    ),
    Slot(("pleura",), "negated", "", ("no pneumothorax was seen.", "there is no pneumothorax."), weight=1.5),
    Slot(
        ("liver",),
        "normal",
        "",
        (
            "the visible part of the liver is normal.",
            "liver density is homogeneous in the sections obtained.",
            "no focal lesion was seen in the liver on these sections.",
        ),
        weight=2.5,
    ),
    Slot(
        ("spleen",),
        "normal",
        "",
        ("the spleen is of normal size.", "size and density of the spleen are normal."),
        weight=1.5,
    ),
    Slot(
        ("spine",),
        "normal",
        "",
        (
            "vertebral body heights are preserved.",
            "the thoracic vertebrae are of normal height and alignment.",
            "no collapse was seen in the vertebral bodies.",
        ),
        weight=3.0,
    ),
    Slot(
        ("ribs", "spine"),
        "normal",
        "",
        (
            "no destructive lesion was detected in the bones.",
            "the bony structures within the sections are intact.",
            "there is no lytic or sclerotic bone lesion.",
        ),
        weight=2.5,
    ),
    Slot(
        ("chest wall",),
        "normal",
        "",
        ("the soft tissues of the chest wall are normal.", "no mass was seen in the chest wall."),
        unless=("Medical material",),
    ),
)

HEALTHY = (  # the impression of a case without findings
    "thorax CT findings are within normal limits.",
    "no active disease was detected in the chest.",
    "normal thorax CT examination.",
)
ADVICE = (  # the impression of a case whose findings are too small to be told
    "clinical follow-up is recommended.",
    "correlation with laboratory results is recommended.",
)
ASIDES = (  # lines without voxels
    "the examination was compared with the study dated {date}.",
    "breathing artefacts are present in some sections.",
    "the patient was referred for control of known complaints.",
    "images were obtained in the supine position.",
    "reformatted coronal and sagittal images were also evaluated.",
)
HISTORY = ("cough.", "shortness of breath.", "chest pain.", "control examination.", "fever and weakness.", "not given.")
TECHNIQUE = {
    True: (
        "thorax CT was obtained without contrast medium with sections of {slice} mm.",
        "native sections of {slice} mm were taken through the thorax.",
    ),
    False: (
        "thorax CT was obtained after intravenous contrast medium with sections of {slice} mm.",
        "sections of {slice} mm were taken after injection of contrast medium.",
    ),
}
