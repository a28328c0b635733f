"""The runner: every request ends with the right status, once, whatever teacher and process do."""

import asyncio
import io
import math
import multiprocessing
import os
import random
import signal
import threading
import time
from dataclasses import dataclass, field, replace

import pytest
from fault_server import Faults, FaultServer, question
from PIL import Image

from derm_rl.captions import pace, runner
from derm_rl.captions.conversations import next_request, text_tokens, tile_tokens
from derm_rl.captions.ledger import Ledger, LedgerError, key
from derm_rl.captions.pace import Pace, TransientError, backoff
from derm_rl.captions.providers import ProviderTeacher
from derm_rl.captions.runner import ask_all, estimate, replay
from derm_rl.captions.schema import Answer, Prompt, Reply


@dataclass
class Fake:
    """A teacher that runs a list of outcomes for each question, then answers; counts its calls."""

    outcomes: dict[int, list] = field(default_factory=dict)  # by number of the question
    seconds: float = 0.0
    cost: float = 0.0
    name: str = "fake"
    settings: dict = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0

    async def ask(self, request):
        number = int(request.question.image_id.split("-")[1])
        self.calls.append(number)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.seconds)
            queue = self.outcomes.get(number)
            outcome = queue.pop(0) if queue else f"answer {number}"
        finally:
            self.in_flight -= 1
        if isinstance(outcome, BaseException):
            raise outcome
        if callable(outcome):
            return await outcome()
        if isinstance(outcome, Reply):
            return outcome
        return reply(outcome, self.cost)


def reply(text, cost=0.0):
    answer = Answer(answer=text, findings=[], confidence=1, abstained=False)
    return Reply("ok", answer, text, "", 10, 5, cost)


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(runner, "backoff", lambda n, e=None: backoff(n, e, base=0.005))


def run(teacher, requests, ledger, **options):
    return ask_all(teacher, requests, ledger, **{"progress": False, "timeout": 5.0, **options})


# ---------------------------------------------------------------------------------- answering


def test_every_request_is_answered_once_and_never_again(ledger):
    teacher, requests = Fake(), [question(i) for i in range(50)]
    first = run(teacher, requests, ledger)
    assert first.asked == first.statuses["ok"] == 50 and first.stopped is None
    assert (first.input_tokens, first.output_tokens) == (500, 250)
    again = run(teacher, requests, ledger)
    assert (again.asked, again.reused) == (0, 50)
    assert sorted(teacher.calls) == list(range(50))
    found = list(replay(teacher, requests, ledger))
    assert [r.question.image_id for r, _, _ in found] == [f"image-{i}" for i in range(50)]
    assert [a.answer.answer for _, _, a in found] == [f"answer {i}" for i in range(50)]
    assert all(k == key(r, teacher) for r, k, _ in found)


def test_nothing_to_ask(ledger):
    assert run(Fake(), [], ledger).asked == 0


def test_a_request_given_twice_in_one_run_is_asked_once(ledger):
    teacher = Fake(seconds=0.05)
    summary = run(teacher, [question(1)] * 5, ledger)
    assert (summary.asked, summary.reused, teacher.calls) == (1, 4, [1])


def test_another_prompt_or_teacher_is_asked_anew(ledger):
    run(Fake(), [question(1)], ledger)
    other = replace(question(1), prompt=Prompt("s", "Other words?"))
    assert run(Fake(), [other], ledger).asked == 1
    assert run(Fake(name="better"), [question(1)], ledger).asked == 1
    assert run(Fake(settings={"temperature": 1}), [question(1)], ledger).asked == 1
    assert len(ledger) == 4


def test_all_statuses_are_stored_as_they_are(ledger):
    statuses = ["blocked", "invalid", "truncated", "failed"]
    outcomes = {i: [Reply(s, None, "raw", f"why {s}")] for i, s in enumerate(statuses)}
    teacher = Fake(outcomes)
    summary = run(teacher, map(question, range(5)), ledger)
    assert summary.statuses == {**dict.fromkeys(statuses, 1), "ok": 1}
    stored = replay(teacher, map(question, range(4)), ledger)
    for status, (_, _, got) in zip(statuses, stored, strict=True):
        assert (got.status, got.raw, got.reason) == (status, "raw", f"why {status}")
    assert run(teacher, map(question, range(5)), ledger).asked == 1  # the failed one alone
    assert sorted(teacher.calls) == [0, 1, 2, 3, 3, 4]


