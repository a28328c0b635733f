"""Language models as teachers: what is sent, what each reply means, and that no key leaks."""

import ast
import asyncio
import base64
import html
import json
import logging
import math
import time
import traceback
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote, quote_plus

import pydantic_ai.models
import pytest
from fault_server import Faults, FaultServer, answer_json, chat_completion, question
from hypothesis import given, settings
from hypothesis import strategies as st

from derm_rl import config
from derm_rl.captions import batch
from derm_rl.captions.answers import image_type, judge, parse_answer, sendable, wire_schema
from derm_rl.captions.ledger import Ledger, key
from derm_rl.captions.outcome import limit_reset
from derm_rl.captions.pace import TransientError
from derm_rl.captions.providers import (
    ProviderTeacher,
    TeacherError,
    model_price,
)
from derm_rl.captions.runner import ask_all
from derm_rl.captions.schema import Prompt
from derm_rl.masking import mask

SECRET = "sk-test-0123456789abcdef"


class Scripted(FaultServer):
    """Sends the given replies in their order: (HTTP status, body, headers)."""

    def __init__(self, *replies):
        super().__init__()
        self.replies = list(replies)

    async def _chat(self, body, secret, reader, writer):
        self.bodies.append(body)
        status, content, *headers = self.replies.pop(0)
        return await self._send(writer, status, content, *headers)


def completion(text, finish="stop", **message):
    return 200, chat_completion({"role": "assistant", "content": text, **message}, finish, "")


def ask(server, request=None, **options):
    teacher = ProviderTeacher("test:model", base_url=server.url, **{"price": (1.0, 2.0), **options})

    async def main():
        try:
            return await teacher.ask(request or question(1))
        finally:
            await teacher.aclose()

    return asyncio.run(main())


# ----------------------------------------------------------------------------- what is sent


def test_a_request_carries_prompt_image_schema_and_settings():
    with FaultServer(Faults(share=0.0)) as server:
        reply = ask(server, seed=7, max_tokens=99)
        body = server.bodies[0]
    assert reply.status == "ok" and reply.answer == parse_answer(reply.raw)
    assert reply.answer.answer == "An answer to: What does image 1 show?"
    assert (reply.input_tokens, reply.output_tokens) == (105, 50)
    assert reply.cost == pytest.approx((105 + 2 * 50) / 1e6)
    assert reply.latency > 0 and len(reply.attempts) == 1
    system, user = body["messages"]
    assert system == {"role": "system", "content": "You describe skin."}
    assert user["content"][0] == {"type": "text", "text": "What does image 1 show?"}
    assert user["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert (body["model"], body["temperature"], body["seed"]) == ("model", 0.0, 7)
    assert 99 in (body.get("max_tokens"), body.get("max_completion_tokens"))
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] and "answer" in schema["schema"]["properties"]


def test_a_schema_that_the_server_does_not_enforce_stands_in_the_prompt():
    with FaultServer(Faults(share=0.0)) as server:
        assert ask(server, native=False).status == "ok"
        body = server.bodies[0]
    assert "response_format" not in body and "tools" not in body
    assert '"abstained"' in body["messages"][0]["content"]


def test_a_conversation_has_its_image_in_the_first_turn():
    prompt = Prompt("s", "And now?", (("First?", "Yes."), ("Second?", "No.")))
    with FaultServer(Faults(share=0.0)) as server:
        ask(server, replace(question(1), prompt=prompt))
        messages = server.bodies[0]["messages"]
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert [part["type"] for part in messages[1]["content"]] == ["text", "image_url"]
    assert [m["content"] for m in messages[2:]] == ["Yes.", "Second?", "No.", "And now?"]


def test_live_calls_and_batch_files_ask_the_same():
    """Both share a key in the ledger, so what is asked must not depend on the way."""
    prompt = Prompt("s", "And now?", (("First?", "Yes."),))
    for options in ({}, {"native": False}, {"temperature": None, "max_tokens": None, "seed": 3}):
        for request in (question(1), replace(question(1), prompt=prompt)):
            with FaultServer(Faults(share=0.0)) as server:
                ask(server, request, **options)
                live = server.bodies[0]
            teacher = ProviderTeacher("test:model", base_url="http://localhost", **options)
            written = teacher.request_body(request)
            for body in (live, written):
                if limit := body.pop("max_tokens", None) or body.pop("max_completion_tokens", None):
                    body["limit"] = limit
            live.pop("stream", None)
            assert live == written


def test_text_that_no_request_can_carry_is_replaced():
    prompt = Prompt("\ud800", "皮膚 \udfff \0", (("\ud800", "\udfff"),))
    with FaultServer(Faults(share=0.0)) as server:
        assert ask(server, replace(question(1), prompt=prompt)).status == "ok"
        assert server.bodies[0]["messages"][-1]["content"] == "皮膚 � \0"
    assert sendable("a😀\ud800") == "a😀�"


# --------------------------------------------------------------------- what a reply means


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        ("length", "truncated", "cut at the limit of tokens"),
        ("content_filter", "blocked", "content filter"),
        ("refusal", "blocked", "I cannot help"),
        ("cut_json", "invalid", "reply"),
    ],
)
def test_replies_that_are_not_an_answer(kind, status, reason):
    with FaultServer(Faults(share=1.0, kinds=(kind,))) as server:
        reply = ask(server, repairs=2)
        calls = server.stats()["calls"]
    assert (reply.status, reply.answer) == (status, None)
    assert reason in reply.reason and reply.raw and reply.output_tokens
    # Only a reply that does not follow the schema is worth another call.
    assert calls == len(reply.attempts) == (3 if kind == "cut_json" else 1)
    assert reply.output_tokens == 50 * calls


