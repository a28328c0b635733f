"""Review: verdicts survive crashes, are dealt and applied as documented; views run no data."""

import base64
import io
import json
import multiprocessing
import time
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from derm_rl.captions import agreement, review, verdicts
from derm_rl.captions.review import Queue, ReviewError, Store, Verdict
from derm_rl.captions.review_page import STYLE, card, page, shown

FINDINGS = [
    {"name": "asymmetry", "value": "one", "evidence": "overlap 0.8", "box": [0.1, 0.2, 0.5, 0.6]},
    {"name": "hair", "value": "none", "evidence": "score -1", "box": None},
]


def make(n: int = 6) -> pd.DataFrame:
    """Pairs p0 …; the last two are turns of one conversation."""
    rows = [
        {"pair_id": f"p{i}", "image_id": f"i{i}", "question_type": "overview", "style": "single"}
        | {"conversation": f"c{i}", "turn": 0, "language": "en", "mode": "blind"}
        | {"question": f"Question {i}?", "answer": f"Answer {i}.", "teacher": "measured/1"}
        | {"findings": json.dumps(FINDINGS), "source": "phantom", "licence": "Apache-2.0"}
        | {"attribution": "derm_rl phantom", "confidence": 0.5, "abstained": False, "status": "ok"}
        for i in range(n)
    ]
    rows[-1] |= {"conversation": rows[-2]["conversation"], "turn": 1}
    return pd.DataFrame(rows)


def image(image_id: str) -> np.ndarray:
    return np.full((8, 8, 3), 128, np.uint8)


# ----------------------------------------------------------------------------------- verdicts


def test_the_last_verdict_counts_and_history_is_kept(tmp_path):
    store = Store(tmp_path, "Ann")
    store.put("p0", Verdict("accept", {"safety": 4}))
    store.put("p1", Verdict(None, {"accuracy": 2}))
    store.put("p0", Verdict("edit", {"safety": 5}, "better", "typo"))
    assert Store(tmp_path, "Ann").get("p0") == Verdict("edit", {"safety": 5}, "better", "typo")
    every = review.history(tmp_path)
    assert every["verdict"].tolist() == ["accept", None, "edit"]
    assert every["at"].is_monotonic_increasing and every["at"][0].endswith("+00:00")
    now = review.verdicts(tmp_path)  # p1 has ratings but no verdict yet
    assert now["pair_id"].tolist() == ["p0"] and now["changes"].tolist() == [2]
    assert now.loc[0, "safety"] == 5 and now.loc[0, "accuracy"] is pd.NA
    assert now.loc[0, "answer"] == "better" and now.loc[0, "note"] == "typo"


def test_an_empty_folder_has_no_verdicts(tmp_path):
    for found in (review.verdicts(tmp_path), review.history(tmp_path / "absent")):
        assert found.empty and {"pair_id", "reader", "verdict", "safety"} <= set(found)


def test_a_torn_line_is_all_that_a_crash_costs(tmp_path):
    store = Store(tmp_path, "Ann")
    store.put("p0", Verdict("accept"))
    store.put("p1", Verdict("reject"))
    content = store.path.read_bytes()
    store.path.write_bytes(content[:-20])  # cut within the last line
    with pytest.warns(UserWarning, match="line 2: torn"):
        again = Store(tmp_path, "Ann")
    assert again.get("p0").verdict == "accept" and again.get("p1").verdict is None
    again.put("p2", Verdict("accept"))  # begins a line of its own
    with pytest.warns(UserWarning, match="line 2"):
        assert review.verdicts(tmp_path)["pair_id"].tolist() == ["p0", "p2"]


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "maybe"},
        {"ratings": {"safety": 9}},
        {"pair_id": 5},
        {"answer": "x"},
        {"note": 1},
    ],
)
def test_a_line_that_is_no_verdict_is_named(tmp_path, change):
    store = Store(tmp_path, "Ann")
    store.put("p0", Verdict("accept"))
    event = json.loads(store.path.read_text()) | change
    store.path.write_text(store.path.read_text() + json.dumps(event) + "\n")
    with pytest.raises(ReviewError, match="verdicts-Ann.jsonl, line 2"):
        review.verdicts(tmp_path)


@pytest.mark.parametrize(
    "bad",
    [
        {"verdict": "ok"}, {"verdict": "edit"}, {"verdict": "edit", "answer": "  "},
        {"verdict": "accept", "answer": "x"}, {"ratings": {"beauty": 3}},
        {"ratings": {"safety": 0}}, {"ratings": {"safety": 6}}, {"ratings": {"safety": True}},
        {"ratings": {"safety": 3.5}}, {"ratings": {"safety": "3"}}, {"ratings": [3]},
        {"note": None},
    ],
)  # fmt: skip
def test_verdicts_that_cannot_be(bad):
    with pytest.raises(ReviewError):
        Verdict(**bad)


@pytest.mark.parametrize("name", ["../../x", "名前 先生", "a/b", "..", "A" * 60, "Ann.jsonl"])
def test_readers_may_have_any_printable_name(tmp_path, name):
    Store(tmp_path / "in", name).put("p", Verdict("accept"))
    assert review.verdicts(tmp_path / "in")["reader"].tolist() == [name]
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("name", ["", "  ", None, 5, "a\nb", "\x00", "x" * 500, "\ud800"])
def test_readers_without_a_usable_name(tmp_path, name):
    with pytest.raises((ReviewError, UnicodeEncodeError)):
        Store(tmp_path, name)


