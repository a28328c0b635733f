"""Diagnoses in words: synonyms in English and Japanese, and what is a kind of what.

The concepts stand in ``diagnoses.yaml``. A concept is what it covers: itself and all that is a kind
of it. Two concepts are compatible exactly if some concept is covered by both, so a melanoma in situ
is a melanoma and malignant, but nothing is both a nevus and malignant.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("diagnoses.yaml")


class DiagnosesError(ValueError):
    """The map of diagnoses cannot be used; the message names the concept and the key."""


@dataclass(frozen=True)
class Concept:
    name: str
    code: str | None  # of derm_rl.prompts.DIAGNOSES
    parents: tuple[str, ...]
    names: tuple[str, ...]  # English and Japanese


@dataclass(frozen=True)
class Mention:
    """Where a text names a concept: ``text[start:end]``."""

    concept: str
    start: int
    end: int


@lru_cache(maxsize=1)
def concepts() -> dict[str, Concept]:
    """All concepts by name.

    Raises:
        DiagnosesError: an unknown key or parent, a circle, or one name for two concepts.
    """
    import yaml

    return parse(yaml.safe_load(FILE.read_text(encoding="utf-8")))


def parse(raw: Mapping[str, Mapping[str, Any]]) -> dict[str, Concept]:
    """Concepts from the content of ``diagnoses.yaml``; errors as of :func:`concepts`."""
    found: dict[str, Concept] = {}
    owner: dict[str, str] = {}
    for name, entry in raw.items():
        if unknown := set(entry) - {"code", "parents", "en", "ja"}:
            raise DiagnosesError(f"{FILE.name}: {name}: unknown keys {sorted(unknown)}")
        words = tuple(normalize(w) for w in (*entry.get("en", ()), *entry.get("ja", ())))
        for word in words:
            if owner.setdefault(word, name) != name:
                raise DiagnosesError(f"{FILE.name}: {word!r} names {owner[word]!r} and {name!r}")
        found[name] = Concept(name, entry.get("code"), tuple(entry.get("parents", ())), words)
    for concept in found.values():
        for parent in concept.parents:
            if parent not in found:
                raise DiagnosesError(f"{FILE.name}: {concept.name}: unknown parent {parent!r}")
        _ancestors(found, concept.name, ())
    return found


def _ancestors(known: Mapping[str, Concept], name: str, below: tuple[str, ...]) -> set[str]:
    if name in below:
        raise DiagnosesError(f"{FILE.name}: circle of parents: {' > '.join((*below, name))}")
    above = (_ancestors(known, parent, (*below, name)) for parent in known[name].parents)
    return {name}.union(*above)


def normalize(text: str) -> str:
    """Compatibility forms (full-width letters, …) and case made one: what names are matched in."""
    return unicodedata.normalize("NFKC", text).lower()


@cache
def ancestors(name: str) -> frozenset[str]:
    """A concept and all that it is a kind of."""
    return frozenset(_ancestors(concepts(), name, ()))


@cache
def covers(name: str) -> frozenset[str]:
    """A concept and all kinds of it."""
    return frozenset(other for other in concepts() if name in ancestors(other))


@cache
def compatible(first: str, second: str) -> bool:
    """Whether something can be both."""
    return not covers(first).isdisjoint(covers(second))


@cache
def main_class(name: str) -> str | None:
    """The code of the concept or of what it is a kind of; None for the groups above the codes.

    Where several have one, that of the first parent counts.
    """
    concept = concepts()[name]
    if concept.code:
        return concept.code
    return next((c for p in concept.parents if (c := main_class(p))), None)


@cache
def contradiction(first: str, second: str) -> float:
    """How much two concepts contradict each other.

    0: not at all. 0.4: two kinds of one main class (a blue nevus, a junctional nevus).
    0.8: two main classes. 1: one is benign and the other malignant.
    """
    if compatible(first, second):
        return 0.0
    same = main_class(first)
    if same is not None and same == main_class(second):
        return 0.4
    sides = {"benign", "malignant"}
    one, other = ancestors(first) & sides, ancestors(second) & sides
    return 1.0 if one and other and one.isdisjoint(other) else 0.8


@lru_cache(maxsize=1)
def _matcher() -> tuple[re.Pattern[str], dict[str, str]]:
    owner = {word: c.name for c in concepts().values() for word in c.names}
    plain = sorted((w for w in owner if w.isascii()), key=len, reverse=True)
    other = sorted((w for w in owner if not w.isascii()), key=len, reverse=True)
    latin = rf"(?<![a-z0-9-])(?:{'|'.join(map(re.escape, plain))})(?=(?:e?s)?(?![a-z0-9]))"
    return re.compile(f"{latin}|{'|'.join(map(re.escape, other))}"), owner


def mentions(text: str) -> list[Mention]:
    """Every diagnosis that a normalized text (:func:`normalize`) names, in the order of the text.

    Of names inside one another (悪性 in 悪性黒色腫) only the longest counts.
    """
    matcher, owner = _matcher()
    return [Mention(owner[m.group()], m.start(), m.end()) for m in matcher.finditer(text)]


@lru_cache(maxsize=4096)
def of_label(label: str | None, code: str | None = None) -> str | None:
    """The concept of a published label, or else of a code of ``prompts.DIAGNOSES``.

    A label that names several concepts which cannot all be true ("melanoma vs nevus"), or none,
    says less than the code.
    """
    found = {m.concept for m in mentions(normalize(label))} if label else set()
    narrow = [c for c in found if all(c in covers(o) for o in found)]
    if narrow:
        return narrow[0]
    return next((c.name for c in concepts().values() if code and c.code == code), None)
