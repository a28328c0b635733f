"""The ledger: keys, faithful storage, claims of parallel and killed workers, merging."""

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fault_server import question
from hypothesis import given
from hypothesis import strategies as st

from derm_rl.captions import ledger as ledger_module
from derm_rl.captions.ledger import Entry, Ledger, LedgerError, key, merge
from derm_rl.captions.ledger_rows import STATUSES, better, from_row, to_row
from derm_rl.captions.schema import Answer, Prompt, Reply

TEACHER = SimpleNamespace(name="rules", settings={"version": 1, "words": ["a", "b"]})
ANSWER = Answer(answer="A lesion.", findings=[], confidence=0.5, abstained=False)
OK = Reply("ok", ANSWER, '{"answer": "A lesion."}', "", 10, 20, 0.01, 1.5, (1.0, 2.0))


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def reply(status="failed", reason="", attempts=(), raw=""):
    return Reply(status, ANSWER if status == "ok" else None, raw, reason, attempts=attempts)


# --------------------------------------------------------------------------------------- keys


def test_a_key_changes_with_all_that_can_change_an_answer_and_with_nothing_else():
    request = question(1)
    prompts = [
        Prompt("s", "u"), Prompt("s", "u2"), Prompt("s2", "u"), Prompt("", "su"),
        Prompt("s", "u", (("q", "a"),)), Prompt("s", "u", (("q", "b"),)),
        Prompt("s", "u", (("qa", ""),)),
    ]  # fmt: skip
    requests = [replace(request, prompt=p) for p in prompts] + [replace(request, image=b"other")]
    teachers = [
        TEACHER,
        SimpleNamespace(name="rules2", settings=TEACHER.settings),
        SimpleNamespace(name="rules", settings={**TEACHER.settings, "version": 2}),
        SimpleNamespace(name="rules", settings={}),
    ]
    keys = {key(r, t) for r in requests for t in teachers}
    assert len(keys) == len(requests) * len(teachers)
    assert all(len(k) == 64 and set(k) <= set("0123456789abcdef") for k in keys)
    moved = replace(request, question=replace(request.question, image_id="elsewhere"), row={"a": 1})
    shuffled = SimpleNamespace(name="rules", settings={"words": ["a", "b"], "version": 1})
    assert key(moved, shuffled) == key(request, TEACHER)


def test_what_a_teacher_looks_at_beside_image_and_prompt_is_part_of_the_key():
    looking = SimpleNamespace(**vars(TEACHER), looks_at=lambda r: dict(r.row))
    one, other = replace(question(1), row={"age": 50}), replace(question(1), row={"age": 60})
    assert key(one, looking) != key(other, looking)
    assert key(one, TEACHER) == key(other, TEACHER)


def test_settings_that_are_not_json_are_refused():
    for value in (object(), float("nan"), b"bytes"):
        with pytest.raises(LedgerError, match="plain JSON"):
            key(question(1), SimpleNamespace(name="t", settings={"x": value}))


def test_a_key_survives_lone_surrogates_and_nul():
    texts = ["\ud800", "\udfff", "\0", "", "\\ud800"]
    keys = {key(replace(question(1), prompt=Prompt("", t)), TEACHER) for t in texts}
    assert len(keys) == len(texts)


# ------------------------------------------------------------------------------------ storage


def test_a_reply_comes_back_as_it_was(ledger):
    ledger.store("k", "rules", OK)
    assert ledger.get("k") == OK
    assert ledger.get("other") is None
    assert len(ledger) == 1 and ledger.counts() == {**dict.fromkeys(STATUSES, 0), "ok": 1}


HOSTILE = [
    "", "\0", "a\0b", "\ud800 alone", "\ud83d\ude00 as two", "😀", "<script>alert(1)</script>",
    "'; DROP TABLE replies; --", "\x1b[31m\x07\u202e", "x" * 1_000_000, "皮膚\r\n",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_stored_faithfully(ledger, text):
    stored = reply("invalid", reason=text, raw=text)
    ledger.store("k", text, stored)
    assert ledger.get("k") == stored
    assert next(iter(ledger)).teacher == text


@given(st.text(st.characters(codec=None, exclude_categories=())), st.text())
def test_any_text_makes_the_way_through_a_row(raw, answer):
    value = Answer(answer=answer or "x", findings=[], confidence=0, abstained=True)
    entry = Entry("k", "t", Reply("ok", value, raw), 1.0)
    assert from_row(to_row(entry)) == entry


def test_an_answer_with_nul_is_stored(ledger):
    value = ANSWER.model_copy(update={"answer": "a\0b"})
    ledger.store("k", "t", replace(OK, answer=value))
    assert ledger.get("k").answer.answer == "a\0b"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (reply("maybe"), "status 'maybe'; expected one of"),
        (Reply("ok", None, ""), "an answer must be there exactly if"),
        (Reply("failed", ANSWER, ""), "an answer must be there exactly if"),
        ("text", "expected a Reply, got str"),
    ],
)
def test_a_reply_that_cannot_be_is_refused_and_its_transaction_undone(ledger, bad, message):
    with pytest.raises(LedgerError, match=message):
        ledger.exchange(replies=[("good", "t", OK), ("bad", "t", bad)])
    assert len(ledger) == 0
    ledger.store("good", "t", OK)  # the lock and the transaction are free again


