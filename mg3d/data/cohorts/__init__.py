"""The cohorts of the nine clinical studies, one row each: where the data come from, how they are listed and prepared.

    listing = COHORTS["msd06"].read(folder, seed=0)       # cases with volume, mask or labels, and split

A reader turns a folder in the published layout into a `Listing`: cases, and the rows that cannot be used. It opens no
volume. `seed` is one of the paper's "three bootstrapping iterations" (see splits.py). To add a cohort, write one reader
`(folder, *, seed, get) -> Listing` and one row here. What stands in for them on synthetic data is in phantom.py.

`labels` names what Case.labels holds, each 0 or 1. `classes` names the values of Case.labels["class"], or, where
`spec` is a PatchSpec, the values of the masks, 0 the background.

Preparation is that of the released code where that is known; these differ. A Spec crops by shares of an axis, so
CC-CCII keeps the central 384 of 512 pixels as 0.75, resized to a cube since the released depth is not known, and STOIC
is taken whole, which is about its 384 mm. ACDC is not resampled there and scaled by mean and deviation; here it comes
to the middle of the data set's range of spacings, by percentiles. LUNA16 is a study of candidates there (cubes of 48
voxels about a spot, nodule or not) and a study of scans here (a nodule somewhere, or none), which is harder: its AUROC
is not to be set beside the paper's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mg3d.data.cohorts.classification import CLASSES, read_cc_ccii, read_luna16, read_stoic
from mg3d.data.cohorts.reports import read_ctrate, read_ctrate_labels, read_ctrg
from mg3d.data.cohorts.segmentation import CARDIAC, PNEUMONIA, TUMOUR, read_acdc, read_covid19_20, read_msd06
from mg3d.data.corpora import CORPORA
from mg3d.data.frame import Spec
from mg3d.data.listing import Leak, Listing, MissingCorpus, Problem, check_patients
from mg3d.data.patches import BY_PERCENTILES, PatchSpec
from mg3d.data.phantom.labels import LABELS

__all__ = ["COHORTS", "Cohort", "Leak", "Listing", "MissingCorpus", "Problem"]


@dataclass(frozen=True)
class Cohort:
    """What a cohort is, where to get it, its reader, its preparation and its labels."""

    title: str
    get: str  # one line: how to obtain it
    reader: Callable[..., Listing]  # (folder, *, seed, get) -> Listing
    spec: Spec | PatchSpec
    labels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def read(self, folder: Path | str, *, seed: int) -> Listing:
        """The cases that lie in `folder`, divided by `seed`.

        Raises MissingCorpus when the data are not there, BadTable (file, rows, mend) for a table with a fault in its
        structure, Leak when a patient is in two splits. Single bad rows are in `problems`.
        """
        listing = self.reader(Path(folder), seed=seed, get=self.get)
        check_patients(listing.cases)
        return listing


COHORTS = {
    "cc-ccii": Cohort(
        "CC-CCII: 4,178 CT scans of 2,742 patients, normal, common pneumonia or COVID-19; 2,785 train",
        "download the zips CP-*, NCP-*, Normal-* of http://ncov-ai.big.ac.cn/download and unpack them into one folder; "
        "the fold tables are in the MG-3D repository (downstream/cc-ccii/csv).",
        read_cc_ccii,
        Spec(shape=(128, 128, 128), crop=(1.0, 0.75, 0.75)),
        classes=CLASSES,
    ),
    "luna16": Cohort(
        "LUNA16: 888 CT scans of LIDC-IDRI with nodules of 3 mm or more; 623 train",
        "download subset0 to subset9 and annotations.csv at https://luna16.grand-challenge.org/Download and unpack "
        "them into one folder.",
        read_luna16,
        Spec(window_hu=(-1000.0, 600.0)),
        labels=("nodule",),
    ),
    "msd06": Cohort(
        "Medical Segmentation Decathlon, Task06: 63 CT scans with a lung tumour; 51 train",
        "download Task06_Lung.tar at http://medicaldecathlon.com and unpack it; the folds are in the MG-3D repository "
        "(downstream/MSD/jsons/10_Decathlon_Task06_Lung_folds.json).",
        read_msd06,
        PatchSpec((1.5, 1.5, 1.5), (-175.0, 250.0), (96, 96, 96), foreground=2 / 3),
        classes=TUMOUR,
    ),
    "covid19-20": Cohort(
        "COVID-19-20: 199 CT scans with the opacities of COVID-19 (the paper counts 189); 151 train",
        "download COVID-19-20_v2.zip at https://covid-segmentation.grand-challenge.org and unpack it; the folds are in "
        "the MG-3D repository (downstream/Covid19_20/jsons/Covid19_20_folds.json).",
        read_covid19_20,
        PatchSpec((5.0, 1.25, 1.25), (-1000.0, 500.0), (32, 192, 192)),
        classes=PNEUMONIA,
    ),
    "acdc": Cohort(
        "ACDC: 200 cine MRI frames of 100 hearts, with both ventricles and the myocardium; 160 train",
        "download ACDC.zip at https://humanheart-project.creatis.insa-lyon.fr/database and unpack it.",
        read_acdc,
        PatchSpec((10.0, 1.5, 1.5), BY_PERCENTILES, (32, 192, 192)),
        classes=CARDIAC,
    ),
    "stoic": Cohort(
        "STOIC-2021: 2,000 CT scans with the outcome after a month; 1,600 train",
        "copy s3://stoic2021-training (open data, no account: aws s3 sync --no-sign-request) into one folder.",
        read_stoic,
        Spec(shape=(128, 128, 128), crop=(1.0, 1.0, 1.0), window_hu=(-1100.0, 300.0)),
        labels=("covid", "severe"),
    ),
    "ctrg-report": Cohort(
        "CTRG-Chest: 1,804 CT scans whose findings are to be written; 1,444 train, 72 of them choose",
        CORPORA["ctrg"].get,
        read_ctrg,
        Spec(shape=(128, 128, 128), crop=(1.0, 1.0, 1.0)),
    ),
    "ctrate-vocabfine": Cohort(
        "CT-RATE: 18 abnormalities by prompts, fine-tuned on 1,000 volumes, tested on the 3,039 of `valid`",
        CORPORA["ctrate"].get,
        read_ctrate_labels,
        Spec(),
        labels=LABELS,
    ),
    "ctrate-retrieval": Cohort(
        "CT-RATE: the volume that a report belongs to, among the 3,039 of `valid`",
        CORPORA["ctrate"].get,
        read_ctrate,
        Spec(),
    ),
}
