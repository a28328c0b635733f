"""A check of what an answer may do to whoever shows or reads it."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from derm_rl.captions.checks.base import Hit, Pair, Settings, check, normalize, quote
from derm_rl.captions.checks.terms import pattern

# Marks of direction that a reader does not see.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
_REPEATED = re.compile(r"(\S)\1{39}|(\S{2,20})(?:\s*\2){24}")


def invisible(text: str) -> str | None:
    """What the first character is called that controls or hides text; None if there is none."""
    if text.isprintable():
        return None
    for letter in sorted(set(text)):
        category = unicodedata.category(letter)
        if category in ("Cc", "Cs", "Co", "Cn") and letter not in "\n\t":
            return f"control character U+{ord(letter):04X}"
        if letter in _BIDI:
            return f"bidirectional override U+{ord(letter):04X}"
        if category in ("Cf", "Zl", "Zp"):
            return f"invisible character U+{ord(letter):04X}"
    return None


def danger(text: str) -> str | None:
    """What in a text is hostile, in words; None if nothing is."""
    if hidden := invisible(text):
        return f"holds {hidden}"
    text = normalize(text)
    for kind in ("markup", "template", "injection"):
        if found := pattern(kind).search(text):
            return f"holds {kind}: {quote(found.group())}"
    if found := _REPEATED.search(text):
        return f"repeats itself: {quote(found.group())}"
    return None


# Questions come from a pool, and most of what findings say repeats; answers do not.
_remembered = lru_cache(maxsize=4096)(danger)


@check("hostile")
def hostile(pair: Pair, settings: Settings) -> Hit | None:
    """No markup, script, hidden characters, injected instructions or flood of text."""
    for column in ("answer", "question", "findings", "reason"):
        whole = pair.text(column)
        if len(whole) > settings.max_characters:
            return 1.0, f"{column} is {len(whole):,} characters long"
        parts = [whole] if whole else []
        if column == "findings" and not isinstance(pair.findings, str):
            # As it will be shown: without the escapes of JSON.
            parts = [text for f in pair.findings for text in (f.value, f.evidence)]
        for part in parts:
            if what := (danger if column == "answer" else _remembered)(part):
                return 1.0, f"{column} {what}"
    return None
