"""A generated report against its reference, sentence by sentence, with the words marked.

    ReportDiff(generated, reference)      in a notebook: a table; elsewhere the static picture
    ReportDiff(...).rows                  the pairs of sentences, and how much of each pair is the same

Sentences are paired so that their words agree most (Hungarian method on difflib's ratio); what agrees less than `LEAST`
is no pair. In a pair, words of the reference that were not written are missing, words that are not in the reference are
added. Words are compared without case and punctuation. This shows differences of wording, not of meaning.
"""

import difflib
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, final

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from scipy.optimize import linear_sum_assignment

from widgets.figures import FAINT, INK, STYLE, Picture, _picture

LEAST = 0.3  # of difflib's ratio: below it two sentences are not about the same
_COLOURS = {"same": INK, "missing": "#8a7d00", "added": "#D55E00"}
_CSS = {
    "same": "",
    "missing": "background:#F0E442;text-decoration:underline dashed",  # marked by more than colour
    "added": "color:#D55E00;font-weight:bold;text-decoration:underline",
}
_LETTERS, _SIZE = 58, 8.5  # of a line of a side; points
_WIDE = 0.602 * _SIZE / 72  # inches of a letter of DejaVu Sans Mono
_HIGH = 1.45 * _SIZE / 72

Words = list[tuple[str, str]]  # a word, and whether it is "same", "missing" or "added"


@final
class ReportDiff:
    """Two reports, each a text or a list of sentences; left the reference, right what was generated.

    Raises ValueError for a reference without words.
    """

    def __init__(self, generated: str | Sequence[str], reference: str | Sequence[str], *, title: str = "") -> None:
        written, meant = sentences(generated), sentences(reference)
        if not meant:
            raise ValueError("reference: it has no sentence to compare with")
        self.title = title
        self.pairs = _pairs(written, meant)
        self._marked = [_marked(text, other) for text, other in self.pairs]

    @property
    def rows(self) -> pd.DataFrame:
        """`reference`, `generated` (empty where there is none) and `same`, difflib's ratio of their words."""
        table = [{"reference": a, "generated": b, "same": _ratio(_words(a), _words(b))} for a, b in self.pairs]
        return pd.DataFrame(table)

    @property
    def summary(self) -> str:
        """How many words of the reference were written, and how many were added."""
        kinds = [kind for left, _ in self._marked for _, kind in left]
        added = sum(kind == "added" for _, right in self._marked for _, kind in right)
        same = kinds.count("same")
        alone = sum(not b for _, b in self.pairs), sum(not a for a, _ in self.pairs)
        said = f"{same} of {len(kinds)} words of the reference written, {added} added"
        return f"{said}; sentences without a partner: {alone[0]} of the reference, {alone[1]} of the generated"

    def html(self) -> str:
        """A table, a row a pair of sentences; words marked by colour and by line."""
        cell = "<td style='text-align:left;vertical-align:top;width:50%;white-space:normal'>"
        body = "".join(f"<tr>{cell}{_html(left)}</td>{cell}{_html(right)}</td></tr>" for left, right in self._marked)
        key = " ".join(f"<span style='{_CSS[kind]}'>{kind}</span>" for kind in ("missing", "added"))
        head = f"<p><b>{escape(self.title)}</b> {escape(self.summary)} &nbsp; {key}</p>"
        names = "".join(f"<th style='text-align:left'>{name}</th>" for name in ("reference", "generated"))
        return f"{head}<table style='width:100%'><tr>{names}</tr>{body}</table>"

    def _repr_mimebundle_(self, **_kwargs: Any) -> dict[str, Any]:
        return {"text/html": self.html(), "image/png": self.figure().png()}

    @mpl.rc_context(STYLE)
    def figure(self) -> Picture:
        """The same as a static picture: missing words underlined on the left, added ones bold on the right."""
        lines = [(_lines(left), _lines(right)) for left, right in self._marked]
        count = sum(max(len(left), len(right)) + 0.5 for left, right in lines)
        width, high = 2 * (_LETTERS + 2) * _WIDE + 0.3, count * _HIGH + 0.85
        figure = _picture(width, high)
        figure.text(0.1 / width, 1 - 0.1 / high, self.title, va="top", size=11, weight="bold", parse_math=False)
        figure.text(0.1 / width, 1 - 0.33 / high, self.summary, va="top", size=8.5, color=INK)
        starts = (0.1, 0.2 + (_LETTERS + 2) * _WIDE)
        for x, name in zip(starts, ("reference (missing words)", "generated (added words)"), strict=True):
            figure.text(x / width, 1 - 0.55 / high, name, va="top", size=8.5, weight="bold", color=FAINT)
        y = 0.78
        for pair in lines:
            for x, side in zip(starts, pair, strict=True):
                for number, line in enumerate(side):
                    _write(figure, line, x=x, y=y + number * _HIGH, size=(width, high))
            y += (max(map(len, pair)) + 0.5) * _HIGH
        figure.alt = f"{self.title or 'Reports'}: {self.summary}"
        return figure

    def save(self, path: Path | str) -> None:
        """Write the table as .html, or `figure()` as .png or .svg."""
        if Path(path).suffix == ".html":
            Path(path).write_text(f"<!doctype html><meta charset='utf-8'>{self.html()}")
        else:
            self.figure().save(path)