def test_never_more_calls_in_flight_than_allowed_and_requests_are_taken_as_needed(ledger):
    taken = []

    def requests():
        for i in range(200):
            taken.append(i)
            yield question(i)

    teacher = Fake(seconds=0.01)
    ahead = []
    teacher.outcomes = {150: [lambda: _note(ahead, taken, teacher)]}
    run(teacher, requests(), ledger, concurrency=5)
    assert teacher.most == 5 and len(taken) == 200
    assert ahead[0] <= 4 * 5


async def _note(ahead, taken, teacher):
    ahead.append(len(taken) - len(teacher.calls))
    return reply("noted")


def test_calls_a_minute_are_kept(ledger):
    began = time.monotonic()
    run(Fake(), map(question, range(11)), ledger, requests_per_minute=1200)
    assert time.monotonic() - began >= 0.5


def test_it_works_inside_a_running_event_loop(ledger):
    async def cell():
        return run(Fake(), [question(1)], ledger)

    assert asyncio.run(cell()).asked == 1


def test_the_callback_sees_new_and_known_answers(ledger):
    seen = []
    for _ in range(2):
        run(
            Fake(), map(question, range(3)), ledger,
            callback=lambda r, k, a: seen.append((r.question.image_id, len(k), a.status)),
        )  # fmt: skip
    assert sorted(seen) == sorted([(f"image-{i}", 64, "ok") for i in range(3)] * 2)


# ------------------------------------------------------------------------------ conversations


def conversation(number, turns=3):
    asked = question(number).question
    texts = [replace(asked, turn=t, text=f"Q{t}") for t in range(turns)]
    # The prompts differ from one conversation to another, or all would be one request.
    return [
        question(number, question=text, prompt=Prompt("s", f"U{t} of {number}"))
        for t, text in enumerate(texts)
    ]


def test_turns_are_asked_in_order_with_the_history_of_those_before(ledger):
    histories = []

    class Watching(Fake):
        async def ask(self, request):
            histories.append(request.prompt.history)
            return await super().ask(request)

    teacher = Watching()
    summary = run(teacher, [conversation(7)], ledger)
    first, second = ("Q0", "answer 7"), ("Q1", "answer 7")
    assert histories == [(), (first,), (first, second)]
    assert summary.asked == 3
    assert [r.prompt.history for r, _, _ in replay(teacher, [conversation(7)], ledger)] == histories


def test_conversations_run_at_the_same_time(ledger):
    teacher = Fake(seconds=0.1)
    run(teacher, [conversation(i) for i in range(10)], ledger)
    assert teacher.most == 10


def test_a_turn_may_be_made_from_the_answers_before_it(ledger):
    def follow_up(done):
        return question(2, prompt=Prompt("s", f"You said: {done[-1][1].answer.answer}"))

    run(Fake(), [[question(1), follow_up, lambda done: None]], ledger)
    texts = [r.prompt.user for r, _, _ in replay(Fake(), [[question(1), follow_up]], ledger)]
    assert texts == ["What does image 1 show?", "You said: answer 1"]


def test_a_turn_without_an_answer_ends_its_conversation(ledger):
    teacher = Fake({1: [reply("a"), Reply("blocked", None, "", "no")]})
    summary = run(teacher, [conversation(1), conversation(2)], ledger)
    assert (summary.asked, summary.skipped) == (5, 1)
    turns = [(r.question.turn, a.status) for r, _, a in replay(teacher, [conversation(1)], ledger)]
    assert turns == [(0, "ok"), (1, "blocked")]


def test_a_history_that_is_given_is_left_alone():
    turns = [question(1), question(1, prompt=Prompt("s", "u", (("own", "history"),)))]
    assert next_request(turns, [(turns[0], reply("a"))]) is turns[1]
    assert next_request([], []) is None


# ------------------------------------------------------------------------------------- errors


def test_a_transient_error_is_retried_and_every_attempt_kept(ledger):
    spent = TransientError("503", input_tokens=3, output_tokens=2, cost=0.5)
    teacher = Fake({1: [TransientError("429"), spent]})
    summary = run(teacher, [question(1)], ledger)
    got = ledger.get(key(question(1), teacher))
    assert got.status == "ok" and len(got.attempts) == 3 and summary.retries == 2
    assert (got.input_tokens, got.output_tokens, got.cost) == (13, 7, 0.5)
    assert (summary.input_tokens, summary.cost) == (13, 0.5)
    assert list(got.attempts) == sorted(got.attempts)


