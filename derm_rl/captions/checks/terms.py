"""The patterns of ``patterns.yaml``, compiled."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("patterns.yaml")


@cache
def _file() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


@cache
def lines(name: str, language: str = "any") -> tuple[str, ...]:
    """The regular expressions of an entry, with what ``define`` holds put in.

    Raises:
        KeyError: no such entry or language; a regular expression names an unknown definition.
    """
    defined = _file()["define"]
    text = _file()[name][language]
    found = (line.strip("\n") for line in text.splitlines())
    kept = (line for line in found if line and not line.startswith("#"))

    def filled(line: str) -> str:  # definitions may name others
        return re.sub(r"@(\w+)@", lambda m: filled(defined[m.group(1)]), line)

    return tuple(map(filled, kept))


@cache
def pattern(name: str, language: str = "any") -> re.Pattern[str]:
    """All lines of an entry in one; only for entries without named groups."""
    return re.compile("|".join(f"(?:{line})" for line in lines(name, language)))


@cache
def patterns(name: str, language: str = "any") -> tuple[re.Pattern[str], ...]:
    """The lines of an entry one by one."""
    return tuple(re.compile(line) for line in lines(name, language))


def span(found: re.Match[str]) -> tuple[int, int]:
    """Where the word stands that a denial turns round: the capturing group, or the whole match."""
    return found.span(found.lastindex) if found.lastindex else found.span()