def sentences(report: str | Sequence[str]) -> list[str]:
    """The sentences of a text, cut behind a full stop that a blank follows; of a list, those that have words."""
    parts = re.split(r"(?<=[.!?])\s+", report) if isinstance(report, str) else report
    return [part.strip() for part in parts if _words(part)]


def _words(text: str) -> list[str]:
    return [word for word in (re.sub(r"^\W+|\W+$", "", piece).lower() for piece in text.split()) if word]


def _ratio(one: list[str], other: list[str]) -> float:
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()


def _pairs(written: Sequence[str], meant: Sequence[str]) -> list[tuple[str, str]]:
    """Reference and generated sentence, "" for none; in the reference's order, then what has no partner there."""
    words = [_words(text) for text in written]
    alike = np.array([[_ratio(_words(text), other) for other in words] for text in meant]).reshape(len(meant), -1)
    chosen = {int(i): int(j) for i, j in zip(*linear_sum_assignment(-alike), strict=True) if alike[i, j] >= LEAST}
    found = [(text, written[chosen[i]] if i in chosen else "") for i, text in enumerate(meant)]
    return found + [("", text) for j, text in enumerate(written) if j not in chosen.values()]


def _marked(reference: str, generated: str) -> tuple[Words, Words]:
    """The words of both sentences as they stand, each with what it is."""
    left, right = reference.split(), generated.split()
    plain = [["".join(_words(word)) for word in side] for side in (left, right)]
    kinds = ["missing"] * len(left), ["added"] * len(right)
    for a, b, size in difflib.SequenceMatcher(None, *plain, autojunk=False).get_matching_blocks():
        kinds[0][a : a + size], kinds[1][b : b + size] = ["same"] * size, ["same"] * size
    return list(zip(left, kinds[0], strict=True)), list(zip(right, kinds[1], strict=True))


def _html(words: Words) -> str:
    return " ".join(f"<span style='{_CSS[kind]}'>{escape(word)}</span>" for word, kind in words)


def _lines(words: Words) -> list[Words]:
    """Words in lines of at most _LETTERS letters; a longer word is cut."""
    lines: list[Words] = [[]]
    for word, kind in words:
        if lines[-1] and sum(len(w) + 1 for w, _ in lines[-1]) + len(word) > _LETTERS:
            lines.append([])
        lines[-1].append((word[:_LETTERS], kind))
    return lines


def _write(figure: Picture, line: Words, *, x: float, y: float, size: tuple[float, float]) -> None:
    """A line of marked words, its upper left corner at x, y inches from that of the figure."""
    wide, high = size
    for word, kind in line:
        style = {"color": _COLOURS[kind], "weight": "bold" if kind == "added" else "normal", "parse_math": False}
        figure.text(
            x / wide, 1 - (y + _HIGH * 0.68) / high, word, va="baseline", size=_SIZE, family="DejaVu Sans Mono", **style
        )
        if kind != "same":
            under = 1 - (y + _HIGH * 0.84) / high
            ends = [x / wide, (x + len(word) * _WIDE) / wide]
            dashes = "--" if kind == "missing" else "-"
            figure.add_artist(Line2D(ends, [under, under], color=_COLOURS[kind], lw=0.9, ls=dashes))
        x += (len(word) + 1) * _WIDE
