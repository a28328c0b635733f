"""Planted faults: wrong for certain, the same for a seed, and measured against the exact truth."""

import json
from collections import Counter

import pandas as pd
import pytest

from derm_rl.captions import checks, faults, questions
from derm_rl.captions.checks import terms
from derm_rl.captions.checks.base import present
from derm_rl.captions.measured import MeasuredTeacher
from derm_rl.captions.schema import ARTIFACTS, COLOURS, PAIR_COLUMNS, Measurements
from derm_rl.data import phantom

IMAGES = 260


@pytest.fixture(scope="module")
def phantoms():
    """Correct pairs of phantoms, their images, measurements that agree with the truth, truth."""
    images = phantom.table(IMAGES, 3).assign(source="phantom", label=None)
    truth = faults.truths(images)
    known = {row["image_id"]: exact(row) for row in truth.to_dict("records")}
    rows = {row["image_id"]: present(row) for row in images.to_dict("records")}
    teacher, made = MeasuredTeacher(), []
    for number, q in enumerate(questions.plan(images, 1, languages=("en", "ja"), multi=0)):
        given = teacher.answer(q, rows[q.image_id], known[q.image_id])
        found = [f.model_dump() for f in given.findings]
        made.append(
            {
                "pair_id": f"p{number}", "image_id": q.image_id, "question_type": q.type,
                "style": q.style, "conversation": q.conversation, "turn": q.turn,
                "language": q.language, "mode": q.mode, "question": q.text,
                "answer": given.answer, "findings": json.dumps(found, ensure_ascii=False),
                "confidence": given.confidence, "abstained": given.abstained, "status": "ok",
                "teacher": "measured", "reason": "", "source": "phantom",
                "diagnosis": rows[q.image_id]["diagnosis"],
            }
        )  # fmt: skip
    return pd.DataFrame(made, columns=list(PAIR_COLUMNS)), images, known, truth


def exact(row):
    """Measurements as the truth has them."""
    asymmetric, irregular = (row[n] > faults.SURE[n] for n in ("asymmetry", "border"))
    return Measurements(
        segmented=True, box=(0.2, 0.2, 0.8, 0.8), diameter=0.6, area=0.3,
        asymmetry=row["asymmetry"], asymmetric_axes=int(asymmetric) * 2, border=row["border"],
        irregular_border=irregular, colours=COLOURS[: row["colours"]], ita=45.0,
        skin_tone="light", artifacts={a: bool(row[a]) for a in ARTIFACTS},
        scores=dict.fromkeys(ARTIFACTS, 0.5),
    )  # fmt: skip


@pytest.fixture(scope="module")
def planted(phantoms):
    pairs, images, known, truth = phantoms
    return faults.plant(pairs, images, known, seed=1, truth=truth)


def test_every_check_has_a_fault_and_every_kind_is_planted_in_both_languages(planted):
    assert set(faults.KINDS.values()) == set(checks.CHECKS)
    assert set(planted["fault"]) == set(faults.KINDS)
    assert (planted.groupby("fault")["language"].nunique() == 2).all()
    assert set(planted["part"]) == {"development", "held_out", "made"}
    assert planted["done"].str.len().min() > 0


def test_one_fault_a_pair_and_nothing_else_is_changed(phantoms, planted):
    before = phantoms[0].set_index("pair_id").loc[planted["pair_id"]].reset_index()
    free = {"answer", "findings", "confidence", "status", "abstained"}
    for column in set(PAIR_COLUMNS) - free:
        pd.testing.assert_series_equal(before[column], planted[column], check_dtype=False)
    changed = before[list(free)].astype(str) != planted[list(free)].astype(str)
    assert changed.any(axis=1).all()


def test_planting_is_deterministic_by_seed(phantoms, planted):
    pairs, images, known, truth = phantoms
    again = faults.plant(pairs, images, known, seed=1, truth=truth)
    pd.testing.assert_frame_equal(planted, again)
    other = faults.plant(pairs, images, known, seed=2, truth=truth)
    assert set(other["done"]) != set(planted["done"])


