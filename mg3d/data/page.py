"""The page that an audit prints: fixed width, about 40 lines, whatever the size of the corpus."""

from typing import TYPE_CHECKING

import numpy as np

from mg3d.data.listing import few

if TYPE_CHECKING:
    from mg3d.data.audit import Audit, Volumes

BARS = " ▁▂▃▄▅▆▇█"
SPREAD = "smallest / 5 % / median / 95 % / largest"


def page(audit: "Audit") -> str:
    """The whole page."""
    lines = [*_counts(audit), *_reports(audit), *_labels(audit)]
    lines += _volumes(audit.volumes) if audit.volumes else ["", "VOLUMES  not prepared yet"]
    return "\n".join([*lines, *_quarantine(audit)])


def _counts(audit: "Audit") -> list[str]:
    rows = [("split", "volumes", "patients")]
    rows += [(name, f"{n:,}", f"{audit.patients_of[name]:,}") for name, n in audit.volumes_of.items()]
    rows += [("all", f"{sum(audit.volumes_of.values()):,}", f"{sum(audit.patients_of.values()):,}")]
    return ["CASES", *(f"  {a:<12}{b:>10}{c:>10}" for a, b, c in rows), "  no patient is in two splits"]


def _reports(audit: "Audit") -> list[str]:
    lines = [
        "",
        f"REPORTS  ({SPREAD})",
        f"  sentences     {audit.sentences}",
        f"  words         {audit.words}",
        f"  same text     {audit.texts}",
        f"  alike         {audit.alike}  (but for case, spaces, punctuation)",
    ]
    if audit.dropped:
        lost, reports, all_ = audit.dropped
        share = 100 * lost / max(1, all_)
        lines.append(
            f"  left out      {lost:,} of {all_:,} sentences ({share:.1f} %), of {reports:,} reports, by max_words = "
            f"{audit.max_words}"
        )
    return lines


def _labels(audit: "Audit") -> list[str]:
    if not audit.positive:
        return []
    cells = [f"{name[:34]:<35}{100 * share:5.1f}" for name, share in audit.positive.items()]
    half = (len(cells) + 1) // 2
    pairs = zip(cells, [*cells[half:], ""], strict=False)
    return ["", "LABELS  (% positive)", *(f"  {a}    {b}".rstrip() for a, b in list(pairs)[:half])]


def _volumes(found: "Volumes") -> list[str]:
    low, high = found.window_hu
    shapes = [f"{'x'.join(map(str, shape))} ({n:,})" for shape, n in list(found.shapes.items())[:4]]
    more = len(found.shapes) - 4
    lines = ["", f"VOLUMES  {found.number:,} prepared  ({SPREAD})"]
    for axis, spacing, size in zip("DHW", found.spacing_mm, found.size_mm, strict=True):
        lines.append(f"  {axis}  spacing     {spacing} mm;  extent {size} mm")
    return [
        *lines,
        f"  source shapes {', '.join(shapes)}" + (f" and {more:,} more" if more > 0 else ""),
        f"  HU taken from {', '.join(f'{name} ({n:,})' for name, n in found.hu_from.items())}",
        f"  mean HU       {found.mean_hu}",
        f"  HU histogram  {low:g} |{bars(found.histogram)}| {high:g}",
        f"  same voxels   {found.copies}",
        f"  odd mean HU   {few(found.odd) if found.odd else 'none'}",
    ]


def _quarantine(audit: "Audit") -> list[str]:
    total = sum(map(len, audit.problems.values()))
    lines = [
        f"  {reason:<20}{len(ids):>6,}  {few(ids[:3])}{' ...' if len(ids) > 3 else ''}"
        for reason, ids in audit.problems.items()
    ]
    return ["", f"QUARANTINE  {total:,}" + ("" if total else "  (empty)"), *lines]


def bars(shares: np.ndarray) -> str:
    """A row of bars, one a bin, as high as the square root of its share, so that rare values show."""
    height = np.sqrt(shares / shares.max())
    return "".join(BARS[i] for i in np.ceil(height * (len(BARS) - 1)).astype(int))
