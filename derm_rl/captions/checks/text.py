"""Reading English and Japanese just well enough: clauses, and what is denied in them.

All text is normalized (:func:`derm_rl.captions.checks.base.normalize`). English denies before the
word ("no hair") or by the verb behind it ("hair is absent"); Japanese by the predicate that follows
(毛髪は認められません).
"""

from __future__ import annotations

import re

LONGEST = 1000  # characters of a clause that are read
_EN_CLAUSE = re.compile(
    r"(?<=[.!?;])\s+|\n+|(?<!anything)(?<!nothing),?\s+(?=(?:but|however|although|though|whereas|while|yet|except|"
    r"apart from|aside from|other than|nevertheless)\b)"
)
_JA_CLAUSE = re.compile(r"(?<=[。!?！？;；])\s*|\n+|(?<=[すたるい]が[、,])|(?<=一方[、,])")


def sentences(text: str) -> list[str]:
    """Sentences of either language, without white space around them."""
    parts = re.split(r"(?<=[.!?])\s+|(?<=[。！？])|\n+", text)
    return [p.strip() for p in parts if p.strip()]


def clauses(text: str, language: str) -> list[str]:
    """Sentences, further cut where the text turns round ("but", "except", が、)."""
    parts = (_JA_CLAUSE if language == "ja" else _EN_CLAUSE).split(text)
    # Nobody writes longer ones; what is said of a word is looked for all over its clause.
    return [p.strip()[:LONGEST] for p in parts if p and p.strip()]


# -------------------------------------------------------------------------------- English

_BEFORE = re.compile(
    r"\b(?:no|not(?!\s+only)|never|without|neither|none|nor(?:\s+(?:is|are|was|were|does|do|did|has|"
    r"have)(?:\s+there)?)?|nothing|lack(?:s|ed|ing)?|absen(?:t|ce)|devoid|free(?:\s+of|\s+from)|"
    r"cannot|hardly|(?<!cannot )(?<!not )excludes?|(?<!cannot )rules?\s+out|"
    r"fails?\s+to|rather\s+than|instead\s+of|unlike|"
    r"un(?:obstructed|obscured|affected|covered)|clear\s+of|zero|loss\s+of)\b|n't\b"
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|shows?|showed|appears?|seems?|with|contains?|includes?|"
    r"can|could|does|did|do|may|might|cross(?:es)?|covers?|lies?|remains?|cannot|overl(?:ies|ay|ays)|"
    r"runs?)\b|(?<=[a-z])n't\b"
)
# An auxiliary, then the denial; "is not", "could not be", "isn't", "are absent", "remains unseen".
_DENIED = re.compile(
    r"(?:is|are|was|were|has|have|had|can|could|does|did|do|appears?|seems?|remains?)"
    r"(?:n't\b|\s*not\b(?!\s+(?:the\s+)?only)|\s+(?:\w+ly\s+|to\s+be\s+|all\s+|both\s+|either\s+|also\s+)*"
    r"(?:absent|missing|lacking|never|nowhere|unlikely|excluded|ruled\s+out|not(?!\s+(?:the\s+)?only)|no|none|neither|"
    r"unseen|undetect\w+)\b)|cannot\b"
)
_TAG = re.compile(
    r"^\s*(?:marks?|lines?|strokes?)?\s*[:=(,–—-]?\s*(?:none|no|not|absent|negative|nil)\b(?!\s+only)"
)


def denied(clause: str, start: int, end: int, language: str) -> bool:
    """Whether ``clause[start:end]`` is said not to be there or not to be so."""
    return (_denied_ja if language == "ja" else _denied_en)(clause, start, end)


def _denied_en(clause: str, start: int, end: int) -> bool:
    before, after = clause[:start], clause[end:]
    negators = list(_BEFORE.finditer(before))
    if negators:
        between = before[negators[-1].end() :]
        # "not hidden by hair" is one denial; "not round, hair is" is not one of hair.
        if not _VERB.search(between):
            return True
    if _TAG.match(after):
        return True
    verb = _VERB.search(after)
    if verb is None or re.search(r"[,;]\s*(?:and\s+)?(?:no|without)\b", after[: verb.start()]):
        return False
    begin = verb.start()
    if verb.group() == "n't":  # "isn't": \b puts the verb and its n't apart
        return True
    return bool(_DENIED.match(after, begin))


# ------------------------------------------------------------------------------- Japanese

_JA_NEGATIVE = re.compile(
    r"ません|(?<!少)(?<!間も)(?<!だけで)(?<!のみで)なく|ない(?!よう)|なし|無し|無く|無い|ず[、,に]|(?:られ|でき|れ)ず|"
    r"欠[くいけ]|乏し|否定(?:され|でき(?!な|ま))|除外(?:され|でき(?!な|ま))|不在|皆無|ゼロ|見当たら"
)
_JA_POSITIVE = re.compile(
    r"(?:られ|れ|され|でき|見え|写り込んで|写って|映って|写り|あり|おり|なり|示し|呈し|伴い|い|し|き|み)(?:ます|ました|まして)|"
    r"(?:られ|され|でき|見え|れ)(?:る|た|て(?!いな|いま|おら))|です|でした|である|であり|ある[。、,も]|"
    r"存在(?:し(?!な|ま)|する)|目立(?:つ|ち)|あり[、,]|みられ[、,]|見られ[、,]|認め[、,]|だ[。、]|が?(?:混在|散在|多数)|(?<!で)で[、,]"
)


def _denied_ja(clause: str, start: int, end: int) -> bool:
    after = clause[end:]
    # "〜だけでなく" and "〜のみならず" add, "〜とは限らない" leaves open: none of them denies.
    after = re.sub(r"(?:だけ|のみ)(?:では?なく|ならず)", "", after)
    negative, positive = _JA_NEGATIVE.search(after), _JA_POSITIVE.search(after)
    if negative is None:
        return False
    return positive is None or negative.start() <= positive.start()