@pytest.mark.parametrize("kind", ["429", "500", "drop", "cut_body"])
def test_calls_that_may_be_made_again_are_made_once_here(kind):
    """The client's own retries are off: the runner does them, and counts."""
    with FaultServer(Faults(share=1.0, kinds=(kind,), retry_after=3)) as server:
        with pytest.raises(TransientError) as caught:
            ask(server)
        assert server.stats()["calls"] == 1
    assert caught.value.throttled == (kind == "429") and not caught.value.pause_all
    assert caught.value.retry_after == (3 if kind == "429" else None)


def test_a_server_that_is_not_there_is_a_transient_error():
    with FaultServer() as server:
        pass
    with pytest.raises(TransientError, match="onnect"):
        ask(server)


def test_a_reply_against_the_schema_is_repaired():
    with Scripted(completion('{"answer": 1}'), completion(answer_json("x"))) as server:
        reply = ask(server)
        messages = server.bodies[1]["messages"]
    assert reply.status == "ok" and len(reply.attempts) == 2 and reply.output_tokens == 100
    assert messages[-2]["content"] == '{"answer": 1}'
    assert "answer: Input should be a valid string" in messages[-1]["content"]


def test_an_error_in_a_repair_keeps_what_was_spent():
    broken = 500, {"error": {"message": "down"}}
    with Scripted(completion("{}"), broken) as server, pytest.raises(TransientError) as caught:
        ask(server)
    assert (caught.value.input_tokens, caught.value.output_tokens) == (100, 50)
    assert caught.value.cost == pytest.approx(200 / 1e6)


@pytest.mark.parametrize(
    "text",
    [
        "", "\0", "null", "[]", "Sure! Here you are.", "\ud800", '{"answer": "\\ud800"}',
        "[" * 100_000, '{"answer": "x"}' * 2, "x" * 1_000_000, "<script>alert(1)</script>",
        answer_json("x").replace("0.5", "NaN"), answer_json("x").replace("0.5", "1.5"),
        answer_json("x")[:-1] + ', "extra": 1}', answer_json("x").replace("colours", "nonsense"),
    ],
    ids=range(15),
)  # fmt: skip
def test_hostile_replies_are_invalid_and_nothing_breaks(text):
    with Scripted(completion(text), completion(text)) as server:
        reply = ask(server)
    assert (reply.status, reply.answer, reply.raw) == ("invalid", None, text)
    assert 0 < len(reply.reason) < 2000


JSON, DRAFT = answer_json("x"), answer_json("a draft")
QUOTES = "Write ```json\n{}\n``` and <think>no</think>, so."
QUOTING = json.dumps(json.loads(JSON) | {"answer": QUOTES})


