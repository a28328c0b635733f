"""What the rule-based teacher can say, by language: sentences with alternatives and slots.

``[a|b]`` is one of the alternatives, ``{name}`` a value. :func:`say` writes one sentence of a pool;
every name of the English modules is there in the Japanese ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from random import Random
from types import SimpleNamespace

from derm_rl.captions.wording import (
    en_answers,
    en_facts,
    en_special,
    ja_answers,
    ja_facts,
    ja_special,
)

_TOKEN = re.compile(r"\[([^\[\]]*)\]|\{(\w+)\}")


def _names(*modules: object) -> SimpleNamespace:
    found = {k: v for m in modules for k, v in vars(m).items() if k.isupper()}
    return SimpleNamespace(**found)


WORDING = {
    "en": _names(en_facts, en_answers, en_special),
    "ja": _names(ja_facts, ja_answers, ja_special),
}


@cache
def _compiled(template: str) -> tuple[str | tuple[str, ...] | Mapping[str, str], ...]:
    """Parts of a template: text, a tuple of alternatives, or the name of a slot in a mapping."""
    parts: list = []
    at = 0
    for token in _TOKEN.finditer(template):
        parts.append(template[at : token.start()])
        choices, slot = token.groups()
        parts.append({"slot": slot} if slot else tuple(choices.split("|")))
        at = token.end()
    parts.append(template[at:])
    return tuple(p for p in parts if p)


def expand(template: str, rng: Random, values: Mapping[str, str]) -> str:
    """The template with its alternatives drawn and its slots filled; slots inside them too."""
    out = []
    for part in _compiled(template):
        if isinstance(part, str):
            out.append(part)
        elif isinstance(part, tuple):
            chosen = part[int(rng.random() * len(part))]
            out.append(expand(chosen, rng, values) if "{" in chosen else chosen)
        else:
            out.append(values[part["slot"]])
    return "".join(out)


def say(pool: Sequence[str], rng: Random, **values: str) -> str:
    """One sentence of a pool; its first letter is a capital (where the script has any)."""
    text = expand(pool[int(rng.random() * len(pool))], rng, values)
    return text[:1].upper() + text[1:]
