"""A check of answers against the diagnosis in the table: what they assert, favour or deny."""

from __future__ import annotations

import re
from typing import Literal

from derm_rl.captions import diagnoses
from derm_rl.captions.checks.base import Hit, Pair, Settings, check, quote
from derm_rl.captions.checks.terms import pattern
from derm_rl.captions.checks.text import clauses, denied
from derm_rl.captions.diagnoses import Mention

Stance = Literal["asserts", "favours", "open", "denies"]
# How much each stance counts against a diagnosis it contradicts; a denial counts against its own.
WEIGHT: dict[Stance, float] = {"asserts": 1.0, "favours": 0.7, "open": 0.0, "denies": 0.8}


def stance(clause: str, mention: Mention, language: str) -> Stance:
    """What a clause says of a diagnosis that it names.

    Possibilities, conditions, comparisons and lists of differential diagnoses leave it "open"; who
    names a diagnosis without any of them favours it.
    """
    before, after = clause[: mention.start], clause[mention.end :]
    near = before[-80:]  # only what belongs to the name counts
    if pattern("denies_after", language).search(after):
        return "denies"
    if pattern("list_after", language).search(after) and diagnoses.mentions(after[:60]):
        return "open"
    around = f"{before[-80:]}|{after[:60]}"
    doubted = pattern("foremost_not", language).search(around)
    if not doubted and pattern("foremost", language).search(around):
        return "asserts"
    if language == "ja":
        return _stance_ja(near, after)
    near = pattern("firm", "en").sub("", near)
    if pattern("open_after", "en").search(after):
        return "open"
    if pattern("denies_before", "en").search(near):
        return "denies"
    said = clause[: mention.end] + re.split(r",? (?:which|whose|making)\b", after)[0]
    if denied(said, mention.start, mention.end, "en"):
        rest = pattern("denied_doubt", "en").sub("", near)
        hedged = pattern("hedged_denial", "en").search(near)
        return "open" if hedged or pattern("open_before", "en").search(rest) else "denies"
    if pattern("open_before", "en").search(near):
        return "open"
    if pattern("firm_after", "en").search(after):
        return "asserts"
    return "asserts" if pattern("asserts", "en").search(near) else "favours"


def _stance_ja(near: str, after: str) -> Stance:
    if pattern("firm_after", "ja").search(after) and "可能性" not in near:
        return "asserts"
    favoured = pattern("favours", "ja").search(after[:28])
    if pattern("open_after", "ja").search(after) or pattern("open_before", "ja").search(near):
        return "favours" if favoured and "可能性が高" in after else "open"
    return "asserts" if pattern("asserts", "ja").search(after) else "favours"


@check("label")
def label(pair: Pair, settings: Settings) -> Hit | None:
    """The answer asserts nothing that contradicts the diagnosis in the table.

    Synonyms, kinds of a diagnosis and groups above it are no contradiction.
    """
    known = (pair.known(column) for column in ("label", "diagnosis"))
    truth = diagnoses.of_label(*(k if isinstance(k, str) else None for k in known))
    if truth is None:
        return None
    best: Hit | None = None
    for clause in clauses(pair.answer, pair.language):
        for mention in diagnoses.mentions(clause):
            kind = stance(clause, mention, pair.language)
            if kind == "denies":
                against = float(truth in diagnoses.covers(mention.concept))
            else:
                against = diagnoses.contradiction(truth, mention.concept)
            score = WEIGHT[kind] * against
            if score > (best[0] if best else 0):
                best = (
                    score,
                    f"{kind} {mention.concept!r}, the table has {truth!r}: {quote(clause)}",
                )
    return best