@pytest.mark.parametrize(
    "content",
    [
        *(f"{begin}Draft:\n```json\n{DRAFT}\n```\nno, wrong.{end}\n{final}"
          for begin, end in (("<think>", "</think>"), ("", "</think>"), ("[THINK]", "[/THINK]"),
                             ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"))
          for final in (JSON, f"```json\n{JSON}\n```", f"So:\n```\n{QUOTING}\n```")),
        f"```json\n{DRAFT}\n```\n" * 30 + f"</think>```\n{QUOTING}\n```", f"```\n{QUOTING}\n```",
        JSON, f"\ufeff{JSON}", f"Here:\n```json\n{JSON}\n```", f"```JSON\r\n{JSON}\r\n```\nDone.",
        f"```jsonc\n{JSON}", f"~~~~\n{JSON}\n~~~~", f"``` application/json {JSON}```", QUOTING,
        f"Here:\n```json\n{QUOTING}\n```", f"<think>\n{{...}}\n</think>\n{JSON}",
        f"<THINKING>a</THINKING><thinking>b</thinking>\n\n```\n{JSON}\n```",
        f"a thought whose beginning was cut</think>{QUOTING}",
        f"[THINK]hm ```json\n{JSON[:-5]}\n```[/THINK]{JSON}", f"{JSON}<|im_end|>\n</s>",
        f"<|channel|>analysis<|message|>Hm.<|end|><|channel|>final<|message|>{JSON}",
        [{"type": "text", "text": JSON}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
         {"type": "reasoning", "text": "{}"}, {"type": "text", "text": JSON[:9]}, JSON[9:]],
    ],
    ids=range(31),
)  # fmt: skip
def test_an_answer_is_read_in_every_dress_live_and_in_a_batch(content):
    with Scripted(completion(content)) as server:
        live = ask(server, repairs=0)
    batched = ProviderTeacher("test:model", base_url="http://x", price=(1, 2)).read(
        *completion(content)[:2]
    )
    assert live.status == batched.status == "ok", live.reason
    assert live.answer == batched.answer
    assert (live.raw, live.input_tokens, live.cost) == (
        batched.raw, batched.input_tokens, batched.cost
    )  # fmt: skip
    expected = QUOTES if "Write" in str(content) else parse_answer(JSON).answer
    assert live.answer.answer == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"```\n{JSON}\n```\n```\n{answer_json('y')}\n```", "more than one answer"),
        (f"```json\n{JSON[:-30]}\n```", "reply: Invalid JSON"),
        (f"<think>{JSON}", "Invalid JSON"),
        (f"<think>```json\n{JSON}\n``` or", "Invalid JSON"),
        (f"<think>```json\n{JSON}\n```</think>", "Invalid JSON"),
        (f"```json\n{JSON}\n```</think>I cannot.", "Invalid JSON"),
        (f"<|channel|>analysis<|message|>```json\n{JSON}\n```<|end|>", "Invalid JSON"),
        (f"<think>a</think>```\n{JSON}\n```\n```\n{DRAFT}\n```", "more than one answer"),
        ("```json\n{}\n```", "answer: Field required"),
        ("\ufeff \n", "the reply is empty"),
    ],
)
def test_what_is_not_one_answer_says_why(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_answer(text)


@pytest.mark.parametrize(
    "text", ["`" * 10**6, "~" * 10**6, "``` " + " " * 10**6, "<think>" * 10**5, " \n" * 10**6 + "x",
             "<think></think>" * 50_000, "```{" * 200_000, '{"a":' * 200_000,
             "</think>```{" * 50_000],
    ids=range(9),
)  # fmt: skip
def test_hostile_text_is_read_in_linear_time(text):
    began = time.process_time()
    with pytest.raises(ValueError):
        parse_answer(text)
    assert time.process_time() - began < 5


def finish_reasons():
    """(word of a provider, its meaning), from pydantic-ai's sources: few are installed."""
    for file in Path(pydantic_ai.models.__file__).parent.rglob("*.py"):
        if "FINISH_REASON" not in (source := file.read_text(encoding="utf-8")):
            continue
        for node in ast.parse(source).body:
            names = [getattr(node, "target", None), *getattr(node, "targets", ())]
            if not any("FINISH_REASON" in getattr(name, "id", "") for name in names):
                continue
            for word, meaning in zip(node.value.keys, node.value.values, strict=True):
                if word is None:  # **another
                    continue
                while isinstance(word, ast.Attribute) and word.attr == "value":
                    word = word.value
                said = word.value if isinstance(word, ast.Constant) else word.attr
                yield said, meaning.value


def test_every_finish_reason_that_pydantic_ai_knows_has_its_status():
    expected = {"content_filter": "blocked", "length": "truncated", "error": "failed"}
    known = set(finish_reasons())
    assert {"SAFETY", "refusal", "guardrail_intervened", "model_length"} < {
        word for word, _ in known
    }
    for word, meaning in known:
        for text in ("", JSON[:20]):
            assert judge(text, word)[0] == expected.get(meaning, "invalid"), (word, meaning)
        if meaning in ("stop", "tool_call", None):
            assert judge(JSON, word)[0] == "ok", word


@pytest.mark.parametrize(
    ("finish", "status"),
    [("SAFETY", "blocked"), ("guardrail_intervened", "blocked"), ("refusal", "blocked"),
     ("MAX_TOKENS", "truncated"), ("model_length", "truncated"), ("max_output_tokens", "truncated"),
     ("error", "failed"), ("eos", "invalid"), (7, "invalid")],
)  # fmt: skip
def test_finish_reasons_of_other_providers_through_a_gateway(finish, status):
    with Scripted(completion("", finish)) as server:
        assert ask(server, repairs=0).status == status


def test_temperature_goes_only_to_models_that_take_it():
    for model, taken in (("gpt-4o", True), ("o3-mini", False), ("gpt-5", False)):
        for address in ({}, {"base_url": "http://localhost/v1"}):
            body = ProviderTeacher(f"openai:{model}", **address).request_body(question(1))
            assert ("temperature" in body) == taken, model
    with Scripted(completion(JSON)) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        teacher = ProviderTeacher("openai:o3-mini", base_url=server.url)
        asyncio.run(teacher.ask(question(1)))
        assert "temperature" not in server.bodies[0]


# ------------------------------------------------------------------------------- odd replies

DEEP = b'{"choices": ' + b"[" * 5000 + b"]" * 5000 + b"}"


def odd(**changes):
    return chat_completion({"role": "assistant", "content": JSON}, "stop", "") | changes


ODD = [
    odd(choices=[]), odd(choices=None), odd(choices={}), odd(choices="x"), odd(choices=[None]), {},
    odd(choices=[{}]), odd(choices=[{"message": None}]), odd(choices=[{"message": "hello"}]), None,
    odd(choices=[{"message": {"content": 3}}]), odd(choices=[{"message": {"content": {"a": 1}}}]),
    odd(choices=[{"message": {"content": [3]}}]), [], [1], 3.5, "text", True, DEEP, b"",
    b"\xff\xfe", b"<html>Bad gateway</html>", b'{"choices": [', b"9" * 5000, {"error": "down"},
    {"error": {"code": 503, "message": "busy"}}, {"error": {"code": "1e9"}}, {"error": [None]},
    {"detail": "Not here"}, odd(choices=[{"message": {}, "finish_reason": {"a": 1}}]),
]  # fmt: skip
FINE = [
    odd(usage=None), odd(usage={"prompt_tokens": float("nan"), "completion_tokens": "many"}),
    odd(usage=[1]), odd(id=None, created="soon", model=3, object=None, system_fingerprint=1),
    odd(usage={"prompt_tokens": 10**30, "completion_tokens": -5}),
    {"choices": [{"message": {"content": JSON, "tool_calls": 3, "annotations": "x"}}]},
]  # fmt: skip


def test_an_odd_reply_costs_its_own_question_and_says_why(tmp_path, monkeypatch):
    """Whatever one question gets, the others are answered, and a later run may ask it again."""
    monkeypatch.setattr("derm_rl.captions.runner.backoff", lambda *_: 0.0)
    bodies = [*ODD, *FINE]

    class Odd(FaultServer):
        async def _chat(self, body, secret, reader, writer):
            number = int(body["messages"][1]["content"][0]["text"].split()[3])
            known = number < len(bodies)
            return await self._send(writer, 200, bodies[number] if known else odd())

    with Odd() as server, Ledger(tmp_path / "l.sqlite") as ledger:
        teacher = ProviderTeacher("test:model", base_url=server.url, price=(1, 1))
        requests = [question(i) for i in range(len(bodies) + 10)]
        summary = ask_all(teacher, requests, ledger, attempts=2, progress=False)
        replies = [ledger.get(key(request, teacher)) for request in requests]
    assert summary.asked == len(requests) == sum(summary.statuses.values())
    for reply, body in zip(replies, [*ODD, *FINE], strict=False):
        read = teacher.read(200, body)
        assert (reply.status, reply.answer) == (read.status, read.answer), body
        assert reply.status in (("ok",) if body in FINE else ("failed", "invalid")), (body, reply)
        assert reply.reason or reply.status == "ok"
    assert summary.statuses["ok"] == len(FINE) + 10


@pytest.mark.parametrize(
    "error",
    [KeyError("candidates"), AttributeError("'str' has no 'x'"), TypeError("no"), EOFError()],
)
def test_a_reply_that_the_client_of_another_sdk_breaks_on_costs_its_question(
    tmp_path, monkeypatch, error
):
    from pydantic_ai.messages import ModelResponse, TextPart
    from pydantic_ai.models.function import FunctionModel

    def reads(messages, info):
        if "image 3 " in str(messages):
            raise error
        return ModelResponse(parts=[TextPart(JSON)])

    model = FunctionModel(reads)
    model.client = object()  # of Gemini's SDK, or Anthropic's, Mistral's, Groq's, Bedrock's
    monkeypatch.setattr("derm_rl.captions.wire._inferred", lambda *_, **__: model)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        teacher = ProviderTeacher("google:gemini-x", price=(1, 1), native=False)
        requests = [question(i) for i in range(6)]
        summary = ask_all(teacher, requests, ledger, attempts=2, progress=False)
        failed = ledger.get(key(requests[3], teacher))
    assert (summary.statuses["ok"], summary.statuses["failed"]) == (5, 1)
    assert type(error).__name__ in failed.reason


def test_a_fault_of_our_own_before_anything_is_sent_is_raised(monkeypatch):
    def breaks(_):
        raise KeyError("ours")

    monkeypatch.setattr(ProviderTeacher, "_parameters", breaks)
    with pytest.raises(KeyError, match="ours"):
        asyncio.run(ProviderTeacher("test:model", base_url="http://x").ask(question(1)))


@pytest.mark.parametrize("status", [204, 302, 400, 402, 409, 418, 422, 499, 500, 529, 599])
def test_odd_statuses_cost_their_question(status):
    for body in (b"", b"<html>", {"error": {"message": "no", "code": 7}}, [1]):
        with Scripted((status, body)) as server:
            try:
                reply = ask(server, repairs=0)
            except (TransientError, TeacherError) as error:
                assert isinstance(error, TransientError) or status == 402
                assert str(error)
                continue
        assert reply.status == "failed" and reply.reason


def test_a_page_of_something_on_the_way_does_not_end_a_run_that_goes_well():
    with Scripted(completion(JSON), (403, b"<html>"), (404, {"error": {"code": "x"}})) as server:
        teacher = ProviderTeacher("test:model", base_url=server.url, price=(0, 0))

        async def three():
            assert (await teacher.ask(question(1))).status == "ok"
            with pytest.raises(TransientError, match="HTTP 403: <html>"):
                await teacher.ask(question(1))
            with pytest.raises(TeacherError, match="HTTP 404"):
                await teacher.ask(question(1))
            await teacher.aclose()

        asyncio.run(three())


@settings(max_examples=80, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "error", "usage", "finish_reason",
                             "refusal", "type", "text", "prompt_tokens", "code", "tool_calls"]),
            inner, max_size=5,
        ),
        max_leaves=12,
    )
    | st.binary(max_size=40),
    st.sampled_from([200, 200, 200, 201, 400, 401, 404, 429, 500]),
)  # fmt: skip
def test_no_reply_whatsoever_raises(body, status):
    if isinstance(body, dict):
        body.setdefault("choices", [{"message": dict(body)}])
    reply = READER.read(status, body)
    assert reply.reason or reply.status == "ok"
    assert (reply.answer is not None) == (reply.status == "ok")
    assert math.isfinite(reply.cost) and reply.input_tokens >= 0


