"""Batch files out and results in: format, limits, and every kind of row a provider sends back."""

import base64
import json

import pytest
from fault_server import answer_json, chat_completion, question

from derm_rl.captions.batch import (
    ENDPOINT,
    BatchError,
    read_results,
    result_reply,
    write_requests,
)
from derm_rl.captions.ledger import Ledger, key
from derm_rl.captions.providers import ProviderTeacher
from derm_rl.captions.runner import ask_all, replay
from derm_rl.captions.schema import Prompt, Reply

TEACHER = ProviderTeacher("test:model", base_url="http://localhost/v1", price=(2.0, 4.0))


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def result(number, text=None, finish="stop", **message):
    """A row of a result file, as OpenAI and ``vllm run-batch`` write it."""
    text = answer_json(f"question {number}") if text is None else text
    body = chat_completion({"role": "assistant", "content": text, **message}, finish, "")
    return row(number, {"status_code": 200, "request_id": "r", "body": body})


def row(number, response, error=None):
    name = key(question(number), TEACHER) if isinstance(number, int) else number
    return {"id": f"batch-{name[:8]}", "custom_id": name, "response": response, "error": error}


# ------------------------------------------------------------------------------------- out


def test_a_line_is_a_complete_call(ledger, tmp_path):
    (path,) = write_requests(TEACHER, [question(1)], ledger, tmp_path / "requests.jsonl")
    assert path.name == "requests-00000.jsonl"
    (line,) = lines(path)
    assert line["custom_id"] == key(question(1), TEACHER)
    assert (line["method"], line["url"]) == ("POST", ENDPOINT)
    body = line["body"]
    assert (body["model"], body["temperature"], body["max_completion_tokens"]) == ("model", 0, 1500)
    text, image = body["messages"][1]["content"]
    assert text["text"] == "What does image 1 show?"
    url = image["image_url"]["url"]
    assert base64.b64decode(url.removeprefix("data:image/png;base64,")) == question(1).image
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"]["additionalProperties"] is False
    assert set(schema["schema"]["required"]) == set(schema["schema"]["properties"])


def test_files_are_split_at_the_limits(ledger, tmp_path):
    requests = [question(i) for i in range(10)]
    size = len(json.dumps(TEACHER.request_body(requests[0]))) + 200
    by_count = write_requests(TEACHER, requests, ledger, tmp_path / "a" / "n.jsonl", max_requests=4)
    assert [len(lines(p)) for p in by_count] == [4, 4, 2]
    limit = 3 * size
    by_size = write_requests(TEACHER, requests, ledger, tmp_path / "b" / "n.jsonl", max_bytes=limit)
    assert all(p.stat().st_size <= limit for p in by_size) and 3 <= len(by_size) <= 5
    for files in (by_count, by_size):
        names = [line["custom_id"] for p in files for line in lines(p)]
        assert names == [key(r, TEACHER) for r in requests]


def test_a_request_that_fits_in_no_file_is_named_and_nothing_is_left_behind(ledger, tmp_path):
    with pytest.raises(BatchError, match="image-0: its request has"):
        write_requests(TEACHER, [question(0)], ledger, tmp_path / "x" / "n.jsonl", max_bytes=100)
    assert not list((tmp_path / "x").glob("*") if (tmp_path / "x").exists() else [])


def test_an_error_half_way_leaves_no_file(ledger, tmp_path):
    def requests():
        yield from map(question, range(5))
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        write_requests(TEACHER, requests(), ledger, tmp_path / "x" / "n.jsonl", max_requests=2)
    assert not list((tmp_path / "x").iterdir())


def test_files_that_are_there_are_not_overwritten(ledger, tmp_path):
    path = tmp_path / "n.jsonl"
    write_requests(TEACHER, [question(1)], ledger, path)
    with pytest.raises(FileExistsError, match="n-00000.jsonl: exists; read its results"):
        write_requests(TEACHER, [question(2)], ledger, path)


