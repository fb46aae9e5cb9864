"""The ground truth of a phantom case: which voxels each sentence of its report speaks of.

truth/train_1_a_1.json    plan, labels, sentences, what was omitted, orientation and affine, checksums
truth/train_1_a_1.npz     masks of the findings (bits) and the organ map, in the axes of the stored volume
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float, UInt8

from mg3d.data.phantom.plan import ORGANS, Finding, Patient, Plan
from mg3d.data.phantom.report import Sentence

IN_THE_REPORT = ("findings", "impression")


@dataclass(frozen=True)
class Truth:
    """Ground truth of one case. X Y Z are the axes of the stored NIfTI file; `affine` maps its voxels to RAS mm."""

    plan: Plan
    sentences: tuple[Sentence, ...]  # of the report (findings, then impression), as its text splits
    preamble: tuple[Sentence, ...]  # history and technique, which are no part of the report's text
    omitted: tuple[int, ...]  # places in plan.findings that no sentence mentions
    masks: Bool[np.ndarray, "F X Y Z"]  # one a finding, in the order of plan.findings
    organs: UInt8[np.ndarray, "X Y Z"]  # places in plan.ORGANS
    affine: Float[np.ndarray, "4 4"]

    @cached_property
    def labels(self) -> dict[str, int]:
        """The 18 labels, as in the labels table."""
        return self.plan.labels


def sentence_masks(truth: Truth) -> Bool[np.ndarray, "S X Y Z"]:
    """Where each sentence can be seen: the union of its findings' masks; empty for normal, negated and aside ones."""
    told = np.zeros((len(truth.sentences), len(truth.masks)), np.float32)
    for row, sentence in zip(told, truth.sentences, strict=True):
        row[list(sentence.findings)] = 1
    seen = told @ truth.masks.reshape(-1, truth.organs.size).astype(np.float32) > 0
    return seen.reshape(-1, *truth.organs.shape)


def organ_masks(truth: Truth) -> Bool[np.ndarray, "S X Y Z"]:
    """Where one looks to check each sentence: the organs that it is about; empty for asides."""
    about = np.array([[name in sentence.organs for name in ORGANS] for sentence in truth.sentences], bool)
    return about.reshape(-1, len(ORGANS))[:, truth.organs]


def load_truth(path: Path | str) -> Truth:
    """Read a truth JSON and the .npz beside it.

    Raises FileNotFoundError where one of the two is missing, ValueError where one is damaged or they do not fit.
    """
    path = Path(path)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        plan = read_plan(told["plan"])
        sentences = [read_sentence(row) for row in told["sentences"]]
        affine, shape = np.array(told["affine"], np.float64), tuple(told["shape"])
        with path.with_suffix(".npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            bits, organs = arrays["masks"], arrays["organs"]
        masks = np.unpackbits(bits, axis=1, count=int(np.prod(shape))).astype(bool)
        masks, organs = masks.reshape(len(plan.findings), *shape), organs.reshape(shape)
    except (ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"{path} or the .npz beside it is damaged ({error}). Delete both and make the cohort again: only what is "
            "missing is made."
        ) from error
    return Truth(
        plan=plan,
        sentences=tuple(s for s in sentences if s.section in IN_THE_REPORT),
        preamble=tuple(s for s in sentences if s.section not in IN_THE_REPORT),
        omitted=tuple(told["omitted"]),
        masks=masks,
        organs=organs,
        affine=affine,
    )


def read_plan(told: dict[str, Any]) -> Plan:
    """A plan from what `asdict` and JSON made of it."""
    fields: dict[str, Any] = dict(told)
    fields["patient"] = Patient(**{**told["patient"], "shift_mm": tuple(told["patient"]["shift_mm"])})
    fields["findings"] = tuple(Finding(**finding) for finding in told["findings"])
    return Plan(**fields)


def read_sentence(told: dict[str, Any]) -> Sentence:
    """A sentence from what `asdict` and JSON made of it."""
    fields: dict[str, Any] = dict(told)
    fields["findings"], fields["organs"] = tuple(told["findings"]), tuple(told["organs"])
    return Sentence(**fields)


def pack(masks: Bool[np.ndarray, "F X Y Z"], organs: UInt8[np.ndarray, "X Y Z"]) -> bytes:
    """The .npz of a case. The same arrays give the same bytes: a zip of numpy carries no dates."""
    out = BytesIO()
    flat = np.ascontiguousarray(masks).reshape(len(masks), organs.size)
    np.savez_compressed(out, masks=np.packbits(flat, axis=1), organs=np.ascontiguousarray(organs))
    return out.getvalue()


def describe(plan: Plan, sentences: Sequence[Sentence], omitted: Sequence[int], **more: object) -> bytes:
    """The JSON of a case; `more` holds affine, shape and what else is known of its files."""
    told = {
        "plan": asdict(plan),
        "labels": plan.labels,
        "sentences": [asdict(sentence) for sentence in sentences],
        "omitted": list(omitted),
        **more,
    }
    return (json.dumps(told, indent=1) + "\n").encode()
