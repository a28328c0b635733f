"""Diagnoses in words: what is named, what is a kind of what, what contradicts what."""

import itertools

import pytest

from derm_rl.captions import diagnoses
from derm_rl.captions.diagnoses import DiagnosesError
from derm_rl.prompts import DIAGNOSES


def named(text):
    return [m.concept for m in diagnoses.mentions(diagnoses.normalize(text))]


def test_every_code_of_the_prompts_has_exactly_one_concept():
    codes = [c.code for c in diagnoses.concepts().values() if c.code]
    assert sorted(codes) == sorted(set(codes))
    assert set(DIAGNOSES) <= set(codes)


def test_every_concept_has_names_in_both_languages_and_finds_itself():
    for concept in diagnoses.concepts().values():
        assert any(n.isascii() for n in concept.names), concept.name
        assert any(not n.isascii() for n in concept.names), concept.name
        for name in concept.names:
            assert named(name) == [concept.name], name


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", []),
        ("A Melanoma.", ["melanoma"]),
        ("Melanomas and NEVI", ["melanoma", "nevus"]),
        ("melanoma in situ", ["melanoma in situ"]),  # not also melanoma
        ("悪性黒色腫と色素性母斑", ["melanoma", "nevus"]),  # not also 悪性
        ("ﾒﾗﾉｰﾏ", ["melanoma"]),  # half-width
        ("ＭＥＬＡＮＯＭＡ", ["melanoma"]),  # full-width
        ("melanomatous, moleskin, envy", []),  # parts of other words
        ("\x00\ud800 ☃", []),
    ],
)
def test_mentions(text, expected):
    assert named(text) == expected


def test_mentions_say_where():
    text = diagnoses.normalize("Either melanoma or a nevus.")
    assert [text[m.start : m.end] for m in diagnoses.mentions(text)] == ["melanoma", "nevus"]


@pytest.mark.parametrize(
    "first, second, expected",
    [
        ("melanoma", "melanoma", 0),
        ("melanoma", "melanoma in situ", 0),  # a kind of it
        ("lentigo maligna", "malignant", 0),  # a group above it
        ("melanoma", "melanocytic", 0),
        ("melanoma", "nevus", 1),
        ("nevus", "malignant", 1),
        ("melanoma", "benign", 1),
        ("junctional nevus", "compound nevus", 0.4),
    ],
)
def test_contradiction(first, second, expected):
    assert diagnoses.contradiction(first, second) == expected
    assert diagnoses.contradiction(second, first) == expected


def test_contradiction_is_symmetric_and_never_with_a_group_above():
    names = list(diagnoses.concepts())
    for first, second in itertools.combinations(names, 2):
        assert diagnoses.contradiction(first, second) == diagnoses.contradiction(second, first)
    for name in names:
        for above in diagnoses.ancestors(name):
            assert diagnoses.contradiction(name, above) == 0


@pytest.mark.parametrize(
    "label, code, expected",
    [
        ("Malignant Melanoma, NOS", None, "melanoma"),
        ("melanoma in situ", "MEL", "melanoma in situ"),  # the label is finer than the code
        ("melanoma vs nevus", "MEL", "melanoma"),  # says less than the code
        (None, "NV", "nevus"),
        ("", "NV", "nevus"),
        ("something else", None, None),
        (None, None, None),
    ],
)
def test_of_label(label, code, expected):
    assert diagnoses.of_label(label, code) == expected


@pytest.mark.parametrize(
    "raw, words",
    [
        ({"a": {"en": ["x"], "colour": 1}}, "colour"),
        ({"a": {"en": ["x"]}, "b": {"en": ["X"]}}, "'x' names 'a' and 'b'"),
        ({"a": {"parents": ["c"]}}, "unknown parent 'c'"),
        ({"a": {"parents": ["b"]}, "b": {"parents": ["a"]}}, "circle"),
    ],
)
def test_a_broken_map_is_refused(raw, words):
    with pytest.raises(DiagnosesError, match=words):
        diagnoses.parse(raw)