def test_only_what_has_no_final_answer_is_written_and_once(ledger, tmp_path):
    done = [Reply("blocked", None, "", "no"), Reply("failed", None, "", "down")]
    for number, reply in enumerate(done):
        ledger.store(key(question(number), TEACHER), "test:model", reply)
    requests = [question(i) for i in (0, 1, 2, 2, 1)]
    (path,) = write_requests(TEACHER, requests, ledger, tmp_path / "n.jsonl")
    wanted = [key(question(i), TEACHER) for i in (1, 2)]
    assert [line["custom_id"] for line in lines(path)] == wanted
    assert write_requests(TEACHER, [question(0)], ledger, tmp_path / "m.jsonl") == []
    assert write_requests(TEACHER, [], ledger, tmp_path / "m.jsonl") == []


# -------------------------------------------------------------------------------------- in


def test_written_answered_read_and_nothing_is_left_to_ask(ledger, tmp_path):
    requests = [question(i) for i in range(5)]
    files = write_requests(TEACHER, requests, ledger, tmp_path / "n.jsonl")
    results = write(tmp_path / "out.jsonl", [result(i) for i in reversed(range(5))])
    report = read_results([results], ledger, files, TEACHER)
    assert report.statuses["ok"] == 5 and not report.missing and not report.unknown
    found = [
        (r.question.image_id, a.answer.answer) for r, _, a in replay(TEACHER, requests, ledger)
    ]
    assert found == [(f"image-{i}", f"An answer to: question {i}") for i in range(5)]
    reply = ledger.get(key(question(0), TEACHER))
    assert (reply.input_tokens, reply.output_tokens) == (100, 50)
    assert reply.cost == pytest.approx(0.5 * (100 * 2 + 50 * 4) / 1e6)
    again = read_results([results], ledger, files, TEACHER)
    assert (again.known, sum(again.statuses.values()), len(ledger)) == (5, 0, 5)
    # The live runner finds the answers of the batch: the keys are the same.
    assert ask_all(TEACHER, requests, ledger, progress=False).reused == 5


@pytest.mark.parametrize(
    ("made", "status", "reason"),
    [
        (result(1, "half an ans", "length"), "truncated", "limit of tokens"),
        (result(1, "", "content_filter"), "blocked", "content filter"),
        (result(1, "", refusal="I cannot"), "blocked", "I cannot"),
        (result(1, '{"answer": 1}'), "invalid", "valid string"),
        (result(1, "<script>"), "invalid", "Invalid JSON"),
        (row(1, None, {"code": "batch_expired", "message": "late"}), "failed", "batch_expired"),
        (row(1, {"status_code": 500, "body": {"error": {"message": "x"}}}), "failed", "HTTP 500"),
        (row(1, {"status_code": 400, "body": "plain text"}), "failed", "HTTP 400: plain text"),
        (
            row(1, {"status_code": 400, "body": {"error": {"code": "content_filter"}}}),
            "blocked", "content_filter",
        ),
        (row(1, {"status_code": 200, "body": {}}), "failed", "chat completion"),
        (row(1, {"status_code": 200, "body": {"choices": []}}), "failed", "chat completion"),
        (row(1, {"status_code": 200, "body": [1]}), "failed", "chat completion"),
        (row(1, {"status_code": 200, "body": {"choices": [{"message": {"content": 3}}]}}),
         "failed", "valid string"),
        (row(1, "text"), "failed", "chat completion"),
        (row(1, None), "failed", "chat completion"),
    ],
    ids=range(15),
)  # fmt: skip
def test_every_kind_of_row_ends_in_its_status(ledger, tmp_path, made, status, reason):
    files = write_requests(TEACHER, [question(1)], ledger, tmp_path / "n.jsonl")
    report = read_results([write(tmp_path / "out.jsonl", [made])], ledger, files, TEACHER)
    reply = ledger.get(key(question(1), TEACHER))
    assert (reply.status, reply.answer) == (status, None) and reason in reply.reason
    assert report.statuses[status] == 1
    left = write_requests(TEACHER, [question(1)], ledger, tmp_path / "next.jsonl")
    assert bool(left) == (status == "failed")


def test_missing_rows_are_reported_and_unknown_ones_refused(ledger, tmp_path):
    files = write_requests(TEACHER, map(question, range(3)), ledger, tmp_path / "n.jsonl")
    strange = row("0" * 64, result(0)["response"])
    out = write(tmp_path / "out.jsonl", [result(0), strange])
    errors = write(tmp_path / "errors.jsonl", [row(2, None, {"message": "expired"})])
    report = read_results([out, errors], ledger, files, TEACHER)
    assert report.missing == [key(question(1), TEACHER)] and report.unknown == ["0" * 64]
    assert report.statuses["ok"] == report.statuses["failed"] == 1 and len(ledger) == 2
    assert str(report).endswith("missing: 1; unknown, refused: 1")
    assert ledger.get("0" * 64) is None


