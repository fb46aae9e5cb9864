"""Does each rival learn what it asks itself? Pre-trained at scale `demo`, its own loss against that of knowing nothing.

    python bench/rivals_learn.py [methods ...] [--steps N]          MG3D_HOME keeps the runs: a second call reads them

48 phantom patients to learn from, batches of 8, the encoders of Tables I and II at a quarter of their width, seed 0.
Each line names a loss, what a model pays that knows nothing (the logarithm of the number of answers, the variance of
what is rebuilt), and which share of that has to be gone after so many steps. It is asked of 16 other patients; of
CT-CLIP and M3D-CLIP, whose contrast 48 patients do not carry over to others, of the patients learnt from (mean over the
last pass of them). Ends with 1 where a line is not met.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mg3d import Recipe, cohort, load, pretrain
from mg3d.data.loader import Loader
from mg3d.objectives.pcrlv1 import PCRLv1, mixed
from mg3d.objectives.pcrlv2 import PCRLv2Config
from mg3d.pairs import large_and_small
from mg3d.runs import Run

HEAD = ("method", "encoder", "steps", "question", "by chance", "learnt from", "others", "gone", "wanted", "met")
WORDS = 30_522  # of the text encoder's vocabulary


@dataclass(frozen=True)
class Question:
    """What a method asks itself: `term` of its losses, `chance` (None: the variance of the crops), the share wanted."""

    method: str
    encoder: str
    steps: int
    asks: str
    term: str
    chance: float | None
    wanted: float
    own: bool = False  # asked of the patients that it learns from


QUESTIONS = (
    Question("mae3d", "vit_b", 40, "hidden cubes", "mae", 1.0, 0.02),
    Question("jigsaw", "unet", 100, "order of the cubes", "order", math.log(100), 0.02),
    Question("jigsaw", "swin_b", 40, "order of the cubes", "order", math.log(100), 0.02),
    Question("rubikpp", "unet", 40, "which cubes are masked", "mask", math.log(2), 0.1),
    Question("rubikpp", "swin_b", 40, "which cubes are masked", "mask", math.log(2), 0.1),
    Question("pcrlv1", "unet", 100, "crops restored", "restored", None, 0.1),
    Question("pcrlv1", "swin_b", 100, "crops restored", "restored", None, 0.1),
    Question("pcrlv2", "unet", 100, "crops restored", "restored", None, 0.1),
    Question("pcrlv2", "swin_b", 300, "crops restored", "restored", None, 0.1),
    Question("swinunetr", "swin_b", 40, "rotation", "rotation", math.log(4), 0.5),
    Question("swinmm", "swin_b", 40, "hidden blocks", "rebuilt", 1.0, 0.1),
    Question("m3ae", "swin_b", 40, "hidden cubes", "mim", 1.0, 0.2),
    Question("m3ae", "swin_b", 40, "hidden words", "mlm", math.log(WORDS), 0.3),
    Question("arl", "swin_b", 40, "hidden cubes", "mim", 1.0, 0.2),
    Question("arl", "swin_b", 40, "hidden words", "mlm", math.log(WORDS), 0.3),
    Question("mrm", "swin_b", 40, "hidden cubes", "image", 1.0, 0.2),
    Question("mrm", "swin_b", 40, "words of the report", "report", math.log(WORDS), 0.3),
    Question("ptunifier", "vit_b", 100, "hidden words", "mlm", math.log(WORDS), 0.2),
    Question("ctclip", "vit_b", 300, "whose report is it, of 8", "clip", math.log(8), 0.2, own=True),
    Question("m3dclip", "vit_b", 300, "whose report is it, of 8", "clip", math.log(8), 0.2, own=True),
)


def variance(run: Run) -> float:
    """What the best grey value pays, one for all crops: of all that a PCRL restores for the validation patients."""
    model = load(run)
    entries = [e for e in cohort(run.recipe).prepared.entries if e.case.split == "valid"]
    found = []
    for batch in Loader(entries, batch=run.recipe.filled.batch, seed=0).all():
        if isinstance(model, PCRLv1):
            x = model.views(batch)
            crops = torch.cat([*x.clean, mixed(*x.clean, x.alpha)])
        else:
            (_, crops), *_ = large_and_small(batch.volume, batch.seeds, least=PCRLv2Config.iou, count=1)
        found.append(crops)
    return torch.cat(found).var(correction=0).item()


def line(question: Question, steps: int) -> tuple[list[str], bool]:
    """The cells of a question's line, and whether it was met."""
    recipe = Recipe(scale="demo", method=question.method, encoder=question.encoder, steps=steps or question.steps)
    run = pretrain(recipe)
    chance = variance(run) if question.chance is None else question.chance
    a_pass = math.ceil(recipe.size.volumes / recipe.filled.batch)
    own, others = run.metrics[question.term].iloc[-a_pass:].mean(), run.last[f"valid_{question.term}"]
    gone = 1 - (own if question.own else others) / chance
    met = gone >= question.wanted
    numbers = [f"{x:.3f}" for x in (chance, own, others)] + [f"{100 * x:.0f} %" for x in (gone, question.wanted)]
    whom = [f"`{question.method}`", question.encoder, str(recipe.filled.steps), question.asks]
    return [*whom, *numbers, "yes" if met else "no"], met


def main(words: Sequence[str]) -> int:
    """Print the table, line by line; the number of lines that were not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted({q.method for q in QUESTIONS})
    parser.add_argument("methods", nargs="*", metavar="method", help=f"of {', '.join(known)}; none: all")
    parser.add_argument("--steps", type=int, default=0, help="in place of each question's own")
    asked = parser.parse_args(words)
    if strange := set(asked.methods) - set(known):
        parser.error(f"unknown method {', '.join(sorted(strange))}: take {', '.join(known)}")
    print("|", " | ".join(HEAD), "|\n|", "|".join(["---"] * len(HEAD)), "|", flush=True)
    missed = 0
    for question in QUESTIONS:
        if not asked.methods or question.method in asked.methods:
            cells, met = line(question, asked.steps)
            missed += not met
            print("|", " | ".join(cells), "|", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
