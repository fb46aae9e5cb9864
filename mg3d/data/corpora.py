"""The corpora, one row each: where its data come from and which reader lists them.

A reader turns a folder in the published layout into a `Listing`: cases, and the rows that cannot be used. It opens no
volume. To add a corpus, write one reader `(folder, *, get) -> Listing` and one row here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mg3d.data.ctrate import list_ctrate
from mg3d.data.ctrg import list_ctrg
from mg3d.data.folder import list_folder
from mg3d.data.listing import BadTable, Leak, Listing, MissingCorpus, Problem, check_patients

__all__ = ["CORPORA", "BadTable", "Corpus", "Leak", "Listing", "MissingCorpus", "Problem", "cases", "check_patients"]


@dataclass(frozen=True)
class Corpus:
    """What a corpus is, where to get it, and its reader."""

    title: str
    get: str  # one line: how to obtain it
    read: Callable[..., Listing]  # (folder, *, get) -> Listing


CORPORA = {
    "phantom": Corpus(
        "seeded synthetic chest CT with reports and ground truth, in CT-RATE's layout",
        "mg3d.data.phantom.cohort.make(folder, train=..., valid=..., test=...) writes it; pretrain does so by itself.",
        list_ctrate,
    ),
    "ctrate": Corpus(
        "CT-RATE: 50,188 reconstructions of 25,692 chest CT scans of 21,304 patients, with reports (CC BY-NC-SA 4.0)",
        "accept the terms at https://huggingface.co/datasets/ibrahimhamamci/CT-RATE and download its `dataset` folder.",
        list_ctrate,
    ),
    "ctrg": Corpus(
        "CTRG-Chest-548K: 1,804 chest CT volumes with reports",
        "request the volumes at https://github.com/tangyuhao2016/CTRG; the JSON of reports is in the MG-3D repository "
        "(downstream/CTRG/chest_ctrg_nitfy_ori_split.json). Put both into one folder.",
        list_ctrg,
    ),
    "folder": Corpus(
        "your own volumes, listed in one CSV",
        "write a CSV with the columns id, volume, report (mg3d/data/folder.py describes them all) and give its path.",
        list_folder,
    ),
}


def cases(corpus: str, folder: Path) -> Listing:
    """List a corpus of CORPORA that lies in `folder` (for "folder", the CSV itself will do too).

    Raises ValueError for an unknown name, MissingCorpus when the data are not there, BadTable (file, rows, mend) for a
    table with a fault in its structure, Leak when a patient is in two splits. Single bad rows are in `problems`.
    """
    if corpus not in CORPORA:
        raise ValueError(f"unknown corpus {corpus!r}; valid: {', '.join(CORPORA)}")
    found = CORPORA[corpus]
    listing = found.read(Path(folder), get=found.get)
    check_patients(listing.cases)
    return listing
