"""From the name of a study to the cases that it trains and tests on, prepared, in batches with what they need.

found = material(Transfer(study="findings", scale="phantom", share=0.1, seed=1))
found.entries["train"]      the tenth of the training patients that seed 1 draws
found.batches("valid")      what the training loop reads
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mg3d import paths, train
from mg3d.data.listing import Listing, shuffled
from mg3d.recipe import Recipe
from mg3d.transfer import REAL, Transfer
from mg3d.types import Case, Report

if TYPE_CHECKING:
    from mg3d.data.frame import Spec
    from mg3d.data.loader import Loader
    from mg3d.data.patches import PatchLoader, PatchSpec
    from mg3d.data.store import Entry, Prepared

SPLITS = ("train", "valid", "test")
# of the phantom's segmentations, voxels (mm) and voxels a side: a patch holds any volume whole, up to 403 mm, so that a
# prediction is one window; the demo is coarser, for its three studies to take a minute or two each
GRIDS = {"demo": (8.4, 48), "phantom": (6.3, 64)}
WATCHED = 32  # validation volumes of a segmentation, at most: each is predicted ten times in a run
READ = 64  # reports that are tokenised at a time

Tokenise = Callable[[Sequence[str]], Report]


@dataclass(frozen=True)
class Material:
    """The prepared cases of a study by split, and the names of what is to be told apart, where it has some."""

    transfer: Transfer
    entries: "dict[str, list[Entry]]"
    names: tuple[str, ...]  # labels, or classes
    exclusive: bool  # classes
    spec: "Spec | PatchSpec"

    @property
    def shape(self) -> tuple[int, int, int]:
        """D, H, W of the volumes that the encoder is trained on."""
        return getattr(self.spec, "patch", None) or getattr(self.spec, "shape")  # noqa: B009

    def batches(self, split: str, *, tokenise: Tokenise | None = None) -> "Loader | PatchLoader":
        """The batches of a split, with masks, reports or labels. Raises ValueError for a case without a label."""
        from mg3d.data.loader import Loader
        from mg3d.data.patches import PatchLoader, PatchSpec

        size = self.transfer.filled.batch // self.transfer.accumulate
        how: dict[str, Any] = {"batch": size, "seed": self.transfer.seed if split == "train" else 0}
        if isinstance(self.spec, PatchSpec):
            return PatchLoader(self.entries[split], spec=self.spec, **how)
        labels = ("class",) if self.exclusive else self.names or None
        return Loader(self.entries[split], labels=labels, tokenise=None if labels else tokenise, **how)

    def reports(self, split: str) -> dict[str, str]:
        """The report of each case of a split."""
        return {e.case.id: e.case.report for e in self.entries[split]}

    def vocabulary(self, tokenise: Tokenise) -> tuple[tuple[int, ...], int]:
        """The pieces that the training reports have, and how many of them the longest report has."""
        from mg3d.tasks.generate import vocabulary

        reports = list(self.reports("train").values())
        read = [tokenise(reports[i : i + READ]) for i in range(0, len(reports), READ)]
        return vocabulary(read), max(int(some.real.sum(1).max()) for some in read)

    @property
    def protocol(self) -> dict[str, Any]:
        """What two results must agree in to be compared: who was trained and tested on, and what was asked."""
        transfer = self.transfer
        return {
            "study": transfer.study,
            "cohort": transfer.row.cohort if transfer.scale == REAL else train.where(_recipe(transfer)).name,
            "scale": transfer.scale,
            "split_seed": transfer.seed,
            "share": transfer.share,
            "names": list(self.names),
            "shape": list(self.shape),
            "selection": "best validation score of at most ten; the test split is predicted once, after training",
            "cases": {split: fingerprint([e.case.id for e in entries]) for split, entries in self.entries.items()},
        }


def material(transfer: Transfer, *, progress: bool = True) -> Material:
    """List and prepare the cases of a study; of the training patients, the transfer's share.

    Raises MissingCorpus when the data are not there, Leak when a patient is in two splits, and ValueError for a split
    without cases, for labels that are missing or out of range, and where nothing could be learnt or chosen.
    """
    listing, names, exclusive = _listing(transfer, progress=progress)
    chosen = {s: [c for c in listing.cases if c.split == s] for s in SPLITS}
    chosen["train"] = few_shot(chosen["train"], share=transfer.share, seed=transfer.seed)
    if transfer.row.task == "segment":
        chosen["valid"] = train.choose(chosen["valid"], volumes=WATCHED)
    listing = replace(listing, cases=[c for some in chosen.values() for c in some])
    spec, prepared = _prepared(transfer, listing, names, progress=progress)
    entries = {s: [e for e in prepared.entries if e.case.split == s] for s in SPLITS}
    empty = [s for s, some in entries.items() if not some]
    if empty:
        raise ValueError(f"study {transfer.study!r}: no case of {', '.join(empty)}; see {prepared.folder}")
    if transfer.row.task in ("classify", "align"):
        check_labels({s: [e.case for e in some] for s, some in entries.items()}, names, exclusive=exclusive)
    return Material(transfer, entries, names, exclusive, spec)


def _recipe(transfer: Transfer) -> Recipe:
    """Names the corpus of a transfer at a scale of SCALES."""
    return Recipe(scale=transfer.scale, data=transfer.data)


def _listing(transfer: Transfer, *, progress: bool) -> tuple[Listing, tuple[str, ...], bool]:
    """Cases with their splits, the names of labels or classes, and whether they are classes."""
    from mg3d.data.cohorts import COHORTS
    from mg3d.data.cohorts.phantom import STAND_INS, phantom_listing

    row = transfer.row
    if transfer.scale == REAL:
        cohort = COHORTS[row.cohort]
        folder = Path(transfer.data).expanduser() if transfer.data else paths.data() / (row.folder or row.cohort)
        return cohort.read(folder, seed=transfer.seed), cohort.labels or cohort.classes, bool(cohort.classes)
    listing = train.listed(_recipe(transfer), tested=True, progress=progress)
    if not row.cohort:
        return listing, tuple(sorted({name for c in listing.cases for name in c.labels})), False
    stand_in = STAND_INS[row.cohort]
    found = phantom_listing(listing, row.cohort, progress=progress)
    return found, stand_in.labels or stand_in.classes, bool(stand_in.classes)


def _prepared(
    transfer: Transfer, listing: Listing, names: Sequence[str], *, progress: bool
) -> "tuple[Spec | PatchSpec, Prepared]":
    """The listing, prepared as its cohort wants it, or as the phantom's scale does."""
    from mg3d.data.cohorts import COHORTS
    from mg3d.data.masks import prepare_masks
    from mg3d.data.patches import PatchSpec
    from mg3d.data.prepare import Spec, prepare

    row, real = transfer.row, transfer.scale == REAL
    spec: Any = COHORTS[row.cohort].spec if row.cohort else None
    where = row.cohort if real else _recipe(transfer).size.corpus
    if isinstance(spec, PatchSpec):
        if not real:
            mm, side = GRIDS.get(transfer.scale, GRIDS["phantom"])
            spec = replace(spec, spacing_mm=(mm,) * 3, patch=(side,) * 3)
        folder = paths.cache() / "patches" / where
        return spec, prepare_masks(listing, classes=names, spec=spec, folder=folder, progress=progress)
    if not real:
        spec = train.spec(_recipe(transfer))
    assert isinstance(spec, Spec)
    reports = row.task in ("generate", "retrieve")
    folder = paths.cache() / "volumes" / where
    return spec, prepare(listing, spec=spec, folder=folder, reports=reports, progress=progress)