def test_a_row_given_twice_counts_once_and_a_better_one_wins(ledger, tmp_path):
    files = write_requests(TEACHER, [question(1)], ledger, tmp_path / "n.jsonl")
    failed = row(1, {"status_code": 500, "body": {"error": {"message": "x"}}})
    out = write(tmp_path / "out.jsonl", [failed, result(1), result(1)])
    read_results([out], ledger, files, TEACHER)
    assert ledger.counts()["ok"] == len(ledger) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"custom_', "out.jsonl, line 1: not JSON"),
        (b"\xff\xfe\n", "out.jsonl, line 1: not JSON"),
        (b"[" * 100_000, "out.jsonl, line 1: not JSON"),
        (b"[1]\n", "line 1: expected an object with 'custom_id'"),
        (b'{"custom_id": 5}\n', "expected an object with 'custom_id'"),
        (b'{"custom_id": "a", "method": "POST", "url": "/v1", "body": {}}', "a request, not a res"),
    ],
    ids=range(6),
)
def test_a_file_without_a_result_is_named_and_a_line_costs_its_own_request(
    ledger, tmp_path, content, message
):
    files = write_requests(TEACHER, map(question, range(3)), ledger, tmp_path / "n.jsonl")
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(BatchError, match=message.replace("[", r"\[")):
        read_results([path], ledger, files, TEACHER)
    assert len(ledger) == 0
    good = write(tmp_path / "good.jsonl", [result(0), result(2)]).read_bytes().splitlines()
    path.write_bytes(b"\xef\xbb\xbf" + good[0] + b"\r\n" + content.strip() + b"\n" + good[1])
    report = read_results([path], ledger, files, TEACHER)
    assert report.statuses["ok"] == 2 and report.missing == [key(question(1), TEACHER)]
    assert len(report.unreadable) == 1 and "out.jsonl, line 2: " in str(report)


def test_hostile_text_of_a_batch_is_stored_faithfully(ledger, tmp_path):
    files = write_requests(TEACHER, map(question, range(3)), ledger, tmp_path / "n.jsonl")
    texts = ["\0 \ud800", answer_json("<script>\u202e</script>"), "x" * 1_000_000]
    out = write(tmp_path / "out.jsonl", [result(i, text) for i, text in enumerate(texts)])
    read_results([out], ledger, files, TEACHER)
    assert [ledger.get(key(question(i), TEACHER)).raw for i in range(3)] == texts


def test_a_key_of_the_environment_does_not_reach_the_ledger(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "sk-test-0123456789")
    for made in (
        result(1, "sk-test-0123456789"),
        result(1, "", refusal="no sk-test-0123456789"),
        row(1, {"status_code": 401, "body": {"error": {"message": "sk-test-0123456789"}}}),
        row(1, {"status_code": 200, "body": {"odd": "sk-test-0123456789"}}),
    ):
        assert "sk-test" not in repr(result_reply(made, TEACHER))


def test_empty_files(ledger, tmp_path):
    files = write_requests(TEACHER, [question(1)], ledger, tmp_path / "n.jsonl")
    out = write(tmp_path / "out.jsonl", [])
    out.write_text("\n\n")
    report = read_results([out], ledger, files, TEACHER)
    assert len(report.missing) == 1 and str(report).startswith("stored none")


def test_a_conversation_takes_one_batch_a_turn(ledger, tmp_path):
    turns = [question(4), question(4, prompt=Prompt("s", "And then?"))]
    (first,) = write_requests(TEACHER, [turns], ledger, tmp_path / "a.jsonl")
    assert len(lines(first)) == 1
    out = write(tmp_path / "out.jsonl", [result(4)])
    read_results([out], ledger, [first], TEACHER)
    (second,) = write_requests(TEACHER, [turns], ledger, tmp_path / "b.jsonl")
    (line,) = lines(second)
    roles = [m["role"] for m in line["body"]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert line["body"]["messages"][2]["content"] == "An answer to: question 4"
