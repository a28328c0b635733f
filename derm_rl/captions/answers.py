"""What a language model sent, judged: the structured answer in a text, or why there is none."""

from __future__ import annotations

import copy
import re
from typing import Any, Literal

from pydantic import ValidationError

from derm_rl.captions.ledger_rows import answer_schema
from derm_rl.captions.schema import Answer, Status

_FENCE = re.compile(r"```(?:json)?\s*(\{.*\})\s*```", re.DOTALL)


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
    """The answer in a text that is JSON, alone or in a fenced block.

    Raises:
        ValueError: it is not, or not of the schema; says where and why.
    """
    if not text.strip():
        raise ValueError("the reply is empty")
    fenced = _FENCE.search(text)
    try:
        return Answer.model_validate_json(fenced.group(1) if fenced else text)
    except ValidationError as error:
        # The texts that were refused are not repeated: they are in the raw reply, and may be long.
        faults = [f"{'.'.join(map(str, e['loc'])) or 'reply'}: {e['msg']}" for e in error.errors()]
        raise ValueError("; ".join(faults[:5])) from None
    except UnicodeEncodeError:
        raise ValueError("reply: lone surrogates, not Unicode text") from None


def judge(
    text: str, finish_reason: str | None, refusal: str | None = None
) -> tuple[Status, Answer | None, str]:
    """Status, answer and reason of a reply.

    Args:
        text: what the model wrote.
        finish_reason: "stop", "length", "content_filter", … as in OpenAI's API.
        refusal: what the server sent in place of an answer, if it did.
    """
    if refusal or finish_reason == "content_filter":
        return "blocked", None, f"refused: {refusal}" if refusal else "content filter"
    if finish_reason == "length":
        return "truncated", None, f"cut at the limit of tokens, after {len(text)} characters"
    try:
        return "ok", parse_answer(text), ""
    except ValueError as error:
        return "invalid", None, str(error)


def repair_message(reason: str) -> str:
    """What to tell a model whose reply does not follow the schema."""
    return (
        f"Your reply does not follow the required JSON schema: {reason}. "
        "Send the corrected JSON object alone, without any other text."
    )


def sendable(text: str) -> str:
    """The text with lone surrogates, which no request can carry, as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
