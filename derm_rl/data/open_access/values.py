"""Cells of published tables: text made clean, ages, skin types, weighted labels."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from derm_rl.data.columns import clean, each, folded

_SEX = {"f": "female", "m": "male", "woman": "female", "man": "male"}
_ROMAN = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5, "vi": 6}
_LONGEST = 10_000  # characters of a cell that is still parsed


def lower(column: pd.Series) -> pd.Series:
    """Clean text in lower case, without underscores: ``HEAD_OR_NECK`` is head or neck."""
    return each(column, _lower)


def _lower(text: str) -> str | None:
    text = clean(text)
    return None if text is None else folded(text)


def sexes(column: pd.Series) -> pd.Series:
    """female, male, or the text as it is."""
    return each(column, lambda text: _SEX.get(_lower(text), _lower(text)))


def tokens(column: pd.Series) -> pd.Series:
    """Metadata as text: yes and no for truth values, numbers without idle zeros, lower case."""

    def token(text: str) -> str | None:
        text = _lower(text)
        words = None if text is None else {"true": "yes", "false": "no"}.get(text, text)
        return words and re.sub(r"^(-?\d+)(?:\.0+|,0{1,2})$", r"\1", words)

    return each(column, token)


def named(ids: pd.Series, prefix: str) -> pd.Series:
    """Ids, with ``prefix`` before those that are bare numbers, as other sources use the same."""

    def name(text: str) -> str | None:
        text = clean(text)
        if text is None or not (bare := re.fullmatch(r"(-?\d+)(?:\.0+)?", text)):
            return text
        return prefix + bare[1]  # 17.0 of a column with gaps

    return each(ids, name)


def parsed(column: pd.Series, parse: Callable[[str], Any]) -> tuple[pd.Series, pd.Series]:
    """``parse`` of each text, None where missing; and which cells ``parse`` did not refuse."""
    answers: dict[str, tuple[Any, bool]] = {}
    for text in column.dropna().unique():
        try:
            answers[text] = (parse(text), True)
        except ValueError:
            answers[text] = (None, False)
    pairs = [(None, True) if pd.isna(t) else answers[t] for t in column]
    values = pd.Series([v for v, _ in pairs], index=column.index, dtype="object")
    return values, pd.Series([g for _, g in pairs], index=column.index, dtype="boolean")


def age(text: str) -> tuple[float | None, str | None, float | None]:
    """Age in years; or a band (``40-49``, ``80+``, ``<18``), with its midpoint if it has two ends.

    Raises:
        ValueError: the text is neither, or not within 0 to 120 years.
    """
    words = re.sub(r"\b(?:age|aged|years?|yrs?|old)\b", " ", text.lower().replace("_", " "))
    words = " ".join(words.split())
    number = r"(\d{1,3}(?:\.\d+|,\d{1,2})?)"  # 1,234 may be a thousand and more
    if match := re.fullmatch(number, words):
        return _years(match[1]), None, None
    if match := re.fullmatch(rf"{number} ?(?:-|–|—|to) ?{number}", words):
        low, high = _years(match[1]), _years(match[2])
        if low > high:
            raise ValueError(f"age band {text!r}: its ends are the wrong way round")
        return None, f"{low:g}-{high:g}", (low + high) / 2
    if match := re.fullmatch(
        rf"{number} ?(?:\+|(?:or|and) (?:above|over|older|more|up))|(?:>=?|over|above) ?{number}",
        words,
    ):
        return None, f"{_years(match[1] or match[2]):g}+", None
    if match := re.fullmatch(
        rf"(?:<=?|under|below) ?{number}|{number} ?or (?:under|below|younger)", words
    ):
        return None, f"<{_years(match[1] or match[2]):g}", None
    raise ValueError(f"age {text!r}: expected years from 0 to 120 or a band such as 40-49")


def _years(text: str) -> float:
    years = float(text.replace(",", "."))
    if not 0 <= years <= 120:
        raise ValueError(f"age {text!r}: expected 0 to 120 years")
    return years


def skin_type(text: str) -> int:
    """Fitzpatrick type 1 to 6, written 3, 3.0, III, FST3 or Type III.

    Raises:
        ValueError: the text is none of these.
    """
    words = re.sub(r"^(?:fitzpatrick|fst|skin|type|\s)+", "", text.lower().replace("_", " "))
    if match := re.fullmatch(r"([1-6])(?:[.,]0+)?", words):
        return int(match[1])
    if words in _ROMAN:
        return _ROMAN[words]
    raise ValueError(f"skin type {text!r}: expected 1 to 6 or I to VI (Fitzpatrick)")


def literal(text: str, kind: type) -> Any:
    """A Python list or dict printed as text, as SCIN's tables hold them; nothing is executed.

    Raises:
        ValueError: the text is not one, or is too long to be one.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"a cell of {len(text)} characters, expected at most {_LONGEST}")
    try:
        value = ast.literal_eval(text.strip())
    except (SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise ValueError(f"{text[:80]!r} is no {kind.__name__} ({error})") from error
    if not isinstance(value, kind):
        raise ValueError(f"{text[:80]!r} is no {kind.__name__}")
    return value


def weights(text: str) -> dict[str, float]:
    """Weighted labels: heaviest first, then by name; those without weight are left out.

    Raises:
        ValueError: not a dict of labels to numbers of zero or more.
    """
    found: dict[str, float] = {}
    for name, weight in literal(text, dict).items():
        good = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not isinstance(name, str) or not good or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"weighted label {name!r}: {weight!r} is no weight")
        label = _lower(name)
        if weight > 0 and label is not None:
            found[label] = found.get(label, 0.0) + float(weight)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def heaviest(labels: Mapping[str, float]) -> list[str]:
    """The labels of the largest weight, by name; several in a tie, none without labels."""
    most = max(labels.values(), default=0.0)
    return sorted(name for name, weight in labels.items() if weight >= most - 1e-9)