def test_a_final_answer_stays_and_a_failed_one_is_replaced_keeping_its_attempts(ledger):
    ledger.store("k", "t", reply("failed", "503", (1.0, 2.0)))
    ledger.store("k", "t", replace(OK, attempts=(5.0,)))
    assert ledger.get("k").status == "ok" and ledger.get("k").attempts == (1.0, 2.0, 5.0)
    ledger.store("k", "t", reply("failed", attempts=(9.0,)))
    ledger.store("k", "t", reply("blocked", attempts=(8.0,)))
    assert ledger.get("k").status == "ok" and ledger.get("k").answer == ANSWER


def test_rows_come_in_the_order_of_keys_over_several_blocks(ledger):
    names = [f"{i * 7919 % 5000:05d}" for i in range(5000)]
    assert ledger.store_many((n, "t", reply()) for n in names) == 5000
    assert [entry.key for entry in ledger] == sorted(names)
    assert set(ledger.get_many(names)) == set(names)


def test_as_many_rows_as_the_paper_has_pairs_are_stored_and_read(ledger):
    count = ledger.store_many((f"{i:064x}", "rules", OK) for i in range(92_020))
    assert count == len(ledger) == 92_020


# ------------------------------------------------------------------------------------- claims


def test_a_claimed_key_is_not_given_to_a_second_worker(ledger):
    with Ledger(ledger.path) as other:
        assert ledger.claim("k") is True
        assert other.claim("k") is False
        assert ledger.claim("k") is False  # nor twice to the same one
        ledger.store("k", "t", OK)
        assert other.claim("k") == OK


def test_the_same_key_claimed_twice_in_one_go_is_given_once(ledger):
    assert ledger.exchange(["k", "k", "l"]) == [True, False, True]


def test_a_failed_request_may_be_asked_again_and_the_others_not(ledger):
    for status in STATUSES:
        ledger.store(status, "t", reply(status))
        assert (ledger.claim(status) is True) == (status == "failed")


def test_claims_end_with_release_close_and_time(tmp_path):
    path = tmp_path / "l.sqlite"
    with Ledger(path) as one, Ledger(path, claim_seconds=0.2) as two:
        one.exchange(["a", "b"])
        one.release(["a"])
        assert two.exchange(["a", "b"]) == [True, False]
        time.sleep(0.25)
        assert one.claim("a") is True  # two's has run out
        two.exchange(["c"])
        for _ in range(3):
            time.sleep(0.1)
            two.renew()
        assert one.claim("c") is False
    with Ledger(path) as three:
        assert three.exchange(["a", "b", "c"]) == [True, True, True]


CLAIM_AND_HANG = """
import sys, time
from derm_rl.captions.ledger import Ledger
ledger = Ledger(sys.argv[1], claim_seconds=3600)
print(ledger.claim("k"), flush=True)
time.sleep(60)
"""


