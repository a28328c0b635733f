"""A check of answers against the diagnosis in the table: what they assert, favour or deny."""

from __future__ import annotations

import re
from typing import Literal

from derm_rl.captions import diagnoses
from derm_rl.captions.checks.base import Hit, Pair, Settings, check, quote
from derm_rl.captions.checks.safety import compiled
from derm_rl.captions.checks.text import clauses, denied
from derm_rl.captions.diagnoses import Mention

Stance = Literal["asserts", "favours", "open", "denies"]
# How much each stance counts against a diagnosis it contradicts; a denial counts against its own.
WEIGHT: dict[Stance, float] = {"asserts": 1.0, "favours": 0.7, "open": 0.0, "denies": 0.8}

# Before the name: a list, a possibility, a condition, a comparison, a general statement.
_OPEN = {
    "en": compiled(
        r"\b(?:differential\w*|includ\w+|such as|e\.g|may|might|could|can|possib\w+|whether|if|or|versus|vs|"
        r"rule out|ruling out|exclud\w+|consider\w*|suspicio\w*|suspected|suspect|concern\w*|risk|screen\w*|"
        r"distinguish\w*|differentiat\w+|between|for example|candidates?|alternatives?|options?|lists?|"
        r"resembl\w+|mimic\w*|compar\w+|than|usually|often|typically|commonly|generally|some|most|many|"
        r"early|question\w*|asks?|wonder\w*|sign|signs|warning|feature of|features of|seen in|found in|both|"
        r"from|doubt\w*|hypothes\w+|think of|entertain\w*|separat\w+|checks? for|look(?:s|ing)? for|about|"
        r"rules?|criteria|score|less|unclear|cannot|either|whichever|against|remain\w*|weigh\w*|next to|"
        r"beside|besides|alongside|other)\b|[?/]"
    ),
    "ja": compiled(
        r"鑑別|などの|たとえば|例えば|可能性の(?:一つ|1つ)|一般に|一般的に|通常|多くの|しばしば|候補|もし|仮に|どちら|いずれ|区別|比較|否か|"
        r"か[、,]"
    ),
}
# Behind the name.
_OPEN_AFTER = {
    "en": re.compile(
        r"^\W{0,3}(?:es|s)?\s*(?:\(\w+\)\s*)?(?:,|/|or\b|versus\b|vs\b|and\b|(?:\w+ ){0,3}(?:cannot|can not|can't|could not|"
        r"should|must|needs? to|has to|have to|may|might|could|can|is possible|remains? (?:possible|a|to|in|on|open)|"
        r"is (?:a|one|among|also|only a|less|un)\w* ?(?:possib|option|candidate|alternative|consider|concern|"
        r"likely|clear|certain)\w*|among|risk|screening|checklist|rule|awareness|or\b|in general|tends?|are|"
        r"often|usually|typically|would|specialist|suspicion|\?))"
    ),
    "ja": re.compile(
        r"^(?:[^。]{0,14}(?:可能性(?:が|は|も)?(?:あり|ある|否定|残|考え|除外|含)|かもしれ|か(?:どうか|否か|もし|、|は|を)|や|、|または|および|及び|と(?:の鑑別|の区別|の違い|"
        r"良性|悪性|母斑|いった|比)|など|等|(?:を|も|は|が)?(?:除外(?:する|し|でき|が)|否定(?:でき|する|は)|鑑別|疑(?:い|う|わ)|考慮|念頭|区別|判断|見分け|候補|挙げ|含め)|"
        r"(?:と|に)似|でも|では一般|の(?:場合|ことが|リスク|疑い|早期|兆候|特徴|一般|危険)|・|／|/))"
    ),
}
_DENY_AFTER = {
    "en": re.compile(
        r"^\W{0,2}(?:es|s)?\s*(?:\(\w+\)\s*)?(?:is|are|was|were|can be|has been|could be)\s+(?:\w+ly\s+)?(?:ruled out|"
        r"excluded|out of the question|not (?!be )(?:present|here|the|what|a |suspect|in question|seen)|absent|dismissed|impossible|off the)"
    ),
    "ja": re.compile(
        r"^[^。]{0,10}(?:では(?:ありません|ない|なく)|でない|じゃない|(?:は|を|が)?(?:除外|否定)(?:され|でき(?:る|ます|た|て)|し(?:ました|ます|てよ|て良|て構))|"
        r"の(?:所見|可能性|徴候|兆候|疑い|証拠|特徴|心配)(?:は|が)?(?:全く|まったく|一切)?(?:認められ|見られ|みられ|なく|ない|ありま|あり得ま|見当た|ゼロ)(?:ません|せん|ない)?)"
    ),
}
_FAVOUR = {
    "en": compiled(
        r"\b(?:likely|likeliest|probab\w+|suggest\w*|favou?r\w*|consistent with|compatible with|in keeping with|keeping with|"
        r"typical of|points? (?:to|towards?)|pointing (?:to|towards?)|leans?|leaning|characteristic of|indicat\w+|in line with|"
        r"fits?|fitting|best (?:explained|described|classified|regarded)|impression|speaks? for|argues? for|most|match\w*|"
        r"appears? to be|seems? to be|looks? like|classic (?:for|of)|hallmarks? of|expected (?:of|for|in)|supports?|reads? as)\b"
    ),
    "ja": compiled(
        r"可能性(?:が|は)(?:最も|もっとも|非常に|極めて|とても)?(?:高|大き)|考えられ(?:ます|る)|示唆(?:し|され|する)|疑われ|合致|矛盾(?:し|せ|は)|一致|典型的|思われ|"
        r"と見られ|とみられ|最も(?:近|よく|考え|適|疑)|もっとも|らしい|推定|推測|に相当|が妥当|と考え(?:ます|る)|にふさわし|を支持|に傾"
    ),
}
_ASSERT = {
    "en": compiled(
        r"\b(?:is|are|was|it's|that's|this's|represents?|shows?|depicts?|displays?|confirms?|diagnos\w+|has|have|reveals?|"
        r"constitutes?|demonstrates?|presents?|identif\w+|call(?:ed)?|named?|answer|conclu\w+|amounts? to|portrays?|"
        r"features|exhibits?|deal(?:ing)? with|look(?:ing)? at|verdict|of|as)\b[\s:,\"'*]*(?:(?:a|an|the|clearly|plainly|simply|just|"
        r"clear|obvious|certain|certainly|definite|definitely|undoubtedly|typical|common|completely|entirely|purely|classic|"
        r"textbook|straightforward|ordinary|perfectly|wholly|fully|case of|an? example of|frankly|evidently|unmistakably|"
        r"invasive|early|advanced|really|in fact|actually|benign|malignant|indeed|nothing but|of|pigmented|skin|be|"
        r"common|acquired|pure|overt|outright|manifest|truly|small|large|small|growing)[\s,:]+)*$|"
        r"^\W*(?:(?:this|the|that|such|an?|diagnosis|answer|conclusion|in|the|image|of|verdict|assessment|here|it|clearly|"
        r"simply|clear|classic|typical|obvious|completely|benign|malignant)\b[\s:,\"'*]*)*$|\bthis (?:\w+ ){0,2}$|[:—–-]\s*(?:an?|the)?\s*$"
    ),
    "ja": re.compile(
        r"^[^。]{0,8}?(?:です|である|であり|でした|だ[。、]|と診断|と判断|と断定|と結論|に(?:ほかなら|他なら|間違い|該当|決ま|相違)|を(?:示して|呈して|認め|写し)|の(?:画像|病変|"
        r"症例|像|一例|一種|典型)(?:です|で、|であ)|が写|なので|だと|という診断|と言え|といえ|と確|そのもの|性の(?:病変|腫瘍|もの)|が(?:診断|答え|結論)|の(?:病変|腫瘍|もの)(?:です|であ|で、|だ|と)|[。.]?$)"
    ),
}