def test_used_up_attempts_are_failed_and_asked_again_by_the_next_run(ledger):
    teacher = Fake({1: [TransientError("down") for _ in range(3)]})
    summary = run(teacher, [question(1)], ledger, attempts=3)
    got = ledger.get(key(question(1), teacher))
    assert (got.status, got.reason, len(got.attempts)) == ("failed", "down", 3)
    assert summary.statuses["failed"] == 1 and teacher.calls == [1] * 3
    assert run(teacher, [question(1)], ledger).statuses["ok"] == 1
    assert len(ledger.get(key(question(1), teacher)).attempts) == 4


def test_a_call_without_reply_is_given_up_and_made_again(ledger):
    teacher = Fake({1: [lambda: asyncio.sleep(60)]})
    run(teacher, [question(1)], ledger, timeout=0.1)
    got = ledger.get(key(question(1), teacher))
    assert got.status == "ok" and len(got.attempts) == 2 and got.latency < 0.1


def test_an_unexpected_error_stops_the_run_and_what_runs_is_stored(ledger):
    teacher = Fake({3: [ValueError("a bug")]}, seconds=0.1)
    with pytest.raises(ValueError, match="a bug"):
        run(teacher, map(question, range(1000)), ledger, concurrency=10)
    assert ledger.counts()["ok"] == len(teacher.calls) - 1 < 50
    assert run(Fake(), map(question, range(10)), ledger).asked == 1  # its claim is free again


def test_a_reply_that_cannot_be_stored_names_the_teacher(ledger):
    with pytest.raises(LedgerError, match="fake, .*an answer must be there"):
        run(Fake({1: [Reply("ok", None, "")]}), [question(1)], ledger)


def test_an_error_of_the_requests_comes_out_after_the_others_are_stored(ledger):
    def requests():
        yield from map(question, range(20))
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        run(Fake(), requests(), ledger)


@pytest.mark.parametrize(
    "wrong",
    [{"attempts": 0}, {"timeout": 0}, {"budget": -1}, {"concurrency": 0}]
    + [{"requests_per_minute": 0}],
)
def test_wrong_arguments(ledger, wrong):
    with pytest.raises(ValueError):
        run(Fake(), [question(1)], ledger, **wrong)


# ------------------------------------------------------------------- budget and interruption


def test_the_budget_stops_the_run_cleanly_and_the_next_one_goes_on(ledger):
    teacher = Fake(cost=0.01, seconds=0.01)
    first = run(teacher, map(question, range(100)), ledger, budget=0.3, concurrency=4)
    assert first.stopped == "budget" and "budget is spent" in str(first)
    assert 0.25 <= first.cost <= 0.301 and first.asked == len(ledger) == len(teacher.calls)
    second = run(teacher, map(question, range(100)), ledger)
    assert second.stopped is None and second.asked + first.asked == 100
    assert sorted(teacher.calls) == list(range(100))


def test_no_budget_asks_nothing(ledger):
    summary = run(Fake(), map(question, range(10)), ledger, budget=0)
    assert (summary.asked, summary.stopped) == (0, "budget")


@pytest.fixture
def interruptible():
    """Ctrl-C interrupts, also in the background of a shell, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stores_what_is_in_flight_and_starts_nothing_new(ledger):
    teacher = Fake(seconds=0.3)
    teacher.outcomes = {0: [lambda: _interrupt()]}
    summary = run(teacher, map(question, range(1000)), ledger, concurrency=8)
    assert summary.stopped == "interrupted" and "interrupted" in str(summary)
    assert summary.asked == len(ledger) == len(teacher.calls) < 30
    assert run(Fake(), map(question, range(40)), ledger).asked == 40 - summary.asked


async def _interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    return reply("interrupted")


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_does_not_wait_for_a_retry_or_a_pause(ledger):
    teacher = Fake({0: [TransientError("429", retry_after=600, throttled=True, pause_all=True)]})
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    summary = run(teacher, map(question, range(300)), ledger, concurrency=1)
    assert summary.stopped == "interrupted" and time.monotonic() - began < 60  # not 600
    assert teacher.calls[0] == 0 and len(teacher.calls) < 300


def worker(path, url, count):
    """What the processes of the next two tests do."""
    teacher = ProviderTeacher("test:model", base_url=url, price=(0, 0))
    with Ledger(path) as ledger:
        ask_all(teacher, map(question, range(count)), ledger, progress=False, timeout=5.0)


@pytest.fixture(scope="module")
def processes():
    """A context whose processes begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_runner", "pydantic_ai.models.openai"])
    return context


