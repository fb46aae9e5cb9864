"""The verbs: `cohort`, `pretrain`, `load`. The only file where the names of a recipe become objects.

From a shell, with the recipe's fields as words:

    python -m mg3d.train scale=demo seed=1
    torchrun --nproc-per-node 4 -m mg3d.train scale=47k data=/data/ct-rate
"""

import hashlib
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mg3d import distributed, paths
from mg3d.recipe import Recipe
from mg3d.runs import Run
from mg3d.types import Case

if TYPE_CHECKING:
    from mg3d.data.audit import Audit
    from mg3d.data.corpora import Listing
    from mg3d.data.prepare import Prepared, Spec
    from mg3d.encoders.text import FrozenText
    from mg3d.objectives import Objective
    from mg3d.text import Tokeniser

NONE = -1  # cases; 0 means all


@dataclass(frozen=True)
class Cohort:
    """The volumes and reports of a recipe, prepared."""

    recipe: Recipe
    listing: "Listing"
    prepared: "Prepared"

    def audit(self) -> "Audit":
        """One page on the cohort: counts, spacings, HU, duplicates, leaks, lengths of the reports, quarantine."""
        from mg3d.data.audit import audit

        _, tokenise = words(self.recipe)
        return audit(self.listing, self.prepared, tokenise=tokenise)


def spec(recipe: Recipe) -> "Spec":
    """How the volumes of a recipe are prepared."""
    from mg3d.data.prepare import Spec

    return Spec(shape=recipe.size.shape)


def where(recipe: Recipe) -> Path:
    """The folder (or the CSV) of the recipe's corpus."""
    size = recipe.size
    if recipe.data:
        return Path(recipe.data).expanduser()
    if size.corpus == "phantom":
        return paths.data() / f"phantom-{size.volumes}-{size.valid}-{size.test}"
    return paths.data() / size.corpus


def kept(recipe: Recipe) -> Path:
    """The folder of the prepared volumes of the recipe's corpus."""
    return paths.cache() / "volumes" / recipe.size.corpus


def choose(cases: Sequence[Case], *, volumes: int) -> list[Case]:
    """The first `volumes` cases (0: all) in an order that hashes the patient, so that scales are nested.

    A scale's volumes are thus among every larger scale's, and a patient's volumes stay together, whatever the order of
    the corpus. The chosen cases keep the corpus's order.
    """
    key = {c.id: (hashlib.sha256(c.patient.encode()).hexdigest(), c.id) for c in cases}
    kept = {c.id for c in sorted(cases, key=lambda c: key[c.id])[: volumes or None]}
    return [c for c in cases if c.id in kept]


def listed(recipe: Recipe, *, tested: bool = False, progress: bool = True) -> "Listing":
    """What the recipe trains and validates on, not prepared; makes the phantom first.

    Test cases come with the phantom, and with a real corpus if `tested`: pre-training does not prepare them. Raises
    MissingCorpus when the data are not there (what, where looked for, where to get it), and Leak when a patient is in
    two splits.
    """
    from mg3d.data import corpora

    size, folder = recipe.size, where(recipe)
    if size.corpus == "phantom" and not recipe.data:
        from mg3d.data.phantom.cohort import make

        make(folder, train=size.volumes, valid=size.valid, test=size.test, progress=progress)
    listing = corpora.cases(size.corpus, folder)
    counts = {"train": size.volumes, "valid": size.valid, "test": size.test if tested or size.test else NONE}
    chosen = [
        c
        for split, n in counts.items()
        if n != NONE
        for c in choose([c for c in listing.cases if c.split == split], volumes=n)
    ]
    return replace(listing, cases=chosen)


def cohort(recipe: Recipe, *, tested: bool = False, progress: bool = True) -> Cohort:
    """What `listed` gives, prepared; raises what it raises. Single bad volumes go to the quarantine table."""
    from mg3d.data.prepare import prepare

    with distributed.first() as first:
        progress = progress and first
        listing = listed(recipe, tested=tested, progress=progress)
        prepared = prepare(listing, spec=spec(recipe), folder=kept(recipe), progress=progress)
    return Cohort(recipe, listing, prepared)


def words(recipe: Recipe) -> "tuple[FrozenText, Tokeniser]":
    """The frozen text encoder of a recipe, and what turns reports into its ids."""
    from mg3d.encoders.text import load_text
    from mg3d.text import Tokeniser

    text = load_text(recipe.text)
    return text, Tokeniser(text.tokenizer, max_words=recipe.max_words)


