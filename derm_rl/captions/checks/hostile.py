"""A check of what an answer may do to whoever shows or reads it."""

from __future__ import annotations

import re
import unicodedata

from derm_rl.captions.checks.base import Hit, Pair, Settings, check, normalize, quote

_MARKUP = re.compile(
    r"<\s*[/!?]?\s*[a-z][^<>]{0,2000}>|<\s*/?\s*(?:script|iframe|img|svg|object|embed|style|link|meta|"
    r"form|base|a|body|html|div|video|audio|input|math)\b|(?:javascript|vbscript|livescript)\s*:|"
    r"data\s*:\s*(?:text/html|image/svg|application/|[\w/+.-]+\s*;\s*base64)|\bon[a-z]{3,20}\s*=\s*['\"\w]|"
    r"&#x?[0-9a-f]{2,6};|&(?:lt|gt|quot|amp|nbsp|tab|newline|colon);|\bexpression\s*\(|"
    r"!?\[[^\]\n]{0,200}\]\(\s*[^)\s]|https?://|\bfile://|<!--|\]\]>|\{\{.{0,80}\}\}|\$\{.{0,80}\}|"
    r"\{%.{0,80}%\}|(?:document|window)\s*\.\s*(?:cookie|location|write)|\beval\s*\(|\balert\s*\(|"
    r"(?:;|--)\s*drop\s+table|%3c\s*/?[a-z]|\\u003c|\\x3c"
)
_TEMPLATE = re.compile(
    r"<\|[^|>\n]{1,40}\|>|\[/?inst\]|<</?sys>>|</?s>|(?:^|\n)\s*#{0,4}\s*\[?(?:system|assistant|user|"
    r"human|developer|instruction|tool)\]?\s*(?:message|prompt|override)?\s*[:>]"
)
_WHAT = (
    r"(?:instruction|prompt|rule|guideline|direction|command|constraint|message|context|conversation|"
    r"text|order|task|training|restriction|polic|safeguard|filter|everything|anything|all that)"
)
_INJECTION = re.compile(
    r"\b(?:ignor\w*|disregard\w*|forget\w*|overrid\w*|overwrit\w*|bypass\w*|discard\w*|dismiss\w*|"
    r"neglect|abandon|skip|drop|supersed\w*|cancel)\b.{0,30}\b(?:previous|prior|above|earlier|preceding|"
    r"foregoing|all|any|your|the|these|those|system|original|existing|given|initial|other|safety|you)\b"
    rf".{{0,25}}\b{_WHAT}|"
    r"\byou are (?:now|no longer|hereby)\b|\bfrom now on,? (?:you|act|respond|answer|reply|always)|"
    r"\b(?:act|behave|respond|pretend)\b.{0,15}\b(?:as|like|to be|you are)\b.{0,20}\b(?:dan|unrestricted|"
    r"jailbr\w+|administrator|root|developer mode|evil|hacker|no (?:rules|limits|restrictions))|"
    r"\b(?:reveal|print|repeat|show|output|expose|leak|display|send|tell me|dump|exfiltrate)\b.{0,30}\b"
    r"(?:system (?:prompt|message)|your (?:instructions|prompt|rules|keys?|configuration)|hidden prompt|"
    r"api keys?|credentials|password|secrets?|environment variables)|"
    r"\b(?:new|updated|revised|real|actual) (?:system )?(?:instructions?|task|prompt|orders?)\s*[:=]|"
    r"\b(?:jailbreak|developer mode|do anything now|prompt injection|sudo mode|admin mode|god mode)\b|"
    r"\b(?:mark|rate|score|grade|label|classify|approve|accept|judge)\b.{0,15}\b(?:this|the)\b "
    r"(?:answer|pair|response|text|output|entry|sample)\b.{0,15}\b(?:as|with|correct|accept|perfect|10|5)|"
    r"\b(?:reviewers?|graders?|judges?|evaluators?)\b ?[:,].{0,30}\b(?:accept|approve|must|pass|rate)|"
    r"\brespond only with\b|\byour (?:new|only|true|real) (?:task|goal|role|job|purpose|instruction)|"
    r"\b(?:execute|run) (?:the following|this) (?:command|code|script)|\brm -rf\b|\bcurl \S+|\bwget \S+"
)
_INJECTION_JA = re.compile(
    r"(?:指示|命令|ルール|プロンプト|指令|制約|規則|前提|文脈|会話|方針|制限|設定|内容|入力)[^。]{0,12}(?:無視|忘れ|破棄|従わ(?:ない|ず)|上書き|取り消|"
    r"無効|解除|捨て|リセット|守ら(?:ない|ず)|消去|撤回|迂回)|(?:無視|忘れ)[^。]{0,8}(?:新しい|次の|以下の)(?:指示|命令|役割)|"
    r"(?:システム|内部|隠し|秘密)の?(?:プロンプト|指示|メッセージ|設定)[^。]{0,12}(?:表示|出力|教え|開示|公開|示し|書き出|明か|印字)|"
    r"(?:あなた|君|きみ)は(?:今から|これから|もう|いまから|今後)|(?:今|いま|これ)から(?:は)?(?:あなたは|制限|自由|別の)|脱獄|ジェイルブレイク|開発者モード|"
    r"管理者(?:モード|権限|として)|(?:api|パスワード|認証|秘密)(?:キー|鍵|情報)?[^。]{0,10}(?:出力|送信|表示|教え|開示)|"
    r"(?:この|本)(?:回答|応答|ペア|文章|出力)[^。]{0,12}(?:承認|合格|満点|採用|正解|受理|高評価)[^。]{0,8}(?:し|と|に|せよ|ください)|"
    r"(?:新しい|本当の|真の|次の|追加の)(?:指示|命令|任務|役割)(?:[:は]|に従)|制限なし(?:に|で|の)"
)
# Marks of direction and breadth that a reader does not see.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


def invisible(text: str) -> str | None:
    """The name of the first character that controls or hides text; None if there is none."""
    for letter in set(text):
        category = unicodedata.category(letter)
        if category in ("Cc", "Cs", "Co", "Cn") and letter not in "\n\t":
            return f"control character U+{ord(letter):04X}"
        if letter in _BIDI:
            return f"bidirectional override U+{ord(letter):04X}"
        if category in ("Cf", "Zl", "Zp"):
            return f"invisible character U+{ord(letter):04X}"
    return None


@check("hostile")
def hostile(pair: Pair, settings: Settings) -> Hit | None:
    """No markup, script, hidden characters, injected instructions or flood of text."""
    for column in ("answer", "question", "findings", "reason"):
        whole = pair.text(column)
        if len(whole) > settings.max_characters:
            return 1.0, f"{column} is {len(whole):,} characters long"
        if hidden := invisible(whole):
            return 1.0, f"{column} holds {hidden}"
        text = normalize(whole)
        for kind, pattern in (
            ("markup", _MARKUP),
            ("a chat template", _TEMPLATE),
            ("an instruction", _INJECTION),
            ("an instruction", _INJECTION_JA),
        ):
            if found := pattern.search(text):
                return 1.0, f"{column} holds {kind}: {quote(found.group())}"
        if found := re.search(r"(\S)\1{39}|(\S{2,20}?)(?:\s*\2){24}", text):
            return 1.0, f"{column} repeats itself: {quote(found.group())}"
    return None
