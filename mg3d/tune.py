"""The verb `finetune`: a study, from scratch or from a pre-trained encoder, to a line of results on its test split.

From a shell, with the transfer's fields as words:

    python -m mg3d.tune study=findings init=run:mg3d-plus-swin_b-phantom-1234abcd scale=phantom share=0.1 seed=1

Besides what every run has, its folder holds

    results.json        test metrics with their intervals, how the weights were chosen, the protocol and its hash
    predictions.npz     ids, patients, predictions and targets of the test split, for tables that draw cases anew
    model.safetensors   the weights that validated best

Weights are chosen on the validation split alone; the test split is predicted once, by those. A probe of pooled features
encodes each volume once, since a frozen encoder gives the same each time, and each of its steps sees all of them.
"""

import hashlib
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from mg3d import distributed, encoders, paths, studies
from mg3d.encoders import Encoder
from mg3d.encoders.weights import load_weights
from mg3d.fit import Batches, autocast, fit
from mg3d.maps import opened
from mg3d.recipe import SCALES, Plan
from mg3d.runs import DamagedRun, Run
from mg3d.studies import Material
from mg3d.tasks import Task
from mg3d.tasks.classify import Classify, Standardise
from mg3d.transfer import Transfer
from mg3d.types import Batch, Pyramid, Trainable


class Predictions(NamedTuple):
    """Of n cases, in order."""

    ids: list[str]
    predictions: list[Any]
    targets: list[Any]


def finetune(transfer: Transfer) -> Run:
    """Fine-tune and test by a transfer and return its run. Done runs are returned at once, half-done ones continue.

    Raises FileNotFoundError for an `init` that is not there and DamagedRun for one that is not done; ValueError where
    `encoder` is not that of the run, where its weights do not fit, and for labels that cannot be learnt; what
    `train.cohort` raises; Diverged when a loss is not finite.
    """
    if distributed.expected() > 1:
        raise RuntimeError("fine-tuning runs in one process: start it without torchrun")
    run = Run(paths.runs() / transfer.id)
    if not (run.done and transfer.resume):
        encoder, start = first_encoder(transfer)
        material = studies.material(transfer)  # before the run's folder is made: a run that cannot start leaves none
        run = Run.open(transfer)
        with run.lock():
            _finetune(run, material, encoder, start)
    return run


def first_encoder(transfer: Transfer) -> tuple[Encoder, dict[str, Any]]:
    """The encoder that a transfer begins with, and how it came to be: name, shrink, shape, what was loaded."""
    source = opened(transfer.run) if transfer.run else None
    if source is None:
        size = SCALES.get(transfer.scale, SCALES["ctrg"])
        name = transfer.encoder or "swin_b"
    else:
        size, name = source.recipe.size, source.recipe.encoder
        if transfer.encoder not in ("", name):
            raise ValueError(f"encoder={transfer.encoder!r}, but {source.path.name} has trained {name!r}: leave it out")
        if not source.done:
            raise DamagedRun(f"{source.path}: the run is at step {source.step} and has no weights yet; finish it first")
    torch.manual_seed(transfer.seed)
    encoder = encoders.build(name, shrink=size.shrink, shape=size.shape)
    start: dict[str, Any] = {"name": name, "shrink": size.shrink, "shape": list(size.shape), "loaded": None}
    if source is not None:
        loaded = load_weights(encoder, source.path / "encoder.safetensors")
        start["loaded"] = {"matched": len(loaded.matched), "missing": loaded.missing, "unexpected": loaded.unexpected}
    return encoder, start


def _finetune(run: Run, material: Material, encoder: Encoder, start: dict[str, Any]) -> None:
    """The part of `finetune` that holds the run's lock."""
    transfer = material.transfer
    torch.manual_seed(transfer.seed + 1)  # the head is the same whatever the encoder drew
    task = model = studies.build(transfer.row.task, encoder, material.options)
    batches: dict[str, Batches] = {split: material.batches(split) for split in studies.SPLITS}
    if transfer.probe:
        task.encoder.requires_grad_(False)
        if isinstance(task, Classify):
            model, batches = held(task, batches, plan=transfer)
    judge = Validation(batches["valid"], plan=transfer, metric=task.metric)
    last = fit(model, run, recipe=transfer, train=batches["train"], judge=judge)
    found = predict(model, batches["test"], plan=transfer)
    patient = {e.case.id: e.case.patient for e in material.entries["test"]}
    content = {
        **asdict(transfer),
        "run": run.path.name,
        "start": start,
        "metric": transfer.row.metric,
        **tested(model, found, patients=[patient[i] for i in found.ids]),
        "valid": {"metric": task.metric, "value": last["best_score"], "step": last["best_step"]},
        "cases": {split: len(entries) for split, entries in material.entries.items()},
        "patients": {split: len({e.case.patient for e in some}) for split, some in material.entries.items()},
        "protocol": material.protocol,
    }
    content["protocol_hash"] = hashlib.sha256(json.dumps(content["protocol"], sort_keys=True).encode()).hexdigest()[:12]
    _keep(run, found, patients=[patient[i] for i in found.ids])
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
def predict(task: Task, batches: Batches, *, plan: Plan) -> Predictions:
    """What a task says about every case, on its device, and what is true. It is left in the mode that it was in."""
    device, training = next(task.parameters()).device, task.training
    found = Predictions([], [], [])
    task.eval()
    for batch in batches.all():
        with autocast(plan, device):
            found.predictions.extend(task.predict(batch.to(device)))
        found.targets.extend([] if batch.target is None else batch.target.cpu().numpy())
        found.ids.extend(batch.ids)
    task.train(training)
    return found


