"""The one training loop: AdamW, two learning rates, warm-up and linear decay, clipping, checkpoints, validation.

It fits any `Trainable` and knows no method, no task and no corpus. A step is a pure function of the weights, the
optimiser's state and the step's number (batches and random views are functions of seed and step), so a run that was
killed at any moment continues bit for bit: see `Run.restore`. A `Judge` chooses among the weights that a run passes
through; what it liked best is part of the checkpoint, so that it outlives a kill too.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from mg3d import distributed
from mg3d.accumulate import Parts
from mg3d.metrics import effective_rank
from mg3d.recipe import Plan
from mg3d.runs import Run
from mg3d.types import Batch, Losses, Trainable

EXPLODED = 1e4  # no named loss of a healthy run comes near: the largest start at ln(vocabulary), about 10
VALIDATIONS = 10  # in a run at most, the one after the last step included
VALIDATED = 0.25  # volumes validated for one trained on, at most: it takes 0.4 of the time, so a tenth of the run's


class Diverged(RuntimeError):
    """A loss or a gradient that is not finite, or has exploded; the message says step, loss and cases."""


@runtime_checkable
class Batches(Protocol):
    """What `fit` needs of a loader."""

    @property
    def count(self) -> int:
        """How many cases `all` reads."""
        ...

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches number start .. stop - 1."""
        ...

    def all(self) -> Iterator[Batch]:
        """Every case once, in order."""
        ...


@runtime_checkable
class Judge(Protocol):
    """What chooses the weights that are kept: a score on the validation split."""

    metric: str  # more is better
    patience: int  # validations without a better score after which training ends; 0: never before its last step

    def __call__(self, model: Trainable) -> dict[str, float]:
        """Scores of the model as it is, `metric` among them."""
        ...


@final
@dataclass(frozen=True)
class Best:
    """The best weights so far; of equal scores the earliest."""

    score: float = -math.inf
    step: int = 0
    worse: int = 0  # validations since then
    model: dict[str, Tensor] | None = None

    def after(self, score: float, step: int, model: Trainable) -> "Best":
        """The best after another validation."""
        if self.model is not None and score <= self.score:
            return Best(self.score, self.step, self.worse + 1, self.model)
        return Best(score, step, 0, {name: value.detach().clone() for name, value in model.state_dict().items()})

    def into(self, model: Trainable) -> dict[str, float | int]:
        """Give a model the best weights, if it was judged; says `best_step` and `best_score`."""
        if self.model is None:
            return {}
        model.load_state_dict(self.model)
        return {"best_step": self.step, "best_score": self.score}


def schedule(step: int, *, steps: int, warmup: float) -> float:
    """Factor of the learning rate at a step (0-based): linear up over the first `warmup` share, then linearly to 0."""
    up = max(1, round(steps * warmup))
    return (step + 1) / up if step < up else (steps - step) / max(1, steps - up)