def test_hostile_answers_are_stored_as_they_are(tmp_path):
    text = "</pre>\x00\n\ud800\u202e\u2028" + "x" * 100_000
    Store(tmp_path, "Ann").put("p0", Verdict("edit", {}, text))
    assert Store(tmp_path, "Ann").get("p0").answer == text
    assert len(review.verdicts(tmp_path)) == 1


def _write_many(folder, reader, n):
    store = Store(folder, reader)
    for i in range(n):
        store.put(f"p{i}", Verdict("edit", {}, f"{reader} " + "x" * 5000))


def test_several_readers_and_windows_write_at_the_same_time(tmp_path):
    fork = multiprocessing.get_context("fork")
    readers = ["Ann", "Ann", "Bob", "Cid"]  # Ann has two windows open
    jobs = [fork.Process(target=_write_many, args=(tmp_path, r, 25)) for r in readers]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    assert len(review.history(tmp_path)) == 100  # whole lines, none lost
    now = review.verdicts(tmp_path)
    assert now.groupby("reader").size().to_dict() == {"Ann": 25, "Bob": 25, "Cid": 25}
    assert now[now["reader"] == "Ann"]["changes"].sum() == 50


def test_drafts_are_kept_by_pair_and_a_damaged_file_is_no_obstacle(tmp_path):
    store = Store(tmp_path, "Ann")
    store.keep_draft("p0", "half a sen")
    store.keep_draft("p1", "\ud800 …")
    again = Store(tmp_path, "Ann")
    assert again.draft("p0") == "half a sen" and again.draft("p1") == "? …"
    again.keep_draft("p0", None)
    assert Store(tmp_path, "Ann").draft("p0") is None
    again.keep_draft("p0", "a note", "note")
    assert (again.draft("p0"), again.draft("p0", "note")) == (None, "a note")
    for damaged in ("{", "[1]", '{"p1": 5}', '{"p1": {"answer": [5]}}'):
        store.draft_path.write_text(damaged)
        with pytest.warns(UserWarning, match="drafts are lost"):
            assert store.draft("p1") is None
        store.keep_draft("p2", "new")
        aside = list(tmp_path.glob("draft-Ann.json.*"))
        assert damaged in [path.read_text() for path in aside] and store.draft("p2") == "new"


def test_drafts_of_an_older_version_are_read(tmp_path):
    store = Store(tmp_path, "Ann")
    store.draft_path.write_text('{"p0": "half a sen"}')
    assert store.draft("p0") == "half a sen" and store.draft("p0", "note") is None


def test_drafts_of_two_windows_are_both_kept(tmp_path):
    one, two = Store(tmp_path, "Ann"), Store(tmp_path, "Ann")
    one.keep_draft("p0", "one", shown="")
    two.keep_draft("p0", "two", shown="")
    one.keep_draft("p0", "one more", shown="one")
    assert two.draft("p0") == "one more"
    one.keep_draft("p0", None, shown="one more")
    assert one.draft("p0") == "two"


def test_a_window_takes_in_what_another_wrote_and_overwrites_nothing(tmp_path):
    one, two = Store(tmp_path, "Ann"), Store(tmp_path, "Ann")
    assert one.put("p0", Verdict("accept"), seen=Verdict())
    assert not two.put("p0", Verdict("reject"), seen=Verdict())
    assert two.get("p0") == Verdict("accept") and two.judged_elsewhere("p0")
    assert two.put("p0", Verdict("accept"), seen=Verdict())  # the same once more: not doubled
    assert len(review.history(tmp_path)) == 1
    assert two.put("p0", Verdict("reject"), seen=Verdict("accept"))
    assert not two.judged_elsewhere("p0")
    one.refresh()
    assert one.get("p0") == Verdict("reject") and one.judged_elsewhere("p0")


class SlowStore(Store):
    """Between looking and writing there is time for another window."""

    def _append(self, line):
        time.sleep(0.05)
        super()._append(line)


def _judge_all(folder, verdict, together):
    store = SlowStore(folder, "Ann")
    for i in range(5):
        together.wait(30)
        store.put(f"p{i}", Verdict(verdict), seen=Verdict())


def test_windows_that_judge_at_the_same_time_give_one_verdict_a_pair(tmp_path):
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(2)
    jobs = [
        fork.Process(target=_judge_all, args=(tmp_path, verdict, barrier))
        for verdict in ("accept", "reject")
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    assert sorted(review.history(tmp_path)["pair_id"]) == sorted(f"p{i}" for i in range(5))


def test_a_lock_that_is_held_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "WAIT", 0.05)
    one, two = Store(tmp_path, "Ann"), Store(tmp_path, "Ann")
    with one._locked(), pytest.raises(ReviewError, match=r"\.Ann\.lock"):
        two.put("p0", Verdict("accept"))


# -------------------------------------------------------------------------------------- queue


