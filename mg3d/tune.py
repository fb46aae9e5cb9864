"""The verb `finetune`: a study, from scratch or from a pre-trained encoder, to a line of results on its test split.

From a shell, with the transfer's fields as words:

    python -m mg3d.tune study=findings init=run:mg3d-plus-swin_b-phantom-1234abcd scale=phantom share=0.1 seed=1

Besides what every run has, its folder holds

    results.json        test metrics with their intervals, how the weights were chosen, the protocol and its hash
    predictions.npz     ids, patients, predictions and targets of the test split, for tables that draw cases anew
    masks/<id>.nii.gz   what a segmentation predicts, in the frame of the input; predictions.npz has its scores
    model.safetensors   the weights that validated best

Weights are chosen on the validation split alone; the test split is predicted once, by those.
"""

import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, final

import numpy as np
import torch

from mg3d import distributed, encoders, heads, paths, studies, train
from mg3d.encoders.weights import load_weights
from mg3d.fit import Batches, autocast, fit
from mg3d.frozen import held
from mg3d.maps import opened
from mg3d.recipe import SCALES, Plan
from mg3d.runs import DamagedRun, Run
from mg3d.studies import Material
from mg3d.tasks import Task
from mg3d.tasks.classify import Classify
from mg3d.tasks.segment import Segment
from mg3d.transfer import Transfer
from mg3d.types import Trainable


class Predictions(NamedTuple):
    """Of n cases, in order."""

    ids: list[str]
    predictions: list[Any]
    targets: list[Any]


def finetune(transfer: Transfer) -> Run:
    """Fine-tune and test by a transfer and return its run. Done runs are returned at once, half-done ones continue.

    Raises FileNotFoundError for an `init` that is not there and DamagedRun for one that is not done; ValueError where
    `encoder` or `text` is not that of the run, where its weights do not fit, and what `studies.material` refuses;
    Diverged when a loss is not finite.
    """
    if distributed.expected() > 1:
        raise RuntimeError("fine-tuning runs in one process: start it without torchrun")
    run = Run.of(transfer)
    if not (run.done and transfer.resume):
        origin = source_of(transfer)
        material = studies.material(transfer)  # before the run's folder is made: a run that cannot start leaves none
        start, task, batches = begin(material, origin)
        run = Run.open(transfer)
        with run.lock():
            _finetune(run, material, start, task, batches)
    elif transfer.run:
        start = results(run)["start"]
        _agree(transfer, encoder=start["encoder"], text=start["text"]["text"])
    return run


def _agree(transfer: Transfer, **there: str) -> None:
    """Raise ValueError where a transfer names another encoder than that of the run it starts from."""
    for name, value in there.items():
        if getattr(transfer, name) not in ("", value):
            raise ValueError(
                f"{name}={getattr(transfer, name)!r}, but {transfer.run} has learnt with {value!r}: leave it out"
            )


def source_of(transfer: Transfer) -> Run | None:
    """The run that a transfer starts from, None for scratch; raises what `finetune` raises for one that will not do."""
    if not transfer.run:
        return None
    source = opened(transfer.run)
    _agree(transfer, encoder=source.recipe.encoder, text=source.recipe.text)
    if not source.done:
        raise DamagedRun(f"{source.path}: the run is at step {source.step} and has no weights yet; finish it first")
    return source


def begin(material: Material, source: Run | None) -> tuple[dict[str, Any], Task, dict[str, Batches]]:
    """What a fine-tuning begins with: how the task was built and what was loaded, the task, the batches by split."""
    transfer = material.transfer
    kind = transfer.row.task
    if source is None:
        shrink = SCALES[transfer.scale].shrink if transfer.scale in SCALES else 1
        start = {"encoder": transfer.encoder or "swin_b", "shrink": shrink, "shape": list(material.shape)}
    else:
        recipe = source.recipe
        start = {"encoder": recipe.encoder, "shrink": recipe.size.shrink, "shape": list(recipe.size.shape)}
    start |= {"text": heads.text_of(transfer, source), "options": heads.options_of(material, source), "loaded": None}
    words = heads.words_of(kind, start["text"])
    torch.manual_seed(transfer.seed)
    encoder = encoders.build(start["encoder"], shrink=start["shrink"], shape=tuple(start["shape"]))
    if source is not None:
        loaded = load_weights(encoder, source.path / "encoder.safetensors")
        start["loaded"] = {"matched": len(loaded.matched), "missing": loaded.missing, "unexpected": loaded.unexpected}
    pieces: Sequence[int] = ()
    if words is not None:
        text, tokenise = words
        if kind == "generate":
            pieces, start["options"]["longest"] = material.vocabulary(tokenise)
        else:
            used = studies.SPLITS if transfer.filled.steps else ("test",)
            train.fill(text, tokenise, (e.case for split in used for e in material.entries[split]))
    torch.manual_seed(transfer.seed + 1)  # the head is the same whatever the encoder drew
    task = heads.build(kind, encoder, start["options"], words=words, pieces=pieces)
    task.augment = transfer.augment and not transfer.probe
    if source is not None:
        heads.take(task, source)
    tokenise = None if words is None else words[1]
    return start, task, {split: material.batches(split, tokenise=tokenise) for split in studies.SPLITS}