def test_contradictions_are_planted_only_where_measurement_and_truth_agree(phantoms):
    pairs, images, known, truth = phantoms
    of_measurement = [k for k, c in faults.KINDS.items() if c == "measurement"]
    wrong = truth.assign(
        asymmetry=0.2 * truth["asymmetry"].le(faults.SURE["asymmetry"]),
        border=0.2 * truth["border"].le(faults.SURE["border"]),
        colours=truth["colours"] + 1, **{a: ~truth[a] for a in ARTIFACTS},
    )  # fmt: skip
    assert faults.plant(pairs, images, known, of_measurement, truth=wrong).empty
    assert len(faults.plant(pairs, images, known, of_measurement, truth=truth)) > 100


def test_unknown_kinds_and_empty_tables(phantoms):
    pairs, images, known, _ = phantoms
    with pytest.raises(ValueError, match="rudeness"):
        faults.plant(pairs, images, known, ["rudeness"])
    none = faults.plant(pairs.head(0), images, known)
    assert none.empty and {"fault", "part", "done"} <= set(none.columns)


def test_a_fault_that_does_not_fit_is_left_out(phantoms):
    pairs, images, known, _ = phantoms
    nobody = images.assign(age=float("nan"), sex=None, site=None, diagnosis="NEV")
    made = faults.plant(pairs, nobody, known, ["label", "metadata_leak"])
    assert made.empty  # no wording can be filled
    abstained = pairs.assign(abstained=True)
    assert faults.plant(abstained, images, known, ["refusal"]).empty


def leaves(found, path=()):
    if isinstance(found, dict):
        for key, value in found.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, found


def test_wordings_are_many_and_held_out_ones_are_others():
    count, parts = Counter(), {}
    for path, words in leaves(faults._wordings()):
        assert all(isinstance(w, str) and w for w in words), path
        count[path[0], "ja" if "ja" in path else "en" if "en" in path else "any"] += len(words)
        if path[-1] in faults.PARTS:
            parts.setdefault(path[:-1], {})[path[-1]] = set(words)
    assert min(count.values()) >= 7 and sum(count.values()) > 700
    for path, found in parts.items():
        assert set(found) == set(faults.PARTS) and found["held_out"], path
        assert not found["development"] & found["held_out"], path


def test_no_wording_stands_in_the_patterns_of_the_checks():
    patterns = terms.FILE.read_text(encoding="utf-8").lower()
    for path, words in leaves(faults._wordings()):
        long = [w for w in words if len(w) >= 12 and path[0] != "hostile"]
        assert not [w for w in long if w.lower() in patterns], path


def test_missed_are_those_that_the_check_of_their_kind_did_not_flag(planted):
    pair = planted.iloc[:2]
    found = [faults.KINDS[pair["fault"].iloc[0]], "some other"]
    flags = pd.DataFrame({"pair_id": pair["pair_id"], "check": found})
    assert faults.missed(pair, flags)["pair_id"].tolist() == [pair["pair_id"].iloc[1]]


def test_evaluate_meets_its_bars_on_wordings_it_was_made_with(phantoms):
    pairs, images, known, truth = phantoms
    table = faults.evaluate(pairs, images, known, seed=0, truth=truth)
    assert list(table.columns) == [
        "kind", "check", "language", "part", "n", "found", "value", "low", "high"
    ]  # fmt: skip
    assert table["low"].le(table["value"]).all() and table["value"].le(table["high"]).all()
    correct = table[table["kind"] == "none"]
    assert set(correct["language"]) == {"en", "ja"}
    assert correct["found"].sum() <= 0.02 * correct["n"].sum()
    told = table[table["part"].isin(["development", "made"])].groupby("kind")[["found", "n"]].sum()
    assert set(told.index) == set(faults.KINDS)
    # A kind has a dozen pairs here: one miss is chance, two are not.
    assert (told["n"] - told["found"]).max() <= 1, told
    pd.testing.assert_frame_equal(table, faults.evaluate(pairs, images, known, seed=0, truth=truth))
