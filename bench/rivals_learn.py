"""Does each rival learn what it asks itself? Pre-trained at scale `demo`, its own loss against that of knowing nothing.

    python bench/rivals_learn.py [methods ...] [--steps N]          MG3D_HOME keeps the runs: a second call reads them

48 phantom patients to learn from, batches of 8, the encoders of Tables I and II at a quarter of their width, seed 0.
Each line names a loss, what a model pays that knows nothing (the logarithm of the number of answers, the variance of
what is rebuilt), and which share of that has to be gone after so many steps. It is asked of 16 other patients; of
CT-CLIP and M3D-CLIP, whose contrast 48 patients do not carry over to others, of the patients learnt from (mean over the
last pass of them). Ends with 1 where a line is not met.

`all alike` is what the best answer pays that is one for all patients: the mean of what is rebuilt of those learnt from,
voxel by voxel, turned as it is asked for; how often each word stands in reports. A loss below it has to do with what is
left of the patient's own volume and report.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mg3d import Recipe, cohort, load, pretrain
from mg3d.data.loader import Loader
from mg3d.decoders import patches
from mg3d.fit import validate
from mg3d.objectives import Objective
from mg3d.objectives.arl import ARL
from mg3d.objectives.m3ae import M3AE
from mg3d.objectives.mae3d import MAE3D, PATCH
from mg3d.objectives.mrm import MRM, placed
from mg3d.objectives.pcrlv1 import PCRLv1, mixed
from mg3d.objectives.pcrlv2 import PCRLv2
from mg3d.objectives.swinmm import SwinMM, normalised
from mg3d.pairs import large_and_small
from mg3d.runs import Run
from mg3d.train import words
from mg3d.types import Batch
from mg3d.views import block_mask, turn
from mg3d.vlp import standardised

CHANCES = ("by chance", "all alike")
HEAD = ("method", "encoder", "steps", "rate", "question", *CHANCES, "learnt from", "others", "gone", "wanted", "met")
WORDS = 30_522  # of the text encoder's vocabulary
DRAWS = 8  # of crops, masks and words
OF_WORDS = ("mlm", "report")  # losses: of hidden words, of every place of a report


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
    variant: str = "paper"
    lr: float = 0.0  # 0: the scale's


QUESTIONS = (
    Question("mae3d", "vit_b", 1000, "hidden cubes", "mae", None, 0.25),
    Question("jigsaw", "unet", 100, "order of the cubes", "order", math.log(100), 0.02),
    Question("jigsaw", "swin_b", 40, "order of the cubes", "order", math.log(100), 0.02),
    Question("rubikpp", "unet", 40, "which cubes are masked", "mask", math.log(2), 0.1),
    Question("rubikpp", "swin_b", 40, "which cubes are masked", "mask", math.log(2), 0.1),
    Question("pcrlv1", "unet", 100, "crops restored", "restored", None, 0.1),
    Question("pcrlv1", "swin_b", 200, "crops restored", "restored", None, 0.1, lr=1e-3),
    Question("pcrlv2", "unet", 100, "crops restored", "restored", None, 0.1, variant="balanced", lr=1e-3),
    Question("pcrlv2", "swin_b", 200, "crops restored", "restored", None, 0.1, variant="balanced", lr=1e-3),
    Question("swinunetr", "swin_b", 40, "rotation", "rotation", math.log(4), 0.5),
    Question("swinmm", "swin_b", 40, "hidden blocks", "rebuilt", None, 0.1),
    Question("m3ae", "swin_b", 40, "hidden cubes", "mim", None, 0.2),
    Question("m3ae", "swin_b", 40, "hidden words", "mlm", math.log(WORDS), 0.3),
    Question("arl", "swin_b", 40, "hidden cubes", "mim", None, 0.2),
    Question("arl", "swin_b", 40, "hidden words", "mlm", math.log(WORDS), 0.3),
    Question("mrm", "swin_b", 300, "hidden cubes", "image", None, 0.4),
    Question("mrm", "swin_b", 300, "words of the report", "report", math.log(WORDS), 0.6),
    Question("ptunifier", "vit_b", 300, "hidden words", "mlm", math.log(WORDS), 0.3),
    Question("ctclip", "vit_b", 300, "whose report is it, of 8", "clip", math.log(8), 0.2, own=True),
    Question("m3dclip", "vit_b", 300, "whose report is it, of 8", "clip", math.log(8), 0.2, own=True),
)


def targets(model: Objective, batch: Batch) -> Tensor:
    """All that a method is to rebuild of a batch, none of it turned, [n, ...]."""
    if isinstance(model, PCRLv1):
        x = model.views(batch)
        return torch.cat([*x.clean, mixed(*x.clean, x.alpha)])
    if isinstance(model, PCRLv2):
        (_, crops), *_ = large_and_small(
            batch.volume, batch.seeds, least=model.config.iou, count=1, stride=model.stride
        )
        return crops
    if isinstance(model, MAE3D):
        cubes = patches(model.view(batch)[0], PATCH)
        return F.layer_norm(cubes, cubes.shape[-1:], eps=1e-6)
    if isinstance(model, SwinMM):
        clean, _, turns, _ = model.views(batch)
        return normalised(turn(clean, -turns % 4))
    if not isinstance(model, M3AE | ARL | MRM):
        raise TypeError(f"{type(model).__name__} rebuilds no voxels")
    c, (d, h, w) = model.config, batch.volume.shape[2:]
    cube = c.mask_cube * (model.shrink if isinstance(model, MRM) else 1)
    return standardised(batch.volume, block_mask(batch.seeds, (d, h, w), cube=cube, ratio=c.mask_ratio).shape[1:])


class Trained:
    """A finished run, with what its question is asked of: read once."""

    def __init__(self, run: Run) -> None:
        text, self.tokenise = words(run.recipe)
        self.run, self.recipe, self.model = run, run.recipe, load(run, text=text)
        self.entries = cohort(run.recipe).prepared.entries

    def patients(self, split: str, seed: int = 0) -> Loader:
        """Those of a split, with their reports; crops, masks and words are drawn by `seed`."""
        entries = [e for e in self.entries if e.case.split == split]
        return Loader(entries, tokenise=self.tokenise, batch=self.recipe.filled.batch, seed=seed)

    @cached_property
    def others(self) -> dict[str, float]:
        """Losses of the patients not learnt from, means over the draws: 16 sentences have but 30 hidden words."""
        found = [validate(self.model, self.patients("valid", seed), recipe=self.recipe) for seed in range(DRAWS)]
        return {name: sum(losses[name] for losses in found) / DRAWS for name in found[0]}

    def targets(self, split: str) -> Iterator[Tensor]:
        """What is to be rebuilt of a split, batch by batch, in each draw."""
        return (targets(self.model, b) for seed in range(DRAWS) for b in self.patients(split, seed).all())

    def of_voxels(self) -> tuple[float, float]:
        """What the best grey value pays, one for all voxels, and what the mean over the patients learnt from pays."""
        total, count = torch.zeros(()), 0
        for found in self.targets("train"):
            total, count = total + found.sum(0), count + len(found)
        others = torch.cat(list(self.targets("valid")))
        return others.var(correction=0).item(), (others - total / count).square().mean().item()

    def of_words(self) -> float:
        """Entropy of the words of the others' reports; of MRM, asked for every place, with [CLS], [SEP] and padding."""
        report = self.tokenise([e.case.report for e in self.entries if e.case.split == "valid"])
        ids = report.words[report.word >= 0]
        if isinstance(self.model, MRM):
            ids = placed(report.words, self.model.config.words, report.pad)
        share = ids.unique(return_counts=True)[1] / ids.numel()
        return -(share * share.log()).sum().item()


