"""CSV tables, read strictly: UTF-8 or an error that names the byte, no column guessed, every value kept as its text."""

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mg3d.data.listing import BadTable, few

if TYPE_CHECKING:
    from pandas import DataFrame, Series


def read_table(path: Path, *, columns: Iterable[str] = ()) -> "DataFrame":
    """A CSV as text, blank where a cell is empty, with the row number of a spreadsheet (header = 1) as its index.

    UTF-8 with or without a byte-order mark; commas. Raises BadTable when the file is not UTF-8, is empty, has a ragged
    row, repeats a column, or lacks one of `columns`; the message says where, and how to mend it.
    """
    import pandas as pd

    text = _decode(path)
    if not text.strip():
        raise BadTable(path, "the file is empty. Write a header line and one row a volume.")
    try:
        frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, skipinitialspace=True)
    except pd.errors.ParserError as error:
        raise BadTable(path, f"{_ragged(str(error))} Put text that holds commas into double quotes.") from None
    frame.columns = [str(c).strip() for c in frame.columns]
    repeated = sorted({c.rsplit(".", 1)[0] for c in frame.columns if re.fullmatch(r".+\.1", c)} & set(frame.columns))
    if repeated:
        raise BadTable(path, f"the column {few(repeated)} is there twice. Rename or delete one.")
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise BadTable(path, f"no column {few(missing)}. The file has: {', '.join(frame.columns)}. Name them so.")
    if frame.empty:
        raise BadTable(path, "the file has a header line and no rows.")
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the first column for an index when rows are longer
        raise BadTable(path, "the rows have more cells than the header. Put text that holds commas into double quotes.")
    frame = frame.fillna("")  # rows that are too short
    frame.index = frame.index + 2
    return frame


def check_unique(path: Path, ids: "Series") -> None:
    """Raise BadTable, naming ids and rows, when a value of the column `ids` is blank or comes twice."""
    blank = ids.index[ids.str.strip() == ""]
    if len(blank):
        raise BadTable(path, f"no {ids.name} in row {few(blank)}. Each row needs one.")
    twice = ids[ids.duplicated(keep=False)]
    if len(twice):
        rows = {name: " and ".join(map(str, group.index)) for name, group in twice.groupby(twice, sort=False)}
        shown = few(f"{name} (rows {where})" for name, where in rows.items())
        raise BadTable(path, f"the same {ids.name} comes more than once: {shown}. Keep one row each.")


def numbers(path: Path, column: "Series") -> "Series":
    """The column as float64, NaN where blank. Raises BadTable naming the rows that hold something else."""
    import pandas as pd

    values = pd.to_numeric(column.where(column.str.strip() != ""), errors="coerce")
    bad = column.index[values.isna() & (column.str.strip() != "") & ~column.str.strip().str.lower().isin(["nan"])]
    if len(bad):
        shown = few(f"{column[row]!r} (row {row})" for row in bad)
        raise BadTable(path, f"column {column.name} holds what is no number: {shown}.")
    return values.astype("float64")


def whole(path: Path, column: "Series") -> "Series":
    """The column as int64; a blank is an error, as is a fraction. Raises BadTable naming the rows."""
    values = numbers(path, column)
    bad = column.index[values.isna() | (values % 1 != 0)]
    if len(bad):
        shown = few(f"{column[row]!r} (row {row})" for row in bad)
        raise BadTable(path, f"label {column.name} must be a whole number in every row: {shown}.")
    return values.astype("int64")


def _decode(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise BadTable(
            path,
            f"not UTF-8: byte 0x{data[error.start]:02x} in line {row} (byte {error.start} of the file). "
            "Save the file as CSV UTF-8, or convert it: iconv -f WINDOWS-1252 -t UTF-8",
        ) from None


def _ragged(message: str) -> str:
    found = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", message)
    if found:
        return f"line {found[2]} has {found[3]} cells where the header has {found[1]}."
    return f"not a CSV table ({message.strip()})."