def stance(clause: str, mention: Mention, language: str) -> Stance:
    """What a clause says of a diagnosis that it names.

    Possibilities, conditions, comparisons and lists of differential diagnoses leave it "open".
    """
    before, after = clause[: mention.start], clause[mention.end :]
    # Only what belongs to the name counts: the last 80 characters before it.
    near = before[-80:]
    if language == "ja":
        if _DENY_AFTER["ja"].match(after):
            return "denies"
        if _OPEN_AFTER["ja"].match(after) or _OPEN["ja"].search(near):
            return (
                "favours" if _FAVOUR["ja"].search(after[:24]) and "可能性が高" in after else "open"
            )
        if _FAVOUR["ja"].search(after[:28]):
            return "favours"
        return "asserts" if _ASSERT["ja"].match(after) else "open"
    if _DENY_AFTER["en"].match(after):
        return "denies"
    if _OPEN_AFTER["en"].match(after):
        return "open"
    if denied(clause, mention.start, mention.end, language):
        hedged = re.search(
            r"\b(?:not|never|cannot|n't) (?:\w+ )?(?:exclude|rule|mean|prove|a diagnosis|tell|say|know|diagnos\w*)|n't (?:mean|prove)",
            near,
        )
        return "open" if hedged or _OPEN["en"].search(_NEGATED_HEDGE.sub("", near)) else "denies"
    if _OPEN["en"].search(near):
        return "open"
    if _FAVOUR["en"].search(near):
        return "favours"
    return "asserts" if _ASSERT["en"].search(near) else "open"


# "no signs of", "no suspicion of", "no risk of": hedging words that a denial uses.
_NEGATED_HEDGE = re.compile(
    r"\b(?:no|not|without|n't|never|lacks?|nothing)\b(?: \w+){0,4}? (?:signs?|suspicio\w+|concern\w*|risk|features? of|possib\w+|about|from)\b(?: \w+)?(?: of| for)?"
)


@check("label")
def label(pair: Pair, settings: Settings) -> Hit | None:
    """The answer asserts nothing that contradicts the diagnosis in the table.

    Synonyms, kinds of a diagnosis and groups above it are no contradiction.
    """
    truth = diagnoses.of_label(pair.known("label"), pair.known("diagnosis"))
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
