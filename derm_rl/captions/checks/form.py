"""Checks of form: schema, language, length, truncation."""

from __future__ import annotations

import re
import unicodedata

from derm_rl.captions.checks.base import Hit, Pair, Settings, check, noisy_or, quote
from derm_rl.captions.checks.text import sentences
from derm_rl.captions.schema import QUESTION_TYPES


@check("schema")
def schema(pair: Pair, settings: Settings) -> Hit | None:
    """The status is ok and every field holds what the structured answer demands."""
    status = pair.text("status")
    if status != "ok":
        return 1.0, f"status is {status or 'missing'!r}, expected 'ok'"
    for column in ("pair_id", "image_id", "question"):
        if not pair.text(column).strip():
            return 1.0, f"{column} is missing"
    if not pair.answer.strip():
        return 1.0, "the answer is empty"
    if pair.row.get("language") not in ("en", "ja"):
        return 1.0, f"language is {pair.row.get('language')!r}, expected 'en' or 'ja'"
    if pair.row.get("question_type") not in QUESTION_TYPES:
        return 1.0, f"question_type is {pair.row.get('question_type')!r}"
    if pair.confidence is None or not 0 <= pair.confidence <= 1:
        return 1.0, f"confidence is {pair.row.get('confidence')!r}, expected 0 to 1"
    if str(pair.row.get("abstained")).lower() not in ("true", "false", "0", "1"):
        return 1.0, f"abstained is {pair.row.get('abstained')!r}, expected true or false"
    if isinstance(pair.findings, str):
        return 1.0, pair.findings
    for number, finding in enumerate(pair.findings):
        if not finding.value.strip():
            return 1.0, f"findings.{number}.value is empty"
        if finding.box is not None:
            x0, y0, x1, y1 = finding.box
            if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
                return 1.0, f"findings.{number}.box {finding.box} is not inside the image"
    # The teacher's own JSON as the answer: nothing unpacked it.
    if re.match(r"^\s*(?:```\w*\s*)?\{\s*\"?\w+\"?\s*:", pair.answer):
        return 1.0, f"the answer is JSON, not text: {quote(pair.answer)}"
    return None


# -------------------------------------------------------------------------------- language

_STOP = {
    "en": "the of and is are a an to in with for not it this that on as be by or no from at can "
    "there its which was were has have should any may these than but if",
    "es": "el la los las de del y es son un una que en con para no se por lo su al como más pero "
    "está esta este sin hay muy",
    "fr": "le la les de des du et est sont un une que en dans avec pour ne pas se par sur au aux "
    "ce cette il elle plus mais sans qui",
    "de": "der die das und ist sind ein eine einer nicht mit für von zu im in den dem des auf es "
    "sich auch als oder kein keine wird werden bei eines",
    "pt": "o a os as de do da dos das e é são um uma que em no na com para não se por mais mas "
    "está esta este sem ao",
    "it": "il lo la i gli le di del della e è sono un una che in con per non si da al come più ma "
    "questa questo senza nel",
    "nl": "de het een en is zijn van in met niet voor op te dat die er geen aan bij ook als of "
    "door wordt",
    "id": "yang dan di ini itu dengan untuk tidak pada adalah dari dalam atau ada ke oleh sebagai",
}  # fmt: skip
STOP_WORDS = {language: frozenset(words.split()) for language, words in _STOP.items()}
_WORD = re.compile(r"[^\W\d_]+(?:'[a-z]+)?")


def scripts(text: str) -> dict[str, int]:
    """Letters by script: latin, kana, han, other."""
    count = {"latin": 0, "kana": 0, "han": 0, "other": 0}
    for letter in text:
        if not letter.isalpha():
            continue
        code = ord(letter)
        if code < 0x250:
            count["latin"] += 1
        elif 0x3040 <= code <= 0x30FF:
            count["kana"] += 1
        elif 0x3400 <= code <= 0x9FFF or letter == "々":
            count["han"] += 1
        else:
            count["other"] += unicodedata.category(letter).startswith("L")
    return count


def foreign(sentence: str, language: str) -> bool:
    """Whether a sentence is in another language than ``language`` (en or ja).

    By the shares of scripts, and among Latin letters by stop words: English ones against those of
    other languages. Names of diseases and short labels decide nothing.
    """
    count = scripts(sentence)
    letters = sum(count.values())
    if letters < 8:
        return False
    if language == "ja":
        japanese = count["kana"] + count["han"]
        # Chinese is written without kana; a list of Japanese nouns may be, if it is short.
        if count["han"] > 12 and count["kana"] < 0.05 * japanese:
            return True
        return japanese < 0.35 * letters and (count["other"] > 3 or count["latin"] > 24)
    if count["latin"] < 0.8 * letters:
        return True
    words = _WORD.findall(sentence)
    if len(words) < 4:
        return False
    share = {k: sum(w in stop for w in words) / len(words) for k, stop in STOP_WORDS.items()}
    other = max(v for k, v in share.items() if k != "en")
    accents = sum(c > "\x7f" for c in sentence if c.isalpha()) / letters
    return other > share["en"] + 0.05 or (share["en"] == 0 and accents > 0.02)


