"""From the name of a study to what is trained and tested: cases, targets, task. The seam between data and tasks.

found = material(Transfer(study="findings", scale="phantom", share=0.1, seed=1))
found.entries["train"]      the tenth of the training patients that seed 1 draws
found.batches("valid")      what the training loop reads
build("classify", encoder, found.options)       an untrained task
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mg3d import train
from mg3d.data.listing import shuffled
from mg3d.encoders import Encoder
from mg3d.recipe import Recipe
from mg3d.tasks import Task
from mg3d.transfer import Transfer
from mg3d.types import Case

if TYPE_CHECKING:
    from mg3d.data.loader import Loader
    from mg3d.data.store import Entry

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Material:
    """The prepared cases of a study by split, and the options of its task (plain values, so that they can be kept)."""

    transfer: Transfer
    entries: "dict[str, list[Entry]]"
    options: dict[str, Any]

    def batches(self, split: str) -> "Loader":
        """The batches of a split, with their targets. Raises ValueError for a case without a target."""
        from mg3d.data.loader import Loader

        columns = ("class",) if self.options["exclusive"] else self.options["names"]
        size = self.transfer.filled.batch // self.transfer.accumulate
        seed = self.transfer.seed if split == "train" else 0
        return Loader(self.entries[split], batch=size, seed=seed, labels=columns)

    @property
    def protocol(self) -> dict[str, Any]:
        """What two results must agree in to be compared: who was trained and tested on, and what was asked."""
        transfer = self.transfer
        return {
            "study": transfer.study,
            "cohort": transfer.row.cohort or train.where(Recipe(scale=transfer.scale, data=transfer.data)).name,
            "scale": transfer.scale,
            "split_seed": transfer.seed,
            "share": transfer.share,
            "task": self.options,
            "selection": "best validation score of at most ten; the test split is predicted once, after training",
            "cases": {split: fingerprint([e.case.id for e in entries]) for split, entries in self.entries.items()},
        }


def material(transfer: Transfer) -> Material:
    """List and prepare the cases of a study; of the training patients, the transfer's share.

    Raises what `train.cohort` raises, and ValueError for a split without cases, for labels that are missing or out of
    range, and where no label has both classes in training and in validation.
    """
    found = train.cohort(Recipe(scale=transfer.scale, data=transfer.data))
    entries = {s: [e for e in found.prepared.entries if e.case.split == s] for s in SPLITS}
    kept = {c.id for c in few_shot([e.case for e in entries["train"]], share=transfer.share, seed=transfer.seed)}
    entries["train"] = [e for e in entries["train"] if e.case.id in kept]
    empty = [s for s, some in entries.items() if not some]
    if empty:
        raise ValueError(f"study {transfer.study!r}: no case of {', '.join(empty)}; see {found.prepared.folder}")
    names = sorted({name for e in entries["train"] for name in e.case.labels})
    check_labels({s: [e.case for e in some] for s, some in entries.items()}, names)
    return Material(transfer, entries, {"names": names, "exclusive": False, "standardise": transfer.probe})


def build(task: str, encoder: Encoder, options: dict[str, Any]) -> Task:
    """An untrained task around an encoder."""
    from mg3d.tasks.classify import Classify

    return {"classify": Classify}[task](encoder, **options)


def few_shot(cases: Sequence[Case], *, share: float, seed: int) -> list[Case]:
    """The cases of a share of the patients, at least of one, in an order that the seed draws by hash.

    For one seed the cases of a smaller share are among those of a larger one. They keep their order.
    """
    patients = shuffled((c.patient for c in cases), seed=seed)
    kept = set(patients[: max(1, round(share * len(patients)))])
    return [c for c in cases if c.patient in kept]


def check_labels(splits: dict[str, list[Case]], names: Sequence[str]) -> None:
    """Raise ValueError for labels that cannot be learnt from or chosen by, naming the case or the split."""
    if not names:
        raise ValueError("these cases have no labels: a classification needs a table of them")
    for cases in splits.values():
        for case in cases:
            wrong = [n for n in names if case.labels.get(n) not in (0, 1)]
            if wrong:
                value = case.labels.get(wrong[0], "missing")
                raise ValueError(f"case {case.id}: label {wrong[0]!r} is {value}; 0 or 1 is needed, for every label")
    for split in ("train", "valid"):
        if not any(len({case.labels[n] for case in splits[split]}) == 2 for n in names):
            raise ValueError(
                f"the {len(splits[split])} cases of {split!r} have one class of every label ({', '.join(names)}): "
                + ("take a larger share" if split == "train" else "no checkpoint can be chosen by them")
            )


def fingerprint(ids: Sequence[str]) -> str:
    """Twelve hex digits of a set of cases."""
    return hashlib.sha256("\0".join(sorted(ids)).encode()).hexdigest()[:12]
