"""A check of answers against what was measured in the image.

:func:`claims` reads what a clause says of asymmetry, border, colours, skin tone and artifacts;
:func:`against` compares one claim with the measurements.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from derm_rl.captions.checks.base import Hit, Pair, Settings, check, normalize, quote
from derm_rl.captions.checks.terms import pattern, patterns, span
from derm_rl.captions.checks.text import clauses, denied
from derm_rl.captions.schema import ARTIFACTS, COLOURS, Measurements

SKIN_TONES = ("very light", "light", "intermediate", "tan", "brown", "dark")
_TONE_JA = {
    "非常に明るい": "very light", "とても明るい": "very light", "明るい": "light",
    "中間": "intermediate", "小麦色": "tan", "褐色": "brown", "茶色": "brown", "暗い": "dark",
    "濃色": "dark",
}  # fmt: skip
_NUMBER = {
    "one": 1, "single": 1, "a single": 1, "only one": 1, "two": 2, "both": 2, "three": 3,
    "four": 4, "five": 5, "six": 6, "no": 0, "neither": 0, "zero": 0, "either": 2,
    "一": 1, "単": 1, "二": 2, "両": 2, "三": 3, "四": 4, "五": 5, "六": 6,
}  # fmt: skip
# Entries of the patterns that say yes or no: the aspect, and what is said where nothing is denied.
_SAID = (
    ("asymmetry", True, "asymmetric"), ("asymmetry", False, "symmetric"),
    ("border", True, "border_irregular"), ("border", False, "border_regular"),
    ("artifacts", False, "clear_view"),
)  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """``aspect`` is said to be ``value``."""

    aspect: str  # asymmetry, axes, border, colours, many_colours, colour, no_colour, skin_tone, …
    value: bool | int | str


def number_of(word: str) -> int | None:
    """A number as a digit or a word of either language."""
    return int(word) if word.isdecimal() else _NUMBER.get(word)


def claims(clause: str, language: str) -> Iterator[Claim]:
    """What one normalized clause says of this image; general and conditional ones say nothing."""
    if pattern("general", language).search(clause):
        return
    axes = list(_axes(clause, language))
    yield from axes
    for aspect, value, entry in _SAID:
        if aspect == "asymmetry" and axes:
            continue  # "symmetric in one axis" says a number, not that the whole is symmetric
        for found in _found(entry, clause, language):
            yield Claim(aspect, value != denied(clause, *span(found), language))
    for name in (*ARTIFACTS, "artifacts"):
        for found in _found(name, clause, language):
            there = not denied(clause, *span(found), language)
            if name in ARTIFACTS or not there:  # "artifacts: hair" names them by itself
                yield Claim(name, there)
    yield from _colours(clause, language)
    for found in _found("skin_tone", clause, language):
        tone = next(g for g in found.groups() if g)
        yield Claim("skin_tone", _TONE_JA.get(tone, tone))


def _found(entry: str, clause: str, language: str) -> Iterator[re.Match[str]]:
    for one in patterns(entry, language):
        yield from one.finditer(clause)


def _axes(clause: str, language: str) -> Iterator[Claim]:
    for found in _found("axes", clause, language):
        kind, word = next((k, w) for k, w in found.groupdict().items() if w)
        number = number_of(word)
        if number is None:
            continue
        where = found.span(kind)
        if language == "ja":  # the predicate behind the whole phrase denies it
            where = (found.end(), found.end())
        # "asymmetric in either axis" denied is symmetric in both; so is "neither axis".
        if denied(clause, *where, language) and word not in ("no", "neither"):
            number = 0
        # Symmetric in both axes: none is asymmetric.
        yield Claim("axes", 2 - number if kind == "symmetric" else number)


def _colours(clause: str, language: str) -> Iterator[Claim]:
    for found in _found("colour_count", clause, language):
        number = number_of(next(g for g in found.groups() if g))
        if number and not denied(clause, *span(found), language):
            yield Claim("colours", number)
    for found in _found("one_colour", clause, language):
        if not denied(clause, *found.span(), language):
            yield Claim("colours", 1)
    for found in _found("many_colours", clause, language):
        if not denied(clause, *found.span(), language):
            yield Claim("many_colours", True)
    if pattern("other_thing", language).search(clause):
        return  # the black may be a hair's
    for name in COLOURS:
        for found in _found(name, clause, language):
            no = denied(clause, *found.span(), language)
            yield Claim("no_colour" if no else "colour", name)


def _off(by: int, tolerance: int) -> float:
    return 0.0 if by == 0 else 0.4 if by <= tolerance else 0.8


def against(claim: Claim, measured: Measurements, settings: Settings) -> Hit | None:
    """How much the measurements speak against one claim; None if they do not, or are missing."""
    aspect, value = claim.aspect, claim.value
    if aspect in ARTIFACTS:
        if measured.artifacts.get(aspect) in (None, value):
            return None
        return 0.9, f"{aspect} was {'not ' if value else ''}measured"
    if aspect == "artifacts":
        there = [name for name, found in measured.artifacts.items() if found]
        return (0.9, f"measured: {', '.join(there)}") if there else None
    if aspect == "skin_tone":
        if not {measured.skin_tone, value} <= set(SKIN_TONES):
            return None
        by = abs(SKIN_TONES.index(str(value)) - SKIN_TONES.index(measured.skin_tone))
        score = _off(by, settings.skin_tone_tolerance)
        return (score, f"measured: {measured.skin_tone}") if score else None
    return _against_lesion(claim, measured, settings) if measured.segmented else None


def _against_lesion(claim: Claim, m: Measurements, settings: Settings) -> Hit | None:
    aspect, value, score = claim.aspect, claim.value, 0.0
    if aspect in ("asymmetry", "axes"):
        if m.asymmetric_axes is None:
            return None
        was = f"asymmetric in {m.asymmetric_axes} axes"
        if aspect == "axes":
            score = _off(abs(int(value) - m.asymmetric_axes), settings.axes_tolerance)
        elif bool(value) != (m.asymmetric_axes > 0):
            score = 0.9
    elif aspect == "border":
        if m.irregular_border is None:
            return None
        was = "irregular" if m.irregular_border else "regular"
        score = 0.9 * (bool(value) != m.irregular_border)
    else:
        if not m.colours:
            return None
        was = ", ".join(m.colours)
        if aspect == "colours":
            score = _off(abs(int(value) - len(m.colours)), settings.colours_tolerance)
        elif aspect == "many_colours":
            score = 0.7 * (len(m.colours) == 1)
        else:  # a colour named that was not measured, or denied that was
            score = 0.6 * ((value in m.colours) == (aspect == "no_colour"))
    return (score, f"measured: {was}") if score else None


# What a finding's value is the end of, so that it reads as a sentence; colours and asymmetry do.
_OF = {
    "en": {
        "asymmetry": "{}", "border": "the border is {}", "colours": "{}",
        "skin_tone": "the skin tone is {}", "hair": "hair is {}",
        "gel_bubble": "gel bubbles are {}", "ruler": "a ruler is {}", "ink": "ink is {}",
        "dark_corner": "dark corners are {}",
    },
    "ja": {
        "asymmetry": "{}", "border": "辺縁は{}です", "colours": "{}",
        "skin_tone": "皮膚の色調は{}", "hair": "毛髪は{}", "gel_bubble": "気泡は{}",
        "ruler": "定規は{}", "ink": "インクは{}", "dark_corner": "四隅の暗さは{}",
    },
}  # fmt: skip


def statements(pair: Pair) -> Iterator[tuple[str, str]]:
    """The clauses of the answer, then its findings as sentences, each with its language."""
    for clause in clauses(pair.answer, pair.language):
        yield clause, pair.language
    for finding in pair.findings if not isinstance(pair.findings, str) else ():
        language = "en" if finding.value.isascii() else pair.language
        if form := _OF[language].get(finding.name):
            yield form.format(normalize(finding.value).strip(" 「」.。")), language


@check("measurement")
def measurement(pair: Pair, settings: Settings) -> Hit | None:
    """The answer and its findings agree with what was measured in the image."""
    if pair.measured is None:
        return None
    best: Hit | None = None
    for clause, language in statements(pair):
        for claim in _claims(clause, language):
            hit = against(claim, pair.measured, settings)
            if hit and hit[0] > (best[0] if best else 0):
                best = hit[0], f"says {quote(clause)}, {hit[1]}"
    return best


@lru_cache(maxsize=20_000)  # answers by rules and findings repeat their sentences
def _claims(clause: str, language: str) -> tuple[Claim, ...]:
    return tuple(claims(clause, language))
