"""What passes between a teacher and an OpenAI-compatible server: bytes in, bytes out.

    Wire       a client that reads a whole reply, whatever it is, before anybody interprets it
    Mailbox    one that sends nothing: it keeps the request and gives the reply that lies in it

A batch is a live call with a :class:`Mailbox` in place of a server. So one piece of code makes the
requests and one reads the replies, and the two ways cannot disagree.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, TypeVar

import httpx2

from derm_rl.masking import keep_secret, mask

# What a provider needs: the extra of pydantic-ai-slim, and the variable that holds the key.
NEEDS = {
    "openai": ("openai", "OPENAI_API_KEY"),
    "google": ("google", "GOOGLE_API_KEY"),
    "anthropic": ("anthropic", "ANTHROPIC_API_KEY"),
    "mistral": ("mistral", "MISTRAL_API_KEY"),
    "groq": ("groq", "GROQ_API_KEY"),
    "bedrock": ("bedrock", "AWS_BEARER_TOKEN_BEDROCK"),
    "openrouter": ("openai", "OPENROUTER_API_KEY"),
}
MAX_BYTES = 64 * 2**20  # of one reply; an answer has a few thousand
T = TypeVar("T")


class TeacherError(RuntimeError):
    """A teacher that cannot be asked at all: no key, a wrong one, no such model, no quota."""

    def __init__(self, message: str) -> None:
        super().__init__(mask(message))


@dataclass
class Received:
    """The last reply of a call: HTTP status, JSON if it is some, and how its text begins."""

    status: int | None = None
    body: Any = None
    text: str = ""


_received: ContextVar[Received | None] = ContextVar("received", default=None)


def listen() -> Received:
    """What the calls of this task receive from now on."""
    _received.set(found := Received())
    return found


def hears(model: Any) -> bool:
    """Whether :func:`listen` knows of every reply: a provider may read them with its own client."""
    client = getattr(getattr(model, "client", None), "_client", None)  # of OpenAI's SDK
    return isinstance(client, (Wire, Mailbox))


class Wire(httpx2.AsyncClient):
    """The default client of pydantic-ai, its replies read by :func:`_received_as`."""

    def __init__(self) -> None:
        from pydantic_ai.models import get_user_agent

        super().__init__(
            timeout=httpx2.Timeout(600, connect=5),
            limits=httpx2.Limits(max_connections=1000, max_keepalive_connections=100),
            headers={"User-Agent": get_user_agent()},
        )

    async def send(
        self, request: httpx2.Request, *, stream: bool = False, **options: Any
    ) -> httpx2.Response:
        response = await super().send(request, stream=True, **options)
        content = bytearray()
        try:
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_BYTES:
                    break
        finally:
            await response.aclose()
        return _received_as(request, response.status_code, bytes(content), response.headers)


class Mailbox(httpx2.AsyncClient):
    """A server in a file: ``sent`` is what it was sent last, ``reply`` what it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, Any] = {}
        self.reply: tuple[int, Any] = (200, {})

    async def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        self.sent = json.loads(request.content)
        status, body = self.reply
        content = body if isinstance(body, bytes) else json.dumps(body).encode("ascii")
        return _received_as(request, status, content)


def _received_as(
    request: httpx2.Request, status: int, content: bytes, headers: Any = None
) -> httpx2.Response:
    """The reply as its client is to see it: an error that came as a success is an error."""
    received = _received.get() or Received()
    received.status = status
    if len(content) > MAX_BYTES:
        content = b'{"error": "a reply of more than %d MB"}' % (MAX_BYTES >> 20)
    received.text = content[:20_000].decode("utf-8", "replace")
    kept = {
        name: value
        for name, value in (headers or {}).items()
        if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
    }
    try:
        body = _completed(json.loads(content))
        content = json.dumps(body).encode("ascii")  # without a byte order mark, in UTF-8
    except (ValueError, RecursionError):
        pass
    else:
        received.body = body
        if (
            status < 300
            and isinstance(body, dict)
            and body.get("error")
            and not body.get("choices")
        ):
            status = _status_of(body["error"])
    kept["content-type"] = "application/json"
    return httpx2.Response(status, headers=kept, content=content, request=request)


def _completed(body: Any) -> Any:
    """A chat completion with what its format asks for and no answer needs, right in type.

    Servers leave out an id, or count in words; that must not cost the answer.
    """
    try:
        choice = body["choices"][0]
        message, usage = choice["message"], body.get("usage")
        if not isinstance(message, dict):
            return body
    except (TypeError, LookupError, AttributeError):
        return body
    for owner, kind, fields in (
        (body, str, {"id": "", "object": "chat.completion", "model": "", "service_tier": None}),
        (body, int, {"created": 0}),
        (choice, str, {"finish_reason": None}),
    ):
        for name, default in fields.items():
            if type(owner.get(name)) is not kind:
                owner[name] = default
    counted = isinstance(usage, dict) and all(
        type(usage.get(name)) is int and 0 <= usage[name] < 10**9
        for name in ("prompt_tokens", "completion_tokens")
    )
    if counted:
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    for name in ("metadata", "moderation", "system_fingerprint"):
        body.pop(name, None)
    choice["index"], choice["logprobs"] = 0, None
    message["role"] = "assistant"
    for name in ("annotations", "audio", "function_call", "tool_calls"):  # none was asked for
        message.pop(name, None)
    return body | {"choices": [choice], "usage": usage if counted else None}


