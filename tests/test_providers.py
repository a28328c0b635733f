"""Language models as teachers: what is sent, what each reply means, and that no key leaks."""

import asyncio
import json
import logging
import traceback
import warnings
from dataclasses import replace

import pytest
from fault_server import Faults, FaultServer, answer_json, chat_completion, question

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


def test_fenced_json_is_an_answer():
    with Scripted(completion(f"Here:\n```json\n{answer_json('x')}\n```")) as server:
        assert ask(server).status == "ok"


@pytest.mark.parametrize("body", ["<html>Bad gateway</html>", {}, {"choices": []}, [1], None])
def test_a_body_that_is_not_of_this_api_ends_in_a_status_or_another_attempt(body):
    with Scripted((200, body), (200, body)) as server:
        try:
            reply = ask(server)
        except TransientError:
            return
    assert reply.status in ("invalid", "failed") and reply.reason


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
    texts, requests = [], [question(i) for i in range(60)]
    for faults in (Faults(share=0.5, echo_key=True), Faults(refuse_key=True)):
        with FaultServer(faults) as server, Ledger(path) as ledger:
            teacher = ProviderTeacher(
                "test:model", base_url=server.url, api_key_env="SOME_API_KEY", price=(1, 1)
            )
            texts += [repr(teacher), repr(vars(teacher)), json.dumps(teacher.settings)]
            try:
                texts.append(str(ask_all(teacher, requests, ledger, timeout=0.5, attempts=3)))
                requests = [question(i) for i in range(60, 70)]
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


def test_secrets_are_hidden_and_short_values_left_alone(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.setenv("OTHER_TOKEN", "1")
    assert mask(f"a {SECRET}1 b") == "a ***1 b"


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
    with pytest.raises(TeacherError, match="keys do not belong") as caught:
        ProviderTeacher("x:y", base_url=f"http://user:{SECRET}@host/v1")
    assert SECRET not in str(caught.value)
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
