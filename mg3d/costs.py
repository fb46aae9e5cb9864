"""What a list of jobs will cost, by the logs of like runs that are there; and what came of one, in words."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from statistics import median
from typing import Any

from mg3d import paths
from mg3d.jobs import NOTEBOOK, Outcome, clock, finished, lacking, needs, ordered
from mg3d.recipe import Plan
from mg3d.runs import DamagedRun, Run, find

SAME_STEP = {  # fields that leave the time of a step as it is, or are put in otherwise
    *("seed", "steps", "batch", "lr", "lr_fusion", "lr_head", "weight_decay", "warmup", "clip", "checkpoint"),
    *("resume", "share", "patience", "data", "init", "encoder"),
}


def listing(plans: Iterable[Plan], *, jobs: int = 1) -> str:
    """A line a job: its state, its steps and what they will cost; then the sums. Nothing is started.

    The cost is that of steps alone, without preparing, validating and testing, by the logs of like runs that are there;
    "about" where only runs of other variants are.
    """
    plans = ordered(plans)
    by_id, measured = {p.id: p for p in plans}, speeds(plans)
    wide = max((len(i) for i in by_id), default=0)
    lines, costs = [], list[float | None]()
    for plan in plans:
        run, steps, about = Run.of(plan), plan.filled.steps, ""
        speed = measured.get(_alike(plan, by_id))
        if speed is None and (speed := measured.get(_alike(plan, by_id, variant=False))) is not None:
            about = "about "
        left = 0 if run.done else steps - run.step
        costs.append(0.0 if not left else None if speed is None else left * speed)
        begun = f"at step {run.step}" if run.step else "new"
        state = "done" if finished(plan) else "to be shown" if run.done else begun
        after = f", after {needs(plan)}" if lacking(plan) and needs(plan) in by_id else ""
        never = f", never: {lacking(plan)}" if lacking(plan) and not after else ""
        lines.append(f"{plan.id:<{wide}}  {state:<12} {steps:>7} steps  {about + _cost(costs[-1]):>15}{after}{never}")
    states = Counter("done" if finished(p) else "to do" for p in plans)
    known, unknown = sum((c for c in costs if c is not None), 0.0), costs.count(None)
    total = f"{_cost(known)} of steps" + (f", and {unknown} of unknown cost" if unknown else "")
    told = ", ".join(f"{n} {state}" for state, n in states.items()) or "nothing to do"
    return "\n".join([*lines, f"{len(plans)} jobs: {told}; {total}; {jobs} at a time"])


def speeds(plans: Sequence[Plan]) -> dict[tuple[Any, ...], float]:
    """Median seconds a step in the logs of runs that are there, by what makes steps alike; of those of `plans`.

    A run made by other numbers of its scale, or by another reading of its study, than today's is like none.
    """
    by_id = {p.id: p for p in plans}
    wanted = {_alike(p, by_id, variant=same) for p in plans for same in (True, False)}
    seconds: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for kind in NOTEBOOK:
        for run in find(kind):
            with suppress(DamagedRun, ValueError):  # a run of old fields or names is like none
                plan = run.plan(kind)
                keys = {_alike(plan, by_id, variant=same) for same in (True, False)} & wanted
                if keys and plan.id == run.path.name:
                    steps = [line["seconds"] for line in run.metrics.to_dict("records") if "seconds" in line]
                    for key in keys:
                        seconds[key] += steps
    return {key: median(values) for key, values in seconds.items() if values}


def _alike(plan: Plan, by_id: Mapping[str, Plan], *, variant: bool = True) -> tuple[Any, ...]:
    """What the time of a step depends on, or all of it but the variant."""
    content = {k: v for k, v in asdict(plan).items() if k not in SAME_STEP}  # pyright: ignore[reportArgumentType]
    if not variant:
        content.pop("variant", None)
    return (type(plan).__name__, plan.filled.batch, _encoder(plan, by_id), *content.items())


def _encoder(plan: Plan, by_id: Mapping[str, Plan]) -> str:
    """The name of a plan's encoder: its own, or that of the run it starts from."""
    source = by_id.get(needs(plan)) if needs(plan) else plan
    with suppress(DamagedRun):
        source = source or Run(paths.runs() / needs(plan)).recipe
    return getattr(source, "encoder", "") or "swin_b"


def report(outcomes: Sequence[Outcome]) -> str:
    """How many jobs ended how, what failed and where its traceback is, and what was not started."""
    counts = Counter(o.status for o in outcomes)
    faults = [f"\n{o.plan.id} {o}\n  traceback: {o.traceback}" for o in outcomes if o.status == "failed"]
    skipped = [f"\n{o.plan.id} {o}" for o in outcomes if o.status == "skipped"]
    told = ", ".join(f"{n} {status}" for status, n in counts.items()) or "nothing to do"
    return "\n".join([f"{len(outcomes)} jobs: {told}", *faults, *skipped])


def _cost(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else clock(seconds)
