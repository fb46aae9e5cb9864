"""Phantom plans for tests: one plain patient, every finding of the vocabulary, and the healthy rendering."""

from dataclasses import replace
from functools import cache

import numpy as np

from mg3d.data.phantom.plan import FORMS, LABELS, MIDLINE, ORGANS, PLACES, SIZES_MM, Finding, Patient, Plan
from mg3d.data.phantom.render import Rendering, render

PATIENT = Patient(
    sex="male",
    age=60,
    size=1.0,
    fat_mm=18.0,
    lung=1.0,
    heart_ratio=0.46,
    aorta_mm=33.0,
    blood_hu=160.0,
    kernel_mm=0.8,
    noise_hu=12.0,
    slice_mm=2.0,
    tilt_deg=0.0,
    shift_mm=(0.0, 0.0, 0.0),
    zoom=1.0,
)


def plan(*findings: Finding, seed: int = 5, **changes) -> Plan:
    return Plan("train_1_a_1", "train_1", "train", seed, replace(PATIENT, **changes), findings)


@cache
def healthy(seed: int = 5) -> Rendering:
    return render(plan(seed=seed))


def finding(label: str, side: str, place: str, form: str = "", *, level: float = 0.5) -> Finding:
    low, high = SIZES_MM.get(label, (0.0, 0.0))
    return Finding(label, side, place, form, low + level * (high - low), level)


def every() -> list[Finding]:
    """Each label at each place, side and form that the vocabulary allows."""
    found = []
    for label in LABELS:
        for i, place in enumerate(PLACES[label]):
            forms = (FORMS[label][i],) if label == "Medical material" else FORMS.get(label, ("",))
            for j, form in enumerate(forms):
                side = "" if label in MIDLINE or place in ("subcarinal", "sternum") else ("right", "left")[(i + j) % 2]
                side = "right" if place == "middle lobe" else side
                found.append(finding(label, side, place, form))
    return found


def named(organ: str, rendering: Rendering) -> np.ndarray:
    return rendering.organs == ORGANS.index(organ)


def centre(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(0)