def _finetune(run: Run, material: Material, start: dict[str, Any], task: Task, batches: Mapping[str, Batches]) -> None:
    """The part of `finetune` that holds the run's lock."""
    transfer, model = material.transfer, task
    if transfer.probe:
        task.encoder.requires_grad_(False)
        if isinstance(task, Classify):
            model, batches = held(task, batches, plan=transfer)
    judge = Validation(batches["valid"], plan=transfer, metric=task.metric, reports=material.reports("valid"))
    last = fit(model, run, recipe=transfer, train=batches["train"], judge=judge)
    found = predict(model, batches["test"], plan=transfer, reports=material.reports("test"))
    patient = {e.case.id: e.case.patient for e in material.entries["test"]}
    patients = [patient[i] for i in found.ids]
    protocol = material.protocol | task.asked
    chosen = {"metric": task.metric, "value": last["best_score"], "step": last["best_step"]} if last else None
    content = {
        **asdict(transfer),
        "run": run.path.name,
        "start": start,
        "metric": transfer.row.metric,
        **tested(model, found, patients=patients),
        "valid": chosen,
        "cases": {split: len(entries) for split, entries in material.entries.items()},
        "patients": {split: len({e.case.patient for e in some}) for split, some in material.entries.items()},
        "protocol": protocol,
        "protocol_hash": hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12],
    }
    _keep(run, material, task, found, patients=patients)
    paths.write_atomic(run.path / "results.json", json.dumps(content, indent=1).encode())
    run.finish({"model": task.state_dict()}, {"steps": transfer.filled.steps, "last": last})


def tested(task: Task, found: Predictions, *, patients: Sequence[str]) -> dict[str, Any]:
    """Scores of the test split, each with its 95 % interval over patients where the task has one.

    Where they are undefined (a test split of one class), "undefined" says why and there are no scores.
    """
    try:
        scores = task.score(found.predictions, found.targets)
        give = getattr(task, "intervals", None)
        sure = give(found.predictions, found.targets, cases=patients) if give else {}
    except ValueError as error:
        return {"test": {}, "undefined": str(error)}
    lines = {name: {"value": value} for name, value in scores.items()}
    return {"test": lines | {name: interval._asdict() for name, interval in sure.items()}}


@torch.no_grad()
def predict(task: Task, batches: Batches, *, plan: Plan, reports: Mapping[str, str] | None = None) -> Predictions:
    """What a task says about every case, on its device, and what is true: the batch's target, or the case's report.

    The task is left in the mode that it was in.
    """
    device, training = next(task.parameters()).device, task.training
    found = Predictions([], [], [])
    task.eval()
    for batch in batches.all():
        with autocast(plan, device):
            found.predictions.extend(task.predict(batch.to(device)))
        true = batch.target
        found.targets.extend([(reports or {})[i] for i in batch.ids] if true is None else true.cpu().numpy())
        found.ids.extend(batch.ids)
    task.train(training)
    return found


@final
class Validation:
    """The score of a task on the validation split: the `Judge` of a fine-tuning."""

    def __init__(self, batches: Batches, *, plan: Transfer, metric: str, reports: Mapping[str, str] | None = None):
        self.batches, self.plan, self.reports = batches, plan, reports
        self.metric, self.patience = metric, plan.patience

    def __call__(self, model: Trainable) -> dict[str, float]:
        """Scores of the model as it is."""
        if not isinstance(model, Task):
            raise TypeError(f"{type(model).__name__} is no task: it predicts nothing that could be scored")
        found = predict(model, self.batches, plan=self.plan, reports=self.reports)
        return model.judged(found.predictions, found.targets)


def _keep(run: Run, material: Material, task: Task, found: Predictions, *, patients: Sequence[str]) -> None:
    """Write predictions.npz; of a segmentation the scores of each case and class, and its masks as files."""
    kept: dict[str, Any] = {"ids": found.ids, "patients": patients}
    if isinstance(task, Segment):
        from mg3d.data.masks import to_source

        kept |= {"classes": task.names[1:], **task.table(found.predictions, found.targets)}
        entries = {e.case.id: e for e in material.entries["test"]}
        for name, mask in zip(found.ids, found.predictions, strict=True):
            to_source(mask, entries[name].record, run.path / "masks" / f"{name}.nii.gz")
    else:
        kept |= {"predictions": found.predictions, "targets": found.targets}
    buffer = io.BytesIO()
    columns = {name: np.asarray(column) for name, column in kept.items()}
    np.savez_compressed(buffer, **columns)  # pyright: ignore[reportArgumentType]
    paths.write_atomic(run.path / "predictions.npz", buffer.getvalue())


def results(run: Run) -> dict[str, Any]:
    """The content of results.json. DamagedRun where there is none."""
    file = run.path / "results.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DamagedRun(f"{file}: {error}; finish the run with finetune(transfer)") from error


def load(run: Run) -> Task:
    """The task of a finished run with its best weights, in eval mode, loaded strictly. DamagedRun without them."""
    start, weights = results(run)["start"], run.weights("model")
    encoder = encoders.build(start["encoder"], shrink=start["shrink"], shape=tuple(start["shape"]))
    kind = run.plan(Transfer).row.task
    pieces = weights["pieces"][1:].tolist() if "pieces" in weights else ()  # the first stands for nothing
    words = heads.words_of(kind, start["text"])
    task = heads.build(kind, encoder, start["options"], words=words, pieces=pieces)
    task.load_state_dict(weights)
    return task.eval()


def main(arguments: Sequence[str]) -> None:
    """`python -m mg3d.tune field=value ...` or `@transfer.json`."""
    run = finetune(Transfer.from_shell(arguments))
    said = results(run)
    line = said["test"].get(said["metric"])
    print(run.path)
    if line is None:
        print(f"test {said['metric']} undefined: {said.get('undefined', 'this task does not give it')}")
    else:
        print(f"test {said['metric']} " + " ".join(f"{k} {v:.3f}" for k, v in line.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