def test_after_kills_nothing_that_was_answered_is_asked_again(tmp_path, processes):
    """Ten runs over a faulty server, killed at random moments, then one to the end."""
    path, count, rng = tmp_path / "ledger.sqlite", 400, random.Random(0)
    kinds = ("429", "500", "drop", "cut_body", "length", "content_filter", "refusal", "cut_json")
    with FaultServer(Faults(share=0.2, service=0.3, kinds=kinds)) as server:
        teacher = ProviderTeacher("test:model", base_url=server.url, price=(0, 0))
        keys = {r.question.text: key(r, teacher) for r in map(question, range(count))}
        for _ in range(10):
            before = _answered(path)
            calls = {text: len(log.met) for text, log in server.by_text().items()}
            wanted = server.stats()["calls"] + rng.randint(10, 80)
            process = processes.Process(target=worker, args=(path, server.url, count))
            process.start()
            while server.stats()["calls"] < wanted:
                assert process.is_alive()
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
            process.join()
            logs = server.by_text()
            assert all(
                len(logs[text].met) == calls[text] for text, k in keys.items() if k in before
            )
        assert 0 < len(_answered(path)) < count
        with Ledger(path) as ledger:
            run(teacher, map(question, range(count)), ledger, timeout=3.0)
            replies = {
                r.question.text: a
                for r, _, a in replay(teacher, map(question, range(count)), ledger)
            }
        logs = server.by_text()
        assert {t: a.status for t, a in replies.items()} == {t: logs[t].status for t in replies}
        # Asked twice was at most what was in flight at a kill.
        assert sum(log.asked_twice for log in logs.values()) <= 10 * 64


def _answered(path):
    if not path.exists():
        return set()
    with Ledger(path) as ledger:
        return {entry.key for entry in ledger if entry.reply.status != "failed"}