def test_a_claim_of_a_killed_process_is_taken_over_at_once(ledger):
    command = [sys.executable, "-c", CLAIM_AND_HANG, str(ledger.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    assert ledger.claim("k") is False
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert ledger.claim("k") is True


def test_a_claim_from_another_machine_waits_for_its_time(ledger):
    ledger.claim("k")
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE claims SET host = 'elsewhere', pid = 999999999")
    assert ledger.claim("k") is False
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE claims SET until = ?", (time.time() - 1,))
    assert ledger.claim("k") is True


def _work(path, names, start, queue):
    start.wait()
    mine = []
    with Ledger(path) as ledger:
        for name in names:
            if ledger.claim(name) is True:
                mine.append(name)
                ledger.store(name, f"worker {os.getpid()}", OK)
    queue.put(mine)


def test_processes_share_the_work_and_ask_nothing_twice(tmp_path):
    """Four processes create the ledger at once and run through the same keys."""
    context = multiprocessing.get_context("fork")
    start, queue = context.Event(), context.Queue()
    names = [f"k{i}" for i in range(200)]
    path = tmp_path / "l.sqlite"
    workers = [context.Process(target=_work, args=(path, names, start, queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    start.set()
    shares = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(n for share in shares for n in share) == sorted(names)
    with Ledger(path) as ledger:
        assert len(ledger) == 200


def test_threads_share_one_ledger(ledger):
    asked = []

    def work():
        for i in range(100):
            if ledger.claim(f"k{i}") is True:
                asked.append(i)
                ledger.store(f"k{i}", "t", OK)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked) == list(range(100))


def test_a_new_ledger_may_be_opened_by_many_at_the_same_moment(tmp_path):
    together = threading.Barrier(8)

    def open_it(path):
        together.wait()
        Ledger(path).close()

    with ThreadPoolExecutor(8) as pool:
        for n in range(50):
            list(pool.map(open_it, [tmp_path / f"{n}.sqlite"] * 8))


def test_a_ledger_may_be_used_after_a_fork(ledger):
    ledger.claim("parent")
    process = multiprocessing.get_context("fork").Process(target=_child, args=(ledger,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert ledger.get("child") == OK
    assert ledger.claim("parent") is False  # the child has not released it


def _child(ledger):
    ok = ledger.claim("parent") is False
    ledger.store("child", "t", OK)
    ledger.close()
    os._exit(0 if ok else 1)


# ------------------------------------------------------------------------------ files, merging


def test_files_that_are_no_ledgers_are_refused(tmp_path):
    (tmp_path / "text").write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(LedgerError, match="text: not a ledger"):
        Ledger(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other") as db:
        db.execute("CREATE TABLE things (x)")
    with pytest.raises(LedgerError, match="not a ledger; found tables"):
        Ledger(tmp_path / "other")
    with Ledger(tmp_path / "new"), sqlite3.connect(tmp_path / "new") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="version 99, newer"):
        Ledger(tmp_path / "new")
    with pytest.raises(ValueError, match="claim_seconds"):
        Ledger(tmp_path / "x", claim_seconds=0)

    (tmp_path / "folder").mkdir()
    with pytest.raises(LedgerError, match="folder: .*it is a folder"):
        Ledger(tmp_path / "folder")
    with sqlite3.connect(tmp_path / "namesake") as db:
        db.execute("CREATE TABLE replies (x)")
    before = (tmp_path / "namesake").read_bytes()
    with pytest.raises(LedgerError, match="not a ledger; found tables replies"):
        Ledger(tmp_path / "namesake")
    db.close()
    assert (tmp_path / "namesake").read_bytes() == before  # its journal's mode included


HOLDER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("new", [True, False])
def test_who_holds_a_locked_ledger_is_said(tmp_path, monkeypatch, new):
    monkeypatch.setattr(ledger_module, "_LOCK_SECONDS", 0.2)
    path = tmp_path / "ledger.sqlite"
    if not new:
        Ledger(path).close()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        with pytest.raises(LedgerError, match=r"ledger\.sqlite: still locked") as error:
            Ledger(path).store("k", "t", OK)
    finally:
        holder.kill()
        holder.communicate()
    if Path("/proc/locks").is_file():
        assert f"process {holder.pid} (" in str(error.value)


def filled(path, *entries):
    with Ledger(path) as ledger:
        ledger.put_many(entries)
    return path


def test_merging_takes_ok_over_others_and_else_the_earlier(tmp_path):
    ok, blocked, failed = OK, reply("blocked", "no"), reply("failed", "503", (7.0,))
    one = filled(
        tmp_path / "one", Entry("a", "t", blocked, 1.0), Entry("b", "t", failed, 1.0),
        Entry("c", "t", ok, 5.0), Entry("only one", "t", ok, 1.0),
    )  # fmt: skip
    two = filled(
        tmp_path / "two", Entry("a", "t", ok, 9.0), Entry("b", "t", blocked, 9.0),
        Entry("c", "t", replace(ok, raw="earlier"), 2.0), Entry("only two", "t", failed, 1.0),
    )  # fmt: skip
    counts = merge(tmp_path / "forth", one, two)
    assert counts == {"ok": 3, "blocked": 1, "invalid": 0, "truncated": 0, "failed": 1}
    merge(tmp_path / "back", two, one, two)
    with Ledger(tmp_path / "forth") as forth, Ledger(tmp_path / "back") as back:
        assert list(forth) == list(back)
        assert forth.get("a").status == "ok" and forth.get("c").raw == "earlier"
        assert forth.get("b").status == "blocked" and forth.get("b").attempts == (7.0,)


def test_merging_needs_ledgers(tmp_path):
    with pytest.raises(LedgerError, match="no such ledger"):
        merge(tmp_path / "into", tmp_path / "missing")
    assert not (tmp_path / "into").exists()


entries = st.builds(
    lambda status, finished, attempts, reason: Entry(
        "k", "t", reply(status, reason, tuple(attempts)), finished
    ),
    st.sampled_from(STATUSES),
    st.sampled_from([1.0, 2.0]),
    st.lists(st.sampled_from([1.0, 2.0, 3.0]), unique=True).map(sorted),
    st.sampled_from(["", "x"]),
)


@given(entries, entries)
def test_which_is_better_does_not_depend_on_the_order(first, second):
    assert better(first, second) == better(second, first)
    assert better(first, first) == first
    assert json.dumps(to_row(better(first, second)))