@final
class Validation:
    """The score of a task on the validation split: the `Judge` of a fine-tuning."""

    def __init__(self, batches: Batches, *, plan: Transfer, metric: str):
        self.batches, self.plan, self.metric, self.patience = batches, plan, metric, plan.patience

    def __call__(self, model: Trainable) -> dict[str, float]:
        """Scores of the model as it is."""
        if not isinstance(model, Task):
            raise TypeError(f"{type(model).__name__} is no task: it predicts nothing that could be scored")
        found = predict(model, self.batches, plan=self.plan)
        return model.score(found.predictions, found.targets)


@final
class Given(Encoder):
    """An encoder of what is encoded already: a "volume" [B, 1, E, 1, 1] is a map of one cell, E wide."""

    def __init__(self, width: int):
        super().__init__()
        self.widths, self.strides = (width,), (1,)

    def forward(self, volume: Tensor, mask: Tensor | None = None) -> Pyramid:
        """The features, whatever the mask."""
        return Pyramid((volume.transpose(1, 2),))


@final
class Held:
    """All cases of a split in one batch, for every step."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """The batch, for each step."""
        return (self.batch for _ in range(start, stop))

    def all(self) -> Iterator[Batch]:
        """The batch, once."""
        yield self.batch


def held(task: Classify, batches: Mapping[str, Batches], *, plan: Plan) -> tuple[Classify, dict[str, Batches]]:
    """A task with the same head on features that are kept, and those of each split; the head's norm is set by train.

    Raises ValueError for `accumulate` above 1: the one batch of a probe is not cut into parts.
    """
    if plan.accumulate > 1:
        raise ValueError(f"accumulate={plan.accumulate}: a probe takes its one batch of features as a whole")
    encoder = task.encoder.to(distributed.device()).eval()
    kept: dict[str, Batches] = {split: Held(_features(encoder, some, plan=plan)) for split, some in batches.items()}
    small = Classify(Given(encoder.widths[-1]), names=task.names, exclusive=task.exclusive, among=task.among)
    small.norm, small.head = task.norm, task.head
    if isinstance(task.norm, Standardise):
        task.norm.fit(next(kept["train"].all()).volume[:, 0, :, 0, 0])
    return small, kept


@torch.no_grad()
def _features(encoder: Encoder, batches: Batches, *, plan: Plan) -> Batch:
    """One batch of a split whose volumes are the pooled features."""
    device = next(encoder.parameters()).device
    pooled: list[Tensor] = []
    parts: list[Batch] = []
    for batch in batches.all():
        with autocast(plan, device):
            pooled.append(encoder(batch.volume.to(device)).pooled.float().cpu())
        parts.append(batch)
    targets = [b.target for b in parts if b.target is not None]
    ids = tuple(i for b in parts for i in b.ids)
    return Batch(
        volume=torch.cat(pooled)[:, None, :, None, None],
        ids=ids,
        seeds=torch.cat([b.seeds for b in parts]),
        target=torch.cat(targets) if targets else None,
    )


def _keep(run: Run, found: Predictions, *, patients: Sequence[str]) -> None:
    """Write predictions.npz."""
    buffer = io.BytesIO()
    columns = map(np.array, (found.ids, patients, found.predictions, found.targets))
    named = dict(zip(("ids", "patients", "predictions", "targets"), columns, strict=True))
    np.savez_compressed(buffer, **named)  # pyright: ignore[reportArgumentType]
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
    said = results(run)
    start = said["start"]
    encoder = encoders.build(start["name"], shrink=start["shrink"], shape=tuple(start["shape"]))
    task = studies.build(run.plan(Transfer).row.task, encoder, said["protocol"]["task"])
    task.load_state_dict(run.weights("model"))
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
