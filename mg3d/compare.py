"""How far do two methods lie apart? Finished fine-tunings compared, with an interval over cases and runs.

    score(runs, "auroc")                 the mean of one run a seed
    difference(runs, others, "auroc")    run by run, both scored on the same drawn cases

Two runs of one seed share the split, the order and the head: what is common to both cancels in a difference of pairs. A
difference whose interval holds 0 is none (`says`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mg3d import tune
from mg3d.metrics import Interval, auroc, mean_of_defined, ranks, resampled, runs_and_cases, weighted_means
from mg3d.metrics.text import bleu_counts, bleu_of
from mg3d.runs import Run
from mg3d.transfer import Transfer

RESAMPLES = 500  # enough for a standard error to 3 %
Z = 1.96  # half of a 95 % interval, in standard errors

Statistic = Callable[[Float[np.ndarray, "R n"]], Float[np.ndarray, " R"]]


class Scored(NamedTuple):
    """The test cases of a run, and its score as a function of how often each is drawn."""

    ids: list[str]
    patients: list[str]
    statistic: Statistic


def score(runs: Sequence[Run], metric: str) -> Interval:
    """The mean of a test metric over runs, and its interval over cases and, with two runs or more, over runs.

    Cases are taken to move all runs alike, as they do where all have the same test split. Raises ValueError where a
    run does not give the metric, DamagedRun where it has no results.
    """
    lines = [_line(run, metric) for run in runs]
    if len(lines) == 1:
        return Interval(*(float(lines[0].get(k, np.nan)) for k in Interval._fields))
    spread = [(line["high"] - line["low"]) / (2 * Z) for line in lines if "low" in line]
    error = float(np.sqrt(np.mean(np.square(spread)))) if spread else 0.0
    return runs_and_cases(np.array([line["value"] for line in lines]), error=error)


def _line(run: Run, metric: str) -> dict[str, float]:
    found = tune.results(run)["test"]
    if metric not in found:
        raise ValueError(f"{run.path.name} gives no {metric!r}; it gives {', '.join(found) or 'nothing'}")
    return found[metric]


def difference(ones: Sequence[Run], others: Sequence[Run], metric: str, *, resamples: int = RESAMPLES) -> Interval:
    """The mean of ones - others, pair by pair, and its interval over cases and, with two pairs or more, over runs.

    Pairs with the same test cases are scored on the same resamples. Raises ValueError for lists of different lengths
    or none, for a pair that was not tested on the same cases, and what `scored` raises.
    """
    if len(ones) != len(others) or not ones:
        raise ValueError(f"{len(ones)} runs and {len(others)}: pairs are needed, one a seed")
    splits: dict[tuple[str, ...], int] = {}
    values, drawn = [], []
    for run, rival in zip(ones, others, strict=True):
        one, other = scored(run, metric), scored(rival, metric)
        if one.ids != other.ids:
            raise ValueError(f"{run.path.name} and {rival.path.name} were tested on different cases")
        stream = splits.setdefault(tuple(one.ids), len(splits))
        both = [resampled(s.statistic, one.patients, resamples=resamples, seed=stream) for s in (one, other)]
        values.append(both[0][0] - both[1][0])
        drawn.append(both[0][1] - both[1][1])
    error = float(np.nanstd(np.mean(drawn, 0)))
    return runs_and_cases(np.array(values), error=error)


def says(found: Interval, *, scale: float = 100.0, digits: int = 1) -> str:
    """A difference in words: itself with its interval, or "no difference" where the interval holds 0."""
    value, low, high = (scale * float(x) for x in found)
    if not low * high > 0:
        return "no difference"
    return f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def scored(run: Run, metric: str) -> Scored:
    """A test metric of a run as a function of how often each case is drawn, from its predictions.

    Raises ValueError for a metric that cannot be scored anew, listing those that can, DamagedRun without results.
    """
    with np.load(run.path / "predictions.npz") as file:
        kept = dict(file)
    kind = run.plan(Transfer).row.task
    statistic = _STATISTICS[kind](kept, tune.results(run)["start"]["options"], metric)
    if statistic is None:
        raise ValueError(f"{run.path.name}: no difference is made of {metric!r}, but of {_ABLE[kind]}")
    return Scored(kept["ids"].tolist(), kept["patients"].tolist(), statistic)


def _labels(kept: Mapping[str, np.ndarray], options: Mapping[str, Any], metric: str) -> Statistic | None:
    """AUROC of one label or class or over all that have one; accuracy of classes."""
    scores, true, names = kept["predictions"], kept["targets"], list(options["names"])
    if options.get("exclusive"):
        right = (scores.argmax(1) == true[:, 0]).astype(float)
        if metric == "accuracy":
            return lambda w: (w @ right) / w.sum(1)
        true = true == np.arange(len(names))
    label = metric.removeprefix("auroc/")
    if label in names:
        return lambda w: auroc(scores[:, names.index(label)], true[:, names.index(label)], w)
    some = ~np.isnan(auroc(scores, true))
    return (lambda w: mean_of_defined(auroc(scores[:, some], true[:, some], w))) if metric == "auroc" else None


def _prompts(kept: Mapping[str, np.ndarray], options: Mapping[str, Any], metric: str) -> Statistic | None:
    """AUROC as of labels, under the first template, which is the one that is scored."""
    return _labels({**kept, "predictions": kept["predictions"][:, 0]}, options, metric)


def _masks(kept: Mapping[str, np.ndarray], options: Mapping[str, Any], metric: str) -> Statistic | None:
    """A metric of one class, or its mean over the classes that have one."""
    name, _, label = metric.partition("/")
    if name not in ("dice", "nsd", "hd95") or (label and label not in kept["classes"]):
        return None
    values = kept[name]
    values = values[:, kept["classes"] == label] if label else values[:, np.isfinite(values).any(0)]
    return lambda w: mean_of_defined(weighted_means(values, w))


def _reports(kept: Mapping[str, np.ndarray], options: Mapping[str, Any], metric: str) -> Statistic | None:
    """BLEU of the whole corpus."""
    orders = ("bleu1", "bleu2", "bleu3", "bleu4")
    if metric not in orders:
        return None
    counts = bleu_counts(kept["predictions"].tolist(), kept["targets"].tolist()).astype(float)
    return lambda w: bleu_of(w @ counts)[:, orders.index(metric)]


def _found(kept: Mapping[str, np.ndarray], options: Mapping[str, Any], metric: str) -> Statistic | None:
    """recall@k or MRR; the queries are drawn, the gallery stays as it is."""
    texts, volumes = np.moveaxis(kept["predictions"], 1, 0)
    ways = {"report_to_volume": (texts, volumes), "volume_to_report": (volumes, texts)}
    way, _, name = metric.partition("/")
    if way not in ways or not (name == "mrr" or name.startswith("recall@")):
        return None
    place = ranks(*ways[way])
    each = place.reciprocal if name == "mrr" else place.recall_at(int(name.removeprefix("recall@"))).astype(float)
    return lambda w: (w @ each) / w.sum(1)


_STATISTICS = {"classify": _labels, "align": _prompts, "segment": _masks, "generate": _reports, "retrieve": _found}
_ABLE = {
    "classify": "auroc, auroc/<label>, accuracy of classes",
    "align": "auroc, auroc/<label>",
    "segment": "dice, nsd, hd95 and <metric>/<class>",
    "generate": "bleu1 to bleu4",
    "retrieve": "report_to_volume/recall@k, report_to_volume/mrr and the reverse",
}
