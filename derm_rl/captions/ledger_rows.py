"""Rows of the ledger: the key of a request, and a reply as SQLite holds it.

Text is stored as it is. What SQLite's TEXT cannot hold faithfully (NUL, lone surrogates) is stored
as a BLOB: its UTF-8 with surrogates passed. :func:`from_row` reads both back to the same string.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from derm_rl.captions.schema import Answer, Reply, Request, Teacher
from derm_rl.errors import Mendable
from derm_rl.masking import mask

FINAL = ("ok", "blocked", "invalid", "truncated")  # never asked again
STATUSES = (*FINAL, "failed")
COLUMNS = (
    "key", "teacher", "status", "answer", "raw", "reason", "input_tokens", "output_tokens", "cost",
    "latency", "attempts", "finished",
)  # fmt: skip


class LedgerError(Mendable, RuntimeError):
    """A file that is not a ledger, or a row that cannot be one."""


@dataclass(frozen=True)
class Entry:
    """One row: a reply, of which teacher, and when it was stored (seconds since the epoch)."""

    key: str
    teacher: str
    reply: Reply
    finished: float


@lru_cache(maxsize=1)
def answer_schema() -> dict[str, Any]:
    """JSON schema of the structured output."""
    return Answer.model_json_schema()


def canonical(value: Any) -> str:
    """JSON with sorted keys, ASCII only, no NaN: equal values have equal text on every machine.

    Raises:
        LedgerError: the value has a part that JSON does not know.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LedgerError(f"cannot make a key: {error}; use plain JSON values") from error


def key(request: Request, teacher: Teacher) -> str:
    """SHA-256 (64 hex digits) of image bytes, prompt, answer schema, teacher's name and settings.

    A teacher that looks at more of the request says so in a method ``looks_at(request)``, whose
    JSON value becomes part of the key (question, row or measurements of a rule-based one). One
    whose answers are made by code of this package names it in ``code``: an edit asks it again. A
    language model has none, its answers stay as long as it would be asked the same.
    """
    prompt, looks_at = request.prompt, getattr(teacher, "looks_at", None)
    parts = {
        "image": hashlib.sha256(request.image).hexdigest(),
        "prompt": [prompt.system, prompt.user, [list(turn) for turn in prompt.history]],
        "schema": answer_schema(),
        "teacher": teacher.name,
        "settings": dict(teacher.settings),
        "looks_at": looks_at(request) if looks_at else None,
    }
    if code := getattr(teacher, "code", None):
        parts["code"] = code
    return hashlib.sha256(canonical(parts).encode("ascii")).hexdigest()


def _bind(text: str | None) -> str | bytes | None:
    if text is None:
        return None
    if "\0" not in text:
        try:
            text.encode("utf-8")
            return text
        except UnicodeEncodeError:
            pass
    return text.encode("utf-8", "surrogatepass")


def _text(stored: str | bytes | None) -> str:
    return stored.decode("utf-8", "surrogatepass") if isinstance(stored, bytes) else stored or ""


def checked(reply: Reply, where: str) -> Reply:
    """The reply itself, if it is one that a ledger can hold.

    Raises:
        LedgerError: it is not, named by ``where``.
    """
    if not isinstance(reply, Reply):
        raise LedgerError(f"{where}: expected a Reply, got {type(reply).__name__}")
    if reply.status not in STATUSES:
        raise LedgerError(f"{where}: status {reply.status!r}; expected one of {STATUSES}")
    if (reply.answer is not None) != (reply.status == "ok"):
        raise LedgerError(f"{where}: an answer must be there exactly if the status is 'ok'")
    return reply


def to_row(entry: Entry) -> tuple[Any, ...]:
    """The values of COLUMNS; no key is in them, whoever the teacher is."""
    reply = checked(entry.reply, entry.key)
    answer = None if reply.answer is None else mask(reply.answer.model_dump_json())
    return (
        entry.key, _bind(entry.teacher), reply.status, _bind(answer), _bind(mask(reply.raw)),
        _bind(mask(reply.reason)), reply.input_tokens, reply.output_tokens, reply.cost,
        reply.latency, json.dumps(list(reply.attempts)), entry.finished,
    )  # fmt: skip


def from_row(row: tuple[Any, ...]) -> Entry:
    """Inverse of :func:`to_row`.

    Raises:
        LedgerError: the row is damaged.
    """
    (name, teacher, status, answer, raw, reason, tokens_in, tokens_out, cost, latency, attempts,
     finished) = row  # fmt: skip
    try:
        found = None if answer is None else Answer.model_validate_json(_text(answer))
        tried = tuple(json.loads(attempts))
    except (ValueError, TypeError) as error:
        raise LedgerError(f"ledger row {name} is damaged: {error}") from error
    reply = Reply(
        status, found, _text(raw), _text(reason), tokens_in, tokens_out, cost, latency, tried
    )
    return Entry(name, _text(teacher), reply, finished)


def better(old: Entry, new: Entry) -> Entry:
    """Which of two answers to the same request counts, with the attempts of both if one failed.

    ok wins over not ok, a final one over a failed one, else the earlier; all the same on any order
    of merging.
    """
    ranks = {"ok": 0, "failed": 2}
    first, second = sorted(
        (old, new), key=lambda e: (ranks.get(e.reply.status, 1), e.finished, canonical(_plain(e)))
    )
    if "failed" in (first.reply.status, second.reply.status):
        attempts = tuple(sorted({*first.reply.attempts, *second.reply.attempts}))
        first = replace(first, reply=replace(first.reply, attempts=attempts))
    return first


def _plain(entry: Entry) -> list[Any]:
    return [v.hex() if isinstance(v, bytes) else v for v in to_row(entry)]
