"""A check of what an answer may do to whoever shows or reads it."""

from __future__ import annotations

import re
import unicodedata

from derm_rl.captions.checks.base import Hit, Pair, Settings, check, normalize, quote
from derm_rl.captions.checks.terms import pattern

# Marks of direction that a reader does not see.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
_REPEATED = re.compile(r"(\S)\1{39}|(\S{2,20})(?:\s*\2){24}")


def invisible(text: str) -> str | None:
    """What the first character is called that controls or hides text; None if there is none."""
    for letter in sorted(set(text)):
        category = unicodedata.category(letter)
        if category in ("Cc", "Cs", "Co", "Cn") and letter not in "\n\t":
            return f"control character U+{ord(letter):04X}"
        if letter in _BIDI:
            return f"bidirectional override U+{ord(letter):04X}"
        if category in ("Cf", "Zl", "Zp"):
            return f"invisible character U+{ord(letter):04X}"
    return None


@check("hostile")
def hostile(pair: Pair, settings: Settings) -> Hit | None:
    """No markup, script, hidden characters, injected instructions or flood of text."""
    for column in ("answer", "question", "findings", "reason"):
        whole = pair.text(column)
        if len(whole) > settings.max_characters:
            return 1.0, f"{column} is {len(whole):,} characters long"
        if hidden := invisible(whole):
            return 1.0, f"{column} holds {hidden}"
        text = normalize(whole)
        for kind in ("markup", "template", "injection"):
            if found := pattern(kind).search(text):
                return 1.0, f"{column} holds {kind}: {quote(found.group())}"
        if found := _REPEATED.search(text):
            return 1.0, f"{column} repeats itself: {quote(found.group())}"
    return None
