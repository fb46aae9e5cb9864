"""What a fine-tuned model says about the cases of a test split, drawn beside what is true.

    PICTURES[task](said, title="...")

`said` maps names to arrays; each function says which it takes. Green is right, red wrong, yellow missing, as in the
paper's figures, from a palette for every kind of colour vision.
"""

from collections.abc import Callable, Mapping
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from widgets.figures import FAINT, INK, PALETTE, STYLE, Picture, _curve, _grid, _picture
from widgets.geometry import PLANES, Slice, cut
from widgets.panels import LIGHT, caption, draw, named, panels, size_mm
from widgets.slices import _point

RIGHT, WRONG, MISSING = "#009E73", "#D55E00", "#F0E442"
FEW = 4  # labels up to which the scores of single cases are drawn below the curves
LINE = 66  # letters of a line of a report
SPREAD = 0.618  # of a row of dots, so that equal scores stay apart

Said = Mapping[str, Any]


@mpl.rc_context(STYLE)
def training(metrics: pd.DataFrame, *, metric: str, title: str = "") -> Picture:
    """A panel a training loss, and one with the validation scores, of which the best (the earliest of equals) is the
    checkpoint that was tested.

    `metrics` has a row a step: `step`, losses, and `valid_<metric>` where it was validated. A table without rows, of a
    study that trains nothing, gives a picture that says so.
    """
    if metrics.empty:
        figure = _picture(7.2, 0.6)
        figure.alt = "No step was taken: the encoder is tested as it came."
        figure.text(0.01, 0.5, figure.alt, color=INK, size=11, va="center")
        return figure
    known = ("step", "loss", "lr", "lr_fusion", "seconds", "norm", "rank")
    losses = [c for c in metrics.columns if c not in known and not c.startswith("valid_")]
    valid = metrics[["step", f"valid_{metric}"]].dropna().to_numpy()
    best = valid[valid[:, 1].argmax()]
    figure, axes = _grid(len(losses) + 1, width=3.3, height=2.3)
    for axis, name in zip(axes, losses, strict=False):
        _curve(axis, metrics["step"].to_numpy(), metrics[name].to_numpy(float), PALETTE[0], smooth=True)
        axis.set_title(f"training: {name}")
    axes[-1].plot(*valid.T, "o-", ms=3.5, lw=1.2, color=PALETTE[1])
    axes[-1].plot(*best, "*", ms=13, color=INK, mfc=MISSING, zorder=3)
    axes[-1].set_title(f"validation: {metric}")
    figure.supxlabel(f"optimiser step; the star is what was tested{' on ' * bool(title)}{title}", fontsize=10)
    figure.alt = (
        f"Training over {len(metrics)} steps; validation {metric} is best, {best[1]:.3f}, at step {best[0]:.0f}"
    )
    return figure


