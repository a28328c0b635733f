"""A server of OpenAI's chat API on loopback that fails as real ones do, reproducibly.

    with FaultServer(Faults(share=0.2)) as server:
        ProviderTeacher("test:model", base_url=server.url)
    python tests/fault_server.py --share 0.2        prints its address, serves until killed

What the n-th call for a request meets is drawn from the seed, the request and n alone, so a run
can be repeated in any order. A call that follows a bad reply and asks to correct it belongs to the
same request. ``GET /stats`` returns :meth:`FaultServer.stats` as JSON, ``GET /logs`` what each
request met, by the text of its last question.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import random
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from derm_rl.captions.schema import Prompt, Question, Request

TRANSIENT = ("429", "500", "timeout", "drop", "cut_body")  # the call is to be made again
FINAL = {"ok": "ok", "length": "truncated", "content_filter": "blocked", "refusal": "blocked"}
KINDS = (*TRANSIENT, "length", "content_filter", "refusal", "cut_json")
_REPAIR = "Your reply does not follow"


@dataclass(frozen=True)
class Faults:
    """share: of calls that meet one of ``kinds``, all equally likely; times in seconds."""

    share: float = 0.2
    kinds: tuple[str, ...] = KINDS
    seed: int = 0
    service: float = 0.02  # mean time of a reply; each is within half of it
    retry_after: float = 0.05  # header of an injected 429
    hang: float = 3600.0  # how long a "timeout" keeps the connection
    rate: float | None = None  # calls a second; more are refused
    echo_key: bool = False  # repeat the caller's key in errors and answers, as a bad proxy does
    refuse_key: bool = False  # 401 to everyone


def expected_status(met: list[str]) -> str:
    """The status that a client must have come to after these replies, the last one being final."""
    return FINAL.get(met[-1], "invalid" if met[-1] == "cut_json" else "failed")


@dataclass
class Log:
    """Calls for one request: what each met, and which came after a final reply was sent."""

    text: str
    met: list[str] = field(default_factory=list)
    asked_twice: int = 0

    @property
    def done(self) -> bool:
        return bool(self.met) and self.met[-1] in FINAL

    @property
    def status(self) -> str:
        """The status that the client must have come to."""
        return expected_status(self.met)


class FaultServer:
    """Serves in a thread of its own while the ``with`` block lasts."""

    def __init__(self, faults: Faults | None = None, port: int = 0) -> None:
        self.faults, self.port = faults or Faults(), port
        self.logs: dict[str, Log] = {}
        self.served = Counter()
        self.service_seconds = 0.0  # of calls not asked twice; of a "timeout" nothing
        self.in_flight = self.most_in_flight = 0
        self.bodies: deque[dict[str, Any]] = deque(maxlen=100)  # the last requests
        self._recent: deque[float] = deque()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def stats(self) -> dict[str, Any]:
        return {
            "requests": len(self.logs),
            "done": sum(log.done for log in self.logs.values()),
            "calls": sum(self.served.values()),
            "served": dict(self.served),
            "asked_twice": sum(log.asked_twice for log in self.logs.values()),
            "service_seconds": self.service_seconds,
            "most_in_flight": self.most_in_flight,
        }

    def by_text(self) -> dict[str, Log]:
        """Logs by the text of the last question."""
        return {log.text: log for log in self.logs.values()}

    def __enter__(self) -> FaultServer:
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self.serve(ready)), daemon=True, name="fault server"
        )
        self._thread.start()
        if not ready.wait(10):
            raise RuntimeError("the fault server did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def serve(self, ready: threading.Event | None = None) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(
            self._connection, "127.0.0.1", self.port, limit=2**26, backlog=1024
        )
        self.port = server.sockets[0].getsockname()[1]
        if ready is None:
            print(self.url, flush=True)
        else:
            ready.set()
        await self._stop.wait()
        server.close()

    # ---------------------------------------------------------------------------------- HTTP

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._exchange(reader, writer):
                pass
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its reply; whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if lines[0].startswith("GET"):
            met = {log.text: log.met for log in self.logs.values()}
            return await self._send(writer, 200, met if "/logs" in lines[0] else self.stats())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            secret = head.partition("Bearer ")[2].split("\r\n")[0]
            return await self._chat(json.loads(body), secret, reader, writer)
        finally:
            self.in_flight -= 1

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        content: Any,
        headers: dict[str, str] | None = None,
        keep: float = 1.0,
    ) -> bool:
        """Send a reply, or the first part ``keep`` of it, after which the connection is closed."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        lines = [f"HTTP/1.1 {status} Status", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        lines.append(f"Content-Length: {len(data)}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + data[: int(keep * len(data))])
        await writer.drain()
        return keep == 1.0

    # ------------------------------------------------------------------------------- replies

    async def _chat(
        self,
        body: dict[str, Any],
        secret: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        self.bodies.append(body)
        if self.faults.refuse_key:
            error = {"message": f"Incorrect API key: {secret}", "code": "invalid_api_key"}
            return await self._send(writer, 401, {"error": error})
        messages, repair = body["messages"], False
        while _REPAIR in str(messages[-1]["content"])[:50]:
            messages, repair = messages[:-2], True
        name = hashlib.sha1(json.dumps(messages).encode()).hexdigest()
        log = self.logs.setdefault(name, Log(_text(messages[-1])))
        if (wait := self._over_rate()) > 0:
            self.served["rate limit"] += 1
            headers = {"Retry-After": f"{wait:.3f}"}
            return await self._send(writer, 429, _error("rate_limit_exceeded", secret), headers)
        again = log.done or (log.met[-1:] == ["cut_json"] and not repair)
        log.asked_twice += again
        rng = random.Random(f"{self.faults.seed}/{name}/{len(log.met)}")
        kind = rng.choice(self.faults.kinds) if rng.random() < self.faults.share else "ok"
        seconds = self.faults.service * rng.uniform(0.5, 1.5)
        self.served[kind] += 1
        if kind == "timeout":
            log.met.append(kind)
            with suppress(TimeoutError):  # until the client hangs up
                await asyncio.wait_for(reader.read(1), self.faults.hang)
            return False
        if kind == "429":
            seconds = 0.0  # a refusal costs nothing
        self.service_seconds += 0 if again else seconds
        await asyncio.sleep(seconds)
        return await self._reply(kind, log, secret if self.faults.echo_key else "", writer)

    def _over_rate(self) -> float:
        """Seconds to wait if the calls of the last second are as many as allowed, else 0."""
        if self.faults.rate is None:
            return 0.0
        now = time.monotonic()
        while self._recent and self._recent[0] < now - 1:
            self._recent.popleft()
        if len(self._recent) >= self.faults.rate:
            return self._recent[0] + 1 - now
        self._recent.append(now)
        return 0.0

    async def _reply(self, kind: str, log: Log, secret: str, writer: asyncio.StreamWriter) -> bool:
        if writer.is_closing():
            raise ConnectionError
        log.met.append(kind)
        if kind == "429":
            headers = {"Retry-After": f"{self.faults.retry_after:g}"}
            return await self._send(writer, 429, _error("rate_limit_exceeded", secret), headers)
        if kind == "500":
            return await self._send(writer, 500, _error("server_error", secret))
        if kind == "drop":
            return False
        content = answer_json(log.text, secret)
        if kind == "refusal":
            message = {"role": "assistant", "content": None, "refusal": f"I cannot help. {secret}"}
        else:
            cut = len(content) // 2 if kind in ("length", "cut_json", "content_filter") else None
            message = {"role": "assistant", "content": content[:cut]}
        finish = kind if kind in ("length", "content_filter") else "stop"
        completion = chat_completion(message, finish, log.text)
        return await self._send(writer, 200, completion, keep=0.5 if kind == "cut_body" else 1.0)


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


def _error(code: str, secret: str) -> dict[str, Any]:
    return {"error": {"message": f"{code} {secret}", "type": code, "code": code}}


def answer_json(text: str, note: str = "") -> str:
    """A valid answer to a question."""
    answer = f"An answer to: {text} {note}".strip()
    finding = {"name": "colours", "value": "light brown", "evidence": "the centre", "box": None}
    return json.dumps(
        {"answer": answer, "findings": [finding], "confidence": 0.5, "abstained": False}
    )


def chat_completion(message: dict[str, Any], finish: str, text: str) -> dict[str, Any]:
    """Body of a reply of ``/v1/chat/completions``."""
    tokens = {"prompt_tokens": 100 + len(text) // 4, "completion_tokens": 50}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "test-model",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": {**tokens, "total_tokens": sum(tokens.values())},
    }


def question(number: int, **changes: Any) -> Request:
    """A request about one small image, different for each number."""
    encoded = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 150, 130)).save(encoded, "PNG")
    text = f"What does image {number} show?"
    asked = Question(f"image-{number}", "overview", text, "en", "blind", "single", f"c{number}", 0)
    request = Request(asked, Prompt("You describe skin.", text), encoded.getvalue(), {})
    return replace(request, **changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    for name, kind in {"share": float, "seed": int, "service": float, "retry_after": float}.items():
        parser.add_argument(f"--{name}", type=kind, default=getattr(Faults, name))
    arguments = vars(parser.parse_args())
    asyncio.run(FaultServer(port=arguments.pop("port"), faults=Faults(**arguments)).serve())


if __name__ == "__main__":
    main()