def fill(text: "FrozenText", tokenise: "Tokeniser", cases: Iterable[Case], *, progress: bool = True) -> None:
    """Let the text encoder keep its features of the unmasked reports of some cases."""
    reports = [case.report for case in cases]
    folder, device = paths.cache() / "text", distributed.device()
    text.fill(reports, tokenise=tokenise, folder=folder, progress=progress, device=device)


def objective(recipe: Recipe, text: "FrozenText") -> "Objective":
    """The untrained objective of a recipe; its weights are drawn from the recipe's seed."""
    from mg3d import encoders, objectives

    torch.manual_seed(recipe.seed)
    size = recipe.size
    encoder = encoders.build(recipe.encoder, shrink=size.shrink, shape=size.shape, recompute=recipe.recompute)
    return objectives.build(
        recipe.method,
        encoder=encoder,
        text=text,
        variant=recipe.variant,
        shape=size.shape,
        steps=recipe.filled.steps,
    )


def check(recipe: Recipe) -> None:
    """Raise ValueError, listing the valid names, when a name in the recipe is none: before any work is done."""
    from mg3d.encoders import ENCODERS
    from mg3d.objectives import configured, known

    known(recipe.encoder, ENCODERS, "encoder")
    configured(recipe.method, recipe.variant)


def pretrain(recipe: Recipe) -> Run:
    """Pre-train by a recipe and return its run. Done runs are returned at once, half-done ones continue.

    With `recipe.gpus` above 1 the work is done by as many processes under torchrun; inside torchrun, by this one among
    them. Raises what `cohort` raises, ValueError where the variant has changed since the run was begun, and Diverged
    when a loss is not finite.
    """
    from mg3d.objectives import configured

    check(recipe)
    run, config = Run.of(recipe), configured(recipe.method, recipe.variant)
    if recipe.resume:
        run.check_readings(config)
        if run.done:
            return run
    if recipe.gpus > 1 and distributed.expected() == 1:
        distributed.launch(recipe)
        return Run.open(replace(recipe, resume=True))
    with distributed.processes():
        if distributed.world() > 1:
            recipe = replace(recipe, gpus=distributed.world())
        found = cohort(recipe)  # before the run's folder is made: a run that cannot start leaves none
        with distributed.first() as first:
            if first:
                run = Run.open(recipe)
                run.keep_readings(config)
        with run.lock() if distributed.rank() == 0 else nullcontext():
            _pretrain(found, run)
    return run


def _pretrain(found: Cohort, run: Run) -> None:
    """The part of `pretrain` that holds the run's lock."""
    from mg3d.data.loader import Loader
    from mg3d.fit import fit

    rank, world = distributed.rank(), distributed.world()
    recipe, prepared = found.recipe, found.prepared
    text, tokenise = words(recipe)
    entries = {s: [e for e in prepared.entries if e.case.split == s] for s in ("train", "valid")}
    if not entries["train"]:
        raise ValueError(f"{where(recipe)}: no volume of the split 'train' is left to train on; see {prepared.folder}")
    with distributed.first():
        fill(text, tokenise, (e.case for split in entries.values() for e in split))
    share = recipe.filled.batch // (world * recipe.accumulate)
    train = Loader(entries["train"], tokenise=tokenise, batch=share, seed=recipe.seed, rank=rank, world=world)
    valid = Loader(entries["valid"], tokenise=tokenise, batch=share, seed=0) if entries["valid"] else None
    model = objective(recipe, text)
    last = fit(model, run, recipe=recipe, train=train, valid=valid)
    if rank == 0:
        weights = {"model": model.state_dict(), "encoder": model.encoder.state_dict()}
        run.finish(weights, {"steps": recipe.filled.steps, "last": last, "volumes": len(entries["train"])})


def load(run: Run, *, text: "FrozenText | None" = None) -> "Objective":
    """The trained objective of a finished run, in eval mode, loaded strictly. DamagedRun when it has no weights.

    `text` is the recipe's text encoder, where it is there already. Raises ValueError where the variant has changed
    since the run was made.
    """
    from mg3d.objectives import configured

    recipe = run.recipe
    run.check_readings(configured(recipe.method, recipe.variant))
    model = objective(recipe, text or words(recipe)[0])
    model.load_state_dict(run.weights("model"))
    return model.eval()


def main(arguments: Sequence[str]) -> None:
    """`python -m mg3d.train field=value ...` or `@recipe.json`."""
    run = pretrain(Recipe.from_shell(arguments))
    if distributed.rank() == 0:
        print(run.path)


if __name__ == "__main__":
    main(sys.argv[1:])