def test_readers_share_the_overlap_and_divide_the_rest():
    sample, readers = [f"p{i}" for i in range(1000)], ["Ann", "Bob", "Cid"]
    queues = [Queue(sample, r, readers, overlap=0.2) for r in readers]
    sets = [set(q.pairs) for q in queues]
    assert set.union(*sets) == set(sample)
    common = set.intersection(*sets)
    assert common == queues[0].shared == queues[1].shared and 150 < len(common) < 250
    assert all(a & b == common for a, b in ((sets[0], sets[1]), (sets[1], sets[2])))
    assert all(220 < len(s - common) < 320 for s in sets)
    orders = [[p for p in q.pairs if p in common] for q in queues]
    assert orders[0] != orders[1]  # tiredness does not fall on the same pairs


def test_a_queue_depends_on_ids_and_seed_alone_and_grows():
    sample, readers = [f"p{i}" for i in range(200)], ["Bob", "Ann"]
    one = Queue(sample, "Ann", readers)
    assert one.pairs == Queue(sample[::-1], "Ann", readers[::-1]).pairs
    more = Queue([*sample, *(f"q{i}" for i in range(100))], "Ann", readers)
    assert [p for p in more.pairs if p in set(sample)] == one.pairs
    assert Queue(sample, "Ann", readers, seed=1).pairs != one.pairs
    assert sorted(Queue(sample, "Ann").pairs) == sorted(sample)  # alone: everything
    assert set(Queue(sample, "Ann", readers, overlap=1).pairs) == set(sample)
    assert not Queue(sample, "Ann", readers, overlap=0).shared


def test_flagged_pairs_come_in_addition_and_first_or_mixed():
    sample, flagged = [f"p{i}" for i in range(50)], ["p3", "f1", "f2"]
    first = Queue(sample, "Ann", flagged=flagged, order="flagged_first")
    assert set(first.pairs[:3]) == set(flagged) and len(first) == 52
    mixed = Queue(sample, "Ann", flagged=flagged)
    assert set(mixed.pairs) == set(first.pairs) and set(mixed.pairs[:3]) != set(flagged)
    assert mixed.sample == set(sample)


def test_a_queue_resumes_where_it_was(tmp_path):
    queue, store = Queue([f"p{i}" for i in range(5)], "Ann"), Store(tmp_path, "Ann")
    assert queue.position(store) == 0
    store.put(queue.pairs[0], Verdict("accept"))
    store.put(queue.pairs[2], Verdict("reject"))
    store.put(queue.pairs[1], Verdict(None, {"safety": 1}))
    again = Store(tmp_path, "Ann")
    assert queue.position(again) == 1 and queue.done(again) == 2
    assert Queue([], "Ann").position(again) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readers": ["Bob"]}, "none of the readers: Bob"),
        ({"overlap": 1.5}, "between 0 and 1"),
        ({"order": "best"}, "order must be one of"),
    ],
)
def test_a_queue_checks_its_arguments(options, message):
    with pytest.raises(ReviewError, match=message):
        Queue(["p0"], "Ann", **options)


# ---------------------------------------------------------------------------- apply and count


@pytest.fixture
def few_resamples(monkeypatch):
    """A short bootstrap: how wide the intervals are is tested where they are made."""
    made = agreement._bootstrap
    monkeypatch.setattr(agreement, "_bootstrap", lambda f, n, _, seed: made(f, n, 40, seed))


def given(*rows: tuple) -> pd.DataFrame:
    """Verdicts of (pair, reader, verdict, answer), one after another."""
    table = pd.DataFrame(rows, columns=["pair_id", "reader", "verdict", "answer"])
    table["at"] = [f"2025-01-01T00:00:{i:02d}" for i in range(len(table))]
    for name in review.RATINGS:
        table[name] = pd.array([pd.NA] * len(table), dtype="Int64")
    return table


def test_disagreements_follow_the_rule():
    table = given(
        ("p0", "Ann", "accept", None),
        ("p1", "Ann", "accept", None), ("p1", "Bob", "reject", None),
        ("p2", "Ann", "edit", "first"), ("p2", "Bob", "edit", "second"),
        ("p2", "Cid", "accept", None),
        ("p3", "Ann", "reject", None), ("p3", "Boss", "accept", None),
        ("p4", "Ann", "edit", "mine"), ("p4", "Boss", "edit", "the boss's"),
        ("p5", "Ann", "edit", "same"), ("p5", "Bob", "edit", "same"),
    )  # fmt: skip
    found = review.decide(table, adjudicators={"Boss"}).set_index("pair_id")
    assert found["verdict"].tolist() == ["accept", "reject", "edit", "accept", "edit", "edit"]
    assert found.loc["p2", "answer"] == "second" and found.loc["p4", "answer"] == "the boss's"
    assert found["disputed"].tolist() == [False, True, True, False, False, False]
    assert found["readers"].tolist() == [1, 2, 3, 1, 1, 2]
    alone = review.decide(table).set_index("pair_id")
    assert alone.loc["p3", "verdict"] == "reject" and alone.loc["p4", "answer"] == "the boss's"


def test_edits_replace_and_rejected_pairs_drop_out():
    pairs = make()
    table = given(
        ("p0", "Ann", "accept", None), ("p1", "Ann", "edit", "Better."),
        ("p2", "Ann", "reject", None), ("elsewhere", "Ann", "reject", None),
    )  # fmt: skip
    out = review.apply(pairs, table)
    assert out["pair_id"].tolist() == ["p0", "p1", "p3", "p4", "p5"]
    assert out["answer"].tolist()[:3] == ["Answer 0.", "Better.", "Answer 3."]
    assert out["review"].fillna("-").tolist() == ["accept", "edit", "-", "-", "-"]
    assert pairs["answer"][1] == "Answer 1." and "review" not in pairs
    kept = review.apply(pairs, table, drop=False)
    assert len(kept) == 6 and kept["review"][2] == "reject"