@check("language")
def language(pair: Pair, settings: Settings) -> Hit | None:
    """The answer is in the language of the question."""
    parts = sentences(pair.answer)
    wrong = [p for p in parts if foreign(p, pair.language)]
    if not wrong:
        return None
    share = sum(map(len, wrong)) / sum(map(len, parts))
    score = min(1.0, 0.5 * share / settings.foreign_share)
    return score, f"{share:.0%} of the answer is not in {pair.language!r}: {quote(wrong[0])}"


# ---------------------------------------------------------------------------------- length


def length_of(text: str, language: str) -> int:
    """Words of English, letters and digits of Japanese."""
    return len(text.split()) if language == "en" else sum(c.isalnum() for c in text)


@check("length")
def length(pair: Pair, settings: Settings) -> Hit | None:
    """The answer is neither too short nor too long for its language and question type."""
    key = f"{pair.language}/{pair.text('question_type')}"
    fewest, most = settings.words.get(key) or settings.words[pair.language]
    if pair.abstained:
        fewest = min(fewest, settings.words_abstained[pair.language])
    number = length_of(pair.text("answer")[: 10 * settings.max_characters], pair.language)
    unit = "words" if pair.language == "en" else "characters"
    if number > most:
        return 1 - 0.5 * most / number, f"{number} {unit}, expected at most {most}"
    if number < fewest:
        return 1 - 0.5 * number / fewest, f"{number} {unit}, expected at least {fewest}"
    return None


# ------------------------------------------------------------------------------ truncation

_CLOSED = re.compile(r"[.!?。!?]['\")\]）」』*_`]*$|[)\]）」』][.。]?$")
# Words that no sentence ends in, and marks that announce more.
_OPEN_END = re.compile(
    r"(?:\b(?:the|a|an|of|and|or|to|in|with|for|is|are|was|were|that|which|by|as|from|its|this|"
    r"such as|including|e\.g\.?|i\.e\.?|because|while|on|at|be|but|not|no|if)|[,、:;(\[（「『/–—-]|"
    r"\.\.+|…|[はがをにのとやも])\W{0,2}$"
)
# And these not even before a full stop.
_NEVER_LAST = re.compile(
    r"\b(?:the|a|an|of|and|or|with|its|such as|including|because|while)\W{1,2}$"
)
_PAIRS = ("()", "（）", "「」", "『』", "[]")
_JA_END = re.compile(r"(?:です|ます|ません|でした|ました|ください|である|ない|する|こと)$")


@check("truncation")
def truncation(pair: Pair, settings: Settings) -> Hit | None:
    """The answer ends where a sentence ends."""
    if pair.text("status") == "truncated":
        return 1.0, "status is 'truncated'"
    if len(pair.text("answer")) > pair.limit:
        return None  # only its beginning is read; hostile and length speak of it
    text = pair.answer.rstrip()
    if not text:
        return None
    hints = []
    last = text.splitlines()[-1]
    bare = text.rstrip(".") if text.endswith("...") else text
    if _CLOSED.search(bare):
        # "… of the." is as open as "… of the": somebody closed what had been cut.
        hints += [0.9] if _NEVER_LAST.search(bare) else []
    elif _OPEN_END.search(bare):
        hints.append(0.9)
    if text.endswith(("...", "…")):
        hints.append(0.8)
    elif not _CLOSED.search(text):
        bullet = re.match(r"\s*(?:[-*•・]|\d+[.)])\s", last)
        whole = _JA_END.search(text) and "。" not in text  # written without full stops
        hints.append(0.3 if bullet or whole else 0.8)
    elif re.search(r"(?<![\d.])0\.$|\b(?:e\.g|i\.e|approx|ca|vs|fig|dr)\.$", text):
        hints.append(0.8)
    hints += [0.6 for a, b in _PAIRS if text.count(a) > text.count(b)]
    hints += [0.6] if text.count('"') % 2 else []
    hints += [0.6] if text.count("```") % 2 or text.count("**") % 2 else []
    if not hints:
        return None
    return noisy_or(hints), f"ends in the middle: {quote(text[-40:])}"