def test_two_processes_share_a_ledger_and_ask_nothing_twice(tmp_path, processes):
    path, count = tmp_path / "ledger.sqlite", 300
    with FaultServer(Faults(share=0.0, service=0.6)) as server:  # also a slow client fills it
        args = (path, server.url, count)
        both = [processes.Process(target=worker, args=args) for _ in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(60)
        assert [process.exitcode for process in both] == [0, 0]
        stats = server.stats()
    assert (stats["requests"], stats["calls"], stats["asked_twice"]) == (count, count, 0)
    assert stats["most_in_flight"] > 64  # both were at work


# ------------------------------------------------------------------------------ faulty server


def test_a_faulty_server_every_request_ends_with_the_right_status(ledger):
    with FaultServer(Faults(share=0.4, service=0.05)) as server:
        teacher = ProviderTeacher("test:model", base_url=server.url, price=(1.0, 2.0))
        requests = [question(i) for i in range(300)]
        summary = run(teacher, requests, ledger, timeout=4.0, attempts=12)
        logs, stats = server.by_text(), server.stats()
        for request, _, got in replay(teacher, requests, ledger):
            assert got.status == logs[request.question.text].status, logs[request.question.text]
            assert (got.answer is not None) == (got.status == "ok")
            assert got.attempts and (got.reason or got.status == "ok")
        assert stats["asked_twice"] == 0 and stats["most_in_flight"] <= 64
        assert {"429", "500", "timeout", "drop", "cut_body", "refusal"} <= set(stats["served"])
        assert set(summary.statuses) == {s for s, n in summary.statuses.items() if n} | {"failed"}
        assert run(teacher, requests, ledger).asked == summary.statuses["failed"]
    assert summary.cost == pytest.approx((summary.input_tokens + 2 * summary.output_tokens) / 1e6)


def test_a_rate_limit_far_below_the_concurrency_is_met_without_failures(ledger):
    with FaultServer(Faults(share=0.0, service=0.05, rate=40)) as server:
        teacher = ProviderTeacher("test:model", base_url=server.url, price=(0, 0))
        began = time.monotonic()
        summary = run(teacher, map(question, range(200)), ledger)
        seconds, stats = time.monotonic() - began, server.stats()
    assert summary.statuses["ok"] == 200 and stats["asked_twice"] == 0
    assert 3.5 < seconds < 120  # 200 at 40 a second, the first 40 at once
    assert stats["served"]["rate limit"] < 200


# --------------------------------------------------------------------------------------- pace


def test_backoff_grows_with_jitter_and_obeys_the_server():
    waits = [[backoff(n) for _ in range(200)] for n in (1, 3, 20)]
    assert all(max(w) <= top for w, top in zip(waits, (1, 4, 60), strict=True))
    assert max(waits[0]) > 0.8 and min(waits[1]) < 0.4 and len(set(waits[2])) == 200
    assert 3 <= backoff(1, TransientError("", retry_after=3)) <= 3.4
    assert backoff(1, TransientError("", retry_after=1e9)) <= 1.1 * pace.MAX_WAIT + 1
    assert backoff(1, TransientError("", retry_after=-5)) >= 0


def test_many_refusals_lower_the_rate_and_a_few_do_not():
    async def main(share, calls):
        rng, limiter = random.Random(0), Pace(64)
        for _ in range(calls):
            async with limiter:
                refused = rng.random() < share
            limiter.report(TransientError("429", throttled=True) if refused else None)
        return limiter

    assert asyncio.run(main(0.05, 500)).rate == math.inf
    limiter = asyncio.run(main(0.9, 12))
    assert 0.1 < limiter.rate < 5
    limiter.rate = 3.0
    for _ in range(1000):
        limiter.report()
    assert 40 < limiter.rate < 60  # one call a second faster each second


def test_a_server_that_refuses_everything_is_still_asked_now_and_then():
    async def main():
        limiter = Pace(1)
        for _ in range(200):
            limiter._lowered -= 2.0  # as if that much time had passed
            limiter.report(TransientError("429", throttled=True))
        return limiter.rate

    assert asyncio.run(main()) == pytest.approx(1 / 60)


def test_a_pause_for_all_holds_every_call():
    async def main():
        limiter = Pace(4)
        limiter.report(TransientError("429", throttled=True, pause_all=True, retry_after=0.3))
        began = time.monotonic()
        async with limiter:
            return time.monotonic() - began

    assert asyncio.run(main()) >= 0.28


# ----------------------------------------------------------------------------------- estimate


def png(width, height):
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((512, 512), 255),
        ((1024, 1024), 765),
        ((2048, 4096), 1105),
        ((600, 450), 425),
        ((1, 1), 255),
    ],
)
def test_tokens_of_an_image(size, tokens):
    assert tile_tokens(png(*size)) == tokens


def test_tokens_of_a_text():
    assert text_tokens("") == 0 and text_tokens("abcd" * 10) == 10 and text_tokens("皮膚科") == 3


def test_an_estimate_counts_requests_tokens_and_cost(ledger):
    requests = [question(i, prompt=Prompt("", "abcd" * 25)) for i in range(10)]
    found = estimate(requests, (2.0, 10.0), output_tokens=100, image_tokens=75)
    assert (found.requests, found.input_tokens, found.output_tokens) == (10, 1000, 1000)
    assert found.cost == pytest.approx((1000 * 2 + 1000 * 10) / 1e6)
    assert estimate(requests, None).cost is None and "price unknown" in str(estimate([], None))


def test_an_estimate_leaves_out_what_is_answered_and_knows_conversations(ledger):
    teacher = Fake()
    run(teacher, [conversation(1), question(5)], ledger)
    work = [conversation(1), conversation(2), question(5), [question(6), lambda done: None]]
    found = estimate(
        work, (1, 1), image_tokens=50, output_tokens=10, teacher=teacher, ledger=ledger
    )
    assert (found.requests, found.answered, found.output_tokens) == (9, 4, 50)
    assert "5 requests to ask (4 answered already)" in str(found)
    turns = estimate([conversation(2)], (1, 1), image_tokens=50, output_tokens=10)
    assert turns.input_tokens == 3 * (50 + text_tokens("sU0 of 2")) + 10 + 20
