"""Checks of what an answer may not know: the prompt, and metadata as if they were seen."""

from __future__ import annotations

import re

from derm_rl.captions import diagnoses
from derm_rl.captions.checks.base import Hit, Pair, Settings, check, quote
from derm_rl.captions.checks.terms import pattern
from derm_rl.captions.checks.text import sentences


@check("prompt_leak")
def prompt_leak(pair: Pair, settings: Settings) -> Hit | None:
    """The answer speaks of the image, not of its prompt, label or metadata."""
    for language in dict.fromkeys((pair.language, "en")):
        if found := pattern("prompt_leak", language).search(pair.answer):
            return 1.0, f"speaks of its prompt: {quote(found.group())}"
    return None


# --------------------------------------------------------------------------- metadata leak

# Words that tables use for sites, as they are said in answers.
SITES: dict[str, tuple[str, str]] = {
    "back": (r"back(?! to| and forth|ground|-up)", r"背部|背中|背面"),
    "lower extremity": (
        r"lower (?:extremit\w+|limbs?|legs?)|legs?|thighs?|calf|calves|shins?",
        r"下肢|脚|下腿|大腿|すね",
    ),
    "upper extremity": (
        r"upper (?:extremit\w+|limbs?|arms?)|arms?|forearms?|shoulders?",
        r"上肢|腕|前腕|上腕",
    ),
    "trunk": (r"trunk|torso", r"体幹|胴体|胴"),
    "torso": (r"trunk|torso", r"体幹|胴体|胴"),
    "abdomen": (r"abdom\w+|belly|stomach|tummy", r"腹部|お腹|おなか|腹"),
    "chest": (r"chest|breast", r"胸部|胸"),
    "face": (r"face|facial skin|cheeks?|forehead", r"顔面|顔|頬|額"),
    "scalp": (r"scalp|head", r"頭皮|頭部"),
    "head": (r"head|scalp|face", r"頭部|頭皮|顔"),
    "neck": (r"neck|nape", r"頸部|首|うなじ"),
    "ear": (r"ears?", r"耳"),
    "nose": (r"nose", r"鼻"),
    "lip": (r"lips?", r"口唇|唇"),
    "hand": (
        r"hands?(?![- ](?:side|held|lens))|fingers?|palms?",
        r"手背|手掌|手のひら|手の甲|(?<![上下相])手(?![術前順掛がか])",
    ),
    "arm": (r"arms?", r"腕|上肢"),
    "leg": (r"legs?", r"脚|下肢"),
    "thigh": (r"thighs?", r"大腿"),
    "foot": (
        r"foot|feet|soles?|toes?|heels?",
        r"足底|足背|足の裏|足の甲|(?<![不補満])足(?![りし])",
    ),
    "palm": (r"palms?|soles?", r"手掌|足底|掌蹠"),
    "acral": (r"acral skin|palms?|soles?", r"末端部|掌蹠|手掌|足底"),
    "genital": (r"genitals?|genital area", r"陰部|外陰部|生殖器"),
}
_HERE = {
    "en": r"\b(?:on|of|from|over|at|near|upon|across|in|along)\s+"
    r"(?:the|his|her|their|a|an|this|one'?s?)?\s*"
    r"(?:(?:patient|man|woman|person|individual|subject)'?s?\s+)?"
    r"(?:(?:left|right|upper|lower|mid|middle|outer|inner|lateral|medial|anterior|posterior|"
    r"skin of the)\s+)*{site}\b|"
    r"\b{site}\s+(?:skin|lesion|location|region|area|site|mole|nevus|spot)\b|"
    r"\b(?:site|location|localization|region|area|part|body)\b[^.]{{0,24}}\b{site}\b|"
    r"\b{site}\b[^.]{{0,24}}\b(?:site|location|localization|region|body part)\b|"
    # "shows the face"; but neither "the back of the image" nor "the other hand"
    r"\b(?:the|his|her|their|patient's|person's|man's|woman's|someone's|left|right|a)\s+"
    r"(?:(?:patient|left|right|upper|lower|outer|inner|skin of the)'?s?\s+)*{site}\b"
    r"(?!\s+(?:of\s+(?:the|this|that|an?|its)\s+(?:image|picture|photo|lesion|frame|lens|field)|"
    r"and forth|to))",
    "ja": r"(?:{site})(?:に(?:ある|生じ|見られ|位置|でき|存在|認め|発生|あり|出現|分布|撮影)|"
    r"の(?:病変|皮膚|母斑|ほくろ|色素|部位|黒色|メラノ|写真|画像|皮疹|斑)|[^。、]{{0,8}}(?:像|写真|接写|ダーモ)|で(?:撮影|す|あ|あり)|"
    r"から(?:撮影|採|生|発|得)|上の|皮膚|部の|部に|病変|を(?:写し|撮影|拡大|接写|撮)|が(?:部位|写)|領域|特有|上に|(?:に|の|を|で|上)(?:一|色|暗|褐|占|侵|覆|見え|写|特|あ)|であ|だ)|"
    r"部位(?:は|が|として|:)?[^。]{{0,6}}(?:{site})",
}


def site_pattern(site: str, language: str) -> re.Pattern[str] | None:
    """How an answer would place the lesion at ``site`` of the table; None for an unknown site."""
    index = 0 if language == "en" else 1
    site = site.lower()
    words = [names[index] for key, names in SITES.items() if re.search(rf"\b{key}\b", site)]
    if not words or language == "ja":  # Japanese answers may keep the table's word
        words.append(re.escape(site))
    if not words:
        return None
    return re.compile(_HERE[language].format(site=f"(?:{'|'.join(words)})"))


def seen_metadata(sentence: str, pair: Pair) -> str | None:
    """What one sentence knows that no image shows: age, sex, recorded site, proven label."""
    language = pair.language
    if found := pattern("age", language).search(sentence):
        return f"an age, {quote(found.group())}"
    said = {sex: pattern(sex, language).search(sentence) for sex in ("male", "female")}
    if bool(said["male"]) != bool(said["female"]):  # both at once speaks of people in general
        found = said["male"] or said["female"]
        return f"a sex, {quote(found.group())}"
    site = pair.known("site")
    here = site_pattern(site, language) if isinstance(site, str) else None
    if here and (found := here.search(sentence)):
        return f"the recorded site, {quote(found.group())}"
    if diagnoses.mentions(sentence):
        found = pattern("proven", language).search(sentence)
        if not found and not pattern("proof_open", language).search(sentence):
            found = pattern("proof", language).search(sentence)
        if found:
            return f"a known diagnosis, {quote(found.group())}"
    return None


@check("metadata_leak")
def metadata_leak(pair: Pair, settings: Settings) -> Hit | None:
    """Age, sex, site or label are not quoted as if seen.

    An answer that had the metadata may name them as recorded; one of the image alone may not.
    """
    grounded = pair.text("mode") == "grounded"
    for sentence in sentences(pair.answer):
        what = seen_metadata(sentence, pair)
        if what and not (grounded and pattern("recorded", pair.language).search(sentence)):
            how = "without saying that it is recorded" if grounded else "though blind to metadata"
            return 1.0, f"names {what}, {how}"
    return None