def test_no_verdicts_change_nothing(tmp_path):
    out = review.apply(make(), review.verdicts(tmp_path))
    assert len(out) == 6 and out["review"].isna().all()
    assert review.apply(make().iloc[:0], given(("p0", "Ann", "accept", None))).empty
    figures = review.summary(review.verdicts(tmp_path))
    assert figures["pairs"] == 0 and figures["rates"] == {} and figures["agreement"] == []


def test_a_release_follows_the_review(tmp_path):
    from test_export import make as make_release
    from test_export import pixels

    from derm_rl.captions import export

    images, pairs = make_release(6)
    one, two, three = pairs.loc[pairs["style"] == "single", "pair_id"].iloc[:3]
    store = Store(tmp_path / "verdicts", "Ann")
    store.put(one, Verdict("edit", {"safety": 5}, "Corrected by hand."))
    store.put(two, Verdict("reject", {"safety": 1}))
    store.put(three, Verdict("accept", {"safety": 4}))
    said = review.verdicts(tmp_path / "verdicts")
    folder = export.release(
        review.apply(pairs, said, drop=False), images, tmp_path / "r", load=pixels,
        redistributable={"Apache-2.0"}, facts={"review": review.summary(said)},
    )  # fmt: skip
    table = pd.read_csv(folder / "provenance.csv", dtype=str).set_index("pair_id")
    assert two not in table.index and table.loc[one, "review"] == "edit"
    assert "Corrected by hand." in "".join(p.read_text() for p in folder.glob("messages/*"))
    text = (folder / "README.md").read_text()
    released = len(table)
    assert f"2 of the {released} pairs of this release have been reviewed by a person" in text
    assert "1 accepted, 1 with an edited answer" in text and "1 reader(s) reviewed 3 pairs" in text
    assert "| rejected in review | phantom | 1 |" in text
    assert "Rejected: 33.3% of 3" in text and "| safety | 3.33 | 3 |" in text


def test_figures_of_a_review_are_plain_numbers(few_resamples):
    rows, rng = [], np.random.default_rng(0)
    for i in range(40):
        verdict = "reject" if i < 4 else "edit" if i < 10 else "accept"
        for reader in ("Ann", "Bob"):
            other = rng.random() < 0.1
            said = "accept" if other else verdict
            rows.append((f"p{i:02d}", reader, said, "x" if said == "edit" else None))
    table = given(*rows)
    table["safety"] = pd.array(rng.integers(1, 6, len(table)), dtype="Int64")
    figures = review.summary(table, sample=[f"p{i:02d}" for i in range(4, 40)])
    json.dumps(figures, allow_nan=False)
    assert figures["pairs"] == 40 and figures["readers"] == 2
    rates = figures["rates"]
    assert rates["rejected"]["n"] == 36 and rates["rejected"]["errors"] == 0
    assert rates["rejected"]["upper"] == pytest.approx(1 - 0.05 ** (1 / 36))
    edited = rates["rejected or edited"]
    assert edited["low"] < edited["value"] < edited["high"]
    assert sum(figures["verdicts"].values()) == 40
    assert figures["ratings"]["safety"]["n"] == 40 and "accuracy" not in figures["ratings"]
    rows = {r["what"]: r for r in figures["agreement"]}
    assert rows["verdict"]["kappa"] > 0.5 and rows["accuracy"]["kappa"] is None


# ------------------------------------------------------------------------------ harmless views

PLANTED = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</pre></div><iframe src=//x>",
    '" onmouseover="alert(1)', "' onload='alert(1)", "javascript:alert(1)", "<a href=javascript:1>",
    "<style>*{display:none}</style>", "]]><svg onload=alert(1)>", "&lt;script&gt;", "{{1+1}}${1}",
    "\x00\x08\x1b[31m\x7f\x85", "\u202egnp.exe\u2066\u200f", "zero\u200bwidth\ufeff\U000e0041",
    "\ud800 alone", "\u2028\u2029",
]  # fmt: skip
ATTRIBUTES = {
    "html": {"lang"}, "meta": {"charset", "http-equiv", "content", "name"}, "div": {"class"},
    "img": {"alt", "src"}, "svg": {"viewbox", "preserveaspectratio"}, "pre": {"class"},
    "rect": {"x", "y", "width", "height"}, "span": {"class"}, "p": {"class"},
    **dict.fromkeys(["head", "title", "style", "body", "h1", "br", "ul", "li", "b"], set()),
}  # fmt: skip


