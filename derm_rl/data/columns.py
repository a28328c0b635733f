"""Published tables: any separator and line end, the names their columns go by, what is absent.

One function, :func:`read`, reads the tables of every source. It is strict where others guess: a row
with a cell too many or too few, an open quote, a NUL byte or an unknown encoding is an error with
its line, as every guess would move or lose cells without a word. What is looked for, and under
which names, stands in ``open_access/columns.yaml``.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from derm_rl.data.images import ENDING
from derm_rl.data.table import TableError, few

KNOWN = Path(__file__).with_name("open_access") / "columns.yaml"
SEPARATORS = (",", ";", "\t", "|")
SUFFIX = "_downsampled"  # ends some names of ISIC 2019, in files and in tables
# Longest first: the mark of UTF-16 begins that of UTF-32.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_OTHERS = (
    (b"PK\x03\x04", "an Excel workbook or a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
    (b"%PDF", "a PDF"),
    (b"PAR1", "a Parquet file"),
    (b"version https://git-lfs", "the pointer that Git LFS leaves for a file not yet fetched"),
)
# All spellings of a missing value, in lower case and with blanks for underscores.
_MISSING = {
    "", "nan", "none", "null", "n/a", "na", "<na>", "unk", "unknown", "not specified",
    "unspecified", "none identified", "none selected", "other or unspecified", "not reported",
    "prefer not to answer", "age unknown", "sex unspecified", "-", "?",
}  # fmt: skip
_BLANKS = re.compile("[\\x00-\\x20\\x7f\\u00a0\\u200b\\u3000\\ufeff]+")


@dataclass(frozen=True)
class Columns:
    """What is looked for in a table: our name of each column, and the published ones."""

    needed: Mapping[str, tuple[str, ...]]
    expected: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]]

    @property
    def all(self) -> dict[str, tuple[str, ...]]:
        return {**self.needed, **self.expected, **self.optional}

    def there(self, frame: pd.DataFrame, name: str) -> list[str]:
        """Those of the published names of ``name`` that a table has."""
        return [way for way in self.all.get(name, ()) if way in frame]

    def get(self, frame: pd.DataFrame, name: str) -> pd.Series:
        """Column ``name``: of its published columns the first that is not missing, row by row."""
        there = self.there(frame, name)
        if not there:
            return pd.Series(pd.NA, index=frame.index, dtype="string", name=name)
        out = frame[there[0]]
        for column in there[1:]:
            out = out.fillna(frame[column])
        return out

    def used(self, frame: pd.DataFrame) -> set[str]:
        """The columns of a table that are known under some name."""
        return {c for name in self.all for c in self.there(frame, name)}


@cache
def known(source: str, table: str = "metadata") -> Columns:
    """What is looked for in a table of a source."""
    import yaml

    listed = yaml.safe_load(KNOWN.read_text(encoding="utf-8"))[source][table]
    kinds = ("needed", "expected", "optional")
    return Columns(*({k: tuple(v) or (k,) for k, v in listed.get(n, {}).items()} for n in kinds))


def read(file: Path, columns: Columns, notes: list[str]) -> pd.DataFrame:
    """A published table as clean text, under its own column names; its index is the line numbers.

    Names of columns lose case, and blanks and hyphens in them become underscores.

    Args:
        notes: gets a sentence for each expected column that is absent or empty.

    Raises:
        TableError: it is no table, a row does not fit the header, or a needed column is missing.
    """
    frame = _frame(file, _text(file), columns)
    missing = [n for n in columns.needed if not columns.there(frame, n)]
    if missing:
        said = "; ".join(f"column {_ways(columns, n)} is missing" for n in missing)
        raise TableError(f"{file}: {said}; {_found(frame, columns, missing)}")
    absent = [n for n in columns.expected if not columns.there(frame, n)]
    if absent:
        said = ", ".join(
            n if columns.all[n] == (n,) else f"{n} ({_ways(columns, n)})" for n in absent
        )
        rest = _found(frame, columns, absent)
        notes.append(f"{file.name}: no column for {said}: missing for all images; {rest}")
    # A level of a hierarchy or an optional column under another name is missed by nothing else.
    rest = [n for n in columns.all if n not in absent]
    if near := _nearest(frame, columns, rest, 0.82):
        notes.append(f"{file.name}: {_hints(near)}")
    for name in [n for n in columns.expected if n not in absent]:
        if len(frame) and columns.get(frame, name).isna().all():
            there = ", ".join(columns.there(frame, name)[:5])
            notes.append(f"{file.name}: {name}: column {there} is empty in all {len(frame)} rows")
    return frame


def with_ids(frame: pd.DataFrame, ids: pd.Series, file: Path) -> pd.DataFrame:
    """Column image_id first, by :func:`stems`.

    Raises:
        TableError: rows without a name.
    """
    if (empty := ids.isna()).any():
        lines = few(frame.index[empty])
        raise TableError(f"{file}: column {str(ids.name)!r} is empty in lines {lines}")
    frame = frame.drop(columns="image_id", errors="ignore")
    frame.insert(0, "image_id", stems(ids))
    return frame


def stems(names: pd.Series) -> pd.Series:
    """Ids from names of files, with or without folder, ending and suffix."""

    def stem(name: str) -> str:
        name = re.sub(r"^.*[/\\]", "", name)
        return re.sub(ENDING, "", name).removesuffix(SUFFIX)

    return each(names, stem)


def each(column: pd.Series, change: Callable[[str], str | None]) -> pd.Series:
    """A column of text with ``change`` of every text; what is missing stays so.

    A tenth of the time of the same in several vectorized steps, for some thousand short texts.
    """
    known: dict[str, str | None] = {}
    for text in column:
        if isinstance(text, str) and text not in known:
            known[text] = change(text)
    out = [known[text] if isinstance(text, str) else None for text in column]
    return pd.Series(out, index=column.index, dtype="string", name=column.name)


def clean(text: str) -> str | None:
    """Text without control characters and doubled blanks, NFC; missing in all its spellings."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    text = _BLANKS.sub(" ", text).strip()
    return None if folded(text) in _MISSING else text


