"""Finished runs written by hand: what tables and comparisons read, without any training."""

import io
import json
from dataclasses import asdict

import numpy as np

from mg3d.recipe import Plan, Recipe
from mg3d.runs import Run
from mg3d.transfer import Transfer

NAMES = ("a", "b")


def pretrained(recipe: Recipe) -> Run:
    """A done run without weights."""
    run = Run.open(recipe)
    run.finish({}, {})
    return run


def finetuned(
    transfer: Transfer,
    test: dict[str, tuple[float, float, float] | tuple[float]],
    *,
    options: dict | None = None,
    **kept: np.ndarray | list,
) -> Run:
    """A done run with results and predictions. `test` holds value, low, high of each metric; `kept` predictions.npz."""
    run = Run.open(transfer)
    lines = {metric: dict(zip(("value", "low", "high"), values, strict=False)) for metric, values in test.items()}
    content = asdict(transfer) | {"test": lines, "start": {"options": options or {"names": NAMES}}}
    (run.path / "results.json").write_text(json.dumps(content))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: np.asarray(column) for name, column in kept.items()})
    (run.path / "predictions.npz").write_bytes(buffer.getvalue())
    run.finish({}, {})
    return run


def done(job: Plan, **found) -> Run:
    """The job, done."""
    return pretrained(job) if isinstance(job, Recipe) else finetuned(job, **found)