class Strict(HTMLParser):
    """Fails on any tag, attribute, comment or address that the cards do not have."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        assert tag in ATTRIBUTES, f"unexpected <{tag}>"
        self.tags.append(tag)
        for name, value in attributes:
            assert name in ATTRIBUTES[tag], f"unexpected {name} in <{tag}>"
            if name == "src":
                kind, data = value.split(",")
                assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
                base64.b64decode(data, validate=True)
            if name == "class":
                assert all(c.startswith("derm-") for c in value.split())
            if tag == "rect":
                assert 0 <= float(value) <= 1

    def handle_data(self, data):
        self.text.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"unexpected comment {data!r}")

    unknown_decl = handle_pi = handle_comment


def checked(html: str) -> Strict:
    parser = Strict()
    parser.feed(html)
    parser.close()
    return parser


def hostile_pairs() -> pd.DataFrame:
    rows = []
    for i, text in enumerate(PLANTED):
        found = [{"name": text, "value": text, "evidence": text, "box": [0.1, 0.1, 5, 0.9]}]
        name = text.encode("utf-8", "replace").decode() + str(i)  # keys are whole text
        rows.append(dict.fromkeys(make().columns, text) | {"pair_id": name, "turn": 0})
        rows[-1] |= {"findings": json.dumps(found), "conversation": f"c{i}"}
    return pd.DataFrame(rows, dtype=object)


def test_nothing_planted_acts_on_a_page(tmp_path):
    pairs = hostile_pairs()
    flags = {"pair_id": pairs["pair_id"], "check": PLANTED, "reason": PLANTED}
    flags = pd.DataFrame(flags, dtype=object)
    path = page(pairs, image, tmp_path / "page.html", title="".join(PLANTED[:8]), flags=flags)
    text = path.read_text(encoding="utf-8")
    found = checked(text)
    assert found.tags.count("div") == 4 * len(pairs) and found.tags.count("img") == len(pairs)
    assert found.tags.count("rect") == len(pairs)
    shown_text = "".join(found.text)
    assert "<script>alert(1)</script>" in shown_text  # there to be read
    assert "⟨U+202E⟩gnp.exe" in shown_text and "⟨U+D800⟩ alone" in shown_text
    unseen = {c for text in PLANTED for c in text if not c.isprintable()}
    assert len(unseen) > 12 and not unseen & set(text)
    assert "Content-Security-Policy" in text and "default-src 'none'" in text
    assert "http://" not in text and "https://" not in text


def test_the_policy_of_a_page_admits_its_own_style_alone(tmp_path):
    import hashlib

    text = page(make(), image, tmp_path / "p.html").read_text()
    style = text.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in text and "script" not in text.lower()
    assert text.count("style=") == 0


def test_a_card_shows_what_a_reader_needs():
    pair = make().iloc[0].to_dict()
    found = checked(card(pair, png(), [("length", "too short")], before=[make().iloc[1].to_dict()]))
    text = "".join(found.text)
    for part in ("Question 0?", "Answer 0.", "Question 1?", "overlap 0.8", "Apache-2.0"):
        assert part in text
    assert "rule-based" in text and "phantom: drawn, no patient" in text
    assert "length: too short" in text and found.tags.count("rect") == 1
    other = "".join(checked(card(pair | {"source": "ham", "teacher": "gpt"}, None)).text)
    assert "rule-based" not in other and "no patient" not in other
    assert "image cannot be read" in other


def png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(image("")).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("findings", [None, pd.NA, "[]", "{", "[5]", '[{"box":[1]}]', "[" * 99999])
def test_a_card_bears_any_findings(findings):
    text = "".join(checked(card(make().iloc[0].to_dict() | {"findings": findings}, png())).text)
    unread = isinstance(findings, str) and findings != "[]"
    assert ("findings cannot be read" in text) == unread


def test_boxes_are_cut_to_the_image_or_not_drawn():
    boxes = [[-1, 0.5, 9, 2], [0.5, 0.5, 0.5, 0.9], [0.9, 0, 0.1, 1], [5, 5, 6, 6]]
    found = [{"name": "n", "value": "v", "evidence": "e", "box": box} for box in boxes]
    text = card(make().iloc[0].to_dict() | {"findings": json.dumps(found)}, png())
    assert checked(text).tags.count("rect") == 1
    assert 'x="0.0000" y="0.5000" width="1.0000" height="0.5000"' in text


def test_long_texts_are_cut_in_the_view_with_a_note():
    text = shown("<" * 1_000_000)
    assert len(text) < 30_000 and "994,000 more characters" in text
    assert [shown(v) for v in (None, pd.NA, float("nan"), 5)] == ["—", "—", "—", "5"]


def test_an_image_that_is_not_there_does_not_stop_a_page(tmp_path):
    images = {"i0": png(), "i1": image("i1"), "i2": b"GIF89a", "i3": None, "i4": "text"}
    text = page(make(), images, tmp_path / "p.html").read_text()
    assert checked(text).tags.count("img") == 2 and text.count("cannot be read") == 4


# -------------------------------------------------------------------------------------- widget


@pytest.fixture
def opened(tmp_path):
    pytest.importorskip("ipywidgets")
    from derm_rl.captions import review_widget

    pairs = make()

    def open_(reader="Ann", **options):
        return review_widget.review(pairs, image, tmp_path / "v", reader, **options)

    return open_


def type_keys(reviewer, keys: str) -> None:
    """As the front end does: the field's whole text after each key."""
    for key in keys:
        reviewer.commands.set_state({"value": reviewer.commands.value + key})


