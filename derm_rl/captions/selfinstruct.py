"""Self-instruct (Wang et al. 2023, arXiv 2212.10560): the teacher proposes questions itself.

A proposal enters a pool only if its ROUGE-L to every question there is under 0.7 and it is a
question that may be asked of any image: no metadata, no diagnosis taken for granted, nothing
unsafe.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import TYPE_CHECKING

from derm_rl.captions.checks.duplicates import bound
from derm_rl.captions.schema import Answer, Language, Measurements, Prompt, Reply, Request

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGE_L = 0.7  # the threshold of the paper
LENGTH = {"en": (4, 45), "ja": (8, 120)}  # words of English, letters of Japanese
# Share of letters that must be of the language's script.
SCRIPT = {"en": 0.95, "ja": 0.6}


class Characters:
    """Tokenizer of Japanese, which has no spaces: its letters and digits, one by one."""

    def tokenize(self, text: str) -> list[str]:
        text = unicodedata.normalize("NFKC", text).lower()
        return [c for c in text if unicodedata.category(c)[0] in "LN"]


@cache
def scorer(language: Language) -> RougeScorer:
    """ROUGE-L over words of English or characters of Japanese."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=Characters() if language == "ja" else None)


def rouge_l(first: str, second: str, language: Language) -> float:
    """F-measure of ROUGE-L, 0 to 1."""
    return scorer(language).score(first, second)["rougeL"].fmeasure


@dataclass(frozen=True)
class Verdict:
    """Whether a proposal was accepted, and if not, why."""

    accepted: bool
    reason: str = "accepted"

    def __bool__(self) -> bool:
        return self.accepted


_NO = re.IGNORECASE
_REASONS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("contains a URL", re.compile(r"https?:|www\.|\b\w+\.(?:com|org|net|io|jp)\b", _NO)),
    ("contains markup", re.compile(r"[<>{}`|\\]|\[\w|\*\*")),
    (
        "talks about the prompt",
        re.compile(
            r"\b(?:ignore|disregard|forget)\b.{0,30}\b(?:previous|above|all|instruction)|"
            r"(?:the|this|your|my|system) prompt\b|\binstructions?\b|language model|"
            r"プロンプト|指示を(?:無視|忘れ)|言語モデル",
            _NO,
        ),
    ),
    (
        "leaks metadata",
        re.compile(
            r"\d+[\s-]*(?:years?|yo\b)|\b(?:fe)?males?\b|\b(?:wo)?m[ae]n\b|\bgirl|\bboy\b|\baged\b|"
            r"metadata|\brecord(?:ed|s)?\b|\blabel(?:l?ed|s)?\b|ground truth|file ?name|data ?set|"
            r"\bisic\b|patient id|\d歳|男性|女性|男児|女児|メタデータ|ラベル|記録(?:上|では|され)|"
            r"ファイル名|データセット",
            _NO,
        ),
    ),
    (
        "names a body site",
        re.compile(
            r"\b(?:on|of|at) (?:the|his|her|their|my) (?:\w+ )?(?:back|face|scalp|foot|feet|hand|"
            r"arm|leg|trunk|torso|abdomen|chest|neck|ear|nose|thigh|extremity)\b|"
            r"背部|顔面|頭皮|足底|下肢|上肢|体幹|腹部|胸部|頸部",
            _NO,
        ),
    ),
    (
        "asks for something unsafe",
        re.compile(
            r"\b(?:dos(?:e|age)|prescri\w+|milligrams?|mg\b|antibiotics?|steroids?|home remed\w+|"
            r"cream|ointment|medication|over[- ]the[- ]counter)\b|"
            r"\b(?:treat\w*|cut|remov\w+|burn\w*|freez\w+|scrap\w+)\b.{0,40}\b(?:home|yourself|"
            r"myself|knife|scissors)\b|\b(?:start|stop|skip|avoid)\w*\b.{0,30}\b(?:treatment|therapy|"
            r"doctor|biopsy|appointment)\b|\b(?:racist|suicid\w+|weapon|nude)\b|"
            r"用量|投与|処方|軟膏|ステロイド|抗生物質|市販薬|民間療法|服用|"
            r"(?:自分|自宅|家)で.{0,12}(?:切|取|治|焼|除去)|(?:治療|受診|生検).{0,8}(?:やめ|中止|避け|不要|開始)|自殺",
            _NO,
        ),
    ),
    (
        "states a diagnosis as fact",
        re.compile(
            r"\b(?:this|the|that) (?:\w+ ){0,2}(?:melanoma|nevus|naevus|carcinoma|keratosis|"
            r"dermatofibroma|angioma|hemangioma|eczema|psoriasis|cancer|mole|tumou?r)\b|"
            r"\b(?:is|was|being|given|since|because)\b.{0,25}\b(?:an? |clearly |malignant|benign|"
            r"cancerous).{0,20}\b(?:melanoma|nevus|naevus|carcinoma|keratosis|cancer|eczema|"
            r"psoriasis)\b|\b(?:given|since|because|as)\b.{0,25}\b(?:is|are) (?:malignant|"
            r"benign)\b|"
            r"この(?:悪性|良性)?(?:黒色腫|メラノーマ|母斑|ほくろ|癌|がん|角化症|湿疹|乾癬|腫瘍)|"
            r"(?:黒色腫|メラノーマ|母斑|癌|がん|悪性|良性)(?:である|なので|だから|ですので|ですが)",
            _NO,
        ),
    ),
)
_REQUEST = re.compile(
    r"^(?:please |now |then |next,? |first,? )?(?:describe|explain|list|name|compare|contrast|"
    r"discuss|summari[sz]e|outline|identify|point|tell|give|state|rank|estimate|write|suggest|judge|count|"
    r"show|assess|evaluate|report|say|choose|argue|imagine|weigh|relate|help|consider|walk|draft|"
    r"propose|characteri[sz]e|interpret|decide|justify|sort|match|rate|predict|create|invent|"
    r"compose|design|pose|pick|select|provide|offer|make|set|put|turn|use|come|think|devise|formulate|prepare|"
    r"translate|present|sketch|recommend|build|apply|try|answer|locate|check|measure|trace|look|"
    r"find|indicate|mark|note|review|analy[sz]e|classify|distinguish|define|illustrate|sum)\b",
    re.IGNORECASE,
)
_ENDS_JA = re.compile(r"(?:[かの](?:。|？|\?)|(?:ください|下さい|お願いします|ましょう)。?|？|\?)$")


