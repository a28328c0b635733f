"""Checks of what an answer may not know: the prompt, and metadata as if they were seen."""

from __future__ import annotations

import re

from derm_rl.captions import diagnoses
from derm_rl.captions.checks.base import Hit, Pair, Settings, check, quote
from derm_rl.captions.checks.safety import compiled
from derm_rl.captions.checks.text import sentences

_DATA = (
    r"(?:meta-?data|label|prompt|annotation|ground[- ]truth|instruction|ground truth|caption|"
    r"csv|json|data ?set entry|input (?:data|text|fields?)|text (?:input|field)s?|fields?)s?"
)
PROMPT_LEAK = {
    "en": compiled(
        rf"\b(?:according to|based on|as per|per|given|from|using|in line with|following|as (?:stated|"
        rf"indicated|specified|noted|described|mentioned|written|listed) (?:in|by)|consistent with|"
        rf"matches|with reference to|relying on|in accordance with|drawn from|taken from|judging (?:by|"
        rf"from)|owing to|thanks to|because of|due to|considering|in view of)\b (?:the|your|its|this|that|"
        rf"an?)? ?(?:\w+ ){{0,2}}{_DATA}\b",
        rf"\b{_DATA}\b (?:\w+ )?(?:says?|states?|stated|tells?|told|indicates?|indicated|specif(?:y|ies|"
        rf"ied)|mentions?|mentioned|reads?|lists?|listed|confirms?|gives?|provided?|asks?|asked|wants?|"
        rf"reveals?|identif\w+|describes?|shows?|(?:was|were|is|are|has been) (?:\w+ )?(?:provided|given|supplied|"
        rf"set|attached|included))\b",
        rf"\b(?:provided|supplied|given|accompanying|attached|associated|included|hidden|embedded|input|"
        rf"system|user|original|above|true|known|reference|gold) (?:\w+ )?{_DATA}\b",
        r"\b(?:the )?(?:provided|supplied|given|accompanying) (?:clinical |patient |additional |textual )?"
        r"(?:information|details|context|diagnosis|description|data|text|history|facts|background)\b",
        r"\b(?:information|diagnosis|data|details|context|text|label|answer|hint) (?:that )?(?:you|i|we) "
        r"(?:\w+ )?(?:provided|gave|given|supplied|shared|included|mentioned|told|received)\b|"
        r"\b(?:information|diagnosis|data|details|context) (?:that )?(?:was|were|is) (?:\w+ )?(?:given to|"
        r"provided to|supplied to|shared with|handed to) (?:me|us)\b|\byou (?:have )?told me\b|\bi was "
        r"(?:\w+ )?(?:told|given|instructed|asked|informed|provided|prompted|shown|tasked)\b|\b(?:as|like) "
        r"(?:you )?(?:instructed|requested|directed|prompted)\b|\bas (?:asked|you asked)\b",
        r"\b(?:system|user|hidden|original|my|your|the|this) (?:prompt|instructions?)\b|\bin the prompt\b|"
        r"\b(?:my|the|your|these) (?:\w+ )?instructions? (?:say|were|are|require|ask|tell|told|state)|"
        r"\bprompt(?:ed)? (?:me )?to\b|\b(?:json|output|response|answer) (?:schema|format|field)\b|"
        r"\bmeta-?data\b|\bground[- ]truth\b|\b(?:training|test) (?:set|data) label\b|\bimage_id\b|"
        r"\bfile ?name\b|\b[a-z]+_(?:type|id|class|label|name|approx|general|site)\b",
    ),
    "ja": compiled(
        r"メタデータ|プロンプト|正解ラベル|ラベル(?:に|は|が|の|で|を|情報|から|上|付け|どおり|通り)|アノテーション|グラウンドトゥルース|真値ラベル|入力(?:データ|"
        r"情報|文|テキスト|欄)|システムメッセージ|システム(?:の)?指示|ファイル名|データセットの(?:項目|情報|ラベル|正解|表記|注釈)|正解データ|付帯情報|項目欄|"
        r"スキーマ|json|csv",
        r"(?:与えられた|提供された|渡された|付与された|添付された|ご提示(?:の|いただいた)|提示された|ご提供(?:の|いただいた)|いただいた|頂いた|受け取った|指定された|"
        r"入力された|付随する|付属の|教えられた|知らされた|共有された|送られた|示された)(?:[一-龠ぁ-んァ-ヶ]{0,6})?(?:情報|診断名?|データ|ラベル|説明|文脈|テキスト|指示|"
        r"条件|内容|注釈|設定|答え|病名|背景|ヒント)",
        r"(?:指示|指令|命令|指定)(?:に(?:従|基づ|よれ|よる|は|ある|沿)|どおり|通り|では|の通り|のとおり|文|書)|"
        r"(?:情報|診断|病名|答え|正解|データ)(?:を|が|は)(?:事前に|あらかじめ|すでに|先に)?(?:与えられ|渡され|知らされ|教えられ|提供され|提示され|示され|聞かされ|"
        r"伝えられ|共有され|いただい|頂い|付与され)|(?:事前|あらかじめ)(?:に)?(?:与え|知ら|渡|教え|伝え|提供|聞)",
    ),
}


