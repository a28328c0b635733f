"""A check of answers against what was measured in the image.

:func:`claims` reads what a clause says of asymmetry, border, colours, skin tone and artifacts;
:func:`against` compares one claim with the measurements.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from derm_rl.captions.checks.base import Hit, Pair, Settings, check, quote
from derm_rl.captions.checks.text import clauses, denied
from derm_rl.captions.schema import ARTIFACTS, COLOURS, Measurements


@dataclass(frozen=True)
class Claim:
    """``aspect`` is said to be ``value``; (start, end) is where in the clause."""

    aspect: str  # asymmetry, axes, border, colours, colour, skin_tone, artifacts, or an artifact
    value: bool | int | str
    start: int
    end: int


SKIN_TONES = ("very light", "light", "intermediate", "tan", "brown", "dark")
_NUMBER = {
    "en": {"one": 1, "a single": 1, "single": 1, "only one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6},
    "ja": {"一": 1, "二": 2, "三": 3, "四": 4, "五": 5, "六": 6, "単": 1, "ひとつ": 1, "二つ": 2, "ふたつ": 2, "三つ": 3},
}  # fmt: skip
_GENERIC = {
    "en": re.compile(
        r"\b(?:usually|often|typically|generally|tends? to|commonly|in general|rules? of|looks? (?:at|for)|stands? "
        r"for|criteri\w+|if|whether|when|would|should|may|might|could|assess\w*|consider\w*|evaluat\w+|score[sd]? "
        r"for|ask|asks|depends?|how (?:many|much|symmetric|regular)|than|in future|over time|changes? in|change)\b|\?"
    ),
    "ja": re.compile(
        r"一般に|一般的に|通常は|しばしば|場合|かどうか|もし|評価(?:し|する|の|項目)|か[?？]|とき|変化(?:が|を|し|の)|基準|ルール|べき|可能性|かもしれ|ことが多|たら|れば"
    ),
}
_HARD = {"en": r"(?:border|outline|edge|margin|contour|boundar(?:y|ie)|perimeter|rim|circumference|periphery)(?:s|es)?",
         "ja": r"(?:境界(?!母斑)|辺縁|輪郭|縁|ふち|外縁|外周|へり|周縁)"}  # fmt: skip
_ARTIFACT = {
    "en": {
        "hair": r"\bhairs?\b(?! follic| remov| bulb| loss)|\bhair(?:iness|y)\b|\bvellus\b|\bterminal hairs?\b",
        "gel_bubble": r"\b(?:gel|air|immersion|fluid|gas|oil)?[- ]?bubbl(?:es?|y|ing)\b",
        "ruler": r"\b(?:ruler|measuring (?:scale|tape|stick|strip)|scale ?bars?|tick ?marks?|graduat\w+ (?:scale|marks?)|"
        r"millimet(?:re|er) (?:scale|marks?|ticks?)|scale markings?|measuring marks?)s?\b",
        "ink": r"\b(?:ink\w*|pen ?marks?|pen|marker|surgical mark\w*|skin mark(?:er|ing)s?|felt[- ]tip\w*|gentian)s?\b(?! spot| pen ink)",
        "dark_corner": r"\b(?:dark|black|shaded|darkened)(?: image)? corners?\b|\bcorners? (?:\w+ )?(?:is|are|was|were|look|appear) (?:\w+ )?(?:dark|black)\w*|"
        r"\bvignett\w+|\b(?:dark|black) (?:frame|circular frame|rim of the field|edges of the image)\b",
        "artifacts": r"\b(?:art[ie]facts?|obstructions?|obstacles?|occlusions?|disturbances?|interference)\b",
    },
    "ja": {
        "hair": r"毛髪|体毛|(?<![刷産羽睫])毛(?![細包孔根嚢穴先囊布髪])",
        "gel_bubble": r"気泡|泡|バブル",
        "ruler": r"定規|スケール|目盛り?|ものさし|物差し|計測尺",
        "ink": r"インク|マーカー|ペン|マーキング",
        "dark_corner": r"(?:四隅|隅|コーナー|周辺)(?:部|部分)?(?:の|が|は)?(?:暗|黒|減光|影)[一-龠ぁ-ん]?|暗い(?:四)?隅|暗角|周辺減光|ケラレ|ビネット|ビネッティング|黒い(?:枠|隅|縁取り)|暗い枠",
        "artifacts": r"アーチファクト|アーティファクト|人工物|障害物|写り込み(?!ます|まし)|遮るもの|妨げるもの|遮蔽物|夾雑物",
    },
}
_COLOUR = {
    "en": {
        "light brown": r"\blight(?:er)?[- ]brown(?:ish)?\b(?! skin)",
        "dark brown": r"\bdark(?:er)?[- ]brown(?:ish)?\b(?! skin)",
        "black": r"\bblack(?:ish)?\b(?! skin| corner| frame| rim| edges)",
        "red": r"\bred(?:dish)?\b",
        "white": r"\bwhit(?:e|ish)\b(?! skin| light)",
        "blue-gray": r"\bblu(?:e|ish)[- ]?(?:gr[ae]y(?:ish)?|white)?\b(?! nev| naev)|\bgr[ae]y[- ]blue\b",
    },
    "ja": {
        "light brown": r"淡褐色|淡い茶色?|薄い茶色?|明るい茶色?|明褐色|薄茶色?|淡茶色?",
        "dark brown": r"濃褐色|暗褐色|濃い茶色?|暗い茶色?|こげ茶色?|焦げ茶色?|濃茶色?",
        "black": r"黒色(?!腫)|黒(?=[、・とやもがはい]|っぽ|み)(?!子)|黒い",
        "red": r"赤色|赤み|赤(?=[、・とやもがはい]|っぽ)|紅色",
        "white": r"白色(?!人)|白(?=[、・とやもがはい]|っぽ)",
        "blue-gray": r"青灰色|灰青色|青みがかった灰|青色(?!母斑)|青白",
    },
}  # fmt: skip
# Colours of these things are not the lesion's.
_OTHER_THING = {
    "en": re.compile(r"\b(?:skin|hairs?|ink|pen|marker|ruler|corners?|bubbles?|frame|light|tone|background|strokes?|ticks?|vignett\w+)\b"),
    "ja": re.compile(r"皮膚|肌|毛|インク|ペン|マーカー|定規|目盛|隅|気泡|泡|枠|背景|周辺"),
}  # fmt: skip


def _compile(table: dict[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(pattern) for name, pattern in table.items()}


_ARTIFACT_RE = {language: _compile(table) for language, table in _ARTIFACT.items()}
_COLOUR_RE = {language: _compile(table) for language, table in _COLOUR.items()}
# (aspect, value if said plainly, pattern); a denial turns True and False round.
_SAID: dict[str, list[tuple[str, bool, re.Pattern[str]]]] = {
    "en": [
        ("asymmetry", True, re.compile(
            r"\b(?:a|non-?|un)symmetric(?:al|ally)?\b|\basymmetry\b(?=\W+(?:\w+\W+){0,2}?(?:is|was|in|about|along|of|was|visible|present|evident))"
            r"|(?:(?:marked|clear|obvious|evident|pronounced|notable|strong|some|visible|show\w*|there is|display\w*|has|with|"
            r"no|any|without|lack\w*|of|not|slight|mild)\W+(?:\w+\W+){0,2}?)\basymmetry\b|\b(?:lop-?sided|unbalanced|uneven(?:ly)? (?:shaped|in shape))\b"
            r"|\bhalves\b.{0,20}\b(?:differ\w*|do not match|don't match|unlike|unequal|mismatch\w*)|\bsymmetry is (?:lost|broken)\b")),
        ("asymmetry", False, re.compile(
            r"(?<![a-z-])(?:bi|near-?|perfectly )?symmetric(?:al|ally)?\b|\bsymmetry\b(?! ax| rule| is (?:lost|broken))(?=\W+(?:\w+\W+){0,2}?(?:is|in|about|along|of|was|between|present|preserved))"
            r"|(?:(?:perfect|good|clear|full|preserved|complete|show\w*|there is|display\w*|has|with|no|without|lack\w*|loss of|"
            r"high|near|mirror)\W+(?:\w+\W+){0,2}?)(?<!a)symmetry\b|\bmirror[- ]?(?:images?|each other|one another|symmetric\w*)?\b|"
            r"\bhalves\b.{0,25}\b(?:match\w*|identical|alike|equal|the same|correspond\w*|coincide)|\b(?:well[- ]balanced|evenly (?:shaped|balanced))\b")),
        ("border", True, re.compile(
            rf"\b{_HARD['en']}\b[^.;]{{0,45}}?\b(?:irregular\w*|jagged|ragged|notched|uneven|scalloped|wavy|serrated|indented|bumpy|crooked)\b|"
            rf"\b(?:irregular\w*|jagged|ragged|notched|uneven|scalloped|wavy|serrated|indented|bumpy|crooked)\b(?: \w+| and| or|,){{0,2}}? {_HARD['en']}\b|"
            rf"\b{_HARD['en']} irregularity\b|\birregularity (?:of|in|along) the {_HARD['en']}")),
        ("border", False, re.compile(
            rf"\b{_HARD['en']}\b[^.;]{{0,45}}?\b(?<!ir)(?:regular(?:ly|ity)?|smooth\w*|even(?:ly)?|uniform(?:ly)?|unbroken|clean|circular|neat|rounded)\b|"
            rf"(?<!ir)(?<![a-z])(?:regular(?:ly)?|smooth\w*|even(?:ly)?|uniform(?:ly)?|unbroken|clean|neat|circular)\b(?: \w+| and| or|,){{0,2}}? {_HARD['en']}\b")),
        ("artifacts", False, re.compile(
            r"\b(?:clean|clear|unobstructed|unobscured|undisturbed|unimpeded|artifact-free|artefact-free) (?:view|image|field|picture|photograph|frame)\b|\bart[ei]fact-free\b")),
    ],
    "ja": [
        ("asymmetry", True, re.compile(r"非対称(?!性)|左右不同|左右差|いびつ|歪[んな]|非対称性(?=(?:が|は|を)(?:認|見|み|あ|目|強|明|顕|な|示))")),
        ("asymmetry", False, re.compile(r"(?<!非)対称(?!性|軸)|(?<!非)対称性(?=(?:が|は|を|に)(?:保|認|見|み|あ|高|良|な|欠|乏|失))|左右(?:が)?(?:同じ|等し|均等|均整)|均整|鏡(?:に|像|写|映)")),
        ("border", True, re.compile(rf"{_HARD['ja']}[^。、]{{0,14}}?(?:不整|不規則|ぎざぎざ|ギザギザ|凹凸|いびつ|でこぼこ|波打|乱れ|不揃い|ガタガタ)|(?:不整|不規則|ぎざぎざ|ギザギザ|凹凸のある|いびつ)な{_HARD['ja']}")),
        ("border", False, re.compile(rf"{_HARD['ja']}[^。、]{{0,14}}?(?<!不)(?:規則(?:的|正)|整(?:って|い|然|で|である|。|です|形)|滑らか|なめらか|平滑|均一|きれい|スムーズ|なだらか|円滑)|(?:規則的|規則正し|整った|滑らか|なめらか|平滑|均一|きれい)[なにい]?{_HARD['ja']}")),
        ("artifacts", False, re.compile(r"(?:クリア|鮮明|きれい)な(?:視野|画像)で(?:遮|妨)")),
    ],
}  # fmt: skip
_COUNT = {
    "en": re.compile(
        r"(?<!of the )(?<!of )(?<!all )\b(only one|a single|single|one|two|three|four|five|six|[1-6])\b (?:of (?:the )?(?:six|6) )?(?:(?!of\b)[\w-]+ ){0,2}?"
        r"(?:colou?rs?|hues?|shades?|tones?(?= of (?:brown|pigment))|pigment(?:ation)? colou?rs?)\b|"
        r"\b(two|three|four|five|six|one|[1-6]) of (?:the )?(?:six|6)\b|\bcolou?r (?:count|number|score)\D{0,12}([1-6])\b|"
        r"\bnumber of colou?rs\D{0,12}([1-6]|one|two|three|four|five|six)\b"
    ),
    "ja": re.compile(
        r"([1-6一二三四五六単])(?:つの|種類の|種の)?(?:色(?!素)|色調)|(?:色|色調|色数|色の数)(?:は|が|:|として|の数は|は合計|は全部で){1,2}[^。、0-9一二三四五六]{0,8}([1-6一二三四五六])(?:色|種|つ|個)|"
        r"色数[は:]? ?([1-6一二三四五六])|([1-6一二三四五六])つの(?:異なる)?色"
    ),
}
_UNIFORM = {
    "en": re.compile(
        r"\b(?:monochrom\w*|unicolou?r\w*|one-colou?red|single-colou?red|uniform(?:ly)? (?:in )?(?:colou?r\w*|brown|pigment\w*|hue)|"
        r"colou?r\w* (?:is|are|appears?|looks?) (?:\w+ )?(?:uniform|homogen\w+|even|the same)|homogen\w+ (?:in )?(?:colou?r\w*|pigment\w*)|"
        r"(?:same|uniform) (?:colou?r|shade|hue) (?:throughout|everywhere|all over)|even(?:ly)? (?:colou?red|pigmented))"
    ),
    "ja": re.compile(r"単色|一色|均一な色(?:調|合)?|色(?:調|合い)?(?:は|が)(?:全体に|全体的に)?(?:均一|一様|均質|単一)|一様な色|単一の色|単一色|同じ色|色むらが?(?:な|あり)"),
}
_MANY = {
    "en": re.compile(r"\b(?:multi-?colou?red|variegat\w+|poly-?chrom\w+|(?:many|several|multiple|numerous|various) (?:\w+ )?(?:colou?rs|hues|shades))\b"),
    "ja": re.compile(r"多彩|多色|色とりどり|(?:多く|複数|多数|様々|さまざま|多様)(?:の|な)色|多種の色"),
}
_AXES = {
    "en": re.compile(
        r"\b(one|two|both|neither|no|1|2|0|zero|either|single) (?:of (?:the|its) (?:two )?)?(?:principal |perpendicular |main |symmetry |of the )?(?:ax[ei]s|ax[ei]s of symmetry)\b"
    ),
    "ja": re.compile(r"([0-2一二両])(?:つの|本の|方の)?(?:主)?(?:軸|方向)|(いずれの|どちらの)(?:主)?(?:軸|方向)"),
}
_AXES_VALUE = {"one": 1, "single": 1, "1": 1, "一": 1, "two": 2, "both": 2, "2": 2, "二": 2, "両": 2,
               "neither": 0, "no": 0, "0": 0, "zero": 0}  # fmt: skip
_TONE = {
    "en": re.compile(
        r"\b(very light|light|intermediate|tan|brown|dark)(?:[- ](?:toned|coloured|colored))? (?:skin|complexion)\b|"
        r"\b(?:skin(?: tone| type| colou?r)?|complexion|skin[- ]tone class)\b(?: around \w+ \w+| surrounding \w+ \w+)?(?: is| was|:| as| falls? (?:in(?:to)?|under)| class| the| of| measures| reads| classed| rated| in| category| range){1,3} (very light|light|intermediate|tan|brown|dark)\b(?! (?:corner|hair|brown))"
    ),
    "ja": re.compile(r"(?:肌|皮膚)(?:の)?(?:色調|色|トーン|色素)[^。、]{0,12}?(?:は|が|:|として|で)[^。、]{0,8}?(非常に明るい|とても明るい|明るい|中間|褐色|茶色|小麦色|暗い)"),
}
_TONE_JA = {"非常に明るい": "very light", "とても明るい": "very light", "明るい": "light", "中間": "intermediate",
            "小麦色": "tan", "褐色": "brown", "茶色": "brown", "暗い": "dark"}  # fmt: skip


def claims(clause: str, language: str) -> Iterator[Claim]:
    """What one normalized clause says to be measured; general and conditional clauses say nothing."""
    if _GENERIC[language].search(clause):
        return
    axes = next(_axes(clause, language), None)
    if axes:
        yield axes
    for aspect, value, pattern in _SAID[language]:
        for m in pattern.finditer(clause):
            # "symmetric in one axis" says the number, not that the whole is symmetric.
            if aspect == "asymmetry" and axes:
                continue
            turned = _turned(clause, m, language)
            yield Claim(aspect, value != turned, m.start(), m.end())
    for name, pattern in _ARTIFACT_RE[language].items():
        for m in pattern.finditer(clause):
            there = not _turned(clause, m, language)
            if name == "artifacts" and there:
                continue  # "artifacts: hair" names them by itself
            yield Claim(name, there, m.start(), m.end())
    yield from _colour_claims(clause, language)
    for m in _TONE[language].finditer(clause):
        tone = next(g for g in m.groups() if g)
        yield Claim("skin_tone", _TONE_JA.get(tone, tone), m.start(), m.end())


def _turned(clause: str, found: re.Match[str], language: str) -> bool:
    return denied(clause, found.start(), found.end(), language)


def _axes(clause: str, language: str) -> Iterator[Claim]:
    about = "対称" if language == "ja" else "symmetr"
    if about not in clause:
        return
    for m in _AXES[language].finditer(clause):
        word = next(g for g in m.groups() if g)
        number = _AXES_VALUE.get(word)
        plain = re.search(r"(?<!非)対称(?!性|軸)" if language == "ja" else r"(?<!a)\bsymmetric|(?<!a)\bsymmetry in", clause)
        if language == "ja" and number is not None and _turned(clause, m, language):
            number = 0
        if number is None:
            continue
        # Symmetric in both axes: none is asymmetric.
        yield Claim("axes", 2 - number if plain else number, m.start(), m.end())


def _colour_claims(clause: str, language: str) -> Iterator[Claim]:
    for m in _COUNT[language].finditer(clause):
        word = next(g for g in m.groups() if g)
        number = _NUMBER[language].get(word) or int(word)
        if not _turned(clause, m, language):
            yield Claim("colours", number, m.start(), m.end())
    for m in _UNIFORM[language].finditer(clause):
        if not _turned(clause, m, language) or "色むら" in m.group():
            yield Claim("colours", 1, m.start(), m.end())
    for m in _MANY[language].finditer(clause):
        if not _turned(clause, m, language):
            yield Claim("many_colours", True, m.start(), m.end())
    if _OTHER_THING[language].search(clause):
        return
    for name, pattern in _COLOUR_RE[language].items():
        for m in pattern.finditer(clause):
            yield Claim("colour", name, m.start(), m.end()) if not _turned(
                clause, m, language
            ) else Claim("no_colour", name, m.start(), m.end())


def against(claim: Claim, measured: Measurements, settings: Settings) -> Hit | None:
    """How much the measurements speak against one claim; None if they do not, or are missing."""

    def off(by: int, tolerance: int) -> float:
        return 0.0 if by == 0 else 0.4 if by <= tolerance else 0.8

    aspect, value = claim.aspect, claim.value
    if aspect in ARTIFACTS:
        if measured.artifacts.get(aspect) in (None, value):
            return None
        return 0.9, f"{aspect} was {'not ' if value else ''}measured"
    if aspect == "artifacts":
        there = [name for name, found in measured.artifacts.items() if found]
        return (0.9, f"measured: {', '.join(there)}") if there else None
    if aspect == "skin_tone":
        if measured.skin_tone not in SKIN_TONES or value not in SKIN_TONES:
            return None
        by = abs(SKIN_TONES.index(str(value)) - SKIN_TONES.index(measured.skin_tone))
        score, was = off(by, settings.skin_tone_tolerance), measured.skin_tone
    elif not measured.segmented:
        return None
    elif aspect in ("asymmetry", "axes"):
        if measured.asymmetric_axes is None:
            return None
        was = f"asymmetric in {measured.asymmetric_axes} axes"
        if aspect == "axes":
            score = off(abs(int(value) - measured.asymmetric_axes), settings.axes_tolerance)
        else:
            score = 0.9 if bool(value) != (measured.asymmetric_axes > 0) else 0.0
    elif aspect == "border":
        if measured.irregular_border is None:
            return None
        was = "irregular" if measured.irregular_border else "regular"
        score = 0.9 if bool(value) != measured.irregular_border else 0.0
    elif not measured.colours:
        return None
    else:
        was = ", ".join(measured.colours)
        if aspect == "colours":
            score = off(abs(int(value) - len(measured.colours)), settings.colours_tolerance)
        elif aspect == "many_colours":
            score = 0.7 if len(measured.colours) == 1 else 0.0
        elif aspect == "colour":
            score = 0.6 if value not in measured.colours else 0.0
        else:
            score = 0.6 if value in measured.colours else 0.0
    return (score, f"measured: {was}") if score else None


@check("measurement")
def measurement(pair: Pair, settings: Settings) -> Hit | None:
    """The answer and its findings agree with what was measured in the image."""
    if pair.measured is None:
        return None
    best: Hit | None = None
    for clause in clauses(pair.answer, pair.language):
        for claim in claims(clause, pair.language):
            hit = against(claim, pair.measured, settings)
            if hit and hit[0] > (best[0] if best else 0):
                best = hit[0], f"says {quote(clause)}, {hit[1]}"
    return best


assert set(COLOURS) == set(_COLOUR["en"]) == set(_COLOUR["ja"])
