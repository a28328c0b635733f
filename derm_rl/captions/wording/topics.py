"""What a question is about, by its words: which facts and which entries of the record answer it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from derm_rl.captions.schema import Language

# Facts of the image, then entries of the record, then weighing.
_WORDS: dict[str, tuple[str, str]] = {
    "symmetry": (
        r"symmetr|\bax[ei]s\b|\bfold|mirror|\bhal(?:f|ves)\b|\babcd|\bshape|visible features?|"
        r"criteria",
        r"対称|軸|鏡|半分|釣り合|abcd|形|特徴|基準",
    ),
    "border": (
        r"border|outline|margin|contour|boundary|\babcd|visible features?|criteria",
        r"辺縁|輪郭|縁|境界が|境界は|abcd|特徴|基準",
    ),
    "colours": (
        r"colou?rs?\b|palette|shades?\b|pigment|painted|melanin|redness|\babcd|visible features?",
        r"色(?!調|腫|母斑|性)|配色|メラニン|赤み|abcd|特徴",
    ),
    "size": (
        r"\bsizes?\b|diameter|how (?:large|wide)|\bshare\b|extent|portion|\bmm\b|\bscale\b|take up|"
        r"dominate",
        r"大きさ|径|幅|割合|何割|サイズ|ミリ|面積|どれくらいの面積",
    ),
    "place": (r"\bwhere\b|\blocate\b|placement|\blie\b", r"どこに|位置|配置"),
    "edge": (r"cut off|field of view|reach the edge|suitable for measurement|the field",
        r"切れて|視野|端に",
    ),
    "skin": (
        r"skin tone|skin type|fitzpatrick|typology|tone of the skin|\btone\b|skin around",
        r"色調|皮膚色|皮膚タイプ|フィッツパトリック|類型角|肌の色",
    ),
    "artifacts": (
        r"artifact|\bhair\b|bubble|ruler|\bink\b|corner|markings|\bgel\b|covering|disturb|"
        r"in the way|over the skin|synthetic|annotat|caption|good enough|something in|set apart",
        r"アーチファクト|毛|気泡|定規|インク|四隅|ゼリー|妨げ|乱す|邪魔|重なる|説明文|合成|画質",
    ),
    "quality": (
        r"quality|lighting|camera|phones?\b|photograph|sharp|picture can",
        r"画質|照明|カメラ|スマートフォン|写真|鮮明|撮",
    ),
    "age": (r"\bages?\b|\baged\b|\byears\b", r"年齢|歳"),
    "sex": (r"\bsex\b|\b(?:fe)?male\b", r"性別|男性|女性"),
    "site": (r"\bsites?\b|body part|recorded (?:at|on) the|at the\b.*\breading|lesion of the",
        r"部位",
    ),
    "history": (
        r"symptom|history|growth|bleeding|itching|lasted|contributor|textures?\b|noticed|reported\b|"
        r"reports\b|time course|ask the patient",
        r"症状|経過|訴え|増大|出血|かゆみ|続|投稿者|質感|申告|尋ね",
    ),
    "label": (
        r"diagnos|class(?:es|if\w+)?\b|\blabel\b|\bentry\b|taxonomy|\bfiled?\b|branch|lookalike|weighed|"
        r"\blevels?\b|pathologist|malignan",
        r"診断|クラス|ラベル|登録|分類|枝|紛らわしい|評価者|階層|病理|良性|悪性|疾患",
    ),
    "concern": (
        r"suspici|worr|urgent|alarm|referral|\brisk|concern|\bscore|\babcd|hesitate|follow most|"
        r"stands? out|present the|summarize|outline how|mark on|weight|findings",
        r"疑|心配|緊急|警戒|紹介|リスク|懸念|加点|abcd|ためらわせ|追う|目立つ|まとめ|印を|重視|"
        r"提示|所見",
    ),
}  # fmt: skip
_PATTERNS = {
    topic: {"en": re.compile(en, re.IGNORECASE), "ja": re.compile(ja, re.IGNORECASE)}
    for topic, (en, ja) in _WORDS.items()
}
RECORD_SLOTS = {
    "age": ("age", "age_group"),
    "sex": ("sex",),
    "site": ("site",),
    "skin": ("skin_type",),
    "size": ("diameter_1", "diameter_2"),
    "history": ("symptoms", "duration", "textures"),
    "label": (
        "diagnosis", "label", "super_class", "main_class_1", "main_class_2", "sub_class",
        "malignancy", "diagnosis_1", "diagnosis_2", "diagnosis_3",
    ),
}  # fmt: skip
SLOT_TOPIC = {slot: topic for topic, slots in RECORD_SLOTS.items() for slot in slots}


def topics(text: str, language: Language, quoted: Iterable[str] = ()) -> tuple[str, ...]:
    """Topics in the order in which the text comes to them; empty if it names none.

    Args:
        quoted: slots of the record whose values stand in the text; their topics come first.
    """
    found = {t: m.start() for t, by in _PATTERNS.items() if (m := by[language].search(text))}
    found |= {SLOT_TOPIC[slot]: -1 for slot in quoted if slot in SLOT_TOPIC}
    return tuple(sorted(found, key=found.__getitem__))


def quoted(text: str, record: Mapping[str, str]) -> list[str]:
    """Slots of the record whose values stand in the text, as words of their own.

    A single digit or numeral ("I") may stand there for anything else and does not count.
    """
    return [
        slot
        for slot, value in record.items()
        if len(value) > 1 and re.search(rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])", text)
    ]
