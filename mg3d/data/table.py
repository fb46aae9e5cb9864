"""CSV tables, read strictly: UTF-8 or an error that names the byte, no value guessed, every fault with its line."""

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mg3d.data.listing import BadTable, few


@dataclass(frozen=True)
class Table:
    """A table as text: columns by name, blanks stripped from the ends of each cell, and the line each row starts at."""

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def __getitem__(self, name: str) -> list[str]:
        return self.columns[name]

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return len(self.lines)

    def filled(self, name: str) -> list[str]:
        """The column; raises BadTable, naming the lines, where it is blank."""
        blank = [line for value, line in zip(self[name], self.lines, strict=True) if not value]
        if blank:
            raise BadTable(self.path, f"no {name} in line {few(blank)}. Each row needs one.")
        return self[name]

    def unique(self, name: str) -> list[str]:
        """The column; raises BadTable, naming values and lines, where it is blank or a value comes twice."""
        values = self.filled(name)
        if len(set(values)) == len(values):
            return values
        twice = {value: [] for value, n in Counter(values).items() if n > 1}
        for value, line in zip(values, self.lines, strict=True):
            if value in twice:
                twice[value].append(str(line))
        shown = few(f"{value} (lines {' and '.join(lines)})" for value, lines in twice.items())
        raise BadTable(self.path, f"the same {name} comes more than once: {shown}. Keep one row each.")

    def numbers(self, name: str) -> list[float | None]:
        """The column as numbers, None where it is blank or NaN; raises BadTable, naming the lines that hold text."""
        values = [_number(value) for value in self[name]]
        self._refuse(name, [isinstance(v, str) for v in values], "what is no number")
        return [None if isinstance(v, str) or v != v else v for v in values]

    def whole(self, name: str) -> list[int]:
        """The column as whole numbers; raises BadTable, naming the lines that hold anything else, blanks too."""
        values = [_number(value) for value in self[name]]
        self._refuse(name, [isinstance(v, str) or v % 1 != 0 for v in values], "what is no whole number")
        return [int(v) for v in values]

    def _refuse(self, name: str, bad: list[bool], what: str) -> None:
        rows = [i for i, is_bad in enumerate(bad) if is_bad]
        if rows:
            shown = few(f"{self[name][i]!r} (line {self.lines[i]})" for i in rows)
            raise BadTable(self.path, f"column {name} holds {what}: {shown}.")


def read_table(path: Path, *, columns: Iterable[str] = ()) -> Table:
    """Read a CSV file: UTF-8 with or without a byte-order mark, commas, double quotes, a header line.

    Raises BadTable when it is not UTF-8, is empty, has a row of another length than the header, repeats a column, or
    lacks one of `columns`; the message says where, and how to mend it.
    """
    lines, rows = [], []
    reader = csv.reader(io.StringIO(_decode(path), newline=""), skipinitialspace=True, strict=True)
    start = 1
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):  # blank lines and lines of commas are no rows
                lines.append(start)
                rows.append(cells)
            start = reader.line_num + 1
    except csv.Error as error:
        detail = f"not a CSV table from line {start} on ({error}). Close each quote; write a quote in quotes twice."
        raise BadTable(path, detail) from None
    if not rows:
        raise BadTable(path, "the file is empty. Write a header line and one row a volume.")
    header, rows, lines = rows[0], rows[1:], lines[1:]
    twice = [name for name, n in Counter(header).items() if n > 1]
    if twice:
        raise BadTable(path, f"the column {few(repr(n) for n in twice)} is there twice. Rename or delete one.")
    missing = [name for name in columns if name not in header]
    if missing:
        raise BadTable(path, f"no column {few(missing)}. The file has: {', '.join(header)}.")
    if not rows:
        raise BadTable(path, "the file has a header line and no rows.")
    ragged = [i for i, row in enumerate(rows) if len(row) != len(header)]
    if ragged:
        shown = few(f"line {lines[i]} has {len(rows[i])}" for i in ragged)
        raise BadTable(path, f"the header has {len(header)} cells, {shown}. Put text with commas into double quotes.")
    return Table(path, dict(zip(header, map(list, zip(*rows, strict=True)), strict=True)), lines)


def _decode(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadTable(
            path,
            f"not UTF-8: byte 0x{data[error.start]:02x} in line {line} (byte {error.start} of the file). "
            "Save it as CSV UTF-8, or convert it: iconv -f WINDOWS-1252 -t UTF-8",
        ) from None


def _number(value: str) -> float | str:
    try:
        return float(value) if value else float("nan")
    except ValueError:
        return value