def test_buttons_give_verdicts_and_lead_on(opened, tmp_path):
    reviewer = opened()
    order = reviewer.queue.pairs
    assert (
        f"Question {order[0][1]}?" in reviewer.view.value
        and "1 of 6, 0 done" in reviewer.count.value
    )
    reviewer.buttons["accept"].click()
    reviewer.buttons["reject"].click()
    assert reviewer.pair_id == order[2] and reviewer.progress.value == 2
    reviewer.box.value = "A better answer."
    reviewer.buttons["edit"].click()
    now = review.verdicts(tmp_path / "v").set_index("pair_id")
    assert now.loc[order[:3], "verdict"].tolist() == ["accept", "reject", "edit"]
    assert now.loc[order[2], "answer"] == "A better answer."
    reviewer.buttons["previous"].click()
    assert "Your verdict: edit" in reviewer.message.value
    assert reviewer.box.value == "A better answer."
    assert opened().pair_id == order[3]  # resumes


def test_the_keyboard_does_the_same(opened, tmp_path):
    reviewer = opened()
    order = reviewer.queue.pairs
    type_keys(reviewer, "5432")
    assert Store(tmp_path / "v", "Ann").get(order[0]).ratings == {
        "accuracy": 5, "safety": 4, "groundedness": 3, "coverage": 2,
    }  # fmt: skip
    assert reviewer.scales["coherence"].description.startswith("▶")
    type_keys(reviewer, "s1a")
    state = Store(tmp_path / "v", "Ann").get(order[0])
    assert state.verdict == "accept" and state.ratings["precision"] == 1
    assert "coherence" not in state.ratings
    type_keys(reviewer, "rnpｕ")  # u in full width undoes the rejection
    assert reviewer.pair_id == order[1]
    assert Store(tmp_path / "v", "Ann").get(order[1]).verdict is None
    type_keys(reviewer, "nnj")
    assert reviewer.pair_id == order[1]
    type_keys(reviewer, "50")  # the next scale is cleared: nothing there yet
    type_keys(reviewer, "A")
    assert Store(tmp_path / "v", "Ann").get(order[1]) == Verdict("accept", {"accuracy": 5})


def test_keys_that_arrive_together_judge_one_pair_only(opened, tmp_path):
    reviewer = opened()
    reviewer.commands.set_state({"value": "44aar"})
    now = review.verdicts(tmp_path / "v")
    assert now["verdict"].tolist() == ["accept"] and now["safety"].tolist() == [4]
    reviewer.commands.set_state({"value": "44aar"})  # seen again: nothing new
    reviewer.commands.set_state({"value": "44a"})  # deleted: nothing to do
    assert len(review.verdicts(tmp_path / "v")) == 1 and reviewer.at == 1
    reviewer.commands.set_state({"value": "44ar"})
    assert review.verdicts(tmp_path / "v")["verdict"].tolist().count("reject") == 1


@pytest.mark.parametrize(
    "pasted", ["reject all of it", "aaaaaaaaaaaaa", "<script>", "あ", "x", "\x00"]
)
def test_pasted_text_and_unknown_keys_do_nothing(opened, tmp_path, pasted):
    reviewer = opened()
    reviewer.commands.set_state({"value": pasted})
    assert reviewer.at == 0 and review.history(tmp_path / "v").empty
    assert reviewer.message.value and "<" not in reviewer.message.value


def test_undo_goes_back_and_history_keeps_both(opened, tmp_path):
    reviewer = opened()
    order = reviewer.queue.pairs
    type_keys(reviewer, "3ar")
    type_keys(reviewer, "uu")
    assert reviewer.pair_id == order[0]
    store = Store(tmp_path / "v", "Ann")
    assert (
        store.get(order[0]) == Verdict(None, {"accuracy": 3}) and store.get(order[1]) == Verdict()
    )
    type_keys(reviewer, "uu")
    assert Store(tmp_path / "v", "Ann").get(order[0]) == Verdict()
    assert "Nothing to undo" in reviewer.message.value
    assert len(review.history(tmp_path / "v")) == 6


def test_what_is_typed_is_saved_at_every_change_and_found_again(opened, tmp_path):
    reviewer = opened()
    first = reviewer.pair_id
    for text in ("A", "A b", "A be"):
        reviewer.box.set_state({"value": text})
        assert Store(tmp_path / "v", "Ann").draft(first) == text
    again = opened()  # the browser crashed
    assert again.pair_id == first and again.box.value == "A be"
    assert "not saved yet" in again.message.value
    type_keys(again, "e")
    store = Store(tmp_path / "v", "Ann")
    assert store.get(first).answer == "A be" and store.draft(first) is None
    again.buttons["previous"].click()
    again.note.value = "spelling"
    again.scales["safety"].value = 2
    want = Verdict("edit", {"safety": 2}, "A be", "spelling")
    assert Store(tmp_path / "v", "Ann").get(first) == want


def test_an_edit_needs_a_change(opened, tmp_path):
    reviewer = opened()
    type_keys(reviewer, "e")
    assert "unchanged" in reviewer.message.value
    reviewer.box.value = "   "
    type_keys(reviewer, "e")
    assert "no edited answer" in reviewer.message.value
    assert reviewer.at == 0 and review.history(tmp_path / "v").empty


WORDS = "My own words."


