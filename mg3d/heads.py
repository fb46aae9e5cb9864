"""From the name of a task to the task: what it is built with, and what it takes of a pre-trained run.

`options` are plain values, kept with the results, so that a fine-tuned task can be built again without its data or the
run that it came from. To add a task, write one class in mg3d/tasks, one function here and one row of HEADS.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mg3d import train
from mg3d.encoders import Encoder
from mg3d.recipe import Recipe
from mg3d.runs import Run
from mg3d.studies import Material
from mg3d.tasks import Task
from mg3d.transfer import Transfer

if TYPE_CHECKING:
    from mg3d.encoders.text import FrozenText
    from mg3d.tasks.align import Embedder
    from mg3d.text import Tokeniser

    Words = tuple[FrozenText, Tokeniser]

NO_TEXT = "of features of whole reports, those of mg3d alone are read"
NO_POOL = "this variant has no feature of a whole report (neither cml nor clip)"


@dataclass(frozen=True)
class Head:
    """How a task is built: `build(encoder, options, words, pieces) -> Task`."""

    build: "Callable[[Encoder, dict[str, Any], Words | None, Sequence[int]], Task]"
    reads: bool = False  # whether it needs a text encoder


def build(
    task: str,
    encoder: Encoder,
    options: dict[str, Any],
    *,
    words: "Words | None" = None,
    pieces: Sequence[int] = (),
) -> Task:
    """An untrained task around an encoder; `pieces` is the vocabulary of what it writes."""
    return HEADS[task].build(encoder, options, words, pieces)


def _classify(encoder: Encoder, options: dict[str, Any], words: "Words | None", pieces: Sequence[int]) -> Task:
    from mg3d.tasks.classify import Classify

    return Classify(encoder, **options)


def _segment(encoder: Encoder, options: dict[str, Any], words: "Words | None", pieces: Sequence[int]) -> Task:
    from mg3d.tasks.segment import Segment

    return Segment(encoder, **options)


def _generate(encoder: Encoder, options: dict[str, Any], words: "Words | None", pieces: Sequence[int]) -> Task:
    from mg3d.tasks.generate import Generate

    text, _ = _known(words)
    return Generate(encoder, pieces=pieces, decode=text.tokenizer.decode, **options)


def _align(encoder: Encoder, options: dict[str, Any], words: "Words | None", pieces: Sequence[int]) -> Task:
    from mg3d.tasks.align import Align

    _, tokenise = _known(words)
    return Align(encoder, _embedder(encoder, options, words), names=options["names"], tokenise=tokenise)


def _retrieve(encoder: Encoder, options: dict[str, Any], words: "Words | None", pieces: Sequence[int]) -> Task:
    from mg3d.tasks.align import Retrieve

    return Retrieve(encoder, _embedder(encoder, options, words))


def _embedder(encoder: Encoder, options: dict[str, Any], words: "Words | None") -> "Embedder":
    from mg3d.tasks.align import Embedder

    text, _ = _known(words)
    return Embedder(encoder, text, **options["embedder"])


def _known(words: "Words | None") -> "Words":
    if words is None:
        raise ValueError("this task reads texts: give it a text encoder and its tokeniser")
    return words


HEADS = {
    "classify": Head(_classify),
    "segment": Head(_segment),
    "generate": Head(_generate, reads=True),
    "align": Head(_align, reads=True),
    "retrieve": Head(_retrieve, reads=True),
}


def options_of(material: Material, source: Run | None) -> dict[str, Any]:
    """What the task of a study is built with; projections have the width and level of the run they come from."""
    transfer, names = material.transfer, list(material.names)
    task = transfer.row.task
    if task == "classify":
        among = transfer.row.among
        return {"names": names, "exclusive": material.exclusive, "standardise": transfer.probe, "among": among}
    if task == "segment":
        spacing = list(getattr(material.spec, "spacing_mm"))  # noqa: B009
        return {"names": names, "patch": list(material.shape), "spacing_mm": spacing}
    if task == "generate":
        return {}
    if source is None or (transfer.filled.steps and mute(source.recipe)):
        return {"names": names, "embedder": {}}  # projections begin with the study
    return {"names": names, "embedder": _readings(source.recipe)}


def mute(recipe: Recipe) -> str:
    """Why a run has no features of volumes and whole reports that a study can read; "" if it has."""
    from mg3d.objectives import METHODS

    if recipe.method != "mg3d":
        return NO_TEXT
    config = METHODS[recipe.method].variants[recipe.variant]
    return "" if config.cml or config.clip else NO_POOL


def _readings(recipe: Recipe) -> dict[str, Any]:
    """How a run makes F_I and F_T. ValueError for one that does not."""
    from mg3d.objectives import METHODS

    if reason := mute(recipe):
        raise ValueError(
            f"{recipe.method}, variant {recipe.variant}: {reason}; this study takes them as they are (ctrate-vocabfine "
            "trains its own)"
        )
    config = METHODS[recipe.method].variants[recipe.variant]
    fields = {"width": "width", "level": "level", "guidance": "guidance", "heads": "self_heads"}
    return {ours: getattr(config, theirs) for ours, theirs in fields.items()}


def text_of(transfer: Transfer, source: Run | None) -> dict[str, Any]:
    """Name of the text encoder, and how long its texts may be."""
    recipe = Recipe(text=transfer.text or "minilm") if source is None else source.recipe
    return {"text": recipe.text, "max_words": recipe.max_words}


def words_of(task: str, text: dict[str, Any]) -> "Words | None":
    """The text encoder of `text_of` and its tokeniser, for a task that reads."""
    return train.words(Recipe(**text)) if HEADS[task].reads else None


def take(task: Task, source: Run) -> None:
    """The projections of a run that has them, for a task that has them. ValueError names what the run lacks."""
    embedder = getattr(task, "embedder", None)
    if embedder is not None and not mute(source.recipe):
        embedder.take(source.weights("model"))