READER = ProviderTeacher("test:model", base_url="http://localhost", price=(1, 1))


def test_refused_requests():
    azure = {"error": {"code": "content_filter", "message": "The prompt was filtered"}}
    with Scripted((400, azure)) as server:
        reply = ask(server)
    assert reply.status == "blocked" and "filtered" in reply.reason
    with Scripted((400, {"error": {"code": "bad_image", "message": "too small"}})) as server:
        reply = ask(server)
    assert reply.status == "failed" and "too small" in reply.reason


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "invalid_api_key"), (404, "model_not_found"), (429, "insufficient_quota")],
)
def test_what_no_request_can_get_past_stops_the_run(tmp_path, status, code):
    answers = [(status, {"error": {"code": code, "type": code, "message": "no"}})] * 20
    with Scripted(*answers) as server, Ledger(tmp_path / "l.sqlite") as ledger:
        teacher = ProviderTeacher("test:model", base_url=server.url)
        with pytest.raises(TeacherError, match=f"test:model: HTTP {status}"):
            ask_all(teacher, map(question, range(50)), ledger, concurrency=4, progress=False)
        assert len(server.bodies) <= 8 and len(ledger) == 0


def test_an_exhausted_limit_holds_all_calls_until_it_is_reset():
    headers = {
        "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m0.5s",
        "Retry-After": "2",
    }  # fmt: skip
    error = {"error": {"code": "rate_limit_exceeded", "message": "slow down"}}
    with Scripted((429, error, headers)) as server, pytest.raises(TransientError) as caught:
        ask(server)
    assert caught.value.pause_all and caught.value.throttled and caught.value.retry_after == 60.5


