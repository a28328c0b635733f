"""Language models as teachers, through pydantic-ai: OpenAI, Gemini, Anthropic, vLLM, Ollama, …

    ProviderTeacher("openai:gpt-4o")                    key from OPENAI_API_KEY
    ProviderTeacher("google:gemini-2.0-flash")          needs pydantic-ai-slim[google]
    ProviderTeacher("vllm:Qwen/Qwen2.5-VL-7B-Instruct", base_url="http://localhost:8000/v1")

One ``ask`` is one call of the server, and one more for each repair of a reply that does not follow
the schema. Clients do not retry; :mod:`derm_rl.captions.runner` does, told by ``TransientError``.

Keys are read from the environment when a connection is made. They are not kept, and replaced by
``***`` in every text that comes back, so that none reaches a ledger, a log or an exception.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from derm_rl.captions.answers import (
    image_type,
    judge,
    repair_message,
    sendable,
    wire_schema,
)
from derm_rl.captions.ledger_rows import canonical
from derm_rl.captions.pace import TransientError
from derm_rl.captions.schema import Reply, Request
from derm_rl.errors import Mendable

__all__ = ["ProviderTeacher", "TeacherError", "model_price"]

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
_SECRET = re.compile(r"(API_?KEY|TOKEN|SECRET|PASSWORD)", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


class TeacherError(Mendable, RuntimeError):
    """A teacher that cannot be asked at all: no key, a wrong one, no such model, no quota."""


class ProviderTeacher:
    """A vision-language model; follows :class:`derm_rl.captions.schema.Teacher`.

    Args:
        model: "provider:model" as pydantic-ai names them. ``openai:`` is the chat API, which batch
            files speak too.
        base_url: of an OpenAI-compatible server; the provider's name is then free. It is not part
            of the ledger's key: the same model served elsewhere is the same teacher. What differs
            (quantization, say) belongs into ``extra``.
        api_key_env: environment variable with the key for ``base_url``; by default none is sent.
        price: US dollars per million input and output tokens; by default what genai-prices knows.
        temperature, max_tokens, seed: of sampling; None leaves it to the server.
        repairs: how often a reply that does not follow the schema is sent back.
        native: whether the server enforces the schema; otherwise it is written into the prompt.
        extra: further settings that change answers; part of the key, not sent.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key_env: str | None = None,
        price: tuple[float, float] | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = 1500,
        seed: int | None = None,
        repairs: int = 1,
        native: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.provider, separator, self.model = model.partition(":")
        if not (separator and self.provider and self.model):
            raise TeacherError(f"model {model!r}: expected 'provider:model', e.g. 'openai:gpt-4o'")
        if base_url and re.match(r"\w+://[^/]*@", base_url):
            raise TeacherError("base_url: keys do not belong into it; name a variable, api_key_env")
        if repairs < 0:
            raise ValueError(f"repairs must not be negative, got {repairs}")
        self.name, self.price, self.repairs = model, price, repairs
        self.base_url, self.api_key_env = base_url, api_key_env
        sampling = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        self.sampling = {name: value for name, value in sampling.items() if value is not None}
        self.settings = {**self.sampling, "repairs": repairs, "native": native, **(extra or {})}
        canonical(self.settings)  # raises if a value of ``extra`` cannot be part of a key
        self.native = native
        self._client: tuple[asyncio.AbstractEventLoop, Any] | None = None
        self._warned = False

    def __repr__(self) -> str:
        return f"ProviderTeacher({self.name!r}, {self.settings})"

    async def ask(self, request: Request) -> Reply:
        """One answer.

        Raises:
            TransientError: ask again.
            TeacherError: no request can succeed.
        """
        from pydantic_ai import exceptions
        from pydantic_ai.direct import model_request
        from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, UserPromptPart

        model, messages = await self._connected(), self._messages(request)
        began, spent = [], [0, 0, 0.0]
        for _ in range(self.repairs + 1):
            began.append(time.time())
            response = failure = None
            try:
                response = await model_request(
                    model,
                    messages,
                    model_settings=self._model_settings,
                    model_request_parameters=self._parameters(),
                )
            except (exceptions.AgentRunError, exceptions.UserError) as error:
                failure = error  # judged outside: its text must not be the context of another
            if failure is None:
                raw, verdict = self._judged(response, spent)
            else:
                raw, verdict = "", self._failure(failure, spent)
            if verdict[0] != "invalid" or not raw:
                break
            repair = UserPromptPart(repair_message(verdict[2]))
            said = ModelResponse(parts=[TextPart(sendable(raw))])
            messages += [said, ModelRequest(parts=[repair])]
        latency = time.time() - began[-1]
        return Reply(verdict[0], verdict[1], raw, verdict[2], *spent, latency, tuple(began))

    async def aopen(self) -> None:
        """Import and connect beforehand, which takes seconds that no request should be charged.

        Raises:
            TeacherError: the key, the extra or the model is missing.
        """
        await self._connected()

    async def aclose(self) -> None:
        """Close the connections; the next ``ask`` opens new ones."""
        if self._client is not None:
            client, self._client = self._client[1], None
            await client.__aexit__(None, None, None)

    # ---------------------------------------------------------------------------- connection

    async def _connected(self) -> Any:
        """The model, with a client of the running event loop."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._client[0] is not loop:
            model = self._build()
            self._model_settings = dict(self.sampling)
            client = getattr(model, "client", None)
            if hasattr(client, "max_retries"):
                client.max_retries = 0
            else:
                self._model_settings["max_retries"] = 0
            self._client = (loop, model)
            await model.__aenter__()
        return self._client[1]

    def _build(self) -> Any:
        extra, variable = NEEDS.get(self.provider, (self.provider, "its API key"))
        try:
            from pydantic_ai.exceptions import UserError
            from pydantic_ai.models import infer_model

            try:
                if self.base_url:
                    return self._compatible()
                prefix = "openai-chat" if self.provider == "openai" else self.provider
                return infer_model(f"{prefix}:{self.model}")
            except UserError as error:
                raise TeacherError(
                    f"{self.name}: {hide_secrets(str(error))} (the key is read from the "
                    f"environment: {variable})"
                ) from None
        except ImportError as error:
            raise TeacherError(
                f"{self.name}: needs pip install 'pydantic-ai-slim[{extra}]' and the environment "
                f"variable {variable} ({error})"
            ) from None

    def _compatible(self) -> Any:
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise TeacherError(
                f"{self.name}: environment variable {self.api_key_env} is empty; set it to the key "
                f"of {self.base_url}, or leave api_key_env out if the server needs none"
            )
        key = os.environ.get(self.api_key_env) if self.api_key_env else None
        provider = OpenAICompatibleProvider(self.provider, base_url=self.base_url, api_key=key)
        return OpenAIChatModel(self.model, provider=provider)

    # ------------------------------------------------------------------------------ requests

    def _parameters(self) -> Any:
        from pydantic_ai.models import ModelRequestParameters
        from pydantic_ai.output import OutputObjectDefinition

        if not self.native:
            return ModelRequestParameters()
        output = OutputObjectDefinition(wire_schema(), name="Answer", strict=True)
        return ModelRequestParameters(
            output_mode="native", output_object=output, allow_text_output=True
        )

    def schema_text(self) -> str:
        """What the system prompt says of the schema, where the server does not enforce it."""
        if self.native:
            return ""
        return f"\nReply with one JSON object of this schema: {canonical(wire_schema())}"

    def _messages(self, request: Request) -> list[Any]:
        """The conversation; the image stands in its first turn."""
        from pydantic_ai.messages import (
            BinaryContent,
            ModelRequest,
            ModelResponse,
            SystemPromptPart,
            TextPart,
            UserPromptPart,
        )

        image = BinaryContent(request.image, media_type=image_type(request.image))
        system = sendable(request.prompt.system) + self.schema_text()
        messages: list[Any] = []
        parts: list[Any] = [SystemPromptPart(system)] if system else []
        for question, answer in request.prompt.history:
            question = sendable(question)
            content = question if messages else [question, image]
            messages.append(ModelRequest(parts=[*parts, UserPromptPart(content)]))
            messages.append(ModelResponse(parts=[TextPart(sendable(answer))]))
            parts = []
        question = sendable(request.prompt.user)
        content = question if messages else [question, image]
        return [*messages, ModelRequest(parts=[*parts, UserPromptPart(content)])]

    # ------------------------------------------------------------------------------- replies

    def _judged(self, response: Any, spent: list[Any]) -> tuple[str, tuple[Any, Any, str]]:
        """Raw text and verdict; tokens and cost are added to ``spent``."""
        from pydantic_ai.messages import TextPart

        spent[0] += response.usage.input_tokens
        spent[1] += response.usage.output_tokens
        spent[2] += self._cost(response)
        text = "".join(p.content for p in response.parts if isinstance(p, TextPart))
        refusal = (response.provider_details or {}).get("refusal")
        text = hide_secrets(text)
        refusal = hide_secrets(str(refusal)) if refusal else None
        return text or refusal or "", judge(text, response.finish_reason, refusal)

    def _cost(self, response: Any) -> float:
        if self.price is None and not self.base_url:
            try:  # knows of cached tokens, too
                return float(response.cost().total_price)
            except (LookupError, ValueError, AssertionError):
                pass
        return self.cost(response.usage.input_tokens, response.usage.output_tokens)

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """US dollars; 0, with one warning, if no price is known."""
        price = self.price or (None if self.base_url else model_price(self.name))
        if price is not None:
            return (input_tokens * price[0] + output_tokens * price[1]) / 1e6
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.name}: no price known, cost counts as 0; give price=(input, output) in "
                "US dollars per million tokens for accounts and a budget",
                stacklevel=2,
            )
        return 0.0

    def _failure(self, error: Exception, spent: list[Any]) -> tuple[Any, None, str]:
        """Verdict of a call that raised.

        Raises:
            TransientError, TeacherError: there is none.
        """
        from pydantic_ai import exceptions as e

        if isinstance(error, e.UserError):
            raise TeacherError(hide_secrets(f"{self.name}: {error}"))
        status = getattr(error, "status_code", None)
        code = str(getattr(error, "provider_error_code", None) or "")
        detail = getattr(error, "body", None) or error
        reason = hide_secrets(f"HTTP {status}: {detail}" if status else str(error))[:1000]
        refused = isinstance(error, e.ModelRequestRejectedError)
        filtered = refused and re.search("content_(filter|policy)", f"{code} {detail}"[:1000])
        if filtered or isinstance(error, e.ContentFilterError):
            return "blocked", None, reason
        fatal = (e.ModelQuotaExceededError, e.ModelAuthenticationError, e.ModelNotFoundError)
        if isinstance(error, fatal):
            raise TeacherError(f"{self.name}: {reason}")
        if refused:
            return "failed", None, reason  # this request is refused, others may pass
        if not isinstance(error, e.ModelAPIError):  # the body is not a reply of this API
            return "invalid", None, reason
        reset = limit_reset(getattr(error, "headers", None) or {})
        raise TransientError(
            reason,
            retry_after=reset if error.retry_after is None else max(error.retry_after, reset or 0),
            throttled=isinstance(error, (e.ModelRateLimitError, e.ModelOverloadedError)),
            pause_all=reset is not None,
            input_tokens=spent[0],
            output_tokens=spent[1],
            cost=spent[2],
        )


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


def hide_secrets(text: str) -> str:
    """The text with every value of a secret of the environment replaced by ``***``."""
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET.search(name) and value in text:
            text = text.replace(value, "***")
    return text


@lru_cache(maxsize=64)
def model_price(model: str) -> tuple[float, float] | None:
    """US dollars per million input and output tokens of "provider:model", if genai-prices knows."""
    from genai_prices import Usage, calc_price

    provider, _, name = model.partition(":")
    try:
        usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000)
        found = calc_price(usage, model_ref=name, provider_id=provider)
    except LookupError:
        return None
    return float(found.input_price), float(found.output_price)
