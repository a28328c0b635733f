"""Requests as files in OpenAI's batch format, and their results into the ledger.

    files = write_requests(teacher, requests, ledger, "batch/requests.jsonl")
    # upload them to the provider's batch API (half price), or, offline on GPUs:
    # vllm run-batch -i batch/requests-00000.jsonl -o batch/results.jsonl --model …
    report = read_results(["batch/results.jsonl"], ledger, files, teacher)

A line's ``custom_id`` is its key in the ledger, the same as if the teacher had been asked directly:
live calls and batches share answers. Of a conversation the first turn without an answer is written;
each further turn is the next batch. https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from derm_rl.captions.answers import image_type, judge, sendable, wire_schema
from derm_rl.captions.conversations import Conversation, replay
from derm_rl.captions.ledger import Ledger
from derm_rl.captions.ledger_rows import FINAL, STATUSES
from derm_rl.captions.providers import ProviderTeacher, hide_secrets
from derm_rl.captions.schema import Reply, Request
from derm_rl.errors import Mendable
from derm_rl.io import atomic_path

MAX_REQUESTS = 50_000  # in one file, and
MAX_BYTES = 200_000_000  # the limits of OpenAI's batch API
ENDPOINT = "/v1/chat/completions"


class BatchError(Mendable, ValueError):
    """A file that is not in the batch format; the message names file and line."""


@dataclass
class BatchReport:
    """What was in the result files. ``missing`` keys were requested and are not among them."""

    statuses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # never requested: refused, not stored
    known: int = 0  # had a final answer already; it stays

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {name}" for name, n in self.statuses.items() if n) or "none"
        return (
            f"stored {counts}; answered before: {self.known}; missing: {len(self.missing)}; "
            f"unknown, refused: {len(self.unknown)}"
        )


# ------------------------------------------------------------------------------------- out


def request_body(teacher: ProviderTeacher, request: Request) -> dict[str, Any]:
    """Body of one call of ``/v1/chat/completions``, as the teacher would make it."""
    prompt = request.prompt
    system = sendable(prompt.system) + teacher.schema_text()
    encoded = base64.b64encode(request.image).decode("ascii")
    url = f"data:{image_type(request.image)};base64,{encoded}"
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for question, answer in prompt.history:
        messages.append({"role": "user", "content": sendable(question)})
        messages.append({"role": "assistant", "content": sendable(answer)})
    messages.append({"role": "user", "content": sendable(prompt.user)})
    first = next(m for m in messages if m["role"] == "user")  # the image belongs to all turns
    first["content"] = [
        {"type": "text", "text": first["content"]},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    body: dict[str, Any] = {"model": teacher.model, "messages": messages, **teacher.sampling}
    if "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")
    if teacher.native:
        schema = {"name": "Answer", "strict": True, "schema": _strict_schema()}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _strict_schema() -> dict[str, Any]:
    from pydantic_ai.profiles.openai import OpenAIJsonSchemaTransformer

    return OpenAIJsonSchemaTransformer(wire_schema(), strict=True).walk()


def write_requests(
    teacher: ProviderTeacher,
    requests: Iterable[Conversation],
    ledger: Ledger,
    path: str | Path,
    *,
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
) -> list[Path]:
    """Write all that the ledger has no final answer to.

    ``requests.jsonl`` becomes ``requests-00000.jsonl``, … , each within the provider's limits. The
    same request given twice is written once. No files if nothing is to be asked.

    Raises:
        BatchError: one request alone is larger than ``max_bytes``.
        FileExistsError: there are such files; their results would be taken for these requests'.
    """
    path = Path(path)
    if old := sorted(path.parent.glob(f"{path.stem}-[0-9]*{path.suffix}")):
        raise FileExistsError(f"{old[0]}: exists; read its results, then delete it or rename these")
    files: list[Path] = []
    with ExitStack() as stack:  # all files appear together, when the last one is complete
        size, count, file = 0, max_requests, None
        for line in _lines(teacher, requests, ledger, max_bytes):
            if count == max_requests or size + len(line) > max_bytes:
                files.append(path.with_name(f"{path.stem}-{len(files):05d}{path.suffix}"))
                file = stack.enter_context(open(stack.enter_context(atomic_path(files[-1])), "wb"))
                size = count = 0
            file.write(line)
            size, count = size + len(line), count + 1
    return files


def _lines(
    teacher: ProviderTeacher, requests: Iterable[Conversation], ledger: Ledger, max_bytes: int
) -> Iterator[bytes]:
    written: set[str] = set()
    for request, name, reply in replay(teacher, requests, ledger):
        if (reply is not None and reply.status in FINAL) or name in written:
            continue
        written.add(name)
        body = request_body(teacher, request)
        line = {"custom_id": name, "method": "POST", "url": ENDPOINT, "body": body}
        encoded = json.dumps(line).encode("ascii") + b"\n"
        if len(encoded) > max_bytes:
            raise BatchError(
                f"image {request.question.image_id}: its request has {len(encoded)} bytes, a file "
                f"may have {max_bytes}; give a smaller image"
            )
        yield encoded


# -------------------------------------------------------------------------------------- in


def read_results(
    paths: Sequence[str | Path],
    ledger: Ledger,
    requests: Sequence[str | Path],
    teacher: ProviderTeacher,
    *,
    discount: float = 0.5,
) -> BatchReport:
    """Store the results of batches; reading a file again changes nothing.

    Args:
        paths: result files, and error files, in any order.
        requests: the files that :func:`write_requests` wrote. A result without a request there is
            refused; a request without a result is reported, and stays to be asked.
        discount: of the price, in batches.

    An error row is stored as ``failed`` with its reason (``blocked`` if it was a content filter),
    so it may be asked again. A reply that does not follow the schema is ``invalid``: in a batch
    there is no repair.

    Raises:
        BatchError: a line is not JSON or has no ``custom_id``. Nothing of that file is stored.
    """
    expected = {row["custom_id"]: None for path in requests for row in _rows(path)}
    report, seen = BatchReport(), set()
    for path in paths:
        rows = list(_rows(path))
        names = [row["custom_id"] for row in rows]
        before = {n for n, e in ledger.get_many(names).items() if e.reply.status in FINAL}
        replies = []
        for name, row in zip(names, rows, strict=True):
            if name not in expected:
                report.unknown.append(name)
                continue
            seen.add(name)
            if name in before:
                report.known += 1
                continue
            reply = result_reply(row, teacher, discount)
            report.statuses[reply.status] += 1
            replies.append((name, teacher.name, reply))
        ledger.store_many(replies)
    report.missing = [name for name in expected if name not in seen]
    return report


def _rows(path: str | Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BatchError(
                    f"{path}, line {number}: not JSON ({error}); a partly downloaded file?"
                ) from None
            if not isinstance(row, dict) or not isinstance(row.get("custom_id"), str):
                raise BatchError(f"{path}, line {number}: expected an object with 'custom_id'")
            yield row


def result_reply(row: dict[str, Any], teacher: ProviderTeacher, discount: float = 0.5) -> Reply:
    """The reply in one row of a result file, whatever it is."""
    try:
        return _reply(row, teacher, discount)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raw = hide_secrets(json.dumps(row))[:10_000]
        return Reply("failed", None, raw, f"not a chat completion: {error!r}")


def _reply(row: dict[str, Any], teacher: ProviderTeacher, discount: float) -> Reply:
    response = row.get("response") or {}
    status, body = response.get("status_code", 200), response.get("body") or {}
    if (error := row.get("error") or body.get("error")) or status != 200:
        reason = hide_secrets(f"HTTP {status}: {json.dumps(error or body)}")[:1000]
        blocked = "content_filter" in reason or "content_policy" in reason
        return Reply("blocked" if blocked else "failed", None, "", reason)
    choice, usage = body["choices"][0], body.get("usage") or {}
    text, refusal = choice["message"].get("content") or "", choice["message"].get("refusal")
    if not isinstance(text, str):
        raise TypeError("content is not text")
    text, refusal = hide_secrets(text), hide_secrets(str(refusal)) if refusal else None
    verdict = judge(text, choice.get("finish_reason"), refusal)
    tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    cost = discount * teacher.cost(*tokens)
    return Reply(verdict[0], verdict[1], text or refusal or "", verdict[2], *tokens, cost)