@pytest.mark.parametrize(
    ("left", "reset", "seconds"),
    [
        ("0", "20ms", 0.02), ("0", "6m0s", 360), ("0", "1h2m", 3720), ("0", "1.5", 1.5),
        ("5", "1s", None), ("0", "soon", None), ("0", "", None), ("", "1s", None),
        ("0", "1s!", None), ("0", "-1", None),
    ],
)  # fmt: skip
def test_reset_times_of_headers(left, reset, seconds):
    headers = {"x-ratelimit-remaining-tokens": left, "x-ratelimit-reset-tokens": reset}
    assert limit_reset(headers) == seconds


def test_the_judge_of_replies():
    assert judge(answer_json("x"), "stop")[0] == "ok"
    assert judge(answer_json("x"), None)[0] == "ok"
    assert judge(answer_json("x"), "length")[0] == "truncated"
    assert judge(answer_json("x"), "stop", "no")[::2] == ("blocked", "refused: no")
    assert judge("", "stop")[2] == "the reply is empty"


def test_the_schema_on_the_wire_has_nothing_that_strict_servers_refuse():
    text = json.dumps(wire_schema())
    assert "prefixItems" not in text and '"maxItems": 4' in text


def test_image_types():
    assert image_type(question(1).image) == "image/png"
    assert image_type(b"\xff\xd8\xff\xe0") == "image/jpeg"
    assert image_type(b"RIFF\0\0\0\0WEBP") == "image/webp" and image_type(b"GIF89a") == "image/gif"
    for wrong in (b"", b"<svg>", b"RIFF\0\0\0\0WAVE"):
        with pytest.raises(ValueError, match="expected PNG"):
            image_type(wrong)


# ------------------------------------------------------------------------------------- cost


def test_prices_come_from_the_list_or_the_argument_or_are_warned_about():
    assert model_price("openai:gpt-4o") == (2.5, 10.0) and model_price("no:such-model") is None
    assert ProviderTeacher("openai:gpt-4o").cost(1_000_000, 100_000) == pytest.approx(3.5)
    assert ProviderTeacher("x:y", price=(1, 2)).cost(1_000_000, 1_000_000) == pytest.approx(3)
    unknown = ProviderTeacher("x:y")
    with pytest.warns(UserWarning, match="x:y: no price known, cost counts as 0"):
        assert unknown.cost(1000, 1000) == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert unknown.cost(1000, 1000) == 0.0  # said once
    with pytest.warns(UserWarning, match="no price"):  # another server's price is its own
        assert ProviderTeacher("openai:gpt-4o", base_url="http://localhost").cost(1, 1) == 0.0


# ------------------------------------------------------------------------------------- keys


def test_no_key_anywhere(tmp_path, monkeypatch, caplog, capfd):
    """A server that repeats the key in answers and errors, and one that refuses it."""
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "ledger.sqlite"
    texts, requests = [], [question(i) for i in range(30)]
    for faults in (Faults(share=0.5, echo_key=True), Faults(refuse_key=True)):
        with FaultServer(faults) as server, Ledger(path) as ledger:
            teacher = ProviderTeacher(
                "test:model", base_url=server.url, api_key_env="SOME_API_KEY", price=(1, 1)
            )
            texts += [repr(teacher), repr(vars(teacher)), json.dumps(teacher.settings)]
            try:
                texts.append(str(ask_all(teacher, requests, ledger, timeout=0.5, attempts=3)))
                requests = [question(i) for i in range(30, 40)]
            except TeacherError as error:
                assert "***" in str(error)
                texts += [repr(error), *traceback.format_exception(error)]
                texts += [str(e) for e in (error.__cause__, error.__context__) if e]
            files = batch.write_requests(
                teacher, [question(99)], ledger, tmp_path / f"b{len(texts)}.jsonl"
            )
            assert files
            stored = [reply for entry in ledger for reply in (entry.reply.raw, entry.reply.reason)]
            assert any("***" in text for text in stored)
    texts += [caplog.text, *capfd.readouterr(), *stored]
    leaks = [text for text in texts if SECRET in text]
    assert not leaks, leaks[0].partition(SECRET)[0][-200:]
    for file in tmp_path.rglob("*"):
        assert SECRET.encode() not in file.read_bytes(), file


