"""The caption grammar: render and parse are inverse, and errors say what was expected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derm_rl import prompts
from derm_rl.prompts import ARTIFACTS, DIAGNOSES, Finding, PromptError

PAPER = ["hair", "gel_bubble", "ruler", "ink"]
findings = st.builds(
    Finding,
    st.sampled_from(list(DIAGNOSES)),
    st.lists(st.sampled_from(list(ARTIFACTS)), unique=True).map(tuple),
)
vocabularies = st.tuples(
    st.lists(st.sampled_from(list(DIAGNOSES)), unique=True, min_size=1),
    st.lists(st.sampled_from(list(ARTIFACTS)), unique=True),
)


def test_the_papers_32_prompts_word_for_word():
    texts = [prompts.render(f) for f in prompts.all_prompts()]
    assert len(set(texts)) == 32
    assert texts[0] == "a dermoscopic image with melanoma (MEL) with no visible artifacts"
    assert texts[1] == "a dermoscopic image with melanoma (MEL) showing hair"
    assert texts[2] == "a dermoscopic image with melanoma (MEL) showing gel bubble"
    assert texts[31] == (
        "a dermoscopic image with melanocytic nevus (NV) showing hair, gel bubble, ruler, ink"
    )
    assert [prompts.parse(t) for t in texts] == prompts.all_prompts()


@given(findings)
def test_parse_inverts_render(finding):
    assert prompts.parse(prompts.render(finding)) == finding


@given(vocabularies)
def test_all_prompts_are_all_combinations_in_a_fixed_order(vocabulary):
    diagnoses, artifacts = vocabulary
    found = prompts.all_prompts(diagnoses, artifacts)
    assert len(set(found)) == len(found) == len(diagnoses) * 2 ** len(artifacts)
    assert len({prompts.render(f) for f in found}) == len(found)
    assert [f.diagnosis for f in found[:: 2 ** len(artifacts)]] == diagnoses
    for number, finding in enumerate(found):
        subset = {a for i, a in enumerate(artifacts) if number % 2 ** len(artifacts) >> i & 1}
        assert set(finding.artifacts) == subset


@given(findings, vocabularies)
def test_labels_are_one_exactly_for_what_is_present(finding, vocabulary):
    diagnoses, artifacts = vocabulary
    names = prompts.label_names(diagnoses, artifacts)
    assert names[: len(artifacts)] == artifacts
    present = {finding.diagnosis, *finding.artifacts}
    assert prompts.labels(finding, names) == [float(n in present) for n in names]


@given(findings, findings)
def test_one_pair_of_diagnoses_separates_findings(first, second):
    names = prompts.label_names(list(DIAGNOSES), list(ARTIFACTS))
    same = prompts.labels(first, names) == prompts.labels(second, names)
    assert same == (first == second)


def test_two_diagnoses_are_one_label_and_more_are_one_each():
    assert prompts.label_names(["MEL", "NV"], PAPER) == [*PAPER, "MEL"]
    assert prompts.label_names(["MEL", "NV", "BCC"], ["hair"]) == ["hair", "MEL", "NV", "BCC"]


def test_a_finding_keeps_its_artifacts_in_the_order_of_the_grammar():
    assert Finding("NV", ("ink", "hair")) == Finding("NV", ("hair", "ink"))
    assert prompts.render(Finding("NV", ("dark_corner", "gel_bubble"))).endswith(
        "showing gel bubble, dark corner"
    )


@given(st.text())
def test_parse_accepts_nothing_but_what_render_writes(text):
    try:
        finding = prompts.parse(text)
    except PromptError as error:
        assert "expected" in str(error) and repr(text) in str(error)
    else:
        assert prompts.render(finding) == text


@given(findings, st.data())
def test_parse_of_a_damaged_prompt_says_what_was_expected(finding, data):
    text = prompts.render(finding)
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:at] + data.draw(st.sampled_from(["", "x", " ", ",", "Hair"])) + text[at + 1 :]
    try:
        assert prompts.render(prompts.parse(damaged)) == damaged
    except PromptError as error:
        assert "expected" in str(error)


START = "a dermoscopic image with "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a photo of melanoma (MEL)", "expected it to start with 'a dermoscopic image with '"),
        (START + "measles (MSL) showing hair", r"expected one of melanoma \(MEL\), "),
        (START + "melanoma (NV) showing hair", "expected one of"),
        (START + "melanoma (MEL)", "expected ' with no visible artifacts' or ' showing '"),
        (START + "melanoma (MEL) with no visible artifacts.", "expected ' with no visible"),
        (START + "melanoma (MEL) showing ", "unknown artifact ''; expected one or more of hair"),
        (START + "melanoma (MEL) showing hair,ink", "unknown artifact 'hair,ink'; expected"),
        (START + "melanoma (MEL) showing ink, hair", "out of order or twice; expected '.*hair, i"),
        (START + "melanoma (MEL) showing ink, ink", "out of order or twice; expected"),
    ],
)
def test_parse_errors(text, message):
    with pytest.raises(PromptError, match=message):
        prompts.parse(text)


def test_findings_and_labels_outside_the_grammar():
    with pytest.raises(PromptError, match="unknown diagnosis 'MELL'; did you mean 'MEL'"):
        Finding("MELL")
    with pytest.raises(PromptError, match="unknown artifact 'gel bubble'; did you mean 'gel_bubb"):
        Finding("MEL", ("gel bubble",))
    with pytest.raises(PromptError, match="named twice"):
        Finding("MEL", ("ink", "ink"))
    with pytest.raises(PromptError, match="unknown label 'inkk'; did you mean 'ink'"):
        prompts.labels(Finding("MEL"), ["hair", "inkk"])