def flaw(text: str, language: Language) -> str | None:
    """Why a text is not a question to put to any image; None if it is one."""
    if language not in LENGTH:
        return f"language must be one of {', '.join(LENGTH)}, not {language!r}"
    if not isinstance(text, str) or not text.strip():
        return "is empty"
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn") for c in text):
        return "contains control characters or line breaks"
    low, high = LENGTH[language]
    if len(text) > 20 * high:
        return f"is too long: {len(text)} characters"
    letters = [c for c in text if c.isalpha()]
    own = sum(_of(c, language) for c in letters) / max(1, len(letters))
    if own < SCRIPT[language]:
        return f"is not in {language!r}: {own:.0%} of its letters are"
    length = len(text.split()) if language == "en" else len(letters)
    if not low <= length <= high:
        return (
            f"has {length} {'words' if language == 'en' else 'letters'}, expected {low} to {high}"
        )
    if language == "ja" and not any("\u3040" <= c <= "\u30ff" for c in letters):
        return "is not in 'ja': it has no kana"
    if language == "en" and not _STOP_WORDS & {w.strip(",.?'\"").lower() for w in text.split()}:
        return "is not in 'en': it has no English function word"
    end = text.rstrip("\"'”’」』 ")
    last = re.split(r"(?<=[.!?;:,]) ", end)  # "Suppose …; tell me …." asks in any of its clauses
    asks = end.endswith("?") or any(map(_REQUEST.match, last)) and end.endswith(".")
    if language == "ja":
        asks = _ENDS_JA.search(end)
    if not asks:
        return "is neither a question nor a request"
    return next((reason for reason, pattern in _REASONS if pattern.search(text)), None)


# Of these nearly every English question has one, and few of other languages.
_STOP_WORDS = frozenset([
    "the", "of", "is", "are", "what", "which", "how", "why", "does", "do", "to", "and", "this",
    "that", "would", "could", "should", "in", "an", "it", "you", "if", "with", "from", "for", "be",
])  # fmt: skip


def _of(letter: str, language: Language) -> bool:
    if language == "en":
        return letter < "\u0250"
    return "\u3040" <= letter <= "\u30ff" or "\u3400" <= letter <= "\u9fff" or letter in "々ー"