def _status_of(error: Any) -> int:
    """The status that an error in a successful reply stands for; OpenRouter puts it into "code"."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isascii() and code.isdigit():
        code = int(code[:4])
    known = isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600
    return code if known else 400 if "content_" in str(error)[:1000] else 500


# ------------------------------------------------------------------------------ connections


def connect(
    name: str, sampling: Mapping[str, Any], base_url: str | None, api_key_env: str | None
) -> tuple[Wire, tuple[Any, dict[str, Any]]]:
    """HTTP client, model and settings of "provider:model", at an address of its own if given.

    Raises:
        TeacherError: there is no such provider, or its key or extra is missing.
    """
    provider, _, model = name.partition(":")
    extra, variable = NEEDS.get(provider, (provider, "its API key"))
    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise TeacherError(
            f"{name}: environment variable {api_key_env} is empty; set it to the key of "
            f"{base_url}, or leave api_key_env out if the server needs none"
        )
    keep_secret(key)
    try:
        from pydantic_ai.exceptions import UserError

        try:
            wire = Wire()
            if base_url:
                found = _compatible(
                    provider, model, base_url=base_url, api_key=key, http_client=wire
                )
            else:
                found = _inferred(provider, model, http_client=wire)
        except (UserError, ValueError) as error:
            fault = f"{error} (the key is read from the environment: {variable})"
        else:
            return wire, _prepared(found, sampling)
    except ImportError as error:
        fault = (
            f"needs pip install 'pydantic-ai-slim[{extra}]' and the environment variable "
            f"{variable} ({error})"
        )
    # Raised here, so that what a library says is not the context of what we say.
    raise TeacherError(f"{name}: {fault}")


def offline(
    name: str, sampling: Mapping[str, Any], base_url: str | None
) -> tuple[Mailbox, tuple[Any, dict[str, Any]]]:
    """A mailbox, and model and settings that would talk to a server through it, without a key.

    A provider that is not of OpenAI's SDK is asked as those are that are compatible with it.
    """
    from openai import AsyncOpenAI
    from pydantic_ai.models import infer_model_profile

    provider, _, model = name.partition(":")
    mailbox, sampling = Mailbox(), dict(sampling)
    client = AsyncOpenAI(api_key="offline", base_url="http://offline", http_client=mailbox)
    found = None
    if not base_url:
        try:
            found = _inferred(provider, model, openai_client=client)
        except Exception:  # without its own key or address; or it has no such client
            if infer_model_profile(name).get("anthropic_disallows_sampling_settings"):
                sampling.pop("temperature", None)
    found = found or _compatible(provider, model, openai_client=client)
    return mailbox, _prepared(found, sampling)


def _compatible(provider: str, model: str, **client: Any) -> Any:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

    return OpenAIChatModel(model, provider=OpenAICompatibleProvider(provider, **client))


def _inferred(provider: str, model: str, **client: Any) -> Any:
    from pydantic_ai.models import infer_model

    prefix = "openai-chat" if provider == "openai" else provider
    return infer_model(f"{prefix}:{model}", partial(_provider, **client))


def _provider(name: str, **client: Any) -> Any:
    """A provider with our client, if it talks through OpenAI's SDK."""
    from pydantic_ai.providers import infer_provider, infer_provider_class

    if name.startswith("gateway/"):
        return infer_provider(name)
    known = infer_provider_class(name)
    ours = "openai_client" in signature(known.__init__).parameters
    if "openai_client" in client and not ours:
        raise ValueError(f"{name} has no such client")
    return known(**client) if ours else known()


def _prepared(model: Any, sampling: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Model and settings: clients do not retry, and their key is known as one."""
    client = getattr(model, "client", None)
    settings = dict(sampling)
    if hasattr(client, "max_retries"):
        client.max_retries = 0
    else:
        settings["max_retries"] = 0
    for secret in (getattr(client, "api_key", None), *_auth_headers(client)):
        if secret != "offline":
            keep_secret(secret if isinstance(secret, str) else None)
    return model, settings


def _auth_headers(client: Any) -> list[Any]:
    headers = getattr(client, "auth_headers", None)
    return list(headers.values()) if isinstance(headers, Mapping) else []


def complete(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, also inside a running event loop (Jupyter has one)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
