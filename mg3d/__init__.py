"""MG-3D workbench: vision-language pre-training on chest CT volumes and their radiology reports.

All that a notebook needs, loaded when first used:

    Recipe, SCALES      what a run is made of
    cohort(recipe)      the volumes and reports of a recipe: listed, prepared, audited
    pretrain(recipe)    -> Run; done runs are skipped, half-done ones continue
    load(run)           -> the trained objective
    Transfer            what a fine-tuning is made of: a study, from scratch or from a run
    finetune(transfer)  -> Run, with the results on its test split
    attend(run, case)   -> Attention: where each sentence of the report looks in the volume
    ground(run)         -> rows: those maps against the phantom's truth, with their controls
    find(**fields)      -> the runs that are there
"""

import os
from typing import TYPE_CHECKING, Any

# A thread that waits for another one spins for a while before it sleeps. By default so long that, on a machine whose
# cores other programs use too, an encoder pass takes sixty times as long; this short wait costs 5 % on an idle one
# (docs/devlog.md). It counts where torch has not been imported yet.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

if TYPE_CHECKING:
    from mg3d.grounding import ground
    from mg3d.maps import Attention, attend
    from mg3d.recipe import SCALES, Recipe
    from mg3d.runs import Run, find
    from mg3d.train import cohort, load, pretrain
    from mg3d.transfer import Transfer
    from mg3d.tune import finetune

_HOMES = {
    "Recipe": "recipe",
    "SCALES": "recipe",
    "Run": "runs",
    "find": "runs",
    "cohort": "train",
    "pretrain": "train",
    "load": "train",
    "Transfer": "transfer",
    "finetune": "tune",
    "Attention": "maps",
    "attend": "maps",
    "ground": "grounding",
}
__all__ = [
    "SCALES",
    "Attention",
    "Recipe",
    "Run",
    "Transfer",
    "attend",
    "cohort",
    "find",
    "finetune",
    "ground",
    "load",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that holds it, when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mg3d' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"mg3d.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
