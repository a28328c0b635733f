"""Language models as teachers, through pydantic-ai: OpenAI, Gemini, Anthropic, vLLM, Ollama, …

    ProviderTeacher("openai:gpt-4o")                    key from OPENAI_API_KEY
    ProviderTeacher("google:gemini-2.0-flash")          needs pydantic-ai-slim[google]
    ProviderTeacher("vllm:Qwen/Qwen2.5-VL-7B-Instruct", base_url="http://localhost:8000/v1")

One ``ask`` is one call of the server, and one more for each repair of a reply that does not follow
the schema. Clients do not retry; :mod:`derm_rl.captions.runner` does, told by ``TransientError``.

Whatever a server sends costs the one question that was asked: it ends in a status with a reason.
Only what no question can get past (no key, a wrong one, no such model, no quota) is an error.

Keys are read from the environment when a connection is made. They are not kept, and
:mod:`derm_rl.masking` replaces them in every text that comes back, so that none reaches a ledger, a
log or an exception.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from derm_rl.captions.answers import image_type, repair_message, sendable, wire_schema
from derm_rl.captions.ledger_rows import canonical
from derm_rl.captions.outcome import Outcome, failure, judged, stumble
from derm_rl.captions.pace import TransientError
from derm_rl.captions.schema import Reply, Request
from derm_rl.captions.wire import TeacherError, complete, connect, hears, listen, offline
from derm_rl.masking import guard, keep_variable, refuse_key

__all__ = ["ProviderTeacher", "TeacherError", "model_price"]

_REPAIRED = 8000  # characters of a wrong reply that are sent back with what is wrong


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
        guard()
        try:
            refuse_key("model", model)
            refuse_key("base_url", base_url)
            refuse_key("api_key_env", api_key_env)
        except ValueError as error:
            raise TeacherError(str(error)) from None
        keep_variable(api_key_env)
        self.provider, separator, self.model = model.partition(":")
        if not (separator and self.provider and self.model):
            raise TeacherError(f"model {model!r}: expected 'provider:model', e.g. 'openai:gpt-4o'")
        if repairs < 0:
            raise ValueError(f"repairs must not be negative, got {repairs}")
        self.name, self.price, self.repairs = model, price, repairs
        self.base_url, self.api_key_env = base_url, api_key_env
        sampling = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        self.sampling = {name: value for name, value in sampling.items() if value is not None}
        self.settings = {**self.sampling, "repairs": repairs, "native": native, **(extra or {})}
        canonical(self.settings)  # raises if a value of ``extra`` cannot be part of a key
        self.native = native
        self._client: tuple[asyncio.AbstractEventLoop, Any, Any] | None = None
        self._offline: tuple[Any, Any] | None = None
        self._warned = self._served = False

    def __repr__(self) -> str:
        return f"ProviderTeacher({self.name!r}, {self.settings})"

    async def ask(self, request: Request) -> Reply:
        """One answer.

        Raises:
            TransientError: ask again.
            TeacherError: no request can succeed.
        """
        from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, UserPromptPart

        line, messages = await self._connected(), self._messages(request)
        began, tokens, cost = [], [0, 0], 0.0
        for _ in range(self.repairs + 1):
            began.append(time.time())
            outcome = await self._call(line, messages)
            tokens = [sum(both) for both in zip(tokens, outcome.tokens, strict=True)]
            cost += outcome.cost
            if outcome.fatal:
                raise TeacherError(f"{self.name}: {outcome.reason}")
            if outcome.transient:
                raise TransientError(
                    outcome.reason, **outcome.waits,
                    input_tokens=tokens[0], output_tokens=tokens[1], cost=cost,
                )  # fmt: skip
            self._served = True
            if outcome.status != "invalid" or not outcome.raw:
                break
            repair = UserPromptPart(repair_message(outcome.reason))
            said = ModelResponse(parts=[TextPart(sendable(outcome.raw[:_REPAIRED]))])
            messages += [said, ModelRequest(parts=[repair])]
        latency = time.time() - began[-1]
        return outcome.reply(*tokens, cost, latency, tuple(began))

    def request_body(self, request: Request) -> dict[str, Any]:
        """What :meth:`ask` sends, in OpenAI's API, without sending it."""
        mailbox, line = self._mailbox()
        mailbox.sent, mailbox.reply = {}, (200, {})
        outcome = complete(self._call(line, self._messages(request)))
        if not mailbox.sent:
            raise TeacherError(f"{self.name}: {outcome.reason}")
        return {name: value for name, value in mailbox.sent.items() if name != "stream"}

    def read(self, status: int, body: Any) -> Reply:
        """What :meth:`ask` makes of an HTTP reply of that API; "failed" if it would ask again."""
        from pydantic_ai.messages import ModelRequest

        mailbox, line = self._mailbox()
        mailbox.reply = status, body
        outcome = complete(self._call(line, [ModelRequest.user_text_prompt("?")]))
        return outcome.reply(*outcome.tokens, outcome.cost)

    async def _call(self, line: tuple[Any, dict[str, Any]], messages: list[Any]) -> Outcome:
        """One call of a model with its settings, and what came of it."""
        from pydantic_ai.direct import model_request
        from pydantic_ai.exceptions import AgentRunError, UserError

        (model, settings), received = line, listen()
        try:
            response = await model_request(
                model,
                messages,
                model_settings=settings,
                model_request_parameters=self._parameters(),
            )
            return judged(response, received, self._cost)
        except (AgentRunError, UserError) as error:
            return failure(error, received, served=self._served)
        except Exception as error:
            if received.status is None and hears(model):
                raise  # nothing has come, so it is no reply that this stumbles over
            return stumble(error, received)

    async def aopen(self) -> None:
        """Import and connect beforehand, which takes seconds that no request should be charged.

        Raises:
            TeacherError: the key, the extra or the model is missing.
        """
        await self._connected()

    async def aclose(self) -> None:
        """Close the connections; the next ``ask`` opens new ones."""
        if self._client is not None:
            (_, (model, _), wire), self._client = self._client, None
            await model.__aexit__(None, None, None)
            await wire.aclose()

    # ---------------------------------------------------------------------------- connection

    async def _connected(self) -> tuple[Any, dict[str, Any]]:
        """The model and its settings, with a client of the running event loop."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._client[0] is not loop:
            wire, line = connect(self.name, self.sampling, self.base_url, self.api_key_env)
            self._client = loop, line, wire
            await line[0].__aenter__()
        return self._client[1]

    def _mailbox(self) -> tuple[Any, Any]:
        """The same model without a server."""
        self._offline = self._offline or offline(self.name, self.sampling, self.base_url)
        return self._offline

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

    def _cost(self, response: Any) -> float:
        if self.price is None and not self.base_url:
            try:  # knows of cached tokens, too
                return float(response.cost().total_price)
            except Exception:  # no price, or one that it cannot apply to what was counted
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