@dataclass
class Pool:
    """Questions by language; grows by proposals that are new and fit to be asked."""

    texts: dict[Language, list[str]] = field(default_factory=dict)
    threshold: float = ROUGE_L

    @classmethod
    def of_questions(cls) -> Pool:
        """All phrasings of the project's own pools, as the first examples."""
        from derm_rl.captions import questions

        texts: dict[Language, list[str]] = {}
        for language in questions.LANGUAGES:
            texts[language] = [t for pool in questions.general(language).values() for t in pool]
            texts[language] += [t for turns in questions.conversations(language) for _, t in turns]
            for source in questions.SOURCES:
                templates = questions.specific(source, language)
                texts[language] += [t for t in templates if not questions.slots(t)]
        return cls(texts)

    def consider(self, text: str, language: Language) -> Verdict:
        """Take a proposal in, or say why not."""
        text = text.strip() if isinstance(text, str) else text
        if reason := flaw(text, language):
            return Verdict(False, reason)
        near = self.nearest(text, language)
        if near and near[1] >= self.threshold:
            return Verdict(False, f"ROUGE-L {near[1]:.2f} to {near[0]!r}")
        self.texts.setdefault(language, []).append(text)
        return Verdict(True)

    def nearest(self, text: str, language: Language) -> tuple[str, float] | None:
        """The first question whose ROUGE-L reaches the threshold, with it; else None."""
        tokenizer = Characters() if language == "ja" else scorer("en")._tokenizer
        counts = Counter(tokenizer.tokenize(text))
        for other in self.texts.get(language, []):
            # The common subsequence is at most what both have; it is dear to compute.
            others = Counter(tokenizer.tokenize(other))
            if bound(counts, others) >= self.threshold:
                score = rouge_l(text, other, language)
                if score >= self.threshold:
                    return other, score
        return None

    def examples(self, language: Language, count: int, seed: int) -> list[str]:
        """Questions to show a teacher, drawn at random."""
        texts = self.texts.get(language, [])
        return Random(f"examples {seed} {language}").sample(texts, min(count, len(texts)))


# ---------------------------------------------------------------------------- language models

_ASK = {
    "en": (
        "Here are questions that have been asked about images of skin:\n{examples}\n\n"
        "Propose {count} new questions about the attached image that differ from these in content "
        "and wording. Each must make sense for other images too: no age, sex, body site, label or "
        "file name, and no diagnosis taken for granted. Nothing about treatment. Put the questions "
        "into the field answer, one a line, without numbers. Leave findings empty, set confidence "
        "to 1 and abstained to false."
    ),
    "ja": (
        "皮膚画像についてこれまでに出された質問の例です。\n{examples}\n\n"
        "添付の画像について、内容も言い回しも異なる新しい質問を{count}個、日本語で提案してください。"
        "ほかの画像にも当てはまる質問とし、年齢、性別、部位、ラベル、ファイル名に触れず、診断を"
        "前提としないでください。治療には触れないでください。質問は answer に一行に一つ、番号なしで"
        "書いてください。findings は空、confidence は 1、abstained は false とします。"
    ),
}


def prompt(examples: Sequence[str], language: Language, count: int) -> Prompt:
    """What a language model is asked for proposals."""
    from derm_rl.captions.prompting import SYSTEM

    lines = "\n".join(f"- {text}" for text in examples)
    text = _ASK[language].format(examples=lines, count=count)
    # The length of an answer does not hold for a list; what is safe does.
    return Prompt(SYSTEM[language].partition("\n")[2], text)


def request(
    image_id: str,
    image: bytes,
    pool: Pool,
    language: Language,
    count: int = 5,
    seed: int = 0,
    measurements: Measurements | None = None,
) -> Request:
    """A request for proposals about one image; style "self_instruct", type "creativity"."""
    from derm_rl.captions.schema import Question

    asked = prompt(pool.examples(language, 8, seed), language, count)
    question = Question(
        image_id, "creativity", asked.user, language, "blind", "self_instruct",
        f"{image_id}/proposals-{seed}", 0,
    )  # fmt: skip
    return Request(question, asked, image, {"image_id": image_id}, measurements)


def parse(answer: Answer) -> list[str]:
    """Proposals of an answer: its lines without bullets, numbers and quotes."""
    lines = (re.sub(r"^\s*(?:[-*•・]|\(?\d+[.):、])\s*", "", x) for x in answer.answer.split("\n"))
    return [line for x in lines if (line := x.strip().strip('"“”'))]


def considered(reply: Reply | None, pool: Pool, language: Language) -> list[tuple[str, Verdict]]:
    """Every proposal of one reply with its verdict; the pool grows.

    A reply that is not ok, or was not given, is one refused proposal without text.
    """
    if reply is None or reply.answer is None:
        why = "was not asked" if reply is None else f"{reply.status}: {reply.reason}"
        return [("", Verdict(False, why))]
    return [(text, pool.consider(text, language)) for text in parse(reply.answer)]
