"""What do a run's frozen features know? A linear probe for the labels, and retrieval between reports and volumes.

    rows = probe(run)                       AUROC of each label on the test split, pre-trained and untrained encoder
    rows = probe(run, share=0.1)            with a tenth of the training volumes
    line = retrieve(run)                    recall@k of reports for volumes and the reverse, beside chance

The probe is logistic regression on standardised pooled features of the encoder; the strength of its penalty is that of
the best macro AUROC on the validation split. The same probe on the untrained encoder says what the architecture gives
for nothing. In retrieval, cases with the same set of findings count as equally right: their reports differ in wording.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from mg3d import train
from mg3d.maps import opened, shown
from mg3d.metrics import auroc, macro_interval, retrieval
from mg3d.runs import Run
from mg3d.types import Case

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression: from strong to weak

Rows = list[dict[str, Any]]


class Features(NamedTuple):
    """Of n cases, in order."""

    pooled: Float[np.ndarray, "n F"]  # of the encoder: what a linear head sees
    volume: Float[np.ndarray, "n E"]  # F_I, empty where the method embeds no reports
    text: Float[np.ndarray, "n E"]  # F_T


def features(run: Run | Path | str, cases: Sequence[Case], *, untrained: bool = False) -> Features:
    """Frozen features of a run for cases of its corpus, prepared as for training; raises what `maps.attend` raises."""
    model, _, _, batches = shown(opened(run), cases, untrained=untrained)
    embed = getattr(model, "embed", None)
    rows: list[list[np.ndarray]] = []
    with torch.no_grad():
        for batch in batches:
            pooled = model.encoder(batch.volume).pooled.float()
            both = embed(batch) if embed else (pooled[:, :0], pooled[:, :0])
            rows.append([x.cpu().numpy() for x in (pooled, *both)])
    return Features(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))


def probe(run: Run | Path | str, *, share: float = 1.0, volumes: int = 0) -> Rows:
    """One row a label and encoder ("pretrained", "untrained"), and one for their macro mean with its interval.

    A row has run, seed, encoder, share, label, auroc; the macro row low and high too (95 % over test cases). `share` of
    the training volumes, chosen as scales choose them; `volumes` test cases, 0 for all. Raises ValueError for a corpus
    without labels, and for a share that leaves a label without both classes in training.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: a share of the training volumes is above 0, and 1 at most")
    found = opened(run)
    splits = _splits(found)
    splits["train"] = train.choose(splits["train"], volumes=max(1, round(share * len(splits["train"]))))
    splits["test"] = train.choose(splits["test"], volumes=volumes)
    names, labels = _labels(splits)
    rows: Rows = []
    for encoder in ("pretrained", "untrained"):
        everyone = [case for cases in splits.values() for case in cases]
        pooled = features(found, everyone, untrained=encoder == "untrained").pooled
        ends = np.cumsum([len(cases) for cases in splits.values()])[:-1]
        x = dict(zip(splits, np.split(pooled, ends), strict=True))
        scores = linear(x["train"], labels["train"], x["valid"], labels["valid"], x["test"])
        head = {"run": found.path.name, "seed": found.recipe.seed, "encoder": encoder, "share": share}
        for name, value in zip(names, auroc(scores, labels["test"]), strict=True):
            rows.append({**head, "label": name, "auroc": float(value)})
        mean = macro_interval(auroc, scores, labels["test"], names=names)
        rows.append({**head, "label": "macro", "auroc": mean.value, "low": mean.low, "high": mean.high})
    return rows


def linear(
    x: Float[np.ndarray, "n F"],
    y: Int[np.ndarray, "n L"],
    x_valid: Float[np.ndarray, "v F"],
    y_valid: Int[np.ndarray, "v L"],
    x_test: Float[np.ndarray, "t F"],
) -> Float[np.ndarray, "t L"]:
    """Scores of one logistic regression a label on standardised features, penalty by macro AUROC on the validation."""
    from sklearn.linear_model import LogisticRegression

    mean, deviation = x.mean(0), x.std(0) + 1e-6
    x, x_valid, x_test = ((part - mean) / deviation for part in (x, x_valid, x_test))
    best, chosen = -1.0, np.zeros((len(x_test), y.shape[1]))
    for c in PENALTIES:
        models = [LogisticRegression(C=c, max_iter=2000).fit(x, column) for column in y.T]
        area = float(np.nanmean(auroc(_scores(models, x_valid), y_valid)))
        if area > best:
            best, chosen = area, _scores(models, x_test)
    return chosen


def _scores(models: Sequence[Any], x: np.ndarray) -> np.ndarray:
    return np.stack([model.decision_function(x) for model in models], 1)


def retrieve(run: Run | Path | str, *, split: str = "test", untrained: bool = False) -> dict[str, Any]:
    """Retrieval on a split by cosine of F_I and F_T: `report_to_volume/recall@5`, `volume_to_report/...`, `chance/...`.

    Raises ValueError where the method has no feature of a whole report.
    """
    found = opened(run)
    cases = _splits(found)[split]
    x = features(found, cases, untrained=untrained)
    if not x.volume.size:
        raise ValueError(f"run {found.path.name}: its method embeds no reports, so that nothing can be retrieved")
    line = retrieval(x.text, x.volume, groups=_groups(cases))
    return {"run": found.path.name, "seed": found.recipe.seed, "untrained": untrained, "cases": len(cases), **line}


def _groups(cases: Sequence[Case]) -> Int[np.ndarray, " n"]:
    """Equal numbers for cases with the same set of findings; without labels each case is its own."""
    keys = [tuple(sorted(case.labels.items())) or case.id for case in cases]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys])


def _splits(run: Run) -> dict[str, list[Case]]:
    """The cases of a run's cohort, by split."""
    entries = train.cohort(run.recipe, tested=True, progress=False).prepared.entries
    return {split: [e.case for e in entries if e.case.split == split] for split in ("train", "valid", "test")}


def _labels(splits: dict[str, list[Case]]) -> tuple[list[str], dict[str, Int[np.ndarray, "n L"]]]:
    """The names of the labels, and each split's as a table. Raises ValueError for what a probe cannot learn."""
    names = sorted({name for cases in splits.values() for case in cases for name in case.labels})
    if not names:
        raise ValueError("this corpus has no labels: a probe needs a table of them (CT-RATE and the phantom have one)")
    for case in (case for cases in splits.values() for case in cases):
        if missing := [n for n in names if n not in case.labels]:
            raise ValueError(f"case {case.id}: label {missing[0]!r} is missing, which others have; complete the table")
    table = {s: np.array([[case.labels[n] for n in names] for case in cases]) for s, cases in splits.items()}
    constant = [n for n, column in zip(names, table["train"].T, strict=True) if len(set(column.tolist())) < 2]
    if constant:
        raise ValueError(
            f"{len(table['train'])} training volumes have one class of {', '.join(constant)}: take a larger share"
        )
    return names, table
