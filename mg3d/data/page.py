"""The page that an audit prints: about 50 lines of at most 112 characters, whatever the size of the corpus."""

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np

from mg3d.data.listing import few
from mg3d.data.reading import REASONS

if TYPE_CHECKING:
    from mg3d.data.audit import Audit, Copies, Spread, Volumes

BARS = " ▁▂▃▄▅▆▇█"
WIDTH = 112
SHOWN = 3  # groups of copies, and ids of a group
QUANTILES = "".join(f"{name:>10}" for name in ("smallest", "5 %", "median", "95 %", "largest"))


def page(audit: "Audit") -> str:
    """The whole page."""
    lines = [*_counts(audit), *_reports(audit), *_labels(audit)]
    lines += _volumes(audit.volumes) if audit.volumes else ["", "VOLUMES  not prepared yet"]
    return "\n".join([*lines, *_quarantine(audit)])


def _counts(audit: "Audit") -> list[str]:
    columns = {"listed": audit.volumes_of, "patients": audit.patients_of}
    if audit.prepared_of is not None:
        columns["prepared"] = audit.prepared_of
    rows = [[name, *(found.get(name, 0) for found in columns.values())] for name in audit.volumes_of]
    rows.append(["all", *(sum(found.values()) for found in columns.values())])
    return [
        f"{'CASES':<16}" + "".join(f"{name:>10}" for name in columns),
        *(f"  {name:<14}" + "".join(f"{n:>10,}" for n in numbers) for name, *numbers in rows),
        "  No patient is in two splits.",
    ]


def _reports(audit: "Audit") -> list[str]:
    lines = [
        "",
        f"{'REPORTS':<16}{QUANTILES}",
        _spread("sentences", audit.sentences),
        _spread("words", audit.words),
        *_item("same text", _copies(audit.texts)),
        *_item("alike", f"(but for case, spaces and punctuation) {_copies(audit.alike)}"),
    ]
    if audit.dropped:
        lost, reports, total = audit.dropped
        share = 100 * lost / max(1, total)
        which = f"{lost:,} of {total:,} sentences ({share:.1f} %), of {reports:,} reports"
        lines += _item("left out", f"{which}, because of max_words = {audit.max_words}")
    return lines


def _labels(audit: "Audit") -> list[str]:
    if not audit.positive:
        return []
    cells = [f"{name[:34]:<35}{100 * share:5.1f}" for name, share in audit.positive.items()]
    half = (len(cells) + 1) // 2
    rows = zip(cells[:half], [*cells[half:], ""], strict=False)
    return ["", "LABELS  % positive", *(f"  {left}      {right}".rstrip() for left, right in rows)]


def _volumes(found: "Volumes") -> list[str]:
    low, high = found.window_hu
    shapes = [f"{'x'.join(map(str, shape))} ({n:,})" for shape, n in found.shapes.items()]
    axes = ("D feet-head", "H front-back", "W right-left")
    return [
        "",
        f"{'VOLUMES':<16}{QUANTILES}   of {found.number:,}",
        *(_spread(axis, spread, "mm spacing") for axis, spread in zip(axes, found.spacing_mm, strict=True)),
        *(_spread(axis, spread, "mm extent") for axis, spread in zip(axes, found.size_mm, strict=True)),
        _spread("mean HU", found.mean_hu, "after the crop"),
        f"  {'HU':<14}{low:g} |{bars(found.histogram)}| {high:g}",
        *_item("source grids", ", ".join(shapes[:4]) + (f" and {len(shapes) - 4:,} more" if len(shapes) > 4 else "")),
        *_item("HU taken from", ", ".join(f"{name} ({n:,})" for name, n in found.hu_from.items())),
        *_item("same voxels", _copies(found.copies)),
        *_item("odd mean HU", few(found.odd) if found.odd else "none"),
    ]


def _quarantine(audit: "Audit") -> list[str]:
    total = sum(map(len, audit.problems.values()))
    lines = ["", f"{'QUARANTINE':<16}{total:>10,}"]
    for reason, ids in audit.problems.items():
        shown = ", ".join(ids[:SHOWN]) + (" ..." if len(ids) > SHOWN else "")
        lines += _item(reason, f"{len(ids):>10,}   {REASONS.get(reason, 'see quarantine.csv')}: {shown}")
    return lines


def _item(name: str, text: str) -> list[str]:
    """A named line, wrapped to the width of the page."""
    indent = f"  {name:<13} "
    return wrap(indent + text, WIDTH, subsequent_indent=" " * 16, break_on_hyphens=False, replace_whitespace=False)


def _spread(name: str, spread: "Spread", unit: str = "") -> str:
    numbers = (spread.low, spread.p5, spread.median, spread.p95, spread.high)
    return f"  {name:<14}{''.join(f'{_short(x):>10}' for x in numbers)}   {unit}".rstrip()


def _short(x: float) -> str:
    """Three digits that count, or all of a whole number."""
    return f"{x:,.0f}" if abs(x) >= 100 or x == int(x) else f"{x:.3g}"


def _copies(found: "Copies") -> str:
    """How many cases have what another case has, and which of them lie in two splits."""
    if not found.groups:
        return "none"
    line = f"{sum(map(len, found.groups)):,} cases in {len(found.groups):,} groups"
    if not found.across:
        return f"{line}, none across splits"
    return f"{line}; ACROSS SPLITS {len(found.across):,}: {_first([_first(ids, ' = ') for ids in found.across], ', ')}"


def _first(names: Sequence[str], between: str) -> str:
    return between.join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])


def bars(shares: np.ndarray) -> str:
    """A row of bars, one a bin, as high as the square root of its share, so that rare values show."""
    height = np.sqrt(shares / shares.max())
    return "".join(BARS[i] for i in np.ceil(height * (len(BARS) - 1)).astype(int))