def test_the_key_reaches_the_server_and_only_the_one_it_is_for(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other-0123456789")
    seen = []

    class Spy(FaultServer):
        async def _chat(self, body, secret, reader, writer):
            seen.append(secret)
            return await super()._chat(body, secret, reader, writer)

    with Spy(Faults(share=0.0)) as server:
        ask(server, api_key_env="SOME_API_KEY")
        ask(server)
    assert seen[0] == SECRET and "sk-other" not in seen[1] and SECRET not in seen[1]


def test_settings_and_key_of_the_ledger_know_neither_address_nor_secret(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    here = ProviderTeacher("test:m", base_url="http://localhost:1", api_key_env="SOME_API_KEY")
    there = ProviderTeacher("test:m", base_url="http://elsewhere:2", api_key_env="OTHER")
    assert key(question(1), here) == key(question(1), there)
    assert key(question(1), here) != key(question(1), ProviderTeacher("test:m", temperature=0.5))


KEY = 'Zx9/very+private credential%7"q'  # with all that is written otherwise somewhere


def in_base64(text):
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "form",
    [
        KEY, quote(KEY), quote(KEY, safe=""), quote_plus(KEY), quote(quote(KEY, safe=""), safe=""),
        quote(KEY, safe="").lower().replace("zx", "Zx"), "".join(f"%{b:02X}" for b in KEY.encode()),
        json.dumps(KEY), json.dumps(json.dumps({"k": KEY})), repr(KEY), html.escape(KEY),
        KEY.replace("/", "\\/"), "".join(f"\\u{ord(c):04x}" for c in KEY), KEY.encode().hex(),
        *(in_base64(f"{'u' * n}:{KEY}{'x' * m}") for n in range(3) for m in range(2)),
        base64.urlsafe_b64encode(f"a:{KEY}".encode()).decode(), quote(in_base64(KEY), safe=""),
        base64.encodebytes(("x" * 50 + KEY + "y" * 40).encode()).decode(), f"Bearer {KEY}",
    ],
    ids=range(24),
)  # fmt: skip
def test_a_key_is_hidden_by_its_value_in_every_form(monkeypatch, form):
    monkeypatch.setenv("MYKEY", KEY)
    monkeypatch.setenv("DERM_RL_KEY_VARIABLES", "MYKEY")
    hidden = mask(f"before {form} after")
    assert "***" in hidden and hidden.startswith("before ") and hidden.endswith(" after")
    middle = len(form) // 2
    assert form[middle - 3 : middle + 3] not in hidden and "private" not in hidden


def test_what_is_no_key_is_left_alone(monkeypatch):
    monkeypatch.setenv("OTHER_TOKEN", "1")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent.sock")
    monkeypatch.setenv("VLLM_API_KEY", "EMPTY")
    text = "1 /tmp/agent.sock EMPTY risk-adjusted-assessment2024 openai:gpt-4o-mini-2024-07-18 hf_x"
    assert mask(text) == text
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    assert mask(f"a {SECRET} b") == "a *** b"


@pytest.mark.parametrize(
    "name",
    ["OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN", "OPENAI_ADMIN_KEY", "GEMINI_API_KEY", "HF_TOKEN",
     "CO_API_KEY", "HEROKU_INFERENCE_KEY", "AWS_BEARER_TOKEN_BEDROCK", "AWS_SECRET_ACCESS_KEY",
     "COPILOT_GITHUB_TOKEN", "SNOWFLAKE_TOKEN", "VERCEL_OIDC_TOKEN", "OPENAI_WEBHOOK_SECRET"],
)  # fmt: skip
def test_every_variable_that_a_client_reads_a_key_from_is_one(monkeypatch, name):
    monkeypatch.setenv(name, "some-private-value1")
    assert mask("a some-private-value1 b") == "a *** b"


@pytest.mark.parametrize(
    "name", ["DB_PASSWORD", "CLIENT_SECRET", "HF_TOKEN", "VLLM_API_KEY", "OPENAI_APIKEY", "MINE"]
)
def test_a_key_of_plain_words_is_one_where_nothing_else_can_be_meant(monkeypatch, name):
    monkeypatch.setenv(name, "some-private value")
    monkeypatch.setenv("DERM_RL_KEY_VARIABLES", "MINE")
    assert mask("a some-private value b") == "a *** b"


@pytest.mark.parametrize(
    ("name", "value"),
    [("AUTH_MODE", "standard"), ("SORT_KEY", "lesion_id"), ("AUTH_TYPE", "password"),
     ("AUTH", "optional"), ("LLM_API_KEY_PROVIDER", "anthropic"), ("AUTH_METHOD", "OpenID-2"),
     ("TOKEN_BACKEND", "redis-v2"), ("API_KEY_NAME", "X-Api-Key"), ("AUTH_USER", "derm-rl-7"),
     ("AUTH_REGION", "eu-central-1")],
)  # fmt: skip
def test_what_a_variable_chooses_is_no_key(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert mask(f"The {value} of care") == f"The {value} of care"
    assert ProviderTeacher(f"{value}:claude").provider == value


OF_ITSELF = "sk-proj-1234567890abcdefghij"  # known by how it begins
AROUND = st.text(
    st.sampled_from('\n\t\r\b\f\\"/ \x00\x1bé\u2028\U0001f600aefnrux019+=%&:')
    | st.characters(codec="utf-8"),
    max_size=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    AROUND, AROUND, st.booleans(), st.integers(1, 2),
    st.sampled_from([KEY, SECRET, "sk-test-in quotes", "nothing-special1", "two\r\nlines\t9",
                     "e9ba11f00ba1"]),
    st.sampled_from([str, in_base64, lambda k: base64.encodebytes(b"u:" + k.encode()).decode(),
                     lambda k: k.encode().hex(), repr, lambda k: quote(k, safe="")]),
)  # fmt: skip
def test_json_without_its_keys_is_json(before, after, ascii_only, layers, secret, form):
    text = f"{before}{form(secret)}{after}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SOME_API_KEY", f'"{secret}\\"')  # as files of variables have it
        hidden = {"text": text, form(secret): [text]}
        for _ in range(layers):
            hidden = json.dumps(hidden, ensure_ascii=ascii_only)
        hidden = mask(hidden)
    for _ in range(layers):
        hidden = json.loads(hidden)
    assert "***" in hidden["text"], hidden
    assert form(secret).strip("'=\n") not in str(hidden)


@settings(max_examples=300, deadline=None)
@given(
    AROUND.filter(lambda t: not t[-1:].isascii() or not t[-1:].isalnum()), AROUND,
    st.sampled_from([OF_ITSELF, "r8_1234567890abcdef", "nvapi-1234567890abcdef",
                     "fw_1234567890abcdef", "AKIA1234567890ABCDEF"]),
    st.sampled_from([partial(json.dumps, ensure_ascii=False), json.dumps, repr, quote, str]),
)  # fmt: skip
def test_a_key_known_by_its_beginning_is_found_behind_every_escape(before, after, secret, write):
    written = mask(write(f"{before}{secret}{after}"))
    assert "***" in written and secret not in written
    if isinstance(write, partial) or write is json.dumps:
        assert secret not in json.loads(written)


@pytest.mark.parametrize(
    "text", ["a\r8_1234567890abc", "a\nvapi-1234567890abc", "\fw_1234567890abc"]
)
def test_an_escape_and_what_follows_it_may_look_like_a_key(text):
    assert "*" in json.loads(mask(json.dumps({"text": text})))["text"]


def test_line_ends_before_a_key_remain(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    for key_ in (SECRET, OF_ITSELF, in_base64(SECRET), SECRET.encode().hex()):
        text = json.loads(mask(json.dumps({"text": f"header:\n{key_}\nend"})))["text"]
        assert text == "header:\n***\nend"


def test_keys_in_addresses_and_headers_of_the_environment(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hunter2%2Fhunter@proxy:3128")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: a\nX-Auth: anotherprivateone")
    assert mask("hunter2/hunter, hunter2%2Fhunter; anotherprivateone") == "***, ***; ***"


@pytest.mark.parametrize(
    "setting",
    ["teacher=sk-proj-Abcd1234Efgh", "teacher=openai:sk-proj-Abcd1234Efgh",
     "teachr=hf_Abcd1234Efgh",
     "teacher=0123456789abcdef0123456789abcdef", "teacher=AnOnlyTextualPassphrase",
     "judge=AIzaSyAbcdefghijklmnopqrst12345", "api_key=some-private-value",
     "budget=sk-Abcd1234Efgh", "api_key_env=gsk_Abcd1234Efgh5678", "api_key_env=Zx9-very+private",
     "base_url=https://me:hunter2hunter@host/v1", "base_url=https://host/v1?key=hunter2hunter",
     "base_url=https://me:hun/ter2hunter@host/v1", "base_url=me:hunter2hunter@host:80/v1"],
)  # fmt: skip
def test_a_key_pasted_into_a_setting_is_refused_and_not_shown(setting):
    name, value = setting.split("=", 1)
    with pytest.raises(config.ConfigError) as caught:
        config.load("smoke", (f"captions.{setting}",))
    text = "".join(traceback.format_exception(caught.value))
    assert value not in str(caught.value) and "hunter" not in str(caught.value)
    assert f"captions.{name}" in text and "***" in text
    if name in ("teacher", "base_url", "api_key_env"):
        arguments = {"model": "x:y", "base_url": "http://h"} | {
            name.replace("teacher", "model"): value
        }
        with pytest.raises(TeacherError) as caught:
            ProviderTeacher(**arguments)
        assert value not in str(caught.value)


class Echo(FaultServer):
    """Repeats the Authorization header, in a body and a header, in many forms."""

    status = 401

    async def _chat(self, body, secret, reader, writer):
        said = [secret, f"Bearer {secret}", quote(secret, safe=""), in_base64(f"me:{secret}:x")]
        error = {"message": json.dumps(said), "code": "invalid_api_key", "said": said}
        return await self._send(writer, self.status, {"error": error}, {"X-Echo": secret})


def test_a_server_that_echoes_the_key(monkeypatch, caplog, capfd):
    """Not in errors, variables of tracebacks or logs, whatever the variable is called."""
    monkeypatch.setenv("MINE", KEY)
    caplog.set_level(logging.DEBUG)
    texts = []
    for status in (401, 400, 500, 200):
        with Echo() as server:
            server.status = status
            teacher = ProviderTeacher("test:model", base_url=server.url, api_key_env="MINE")
            try:
                texts.append(repr(asyncio.run(teacher.ask(question(1)))))
            except (TeacherError, TransientError) as error:
                frames = traceback.walk_tb(error.__traceback__)
                texts += [repr(error), repr(error.__context__)]
                texts += [repr(frame.f_locals) for frame, _ in frames]
                assert "***" in str(error)
            texts.append(repr(vars(teacher)))
            body = {"error": {"message": f"{KEY} {in_base64(KEY)}"}}
            row = {"custom_id": "a", "response": {"status_code": status, "body": body}}
            texts.append(repr(batch.result_reply(row, teacher)))
            del body, row
    logging.getLogger("x").error("got %s", KEY, exc_info=ValueError(KEY))
    texts += [caplog.text, *capfd.readouterr()]
    for hidden in (KEY, "very+private", quote(KEY, safe=""), in_base64(KEY)[2:-4]):
        assert [text for text in texts if hidden in text] == []


@pytest.mark.parametrize(
    ("model", "variable"),
    [("openai:gpt-4o", "OPENAI_API_KEY"), ("openrouter:a/b", "OPENROUTER_API_KEY")],
)
def test_a_missing_key_names_its_variable(monkeypatch, model, variable):
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(TeacherError, match=variable):
        asyncio.run(ProviderTeacher(model).aopen())


@pytest.mark.parametrize(
    ("model", "module", "extra"),
    [
        ("anthropic:claude-sonnet-4-5", "anthropic", "anthropic"),
        ("google:gemini-2.0-flash", "google.genai", "google"),
    ],
)
def test_a_missing_extra_is_named_with_its_variable(monkeypatch, model, module, extra):
    monkeypatch.setitem(__import__("sys").modules, module, None)  # as if not installed
    with pytest.raises(TeacherError, match=rf"slim\[{extra}\].*{extra.upper()}_API_KEY"):
        asyncio.run(ProviderTeacher(model).aopen())


def test_a_variable_that_is_named_must_hold_a_key(monkeypatch):
    monkeypatch.setenv("EMPTY_API_KEY", "")
    teacher = ProviderTeacher("x:y", base_url="http://localhost", api_key_env="EMPTY_API_KEY")
    with pytest.raises(TeacherError, match="EMPTY_API_KEY is empty"):
        asyncio.run(teacher.aopen())


@pytest.mark.parametrize("model", ["", "gpt-4o", ":x", "openai:"])
def test_wrong_model_names(model):
    with pytest.raises(TeacherError, match="expected 'provider:model'"):
        ProviderTeacher(model)


def test_other_wrong_arguments():
    with pytest.raises(ValueError, match="repairs"):
        ProviderTeacher("x:y", repairs=-1)
    with pytest.raises(RuntimeError, match="plain JSON"):
        ProviderTeacher("x:y", extra={"a": object()})


def test_a_teacher_may_be_used_in_one_event_loop_after_another():
    with FaultServer(Faults(share=0.0)) as server:
        teacher = ProviderTeacher("test:model", base_url=server.url, price=(0, 0))
        for number in range(2):
            assert asyncio.run(teacher.ask(question(number))).status == "ok"


# --------------------------------------------------------------- a real server, a real model

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '\n' }}{% endfor %}assistant: "
)


