"""A seeded synthetic chest-CT cohort whose every sentence has a ground-truth mask, in the file layout of CT-RATE.

    labels -> plan      which abnormalities, then which findings in which patient on which scanner
    plan -> render      voxels, organs and a mask a finding
    plan -> report      sentences that know what they speak of
    cohort, truth       both on disk: what CT-RATE would hold, and beside it what is really there

`make` writes a cohort, `load_truth` reads what is known of a case; `draw` gives a plan without touching the disk.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mg3d.data.phantom.cohort import make
    from mg3d.data.phantom.plan import draw
    from mg3d.data.phantom.truth import load_truth, organ_masks, sentence_masks

_WHERE = {
    "draw": "plan",
    "make": "cohort",
    "load_truth": "truth",
    "organ_masks": "truth",
    "sentence_masks": "truth",
}
__all__ = ["draw", "load_truth", "make", "organ_masks", "sentence_masks"]


def __getattr__(name: str) -> object:
    """Import on first use: the renderer and the tables of phrases cost time that few need."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