@pytest.mark.parametrize("key", [*"nproualjs051", "accept", "reject", "original", "undo", "next"])
def test_words_are_kept_whatever_is_pressed(opened, key):
    reviewer = opened()
    type_keys(reviewer, "an")
    place, pair = reviewer.at, reviewer.pair_id
    reviewer.box.set_state({"value": WORDS})
    if len(key) == 1:
        type_keys(reviewer, key)
    else:
        reviewer.buttons[key].click()
    reviewer.go(place)
    assert reviewer.pair_id == pair and reviewer.box.value == WORDS
    again = opened()  # after a crash
    again.go(place)
    assert again.box.value == WORDS and "not saved yet" in again.message.value


@pytest.mark.parametrize("key", "ero")
def test_undo_brings_back_what_was_in_the_box(opened, tmp_path, key):
    reviewer = opened()
    reviewer.box.set_state({"value": WORDS})
    type_keys(reviewer, key)
    assert reviewer.at == 1 and len(review.verdicts(tmp_path / "v")) == 1
    type_keys(reviewer, "u")
    for window in (reviewer, opened()):
        assert window.at == 0 and window.box.value == WORDS
    assert review.verdicts(tmp_path / "v").empty
    type_keys(reviewer, "e")
    assert review.verdicts(tmp_path / "v")["answer"].tolist() == [WORDS]


def test_undo_of_a_second_edit_keeps_both_texts(opened):
    reviewer = opened()
    for text in (WORDS, "Second thoughts."):
        reviewer.go(0)
        reviewer.box.set_state({"value": text})
        type_keys(reviewer, "e")
    type_keys(reviewer, "u")
    assert reviewer.seen.answer == WORDS and reviewer.box.value == "Second thoughts."


def test_accept_does_not_pass_over_other_words(opened, tmp_path):
    reviewer = opened()
    reviewer.box.set_state({"value": WORDS})
    reviewer.commands.set_state({"value": "aaao"})  # typed before the question could be read
    type_keys(reviewer, "a")
    reviewer.buttons["accept"].click()
    assert reviewer.at == 0 and review.history(tmp_path / "v").empty
    type_keys(reviewer, "e")
    reviewer.go(0)
    type_keys(reviewer, "a")  # an edit that was saved is not dropped either
    assert review.verdicts(tmp_path / "v")["answer"].tolist() == [WORDS]
    type_keys(reviewer, "o")
    assert review.verdicts(tmp_path / "v")["verdict"].tolist() == ["accept"]
    reviewer.go(0)
    assert reviewer.box.value == WORDS
    reviewer.box.set_state({"value": ""})  # emptied: the words are gone
    type_keys(reviewer, "a")
    reviewer.go(0)
    assert reviewer.box.value == f"Answer {reviewer.pair_id[1]}."


def test_a_note_is_kept_as_it_is_typed_and_saved_with_what_comes_next(opened, tmp_path):
    reviewer = opened()
    pair = reviewer.pair_id
    for text in ("s", "sp", "spelling"):
        reviewer.note.set_state({"value": text})
    assert review.history(tmp_path / "v").empty
    assert opened().note.value == "spelling"
    type_keys(reviewer, "rup")
    assert Store(tmp_path / "v", "Ann").get(pair) == Verdict(note="spelling")
    assert reviewer.note.value == "spelling" and reviewer.store.draft(pair, "note") is None
    reviewer.note.set_state({"value": "seen"})
    type_keys(reviewer, "n")
    assert Store(tmp_path / "v", "Ann").get(pair).note == "seen"
    assert len(review.history(tmp_path / "v")) == 3


def test_letters_that_come_late_stay_with_their_pair(opened, tmp_path):
    reviewer = opened()
    first, box, note = reviewer.pair_id, reviewer.box, reviewer.note
    box.set_state({"value": "My own"})
    type_keys(reviewer, "r")  # the browser holds letters back while the kernel is busy
    box.set_state({"value": WORDS})
    note.set_state({"value": "why"})
    assert reviewer.pair_id != first and "Answer" in reviewer.box.value
    type_keys(reviewer, "p")
    assert (reviewer.box.value, reviewer.note.value) == (WORDS, "why")


def test_two_windows_see_each_other(opened, tmp_path):
    one, two = opened(), opened()
    order = one.queue.pairs
    type_keys(one, "ar")
    type_keys(two, "r")
    assert two.at == 0 and "Another window" in two.message.value
    assert two.count.value == "1 of 6, 2 done"
    type_keys(two, "a")  # as the other window said: goes on, past what that one judged
    assert two.pair_id == order[2] and len(review.history(tmp_path / "v")) == 2
    type_keys(two, "4")
    type_keys(one, "5")
    assert one.scales["accuracy"].value == 4 and "Another window" in one.message.value
    type_keys(one, "a")
    want = Verdict("accept", {"accuracy": 4})
    assert Store(tmp_path / "v", "Ann").get(order[2]) == want
    type_keys(two, "u")  # not what the other window has built upon
    assert Store(tmp_path / "v", "Ann").get(order[2]) == want


def test_words_of_two_windows_are_both_kept(opened, tmp_path):
    one, two = opened(), opened()
    one.box.set_state({"value": "of one"})
    two.box.set_state({"value": "of two"})
    type_keys(one, "e")
    type_keys(two, "e")
    assert review.verdicts(tmp_path / "v")["answer"].tolist() == ["of one"]
    assert two.at == 0 and two.box.value == "of two"
    third = opened()
    third.go(0)
    assert third.box.value == "of two" and third.seen.answer == "of one"


