"""What came of one call of a server: an answer, a reply without one, or an error, as one value.

Nothing that a server sends raises here. Every text is masked before it is kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from derm_rl.captions.answers import judge, message_text
from derm_rl.captions.schema import Answer, Reply, Status
from derm_rl.captions.wire import Received
from derm_rl.masking import mask

# How providers say that it was the content they refused, and not the request.
_FILTERED = re.compile(
    "content.?(filter|policy|management)|responsible.?ai|data_inspection_failed|flagged|moderation",
    re.IGNORECASE,
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Outcome:
    """A verdict on a reply, or why there is none.

    ``fatal``: no request can succeed. ``transient``: another call may; ``waits`` says when. As no
    key is in it, none is among the variables that a traceback shows.
    """

    status: Status = "failed"
    answer: Answer | None = None
    raw: str = ""
    reason: str = ""
    tokens: tuple[int, int] = (0, 0)  # input, output
    cost: float = 0.0
    fatal: bool = False
    transient: bool = False
    waits: Mapping[str, Any] = field(default_factory=dict)

    def reply(self, *spent: Any) -> Reply:
        """As a reply; ``spent`` are its further fields, from the tokens on."""
        return Reply(self.status, self.answer, self.raw, self.reason, *spent)


def judged(response: Any, received: Received, price: Callable[[Any], float]) -> Outcome:
    """The verdict on a reply that pydantic-ai could read."""
    from pydantic_ai.messages import TextPart

    usage, details = response.usage, response.provider_details or {}
    usage.input_tokens, usage.output_tokens = map(_count, (usage.input_tokens, usage.output_tokens))
    refusal = details.get("refusal")
    text = "".join(part.content for part in response.parts if isinstance(part, TextPart))
    if isinstance(received.body, dict) and received.body.get("choices"):
        # As it was sent: pydantic-ai cuts thinking out, also where an answer quotes its marks.
        text, part = message_text(received.body["choices"][0]["message"].get("content"))
        refusal = refusal or part
    ended = response.finish_reason
    if ended not in ("content_filter", "length"):  # the provider's own word says more
        ended = details.get("finish_reason") or ended
    text, refusal = mask(text), mask(str(refusal)) if refusal else None
    status, answer, reason = judge(text, ended, refusal)
    tokens = usage.input_tokens, usage.output_tokens
    return Outcome(status, answer, text or refusal or "", mask(reason), tokens, price(response))


def _count(tokens: Any) -> int:
    """A number that can be added up and stored, whatever a server says."""
    return tokens if isinstance(tokens, int) and 0 <= tokens < 10**9 else 0


def failure(error: Exception, received: Received, served: bool = False) -> Outcome:
    """What an error of pydantic-ai comes to.

    Args:
        served: whether the server has answered before. Then a page without a word of its API that
            forbids or finds nothing is a passing fault of something on the way.
    """
    from pydantic_ai import exceptions as e

    if isinstance(error, e.UserError):
        return Outcome(reason=mask(str(error)), fatal=True)
    if isinstance(error, e.ContentFilterError):
        return Outcome("blocked", reason=mask(str(error))[:1000])
    if not isinstance(error, e.ModelAPIError):  # the body is not a reply of this API
        return stumble(error, received)
    status, said = getattr(error, "status_code", None), error.body
    detail = f"{error.provider_error_code or ''} {said or received.text or error}".strip()
    reason = mask(f"HTTP {status}: {detail}" if status else str(error))[:1000]
    refused = isinstance(error, e.ModelRequestRejectedError)
    if refused and filtered(detail):
        return Outcome("blocked", reason=reason)
    if isinstance(
        error, (e.ModelQuotaExceededError, e.ModelAuthenticationError, e.ModelNotFoundError)
    ):
        if not served or isinstance(said, dict):
            return Outcome(reason=reason, fatal=True)
    elif refused:
        return Outcome(reason=reason)  # this request is refused, others may pass
    reset, asked = limit_reset(getattr(error, "headers", None) or {}), error.retry_after
    if asked is not None and not math.isfinite(asked):
        asked = None
    waits = {
        "retry_after": reset if asked is None else max(asked, reset or 0),
        "throttled": isinstance(error, (e.ModelRateLimitError, e.ModelOverloadedError)),
        "pause_all": reset is not None,
    }
    return Outcome(reason=reason, transient=True, waits=waits)


def filtered(error: str) -> bool:
    """Whether an error says that it was the content which was refused."""
    return bool(_FILTERED.search(error[:1000]))


def stumble(error: Exception, received: Received) -> Outcome:
    """A reply that is none of this API: its question has failed, and may be asked again."""
    text = mask(received.text)
    why = " ".join(mask(f"{type(error).__name__}: {error}").split())[:300]
    begins = f"; it begins {text[:300]!r}" if text else ""
    where = f"HTTP {received.status}: " if received.status else ""
    return Outcome(raw=text[:10_000], reason=f"{where}not a chat completion ({why}){begins}")


def limit_reset(headers: Mapping[str, str]) -> float | None:
    """Seconds until an exhausted limit of requests or tokens is reset, by x-ratelimit headers.

    None if none is exhausted. Understands "20ms", "6m0s", "1.5" (seconds).
    """
    waits = []
    for kind in ("requests", "tokens"):
        left = headers.get(f"x-ratelimit-remaining-{kind}", "").strip()
        text = headers.get(f"x-ratelimit-reset-{kind}", "").strip()
        if left != "0" or not text:
            continue
        parts = _DURATION.findall(text)
        if parts and "".join(map("".join, parts)) == text:
            waits.append(sum(float(n) * _SECONDS[unit] for n, unit in parts))
        elif re.fullmatch(r"\d+(\.\d+)?", text):
            waits.append(float(text))
    return max(waits, default=None)
