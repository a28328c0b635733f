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

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from derm_rl.captions.conversations import Conversation, replay
from derm_rl.captions.ledger import Ledger
from derm_rl.captions.ledger_rows import FINAL, STATUSES
from derm_rl.captions.outcome import filtered
from derm_rl.captions.providers import ProviderTeacher
from derm_rl.captions.schema import Reply
from derm_rl.errors import Mendable
from derm_rl.io import atomic_path
from derm_rl.masking import mask

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
    unreadable: list[str] = field(default_factory=list)  # file, line, and what is wrong with it
    known: int = 0  # had a final answer already; it stays

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {name}" for name, n in self.statuses.items() if n) or "none"
        return (
            f"stored {counts}; answered before: {self.known}; missing: {len(self.missing)}; "
            f"unknown, refused: {len(self.unknown)}"
            + (
                f"; unreadable: {len(self.unreadable)} ({self.unreadable[0]})"
                if self.unreadable
                else ""
            )
        )


# ------------------------------------------------------------------------------------- out


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
        body = teacher.request_body(request)
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
    there is no repair. A line that nobody can read costs the request that it was for, which is
    then among the missing.

    Raises:
        BatchError: a file of requests has a line that is none, or a result file has no result.
            Nothing of that file is stored.
    """
    expected = {}
    for row in (row for path in requests for row in _rows(path, of="requests")):
        if isinstance(row, str):
            raise BatchError(row)
        expected[row["custom_id"]] = None
    report, seen = BatchReport(), set()
    for path in paths:
        found = list(_rows(path))
        rows = [row for row in found if not isinstance(row, str)]
        unreadable = [line for line in found if isinstance(line, str)]
        if unreadable and not rows:
            raise BatchError(unreadable[0])
        report.unreadable += unreadable
        names = [row["custom_id"] for row in rows]
        wanted = [name for name in names if name in expected]
        before = {n for n, e in ledger.get_many(wanted).items() if e.reply.status in FINAL}
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


def _rows(path: str | Path, of: str = "results") -> Iterator[dict[str, Any] | str]:
    """The rows of a file, and what is wrong with a line that is none."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(codecs.BOM_UTF8).strip()
            if not line:
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                why = mask(f"not JSON ({error}); a partly downloaded file?")
                yield f"{path}, line {number}: {why}"
                continue
            if not isinstance(row, dict) or not isinstance(row.get("custom_id"), str):
                yield f"{path}, line {number}: expected an object with 'custom_id'"
            elif of == "results" and "url" in row and not {"response", "error"} & set(row):
                yield f"{path}, line {number}: a request, not a result"
            else:
                yield row


def result_reply(row: dict[str, Any], teacher: ProviderTeacher, discount: float = 0.5) -> Reply:
    """The reply in one row of a result file, whatever it is: as a live call would take it."""
    response, error = row.get("response"), row.get("error")
    status = response.get("status_code", 200) if isinstance(response, dict) else None
    if isinstance(status, str) and status.isascii() and status.isdigit():
        status = int(status[:4])
    try:
        if error or not isinstance(status, int) or not 200 <= status < 600:
            # Not a word of the model's server: the batch itself has failed, has expired, …
            raw = json.dumps(response)[:10_000] if response else ""
            reason = f"not a chat completion: {json.dumps(error if error else row)}"
            found = Reply("failed", None, mask(raw), mask(reason)[:1000])
            return replace(found, status="blocked") if filtered(reason) else found
        reply = teacher.read(status, response.get("body"))
    except (ValueError, RecursionError) as fault:
        return Reply("failed", None, "", f"not a chat completion: {fault!r}"[:1000])
    return replace(reply, cost=discount * reply.cost)