def parameter_groups(model: Trainable, recipe: Plan) -> list[dict[str, Any]]:
    """The encoder at `lr`, the rest at `lr_fusion`; no weight decay on biases, norms and other vectors."""
    encoder = {id(p) for p in model.encoder.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in encoder, parameter.dim() > 1), []).append(parameter)
    filled = recipe.filled
    return [
        {
            "params": parameters,
            "peak": filled.lr if in_encoder else filled.lr_fusion,
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for (in_encoder, decays), parameters in sorted(groups.items(), key=lambda g: g[0])
    ]


def interval(recipe: Plan, valid: Batches | None = None) -> int:
    """Steps between validations: a tenth of the run, or more where the losses on `valid` would take too long."""
    steps, times = recipe.filled.steps, VALIDATIONS
    if valid is not None:
        times = min(times, max(1, int(VALIDATED * steps * recipe.filled.batch / valid.count)))
    return math.ceil(steps / times)


def autocast(recipe: Plan, device: torch.device) -> torch.autocast:
    """bf16 where asked for, and by default on a GPU (measured: no scaler is needed, losses are computed in fp32)."""
    on = recipe.precision == "bf16" or (recipe.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=on)


def fit(
    model: Trainable,
    run: Run,
    *,
    recipe: Plan,
    train: Batches,
    valid: Batches | None = None,
    judge: Judge | None = None,
) -> dict[str, float | int]:
    """Train `model` for `recipe.filled.steps` steps, continuing the run's last checkpoint, and return the last metrics.

    Writes one line a step to the run's metrics, a checkpoint every `recipe.filled.checkpoint` steps, and validates
    (losses, and the effective rank of the pooled features) as often as `interval` has it. A judge is asked as often
    ("valid_<score>"), in one process alone; the model then ends with the weights that it liked best, and the metrics
    returned say their `best_step` and `best_score`. Raises Diverged.
    """
    device = distributed.device()
    model.to(device).train()
    model.gather = distributed.gather
    optimiser = torch.optim.AdamW(parameter_groups(model, recipe), lr=0.0, fused=device.type == "cuda")
    start, best = _restore(model, optimiser, run)
    steps, every = recipe.filled.steps, interval(recipe, valid)
    leader = distributed.rank() == 0
    parts = Parts(model, parts=recipe.accumulate, forward=runner(model, recipe, device))
    read = _reader(train, start, steps, recipe.accumulate)
    line: dict[str, float | int] = run.last if start else {}
    bar = tqdm(
        range(start, steps), initial=start, total=steps, disable=not leader, desc=run.path.name[:24], mininterval=1
    )
    for step in bar:
        if judge is not None and 0 < judge.patience <= best.worse:
            break
        line = _step(model, optimiser, parts, functools.partial(read, step), recipe=recipe, step=step)
        shown = {k: f"{v:.3g}" for k, v in line.items() if k not in ("step", "lr", "seconds")}
        bar.set_postfix(shown, refresh=False)
        due = (step + 1) % every == 0 or step + 1 == steps
        if valid is not None and leader and due:
            line |= validate(model, valid, recipe=recipe)
        if judge is not None and due:
            scores = judge(model)
            best = best.after(scores[judge.metric], step + 1, model)
            line |= {f"valid_{name}": value for name, value in scores.items()}
        if leader:
            run.log(line)
            if (step + 1) % recipe.filled.checkpoint == 0 or step + 1 == steps:
                run.save(step + 1, _state(model, optimiser, best))
    return line | best.into(model)


def _step(
    model: Trainable,
    optimiser: torch.optim.Optimizer,
    parts: Parts,
    read: Callable[[int], Iterator[Batch]],
    *,
    recipe: Plan,
    step: int,
) -> dict[str, float | int]:
    """Take one step and return its line of metrics. Raises Diverged."""
    begun = time.perf_counter()
    factor = schedule(step, steps=recipe.filled.steps, warmup=recipe.warmup)
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
    # dropout, where a method has it, draws from the step's own seed: nothing to save, nothing to restore
    seed = (recipe.seed * 1_000_003 + step) * 1_009 + distributed.rank()
    found = parts.backward(read, seed=seed)
    losses = _mean(found, step)
    losses["norm"] = _advance(model, optimiser, recipe.clip, step, [i for _, ids in found for i in ids])
    seconds = time.perf_counter() - begun
    return {"step": step + 1, **losses, "lr": optimiser.param_groups[-1]["lr"], "seconds": seconds}


def _state(model: Trainable, optimiser: torch.optim.Optimizer, best: Best) -> dict[str, Any]:
    """What a checkpoint holds."""
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    return state if best.model is None else state | {"best": vars(best)}


def _restore(model: Trainable, optimiser: torch.optim.Optimizer, run: Run) -> tuple[int, Best]:
    """Load the run's last checkpoint, if there is one; its step and its best. Rank 0 cuts the metrics back to it."""
    found = run.restore()
    step, best = 0, Best()
    if found is not None:
        step, state = found
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        best = Best(**state.get("best", {}))
    with distributed.first() as first:
        if first:
            run.rewind(step)
    return step, best


def runner(model: Trainable, recipe: Plan, device: torch.device) -> Callable[[Batch, bool], Losses]:
    """What runs the model on a part of a step; with several processes, the last part's gradient meets theirs."""
    wrapped = DistributedDataParallel(model) if distributed.world() > 1 else model

    def forward(batch: Batch, last: bool) -> Losses:
        quiet = wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext()
        with quiet, autocast(recipe, device):
            return wrapped(batch.to(device))

    return forward


def _reader(train: Batches, start: int, steps: int, parts: int) -> Callable[[int, int], Iterator[Batch]]:
    """What reads a step's parts from the k-th on. Whole steps come from one stream, which reads ahead of the steps."""
    if parts == 1:
        stream = train.steps(start, steps)
        return lambda step, k: itertools.islice(stream, 1)
    return lambda step, k: train.steps(step * parts + k, (step + 1) * parts)


def _mean(found: list[tuple[Losses, tuple[str, ...]]], step: int) -> dict[str, float | int]:
    """The named losses of a step and their sum, means over parts and processes. Raises Diverged."""
    total: dict[str, Tensor] = {}
    for losses, _ in found:
        for name, value in losses.items():
            total[name] = total.get(name, 0) + value / len(found)
    values = dict(zip(total, torch.stack(list(total.values())).tolist(), strict=True))
    for name, value in values.items():
        if not math.isfinite(value) or value > EXPLODED:
            cases = [i for losses, ids in found if not losses.get(name, 0) <= EXPLODED for i in ids]
            raise Diverged(
                f"step {step + 1}: loss {name} is {value:g} on the cases {', '.join(cases)}; lower lr, or look at them"
            )
    return distributed.mean({**values, "loss": sum(values.values())})


def _advance(model: Trainable, optimiser: torch.optim.Optimizer, clip: float, step: int, ids: list[str]) -> float:
    """Clip, step, clear; returns the norm of the gradient before clipping."""
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), clip))
    if not math.isfinite(norm):
        raise Diverged(f"step {step + 1}: the gradient's norm is {norm} on the cases {', '.join(ids)}")
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    model.after_step()
    return norm


@torch.no_grad()
def validate(model: Trainable, valid: Batches, *, recipe: Plan) -> dict[str, float | int]:
    """Mean of each loss over the validation cases, as "valid_<name>", and the effective rank of the pooled features.

    Contrastive losses see one validation batch at a time. A smaller last batch is left out unless it is the only one,
    since a contrastive loss depends on the size of its batch.
    """
    device = next(model.parameters()).device
    training, gather = model.training, model.gather
    model.eval()
    model.gather = type(model).gather
    sums: dict[str, float | int] = {}
    pooled: list[Tensor] = []
    count = 0
    for batch in valid.all():
        if count and len(batch.ids) < len(pooled[0]):
            break
        with autocast(recipe, device):
            losses = model(batch.to(device))
            pooled.append(model.encoder(batch.volume.to(device)).pooled.float().cpu())
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        count += 1
    model.train(training)
    model.gather = gather
    found: dict[str, float | int] = {f"valid_{name}": value / count for name, value in sums.items()}
    features = torch.cat(pooled).numpy()
    if len(features) > 1:
        found["rank"] = effective_rank(features)
    return found