def save_tiny_vlm(folder):
    """A LLaVA with random weights, two layers, and one token a byte."""
    import torch
    import transformers as t
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    images = t.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    t.LlavaProcessor(
        image_processor=images, tokenizer=fast, patch_size=8, chat_template=TEMPLATE,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(
            **small, num_hidden_layers=2, image_size=32, patch_size=8, projection_dim=32
        ),
        text_config=t.LlamaConfig(
            **small, num_hidden_layers=2, num_key_value_heads=2, vocab_size=len(fast),
            max_position_embeddings=8192,
        ),
        image_token_index=fast.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    torch.manual_seed(0)
    t.LlavaForConditionalGeneration(config).save_pretrained(folder)


def test_against_the_server_of_transformers(tmp_path):
    """All the way to a language model that sees the image; what a random one says is no answer."""
    import socket
    import subprocess
    import sys
    import time
    import urllib.request

    save_tiny_vlm(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(tmp_path / "log", "w") as log:
        command = "from transformers.cli.transformers import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", str(tmp_path / "model")]
            + ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.25)
        teacher = ProviderTeacher(
            f"transformers:{tmp_path / 'model'}", base_url=f"http://127.0.0.1:{port}/v1",
            max_tokens=12, native=False, price=(0, 0),
        )  # fmt: skip
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            requests = [question(i) for i in range(3)]
            summary = ask_all(teacher, requests, ledger, concurrency=2, progress=False)
            replies = [entry.reply for entry in ledger]
            assert ask_all(teacher, requests, ledger, progress=False).reused == 3
    finally:
        process.kill()
        process.wait()
    assert summary.asked == 3 and summary.retries == 0, [r.reason for r in replies]
    assert {r.status for r in replies} <= {"truncated", "invalid"}, [r.reason for r in replies]
    for reply in replies:
        assert reply.raw and 0 < reply.output_tokens <= 12 * 2
        assert reply.input_tokens > 16 + len("What does image 1 show?")  # 16 patches, bytes of text