@lru_cache(maxsize=1)
def trained(recipe: Recipe) -> Trained:
    """The run of a recipe; two questions in a row to the same one are asked at once."""
    return Trained(pretrain(recipe))


def line(q: Question, steps: int) -> tuple[list[str], bool]:
    """The cells of a question's line, and whether it was met."""
    steps = steps or q.steps
    recipe = Recipe(scale="demo", method=q.method, variant=q.variant, encoder=q.encoder, steps=steps, lr=q.lr)
    found, chance, alike = trained(recipe), q.chance, math.nan
    if chance is None:
        chance, alike = found.of_voxels()
    elif q.term in OF_WORDS:
        alike = found.of_words()
    a_pass = math.ceil(recipe.size.volumes / recipe.filled.batch)
    own, others = found.run.metrics[q.term].iloc[-a_pass:].mean(), found.others[f"valid_{q.term}"]
    gone = 1 - (own if q.own else others) / chance
    met = gone >= q.wanted
    losses = ["" if math.isnan(x) else f"{x:.3f}" for x in (chance, alike, own, others)]
    shares = [f"{100 * x:.0f} %" for x in (gone, q.wanted)]
    method = f"`{q.method}`" if q.variant == "paper" else f"`{q.method}`, `{q.variant}`"
    whom = [method, q.encoder, str(steps), f"{recipe.filled.lr:g}", q.asks]
    return [*whom, *losses, *shares, "yes" if met else "no"], met


def main(arguments: Sequence[str]) -> int:
    """Print the table, line by line; the number of lines that were not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted({q.method for q in QUESTIONS})
    parser.add_argument("methods", nargs="*", metavar="method", help=f"of {', '.join(known)}; none: all")
    parser.add_argument("--steps", type=int, default=0, help="in place of each question's own")
    asked = parser.parse_args(arguments)
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