@mpl.rc_context(STYLE)
def classes(said: Said, *, title: str = "") -> Picture:
    """A ROC curve for each label or class; for a few of them, below, each case by its score.

    `predictions` [n, L], or [n, T, L] of which the first T is drawn; `targets` [n, L], 0 or 1, or [n, 1], the number of
    the class; `names` [L]. A label that all or none of the cases have is drawn without a curve.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    names, scores = list(said["names"]), np.asarray(said["predictions"], float)
    scores = scores[:, 0] if scores.ndim == 3 else scores
    true = np.asarray(said["targets"]).astype(int)
    true = true == np.arange(len(names)) if true.shape != scores.shape else true == 1
    few = len(names) <= FEW
    columns = len(names) if few else 6
    figure, axes = _grid(
        len(names) * (1 + few),
        width=3.0 if few else 1.75,
        height=2.6 if few else 1.9,
        columns=columns,
        title=title,
    )
    spoken = []
    for axis, name, score, here in zip(axes, names, scores.T, true.T, strict=False):
        axis.plot([0, 1], [0, 1], ls="--", lw=1, color=FAINT)
        there = f"{here.sum()} of {len(here)}"
        if 0 < here.sum() < len(here):
            axis.plot(*roc_curve(here, score, drop_intermediate=False)[:2], color=PALETTE[0], lw=1.8)
            there = f"AUROC {roc_auc_score(here, score):.2f}\n{there}"
        spoken.append(f"{name} {there}".replace("\n", ", "))
        clear = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
        axis.text(
            0.98, 0.04, there, ha="right", va="bottom", size=9 if few else 8, transform=axis.transAxes, bbox=clear
        )
        axis.set_title(fill(name, 30 if few else 20), fontsize=11 if few else 8.5)
        axis.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], aspect="equal")
        axis.tick_params(labelsize=8)
        if not few:
            axis.label_outer()
    for axis, score, here in zip(axes[len(names) :], scores.T, true.T, strict=False):
        _dots(axis, score, here)
    figure.supxlabel("cases without it that are called, share" if not few else "", fontsize=9)
    figure.supylabel("cases with it that are called, share" if not few else "", fontsize=9)
    if few:
        axes[0].set_ylabel("found, share of those with it")
        axes[0].set_xlabel("false alarms, share of those without", fontsize=9)
        axes[len(names)].set_xlabel("score: dots are cases, the line the median", fontsize=9)
    figure.alt = f"{title}: " + "; ".join(spoken)
    return figure


def _dots(axis: Axes, score: np.ndarray, here: np.ndarray) -> None:
    """Each case by its score, those with the label above those without it."""
    for row, kind in enumerate((~here, here)):
        some = np.sort(score[kind])
        y = row + 0.5 * ((np.arange(len(some)) * SPREAD) % 1 - 0.5)
        axis.plot(some, y, "o", ms=4.5, alpha=0.7, mew=0, color=PALETTE[1] if row else FAINT)
        if len(some):
            axis.plot([np.median(some)] * 2, [row - 0.36, row + 0.36], color=INK, lw=1.6)
    axis.set(yticks=[0, 1], yticklabels=["without", "with it"], ylim=(-0.6, 1.6))
    axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.grid(axis="y", visible=False)


@mpl.rc_context(STYLE)
def masks(said: Said, *, title: str = "") -> Picture:
    """Three planes of a volume, plain and, below, with what is right, wrong and missing; true borders are white.

    `volume` [D, H, W] and `affine` as in `slices`; `predicted` and `true` of the same shape: numbers of classes, 0 the
    background; `window` (width, level) of the greys. A voxel of a structure that is called another one is wrong. The
    planes meet in the middle of what is true, or of what is predicted where nothing is. It is the `middle` case of
    `ids` [n] by their `dice` [n, K].
    """
    case = middle(said["dice"])
    title += f"; {said['ids'][case]}: Dice {np.nanmean(said['dice'][case]):.2f}, the median case of {len(said['ids'])}"
    volume, affine = np.asarray(said["volume"]), np.asarray(said["affine"])
    predicted, true = (np.asarray(said[name]).astype(int) for name in ("predicted", "true"))
    at = _point(volume, affine, None, None, true > 0 if true.any() else predicted > 0)
    cuts = [cut(volume, affine, plane=plane, at=at) for plane in PLANES]
    width, level = map(float, said["window"])
    window = (width, level)
    figure, axes = panels([size_mm(one) for one in cuts * 2], columns=3, height=2.9, title=title)
    verdict = np.select([(predicted == true) & (true > 0), predicted > 0, true > 0], [1, 2, 3])
    colours = np.array([to_rgba(c, 0.7 * (c != "none")) for c in ("none", RIGHT, WRONG, MISSING)])
    for number, (axis, one) in enumerate(zip(axes, cuts * 2, strict=True)):
        draw(axis, one, window, bar=number == 0)
        if number >= len(cuts):
            found = cut(verdict.astype(np.float32), affine, plane=one.plane, at=at, order=0).pixels
            axis.imshow(colours[np.nan_to_num(found).astype(int)], extent=one.extent_mm, interpolation="nearest")
            for structure in np.unique(true[true > 0]):
                _border(axis, cut((true == structure).astype(np.float32), affine, plane=one.plane, at=at, order=0))
    caption(figure, window)
    handles = [Patch(color=c, label=n) for c, n in ((RIGHT, "right"), (WRONG, "wrong"), (MISSING, "missing"))]
    figure.legend(handles=handles, loc="lower center", ncols=3, labelcolor=LIGHT, fontsize=9, borderaxespad=0.1)
    right, wrong, missing = np.bincount(verdict.ravel(), minlength=4)[1:]
    figure.alt = f"{title}, {named(window)}: {right} voxels right, {wrong} wrong, {missing} missing"
    return figure


def _border(axis: Axes, one: Slice) -> None:
    """The border of a mask in a slice, along the edges of its pixels."""
    inside = np.pad(np.nan_to_num(one.pixels), 1).repeat(4, 0).repeat(4, 1)
    if inside.max() <= 0.5:
        return
    left, right, bottom, top = one.extent_mm
    rows, columns = one.pixels.shape
    x = left + (right - left) * ((np.arange(inside.shape[1]) + 0.5) / 4 - 1) / columns
    y = top + (bottom - top) * ((np.arange(inside.shape[0]) + 0.5) / 4 - 1) / rows
    axis.contour(x, y, inside, levels=[0.5], colors=[LIGHT], linewidths=0.9)


def middle(scores: np.ndarray) -> int:
    """The place of the median case: the lower one of two, NaN apart. Scores [n], or [n, K], whose mean over K counts.

    Raises ValueError where no case has a score.
    """
    scores = np.asarray(scores, float).reshape(len(scores), -1)
    known = ~np.isnan(scores)
    each = np.where(known, scores, 0).sum(1) / np.maximum(known.sum(1), 1)
    order = [i for i in np.argsort(each, kind="stable") if known[i].any()]
    if not order:
        raise ValueError("no case has a score: there is no middle one")
    return int(order[(len(order) - 1) // 2])


@mpl.rc_context(STYLE)
def reports(said: Said, *, title: str = "") -> Picture:
    """The written report of the median case beside the true one, and which findings both name, or one alone.

    `predictions` and `targets`, n texts each; `says` and `there` [n, L], the findings that these name; `names` [L];
    `ids` [n]. Cases are ordered by the F1 of their findings; where neither names any, it is 1.
    """
    says, there, names = np.asarray(said["says"], bool), np.asarray(said["there"], bool), np.asarray(said["names"])
    total = says.sum(1) + there.sum(1)
    score = np.where(total > 0, 2 * (says & there).sum(1) / np.maximum(total, 1), 1.0)
    case = middle(score)
    texts = [fill(str(said[side][case]), LINE) for side in ("predictions", "targets")]
    high = 0.165 * max(text.count("\n") + 1 for text in texts) + 1.75
    figure = _picture(10.0, high)
    head = f"{said['ids'][case]}: finding F1 {score[case]:.2f}, the median case of {len(score)}"
    figure.text(0.01, 1 - 0.1 / high, f"{title}\n{head}", va="top", size=11, weight="bold")
    for x, name, text in zip((0.01, 0.51), ("written", "reference"), texts, strict=True):
        figure.text(x, 1 - 0.6 / high, name, va="top", size=10, weight="bold", color=PALETTE[0])
        figure.text(x, 1 - 0.82 / high, text, va="top", size=9, linespacing=1.25, parse_math=False)
    sides = {
        "named by both": (says[case] & there[case], RIGHT),
        "only written": (says[case] & ~there[case], WRONG),
        "only in the reference": (there[case] & ~says[case], "#8a7d00"),
    }
    lines = []
    for row, (name, (which, colour)) in enumerate(sides.items()):
        lines.append(f"{name}: {', '.join(names[which]) or 'nothing'}")
        figure.text(0.01, (0.56 - 0.2 * row) / high, lines[-1], size=9.5, color=colour, weight="bold")
    figure.alt = f"{title}: {head}; " + "; ".join(lines)
    return figure


@mpl.rc_context(STYLE)
def recalls(said: Said, *, title: str = "") -> Picture:
    """Bars of recall@k with their intervals, both ways, each against chance.

    `scores` maps "report_to_volume/recall@5" and the like (and "chance/recall@5") to `value`, perhaps `low` and `high`.
    """
    scores, ways = said["scores"], ("report_to_volume", "volume_to_report")
    ks = [name.split("@")[1] for name in scores if name.startswith(f"{ways[0]}/recall@")]
    figure = _picture(7.2, 3.0, title)
    axis = figure.add_subplot()
    place = np.arange(len(ks))
    for number, way in enumerate(ways):
        lines = [scores[f"{way}/recall@{k}"] for k in ks]
        value = np.array([line["value"] for line in lines])
        reach = [value - [line.get("low", line["value"]) for line in lines],
                 [line.get("high", line["value"]) for line in lines] - value]  # fmt: skip
        axis.bar(place + 0.38 * (number - 0.5), 100 * value, 0.36, color=PALETTE[number], label=way.replace("_", " "))
        axis.errorbar(
            place + 0.38 * (number - 0.5), 100 * value, 100 * np.clip(reach, 0, None), fmt="none", color=INK, lw=1.2
        )
    chance = [100 * scores[f"chance/recall@{k}"]["value"] for k in ks]
    axis.hlines(chance, place - 0.42, place + 0.42, color=INK, ls="--", lw=1.4, label="chance")
    axis.set_xticks(place, [f"recall@{k}" for k in ks])
    axis.set(ylabel="found, %", ylim=(0, None))
    axis.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=3)
    said_of = (
        f"recall@{k} {100 * scores[f'{ways[0]}/recall@{k}']['value']:.0f} % (chance {c:.0f} %)"
        for k, c in zip(ks, chance, strict=True)
    )
    figure.alt = f"{title}, report to volume: " + ", ".join(said_of)
    return figure


PICTURES: dict[str, Callable[..., Picture]] = {  # by the task that a study is
    "classify": classes,
    "align": classes,
    "segment": masks,
    "generate": reports,
    "retrieve": recalls,
}
