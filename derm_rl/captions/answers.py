"""What a language model sent, judged: the structured answer in a text, or why there is none."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal

from pydantic import ValidationError

from derm_rl.captions.ledger_rows import answer_schema
from derm_rl.captions.schema import Answer, Status
from derm_rl.masking import mask

# How a fenced block that holds an object begins, whatever its tag. Possessive, and never begun in
# the middle: a megabyte of backticks or blanks must not take a minute.
_FENCE = r"(?<![`~])(?:`{3,}+|~{3,}+)[^\S\n]*+[^\s{}\"`~]*+\s*+(?=\{)"
_FENCES = 20  # of which is looked into
_BLANK = "\ufeff \t\r\n"
_THOUGHT = r"[<\[◁]%s(?:think\w*|thought\w*|reason\w*|analysis|reflection|scratchpad)[>\]▷]"
_THINKING = re.compile(rf"\s*{_THOUGHT % ''}.*?{_THOUGHT % '/'}", re.DOTALL | re.IGNORECASE)
_THOUGHT_ENDS = re.compile(rf"{_THOUGHT % '/'}|(?<!analysis)<\|message\|>", re.IGNORECASE)
_BLOCK_OR_MARK = re.compile(
    rf"(?P<fence>{_FENCE})|(?P<begins>{_THOUGHT % ''}|analysis<\|message\|>)"
    rf"|{_THOUGHT_ENDS.pattern}",
    re.IGNORECASE,
)
_END_MARK = re.compile(r"(?:</s>|<\|\w+\|>)$")
# What servers say of how a reply ended, in every spelling: OpenAI, Gemini, Claude, Bedrock, xAI, …
_BLOCKED = re.compile(
    r"filter|safety|refus|guardrail|block|prohibit|recitation|spii|moderat|sensitive|model_armor"
)
_CUT = re.compile(r"length|max_|context|continuation|incomplete")
_BROKEN = re.compile(
    r"error|fail|cancel|malformed|abort|language|insufficient|no_image|unexpected|time"
)


def wire_schema() -> dict[str, Any]:
    """JSON schema of the answer in the subset that structured output of servers understands.

    Fixed-length arrays of one type are written without ``prefixItems``, which OpenAI's strict mode
    refuses. Replies are always checked against the full schema.
    """
    schema = copy.deepcopy(answer_schema())

    def simplify(node: Any) -> None:
        if isinstance(node, dict):
            items = node.get("prefixItems")
            if items and all(item == items[0] for item in items):
                node["items"] = node.pop("prefixItems")[0]
            for value in node.values():
                simplify(value)
        elif isinstance(node, list):
            for value in node:
                simplify(value)

    simplify(schema)
    return schema


def parse_answer(text: str) -> Answer:
    """The answer in a text that is JSON, alone or in a fenced block, also after thinking aloud.

    What stands in the thinking is a draft and no answer.

    Raises:
        ValueError: it is not, or not of the schema; says where and why.
    """
    if not text.strip(_BLANK):
        raise ValueError("the reply is empty")
    fault = ""
    wholes = list(_without_thinking(text))
    for candidates in chain(([whole] for whole in wholes), map(_fenced, wholes)):
        found: list[Answer] = []
        for candidate in candidates:
            try:
                answer = Answer.model_validate_json(candidate)
            except ValidationError as error:
                # The texts that were refused are not repeated: they are in the raw reply, and may
                # be long. What looks like an object says more of what is wrong than what does not.
                if not fault or candidate.startswith("{"):
                    fault = "; ".join(
                        f"{'.'.join(map(str, e['loc'])) or 'reply'}: {e['msg']}"
                        for e in error.errors()[:5]
                    )
                continue
            except UnicodeEncodeError:
                fault = fault or "reply: lone surrogates, not Unicode text"
                continue
            found += [answer] if answer not in found else []
        if len(found) > 1:
            raise ValueError("reply: more than one answer, and they differ")
        if found:
            return found[0]
    raise ValueError(fault)


def _without_thinking(text: str) -> Iterator[str]:
    """The text, and what follows the thinking in it if there is some; an answer may quote marks."""
    text = text.strip(_BLANK)
    while mark := _END_MARK.search(text[-60:]):
        text = text.removesuffix(mark.group()).rstrip(_BLANK)
    start = 0
    while opening := _THINKING.match(text, start):
        start = opening.end()
    ends = [found.end() for found in _THOUGHT_ENDS.finditer(text)]
    starts = (0, start, *ends[:1], *ends[-1:])
    yield from dict.fromkeys(text[at:].strip(_BLANK) for at in starts)


def _fenced(text: str) -> list[str]:
    """The objects in fenced blocks outside of thinking, the last of which may lack its end.

    Marks of thinking within an object are its own words.
    """
    found: list[str] = []
    at = looked = 0
    while token := _BLOCK_OR_MARK.search(text, at):
        at = token.end()
        if token["begins"]:
            if not (ending := _THOUGHT_ENDS.search(text, at)):
                break
            at = ending.end()
        elif token["fence"] is None:  # the end of a thought whose beginning was cut
            found.clear()
        elif (looked := looked + 1) <= _FENCES:
            try:
                _, end = json.JSONDecoder().raw_decode(text, at)
            except (ValueError, RecursionError):  # what it lacks is for the parser to say
                block = re.split(r"\n\s*(?:```|~~~)", text[at:], maxsplit=1)[0]
                found.append(block.rstrip("`~ \n"))
                continue
            if re.match(r"\s*(?:$|```|~~~)", text[end:]):
                found.append(text[at:end])
            at = end
    return found


def message_text(content: Any) -> tuple[str, str | None]:
    """Text and refusal of a message's content: text, or a list of parts with thoughts among them.

    Raises:
        TypeError: it is neither.
    """
    parts = [] if content is None else content if isinstance(content, list) else [content]
    texts, refusals = [], []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, dict):
            raise TypeError(f"content is not text but {type(part).__name__}")
        elif part.get("type", "text") in ("text", "output_text"):
            texts.append(part.get("text") or "")
        elif part.get("type") == "refusal":
            refusals.append(str(part.get("refusal")))
    return "".join(texts), "".join(refusals) or None


def judge(
    text: str, finish_reason: str | None, refusal: str | None = None
) -> tuple[Status, Answer | None, str]:
    """Status, answer and reason of a reply.

    Args:
        text: what the model wrote.
        finish_reason: "stop", "length", "SAFETY", "max_tokens", … as any provider says it.
        refusal: what the server sent in place of an answer, if it did.
    """
    ended = str(finish_reason or "").rpartition(".")[2].lower().replace("-", "_")
    if refusal or _BLOCKED.search(ended):
        why = "content filter" if ended == "content_filter" else f"blocked ({finish_reason})"
        return "blocked", None, f"refused: {refusal}" if refusal else why
    if _CUT.search(ended):
        return "truncated", None, f"cut at the limit of tokens, after {len(text)} characters"
    try:
        return "ok", parse_answer(text), ""
    except ValueError as error:
        if _BROKEN.search(ended):
            return "failed", None, f"the server broke off (finish reason {finish_reason}); {error}"
        plain = ended in ("", "stop") or text.strip()
        return "invalid", None, f"{error}" if plain else f"{error} (finish reason {finish_reason})"


def repair_message(reason: str) -> str:
    """What to tell a model whose reply does not follow the schema."""
    return (
        f"Your reply does not follow the required JSON schema: {reason}. "
        "Send the corrected JSON object alone, without any other text."
    )


def sendable(text: str) -> str:
    """The text with lone surrogates, which no request can carry, as U+FFFD; without any key."""
    return mask(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def image_type(image: bytes) -> Literal["image/png", "image/jpeg", "image/webp", "image/gif"]:
    """Media type by the first bytes.

    Raises:
        ValueError: none of PNG, JPEG, WebP, GIF.
    """
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if image.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    if image[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    raise ValueError(f"image: expected PNG, JPEG, WebP or GIF, it begins with {image[:8]!r}")