@check("prompt_leak")
def prompt_leak(pair: Pair, settings: Settings) -> Hit | None:
    """The answer speaks of the image, not of its prompt, label or metadata."""
    for language in dict.fromkeys((pair.language, "en")):
        if found := PROMPT_LEAK[language].search(pair.answer):
            return 1.0, f"speaks of its prompt: {quote(found.group())}"
    return None


# --------------------------------------------------------------------------- metadata leak

# A statement said to come from a record is no claim to have seen it.
_RECORDED = {
    "en": re.compile(
        r"\b(?:record(?:s|ed)?|report(?:s|ed)?|register(?:ed)?|registry|document(?:s|ed|ation)?|listed|"
        r"lists|chart|on file|histor(?:y|ies)|case (?:notes?|file|data)|catalogu?ed?|catalogue|entry|"
        r"entered|noted (?:in|as)|notes?|stated (?:as|in|age)|states|according to|archive|"
        r"filed|not (?:something )?(?:seen|visible|read|inferred|derived|taken)|clinical (?:data|details|"
        r"information))\b"
    ),
    "ja": re.compile(
        r"記録|登録|報告|記載|カルテ|によれば|によると|データ上|情報として|申告|台帳|とされて|問診|臨床情報|画像から(?:読み取|得|判断|わか|分か)[^。]*(?:ない|ませ|なく)"
    ),
}
_SEX = {
    "en": {
        "male": r"\b(?:man|men's|male|gentleman|boy|he|his|him|mr)\b",
        "female": r"\b(?:woman|female|lady|girl|she|hers?|mrs|ms)\b",
    },
    "ja": {"male": r"男性|男子|男児|彼(?!女)", "female": r"女性|女子|女児|彼女"},
}
_PATIENT = {
    "en": re.compile(
        r"\b(?:[1-9]?\d|1[01]\d)[- –]?(?:year|yr)s?[- –]?olds?\b|\bage(?:d| of| is|:| =)? (?:about |around |"
        r"roughly |approximately )?(?:[1-9]\d|1[01]\d)\b|\b(?:[1-9]\d|1[01]\d) years? of age\b|\b(?:in (?:his|"
        r"her|their|the) (?:early |mid-?|late )?|mid-?|late |early )?(?:twenties|thirties|forties|fifties|"
        r"sixties|seventies|eighties|nineties|[2-9]0'?s)\b|\b(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|"
        r"ninety)(?:[- ]\w+)?[- ]years?[- ]old\b|\b(?:[1-9]\d|1[01]\d) y/?o\b|"
        r"\b(?:[1-9]\d|1[01]\d)[- ](?:year|yr)\b(?! (?:follow|risk|survival))|\baged? (?:patient )?(?:[1-9]\d)\b|"
        r"\b(?:[1-9]\d|1[01]\d) years\b"
    ),
    "ja": re.compile(
        r"\d{1,3} ?(?:歳|才)|年齢(?:は|が)(?!分か|わか|不明|画像)[^。]{0,6}\d|[2-9]0 ?代|[二三四五六七八九]十(?:[一二三四五六七八九])?(?:歳|代|才)"
    ),
}
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
    "hand": (r"hands?|fingers?|palms?", r"手背|手掌|手のひら|手の甲|手"),
    "arm": (r"arms?", r"腕|上肢"),
    "leg": (r"legs?", r"脚|下肢"),
    "thigh": (r"thighs?", r"大腿"),
    "foot": (r"foot|feet|soles?|toes?|heels?", r"足底|足背|足の裏|足の甲|足"),
    "palm": (r"palms?|soles?", r"手掌|足底|掌蹠"),
    "acral": (r"acral skin|palms?|soles?", r"末端部|掌蹠|手掌|足底"),
    "genital": (r"genitals?|genital area", r"陰部|外陰部|生殖器"),
}
_HERE = {
    "en": r"\b(?:on|of|from|over|at|near|upon|across|in|along)\s+(?:the|his|her|their|a|an|this|one'?s?)?\s*"
    r"(?:(?:patient|man|woman|person|individual|subject)'?s?\s+)?(?:(?:left|right|upper|lower|mid|middle|outer|"
    r"inner|lateral|medial|anterior|posterior|skin of the)\s+)*{site}\b|\b{site}\s+(?:skin|lesion|location|region|area|"
    r"site|mole|nevus|spot)\b|\b(?:site|location|localization)\b[^.]{{0,12}}\b{site}\b",
    "ja": r"(?:{site})(?:に(?:ある|生じ|見られ|位置|でき|存在|認め|発生|あり|出現|分布|撮影)|の(?:病変|皮膚|母斑|ほくろ|色素|部位|黒色|メラノ|写真|画像|皮疹|斑)|で(?:撮影|す|あ|"
    r"あり)|から(?:撮影|採)|上の|皮膚|を(?:写し|撮影)|が(?:部位|写))|部位(?:は|が|として)[^。]{{0,6}}(?:{site})",
}