def few_shot(cases: Sequence[Case], *, share: float, seed: int) -> list[Case]:
    """The cases of a share of the patients, at least of one, in an order that the seed draws by hash.

    For one seed the cases of a smaller share are among those of a larger one. They keep their order.
    """
    patients = shuffled((c.patient for c in cases), seed=seed)
    kept = set(patients[: max(1, round(share * len(patients)))])
    return [c for c in cases if c.patient in kept]


def check_labels(splits: dict[str, list[Case]], names: Sequence[str], *, exclusive: bool = False) -> None:
    """Raise ValueError for labels that cannot be learnt from or chosen by, naming the case or the split."""
    if not names:
        raise ValueError("these cases have no labels: a classification needs a table of them")
    columns = ("class",) if exclusive else tuple(names)
    valid = range(len(names)) if exclusive else range(2)
    for cases in splits.values():
        for case in cases:
            wrong = [n for n in columns if case.labels.get(n) not in valid]
            if wrong:
                value = case.labels.get(wrong[0], "missing")
                raise ValueError(
                    f"case {case.id}: label {wrong[0]!r} is {value}; {' or '.join(map(str, valid))} is needed"
                )
    for split in ("train", "valid"):
        if not any(len({case.labels[n] for case in splits[split]}) > 1 for n in columns):
            raise ValueError(
                f"the {len(splits[split])} cases of {split!r} have one class of every label ({', '.join(names)}): "
                + ("take a larger share" if split == "train" else "no checkpoint can be chosen by them")
            )


def fingerprint(ids: Sequence[str]) -> str:
    """Twelve hex digits of a set of cases."""
    return hashlib.sha256("\0".join(sorted(ids)).encode()).hexdigest()[:12]