def test_a_full_disk_is_said_and_nothing_is_left_behind(opened, monkeypatch):
    reviewer = opened()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(verdicts, "write_json", full)
        reviewer.box.set_state({"value": WORDS})
        type_keys(reviewer, "n")
        assert "NOT SAVED" in reviewer.message.value
        assert reviewer.at == 0 and reviewer.box.value == WORDS
    type_keys(reviewer, "np")
    assert reviewer.box.value == WORDS


def test_one_language_alone(tmp_path):
    pytest.importorskip("ipywidgets")
    from derm_rl.captions import review_widget

    pairs = make()
    pairs["language"] = ["en", "ja"] * 3
    reviewer = review_widget.review(pairs, image, tmp_path, "Ann")
    mine = [p for p in reviewer.queue.pairs if int(p[1]) % 2]
    reviewer.box.set_state({"value": WORDS})
    first = reviewer.pair_id
    reviewer.language.set_state({"index": 2})  # all, en, ja
    assert reviewer.queue.pairs == mine and reviewer.pair_id == mine[0]
    type_keys(reviewer, "aaa")
    assert reviewer.pair_id is None and "3 in other languages" in reviewer.view.value
    type_keys(reviewer, "l")
    assert len(reviewer.queue) == 6 and reviewer.queue.done(reviewer.store) == 3
    reviewer.go(reviewer.queue.pairs.index(first))
    assert reviewer.box.value == WORDS
    type_keys(reviewer, "l")
    assert not set(reviewer.queue.pairs) & set(mine)
    type_keys(reviewer, "u")  # of a pair that the filter hides
    assert reviewer.pair_id == mine[2] and len(reviewer.queue) == 6


def test_tab_leads_from_the_keys_to_the_box_and_on(opened):
    def controls(widget):
        inside = getattr(widget, "children", None)
        return [widget] if inside is None else [c for w in inside for c in controls(w)]

    reviewer = opened()
    type_keys(reviewer, "n")
    order = controls(reviewer)
    at = order.index(reviewer.commands)
    assert order[at : at + 4] == [
        reviewer.commands, reviewer.box, reviewer.note, reviewer.buttons["accept"]
    ]  # fmt: skip


def test_the_end_of_the_queue_and_an_empty_one(opened, tmp_path):
    reviewer = opened()
    type_keys(reviewer, "aaaaaaaaa")
    assert reviewer.pair_id is None and "6 of 6 pairs done" in reviewer.view.value
    assert reviewer.box.disabled and reviewer.scales["safety"].disabled
    type_keys(reviewer, "r1es")
    reviewer.box.value = "behind the end"
    assert len(review.history(tmp_path / "v")) == 6
    assert "0 of 0" in opened("Bob", sample=[]).view.value
    with pytest.raises(ValueError, match="not in the table, e.g. nowhere"):
        opened(sample=["nowhere"])


def test_earlier_turns_and_flags_are_shown(opened):
    flags = pd.DataFrame({"pair_id": ["p5"], "check": ["length"], "reason": ["too <b>short"]})
    reviewer = opened(sample=["p0", "p5"], flags=flags, order="flagged_first")
    assert reviewer.pair_id == "p5"
    assert (
        "Answer 4." in reviewer.view.value and "length: too &lt;b&gt;short" in reviewer.view.value
    )


def test_two_readers_agree_through_the_widget(opened, tmp_path, few_resamples):
    for reader, keys in (("Ann", "aaarar"), ("Bob", "aaarrr")):
        one = opened(reader)
        verdict = dict(zip(sorted(one.queue.pairs), keys, strict=True))
        while one.pair_id is not None:
            type_keys(one, verdict[one.pair_id])
    figures = review.summary(review.verdicts(tmp_path / "v"))
    assert figures["disputed"] == 1 and figures["verdicts"]["reject"] == 3
    assert figures["agreement"][0]["n"] == 6 and 0 < figures["agreement"][0]["kappa"] < 1


def test_nothing_planted_acts_in_the_widget(tmp_path):
    pytest.importorskip("ipywidgets")
    from derm_rl.captions import review_widget

    pairs = hostile_pairs()
    pairs.loc[0, "answer"] = "<script>" + "x" * 1_000_000
    flags = {"pair_id": pairs["pair_id"], "check": PLANTED, "reason": PLANTED}
    flags = pd.DataFrame(flags, dtype=object)
    reviewer = review_widget.review(pairs, image, tmp_path, "<script>", flags=flags)
    seen = 0
    while (pair := reviewer.pair_id) is not None:
        assert reviewer.view.value.startswith(f"<style>{STYLE}</style>")
        checked(reviewer.view.value)
        for text in (reviewer.message.value, reviewer.count.value):
            assert checked(text).tags == []
        json.dumps(reviewer.box.value, ensure_ascii=False).encode()  # a message can carry it
        if pair == pairs.loc[0, "pair_id"]:
            seen += 1
            assert reviewer.box.disabled and len(reviewer.view.value) < 50_000
            assert "more characters are stored" in reviewer.view.value
        reviewer.reject()
    assert seen == 1 and len(review.verdicts(tmp_path)) == len(pairs)
    assert len(reviewer.rows[pairs.loc[0, "pair_id"]]["answer"]) > 1_000_000