def site_pattern(site: str, language: str) -> re.Pattern[str] | None:
    """How an answer would place the lesion at ``site`` of the table; None for an unknown site."""
    index = 0 if language == "en" else 1
    site = site.lower()
    words = [names[index] for key, names in SITES.items() if re.search(rf"\b{key}\b", site)]
    if not words and language == "en":
        words = [re.escape(site)]
    if not words:
        return None
    return re.compile(_HERE[language].format(site=f"(?:{'|'.join(words)})"))


_PROVEN = {
    "en": compiled(
        r"\b(?:biops(?:y|ies)|histolog\w+|histopatholog\w+|patholog\w+|pathologist|lab(?:oratory)?|"
        r"excision|clinical follow-?up|expert consensus|consensus|follow-?up)[- ](?:\w+[- ]){0,2}(?:proven|"
        r"confirmed|verified|established|proved|confirms|showed|shows|returned|reported|revealed|found|"
        r"demonstrated|supported|backed|documented|diagnosed|result)\b",
        r"\b(?:confirmed|proven|verified|established|diagnosed|validated|proved)\b.{0,25}\b(?:by|on|through|in|via|"
        r"with|at) (?:\w+ ){0,2}(?:biops|histolog|histopatholog|patholog|excision|consensus|laboratory)",
        r"\b(?:known|previously diagnosed|recorded|established|true|actual|final|official|given|"
        r"confirmed|documented|assigned|registered|reported|listed|previously confirmed|already "
        r"diagnosed|earlier diagnosed|already known|pre-?existing) (?:\w+ ){0,1}(?:diagnosis|label|case of|to be|as)\b",
        r"\b(?:has been|was|were|is|been|already|previously|formally|officially) (?:\w+ )?(?:diagnosed|recorded|"
        r"labell?ed|classified|catalogu?ed|registered|coded|listed|annotated|filed|documented|entered|tagged|marked) "
        r"(?:\w+ )?(?:as|to be|with|under)\b",
    ),
    "ja": compiled(
        r"(?:生検|病理|組織|組織学的|摘出|切除標本|専門医|検査)[^。、]{0,10}(?:で|により|にて|の結果|によって|として|所見で|から|上|は)[^。]{0,16}(?:確認|証明|確定|診断|"
        r"裏付|判明|実証|立証|検証|と出|認定)(?:され|済み|ずみ|し(?:た|て)|が(?:つい|下|確定)|できて|がなされ|られ)|"
        r"(?:既知|既に確定|確定した|記録された|登録された|真|正式|最終|実際|既定|確定|記録上|登録上|報告された|公式|判明している)の?(?:診断名?|病名)",
        r"(?:と|として)(?:すでに|既に|正式に|以前に|過去に|先に)?(?:記録|登録|分類|報告|記載|ラベル|コード|登載|届け出)(?:され|が|付け|済)|"
        r"(?:すでに|既に|以前に|過去に|かつて|先に|前医で)[^。]{0,14}(?:と|が|の)(?:確定)?診断(?:され|がつい|済み|を受け|が下|が確定)",
    ),
}


def seen_metadata(sentence: str, pair: Pair) -> str | None:
    """What one sentence knows that no image shows: age, sex, the site of the row, a proven label."""
    language = pair.language
    if found := _PATIENT[language].search(sentence):
        return f"an age, {quote(found.group())}"
    person = _SEX[language]
    sex = str(pair.known("sex") or "").lower()
    other = [p for p in person if p != sex]
    for which in (sex, *other):
        # Both named at once ("men and women alike") speaks of people in general.
        if which in person and (found := re.search(person[which], sentence)):
            opposite = next(person[p] for p in person if p != which)
            if not re.search(opposite, sentence):
                return f"a sex, {quote(found.group())}"
    site = pair.known("site")
    if (
        isinstance(site, str)
        and (pattern := site_pattern(site, language))
        and (found := pattern.search(sentence))
    ):
        return f"the recorded site, {quote(found.group())}"
    if diagnoses.mentions(sentence) and (found := _PROVEN[language].search(sentence)):
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
        if what and not (grounded and _RECORDED[pair.language].search(sentence)):
            how = (
                "without saying that it is recorded" if grounded else "though it saw only the image"
            )
            return 1.0, f"names {what}, {how}"
    return None