def folded(text: str) -> str:
    """Text in lower case, with blanks for underscores."""
    return text.lower().replace("_", " ").strip()


def numbers(text: pd.Series) -> pd.Series:
    """Numbers, also with a decimal comma; missing where the text is none."""
    return pd.to_numeric(text.str.replace(",", "."), errors="coerce").astype("Float64")


# ------------------------------------------------------------------------- bytes to cells


def _text(file: Path) -> str:
    content = file.read_bytes()
    for start, kind in _OTHERS:
        if content.startswith(start):
            raise TableError(f"{file}: this is {kind}; expected a table as text (CSV) in UTF-8")
    mark, encoding = next((m for m in _MARKS if content.startswith(m[0])), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise TableError(
            f"{file}: line {line} is not {encoding.upper()} ({error.reason}); expected a table in "
            "UTF-8: save it anew with this encoding"
        ) from error
    if (at := text.find("\0")) >= 0:
        raise TableError(
            f"{file}: a NUL byte in line {text.count(chr(10), 0, at) + 1}: the file is damaged, or "
            "in UTF-16 without its mark; expected a table in UTF-8: download it or save it anew"
        )
    if re.match(r"\s*<(?:!doctype|html|\?xml)", text, re.IGNORECASE):
        raise TableError(f"{file}: this is a web page; expected a table: download it again")
    return text


def _frame(file: Path, text: str, columns: Columns) -> pd.DataFrame:
    start, first = 0, re.match(r"sep=(.)\r?\n", text)  # as Excel writes it
    separator = first[1] if first else None
    if first:
        text, start = text[first.end() :], 1
    if separator is None:
        ways = {way for names in columns.all.values() for way in names}

        def fits(candidate: str) -> tuple[int, int]:
            try:
                header = _header(next(_rows(file, text, candidate, 0), (1, []))[1])
            except TableError:
                return 0, 0
            return len(ways.intersection(header)), len(header)

        separator = max(SEPARATORS, key=fits)
    rows = _rows(file, text, separator, start)
    line, cells = next(rows, (1, []))
    header, width = _header(cells), len(cells)
    while header and not header[-1]:
        header.pop()
    if not header:
        raise TableError(f"{file}: the file is empty; expected a table with a header")
    lines, table, odd = [], [], []
    for line, cells in rows:
        extra = any(c.strip() for c in cells[len(header) :])
        if extra or not len(header) <= len(cells) <= width:
            odd.append((line, len(cells)))
        lines.append(line)
        table.append(cells[: len(header)])
    if odd:
        raise TableError(
            f"{file}: line {odd[0][0]} has {odd[0][1]} cells, the header {len(header)} (separator "
            f"{separator!r}); such lines: {few([n for n, _ in odd])}. Is the file cut off, or a "
            "cell with the separator in it not quoted? Download it again or correct the lines"
        )
    return _without_doubles(
        file, header, pd.DataFrame(table, lines, range(len(header)), dtype="string")
    )


def _header(cells: Iterable[str]) -> list[str]:
    return [re.sub(r"[\s_-]+", "_", c.strip(" \t\r\n\ufeff\u00a0\u200b").lower()) for c in cells]


def _rows(file: Path, text: str, separator: str, start: int) -> Iterable[tuple[int, list[str]]]:
    """Line and cells of each row that is not blank."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
    line = 0
    try:
        for cells in reader:
            if cells and (len(cells) > 1 or cells[0].strip()):
                yield line + 1 + start, cells
            line = reader.line_num
    except csv.Error as error:
        raise TableError(
            f"{file}: line {line + 1 + start}: {error}; expected quotes to be closed in their cell "
            "and doubled inside it"
        ) from error


def _without_doubles(file: Path, header: list[str], frame: pd.DataFrame) -> pd.DataFrame:
    """Columns by name; of equal columns one, and none without a name that only counts or is empty.

    Raises:
        TableError: columns of one name that differ.
    """
    kept: dict[str, pd.Series] = {}
    for number, name in enumerate(header):
        values = frame[number]
        if not name:
            counted = values.tolist() in ([str(i + k) for i in range(len(frame))] for k in (0, 1))
            if counted or values.str.strip().eq("").all():
                continue
            name = f"unnamed_{number + 1}"
        values = each(values, clean)
        if name in kept and not kept[name].equals(values):
            raise TableError(f"{file}: two columns {name!r}, and they differ; keep one of them")
        kept[name] = values
    return pd.DataFrame(kept, index=frame.index)


# ----------------------------------------------------------------------------- what is told


def _ways(columns: Columns, name: str) -> str:
    ways = columns.all[name]
    return " or ".join(map(repr, ways if len(ways) < 4 else [*ways[:3], "…"]))


def _nearest(
    frame: pd.DataFrame, columns: Columns, wanted: Iterable[str], cutoff: float
) -> dict[str, str]:
    """Unknown columns of a table that are near to one of the names of what is wanted."""
    used = columns.used(frame)
    unknown = [c for c in frame.columns if c not in used]
    near: dict[str, str] = {}
    ways = [way for name in wanted for way in columns.all[name] if way not in frame]
    for way in ways if unknown else ():
        for close in difflib.get_close_matches(way, unknown, n=1, cutoff=cutoff):
            near.setdefault(close, way)
    return near


def _hints(near: Mapping[str, str]) -> str:
    hints = [f"is {column[:60]!r} what was {way!r}?" for column, way in near.items()]
    return " ".join([*hints, "If so, add it to derm_rl/data/open_access/columns.yaml"])


def _found(frame: pd.DataFrame, columns: Columns, wanted: Iterable[str]) -> str:
    """The columns that are there, and those unknown ones that are nearest to what is wanted."""
    shown = ", ".join(c[:60] for c in frame.columns[:60])
    shown += f" and {len(frame.columns) - 60} more" if len(frame.columns) > 60 else ""
    near = _nearest(frame, columns, wanted, 0.6)
    return f"found {shown}" + (f"; {_hints(near)}" if near else "")
